/**
 * The statements of one try at a step: the engine runs them, a plan shows them, and a script has
 * them for psql.
 */
import * as Duration from "effect/Duration"
import type { Relation } from "../../catalog/foreignKeys.js"
import type { Step } from "../steps/steps.js"
import * as TableLocks from "../../catalog/tableLocks.js"
import { block, literal } from "../../sql/identifiers.js"

/** How a try asks for the locks of a step. */
export type Way = "as-listed" | "reversed" | "spin"

/** Limits of one try, in milliseconds. */
export interface Limits {
  /**
   * For the sum of the waits for locks that readers or writers notice (rule R2): never so long that
   * PostgreSQL looks for a deadlock meanwhile, and may find the victim among the applications.
   */
  readonly wait: number
  /**
   * The longest that others wait because of one try: while it asks for its locks and while it has
   * them. COMMIT alone is not in it.
   */
  readonly limit: number
  /**
   * After which a wait for locks that nobody waits behind ends: longer than the server lets
   * autovacuum stand in the way.
   */
  readonly eviction: number
}

/**
 * The limits of a try that others may have to wait for as long as `lockTimeout` (default 250 ms),
 * on a server with this `deadlock_timeout`, in milliseconds.
 */
export const limits = (lockTimeout: Duration.DurationInput | undefined, deadlockTimeout: number): Limits => {
  const limit = Duration.toMillis(Duration.decode(lockTimeout ?? "250 millis"))
  return {
    // What is left of the limit is for the work, which takes some milliseconds.
    wait: Math.max(1, Math.floor(Math.min(0.8 * limit, 0.6 * deadlockTimeout))),
    limit,
    eviction: deadlockTimeout + 500
  }
}

/** A try in two parts: nobody who reads or writes notices the first, and waits for the second. */
export interface Parts {
  readonly prelude: ReadonlyArray<string>
  readonly body: ReadonlyArray<string>
}

/**
 * The tables of a step that LOCK TABLE can lock: a step that changes indexes gets its locks from
 * its one statement, and tables that the role may not lock are locked by the statements.
 */
export const tablesOf = (step: Step): ReadonlyArray<Relation> => explicit(step).map(({ table }) => table)

/**
 * A try in one transaction. Autovacuum is moved aside first (rule R4), which takes the server's
 * deadlock_timeout once for each table.
 */
export const transaction = (step: Step, way: Way, { eviction, limit, wait }: Limits): Parts => {
  const tables = tablesOf(step)
  return {
    prelude: [
      begin,
      `SET LOCAL lock_timeout = '${eviction}ms'`,
      `SET LOCAL statement_timeout = '${2 * eviction + 1000}ms'`,
      ...(tables.length === 0 ? [] : [TableLocks.statement(tables, "SHARE UPDATE EXCLUSIVE")]),
      ...(step.guards ?? []),
      `SET LOCAL statement_timeout = '${wait}ms'`
    ],
    body: [
      // A step that changes indexes gets its locks from its one statement, for which no work is
      // left then.
      ...(tables.length === 0
        ? step.statements
        : [
            lockStatement(step, tables, way),
            ...step.statements.flatMap((statement) => [
              untilDeadline(limit, isImplicit(step) ? wait : undefined),
              statement
            ])
          ]),
      "COMMIT"
    ]
  }
}

/**
 * A try whose locks no reader or writer notices, also not while it waits for them, and that may
 * take hours.
 */
export const besideWrites = (step: Step, { eviction }: Limits): ReadonlyArray<string> => [
  begin,
  `SET LOCAL lock_timeout = '${eviction + 500}ms'`,
  "SET LOCAL statement_timeout = 0",
  ...step.statements,
  "COMMIT"
]

/**
 * What a session sets before statements that cannot be in a transaction, and after them. They wait
 * for others for `wait` milliseconds, without a limit if that is 0.
 */
export const outsideTransaction = {
  before: (wait: number) => ["SET statement_timeout = 0", `SET lock_timeout = '${wait}ms'`],
  after: ["SET statement_timeout = '30s'", "SET lock_timeout = '5s'"]
} as const

/** Whether statements of a step take locks by themselves, because the role may not LOCK a table. */
export const isImplicit = ({ locks }: Step): boolean => locks.some(({ implicit }) => implicit === true)

/**
 * SQLSTATE of our own: the time to ask for locks is over, or somebody waited for us in a circle.
 */
export const noLocksCode = "FKG03"

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const explicit = ({ locks }: Step) =>
  locks.filter(({ implicit, table }) => implicit !== true && TableLocks.isLockable(table))

const begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

/**
 * Takes all locks of a step in one statement, because the cap holds for the sum of the waits and
 * statement_timeout for each statement. That they are not to be had is an error of its own, to tell
 * it from statements that take too long.
 */
const lockStatement = (step: Step, tables: ReadonlyArray<Relation>, way: Way): string => {
  const locks = explicit(step)
  const exclusive = locks.filter(({ mode }) => mode === "ACCESS EXCLUSIVE").map(({ table }) => table)
  const statements =
    way === "spin"
      ? [
          TableLocks.statement(tables, "SHARE ROW EXCLUSIVE"),
          spin(TableLocks.statement(exclusive, "ACCESS EXCLUSIVE", true))
        ]
      : TableLocks.statements(way === "reversed" ? locks.toReversed() : locks)
  return block(`DECLARE
  deadline timestamptz;
BEGIN
  ${statements.join(";\n  ")};
EXCEPTION WHEN query_canceled OR lock_not_available THEN
  RAISE EXCEPTION USING ERRCODE = ${literal(noLocksCode)}, MESSAGE = 'the locks were not to be had';
END`)
}

/**
 * Asks again and again without ever queueing, for 40 ms: an upgrade that waits would make an
 * application the victim at once (rule R1).
 */
const spin = (lock: string) => `deadline := clock_timestamp() + interval '40 milliseconds';
  LOOP
    BEGIN
      ${lock};
      EXIT;
    EXCEPTION WHEN lock_not_available THEN
      IF clock_timestamp() > deadline THEN RAISE; END IF;
    END;
    PERFORM pg_catalog.pg_sleep(0.0005);
  END LOOP`

/**
 * Gives the next statement what is left of the time, in milliseconds, since the server got the text
 * that it is part of: then it began to ask for the locks. What is done after the deadline is
 * cancelled at once; when all is done, to commit late makes others wait less than to begin again. A
 * statement that takes a lock by itself waits for that no longer than what is left of `wait`.
 */
const untilDeadline = (limit: number, wait?: number) => {
  const left = (setting: string, of: number) =>
    `PERFORM pg_catalog.set_config('${setting}', greatest(1, ${of} - extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000)::int::text, true);`
  return block(
    `BEGIN ${left("statement_timeout", limit)}${wait === undefined ? "" : ` ${left("lock_timeout", wait)}`} END`
  )
}
