/** What an error says to people: what happened and what to do, without any value. */
import {
  type ConnectProblem,
  type Holder,
  type Phase,
  type PoolState,
  type Reason,
  type Row,
  serverReasons
} from "./reasons.js"

/**
 * One line that says what happened and, where that is the same for everybody, what to do; without
 * any value.
 */
export const describe = (reason: Reason): string => {
  switch (reason._tag) {
    case "ConnectFailed":
      return `cannot connect to ${reason.target}: ${reason.problem}${
        reason.systemCode === undefined ? "" : ` (${reason.systemCode})`
      }. ${adviceFor[reason.problem]}`
    case "ConnectionLost":
      return `the connection was lost (${reason.phase}${
        reason.systemCode === undefined ? "" : `, ${reason.systemCode}`
      }): ${lossOf[reason.phase]}`
    case "AcquireTimeout":
      return `no connection became free within ${reason.timeoutMillis} ms (${describePool(reason.pool)}${describeHolder(reason.oldestHolder)}): make what holds them shorter, or raise maxConnections or acquireTimeout`
    case "Overloaded":
      return `too many callers wait for a connection (${describePool(reason.pool)}${describeHolder(reason.oldestHolder)}): let fewer run at once, or raise maxConnections or maxWaiting`
    case "PoolClosed":
      return "the pool is closed: keep the scope of the database's Layer open for as long as the database is used"
    case "NestedAcquire":
      return `a second connection was asked for while holding one, and no other will become free (${describePool(
        reason.pool
      )}; held by ${reason.holders.join(", ")}): run the inner statements on the transaction that is open`
    case "TransactionAborted":
      return `the transaction was aborted by an earlier error${
        reason.first === undefined ? "" : `: ${describe(reason.first)}`
      }`
    case "TransactionRolledBack":
      return `the server rolled the transaction back instead of committing it${
        reason.first === undefined ? "" : `, because of an earlier error: ${describe(reason.first)}`
      }`
    case "CommitOutcomeUnknown":
      return `the connection was lost while committing; the transaction may or may not have been committed: ${
        reason.transactionId === undefined
          ? "look for what it wrote, or run it with the option resolvable the next time"
          : "ask with Transaction.resolve"
      }`
    case "SessionUnavailable":
      return 'LISTEN, advisory locks of a session and migrations do not work with pooler "transaction" alone: set directUrl (DATABASE_DIRECT_URL) to the server itself'
    case "TransactionEnded":
      return "the transaction or reservation that this connection belonged to has ended: let its body wait for the fibers that use it"
    case "InvalidRequest":
      return reason.problem
    default: {
      const where = [reason.schema, reason.table, reason.column]
        .filter((part) => part !== undefined)
        .join(".")
      const { remedy }: Row = serverReasons[reason._tag]
      const text = reason.shown.message === undefined ? "" : `: ${reason.shown.message}`
      return `${reason._tag} (${reason.code})${where === "" ? "" : ` at ${where}`}${
        reason.constraint === undefined ? "" : `, constraint ${reason.constraint}`
      }${text}${remedy === undefined ? "" : `. ${remedy}`}`
    }
  }
}

/** What a pool's connections do, in words. */
export const describePool = (pool: PoolState): string =>
  `${pool.busy} of ${pool.max} connections busy, ${pool.idle} idle, ${pool.waiting} waiting`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const adviceFor: { readonly [Problem in ConnectProblem]: string } = {
  "host not found": "Check the host of the url.",
  refused: "Check that the server runs, and the port (or the socket directory) of the url.",
  unreachable: "Check the host of the url and the network.",
  timeout: "The server did not answer in time: check host and port, or raise connectTimeout.",
  "closed by the server": "The server closed the connection before it was ready: look into its log.",
  "TLS not offered by the server": "Switch TLS on there, or use sslmode=disable in the url.",
  "TLS refused": "Check the server's certificate, its name, and sslmode and sslrootcert in the url.",
  "a pooler refuses the limits":
    'A connection pooler takes no limits in the startup packet: set pooler to "transaction", and directUrl to the server itself.',
  "no password given":
    "The server asks for a password, and the url has none: write postgresql://user:password@host, and look whether a variable in it is empty.",
  "no channel binding":
    "The server offers no login that is bound to the TLS connection, as channel_binding=require in the url wants it: use SCRAM-SHA-256 over TLS without a proxy that ends it, or channel_binding=prefer.",
  "the login was not completed":
    "The server asked for a password, and its further answers were not those of a login: look into its log, and at what stands in between.",
  "no usable answer": "Look into the server's log, and at what stands in between.",
  "not a PostgreSQL server":
    "What answers there does not speak PostgreSQL's protocol: check the port of the url."
}

const lossOf: { readonly [When in Phase]: string } = {
  acquire: "nothing was sent, so that it can be run again",
  sent: "whether the server ran the statement is not known, unless it was in a transaction: that is rolled back",
  commit: "the transaction may or may not have been committed"
}

const describeHolder = (holder: Holder | undefined) =>
  holder === undefined ? "" : `, one of them for ${holder.heldMillis} ms by ${holder.span}`
