import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Stream from "effect/Stream"
import { DatabaseError, type Reason, reasonOf } from "../DatabaseError.js"
import {
  answerMillis,
  controlMillis,
  type Connection,
  type Response,
  serverMillis
} from "../connection/connection.js"
import * as Commit from "../connection/commit.js"
import { type CopyConnection, makeConnection, runFresh, streamPortal } from "../pool/sqlConnection.js"
import { endedError } from "../connection/serverError.js"
import { type AppliedErrorPolicy, isEndOfServer } from "../connection/errorPolicy.js"
import { isMarked } from "../errors/expected.js"
import { Hooks, type Outcome } from "./hooks.js"
import { CheckedOut, type Checkout, type Pool } from "../pool/pool.js"
import * as Retry from "./retry.js"
import { type Attempt, once, type RetryOptions } from "./retry.js"
import type { Telemetry } from "../telemetry/metrics.js"
import { type Restore, Mutex } from "../connection/mutex.js"

/**
 * The isolation levels of SQL that PostgreSQL tells apart (documentation, chapter "Transaction
 * Isolation").
 */
export type IsolationLevel = "read committed" | "repeatable read" | "serializable"

/** How a transaction runs. */
export interface TransactionOptions<E = unknown> {
  /** Names the transaction in its log records. */
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
  /**
   * Whether an error of the caller's own is no fault: it still rolls back, but is logged at WARNING
   * without its trace. Domain errors need no mention.
   */
  readonly expected?: ((error: E) => boolean) | undefined
  /**
   * Runs the whole body again when the server could not serialize it or ended it as a deadlock's
   * victim (40001, 40P01, also raised by COMMIT), when it ended the session before COMMIT was sent
   * (57P01, 57P02), and when the setting `errorPolicy` says so. Only for bodies that do nothing but
   * work on the database. Ignored inside another transaction.
   */
  readonly retry?: RetryOptions | undefined
  /**
   * Takes the transaction's id at its start, in the same round trip as BEGIN, so that a
   * `CommitOutcomeUnknown` can be resolved. It uses up a transaction id even if nothing is written.
   */
  readonly resolvable?: boolean | undefined
}

/** Runs an effect in a transaction, or in a savepoint of the transaction that is open. */
export type Transact = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  options?: TransactionOptions<E>
) => Effect.Effect<A, E | DatabaseError, R>

/** What a client needs to route its statements: its own transactions, and nobody else's. */
export interface Transactions {
  readonly transact: Transact
  /**
   * The connection of the transaction that is open in a context, if there is one of this client.
   */
  readonly connectionIn: (context: Context.Context<never>) => CopyConnection | undefined
  /**
   * Runs an effect after the outermost transaction has ended so; at once, where none is open and it
   * waits for a commit.
   */
  readonly after: <A, E, R>(when: Outcome, effect: Effect.Effect<A, E, R>) => Effect.Effect<void, never, R>
}

/** Limits that every transaction begins with; behind a transaction pooler a session has none. */
export interface TransactionDefaults {
  readonly spanAttributes: Readonly<Record<string, unknown>>
  readonly limits: { readonly statementTimeout: Duration.Duration; readonly lockTimeout: Duration.Duration }
  /** SET LOCAL statements that follow BEGIN. */
  readonly session: ReadonlyArray<string>
  readonly telemetry: Telemetry
  /** Which errors another try may mend. */
  readonly decisions: AppliedErrorPolicy
}

/** The message of the log record that is written before every ROLLBACK. */
export const rollbackMessage = "Database session error, rolling back transaction"

/** Transactions over a pool. Two calls make two sets of transactions that never see each other. */
export const make = (pool: Pool, id: string, defaults: TransactionDefaults): Transactions => {
  const CurrentLevel = Context.GenericTag<Level>(`promptgrimoire-db/Transaction/${id}`)
  /** Under this what the library's own tag holds keeps its level, if it is one of ours. */
  const levelOf = Symbol(CurrentLevel.key)
  /**
   * What the library's own tag holds in a transaction: a resolver carries it from a request to its
   * batch. Another client would take it for a connection of its own, and run its statements in a
   * database that they are not meant for, so that it runs none.
   */
  const carrierOf = (level: Level): readonly [SqlConnection, number] => [
    { ...foreignConnection, [levelOf]: level } as SqlConnection,
    level.depth
  ]

  /** `restart` undoes the level and begins it anew. */
  const makeLevel = (
    root: Root,
    depth: number,
    limits: Limits,
    restart: Effect.Effect<void, DatabaseError>
  ): Level => {
    const mutex = new Mutex()
    const guarded = <A, E, R>(step: Effect.Effect<A, E | DatabaseError, R>) =>
      mutex.run(
        Effect.suspend(() => {
          if (level.ended || isOver(root)) return Effect.fail(endedError)
          return Effect.ensuring(
            naming(root, step),
            Effect.sync(() => {
              level.isUntouched = false
            })
          )
        })
      )
    const first = Effect.zipRight(
      Effect.logDebug("The first statement was prepared before a change of the schema; it is sent again"),
      Effect.uninterruptible(restart)
    )
    const sqlConnection = makeConnection(
      (request) =>
        guarded(
          Effect.suspend(() =>
            level.isUntouched ? runFresh(root.connection, request, first) : root.connection.run(request)
          )
        ),
      (text, values) => streamPortal(root.connection.portal(text, values), guarded),
      (text, source) => guarded(root.connection.copyIn(text, beside(level, source)))
    )
    const level: Level = {
      root,
      depth,
      limits,
      mutex,
      sqlConnection,
      hooks: new Hooks(),
      isUntouched: true,
      ended: false
    }
    return level
  }

  /** Lets the source of a COPY find the connection busy, where it would wait for its own end. */
  const beside = <A, E, R>(level: Level, source: Effect.Effect<A, E, R>) => {
    const busy: Level = { ...level, mutex: new Mutex(), sqlConnection: busyConnection, refused: busyError }
    return source.pipe(
      Effect.provideService(CurrentLevel, busy),
      Effect.provideService(SqlClient.TransactionConnection, carrierOf(busy))
    )
  }

  const inside = <A, E, R>(level: Level, effect: Effect.Effect<A, E, R>) =>
    Effect.mapInputContext(effect, (context: Context.Context<R>) => {
      // One copy of the context, where adding to it one by one would make three.
      const services = new Map(context.unsafeMap)
      services.set(CurrentLevel.key, level)
      services.set(SqlClient.TransactionConnection.key, carrierOf(level))
      // Tells the pool, should the body ask for another connection, that it has this one already.
      if (level.depth === 0)
        services.set(CheckedOut.key, [...Context.get(context, CheckedOut), level.root.hold])
      return Context.unsafeMake<R>(services)
    })

  /** Runs the body and then, when no statement of it is under way any more, what ends the level. */
  const untilEnd = <A, E, R, B, E2>(
    level: Level,
    body: Effect.Effect<A, E, R>,
    restore: Restore,
    end: (exit: Exit.Exit<A, E>) => Effect.Effect<B, E2>
  ) =>
    Effect.suspend(() => {
      // Whoever waits for somebody who waits for the server would wait for ever.
      const forget = level.root.connection.onClose(() => level.mutex.free())
      return Effect.flatMap(Effect.exit(restore(inside(level, body))), (exit) =>
        level.mutex.run(
          Effect.suspend(() => {
            level.ended = true
            return end(exit)
          })
        )
      ).pipe(Effect.ensuring(Effect.sync(forget)))
    })

  /**
   * A connection on which BEGIN was answered. One can have died without anybody knowing, and it is
   * BEGIN that finds out: nothing of the transaction can have run then, so that it begins on
   * another one, once.
   */
  const beginOn = (
    restore: Restore,
    options: TransactionOptions<never>,
    limits: Limits,
    isLastTry: boolean
  ): Effect.Effect<readonly [Connection, Response], DatabaseError> =>
    Effect.flatMap(pool.acquire(restore), (connection) => {
      connection.expectsReadOnly = options.readOnly === true
      connection.answerMillis = answerMillis(Duration.decode(limits.statementTimeout ?? Duration.infinity))
      return restore(connection.run({ text: begin(options, defaults.session), isControl: true })).pipe(
        Effect.map((response) => [connection, response] as const),
        Effect.onError(() => Effect.zipRight(Effect.ignore(undoBegin(connection)), pool.release(connection))),
        Effect.catchAll((error) =>
          isLastTry || connection.isOpen || error.retry !== "unsent"
            ? Effect.fail(error)
            : Effect.zipRight(
                Effect.logDebug("BEGIN found its connection dead; it is sent on another one", error),
                beginOn(restore, options, limits, true)
              )
        )
      )
    })

  const outermost = <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    options: TransactionOptions<E>,
    attempt: Attempt
  ) =>
    Effect.uninterruptibleMask((restore) => {
      const limits = { ...defaults.limits, ...limitsOf(options) }
      return Effect.flatMap(beginOn(restore, options, limits, false), ([connection, response]) => {
        const hold: Checkout = { connection, over: false }
        const root: Root = {
          connection,
          hold,
          options,
          attempt,
          decisions: defaults.decisions,
          savepoints: 0,
          transactionId: transactionIdOf(response),
          isUnknown: false
        }
        const level = makeLevel(
          root,
          0,
          limits,
          Effect.zipRight(
            control(root, ["ROLLBACK"]),
            Effect.map(
              connection.run({
                text: begin(options, defaults.session),
                isControl: true,
                timeoutMillis: controlMillis
              }),
              (response) => {
                root.transactionId = transactionIdOf(response)
              }
            )
          )
        )
        return untilEnd(level, effect, restore, (exit): Effect.Effect<A, E | DatabaseError> =>
          Exit.isSuccess(exit) ? Effect.as(commit(root), exit.value) : rollback(root, exit.cause, options)
        ).pipe(
          Effect.ensuring(
            Effect.suspend(() => {
              hold.over = true
              return pool.release(connection)
            })
          ),
          Effect.onExit((exit) => {
            const outcome = Exit.isSuccess(exit) ? "committed" : root.isUnknown ? "unknown" : "rolled back"
            defaults.telemetry.transaction(outcome)
            if (attempt.again) defaults.telemetry.retried()
            // Nobody knows whether what waits for the end may run after a COMMIT whose outcome is
            // unknown.
            return outcome === "unknown"
              ? Effect.void
              : level.hooks.run(outcome === "committed" ? "committed" : "rolledBack")
          })
        )
      })
    })

  const nested = <A, E, R>(parent: Level, effect: Effect.Effect<A, E, R>, options: TransactionOptions<E>) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.zipRight(
        parent.mutex.take(restore),
        Effect.suspend((): Effect.Effect<A, E | DatabaseError, R> => {
          const { root } = parent
          if (parent.refused !== undefined) return Effect.fail(parent.refused)
          if (parent.ended || isOver(root)) return Effect.fail(endedError)
          const refused = notInsideAnother(root.options, options)
          if (refused !== undefined) {
            return Effect.fail(
              new DatabaseError({
                operation: "savepoint",
                reason: { _tag: "InvalidRequest", problem: refused }
              })
            )
          }
          const own = limitsOf(options)
          const savepoint: Savepoint = {
            root,
            name: `s${++root.savepoints}`,
            restoreLimits: setLimits({
              statementTimeout:
                own.statementTimeout === undefined ? undefined : parent.limits.statementTimeout,
              lockTimeout: own.lockTimeout === undefined ? undefined : parent.limits.lockTimeout
            })
          }
          // An interrupted SAVEPOINT would abort the transaction around it, which is not concerned.
          const begun = naming(root, control(root, [`SAVEPOINT ${savepoint.name}`, ...setLimits(own)]))
          parent.isUntouched = false
          const level = makeLevel(
            root,
            parent.depth + 1,
            { ...parent.limits, ...own },
            control(root, [`ROLLBACK TO SAVEPOINT ${savepoint.name}`, ...setLimits(own)])
          )
          if (own.statementTimeout !== undefined) allow(root, Duration.decode(own.statementTimeout))
          return Effect.zipRight(
            begun,
            Effect.suspend(() =>
              untilEnd(level, effect, restore, (exit): Effect.Effect<A, E | DatabaseError> =>
                Exit.isSuccess(exit)
                  ? Effect.as(releaseSavepoint(savepoint), exit.value)
                  : rollbackToSavepoint(savepoint, exit.cause)
              )
            )
          ).pipe(
            Effect.onExit((exit) =>
              Effect.sync(() =>
                parent.hooks.adopt(level.hooks, Exit.isSuccess(exit) ? "committed" : "rolledBack")
              )
            )
          )
        }).pipe(Effect.ensuring(parent.mutex.pass))
      )
    )

  const levelIn = (context: Context.Context<never>): Level | undefined => {
    const own = context.unsafeMap.get(CurrentLevel.key) as Level | undefined
    if (own !== undefined) return own
    // A resolver of `@effect/sql` carries the transaction of a request under the library's own tag.
    const carried = context.unsafeMap.get(SqlClient.TransactionConnection.key)
    return (carried as readonly [{ readonly [levelOf]?: Level }] | undefined)?.[0][levelOf]
  }
  const currentLevel = Effect.map(Effect.context<never>(), levelIn)

  return {
    transact: (effect, options = {}) =>
      Effect.flatMap(currentLevel, (level) =>
        level !== undefined
          ? nested(level, effect, options)
          : options.retry === undefined
            ? outermost(effect, options, once())
            : Retry.run(options.retry, (attempt) => outermost(effect, options, attempt))
      ).pipe(
        Effect.withSpan("sql.transaction", {
          kind: "client",
          captureStackTrace: false,
          attributes: defaults.spanAttributes
        })
      ),
    connectionIn: (context) => levelIn(context)?.sqlConnection,
    after: <A, E, R>(when: Outcome, effect: Effect.Effect<A, E, R>) =>
      Effect.flatMap(currentLevel, (level) => {
        if (level === undefined) {
          if (when === "rolledBack") return Effect.void
          const now = new Hooks()
          return Effect.contextWithEffect((context: Context.Context<R>) => {
            now.add({ when, effect: Effect.provide(effect, context) })
            return now.run(when)
          })
        }
        // It runs outside the transaction that it waits for.
        return Effect.map(Effect.context<R>(), (context) =>
          level.hooks.add({
            when,
            effect: Effect.mapInputContext(
              effect,
              () => Context.omit(CurrentLevel, SqlClient.TransactionConnection)(context) as Context.Context<R>
            )
          })
        )
      })
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The outermost transaction. */
interface Root {
  readonly connection: Connection
  readonly hold: Checkout
  readonly options: TransactionOptions<never>
  readonly attempt: Attempt
  readonly decisions: AppliedErrorPolicy
  /** How many savepoints there were: their names are never used twice. */
  savepoints: number
  /** The server's id of a resolvable transaction. */
  transactionId: string | undefined
  /** Whether COMMIT was sent and nobody knows what became of it. */
  isUnknown: boolean
}

/** A transaction or a savepoint: its statements and its nested levels take turns. */
interface Level {
  readonly root: Root
  readonly depth: number
  readonly limits: Limits
  readonly mutex: Mutex
  readonly sqlConnection: CopyConnection
  readonly hooks: Hooks
  /** Why nothing can be run on it, now or ever. */
  readonly refused?: DatabaseError
  /** Whether nothing was sent since its BEGIN or SAVEPOINT. */
  isUntouched: boolean
  ended: boolean
}

const busyError = new DatabaseError({
  operation: "execute",
  reason: {
    _tag: "InvalidRequest",
    problem:
      "the rows of a COPY come from a stream that uses the transaction which the COPY runs in, and its connection is busy until they end: read them before, or run the COPY outside the transaction"
  }
})

/** A connection that runs nothing, and says why. */
const refusing = (error: DatabaseError): CopyConnection =>
  makeConnection(
    () => Effect.fail(error),
    () => Stream.fail(error),
    () => Effect.fail(error)
  )

const busyConnection = refusing(busyError)

const foreignConnection = refusing(
  new DatabaseError({
    operation: "execute",
    reason: {
      _tag: "InvalidRequest",
      problem:
        "a client of @effect/sql that is not of this database was used inside a transaction of this database, and would have run on its connection: use it outside the transaction"
    }
  })
)

interface Savepoint {
  readonly root: Root
  readonly name: string
  /** What sets the limits back that the savepoint changed. */
  readonly restoreLimits: ReadonlyArray<string>
}

interface Limits {
  readonly statementTimeout?: Duration.DurationInput | undefined
  readonly lockTimeout?: Duration.DurationInput | undefined
}

const begin = (options: TransactionOptions<never>, session: ReadonlyArray<string>): string => {
  const modes = [
    options.isolation === undefined ? undefined : `ISOLATION LEVEL ${options.isolation.toUpperCase()}`,
    options.readOnly === undefined ? undefined : options.readOnly ? "READ ONLY" : "READ WRITE",
    options.deferrable === undefined ? undefined : options.deferrable ? "DEFERRABLE" : "NOT DEFERRABLE"
  ].filter((mode) => mode !== undefined)
  const id = options.resolvable === true && options.readOnly !== true ? [transactionIdQuery] : []
  return [["BEGIN", modes.join(", ")].join(" ").trim(), ...session, ...setLimits(options), ...id].join(";")
}

/**
 * Assigns the transaction's id and gives it (documentation, chapter "Transaction ID and Snapshot
 * Information Functions").
 */
const transactionIdQuery = "SELECT pg_catalog.pg_current_xact_id()::text AS id"

const transactionIdOf = (response: Response): string | undefined => {
  const last = "rows" in response ? response : response.at(-1)
  const [row] = (last?.rows ?? []) as ReadonlyArray<{ readonly id?: string }>
  return row?.id
}

/** The limits among options, without those that are left out. */
const limitsOf = ({ lockTimeout, statementTimeout }: Limits): Limits => ({
  ...(statementTimeout === undefined ? {} : { statementTimeout }),
  ...(lockTimeout === undefined ? {} : { lockTimeout })
})

const setLimits = (limits: Limits): ReadonlyArray<string> =>
  [
    { name: "statement_timeout", value: limits.statementTimeout },
    { name: "lock_timeout", value: limits.lockTimeout }
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

/**
 * Whether a statement of the body has ended the transaction: what follows would run, and be kept,
 * outside of it.
 */
const isOver = ({ connection }: Root): boolean =>
  connection.isOpen && connection.isQuiet && connection.transactionStatus === "I"

/**
 * Names the error that aborted a transaction in the errors that follow from it, and says of a
 * server's end that nothing of the transaction was kept.
 */
const naming = <A, E, R>(
  { connection, decisions }: Root,
  step: Effect.Effect<A, E | DatabaseError, R>
): Effect.Effect<A, E | DatabaseError, R> =>
  Effect.catchAll(step, (error): Effect.Effect<never, E | DatabaseError> => {
    if (!DatabaseError.is(error)) return Effect.fail(error)
    if (isAborted(error.reason)) {
      const reason: Reason = { _tag: "TransactionAborted", first: connection.abortedBy }
      return Effect.fail(decisions.error({ operation: "execute", reason, cause: error }))
    }
    return Effect.fail(
      isEndOfServer(error.reason)
        ? decisions.error({ operation: "execute", reason: error.reason, cause: error, inTransaction: true })
        : error
    )
  })

const isAborted = (reason: Reason) => "code" in reason && reason.code === "25P02"

const commit = (root: Root): Effect.Effect<void, DatabaseError> =>
  Effect.suspend(() => {
    const { connection } = root
    if (isOver(root)) return Effect.fail(endedError)
    return Commit.commit(connection, {
      decisions: root.decisions,
      transactionId: root.transactionId,
      // It cannot be interrupted, so that it has the transaction's limit also where a program set
      // another one that is not known.
      timeoutMillis: connection.answerMillis ?? Number.POSITIVE_INFINITY
    })
  }).pipe(
    Effect.tapError((error) => {
      root.isUnknown = error.reason._tag === "CommitOutcomeUnknown"
      return willRetry(root, error.reason)
        ? logged(root.options, logRetry(root.attempt, error))
        : logged(root.options, Effect.logError(commitMessage(error), Cause.fail(error)))
    })
  )

const commitMessage = ({ reason }: DatabaseError): string =>
  reason._tag === "CommitOutcomeUnknown"
    ? "Database session error, the transaction may or may not have been committed"
    : "Database session error, the transaction was not committed"

/** Logs the whole cause, and only then sends ROLLBACK. */
const rollback = <E>(
  root: Root,
  cause: Cause.Cause<E>,
  options: TransactionOptions<E>
): Effect.Effect<never, E> =>
  Effect.suspend(() => {
    const aborted = root.connection.abortedBy
    const again =
      !Cause.isInterrupted(cause) &&
      [aborted, ...Chunk.map(Cause.failures(cause), reasonOf)].some((reason) => willRetry(root, reason))
    const log = again
      ? logRetry(root.attempt, ...Cause.failures(cause))
      : isExpected(cause, options)
        ? Effect.logWarning(rollbackMessage, ...Cause.failures(cause))
        : Effect.logError(rollbackMessage, cause)
    return Effect.zipRight(logged(options, log), endWith(cause, root, ["ROLLBACK"]))
  })

/** Decides, and remembers, that the transaction is run once more. */
const willRetry = ({ attempt, decisions }: Root, reason: Reason | undefined): boolean => {
  if (!attempt.mayRetry || !decisions.isTransient(reason)) return false
  attempt.again = true
  return true
}

const logRetry = (attempt: Attempt, ...errors: ReadonlyArray<unknown>) =>
  Effect.logWarning(`${rollbackMessage}; try ${attempt.number} failed, trying again`, ...errors)

const isExpected = <E>(cause: Cause.Cause<E>, { expected }: TransactionOptions<E>): boolean => {
  const failures = [...Cause.failures(cause)]
  if (failures.length === 0 || Cause.defects(cause).length > 0) return false
  // A test of the caller's that throws must not keep ROLLBACK from being sent.
  try {
    return failures.every((error) => isMarked(error) || expected?.(error) === true)
  } catch {
    return false
  }
}

/** Neither must a logger that throws. */
const logged = (options: TransactionOptions<never>, log: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.catchAllDefect(
    options.name === undefined ? log : Effect.annotateLogs(log, "transaction", options.name),
    () => Effect.void
  )

const rollbackToSavepoint = <E>(
  { name, restoreLimits, root }: Savepoint,
  cause: Cause.Cause<E>
): Effect.Effect<never, E> =>
  Effect.zipRight(
    logged(root.options, Effect.logDebug("Rolling back to a savepoint", cause)),
    endWith(cause, root, [`ROLLBACK TO SAVEPOINT ${name}`, `RELEASE SAVEPOINT ${name}`, ...restoreLimits])
  )

/**
 * A savepoint in which a statement failed cannot be kept, even if its body succeeded: the caller
 * must know.
 */
const releaseSavepoint = (savepoint: Savepoint): Effect.Effect<void, DatabaseError> =>
  Effect.suspend(() => {
    const { name, restoreLimits, root } = savepoint
    if (root.connection.transactionStatus !== "E") {
      return naming(root, control(root, [`RELEASE SAVEPOINT ${name}`, ...restoreLimits]))
    }
    const reason: Reason = { _tag: "TransactionRolledBack", first: root.connection.abortedBy }
    const error = root.decisions.error({ operation: "savepoint", reason })
    return rollbackToSavepoint(savepoint, Cause.fail(error))
  })

/** Fails with the body's cause; what goes wrong with the rollback comes after it. */
const endWith = <E>(
  cause: Cause.Cause<E>,
  root: Root,
  statements: ReadonlyArray<string>
): Effect.Effect<never, E> =>
  Effect.flatMap(
    root.connection.isOpen ? Effect.exit(control(root, statements)) : Effect.succeed(Exit.void),
    (back) =>
      Effect.failCause(
        Exit.isSuccess(back) ? cause : Cause.sequential(cause, Cause.die(Cause.squash(back.cause)))
      )
  )

/** Ends what BEGIN began although it failed or was interrupted. */
const undoBegin = (connection: Connection): Effect.Effect<void, DatabaseError> =>
  Effect.zipRight(
    connection.quiet,
    Effect.suspend(() =>
      connection.isOpen && connection.transactionStatus !== "I"
        ? Effect.asVoid(connection.run({ text: "ROLLBACK", timeoutMillis: controlMillis }))
        : Effect.void
    )
  )

/** Gives the server time for a limit of a nested transaction, until the outermost one ends. */
const allow = ({ connection }: Root, statementTimeout: Duration.Duration): void => {
  const longest = Math.max(
    connection.answerMillis ?? Number.POSITIVE_INFINITY,
    answerMillis(statementTimeout) ?? Number.POSITIVE_INFINITY
  )
  connection.answerMillis = Number.isFinite(longest) ? longest : undefined
}

/** Statements of our own that no interruption reaches, so that they need a limit. */
const control = (root: Root, statements: ReadonlyArray<string>): Effect.Effect<void, DatabaseError> =>
  Effect.asVoid(
    root.connection.run({ text: statements.join(";"), timeoutMillis: controlMillis, isControl: true })
  )
