/**
 * Foreign keys of a live PostgreSQL database (13 to 18): list them, check that they do what they
 * say, and change their ON DELETE action while applications go on reading and writing.
 *
 * PostgreSQL has no statement for that. {@link rebuild} adds a second key with the new action
 * beside the original, lets it check the existing rows without stopping anybody, exchanges the two
 * in a transaction of milliseconds, and proves before it commits that the new one equals the
 * original in everything but the action. It can be killed anywhere and run again.
 *
 * @example
 * ```ts
 * const result = yield* ForeignKey.rebuild({
 *   selectors: { references: [{ schema: "public", table: "user" }] },
 *   onDelete: "cascade"
 * })
 * ```
 */
import * as Effect from "effect/Effect"
import * as Database from "./Database.js"
import type { DatabaseError } from "./DatabaseError.js"
import type { Busy } from "./catalog/advisoryLock.js"
import type { Entry, LedgerUnreadable } from "./foreignKey/ledger/ledger.js"
import { DryRunListener } from "./foreignKey/dryRunListener.js"
import type { RebuildResult } from "./foreignKey/result.js"
import * as Run from "./foreignKey/run.js"
import * as Script from "./foreignKey/plan/script.js"
import type { NoMatch } from "./foreignKey/plan/selection.js"
import type { Selectors } from "./catalog/selectors.js"
import type { Open } from "./foreignKey/apply/sessions.js"

export type { Action } from "./catalog/action.js"
export { all as actions } from "./catalog/action.js"
export type { Blocker } from "./catalog/lockHolders.js"
export { describe as describeBlocker } from "./catalog/lockHolders.js"
export { Busy } from "./catalog/advisoryLock.js"
export {
  defaultTable as defaultLedger,
  LedgerUnreadable,
  type Entry as RecordedChange
} from "./foreignKey/ledger/ledger.js"
export { NoMatch } from "./foreignKey/plan/selection.js"
export type {
  CheckedKey,
  Effort,
  ForeignKeyInfo,
  HistoryOptions,
  PlanOptions,
  PlannedStep,
  PlanResult,
  Progress,
  RebuildOptions,
  UndoOptions
} from "./foreignKey/types.js"
export { combine as combineResults, type RebuildResult, type Rejected } from "./foreignKey/result.js"
export type { Warned } from "./foreignKey/hazards/warning.js"
export {
  constraint as parseConstraint,
  name as parseName,
  table as parseTable,
  type ConstraintSelector,
  type Selectors,
  type TableSelector
} from "./catalog/selectors.js"
import type * as Types from "./foreignKey/types.js"
export { label } from "./sql/identifiers.js"
export type { Target } from "./foreignKey/snapshot/target.js"

/**
 * Lists foreign keys, all of them or those that the selectors match, with what is wrong with them.
 * Fails with {@link NoMatch} if selectors were given and match nothing. Locks nothing.
 */
export const list = (
  selectors: Selectors = {}
): Effect.Effect<ReadonlyArray<Types.ForeignKeyInfo>, DatabaseError | NoMatch, Database.Database> =>
  withSessions((open) => Run.list(open, selectors))

/**
 * Keys that do not do what their definition says: triggers that are missing, disabled or carry out
 * another action, keys that were never validated, changes that were interrupted. NOT ENFORCED keys
 * are in the list too, with a note and no problem: they do what they say, which is nothing. An
 * empty list is good news. Fails with {@link NoMatch} if selectors were given and match nothing.
 * Locks nothing.
 */
export const check = (
  selectors: Selectors = {}
): Effect.Effect<ReadonlyArray<Types.CheckedKey>, DatabaseError | NoMatch, Database.Database> =>
  withSessions((open) => Run.check(open, selectors))

/**
 * A plan as a script for psql, to be run by hand: the same statements and limits as {@link rebuild}
 * uses, with the locks of each step beside them, what to do when a step fails, and as comments what
 * is refused and warned of. Left out are the steps for tables that are too busy for the swap.
 */
export const planScript: (plan: Types.PlanResult) => string = Script.render

/**
 * What {@link rebuild} would do: the statements and locks of every step, and what it would refuse.
 * Takes no lock above ACCESS SHARE. Fails with {@link NoMatch} if selectors were given and match
 * nothing.
 */
export const plan = (
  options: Types.PlanOptions
): Effect.Effect<Types.PlanResult, DatabaseError | NoMatch, Database.Database> =>
  withSessions((open) => Run.plan(open, options))

/**
 * Changes the ON DELETE action of foreign keys, one after the other. A key that is refused or fails
 * does not stop the others: it is in the result with its reason, and its original still protects
 * the data. What a run that is interrupted has done is in its `Finished` events ({@link
 * combineResults}). Fails with {@link NoMatch} if selectors were given and match nothing, and with
 * {@link Busy} if another process changes foreign keys of this database. Needs three connections
 * over `directUrl`. What is changed is recorded first, in a table, for {@link undo}.
 */
export const rebuild = (
  options: Types.RebuildOptions
): Effect.Effect<RebuildResult, DatabaseError | NoMatch | Busy, Database.Database> =>
  Effect.flatMap(DryRunListener, (tell) =>
    Effect.zipRight(
      tell(plan(options)),
      withSessions((open) => Run.rebuild(open, options))
    )
  )

/**
 * Gives foreign keys the action (and the columns of SET NULL and SET DEFAULT) that they had before
 * their last change that the ledger has, finished or interrupted, in the same way and with the same
 * result as {@link rebuild}. Run again, it changes nothing: an undo is recorded too, and is no
 * change to take back. `changes` names others, among them undos. A key of which no change is
 * recorded is left as it is.
 */
export const undo = (
  options: Types.UndoOptions
): Effect.Effect<RebuildResult, DatabaseError | NoMatch | Busy, Database.Database> =>
  withSessions((open) => Run.undo(open, options))

/**
 * The changes that are recorded, the oldest first; none if there is no ledger. Locks it ACCESS
 * SHARE. Fails with {@link LedgerUnreadable} if the role may not read it, or the table is something
 * else.
 */
export const history = (
  options: Types.HistoryOptions = {}
): Effect.Effect<ReadonlyArray<Entry>, DatabaseError | LedgerUnreadable, Database.Database> =>
  withSessions((open) => Run.history(open, options))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const withSessions = <A, E>(
  use: (open: Open) => Effect.Effect<A, E>
): Effect.Effect<A, E, Database.Database> =>
  Effect.flatMap(Database.Database, (database) => use(database.session))
