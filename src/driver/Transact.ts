import type { Connection } from "@effect/sql/SqlConnection"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { DatabaseError, type Reason } from "../DatabaseError.js"
import { type Backend, type Request, type Response, serverMillis } from "./Backend.js"
import { endedError, makeConnection, streamPortal } from "./connections.js"
import type { Pool } from "./Pool.js"

/** The isolation levels of SQL that PostgreSQL tells apart (documentation, chapter "Transaction Isolation"). */
export type IsolationLevel = "read committed" | "repeatable read" | "serializable"

/** How a transaction runs. */
export interface TransactionOptions<E = unknown> {
  /** Names the transaction in logs and errors. */
  readonly name?: string | undefined
  /** The server's default (`read committed`) when left out. */
  readonly isolation?: IsolationLevel | undefined
  /** Refuses writes. */
  readonly readOnly?: boolean | undefined
  /** With `serializable` and `readOnly`: waits for a snapshot that can never fail to serialize. */
  readonly deferrable?: boolean | undefined
  /** `statement_timeout` of this transaction. */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /** `lock_timeout` of this transaction. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /** Whether an error belongs to the domain: it still rolls back, but is logged at WARNING without its trace. */
  readonly expected?: ((error: E) => boolean) | undefined
}

/** Runs an effect in a transaction, or in a savepoint of the transaction that is open. */
export type Transact = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  options?: TransactionOptions<E>
) => Effect.Effect<A, E | DatabaseError, R>

/** What a client needs to route its statements: its own transactions, and nobody else's. */
export interface Transactions {
  readonly transact: Transact
  /** The connection of the transaction that is open in this fiber, if there is one of this client. */
  readonly current: Effect.Effect<Option.Option<Connection>>
}

/** Limits that every transaction begins with; behind a transaction pooler a session has none. */
export interface TransactionDefaults {
  readonly spanAttributes: ReadonlyArray<readonly [string, unknown]>
  readonly limits: { readonly statementTimeout: Duration.Duration; readonly lockTimeout: Duration.Duration }
  /** SET LOCAL statements that follow BEGIN. */
  readonly session: ReadonlyArray<string>
}

/** The message of the log record that is written before every ROLLBACK. */
export const rollbackMessage = "Database session error, rolling back transaction"

/** Transactions over a pool. Two calls make two sets of transactions that never see each other. */
export const make = (pool: Pool, id: string, defaults: TransactionDefaults): Transactions => {
  const CurrentLevel = Context.GenericTag<Level>(`promptgrimoire-db/Transaction/${id}`)
  const ours = new WeakMap<Connection, Level>()

  const makeLevel = (root: Root, depth: number): Level => {
    const lock = Effect.unsafeMakeSemaphore(1)
    const guarded = <A>(step: Effect.Effect<A, DatabaseError>) =>
      lock.withPermits(1)(
        Effect.suspend(() => (level.ended ? Effect.fail(endedError) : remembering(root, step)))
      )
    const connection = makeConnection(
      (request) => guarded(root.backend.run(request)),
      (text, values) => streamPortal(root.backend.portal(text, values), guarded)
    )
    const level: Level = { root, depth, lock, connection, ended: false }
    ours.set(level.connection, level)
    return level
  }

  const inside = <A, E, R>(level: Level, effect: Effect.Effect<A, E, R>) =>
    effect.pipe(
      Effect.provideService(CurrentLevel, level),
      Effect.provideService(SqlClient.TransactionConnection, [level.connection, level.depth])
    )

  const outermost = <A, E, R>(effect: Effect.Effect<A, E, R>, options: TransactionOptions<E>) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(restore(pool.acquire), (backend) =>
        Effect.gen(function* () {
          const root: Root = { backend, options, savepoints: 0, firstError: undefined }
          backend.expectsReadOnly = options.readOnly === true
          yield* restore(backend.run({ text: begin(options, defaults.session) }))
          const level = makeLevel(root, 0)
          const exit = yield* Effect.exit(restore(inside(level, effect)))
          return yield* level.lock.withPermits(1)(
            Effect.suspend((): Effect.Effect<A, E | DatabaseError> => {
              level.ended = true
              return Exit.isSuccess(exit)
                ? Effect.as(commit(root), exit.value)
                : rollback(root, exit.cause, options)
            })
          )
        }).pipe(Effect.ensuring(pool.release(backend)))
      )
    )

  const nested = <A, E, R>(parent: Level, effect: Effect.Effect<A, E, R>, options: TransactionOptions<E>) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.zipRight(
        restore(parent.lock.take(1)),
        Effect.gen(function* () {
          const { root } = parent
          if (parent.ended) return yield* Effect.fail(endedError)
          const refused = notInsideAnother(root.options, options)
          if (refused !== undefined) {
            const reason: Reason = { _tag: "InvalidRequest", problem: refused }
            return yield* Effect.fail(new DatabaseError({ operation: "savepoint", reason }))
          }
          const name = `s${++root.savepoints}`
          const before = root.firstError
          const limits = setLimits(options)
          yield* remembering(
            root,
            restore(root.backend.run({ text: [`SAVEPOINT ${name}`, ...limits].join(";") }))
          )
          const level = makeLevel(root, parent.depth + 1)
          const exit = yield* Effect.exit(restore(inside(level, effect)))
          return yield* level.lock.withPermits(1)(
            Effect.gen(function* () {
              level.ended = true
              if (Exit.isFailure(exit)) {
                yield* Effect.logDebug("Rolling back to a savepoint", exit.cause)
                const back = root.backend.isOpen
                  ? yield* Effect.exit(
                      run(root.backend, `ROLLBACK TO SAVEPOINT ${name};RELEASE SAVEPOINT ${name}`)
                    )
                  : Exit.void
                root.firstError = before
                return yield* Effect.failCause(both(exit.cause, back))
              }
              const restored = limits.length === 0 ? [] : setLimits({ ...defaults.limits, ...root.options })
              yield* remembering(
                root,
                root.backend.run({ text: [`RELEASE SAVEPOINT ${name}`, ...restored].join(";") })
              )
              return exit.value
            })
          )
        }).pipe(Effect.ensuring(parent.lock.release(1)))
      )
    )

  const currentLevel = Effect.map(Effect.context<never>(), (context): Level | undefined => {
    const own = Context.getOption(context, CurrentLevel)
    if (own._tag === "Some") return own.value
    // A resolver of `@effect/sql` carries the transaction of a request under the library's own tag.
    const carried = Context.getOption(context, SqlClient.TransactionConnection)
    return carried._tag === "Some" ? ours.get(carried.value[0]) : undefined
  })

  return {
    transact: (effect, options = {}) =>
      Effect.flatMap(currentLevel, (level) =>
        level === undefined ? outermost(effect, options) : nested(level, effect, options)
      ).pipe(
        Effect.withSpan("sql.transaction", {
          kind: "client",
          captureStackTrace: false,
          attributes: Object.fromEntries(defaults.spanAttributes)
        })
      ),
    current: Effect.map(currentLevel, (level) => Option.fromNullable(level?.connection))
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The outermost transaction. */
interface Root {
  readonly backend: Backend
  readonly options: TransactionOptions<never>
  /** How many savepoints there were: their names are never used twice. */
  savepoints: number
  /** The error that aborted the transaction, while it is aborted. */
  firstError: Reason | undefined
}

/** A transaction or a savepoint: its statements and its nested levels take turns. */
interface Level {
  readonly root: Root
  readonly depth: number
  readonly lock: Effect.Semaphore
  readonly connection: Connection
  ended: boolean
}

const begin = (options: TransactionOptions<never>, session: ReadonlyArray<string>): string => {
  const modes = [
    options.isolation === undefined ? undefined : `ISOLATION LEVEL ${options.isolation.toUpperCase()}`,
    options.readOnly === undefined ? undefined : options.readOnly ? "READ ONLY" : "READ WRITE",
    options.deferrable === undefined ? undefined : options.deferrable ? "DEFERRABLE" : "NOT DEFERRABLE"
  ].filter((mode) => mode !== undefined)
  return [["BEGIN", modes.join(", ")].join(" ").trim(), ...session, ...setLimits(options)].join(";")
}

const setLimits = (options: {
  readonly statementTimeout?: Duration.DurationInput | undefined
  readonly lockTimeout?: Duration.DurationInput | undefined
}): ReadonlyArray<string> =>
  [
    { name: "statement_timeout", value: options.statementTimeout },
    { name: "lock_timeout", value: options.lockTimeout }
  ].flatMap(({ name, value }) =>
    value === undefined ? [] : [`SET LOCAL ${name} = ${serverMillis(Duration.decode(value))}`]
  )

/** Why options cannot be had inside the transaction that is open. */
const notInsideAnother = (
  outer: TransactionOptions<never>,
  inner: TransactionOptions<never>
): string | undefined => {
  const changed = (["isolation", "readOnly", "deferrable"] as const).filter(
    (name) => inner[name] !== undefined && inner[name] !== outer[name]
  )
  return changed.length === 0
    ? undefined
    : `${changed.join(", ")} cannot change inside a transaction: set it on the outermost one`
}

/** Keeps the error that aborts a transaction, and names it in the errors that follow from it. */
const remembering = <A>(root: Root, step: Effect.Effect<A, DatabaseError>): Effect.Effect<A, DatabaseError> =>
  Effect.catchAll(step, (error) => {
    if (isAborted(error.reason)) {
      return Effect.fail(
        new DatabaseError({
          operation: "execute",
          reason: { _tag: "TransactionAborted", first: root.firstError },
          cause: error
        })
      )
    }
    root.firstError ??= error.reason
    return Effect.fail(error)
  })

const isAborted = (reason: Reason) => "code" in reason && reason.code === "25P02"

const commit = (root: Root): Effect.Effect<void, DatabaseError> =>
  Effect.gen(function* () {
    const { backend } = root
    if (backend.isOpen && backend.transactionStatus === "I") return yield* Effect.fail(endedError)
    const response = yield* Effect.mapError(backend.run({ text: "COMMIT", phase: "commit" }), (error) =>
      commitError(error)
    )
    if (commandOf(response) !== "COMMIT") {
      return yield* Effect.fail(
        new DatabaseError({
          operation: "commit",
          reason: { _tag: "TransactionRolledBack", first: root.firstError }
        })
      )
    }
  }).pipe(
    Effect.tapError((error) =>
      annotated(
        root.options,
        Effect.logError("Database session error, the transaction was not committed", error)
      )
    )
  )

const commitError = (error: DatabaseError): DatabaseError => {
  const { reason } = error
  const lost =
    (reason._tag === "ConnectionLost" && reason.phase === "commit") || reason._tag === "ServerShutdown"
  return new DatabaseError({
    operation: "commit",
    reason: lost
      ? {
          _tag: "CommitOutcomeUnknown",
          transactionId: undefined,
          systemCode: reason._tag === "ConnectionLost" ? reason.systemCode : undefined
        }
      : reason,
    cause: error
  })
}

/** Logs the whole cause, and only then sends ROLLBACK. */
const rollback = <E>(
  root: Root,
  cause: Cause.Cause<E>,
  options: TransactionOptions<E>
): Effect.Effect<never, E> =>
  Effect.gen(function* () {
    const expected = Option.filter(Cause.failureOption(cause), (error) => options.expected?.(error) === true)
    yield* annotated(
      options,
      expected._tag === "Some"
        ? Effect.logWarning(rollbackMessage, expected.value)
        : Effect.logError(rollbackMessage, cause)
    )
    const exit = root.backend.isOpen ? yield* Effect.exit(run(root.backend, "ROLLBACK")) : Exit.void
    return yield* Effect.failCause(both(cause, exit))
  })

const annotated = (options: TransactionOptions<never>, log: Effect.Effect<void>) =>
  options.name === undefined ? log : Effect.annotateLogs(log, "transaction", options.name)

/** A rollback that the server does not answer must not hold the connection for good. */
const rollbackTimeout = Duration.seconds(5)

const run = (backend: Backend, text: string): Effect.Effect<void, DatabaseError> => {
  const request: Request = { text }
  return backend.run(request).pipe(
    Effect.interruptible,
    Effect.timeoutFail({
      duration: rollbackTimeout,
      onTimeout: () =>
        new DatabaseError({
          operation: "rollback",
          reason: { _tag: "ConnectionLost", phase: "sent", systemCode: undefined }
        })
    }),
    Effect.tapError(() => Effect.sync(() => backend.destroy())),
    Effect.asVoid
  )
}

/** The body's cause first, and the rollback's after it. */
const both = <E>(cause: Cause.Cause<E>, back: Exit.Exit<void, DatabaseError>): Cause.Cause<E> =>
  Exit.isSuccess(back) ? cause : Cause.sequential(cause, Cause.die(Cause.squash(back.cause)))

const commandOf = (response: Response): string | undefined =>
  "command" in response ? response.command : undefined
