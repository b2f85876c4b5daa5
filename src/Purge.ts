/**
 * Deletes a row and everything that its delete would cascade to, in small transactions (PostgreSQL
 * 13 to 18).
 *
 * A single DELETE of a row with millions of rows below it is one transaction: it keeps every one of
 * them locked and every event in memory until it commits. {@link run} deletes the same rows from
 * the bottom up, a batch at a time, and the row itself at the end. It can be killed at any time and
 * run again: its state is what is left. The keys of the database protect the data throughout.
 *
 * What differs from the single DELETE: others see the rows disappear gradually; statements run as
 * the current role instead of the tables' owners; and rows that refer to each other by RESTRICT or
 * NO ACTION and all go do not make it fail, in whichever order triggers fire. Rows that refer to
 * each other in a circle go in one transaction, however many they are, and so do ON DELETE SET
 * DEFAULT's updates of one row.
 *
 * @example
 * ```ts
 * const result = yield* Purge.run({
 *   from: { schema: "public", table: "class" },
 *   where: [{ column: "id", value: "42" }]
 * })
 * ```
 */
import * as Effect from "effect/Effect"
import * as Database from "./Database.js"
import type { DatabaseError } from "./DatabaseError.js"
import * as Internal from "./purge/purge.js"

export {
  Blocked,
  Refused,
  Stuck,
  UnknownTarget,
  type Options,
  type Plan,
  type Progress,
  type Refusal,
  type Result,
  type Target
} from "./purge/purge.js"

/**
 * Counts what a single DELETE would delete and change, and says what would be refused. One read of
 * the rows concerned, which can take long and locks their tables ACCESS SHARE; nothing is written.
 */
export const plan = (
  target: Internal.Target
): Effect.Effect<Internal.Plan, DatabaseError | Internal.UnknownTarget, Database.Database> =>
  Effect.flatMap(Database.Database, ({ session }) => Internal.plan(session, target))

/**
 * Deletes the row and what hangs below it. Fails with {@link Internal.Refused} before anything is
 * deleted if the single DELETE would fail or the role may not; with {@link Internal.Blocked} if
 * rows that forbid it appear meanwhile; with {@link Internal.Stuck} if a trigger keeps rows.
 * Nothing is deleted if the row is gone.
 */
export const run = (
  options: Internal.Options
): Effect.Effect<
  Internal.Result,
  DatabaseError | Internal.UnknownTarget | Internal.Refused | Internal.Blocked | Internal.Stuck,
  Database.Database
> => Effect.flatMap(Database.Database, ({ session }) => Internal.run(session, options))
