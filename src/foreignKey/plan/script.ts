/** A plan as a script for psql, for those who run every statement by hand. */
import * as AdvisoryLock from "../../catalog/advisoryLock.js"
import type { PlannedStep, PlanResult } from "../types.js"
import * as SessionSettings from "../../catalog/sessionSettings.js"
import { block } from "../../sql/identifiers.js"
import * as Limits from "./limits.js"

/**
 * The steps that a change takes, each with its locks and what they block. Of a step that has to be
 * taken another way where triggers would be out of order, the script has that way, which is right
 * in any case. The steps for tables that are too busy for the swap are left out, because they take
 * its place.
 */
export const render = ({ madeFrom, refused, steps, unchanged, warnings }: PlanResult): string =>
  [
    ...comment(
      `Foreign keys of database ${madeFrom.database}, PostgreSQL ${madeFrom.version}, as they were at ${madeFrom.at}.`,
      ...instructions
    ),
    ...comment(
      ...unchanged.map((constraint) => `= ${constraint} has this action already`),
      ...warnings.map(({ constraint, warning }) => `! ${constraint}: ${warning}`),
      ...refused.map(({ constraint, reason }) => `x ${constraint} is refused: ${reason}`)
    ),
    "",
    "\\set ON_ERROR_STOP on",
    `${SessionSettings.script()};`,
    `${AdvisoryLock.takeOrFail()};`,
    ...steps
      .filter(({ when }, index) => when !== "contended" && steps[index + 1]?.when !== "if out of order")
      .map(section)
  ].join("\n") + "\n"

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const instructions = [
  "",
  "Run it with psql -X -f, or step by step in one session. Not with --single-transaction: every step is a transaction of its own.",
  "A step asks for its locks for a moment only, so that nobody has to wait for it for long. If it fails because of a timeout or a",
  "deadlock, nothing of it is done: ROLLBACK, and run that step again until it succeeds, before you go on with the next.",
  "If psql has ended, or a step says that the foreign key was changed meanwhile, make a new script: it has the steps that are left.",
  "A step that has succeeded is not to be run again. The original protects the data all the while.",
  "`fk rebuild` does the same, repeats its steps by itself, and has another way for tables that are too busy for a swap.",
  ""
]

const comment = (...lines: ReadonlyArray<string>) => lines.map((line) => `-- ${oneLine(line)}`.trimEnd())

/** A name with a line break in it would end the comment. */
const oneLine = (text: string) => text.replaceAll(/\s+/g, " ")

const section = (planned: PlannedStep) =>
  [
    "",
    ...comment(`${planned.constraint}: ${planned.step}`),
    ...planned.locks.flatMap(({ implicit, mode, relation }) =>
      comment(`  ${mode} on ${relation}${implicit === true ? ", by the statement" : ""}`)
    ),
    ...comment(`  ${planned.blocks}`),
    ...statements(planned).map((statement) => `${statement};`)
  ].join("\n")

const statements = ({ sql, step }: PlannedStep): ReadonlyArray<string> => {
  if (sql[0]?.startsWith("BEGIN") !== true) {
    return [...Limits.outsideTransaction.before(0), ...sql, ...Limits.outsideTransaction.after]
  }
  return step === "settle"
    ? [
        ...Limits.outsideTransaction.before(0),
        afterOldTransactions,
        ...Limits.outsideTransaction.after,
        ...sql
      ]
    : sql
}

/**
 * Waits, a minute at most, for the transactions that may have deferred the original by name (see
 * `Change.settle`). It holds no lock meanwhile.
 */
const afterOldTransactions = block(`DECLARE
  deadline timestamptz := clock_timestamp() + interval '1 minute';
  old text[] := ARRAY(
    SELECT l.virtualtransaction FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'virtualxid' AND l.granted AND l.virtualxid = l.virtualtransaction
      AND a.datname = pg_catalog.current_database() AND a.usesysid IS NOT NULL
      AND coalesce(a.backend_type, 'client backend') = 'client backend' AND l.pid <> pg_catalog.pg_backend_pid()
  );
BEGIN
  WHILE clock_timestamp() < deadline AND EXISTS (
    SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'virtualxid' AND l.granted AND l.virtualtransaction = ANY (old)
  ) LOOP
    PERFORM pg_catalog.pg_sleep(0.1);
  END LOOP;
END`)
