/** Reads what the server answers into a reason. */
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { type Reason, type ServerFields, serverReasons, type ServerTag, type Shown } from "./reasons.js"

/**
 * Reads PostgreSQL's ErrorResponse, as `pg` gives it, into a {@link Reason}. `statement` is the
 * text that it answers, if that is known. `isOverdue` says that it had run for as long as its
 * `statement_timeout` allows: a timeout and a request to cancel come from one routine with one code
 * (ProcessInterrupts, postgres.c), and no field tells them apart. Whoever did not measure the
 * statement, or does not know its limit, leaves it out.
 */
export const classify = (error: ServerErrorLike, statement?: string, isOverdue?: boolean): Reason => {
  const tag = tagOf.get(error.code) ?? tagOf.get(error.code.slice(0, 2)) ?? "ServerError"
  const text = error.message ?? ""
  const isRaised = raises(error)
  const fields: ServerFields & { readonly _tag: ServerTag } = {
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
 * Whether a prepared statement's result has changed with its tables (RevalidateCachedQuery in
 * plancache.c, 13 to 18).
 */
export const isChangedResult = ({ code, routine }: ServerErrorLike): boolean =>
  code === "0A000" && routine === "RevalidateCachedQuery"

/** Nothing of a text. */
export const nothing: Shown = { message: undefined, detail: undefined, hint: undefined }

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** By SQLSTATE, and by class. */
const tagOf = new Map<string, ServerTag>(
  Object.entries(serverReasons).flatMap(([tag, { codes }]) =>
    codes.map((code) => [code, tag as ServerTag] as const)
  )
)

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
 * The routines of a standby (13 to 18) that end a statement or a session which is in the way of
 * replay.
 */
const recoveryRoutines: ReadonlySet<string | undefined> = new Set([
  "ProcessInterrupts",
  "ProcessRecoveryConflictInterrupt",
  "ProcessRecoveryConflictInterrupts",
  "CheckRecoveryConflictDeadlock"
])
