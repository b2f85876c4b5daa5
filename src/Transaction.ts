/**
 * Transactions as effects.
 *
 * The cause of a failed body is logged before ROLLBACK is sent; a COMMIT that fails, or that the server answers with
 * ROLLBACK, is a typed failure; a transaction inside another one is a savepoint.
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { Database } from "./Database.js"
import type { DatabaseError } from "./DatabaseError.js"
import type { TransactionOptions } from "./driver/Transact.js"

export type { IsolationLevel, TransactionOptions } from "./driver/Transact.js"
export { rollbackMessage } from "./driver/Transact.js"

/**
 * Runs an effect in a transaction: every statement of the effect and of what it calls goes through one connection, and all of
 * it is kept or none.
 *
 * - Success commits. A failed COMMIT is a `DatabaseError` of its own reason, such as `ForeignKeyViolation` from a deferred
 *   constraint; one that the server answered with ROLLBACK, because a statement had failed and the body went on, is
 *   `TransactionRolledBack`; one that was lost on the way is `CommitOutcomeUnknown`.
 * - Failure, defect and interruption roll back, after the cause was logged at ERROR ({@link TransactionOptions.expected}
 *   errors at WARNING). An error of the rollback itself comes after the body's in the cause.
 * - Inside another transaction it is a savepoint, released on success. Fibers that share a transaction take turns.
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
