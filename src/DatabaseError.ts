/**
 * What went wrong, as data. Every failure of this library is a {@link DatabaseError}: an `SqlError`
 * (so that `catchTag("SqlError")` and every library written on `@effect/sql` see it) that also
 * carries a {@link Reason}.
 *
 * A reason answers two separate questions: what may be retried ({@link Retry}) and what becomes of
 * the connection ({@link Fate}). Codes are those of PostgreSQL's appendix "PostgreSQL Error Codes"
 * (13 to 18).
 *
 * No message holds a parameter, a row's values or a password, unless a function of the database put
 * it into what it RAISEs. What the server said in full is kept redacted in {@link ServerFields},
 * for the caller who asks for it by name.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

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

/** What the server can answer, by the name that {@link classify} gives it. */
export type ServerTag =
  | "SerializationFailure"
  | "ReplicaConflict"
  | "DeadlockDetected"
  | "LockTimeout"
  | "StatementTimeout"
  | "StatementCancelled"
  | "IdleInTransactionTimeout"
  | "TransactionTimeout"
  | "IdleSessionTimeout"
  | "ServerShutdown"
  | "ServerCrash"
  | "ServerStarting"
  | "DatabaseUnavailable"
  | "TooManyConnections"
  | "ServerResources"
  | "ServerSystemError"
  | "AuthenticationFailed"
  | "ReadOnlyTransaction"
  | "InvalidTransactionState"
  | "StalePreparedStatement"
  | "ProtocolViolation"
  | "ServerConnectionException"
  | "UniqueViolation"
  | "ForeignKeyViolation"
  | "NotNullViolation"
  | "CheckViolation"
  | "ExclusionViolation"
  | "IntegrityViolation"
  | "ValueTooLong"
  | "OutOfRange"
  | "InvalidInput"
  | "DataException"
  | "PermissionDenied"
  | "UndefinedObject"
  | "DuplicateObject"
  | "SyntaxError"
  | "InvalidStatement"
  | "ObjectState"
  | "FeatureNotSupported"
  | "RaisedException"
  | "ServerError"

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

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/** An `SqlError` that says why. Its `_tag` is `SqlError`; `reason._tag` names the reason. */
export class DatabaseError extends SqlError {
  readonly reason: Reason
  override readonly cause: DatabaseErrorCause
  readonly #policy: Policy | undefined
  constructor(props: {
    readonly reason: Reason
    /** Where it happened, such as `execute`, `commit`, `connect`. */
    readonly operation: string
    readonly cause?: unknown
    /** The decisions, where they are not the standard ones of the reason. */
    readonly policy?: Policy | undefined
  }) {
    super({ message: `${props.operation}: ${describe(props.reason)}` })
    this.reason = props.reason
    this.#policy = props.policy
    this.cause = new DatabaseErrorCause(this, props.cause)
  }

  /** What may be retried after this error. */
  get retry(): Retry {
    return (this.#policy ?? policy(this.reason)).retry
  }

  /** What becomes of the connection after this error. */
  get disposition(): Disposition {
    return (this.#policy ?? policy(this.reason)).disposition
  }

  static is(error: unknown): error is DatabaseError {
    return error instanceof DatabaseError
  }
}

/**
 * The `cause` of a {@link DatabaseError}, for programs and libraries that look there for what `pg`
 * reports: the fields of the server's error that can hold no value, or the operating system's
 * `code`. Libraries throw it without the error that it belongs to: {@link reasonOf} finds the
 * reason all the same. It has no stack of its own.
 */
export class DatabaseErrorCause extends Error {
  declare readonly code?: string
  declare readonly severity?: string
  declare readonly schema?: string
  declare readonly table?: string
  declare readonly column?: string
  declare readonly constraint?: string
  declare readonly dataType?: string
  declare readonly routine?: string
  readonly #error: DatabaseError

  constructor(error: DatabaseError, behind: unknown) {
    const { reason } = error
    const inner = DatabaseError.is(behind) ? (behind.reason === reason ? undefined : behind.cause) : behind
    super(
      ("shown" in reason ? reason.shown.message : undefined) ?? describe(reason),
      inner === undefined ? undefined : { cause: inner }
    )
    this.stack = `${this.name}: ${this.message}`
    this.#error = error
    for (const [name, value] of Object.entries(fieldsOf(reason))) {
      if (value !== undefined) {
        Object.defineProperty(this, name, { value, enumerable: true, configurable: true, writable: true })
      }
    }
  }

  /** The error that a value is the cause of. */
  static errorOf(value: object): DatabaseError | undefined {
    return #error in value ? value.#error : undefined
  }
}

// On the prototype, as with every built-in error: an own property would be printed with the fields.
Object.defineProperty(DatabaseErrorCause.prototype, "name", { value: "DatabaseErrorCause" })

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/**
 * The reason of any error: its own if it is a {@link DatabaseError} or wraps one, or else read from
 * the fields of another client's error. It is looked for in a `Cause`, an `Exit`, what
 * `Effect.runPromise` rejects with, `cause` at any depth, and the `errors` of an `AggregateError`.
 * Where there are several, the nearest counts.
 */
export const reasonOf = (error: unknown): Reason | undefined => {
  const found = find(error)
  return DatabaseError.is(found) ? found.reason : found
}

/**
 * What of the server's message, detail and hint may be shown to anybody; an error that follows from
 * another one has those of that one.
 */
export const shownOf = (error: unknown): Shown => {
  let reason = reasonOf(error)
  while (reason !== undefined && "first" in reason) reason = reason.first
  return reason !== undefined && "shown" in reason ? reason.shown : nothing
}

/**
 * Reads PostgreSQL's ErrorResponse, as `pg` gives it, into a {@link Reason}. `statement` is the
 * text that it answers, if that is known. `isOverdue` says that it had run for as long as its
 * `statement_timeout` allows: a timeout and a request to cancel come from one routine with one code
 * (ProcessInterrupts, postgres.c), and no field tells them apart. Whoever did not measure the
 * statement, or does not know its limit, leaves it out.
 */
export const classify = (error: ServerErrorLike, statement?: string, isOverdue?: boolean): Reason => {
  const tag = byCode.get(error.code) ?? byClass.get(error.code.slice(0, 2)) ?? "ServerError"
  const text = error.message ?? ""
  const isRaised = raises(error)
  const fields: ServerReason<ServerTag> = {
    _tag: refine(tag, error, isOverdue),
    code: error.code,
    severity: error.severity ?? "ERROR",
    schema: error.schema,
    table: error.table,
    column: error.column,
    constraint: error.constraint,
    dataType: error.dataType,
    routine: error.routine,
    isRaised,
    shown: isRaised ? wholly(error) : visible(error, statement),
    serverMessage: Redacted.make(text),
    detail: error.detail === undefined ? undefined : Redacted.make(error.detail),
    hint: error.hint === undefined ? undefined : Redacted.make(error.hint)
  }
  return fields as Reason
}

/** The same reason without what a function's author wrote, for a program that shows none of it. */
export const withoutRaised = (reason: Reason): Reason =>
  "isRaised" in reason && reason.isRaised ? { ...reason, shown: nothing } : reason

/** The fields of an ErrorResponse that {@link classify} reads. */
export interface ServerErrorLike {
  readonly code: string
  readonly message?: string | undefined
  readonly severity?: string | undefined
  readonly schema?: string | undefined
  readonly table?: string | undefined
  readonly column?: string | undefined
  readonly constraint?: string | undefined
  readonly dataType?: string | undefined
  readonly detail?: string | undefined
  readonly hint?: string | undefined
  readonly position?: string | undefined
  readonly routine?: string | undefined
}

/** Whether a value is an ErrorResponse of PostgreSQL: it has a SQLSTATE and a severity. */
export const isServerError = (error: unknown): error is ServerErrorLike =>
  Predicate.isObject(error) &&
  "code" in error &&
  typeof error.code === "string" &&
  /^[0-9A-Z]{5}$/.test(error.code) &&
  "severity" in error

/**
 * What may be retried and what becomes of the connection, where no {@link ErrorPolicy} says
 * otherwise.
 */
export const policy = (reason: Reason): Policy => {
  const base = policies[reason._tag]
  return {
    retry: retryOf(reason, base.retry),
    disposition: isFatal(reason) && base.disposition === "keep" ? "destroy" : base.disposition
  }
}

const retryOf = (reason: Reason, base: Retry): Retry => {
  const lostInTransit = reason._tag === "ConnectionLost" && reason.phase === "commit"
  if (lostInTransit || isCompletionUnknown(reason)) return "unknown"
  // Another try may mend what follows from an error if it may mend that one.
  const first = "first" in reason ? reason.first : undefined
  return first !== undefined && policy(first).retry === "transaction" ? "transaction" : base
}

// -----------------------------------------------------------------------------
// combinators
// -----------------------------------------------------------------------------

type ReasonOf<Tag extends ReasonTag> = Extract<Reason, { readonly _tag: Tag }>

/**
 * Handles the errors of one reason, also those of another client's `SqlError` and those that
 * another library has wrapped; every other error passes. An error with a `_tag` of the program's
 * own passes, too: whoever made it has decided what the database's error means.
 */
export const catchReason: {
  <const Tag extends ReasonTag, A2, E2, R2>(
    tag: Tag,
    handle: (reason: ReasonOf<Tag>, error: DatabaseError) => Effect.Effect<A2, E2, R2>
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A | A2, E | E2, R | R2>
  <A, E, R, const Tag extends ReasonTag, A2, E2, R2>(
    self: Effect.Effect<A, E, R>,
    tag: Tag,
    handle: (reason: ReasonOf<Tag>, error: DatabaseError) => Effect.Effect<A2, E2, R2>
  ): Effect.Effect<A | A2, E | E2, R | R2>
} = dual(
  3,
  <A, E, R, const Tag extends ReasonTag, A2, E2, R2>(
    self: Effect.Effect<A, E, R>,
    tag: Tag,
    handle: (reason: ReasonOf<Tag>, error: DatabaseError) => Effect.Effect<A2, E2, R2>
  ): Effect.Effect<A | A2, E | E2, R | R2> => catchWhere(self, tag, () => true, handle)
)

const catchWhere = <A, E, R, const Tag extends ReasonTag, A2, E2, R2>(
  self: Effect.Effect<A, E, R>,
  tag: Tag,
  isMeant: (reason: ReasonOf<Tag>) => boolean,
  handle: (reason: ReasonOf<Tag>, error: DatabaseError) => Effect.Effect<A2, E2, R2>
): Effect.Effect<A | A2, E | E2, R | R2> =>
  Effect.catchAll(self, (error): Effect.Effect<A2, E | E2, R2> => {
    const found = isDecided(error) ? undefined : find(error)
    const reason = DatabaseError.is(found) ? found.reason : found
    return reason?._tag === tag && isMeant(reason as ReasonOf<Tag>)
      ? handle(
          reason as ReasonOf<Tag>,
          DatabaseError.is(found) ? found : new DatabaseError({ reason, operation: "execute", cause: error })
        )
      : Effect.fail(error)
  })

/**
 * Whether an error is one of the program's own. Effect's and `@effect/sql`'s wrap what others
 * threw.
 */
const isDecided = (error: unknown): boolean =>
  Predicate.hasProperty(error, "_tag") &&
  error._tag !== "SqlError" &&
  error._tag !== "UnknownException" &&
  typeof error._tag === "string"

type ConstraintTag =
  | "UniqueViolation"
  | "ForeignKeyViolation"
  | "CheckViolation"
  | "NotNullViolation"
  | "ExclusionViolation"

interface CatchConstraint<Tag extends ConstraintTag> {
  <E2>(
    name: string,
    toError: (reason: ReasonOf<Tag>) => E2
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | E2, R>
  <A, E, R, E2>(
    self: Effect.Effect<A, E, R>,
    name: string,
    toError: (reason: ReasonOf<Tag>) => E2
  ): Effect.Effect<A, E | E2, R>
}

const catchConstraint = <Tag extends ConstraintTag>(
  tag: Tag,
  nameOf: (reason: ReasonOf<Tag>) => string | undefined
): CatchConstraint<Tag> =>
  dual(
    3,
    <A, E, R, E2>(
      self: Effect.Effect<A, E, R>,
      name: string,
      toError: (reason: ReasonOf<Tag>) => E2
    ): Effect.Effect<A, E | E2, R> =>
      catchWhere(
        self,
        tag,
        (reason) => nameOf(reason) === name,
        (reason) => Effect.fail(toError(reason))
      )
  )

/**
 * Turns the violation of the unique constraint or index with exactly this name into an error of
 * your own.
 */
export const catchUniqueViolation = catchConstraint("UniqueViolation", (reason) => reason.constraint)

/**
 * Turns the violation (23503, or 23001 from RESTRICT on 18) of the foreign key with exactly this
 * name into an error.
 */
export const catchForeignKeyViolation = catchConstraint("ForeignKeyViolation", (reason) => reason.constraint)

/** Turns the violation of the check constraint with exactly this name into an error of your own. */
export const catchCheckViolation = catchConstraint("CheckViolation", (reason) => reason.constraint)

/**
 * Turns the violation of the exclusion constraint with exactly this name into an error of your own.
 */
export const catchExclusionViolation = catchConstraint("ExclusionViolation", (reason) => reason.constraint)

/**
 * Turns a null in the column with exactly this name into an error of your own (PostgreSQL names the
 * column only).
 */
export const catchNotNullViolation = catchConstraint("NotNullViolation", (reason) => reason.column)

// -----------------------------------------------------------------------------
// the tables
// -----------------------------------------------------------------------------

const byCode = new Map<string, ServerTag>([
  ["40001", "SerializationFailure"],
  ["40000", "SerializationFailure"],
  ["OC000", "SerializationFailure"],
  ["OC001", "SerializationFailure"],
  ["40P01", "DeadlockDetected"],
  ["40002", "IntegrityViolation"],
  ["40003", "ServerConnectionException"],
  ["55P03", "LockTimeout"],
  ["57014", "StatementCancelled"],
  ["25P03", "IdleInTransactionTimeout"],
  ["25P04", "TransactionTimeout"],
  ["57P05", "IdleSessionTimeout"],
  ["57P01", "ServerShutdown"],
  ["57P02", "ServerCrash"],
  ["57P03", "ServerStarting"],
  ["57P04", "DatabaseUnavailable"],
  ["3D000", "DatabaseUnavailable"],
  ["53300", "TooManyConnections"],
  ["53400", "TooManyConnections"],
  ["25006", "ReadOnlyTransaction"],
  ["26000", "StalePreparedStatement"],
  ["42P05", "StalePreparedStatement"],
  ["0A000", "FeatureNotSupported"],
  ["08P01", "ProtocolViolation"],
  ["23505", "UniqueViolation"],
  ["23503", "ForeignKeyViolation"],
  ["23001", "ForeignKeyViolation"],
  ["23502", "NotNullViolation"],
  ["23514", "CheckViolation"],
  ["23P01", "ExclusionViolation"],
  ["22001", "ValueTooLong"],
  ["22003", "OutOfRange"],
  ["22P02", "InvalidInput"],
  ["42501", "PermissionDenied"],
  ["42601", "SyntaxError"],
  ["42P01", "UndefinedObject"],
  ["42703", "UndefinedObject"],
  ["42704", "UndefinedObject"],
  ["42883", "UndefinedObject"],
  ["42P02", "UndefinedObject"],
  ["3F000", "UndefinedObject"],
  ["42P07", "DuplicateObject"],
  ["42P06", "DuplicateObject"],
  ["42P04", "DuplicateObject"],
  ["42701", "DuplicateObject"],
  ["42710", "DuplicateObject"],
  ["42723", "DuplicateObject"]
])

const byClass = new Map<string, ServerTag>([
  ["08", "ServerConnectionException"],
  ["0A", "FeatureNotSupported"],
  ["22", "DataException"],
  ["23", "IntegrityViolation"],
  ["25", "InvalidTransactionState"],
  ["2D", "InvalidTransactionState"],
  ["3B", "InvalidTransactionState"],
  ["28", "AuthenticationFailed"],
  ["40", "SerializationFailure"],
  ["42", "InvalidStatement"],
  ["44", "CheckViolation"],
  ["53", "ServerResources"],
  ["54", "InvalidStatement"],
  ["55", "ObjectState"],
  ["57", "ServerShutdown"],
  ["58", "ServerSystemError"],
  ["F0", "ServerSystemError"],
  ["P0", "RaisedException"]
])

const policies: { readonly [Tag in ReasonTag]: Policy } = {
  SerializationFailure: { retry: "transaction", disposition: "keep" },
  ReplicaConflict: { retry: "transaction", disposition: "keep" },
  DeadlockDetected: { retry: "transaction", disposition: "keep" },
  LockTimeout: { retry: "never", disposition: "keep" },
  StatementTimeout: { retry: "never", disposition: "keep" },
  StatementCancelled: { retry: "never", disposition: "keep" },
  IdleInTransactionTimeout: { retry: "never", disposition: "destroy" },
  TransactionTimeout: { retry: "never", disposition: "destroy" },
  IdleSessionTimeout: { retry: "unsent", disposition: "destroy" },
  ServerShutdown: { retry: "unsent", disposition: "invalidate" },
  ServerCrash: { retry: "unsent", disposition: "invalidate" },
  ServerStarting: { retry: "unsent", disposition: "destroy" },
  DatabaseUnavailable: { retry: "never", disposition: "invalidate" },
  TooManyConnections: { retry: "unsent", disposition: "destroy" },
  ServerResources: { retry: "never", disposition: "invalidate" },
  ServerSystemError: { retry: "never", disposition: "invalidate" },
  AuthenticationFailed: { retry: "never", disposition: "destroy" },
  ReadOnlyTransaction: { retry: "transaction", disposition: "invalidate" },
  InvalidTransactionState: { retry: "never", disposition: "keep" },
  StalePreparedStatement: { retry: "transaction", disposition: "keep" },
  ProtocolViolation: { retry: "never", disposition: "destroy" },
  ServerConnectionException: { retry: "unsent", disposition: "destroy" },
  UniqueViolation: { retry: "never", disposition: "keep" },
  ForeignKeyViolation: { retry: "never", disposition: "keep" },
  NotNullViolation: { retry: "never", disposition: "keep" },
  CheckViolation: { retry: "never", disposition: "keep" },
  ExclusionViolation: { retry: "never", disposition: "keep" },
  IntegrityViolation: { retry: "never", disposition: "keep" },
  ValueTooLong: { retry: "never", disposition: "keep" },
  OutOfRange: { retry: "never", disposition: "keep" },
  InvalidInput: { retry: "never", disposition: "keep" },
  DataException: { retry: "never", disposition: "keep" },
  PermissionDenied: { retry: "never", disposition: "keep" },
  UndefinedObject: { retry: "never", disposition: "keep" },
  DuplicateObject: { retry: "never", disposition: "keep" },
  SyntaxError: { retry: "never", disposition: "keep" },
  InvalidStatement: { retry: "never", disposition: "keep" },
  ObjectState: { retry: "never", disposition: "keep" },
  FeatureNotSupported: { retry: "never", disposition: "keep" },
  RaisedException: { retry: "never", disposition: "keep" },
  ServerError: { retry: "never", disposition: "keep" },
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
}

/**
 * What of an error's text can hold no parameter and no row's value, by SQLSTATE or else by its
 * class. `of the statement` is for what a value can cause just as well as the statement's text: a
 * search for to_tsquery, a name for regclass. The texts of every other code can hold values.
 */
const visibility: ReadonlyMap<string, "all" | "message" | "of the statement" | "none"> = new Map([
  ["00", "of the statement"],
  ["01", "of the statement"],
  ["02", "of the statement"],
  ["0A", "of the statement"],
  ["21", "all"],
  ["23001", "message"],
  ["23502", "message"],
  ["23503", "message"],
  ["23505", "message"],
  ["23P01", "message"],
  ["25", "all"],
  ["26000", "all"],
  ["28", "all"],
  ["2B", "of the statement"],
  ["2D", "all"],
  ["3B", "all"],
  ["3D", "all"],
  ["3F", "of the statement"],
  ["40", "all"],
  ["40002", "none"],
  ["40003", "none"],
  ["42", "of the statement"],
  ["42501", "all"],
  ["42P05", "all"],
  ["53", "all"],
  ["54", "of the statement"],
  ["55", "of the statement"],
  ["55P03", "all"],
  ["57", "all"],
  ["OC", "all"],
  ["P0", "message"]
])

/** The routines of the server that report what a function's author wrote, under any code. */
const raisingRoutines: ReadonlySet<string | undefined> = new Set([
  "exec_stmt_raise",
  "exec_stmt_assert",
  "do_util_elog"
])

/**
 * Routines that report what another language has thrown, under any code: what its author wrote, or
 * what a value has caused.
 */
const relayingRoutines: ReadonlySet<string | undefined> = new Set([
  "PLy_elog_impl",
  "PLy_output",
  "pltcl_elog"
])

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The first {@link DatabaseError} on the way inwards, or the reason of another client's error. */
const find = (error: unknown): DatabaseError | Reason | undefined => {
  const seen = new Set<unknown>()
  const waiting: Array<unknown> = [error]
  while (waiting.length > 0) {
    const next = waiting.pop()
    if (!Predicate.isObject(next) || seen.has(next)) continue
    seen.add(next)
    if (DatabaseError.is(next)) return next
    const own = DatabaseErrorCause.errorOf(next)
    if (own !== undefined) return own
    if (isServerError(next)) return classify(next)
    waiting.push(...within(next).toReversed())
  }
  return undefined
}

/** The errors that a value holds, those that it would be reported with first. */
const within = (value: object): ReadonlyArray<unknown> => {
  if (Cause.isCause(value)) return [...Chunk.toReadonlyArray(Cause.failures(value)), ...Cause.defects(value)]
  if (Runtime.isFiberFailure(value)) return [value[Runtime.FiberFailureCauseId]]
  return [
    ...("cause" in value ? [value.cause] : []),
    ...("errors" in value && Array.isArray(value.errors) ? value.errors : [])
  ]
}

/** What a {@link DatabaseErrorCause} has of a reason. */
const fieldsOf = (reason: Reason): Readonly<Record<string, string | undefined>> => {
  if ("shown" in reason) {
    const { code, column, constraint, dataType, routine, schema, severity, table } = reason
    return { code, severity, schema, table, column, constraint, dataType, routine }
  }
  return {
    code:
      reason._tag === "TransactionAborted" ? "25P02" : "systemCode" in reason ? reason.systemCode : undefined
  }
}

const nothing: Shown = { message: undefined, detail: undefined, hint: undefined }

const wholly = ({ detail, hint, message }: ServerErrorLike): Shown => ({ message, detail, hint })

/**
 * Whether a function's author wrote an error's text. The classes that the standard leaves to others
 * are theirs where PostgreSQL has none of that name.
 */
const raises = ({ code, routine }: ServerErrorLike): boolean =>
  raisingRoutines.has(routine) || code === "P0001" || code === "P0004" || ownClass.test(code)

const ownClass = /^(?!5[34578]|72|P0|XX|OC)[5-9I-Z]/

/**
 * What of an error's text can hold no value. One with a position is about the statement's text,
 * which is its author's; one of a definition can be about nothing else.
 */
const visible = (error: ServerErrorLike, statement: string | undefined): Shown => {
  if (relayingRoutines.has(error.routine)) return nothing
  switch (visibility.get(error.code) ?? visibility.get(error.code.slice(0, 2))) {
    case "all":
      return wholly(error)
    case "message":
      return { ...nothing, message: error.message }
    case "of the statement":
      return error.position !== undefined ||
        (statement !== undefined && definition.test(statement) && !computing.test(statement))
        ? wholly(error)
        : nothing
    default:
      return nothing
  }
}

const definition =
  /^(?:\s|--[^\n]*\n)*(?:alter|comment|create|drop|grant|lock|reassign|refresh|reindex|reset|revoke|set|truncate)\b/i

/** A definition that evaluates something, or that another statement follows. */
const computing = /\b(?:as|using|select)\b|;\s*\S/i

/**
 * Where one code stands for several things, the routine tells them apart, which is in no language.
 */
const refine = (tag: ServerTag, error: ServerErrorLike, isOverdue: boolean | undefined): ServerTag => {
  switch (tag) {
    case "StatementCancelled":
      return isOverdue === true ? "StatementTimeout" : tag
    case "FeatureNotSupported":
      return isChangedResult(error) ? "StalePreparedStatement" : tag
    case "SerializationFailure":
    case "DeadlockDetected":
      return recoveryRoutines.has(error.routine) ? "ReplicaConflict" : tag
    default:
      return tag
  }
}

/**
 * Whether a prepared statement's result has changed with its tables (RevalidateCachedQuery in
 * plancache.c, 13 to 18).
 */
export const isChangedResult = ({ code, routine }: ServerErrorLike): boolean =>
  code === "0A000" && routine === "RevalidateCachedQuery"

/**
 * The routines of a standby (13 to 18) that end a statement or a session which is in the way of
 * replay.
 */
const recoveryRoutines: ReadonlySet<string | undefined> = new Set([
  "ProcessInterrupts",
  "ProcessRecoveryConflictInterrupt",
  "ProcessRecoveryConflictInterrupts",
  "CheckRecoveryConflictDeadlock"
])

/** The server itself does not know what became of a statement or a transaction. */
const isCompletionUnknown = (reason: Reason) =>
  reason._tag === "ServerConnectionException" && (reason.code === "40003" || reason.code === "08007")

/** Whether the server ended the session with this error. */
export const isFatal = (reason: Reason): boolean =>
  "severity" in reason && (reason.severity === "FATAL" || reason.severity === "PANIC")

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

/** What a pool's connections do, in words. */
export const describePool = (pool: PoolState): string =>
  `${pool.busy} of ${pool.max} connections busy, ${pool.idle} idle, ${pool.waiting} waiting`

/** What to do about what the server said, where it is the same for everybody. */
const remedies: { readonly [Tag in ReasonTag]?: string } = {
  SerializationFailure: "Run the transaction again: Transaction.run has the option retry.",
  DeadlockDetected: "Run the transaction again: Transaction.run has the option retry.",
  ReplicaConflict: "Run it again, or on the primary.",
  LockTimeout: "Another transaction holds the lock: try later, or raise lockTimeout for this transaction.",
  StatementTimeout: "Make the statement faster, or raise statementTimeout for its transaction.",
  IdleInTransactionTimeout:
    "Do less between the statements of a transaction, or raise idleInTransactionTimeout.",
  TransactionTimeout: "Make the transaction shorter, or raise transaction_timeout on the server.",
  IdleSessionTimeout: "Set idleTimeout below the server's idle_session_timeout.",
  ServerStarting: "Wait until the server has started.",
  TooManyConnections: "Lower maxConnections of the programs that use the server, or raise its limit.",
  AuthenticationFailed: "Check user and password of the url, and the server's pg_hba.conf.",
  ReadOnlyTransaction:
    "Connect to the primary if this is a standby; a transaction that writes cannot be readOnly.",
  StalePreparedStatement: "Run it again; behind a connection pooler set prepare to false."
}

const lossOf: { readonly [When in Phase]: string } = {
  acquire: "nothing was sent, so that it can be run again",
  sent: "whether the server ran the statement is not known, unless it was in a transaction: that is rolled back",
  commit: "the transaction may or may not have been committed"
}

const describeHolder = (holder: Holder | undefined) =>
  holder === undefined ? "" : `, one of them for ${holder.heldMillis} ms by ${holder.span}`

/**
 * One line that says what happened and, where that is the same for everybody, what to do; without
 * any value.
 */
const describe = (reason: Reason): string => {
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
      const remedy = remedies[reason._tag]
      const text = reason.shown.message === undefined ? "" : `: ${reason.shown.message}`
      return `${reason._tag} (${reason.code})${where === "" ? "" : ` at ${where}`}${
        reason.constraint === undefined ? "" : `, constraint ${reason.constraint}`
      }${text}${remedy === undefined ? "" : `. ${remedy}`}`
    }
  }
}
