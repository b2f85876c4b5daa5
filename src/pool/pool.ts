import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Random from "effect/Random"
import * as Runtime from "effect/Runtime"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import * as Tarn from "tarn"
import { DatabaseError, type Holder, type PoolState, type Reason } from "../DatabaseError.js"
import {
  alarm,
  PgConnection,
  type DialOptions,
  type Connection,
  passedMillis
} from "../connection/connection.js"
import { standard } from "../connection/errorPolicy.js"
import { TarnPool } from "./tarnPool.js"
import { Generation } from "../connection/statementCache.js"
import type { Telemetry } from "../telemetry/metrics.js"
import type { Restore } from "../connection/mutex.js"

/** How a pool behaves. */
export interface PoolOptions {
  readonly dial: DialOptions
  readonly min: number
  readonly max: number
  readonly acquireTimeout: Duration.Duration
  readonly idleTimeout: Duration.Duration
  readonly connectionTTL: Duration.Duration
  readonly validateAfterIdle: Duration.Duration
  /** More callers than this do not wait: they fail with `Overloaded`. */
  readonly maxWaiting: number
  /** A connection that is checked out for longer is reported, once. */
  readonly leakWarning: Duration.Duration
  readonly telemetry: Telemetry
}

/** What happens to the connections of a pool. */
export type PoolEvent =
  | { readonly _tag: "Opened"; readonly processId: number; readonly millis: number }
  | { readonly _tag: "Closed"; readonly processId: number }
  | { readonly _tag: "DialFailed"; readonly error: DatabaseError }
  /** A caller that waited, or would have waited, goes without. */
  | { readonly _tag: "Refused"; readonly error: DatabaseError }
  /** Every connection older than an error was given up. */
  | { readonly _tag: "Invalidated"; readonly error: DatabaseError }
  /**
   * A connection has been checked out for longer than `leakWarning`. `holder` is the span that took
   * it.
   */
  | {
      readonly _tag: "Leak"
      readonly processId: number
      readonly holder: string
      readonly heldMillis: number
    }

/**
 * A connection that a fiber holds, until it is over: what was forked meanwhile, or waits for the
 * end, goes on without it.
 */
export interface Checkout {
  readonly connection: Connection
  over: boolean
}

/** The connections that a fiber holds while it asks for another one. */
export class CheckedOut extends Context.Reference<CheckedOut>()("promptgrimoire-db/pool/CheckedOut", {
  defaultValue: (): ReadonlyArray<Checkout> => []
}) {}

/**
 * A pool of connections. `tarn` does the pooling: it keeps to the maximum and hands a free
 * connection to whoever waits longest. What is added here is the discipline around it: a connection
 * is checked out only if it is open, young enough, outside any transaction and, after a pause,
 * proven alive; a caller's wait is not tied to the one dial that it caused, and leaves nothing
 * behind when it is interrupted.
 */
export interface Pool {
  /**
   * Checks a connection out until `release`. For a caller that cannot be interrupted but in what it
   * `restore`s, so that a connection is never lost between the pool and its user.
   */
  readonly acquire: (restore: Restore) => Effect.Effect<Connection, DatabaseError>
  /**
   * Checks a connection in. One that is not idle and clean is closed, and nobody gets it again.
   */
  release(connection: Connection): Effect.Effect<void>
  readonly state: Effect.Effect<PoolState>
  /** What happens from now on; who is too slow loses the oldest events. */
  readonly events: Stream.Stream<PoolEvent>
}

/** Opens the pool and its minimum of connections; the first failure to connect is the error. */
export const make = Effect.fn("Pool.make")(function* (
  options: PoolOptions
): Effect.fn.Return<Pool, DatabaseError, Scope.Scope> {
  const runtime = yield* Effect.runtime()
  const runFork = Runtime.runFork(runtime)
  // The Layer can be built where nothing is interruptible, and fibers inherit that.
  const runPromise = <A>(effect: Effect.Effect<A, DatabaseError>): Promise<A> =>
    Runtime.runPromiseExit(runtime)(Effect.interruptible(effect)).then((exit) =>
      Exit.isSuccess(exit) ? exit.value : Promise.reject(Cause.squash(exit.cause) as Error)
    )
  const clock = yield* Effect.clock
  const unsafeNow = () => passedMillis(clock)

  const live = new Map<PgConnection, PoolEntry>()
  const dialPermits = yield* Effect.makeSemaphore(concurrentDials)
  const closed = yield* Deferred.make<never, DatabaseError>()
  const allReturned = yield* Deferred.make<void>()
  const events = yield* PubSub.sliding<PoolEvent>(1024)
  const publish = (event: PoolEvent) => void events.unsafeOffer(event)
  const { telemetry } = options
  const decisions = options.dial.decisions ?? standard
  const generation = new Generation()
  const count = () => telemetry.connections(live.size - checkedOut, checkedOut, tarn.numPendingAcquires())
  let closing = false
  /** How many connections wait for the one that takes their place. */
  let renewing = 0
  let checkedOut = 0
  let invalidBefore = 0
  /** When a connection was lost last, in a statement. */
  let lastLoss = Number.NEGATIVE_INFINITY
  /** Why the last dial failed, until one succeeds. */
  let dialFailure: DatabaseError | undefined
  let reported = false

  const state = (): PoolState => {
    let busy = 0
    for (const [connection, entry] of live) if (entry.checkedOut || !connection.isQuiet) busy++
    return {
      total: live.size,
      busy,
      idle: live.size - busy,
      waiting: tarn.numPendingAcquires(),
      max: options.max
    }
  }

  const isSecondLoss = (error: DatabaseError): boolean => {
    if (error.reason._tag !== "ConnectionLost") return false
    const before = lastLoss
    lastLoss = unsafeNow()
    return lastLoss - before < sameLossMillis
  }

  const evict = (connection: PgConnection, error: DatabaseError) => {
    if (error.disposition === "keep") return
    if (error.reason._tag === "ReadOnlyTransaction" && connection.expectsReadOnly) return
    const entry = live.get(connection)
    if (entry !== undefined) entry.evicted = true
    // Two that are lost at once say that the server or the network is gone, and not a connection.
    if (error.disposition !== "invalidate" && !isSecondLoss(error)) return
    publish({ _tag: "Invalidated", error })
    invalidBefore = unsafeNow()
    for (const other of live.keys()) if (other.openedAt < invalidBefore) retire(other)
  }

  /** Closes a connection that is not checked out. */
  const retire = (connection: PgConnection) => {
    if (tarn.discard(connection)) runFork(connection.close)
  }

  /**
   * Dials, and after a second dials again beside it, every second: a network that swallowed the
   * first dial may be back. The first one goes on for as long as it may, for a server that needs
   * its time.
   */
  const dialTwice = Effect.suspend(() => {
    let taken = false
    const once = (connectTimeout: Duration.Duration) =>
      Effect.flatMap(PgConnection.dial({ ...options.dial, connectTimeout, generation }), (connection) => {
        if (taken) return Effect.zipRight(connection.close, Effect.never)
        taken = true
        return Effect.succeed(connection)
      })
    return Effect.raceFirst(
      once(options.dial.connectTimeout),
      Effect.retry(once(slowDial), Schedule.spaced("100 millis")).pipe(Effect.delay(slowDial))
    )
  })

  const dial = Effect.gen(function* () {
    const started = performance.now()
    const connection = yield* dialTwice
    const millis = performance.now() - started
    telemetry.created(millis)
    const ttl = Duration.toMillis(options.connectionTTL)
    const jitter = yield* Random.nextRange(0, maxJitter)
    const entry: PoolEntry = {
      checkedOut: false,
      evicted: false,
      idleSince: connection.openedAt,
      renewAt: connection.openedAt + ttl * (1 - jitter),
      expiresAt: connection.openedAt + ttl,
      checkedOutAt: 0,
      holder: Context.empty(),
      isReported: false,
      waits: { count: 0 }
    }
    live.set(connection, entry)
    publish({ _tag: "Opened", processId: connection.processId, millis })
    connection.onError = (error) => evict(connection, error)
    connection.onClose(() => {
      live.delete(connection)
      tarn.discard(connection)
      count()
      publish({ _tag: "Closed", processId: connection.processId })
    })
    dialFailure = undefined
    return connection
  }).pipe(
    Effect.retry({
      while: (error) => error.reason._tag === "ServerStarting" || error.reason._tag === "TooManyConnections",
      schedule: Schedule.jittered(Schedule.exponential("50 millis")).pipe(
        Schedule.upTo(options.dial.connectTimeout)
      )
    }),
    Effect.tapError((error) => {
      // While other connections are alive, whoever waits gets one of them; without any, nobody
      // will.
      if (live.size === 0) tarn.failFirst(error)
      dialFailure = error
      publish({ _tag: "DialFailed", error })
      return Effect.void
    })
  )

  /** Dials in turn, and not at all once nobody needs it any more. */
  const create = dialPermits
    .withPermits(1)(
      Effect.suspend(() =>
        tarn.numPendingAcquires() === 0 && !tarn.isBelowMinimum && renewing === 0
          ? Effect.fail(noLongerWanted)
          : dial
      )
    )
    .pipe(Effect.raceFirst(Deferred.await(closed)))

  const isFit = (connection: PgConnection): boolean => {
    const entry = live.get(connection)
    return (
      entry !== undefined &&
      !entry.evicted &&
      connection.isOpen &&
      connection.transactionStatus === "I" &&
      connection.openedAt >= invalidBefore &&
      unsafeNow() < entry.expiresAt
    )
  }

  const pauseMillis = Duration.toMillis(options.validateAfterIdle)

  const wasIdleTooLong = (connection: PgConnection): boolean =>
    unsafeNow() - (live.get(connection)?.idleSince ?? 0) >= pauseMillis

  const isReady = (connection: PgConnection): boolean => isFit(connection) && !wasIdleTooLong(connection)

  const tarn: TarnPool<PgConnection> = new TarnPool<PgConnection>({
    create: () => runPromise(create),
    validate: ((connection: PgConnection): boolean | Promise<boolean> => {
      if (!isFit(connection)) return false
      return wasIdleTooLong(connection) ? runPromise(connection.ping(pingMillis)) : true
    }) as (connection: PgConnection) => boolean,
    destroy: (connection) => runPromise(connection.close),
    min: options.min,
    max: options.max,
    acquireTimeoutMillis: maxTimer,
    createTimeoutMillis: maxTimer,
    destroyTimeoutMillis: 5000,
    createRetryIntervalMillis: 50,
    propagateCreateError: false
  })

  const oldestHolder = (): Holder | undefined => {
    let oldest: PoolEntry | undefined
    for (const entry of live.values()) {
      if (entry.checkedOut && (oldest === undefined || entry.checkedOutAt < oldest.checkedOutAt))
        oldest = entry
    }
    return oldest === undefined
      ? undefined
      : { span: nameOf(oldest.holder), heldMillis: Math.round(performance.now() - oldest.checkedOutAt) }
  }

  const acquireError = (error: unknown): DatabaseError => {
    if (DatabaseError.is(error)) return error
    if (closing || !(error instanceof Tarn.TimeoutError)) return poolClosed
    const timeout = decisions.error({
      operation: "acquire",
      reason: {
        _tag: "AcquireTimeout",
        timeoutMillis: Duration.toMillis(options.acquireTimeout),
        pool: state(),
        oldestHolder: oldestHolder()
      },
      ...(dialFailure === undefined ? {} : { cause: dialFailure })
    })
    telemetry.timedOut()
    publish({ _tag: "Refused", error: timeout })
    return timeout
  }

  const handOver = (
    connection: PgConnection,
    holder: Context.Context<never>,
    waitedSince: number
  ): PgConnection => {
    const entry = live.get(connection)
    const now = performance.now()
    if (entry !== undefined) {
      entry.checkedOut = true
      entry.checkedOutAt = now
      entry.holder = holder
      entry.isReported = false
    }
    checkedOut++
    telemetry.waited(now - waitedSince)
    count()
    return connection
  }

  const acquire = (restore: Restore): Effect.Effect<PgConnection, DatabaseError> =>
    Effect.contextWithEffect((context: Context.Context<never>) => {
      if (closing) return Effect.fail(poolClosed)
      const started = performance.now()
      const ready = tarn.take(isReady)
      if (ready !== undefined) return Effect.succeed(handOver(ready, context, started))
      const mine = Context.get(context, CheckedOut).flatMap(({ connection, over }) =>
        over ? [] : (live.get(connection as PgConnection) ?? [])
      )
      const refused = refusal(mine)
      return refused === undefined ? wait(restore, context, started, mine) : Effect.fail(refused)
    })

  /**
   * Why a caller must not even wait: too many do for whom there is neither a free connection nor
   * room for one, or whoever could give it a connection waits for one, too.
   */
  const refusal = (mine: ReadonlyArray<PoolEntry>): DatabaseError | undefined => {
    const everybodyWaits =
      mine.length > 0 &&
      checkedOut >= options.max &&
      [...live.values()].every((entry) => entry.waits.count > 0 || mine.includes(entry))
    const reason: Reason | undefined = everybodyWaits
      ? {
          _tag: "NestedAcquire",
          holders: [...live.values()].map(({ holder }) => nameOf(holder)),
          pool: state()
        }
      : tarn.numPendingAcquires() >= options.maxWaiting + options.max - tarn.numUsed()
        ? { _tag: "Overloaded", pool: state(), oldestHolder: oldestHolder() }
        : undefined
    if (reason === undefined) return undefined
    const error = decisions.error({ operation: "acquire", reason })
    publish({ _tag: "Refused", error })
    return error
  }

  const wait = (
    restore: Restore,
    context: Context.Context<never>,
    started: number,
    mine: ReadonlyArray<PoolEntry>
  ): Effect.Effect<PgConnection, DatabaseError> => {
    const pending = tarn.acquire()
    const acquireMillis = Math.min(Duration.toMillis(options.acquireTimeout), maxTimer)
    const callOff = alarm(acquireMillis, () => tarn.expire(pending))
    const waits = mine.map((entry) => entry.waits)
    for (const one of waits) one.count++
    const stopWaiting = () => {
      callOff()
      for (const one of waits) one.count--
    }
    let given: PgConnection | undefined
    let left = false
    const promise = pending.promise.finally(stopWaiting).then(
      (connection) => {
        given = handOver(connection, context, started)
        if (left) checkIn(connection)
        if (!closing) return Effect.succeed(connection)
        // It was on its way when the pool closed, and is about to be closed with the others.
        return Effect.fail(poolClosed)
      },
      (error: unknown) => Effect.fail(acquireError(error))
    )
    return Effect.matchCauseEffect(
      restore(Effect.async<PgConnection, DatabaseError>((resume) => void promise.then(resume))),
      {
        onSuccess: Effect.succeed,
        onFailure: (cause) =>
          Effect.suspend(() => {
            left = true
            if (given === undefined) tarn.withdraw(pending)
            else checkIn(given)
            return Effect.failCause(cause)
          })
      }
    )
  }

  const checkIn = (connection: PgConnection) => {
    checkedOut--
    connection.expectsReadOnly = false
    connection.answerMillis = options.dial.answerMillis
    const entry = live.get(connection)
    if (entry !== undefined) {
      telemetry.used(performance.now() - entry.checkedOutAt)
      entry.holder = Context.empty()
      entry.waits = { count: 0 }
      entry.checkedOut = false
      entry.idleSince = unsafeNow()
    }
    const isDue = entry !== undefined && unsafeNow() >= entry.renewAt
    if (isFit(connection) && !isDue && !closing) {
      tarn.release(connection)
    } else {
      tarn.drop(connection)
      if (connection.isOpen) runFork(connection.close)
    }
    count()
    if (closing && checkedOut === 0) Deferred.unsafeDone(allReturned, Exit.void)
  }

  const release = (connection: PgConnection): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (!connection.isQuiet)
        return Effect.asVoid(Effect.forkDaemon(Effect.zipRight(connection.quiet, release(connection))))
      const dirty = connection.isOpen && connection.transactionStatus !== "I"
      checkIn(connection)
      return dirty
        ? Effect.logWarning("A connection was checked in inside an open transaction; it is closed")
        : Effect.void
    })

  /**
   * Ends idle connections that are due, but never so many that fewer than the minimum are left:
   * those go when another one is open in their place, or one at a time where the maximum leaves no
   * room for that.
   */
  const renew = (now: number) => {
    const due = [...live].flatMap(([connection, entry]) =>
      now >= entry.renewAt && tarn.isFree(connection) ? [connection] : []
    )
    const spare = Math.max(tarn.open - options.min, 0)
    for (const connection of due.splice(0, spare)) retire(connection)
    if (due.length === 0 || renewing > 0) return
    if (tarn.open >= options.max) {
      for (const connection of due.splice(0, 1)) retire(connection)
      return
    }
    for (const opened of tarn.topUp(due.length)) {
      renewing++
      opened
        .then(() => due.splice(0, 1).forEach(retire))
        .catch(ignore)
        .finally(() => renewing--)
    }
  }

  const idleMillis = Duration.toMillis(options.idleTimeout)

  /** Closes what was idle for too long, down to the minimum. */
  const evictIdle = (now: number) => {
    const spare = Math.max(tarn.open - options.min, 0)
    const idle = [...live].flatMap(([connection, entry]) =>
      now - entry.idleSince >= idleMillis && tarn.isFree(connection) ? [connection] : []
    )
    for (const connection of idle.slice(0, spare)) retire(connection)
  }

  /**
   * Renews connections, closes those that were idle for too long, and opens new ones up to the
   * minimum.
   */
  const housekeeping = Effect.suspend(() => {
    renew(unsafeNow())
    evictIdle(unsafeNow())
    for (const opened of tarn.topUp()) opened.catch(ignore)
    const isNews = dialFailure !== undefined && !reported
    reported = dialFailure !== undefined
    const dialWarning = isNews
      ? Effect.logWarning("The pool cannot open connections", dialFailure)
      : Effect.void
    // A logger that throws must not end the housekeeping.
    return Effect.catchAllDefect(Effect.zipRight(dialWarning, reportLeaks), () => Effect.void)
  })

  const reportLeaks = Effect.suspend(() => {
    const now = performance.now()
    const limit = Duration.toMillis(options.leakWarning)
    const leaks = [...live].filter(
      ([, entry]) => entry.checkedOut && !entry.isReported && now - entry.checkedOutAt > limit
    )
    return Effect.forEach(
      leaks,
      ([connection, entry]) => {
        entry.isReported = true
        const heldMillis = Math.round(now - entry.checkedOutAt)
        const holder = nameOf(entry.holder)
        publish({ _tag: "Leak", processId: connection.processId, holder, heldMillis })
        return Effect.logWarning(
          `A connection has been held for ${heldMillis} ms by ${holder} (backend ${connection.processId})`
        )
      },
      { discard: true }
    )
  })

  yield* Effect.addFinalizer(() =>
    Effect.gen(function* () {
      closing = true
      if (checkedOut === 0) yield* Deferred.succeed(allReturned, undefined)
      yield* Deferred.fail(closed, poolClosed)
      const shutDown = tarn.shutDown(poolClosed)
      yield* Effect.timeoutOption(Effect.interruptible(Deferred.await(allReturned)), closeGrace)
      yield* Effect.forEach(
        [...live],
        ([connection, entry]) =>
          entry.checkedOut || !connection.isQuiet ? connection.terminate : connection.close,
        { concurrency: "unbounded", discard: true }
      )
      yield* Effect.promise(() => shutDown)
    })
  )

  const pooling: Pool = {
    acquire,
    release,
    state: Effect.sync(state),
    events: Stream.fromPubSub(events)
  }

  yield* options.min === 0
    ? Effect.scoped(checkOut(pooling))
    : Effect.tryPromise({
        try: () => Promise.all(tarn.topUp()),
        catch: (error) => acquireError(error)
      })
  yield* housekeeping.pipe(
    Effect.repeat(
      // Often enough that what is due at different times ends at different times.
      Schedule.spaced(
        Duration.clamp(Duration.times(options.connectionTTL, 0.005), {
          minimum: Duration.millis(20),
          maximum: Duration.millis(housekeepingMillis)
        })
      )
    ),
    Effect.interruptible,
    Effect.forkScoped
  )

  return pooling
})

/**
 * Checks a connection out until the scope closes. The wait can be interrupted; nothing is lost
 * then.
 */
export const checkOut = (pool: Pool): Effect.Effect<Connection, DatabaseError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.tap(pool.acquire(restore), (connection) => Effect.addFinalizer(() => pool.release(connection)))
  )

/** Checks a connection out while `use` runs. */
export const use = <A, E, R>(
  pool: Pool,
  use: (connection: Connection) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | DatabaseError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(pool.acquire(restore), (connection) =>
      Effect.ensuring(restore(use(connection)), pool.release(connection))
    )
  )

/** Tells the pool, should an effect ask for another connection, that it has this one already. */
export const holding =
  (connection: Connection) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      const hold: Checkout = { connection, over: false }
      return effect.pipe(
        Effect.mapInputContext((context: Context.Context<R>) =>
          Context.add(context, CheckedOut, [...Context.get(context, CheckedOut), hold])
        ),
        Effect.ensuring(
          Effect.sync(() => {
            hold.over = true
          })
        )
      )
    })

/** What the pool knows of a connection. */
interface PoolEntry {
  checkedOut: boolean
  /** An error said that nobody may have it again. */
  evicted: boolean
  idleSince: number
  /** When another one is opened in its place. */
  readonly renewAt: number
  /** From when on nobody may have it. */
  readonly expiresAt: number
  /** Time of `performance.now()`. */
  checkedOutAt: number
  /** The context of whoever has checked it out. */
  holder: Context.Context<never>
  /** Whether it was reported as held for too long. */
  isReported: boolean
  /** How many connections its holder waits for; another one's for each holder. */
  waits: { count: number }
}

/**
 * The span that somebody works in, and the one around it: what was being done when a connection was
 * taken.
 */
const nameOf = (holder: Context.Context<never>): string => {
  const names: Array<string> = []
  let span = Option.getOrUndefined(Context.getOption(holder, Tracer.ParentSpan))
  while (span?._tag === "Span" && names.length < 3) {
    names.push(span.name)
    span = Option.getOrUndefined(span.parent)
  }
  return names.length === 0 ? "a fiber without a span" : names.join(" in ")
}

const ignore = () => {}

/** More dials at once would open connections for callers that an idle one serves sooner. */
const concurrentDials = 4

const slowDial = Duration.seconds(1)

const pingMillis = 1000

const housekeepingMillis = 1000

/** Connections that are lost within so many milliseconds are lost for one reason. */
const sameLossMillis = 1000

/**
 * The part of its lifetime by which a connection's end comes early at most: those of one start must
 * not end together.
 */
const maxJitter = 0.15

/**
 * How long a pool that closes waits for what is checked out; then statements are cancelled and
 * connections cut.
 */
const closeGrace = Duration.seconds(3)

/** The longest time that Node's timers can hold. */
const maxTimer = 2 ** 31 - 1

const noLongerWanted = new DatabaseError({ operation: "connect", reason: { _tag: "PoolClosed" } })

const poolClosed = new DatabaseError({ operation: "acquire", reason: { _tag: "PoolClosed" } })
