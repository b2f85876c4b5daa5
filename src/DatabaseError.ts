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
import * as Runtime from "effect/Runtime"
import { classify, isServerError, nothing } from "./errors/classify.js"
import { policy } from "./errors/policy.js"
import type { Disposition, Policy, Reason, ReasonTag, Retry, Shown } from "./errors/reasons.js"
import { describe } from "./errors/wording.js"

export type {
  ConnectProblem,
  Disposition,
  ErrorPolicy,
  Holder,
  Phase,
  Policy,
  PoolState,
  Reason,
  ReasonTag,
  Retry,
  ServerFields,
  ServerTag,
  Shown
} from "./errors/reasons.js"

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
