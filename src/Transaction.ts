/**
 * Transactions as effects.
 *
 * The cause of a failed body is logged before ROLLBACK is sent; a COMMIT that fails, or that the
 * server answers with ROLLBACK, is a typed failure; a transaction inside another one is a
 * savepoint.
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Schedule from "effect/Schedule"
import { Database } from "./Database.js"
import type { DatabaseError } from "./DatabaseError.js"
import type { TransactionOptions } from "./transaction/manager.js"

export type { RetryOptions } from "./transaction/retry.js"
export type { IsolationLevel, TransactionOptions } from "./transaction/manager.js"
export { rollbackMessage } from "./transaction/manager.js"

/**
 * Runs an effect in a transaction: every statement of the effect and of what it calls goes through
 * one connection, and all of it is kept or none.
 *
 * - Success commits. A failed COMMIT is a `DatabaseError` of its own reason, such as
 *   `ForeignKeyViolation` from a deferred constraint; one that the server answered with ROLLBACK,
 *   because a statement had failed and the body went on, is `TransactionRolledBack`; one that was
 *   lost on the way is `CommitOutcomeUnknown`.
 * - Failure, defect and interruption roll back, after the cause was logged at ERROR (domain errors,
 *   and those that are {@link TransactionOptions.expected}, at WARNING). An error of the rollback
 *   itself comes after the body's in the cause.
 * - Inside another transaction it is a savepoint, released on success. Fibers that share a
 *   transaction take turns.
 * - Waiting for a connection can be interrupted, and ends with `AcquireTimeout`.
 */
export const run: {
  <E>(
    options?: TransactionOptions<E>
  ): <A, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | DatabaseError, R | Database>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    options?: TransactionOptions<E>
  ): Effect.Effect<A, E | DatabaseError, R | Database>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    options?: TransactionOptions<E>
  ): Effect.Effect<A, E | DatabaseError, R | Database> =>
    Effect.flatMap(Database, ({ transact }) => transact(effect, options))
)

/**
 * Runs an effect once, after the outermost transaction has committed, outside of it, in the order
 * of registration; drops it with its savepoint or when the transaction does not commit, and also
 * when nobody knows whether it did (`CommitOutcomeUnknown`). Outside any transaction it runs at
 * once. Its failure is logged and undoes nothing; it cannot be interrupted.
 */
export const afterCommit = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<void, never, R | Database> =>
  Effect.flatMap(Database, ({ after }) => after("committed", effect))

/**
 * Runs an effect once, after the outermost transaction has ended, if it or the savepoint in which
 * this was called was rolled back. Outside any transaction it never runs.
 */
export const afterRollback = <A, E, R>(
  effect: Effect.Effect<A, E, R>
): Effect.Effect<void, never, R | Database> =>
  Effect.flatMap(Database, ({ after }) => after("rolledBack", effect))

/** What became of a transaction. */
export type Outcome = "committed" | "aborted" | "unknown"

/**
 * Asks the server what became of a transaction that failed with `CommitOutcomeUnknown`. It must
 * have been `resolvable`, and the server must still remember it (`pg_xact_status`, documentation,
 * chapter "Transaction ID and Snapshot Information Functions"); otherwise the answer is `unknown`.
 * A backend that still holds the transaction open, because it does not know yet that nobody is
 * there, is ended after a second: it is our own.
 */
export const resolve = Effect.fn("Transaction.resolve")(function* (
  error: DatabaseError
): Effect.fn.Return<Outcome, DatabaseError, Database> {
  const { reason } = error
  if (reason._tag !== "CommitOutcomeUnknown" || reason.transactionId === undefined) return "unknown"
  const id = reason.transactionId
  const { session } = yield* Database
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const { query } = yield* session
      const status = Effect.map(
        query<{ status: string | null }>("SELECT pg_catalog.pg_xact_status($1::text::xid8) AS status", [id]),
        ([row]) => row?.status ?? "unknown"
      )
      const decided = status.pipe(
        Effect.filterOrFail(
          (now) => now !== "in progress",
          () => "in progress" as const
        ),
        Effect.retry({
          while: (failure) => failure === "in progress",
          schedule: Schedule.spaced("50 millis").pipe(Schedule.upTo("1 second"))
        })
      )
      const end = query(
        `SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
         WHERE backend_xid = $1::text::xid8::xid AND usename = current_user AND pid <> pg_catalog.pg_backend_pid()`,
        [id]
      )
      const final = yield* decided.pipe(
        Effect.catchAll((failure) =>
          failure === "in progress"
            ? Effect.catchAll(Effect.zipRight(end, decided), (still) =>
                still === "in progress" ? Effect.succeed("unknown") : Effect.fail(still)
              )
            : Effect.fail(failure)
        )
      )
      return final === "committed" || final === "aborted" ? final : "unknown"
    })
  )
})
