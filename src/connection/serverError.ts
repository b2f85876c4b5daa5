import { type ConnectProblem, DatabaseError, type Phase, type Reason } from "../DatabaseError.js"
import { classify, isServerError } from "../errors/classify.js"
import { type AppliedErrorPolicy, standard } from "./errorPolicy.js"
import { type Endpoint, target } from "./endpoint.js"

/**
 * The error of a failed dial, `isAsked` for a password. What `pg` or Node said is read for its code
 * only, so that no secret gets out.
 */
export const connectError = (
  error: unknown,
  endpoint: Endpoint,
  decisions: AppliedErrorPolicy,
  isAsked: boolean
): DatabaseError => {
  const reason: Reason =
    isServerError(error) && !isRefusedParameter(error)
      ? classify(error)
      : {
          _tag: "ConnectFailed",
          phase: "dial",
          problem: connectProblem(error, isAsked),
          target: target(endpoint),
          systemCode: systemCode(error)
        }
  return decisions.error({ operation: "connect", reason })
}

/** Whether the server refuses for another reason than who logs in. */
export const isOtherRefusal = (error: unknown): boolean =>
  isServerError(error) && !error.code.startsWith("28")

/** The error of a dial whose problem was seen on the way. */
export const dialError = (
  endpoint: Endpoint,
  decisions: AppliedErrorPolicy,
  problem: ConnectProblem
): DatabaseError =>
  decisions.error({
    operation: "connect",
    reason: {
      _tag: "ConnectFailed",
      phase: "dial",
      problem,
      target: target(endpoint),
      systemCode: undefined
    }
  })

/**
 * The error of a statement, whose text may be given, and whether it had run for as long as its
 * limit allows. `lost` is the phase in which the connection was lost, if it was; an error that is
 * neither the server's nor the socket's comes from a parser of a column's type.
 */
export const statementError = (
  error: unknown,
  lost: Phase | undefined,
  decisions: AppliedErrorPolicy = standard,
  statement?: string,
  isOverdue?: boolean
): DatabaseError => {
  if (isServerError(error)) {
    return decisions.error({ operation: "execute", reason: classify(error, statement, isOverdue) })
  }
  const reason: Reason =
    lost === undefined
      ? {
          _tag: "InvalidRequest",
          problem: "a value of the result cannot be read by the parser of its type"
        }
      : { _tag: "ConnectionLost", phase: lost, systemCode: systemCode(error) }
  return decisions.error({ operation: "execute", reason })
}

/** The error of a statement on a connection whose transaction or reservation is over. */
export const endedError = new DatabaseError({ operation: "execute", reason: { _tag: "TransactionEnded" } })

/**
 * PgBouncer's answer to startup parameters that it does not follow: it sends no routine, and has no
 * other language than English.
 */
const isRefusedParameter = (error: { readonly code: string; readonly message?: string | undefined }) =>
  error.code === "08P01" && error.message?.includes("unsupported startup parameter") === true

const systemCode = (error: unknown): string | undefined =>
  typeof error === "object" && error !== null && "code" in error && typeof error.code === "string"
    ? error.code
    : undefined

const problemsByCode: Record<string, ConnectProblem> = {
  ENOTFOUND: "host not found",
  EAI_AGAIN: "host not found",
  ECONNREFUSED: "refused",
  ENOENT: "refused",
  EACCES: "refused",
  ETIMEDOUT: "unreachable",
  EHOSTUNREACH: "unreachable",
  ENETUNREACH: "unreachable",
  EADDRNOTAVAIL: "unreachable",
  ECONNRESET: "closed by the server",
  EPIPE: "closed by the server"
}

const connectProblem = (error: unknown, isAsked: boolean): ConnectProblem => {
  const code = systemCode(error)
  const known = code === undefined ? undefined : problemsByCode[code]
  if (known !== undefined) return known
  // What follows are sentences of `pg`, which it does not translate, and gives no codes.
  const text = error instanceof Error ? error.message : ""
  if (isServerError(error)) return "a pooler refuses the limits"
  if (text === "timeout expired") return "timeout"
  if (text.includes("does not support SSL")) return "TLS not offered by the server"
  if (code !== undefined && /^(ERR_TLS|ERR_SSL|CERT|DEPTH_|SELF_|UNABLE_|EPROTO)/.test(code))
    return "TLS refused"
  if (text.includes("SSL connection")) return "TLS refused"
  if (text.startsWith("Connection terminated")) return "closed by the server"
  return isAsked ? "the login was not completed" : "no usable answer"
}
