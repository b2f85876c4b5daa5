import { DatabaseError, type ErrorPolicy, type Policy, type Reason } from "../DatabaseError.js"
import { isFatal, policy as standardPolicy } from "../errors/policy.js"
import { withoutRaised } from "../errors/classify.js"

/**
 * What one database decides about its errors: the standard decisions, changed by the program's own
 * `errorPolicy` within what is safe. Whoever makes an error, checks a connection in or runs a
 * transaction again asks here.
 */
export class AppliedErrorPolicy {
  /**
   * `onDefect` is told when the program's function throws; the standard decision holds then.
   * `showRaised` is the setting.
   */
  constructor(
    private readonly own?: ErrorPolicy | undefined,
    private readonly onDefect: (cause: unknown) => void = () => {},
    private readonly showRaised = true
  ) {}

  /**
   * What may be retried and what becomes of the connection, `inTransaction` where COMMIT had not
   * been sent.
   */
  policy(reason: Reason, inTransaction = false): Policy {
    const base = this.base(reason, inTransaction)
    const asked = this.ask(reason, base)
    return {
      retry: asked?.retry === undefined || base.retry === "unknown" ? base.retry : asked.retry,
      disposition:
        asked?.disposition === undefined || (asked.disposition === "keep" && isBroken(reason))
          ? base.disposition
          : asked.disposition
    }
  }

  /**
   * Whether `Transaction.run` with `retry` runs the transaction again. One that a read-only server
   * refused may be run again, too, but elsewhere and later: that takes a program's own decision.
   */
  isTransient(reason: Reason | undefined): boolean {
    if (reason === undefined) return false
    const base = this.base(reason, true)
    if (base.retry === "unknown") return false
    const asked = this.ask(reason, base)?.retry
    if (asked !== undefined) return asked === "transaction"
    return isConsequence(reason)
      ? this.isTransient(reason.first)
      : base.retry === "transaction" && reason._tag !== "ReadOnlyTransaction"
  }

  /** An error with the decisions about it. */
  error(props: {
    readonly reason: Reason
    readonly operation: string
    readonly cause?: unknown
    readonly inTransaction?: boolean
  }): DatabaseError {
    const reason = this.showRaised ? props.reason : withoutRaised(props.reason)
    return new DatabaseError({
      ...props,
      reason,
      policy:
        this.own === undefined && props.inTransaction !== true
          ? undefined
          : this.policy(reason, props.inTransaction)
    })
  }

  private base(reason: Reason, inTransaction = false): Policy {
    const base: Policy =
      inTransaction && isEndOfServer(reason)
        ? { ...standardPolicy(reason), retry: "transaction" }
        : standardPolicy(reason)
    return this.own !== undefined && isConsequence(reason) && reason.first !== undefined
      ? { ...base, retry: this.policy(reason.first).retry === "transaction" ? "transaction" : "never" }
      : base
  }

  private ask(reason: Reason, base: Policy): Partial<Policy> | undefined {
    if (this.own === undefined) return undefined
    try {
      return this.own(reason, base)
    } catch (cause) {
      this.onDefect(cause)
      return undefined
    }
  }
}

/** The decisions of a program that makes none of its own. */
export const standard = new AppliedErrorPolicy()

/** Whether the connection cannot be used any more, whatever anybody decides. */
export const isBroken = (reason: Reason): boolean =>
  reason._tag === "ConnectionLost" ||
  reason._tag === "CommitOutcomeUnknown" ||
  reason._tag === "ProtocolViolation" ||
  isFatal(reason)

/** Whether the server ended the session itself, and with it what was not committed. */
export const isEndOfServer = (reason: Reason): boolean =>
  reason._tag === "ServerShutdown" || reason._tag === "ServerCrash"

const isConsequence = (
  reason: Reason
): reason is Extract<Reason, { readonly _tag: "TransactionAborted" | "TransactionRolledBack" }> =>
  reason._tag === "TransactionAborted" || reason._tag === "TransactionRolledBack"
