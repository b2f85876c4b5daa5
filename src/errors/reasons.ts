/**
 * Every reason of an error, as a row of one table: its SQLSTATEs, what may be retried, what becomes
 * of the connection, and what to do about it. The union of the tags follows from the table.
 */
import type * as Redacted from "effect/Redacted"

/** What one reason means. */
export interface Row {
  /**
   * SQLSTATEs of five characters, and classes of two for those without a row of their own (appendix
   * "PostgreSQL Error Codes", 13 to 18).
   */
  readonly codes: ReadonlyArray<string>
  readonly retry: Retry
  readonly disposition: Disposition
  /** What to do about it, where that is the same for everybody. */
  readonly remedy?: string
}

/** What the server answers. */
export const serverReasons = {
  SerializationFailure: {
    codes: ["40001", "40000", "OC000", "OC001", "40"],
    retry: "transaction",
    disposition: "keep",
    remedy: "Run the transaction again: Transaction.run has the option retry."
  },
  // 40001 and 40P01, told apart by the routine.
  ReplicaConflict: {
    codes: [],
    retry: "transaction",
    disposition: "keep",
    remedy: "Run it again, or on the primary."
  },
  DeadlockDetected: {
    codes: ["40P01"],
    retry: "transaction",
    disposition: "keep",
    remedy: "Run the transaction again: Transaction.run has the option retry."
  },
  LockTimeout: {
    codes: ["55P03"],
    retry: "never",
    disposition: "keep",
    remedy: "Another transaction holds the lock: try later, or raise lockTimeout for this transaction."
  },
  // 57014, told apart by how long the statement had run.
  StatementTimeout: {
    codes: [],
    retry: "never",
    disposition: "keep",
    remedy: "Make the statement faster, or raise statementTimeout for its transaction."
  },
  StatementCancelled: { codes: ["57014"], retry: "never", disposition: "keep" },
  IdleInTransactionTimeout: {
    codes: ["25P03"],
    retry: "never",
    disposition: "destroy",
    remedy: "Do less between the statements of a transaction, or raise idleInTransactionTimeout."
  },
  TransactionTimeout: {
    codes: ["25P04"],
    retry: "never",
    disposition: "destroy",
    remedy: "Make the transaction shorter, or raise transaction_timeout on the server."
  },
  IdleSessionTimeout: {
    codes: ["57P05"],
    retry: "unsent",
    disposition: "destroy",
    remedy: "Set idleTimeout below the server's idle_session_timeout."
  },
  ServerShutdown: { codes: ["57P01", "57"], retry: "unsent", disposition: "invalidate" },
  ServerCrash: { codes: ["57P02"], retry: "unsent", disposition: "invalidate" },
  ServerStarting: {
    codes: ["57P03"],
    retry: "unsent",
    disposition: "destroy",
    remedy: "Wait until the server has started."
  },
  DatabaseUnavailable: { codes: ["57P04", "3D000"], retry: "never", disposition: "invalidate" },
  TooManyConnections: {
    codes: ["53300", "53400"],
    retry: "unsent",
    disposition: "destroy",
    remedy: "Lower maxConnections of the programs that use the server, or raise its limit."
  },
  ServerResources: { codes: ["53"], retry: "never", disposition: "invalidate" },
  ServerSystemError: { codes: ["58", "F0"], retry: "never", disposition: "invalidate" },
  AuthenticationFailed: {
    codes: ["28"],
    retry: "never",
    disposition: "destroy",
    remedy: "Check user and password of the url, and the server's pg_hba.conf."
  },
  ReadOnlyTransaction: {
    codes: ["25006"],
    retry: "transaction",
    disposition: "invalidate",
    remedy: "Connect to the primary if this is a standby; a transaction that writes cannot be readOnly."
  },
  InvalidTransactionState: { codes: ["25", "2D", "3B"], retry: "never", disposition: "keep" },
  StalePreparedStatement: {
    codes: ["26000", "42P05"],
    retry: "transaction",
    disposition: "keep",
    remedy: "Run it again; behind a connection pooler set prepare to false."
  },
  ProtocolViolation: { codes: ["08P01"], retry: "never", disposition: "destroy" },
  ServerConnectionException: { codes: ["40003", "08"], retry: "unsent", disposition: "destroy" },
  UniqueViolation: { codes: ["23505"], retry: "never", disposition: "keep" },
  ForeignKeyViolation: { codes: ["23503", "23001"], retry: "never", disposition: "keep" },
  NotNullViolation: { codes: ["23502"], retry: "never", disposition: "keep" },
  CheckViolation: { codes: ["23514", "44"], retry: "never", disposition: "keep" },
  ExclusionViolation: { codes: ["23P01"], retry: "never", disposition: "keep" },
  IntegrityViolation: { codes: ["40002", "23"], retry: "never", disposition: "keep" },
  ValueTooLong: { codes: ["22001"], retry: "never", disposition: "keep" },
  OutOfRange: { codes: ["22003"], retry: "never", disposition: "keep" },
  InvalidInput: { codes: ["22P02"], retry: "never", disposition: "keep" },
  DataException: { codes: ["22"], retry: "never", disposition: "keep" },
  PermissionDenied: { codes: ["42501"], retry: "never", disposition: "keep" },
  UndefinedObject: {
    codes: ["42P01", "42703", "42704", "42883", "42P02", "3F000"],
    retry: "never",
    disposition: "keep"
  },
  DuplicateObject: {
    codes: ["42P07", "42P06", "42P04", "42701", "42710", "42723"],
    retry: "never",
    disposition: "keep"
  },
  SyntaxError: { codes: ["42601"], retry: "never", disposition: "keep" },
  InvalidStatement: { codes: ["42", "54"], retry: "never", disposition: "keep" },
  ObjectState: { codes: ["55"], retry: "never", disposition: "keep" },
  FeatureNotSupported: { codes: ["0A000", "0A"], retry: "never", disposition: "keep" },
  RaisedException: { codes: ["P0"], retry: "never", disposition: "keep" },
  ServerError: { codes: [], retry: "never", disposition: "keep" }
} as const satisfies Readonly<Record<string, Row>>

/** What the client finds itself. */
export const clientReasons = {
  ConnectFailed: { retry: "unsent", disposition: "destroy" },
  ConnectionLost: { retry: "unsent", disposition: "destroy" },
  AcquireTimeout: { retry: "unsent", disposition: "keep" },
  Overloaded: { retry: "unsent", disposition: "keep" },
  PoolClosed: { retry: "never", disposition: "keep" },
  NestedAcquire: { retry: "never", disposition: "keep" },
  TransactionAborted: { retry: "never", disposition: "keep" },
  TransactionRolledBack: { retry: "never", disposition: "keep" },
  CommitOutcomeUnknown: { retry: "unknown", disposition: "destroy" },
  SessionUnavailable: { retry: "never", disposition: "keep" },
  TransactionEnded: { retry: "never", disposition: "keep" },
  InvalidRequest: { retry: "never", disposition: "keep" }
} as const satisfies Readonly<Record<string, Policy>>

/**
 * What may be run again after an error.
 *
 * - `transaction`: the whole outermost transaction; the server guarantees that nothing of it was
 *   kept.
 * - `unsent`: only what had not been sent to the server yet.
 * - `unknown`: nothing, before it is known whether the transaction committed.
 * - `never`: nothing; the same work fails in the same way.
 */
export type Retry = "transaction" | "unsent" | "unknown" | "never"

/**
 * What becomes of the connection that reported an error.
 *
 * - `keep`: it is healthy and goes back to the pool.
 * - `destroy`: it is closed.
 * - `invalidate`: it is closed, and so is every connection that is older than the error.
 */
export type Disposition = "keep" | "destroy" | "invalidate"

/** The two decisions about an error. */
export interface Policy {
  readonly retry: Retry
  readonly disposition: Disposition
}

/**
 * A program's own decisions, the setting `errorPolicy`. It is given each reason with the decisions
 * that hold otherwise, and says what is to hold instead; what it leaves out, or `undefined`,
 * changes nothing. It must be a pure function of the reason, and is asked more than once.
 *
 * `retry: "transaction"` lets `Transaction.run` with `retry` run the body again, after ROLLBACK or
 * after the connection was lost before COMMIT: nothing was kept then. Two things it cannot change:
 * a commit whose outcome is unknown stays `unknown` and is never run again, and a connection that
 * is lost, out of step with the protocol, or was ended by the server (FATAL, PANIC) is never kept.
 */
export type ErrorPolicy = (reason: Reason, standard: Policy) => Partial<Policy> | undefined

/**
 * When an open connection was lost: before anything was sent that failed so (`acquire`), after a
 * statement was sent, or after COMMIT was. One that was lost before it was open is a
 * `ConnectFailed`, of the phase `dial`.
 */
export type Phase = "acquire" | "sent" | "commit"

/**
 * The fields of PostgreSQL's ErrorResponse message (documentation, chapter "Error and Notice
 * Message Fields").
 */
export interface ServerFields {
  /** The SQLSTATE, five characters. */
  readonly code: string
  /** `ERROR`, `FATAL` or `PANIC`, whatever the language of the server's messages. */
  readonly severity: string
  readonly schema: string | undefined
  readonly table: string | undefined
  readonly column: string | undefined
  readonly constraint: string | undefined
  readonly dataType: string | undefined
  /** The function of PostgreSQL's source that reported it: the same in every language. */
  readonly routine: string | undefined
  /**
   * Whether the author of a function wrote the text: RAISE, ASSERT, or a code of a class that
   * PostgreSQL has not.
   */
  readonly isRaised: boolean
  /** What of the server's text may be shown to anybody. */
  readonly shown: Shown
  /**
   * The server's text. It can hold values ("invalid input syntax for type uuid: ..."), so it is
   * redacted.
   */
  readonly serverMessage: Redacted.Redacted
  /** The server's detail, which often holds the values of a row. */
  readonly detail: Redacted.Redacted | undefined
  /** The server's hint. */
  readonly hint: Redacted.Redacted | undefined
}

/**
 * The server's message, detail and hint, each where it can hold no parameter and no row's value, or
 * where the author of a function wrote it to be read ({@link ServerFields.isRaised}, unless the
 * setting `showRaised` is off).
 */
export interface Shown {
  readonly message: string | undefined
  readonly detail: string | undefined
  readonly hint: string | undefined
}

/** Why a connection could not be opened. */
export type ConnectProblem =
  | "host not found"
  | "refused"
  | "unreachable"
  | "timeout"
  | "closed by the server"
  | "TLS not offered by the server"
  | "TLS refused"
  | "not a PostgreSQL server"
  | "a pooler refuses the limits"
  | "no password given"
  | "no channel binding"
  | "the login was not completed"
  | "no usable answer"

interface ServerReason<Tag extends string> extends ServerFields {
  readonly _tag: Tag
}

/** How many connections a pool had, and what they did, at the moment of an error. */
export interface PoolState {
  readonly total: number
  readonly idle: number
  readonly busy: number
  /** Callers that wait for a connection. */
  readonly waiting: number
  readonly max: number
}

/** Who has had a connection for longest. */
export interface Holder {
  /** The span that took the connection, with those around it. */
  readonly span: string
  readonly heldMillis: number
}

/** What the server can answer: a row of the table {@link serverReasons}. */
export type ServerTag = keyof typeof serverReasons

/** Why something failed. The tags are stable; match on them. */
export type Reason =
  | { [Tag in ServerTag]: ServerReason<Tag> }[ServerTag]
  /** No connection could be opened. `target` is host and port, never a user or a password. */
  | {
      readonly _tag: "ConnectFailed"
      readonly phase: "dial"
      readonly problem: ConnectProblem
      readonly target: string
      /** The operating system's or TLS library's code, such as `ECONNREFUSED`. */
      readonly systemCode: string | undefined
    }
  /** An open connection was lost. */
  | { readonly _tag: "ConnectionLost"; readonly phase: Phase; readonly systemCode: string | undefined }
  /** No connection became free within the acquire timeout (milliseconds). */
  | {
      readonly _tag: "AcquireTimeout"
      readonly timeoutMillis: number
      readonly pool: PoolState
      readonly oldestHolder: Holder | undefined
    }
  /** The waiting queue of the pool is full. */
  | { readonly _tag: "Overloaded"; readonly pool: PoolState; readonly oldestHolder: Holder | undefined }
  /** The pool was closed. */
  | { readonly _tag: "PoolClosed" }
  /**
   * A caller waited for a second connection while it held one, and so did whoever held the others.
   */
  | { readonly _tag: "NestedAcquire"; readonly holders: ReadonlyArray<string>; readonly pool: PoolState }
  /** A statement was sent in a transaction that an earlier error had aborted (25P02). */
  | { readonly _tag: "TransactionAborted"; readonly first: Reason | undefined }
  /**
   * The body succeeded, but the server answered COMMIT with ROLLBACK because a statement had
   * failed.
   */
  | { readonly _tag: "TransactionRolledBack"; readonly first: Reason | undefined }
  /**
   * The connection was lost after COMMIT was sent; `transactionId` is the server's id of it, if it
   * had one.
   */
  | {
      readonly _tag: "CommitOutcomeUnknown"
      readonly transactionId: string | undefined
      readonly systemCode: string | undefined
    }
  /**
   * A session was asked for behind a transaction pooler, and no `directUrl` says how to get past
   * it.
   */
  | { readonly _tag: "SessionUnavailable" }
  /** A connection or a transaction was used after its end. */
  | { readonly _tag: "TransactionEnded" }
  /**
   * The client cannot express the statement, which was never sent (a NUL byte, too many
   * parameters), or cannot deliver what it answers.
   */
  | { readonly _tag: "InvalidRequest"; readonly problem: string }

/** The tag of a {@link Reason}. */
export type ReasonTag = Reason["_tag"]
