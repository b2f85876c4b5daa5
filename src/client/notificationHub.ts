import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import * as Mailbox from "effect/Mailbox"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import { DatabaseError } from "../DatabaseError.js"
import { controlMillis } from "../connection/connection.js"
import type { Notification, Session } from "../connection/session.js"

/** What a listener gets. */
export type NotificationEvent =
  | (Notification & { readonly _tag: "Notification" })
  /**
   * Notifications of the channel may have been missed: the connection was lost and is back, or the
   * listener was too slow for its queue. Whoever keeps a copy of something must read it again now.
   */
  | { readonly _tag: "Gap"; readonly channel: string; readonly reason: "reconnected" | "overflow" }

/**
 * The listeners of one database. All of them share one dedicated session, which is opened for the
 * first and closed after the last. When it is lost it is opened again, with growing pauses, and
 * every listener is told that it may have missed something.
 */
export interface NotificationHub {
  /** Succeeds once the server has acknowledged the LISTEN; events come until the scope closes. */
  readonly subscribe: (
    channel: string
  ) => Effect.Effect<Mailbox.ReadonlyMailbox<NotificationEvent>, DatabaseError, Scope.Scope>
}

/**
 * How a session that only listens, and does not notice that the other side is gone, is asked for a
 * sign of life.
 */
export interface Heartbeat {
  readonly every: Duration.DurationInput
  /** A session that has not answered for so long is given up. */
  readonly patience: Duration.DurationInput
}

/** The hub over a way to open sessions; it ends with the scope. */
export const make = (
  open: Effect.Effect<Session, DatabaseError, Scope.Scope>,
  heartbeat: Heartbeat = { every: "30 seconds", patience: "5 seconds" }
): Effect.Effect<NotificationHub, never, Scope.Scope> =>
  Effect.gen(function* () {
    const hubScope = yield* Effect.scope
    const listeners: Listeners = new Map()
    let keeper: Keeper | undefined

    const dismiss = (self: Keeper) => {
      if (keeper === self) keeper = undefined
    }

    const keep = keeping({ open, heartbeat, listeners, dismiss })

    /** Becomes the keeper before anything else can run, so that there is never a second one. */
    const startKeeper = Effect.suspend(() => {
      const self: Keeper = {
        ready: Deferred.unsafeMake(FiberId.none),
        abandoned: Deferred.unsafeMake(FiberId.none),
        session: undefined,
        wasConnected: false,
        failures: 0
      }
      keeper = self
      return Effect.as(Effect.forkIn(Effect.interruptible(keep(self)), hubScope), self)
    })

    const join = (listener: Listener): Effect.Effect<void, DatabaseError> =>
      Effect.gen(function* () {
        const set = listeners.get(listener.channel)
        listeners.set(listener.channel, (set ?? new Set()).add(listener))
        const self = keeper ?? (yield* startKeeper)
        yield* self.session === undefined
          ? Deferred.await(self.ready)
          : self.session.query(`LISTEN ${identifier(listener.channel)}`)
        listener.hasJoined = true
      })

    const leave = (listener: Listener): Effect.Effect<void> =>
      Effect.suspend(() => {
        listener.end()
        const set = listeners.get(listener.channel)
        set?.delete(listener)
        if (set === undefined || set.size > 0) return Effect.void
        listeners.delete(listener.channel)
        const self = keeper
        if (self === undefined) return Effect.void
        if (listeners.size === 0) {
          dismiss(self)
          return Deferred.succeed(self.abandoned, undefined)
        }
        return self.session === undefined
          ? Effect.void
          : self.session.query(`UNLISTEN ${identifier(listener.channel)}`).pipe(
              // Not for longer than a server takes that answers.
              Effect.interruptible,
              Effect.timeoutOption(controlMillis),
              Effect.ignore
            )
      }).pipe(Effect.asVoid)

    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const listener of everybody(listeners)) listener.end()
      })
    )

    return {
      subscribe: (channel) =>
        Effect.gen(function* () {
          const problem = invalidChannel(channel)
          if (problem !== undefined) return yield* Effect.fail(invalid("listen", problem))
          const mailbox = yield* Mailbox.make<NotificationEvent>()
          const listener = makeListener(channel, mailbox)
          yield* Effect.addFinalizer(() => leave(listener))
          yield* join(listener)
          return mailbox
        })
    }
  })

/**
 * Why PostgreSQL would not take a channel's name (documentation, LISTEN: a name is an identifier of
 * 63 bytes at most).
 */
export const invalidChannel = (channel: string): string | undefined =>
  channel === "" || channel.includes("\0") || Buffer.byteLength(channel) > maxChannelBytes
    ? `a channel's name has 1 to ${maxChannelBytes} bytes and no NUL, and this one has ${Buffer.byteLength(channel)} bytes`
    : undefined

/** Why PostgreSQL would not take a payload (documentation, NOTIFY: shorter than 8000 bytes). */
export const invalidPayload = (payload: string): string | undefined => {
  const bytes = Buffer.byteLength(payload)
  return bytes > maxPayloadBytes
    ? `a notification carries ${maxPayloadBytes} bytes at most, and this payload has ${bytes}: store it in a table and send its key`
    : payload.includes("\0")
      ? "a payload cannot contain a NUL byte"
      : undefined
}

/** The error of a request that was not sent. */
export const invalid = (operation: string, problem: string) =>
  new DatabaseError({ operation, reason: { _tag: "InvalidRequest", problem } })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

type Listeners = Map<string, Set<Listener>>

const everybody = (listeners: Listeners) => [...listeners.values()].flatMap((set) => [...set])

/** What a keeper does with the sessions of a hub. */
const keeping = ({
  dismiss,
  heartbeat,
  listeners,
  open
}: {
  readonly open: Effect.Effect<Session, DatabaseError, Scope.Scope>
  readonly heartbeat: Heartbeat
  readonly listeners: Listeners
  readonly dismiss: (self: Keeper) => void
}) => {
  /** One session, from its opening to its loss or to the leave of the last listener. */
  const serve = (self: Keeper): Effect.Effect<void, DatabaseError> =>
    Effect.scoped(
      Effect.gen(function* () {
        const session = yield* open
        yield* session.onNotification((notification) => {
          for (const listener of listeners.get(notification.channel) ?? []) {
            listener.offer({ _tag: "Notification", ...notification })
          }
        })
        // A channel that comes while this goes on is visited, too.
        for (const channel of listeners.keys()) yield* session.query(`LISTEN ${identifier(channel)}`)
        self.session = session
        for (const listener of everybody(listeners)) if (listener.hasJoined) listener.gap("reconnected")
        self.wasConnected = true
        self.failures = 0
        yield* Deferred.succeed(self.ready, undefined)
        yield* Effect.raceFirst(session.lost, beating(session, heartbeat))
      })
    ).pipe(
      Effect.ensuring(
        Effect.sync(() => {
          if (self.session !== undefined) self.ready = Deferred.unsafeMake(FiberId.none)
          self.session = undefined
        })
      )
    )

  /**
   * Serves for as long as somebody listens. Only the very first failure to connect is told to
   * those who wait.
   */
  return (self: Keeper): Effect.Effect<void> =>
    serve(self).pipe(
      Effect.tapError((error) =>
        self.wasConnected
          ? Effect.zipRight(
              Effect.logWarning("The connection for notifications was lost; reconnecting", error),
              pause(self.failures++)
            )
          : Effect.zipRight(
              Effect.sync(() => dismiss(self)),
              Deferred.fail(self.ready, error)
            )
      ),
      Effect.retry({ while: () => self.wasConnected }),
      Effect.raceFirst(Deferred.await(self.abandoned)),
      Effect.ignore
    )
}

/** What keeps one session open, and opens the next. */
interface Keeper {
  /**
   * Done once the session that is being opened listens to all channels; fails if it is the first
   * one and could not be opened.
   */
  ready: Deferred.Deferred<void, DatabaseError>
  /** Done when nobody listens any more. */
  readonly abandoned: Deferred.Deferred<void>
  session: Session | undefined
  wasConnected: boolean
  /** How many sessions in a row were lost, or could not be opened, before they listened. */
  failures: number
}

interface Listener {
  readonly channel: string
  readonly offer: (event: NotificationEvent) => void
  readonly gap: (reason: "reconnected" | "overflow") => void
  /** Whether it has been told that it listens: one that has not can have missed nothing. */
  hasJoined: boolean
  readonly end: () => void
}

/** A listener that is this many events behind loses those that follow, and is told so at once. */
const maxQueued = 10_000

const makeListener = (channel: string, mailbox: Mailbox.Mailbox<NotificationEvent>): Listener => {
  const queued = () => {
    const size = mailbox.unsafeSize()
    return size._tag === "Some" ? size.value : 0
  }
  let overflowed = false
  /**
   * Whether the queue ends in the gap of an overflow: what is lost until that is taken belongs to
   * it.
   */
  const isLosing = () => overflowed && queued() > 0
  const gap = (reason: "reconnected" | "overflow") => {
    if (!isLosing()) mailbox.unsafeOffer({ _tag: "Gap", channel, reason })
    overflowed ||= reason === "overflow"
  }
  return {
    channel,
    gap,
    hasJoined: false,
    offer: (event) => {
      if (isLosing()) return
      overflowed = false
      // Not with the next event: the one that is lost here can be the last for a long time.
      if (queued() >= maxQueued) gap("overflow")
      else mailbox.unsafeOffer(event)
    },
    end: () => {
      mailbox.unsafeDone(Exit.void)
    }
  }
}

const maxChannelBytes = 63
const maxPayloadBytes = 7999

const beating = (session: Session, { every, patience }: Heartbeat): Effect.Effect<never, DatabaseError> =>
  session.query("SELECT 1").pipe(
    Effect.timeoutFail({
      duration: patience,
      onTimeout: () =>
        new DatabaseError({
          operation: "listen",
          reason: { _tag: "ConnectionLost", phase: "sent", systemCode: "ETIMEDOUT" }
        })
    }),
    Effect.delay(every),
    Effect.forever
  )

/**
 * Waits before the next try: longer with every failure, up to 10 seconds, and not the same for all.
 */
const pause = (failures: number): Effect.Effect<void> =>
  Effect.flatMap(Random.nextRange(0.8, 1.2), (jitter) =>
    Effect.sleep(Duration.millis(jitter * Math.min(100 * 2 ** failures, 10_000)))
  )

const identifier = (name: string) => `"${name.replaceAll('"', '""')}"`
