/**
 * The sessions of one run: one that holds the advisory lock and does little else, and those that
 * work. They can be had again when they are lost.
 */
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Ref from "effect/Ref"
import * as Scope from "effect/Scope"
import { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as AdvisoryLock from "../../catalog/advisoryLock.js"
import * as SessionSettings from "../../catalog/sessionSettings.js"

/** How a session of its own is opened. */
export type Open = Effect.Effect<Session, DatabaseError, Scope.Scope>

/**
 * Somebody ended a session of ours on a server that goes on: whoever does that wants us to stop.
 */
export class Terminated extends Data.TaggedError("ServerShutdown")<{}> {
  override get message() {
    return "its session was ended with pg_terminate_backend, so this run stops; run it again to resume"
  }
}

/** The sessions in which keys are changed. */
export interface Workers {
  /** Runs the statements. */
  readonly session: Session
  /** The same session without a limit of ours, for a statement that is watched. */
  readonly patient: Session
  /** Watches while {@link session} waits, as the role that logged in. */
  readonly watcher: Session
  /** The server's deadlock_timeout when they were opened, in milliseconds. */
  readonly deadlockTimeout: number
}

/** The sessions of one run. */
export interface Sessions {
  /** The session that holds the advisory lock now. */
  readonly guard: Effect.Effect<Session>
  /**
   * Lends the sessions in which keys are changed. They are opened for the first key and serve the
   * next ones too, which find in them what the server has read of its catalogs; after a failure
   * they are closed.
   */
  readonly working: <A, E>(
    use: (workers: Workers) => Effect.Effect<A, E>
  ) => Effect.Effect<A, E | DatabaseError>
  /** Fails if the session that holds the lock is gone: another process may have taken over. */
  readonly confirm: Effect.Effect<void, DatabaseError>
  /**
   * After a loss: sees that the server is there, that no backend of ours is left working, and that
   * the lock is held, by a new session if need be. Tries once.
   */
  readonly restore: (
    error: DatabaseError
  ) => Effect.Effect<void, DatabaseError | AdvisoryLock.Busy | Terminated>
}

/**
 * Opens the session that holds the lock; fails with {@link AdvisoryLock.Busy} if another process
 * holds it for longer than `patience`.
 */
export const make = (
  open: Open,
  patience: Duration.Duration
): Effect.Effect<Sessions, DatabaseError | AdvisoryLock.Busy, Scope.Scope> =>
  Effect.gen(function* () {
    const backends = yield* Ref.make<ReadonlyArray<Backend>>([])
    const enlisted = (purpose: string) =>
      Effect.gen(function* () {
        const patient = yield* SessionSettings.prepared(open, purpose)
        const session = SessionSettings.answering(patient)
        const backend = yield* identify(session)
        yield* Ref.update(backends, (known) => [...known, backend])
        return { session, patient, backend }
      })
    const guardPurpose = "change foreign keys (advisory lock)"
    /** A session in a scope of its own, which ends with the run at the latest. */
    const dial = Effect.gen(function* () {
      const scope = yield* Effect.acquireRelease(Scope.make(), (made, exit) => Scope.close(made, exit))
      return { ...(yield* Scope.extend(enlisted(guardPurpose), scope)), scope }
    })
    const first = yield* dial
    yield* AdvisoryLock.acquire(first.session, patience)
    const held = yield* Ref.make(first)
    const run = yield* Effect.scope
    const kept = yield* Ref.make<
      { readonly workers: Workers; readonly scope: Scope.CloseableScope } | undefined
    >(undefined)
    /** The sessions are in `kept` only while nobody uses them. */
    const workers = (scope: Scope.CloseableScope) =>
      Effect.gen(function* () {
        const [{ deadlockTimeout, patient, session }, { session: watcher }] = yield* Effect.all(
          [
            Effect.bind(enlisted("change foreign keys"), "deadlockTimeout", ({ session }) =>
              SessionSettings.deadlockTimeout(session)
            ),
            Effect.tap(enlisted("change foreign keys (watcher)"), ({ session }) =>
              SessionSettings.asLoginRole(session)
            )
          ],
          { concurrency: "unbounded" }
        )
        return { workers: { session, patient, watcher, deadlockTimeout }, scope }
      }).pipe(Scope.extend(scope))
    return {
      guard: Effect.map(Ref.get(held), ({ session }) => session),
      working: (use) =>
        Effect.uninterruptibleMask((restore) =>
          Effect.gen(function* () {
            const idle = yield* Ref.getAndSet(kept, undefined)
            const scope = idle?.scope ?? (yield* Scope.fork(run, ExecutionStrategy.sequential))
            const exit = yield* (idle === undefined ? workers(scope) : Effect.succeed(idle)).pipe(
              Effect.flatMap((lent) => Effect.zipLeft(use(lent.workers), Ref.set(kept, lent))),
              restore,
              Effect.exit
            )
            if (Exit.isFailure(exit)) yield* Scope.close(scope, exit)
            return yield* exit
          })
        ),
      confirm: Effect.flatMap(Ref.get(held), ({ session }) => answers(session)),
      restore: (error) =>
        Effect.gen(function* () {
          // The loss can be the other session's, but what these two are connected to is as
          // doubtful, and their backends are ended below.
          const idle = yield* Ref.getAndSet(kept, undefined)
          if (idle !== undefined) yield* abandon(idle.scope)
          const fresh = yield* Scope.extend(dial, run)
          const close = Scope.close(fresh.scope, Exit.void)
          const renewed = Effect.gen(function* () {
            const guard = yield* Ref.get(held)
            const isSameServer = fresh.backend.server === guard.backend.server
            if (isSameServer && isTermination(error)) return yield* new Terminated()
            const alive =
              isSameServer &&
              (yield* answers(guard.session).pipe(
                Effect.disconnect,
                Effect.timeoutOption("5 seconds"),
                Effect.match({ onFailure: () => false, onSuccess: (answer) => answer._tag === "Some" })
              ))
            const keep = alive ? guard : fresh
            if (isSameServer)
              yield* end(fresh.session, yield* Ref.get(backends), [keep.backend, fresh.backend])
            yield* Ref.set(backends, [keep.backend])
            if (alive) return yield* close
            yield* abandon(guard.scope)
            yield* AdvisoryLock.acquire(fresh.session, patience)
            return yield* Ref.set(held, fresh)
          })
          yield* Effect.onError(renewed, () => close)
        })
    }
  })

/**
 * Whether the connection is gone or not to be had, and may come back: the server restarts, the
 * network fails.
 */
export const isOutage = (error: { readonly _tag: string }): error is DatabaseError =>
  DatabaseError.is(error) && outages.has(error.reason._tag)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** Closes sessions whose connections may be dead. */
const abandon = (scope: Scope.CloseableScope) =>
  Scope.close(scope, Exit.void).pipe(Effect.disconnect, Effect.timeoutOption("5 seconds"))

const outages: ReadonlySet<string> = new Set([
  "ConnectionLost",
  "ConnectFailed",
  "ServerStarting",
  "ServerShutdown",
  "ServerCrash",
  "ServerConnectionException",
  "TooManyConnections"
])

/**
 * 57P01: pg_terminate_backend, or a shutdown that ends its sessions; the server that answers next
 * tells which.
 */
const isTermination = ({ reason }: DatabaseError) => "code" in reason && reason.code === "57P01"

const answers = (session: Session) => Effect.asVoid(session.query("SELECT 1"))

/** A backend, and the start of its server: process ids are used again. */
interface Backend {
  readonly pid: number
  readonly start: string
  readonly server: string
}

const identify = (session: Session): Effect.Effect<Backend, DatabaseError> =>
  session
    .query<Backend>(
      `SELECT a.pid, extract(epoch FROM a.backend_start)::text AS start, extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text AS server
      FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a`
    )
    .pipe(Effect.map(([backend]) => backend ?? { pid: session.processId, start: "", server: "" }))

/**
 * Ends backends of ours that the server still thinks connected: they may hold locks, the advisory
 * lock among them.
 */
const end = (session: Session, backends: ReadonlyArray<Backend>, except: ReadonlyArray<Backend>) =>
  Effect.gen(function* () {
    yield* session.query("BEGIN; SET LOCAL ROLE NONE")
    yield* session.query(
      `SELECT pg_catalog.pg_terminate_backend(a.pid)
      FROM jsonb_to_recordset($1::jsonb) AS b (pid int4, start text)
      JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid AND extract(epoch FROM a.backend_start)::text = b.start`,
      [JSON.stringify(backends.filter(({ pid }) => except.every((other) => other.pid !== pid)))]
    )
    yield* session.query("COMMIT")
  })
