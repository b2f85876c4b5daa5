/** A plan as a script for psql, for those who run every statement by hand. */
import type { PlannedStep } from "./Plan.js"

/**
 * The steps that a change always takes, each with its locks and what they block. A step that cannot get its locks fails at once and changes nothing: run it again
 * until it succeeds, then go on with the next.
 */
export const render = (steps: ReadonlyArray<PlannedStep>): string =>
  [
    "\\set ON_ERROR_STOP on",
    "SET search_path = pg_catalog;",
    "SET standard_conforming_strings = on;",
    "SET statement_timeout = 0;",
    ...steps.filter(({ when }) => when === "always").map(section)
  ].join("\n") + "\n"

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const section = ({ blocks, constraint, locks, sql, step }: PlannedStep) => {
  const [begin, ...rest] = sql
  const statements =
    begin === "BEGIN"
      ? [begin, `SET LOCAL lock_timeout = '${step === "validate" ? "2s" : "250ms"}'`, ...rest]
      : sql
  return [
    "",
    `-- ${oneLine(constraint)}: ${step}`,
    ...locks.map(({ mode, relation }) => `--   ${mode} on ${oneLine(relation)}`),
    `--   blocks ${blocks}`,
    ...statements.map((statement) => `${statement};`)
  ].join("\n")
}

/** A name with a line break in it would end the comment. */
const oneLine = (text: string) => text.replaceAll(/\s+/g, " ")
