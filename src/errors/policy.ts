/** What may be retried after an error, and what becomes of its connection. */
import { clientReasons, type Policy, type Reason, type Retry, serverReasons } from "./reasons.js"

/**
 * What may be retried and what becomes of the connection, where no `errorPolicy` says
 * otherwise.
 */
export const policy = (reason: Reason): Policy => {
  const base: Policy = rows[reason._tag]
  return {
    retry: retryOf(reason, base.retry),
    disposition: isFatal(reason) && base.disposition === "keep" ? "destroy" : base.disposition
  }
}

/** Whether the server ended the session with this error. */
export const isFatal = (reason: Reason): boolean =>
  "severity" in reason && (reason.severity === "FATAL" || reason.severity === "PANIC")

/** The server itself does not know what became of a statement or a transaction. */
export const isCompletionUnknown = (reason: Reason): boolean =>
  reason._tag === "ServerConnectionException" && (reason.code === "40003" || reason.code === "08007")

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const rows = { ...serverReasons, ...clientReasons }

const retryOf = (reason: Reason, base: Retry): Retry => {
  const lostInTransit = reason._tag === "ConnectionLost" && reason.phase === "commit"
  if (lostInTransit || isCompletionUnknown(reason)) return "unknown"
  // Another try may mend what follows from an error if it may mend that one.
  const first = "first" in reason ? reason.first : undefined
  return first !== undefined && policy(first).retry === "transaction" ? "transaction" : base
}
