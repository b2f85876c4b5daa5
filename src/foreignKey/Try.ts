/** The statements of one try at a step: the engine runs them, a plan shows them, and a script has them for psql. */
import type { Relation } from "./Catalog.js"
import type { Step } from "./Change.js"
import * as Lock from "./Lock.js"
import { block } from "./Sql.js"

/** How a try asks for the locks of a step. */
export type Way = "as-listed" | "reversed" | "spin"

/** Limits of one try, in milliseconds. */
export interface Limits {
  /** For the sum of the waits for locks that readers or writers notice (rule R2). */
  readonly wait: number
  /** For each statement after that. */
  readonly work: number
}

/** A try in two parts: nobody who reads or writes notices the first, and waits for the second. */
export interface Parts {
  readonly prelude: ReadonlyArray<string>
  readonly body: ReadonlyArray<string>
}

/** The tables of a step that LOCK TABLE can lock: a step that changes indexes gets its locks from its one statement. */
export const tablesOf = ({ locks }: Step): ReadonlyArray<Relation> =>
  locks.map(({ table }) => table).filter(Lock.isLockable)

/** The longest of several waits for one lock, and of all of them, while a try asks for what nobody notices; autovacuum gives way after deadlock_timeout. */
const unnoticed = ["SET LOCAL lock_timeout = '1500ms'", "SET LOCAL statement_timeout = '4s'"]

const begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

/** A try in one transaction. Autovacuum is moved aside first (rule R4). */
export const transaction = (step: Step, way: Way, { wait, work }: Limits): Parts => {
  const tables = tablesOf(step)
  return {
    prelude: [
      begin,
      ...unnoticed,
      ...(tables.length === 0 ? [] : [Lock.statement(tables, "SHARE UPDATE EXCLUSIVE")]),
      `SET LOCAL statement_timeout = '${wait}ms'`
    ],
    body: [
      // A step that changes indexes gets its locks from its one statement, for which no work is left then.
      ...(tables.length === 0
        ? []
        : [...lockStatements(step, tables, way), `SET LOCAL statement_timeout = '${work}ms'`]),
      ...step.statements,
      "COMMIT"
    ]
  }
}

/** A try whose locks no reader or writer notices, also not while it waits for them, and that may take hours. */
export const besideWrites = (step: Step): ReadonlyArray<string> => [
  begin,
  "SET LOCAL lock_timeout = '2s'",
  "SET LOCAL statement_timeout = 0",
  ...step.statements,
  "COMMIT"
]

/** What a session sets before statements that cannot be in a transaction and wait for others as long as those take, and after them. */
export const outsideTransaction = {
  before: ["SET statement_timeout = 0", "SET lock_timeout = 0"],
  after: ["SET statement_timeout = '30s'", "SET lock_timeout = '5s'"]
} as const

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const lockStatements = (
  { locks }: Step,
  tables: ReadonlyArray<Relation>,
  way: Way
): ReadonlyArray<string> => {
  if (way === "spin") {
    const exclusive = locks.filter(({ mode }) => mode === "ACCESS EXCLUSIVE").map(({ table }) => table)
    return [
      Lock.statement(tables, "SHARE ROW EXCLUSIVE"),
      spin(Lock.statement(exclusive, "ACCESS EXCLUSIVE", true))
    ]
  }
  const statements = Lock.statements(way === "reversed" ? locks.toReversed() : locks)
  // One statement, because the cap holds for the sum of the waits and statement_timeout for each statement.
  return statements.length === 1 ? statements : [block(`BEGIN ${statements.join("; ")}; END`)]
}

/** Asks again and again without ever queueing, for 40 ms: an upgrade that waits would make an application the victim at once (rule R1). */
const spin = (lock: string) =>
  block(`DECLARE
  deadline timestamptz := clock_timestamp() + interval '40 milliseconds';
BEGIN
  LOOP
    BEGIN
      ${lock};
      RETURN;
    EXCEPTION WHEN lock_not_available THEN
      IF clock_timestamp() > deadline THEN RAISE; END IF;
    END;
    PERFORM pg_catalog.pg_sleep(0.0005);
  END LOOP;
END`)
