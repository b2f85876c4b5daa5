/** What `fk plan` and `migrate plan` print of a plan. */
import type * as ForeignKey from "../ForeignKey.js"

const conditions: { readonly [When in ForeignKey.PlannedStep["when"]]: string } = {
  always: "",
  contended: " (only if its tables are too busy for the swap)",
  "if out of order":
    " (instead of the step before, if the new key's triggers would fire before the original's)"
}

/** A plan for a person. */
export const lines = ({
  refused,
  steps,
  unchanged,
  warnings
}: ForeignKey.PlanResult): ReadonlyArray<string> => [
  ...steps.flatMap((step, index) => [
    `${index + 1}. ${step.constraint}: ${step.step}${conditions[step.when]}`,
    ...step.sql.map((statement) => `     ${abbreviate(statement)};`),
    ...step.locks.map(
      ({ implicit, mode, relation }) =>
        `   locks ${relation} in ${mode} mode${implicit === true ? ", by the statement: this role may not LOCK it" : ""}`
    ),
    `   ${step.blocks}`,
    ""
  ]),
  ...unchanged.map((constraint) => `= ${constraint} has this action already`),
  ...warnings.map(({ constraint, warning }) => `! ${constraint}: ${warning}`),
  ...refused.map(refusalLine)
]

/** A key that is refused, and why. */
export const refusalLine = ({ constraint, reason }: ForeignKey.Rejected) =>
  `x ${constraint} is refused: ${reason}`

/**
 * The proofs are pages of PL/pgSQL: a person reads what is changed, and finds the whole text with
 * --sql or --json.
 */
export const abbreviate = (statement: string): string => {
  if (statement.startsWith("DO ")) return "DO ... (checks or restores catalog entries; --sql prints it whole)"
  return statement.length > 200 ? `${statement.slice(0, 160)} ...` : statement
}
