import * as Effect from "effect/Effect"
import type { DatabaseError, Reason } from "../DatabaseError.js"
import { isCompletionUnknown, isFatal } from "../errors/policy.js"
import type { Connection, Response } from "./connection.js"
import type { AppliedErrorPolicy } from "./errorPolicy.js"

/** How a transaction is committed. */
export interface CommitOptions {
  readonly decisions: AppliedErrorPolicy
  /** The server's id of the transaction, to ask for its outcome by. */
  readonly transactionId?: string | undefined
  /**
   * The connection is closed when COMMIT has not been answered within so many milliseconds;
   * infinity is no limit.
   */
  readonly timeoutMillis?: number | undefined
}

/**
 * Sends COMMIT. Fails with `TransactionRolledBack` if the server answers it with ROLLBACK, with
 * `CommitOutcomeUnknown` if it may have got the COMMIT and did not answer it, and with the server's
 * error if that refused.
 */
export const commit = (
  connection: Connection,
  { decisions, timeoutMillis, transactionId }: CommitOptions
): Effect.Effect<void, DatabaseError> =>
  Effect.suspend(() => {
    const first = connection.abortedBy
    const sent = connection.isOpen
    return connection.run({ text: "COMMIT", phase: "commit", timeoutMillis }).pipe(
      // A COMMIT that never left failed for good; the outcome of one that the server may have got
      // is not known.
      Effect.mapError((error) =>
        decisions.error({
          operation: "commit",
          inTransaction: true,
          reason:
            sent && isUnknown(error.reason)
              ? {
                  _tag: "CommitOutcomeUnknown",
                  transactionId,
                  systemCode: error.reason._tag === "ConnectionLost" ? error.reason.systemCode : undefined
                }
              : error.reason,
          cause: error
        })
      ),
      Effect.filterOrFail(
        (response) => commandOf(response) === "COMMIT",
        () => decisions.error({ operation: "commit", reason: { _tag: "TransactionRolledBack", first } })
      ),
      Effect.asVoid
    )
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const isUnknown = (reason: Reason): boolean => {
  switch (reason._tag) {
    case "ConnectionLost":
      return reason.phase === "commit"
    // The server ends such transactions before it commits them; a standby has nothing to commit.
    case "ReplicaConflict":
    case "IdleInTransactionTimeout":
    case "TransactionTimeout":
      return false
    default:
      return isFatal(reason) || isCompletionUnknown(reason)
  }
}

const commandOf = (response: Response): string | undefined =>
  "command" in response ? response.command : undefined
