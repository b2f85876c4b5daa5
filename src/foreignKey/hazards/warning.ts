/** What a reader of a plan should know about one key, beside its steps and locks. */
import { nameOf, type Key } from "../../catalog/foreignKeys.js"
import { label } from "../../sql/identifiers.js"

/** One warning. */
export interface Warning {
  /** A stable word for programs. */
  readonly code:
    | "acts-early"
    | "deferred"
    | "firing-order"
    | "in-the-way"
    | "interrupted"
    | "may-keep-rows"
    | "no-index"
    | "not-rehearsed"
    | "not-enforced"
    | "not-null"
    | "orphans"
    | "reaches"
    | "replica-identity"
    | "row-by-row"
    | "row-security"
  /** What is to be known, for people. */
  readonly warning: string
}

/** What is to be known about a key. */
export interface Warned extends Warning {
  /** schema.table.name */
  readonly constraint: string
}

/** Warnings of one kind. */
export const coded = (code: Warning["code"], warnings: ReadonlyArray<string>): ReadonlyArray<Warning> =>
  warnings.map((warning) => ({ code, warning }))

/**
 * A NOT ENFORCED key (18 and later, CREATE TABLE) has no triggers: no action of it is ever carried
 * out.
 */
export const notEnforced = (key: Key): ReadonlyArray<Warning> =>
  key.enforced
    ? []
    : coded("not-enforced", [
        `it is NOT ENFORCED: whatever its action, a delete in ${label(
          key.referenced.schema,
          key.referenced.name
        )} does nothing in ${label(key.referencing.schema, key.referencing.name)}, and no row of it is checked`
      ])

/** Warnings with the name of their key. */
export const of = (key: Key, warnings: ReadonlyArray<Warning>): ReadonlyArray<Warned> =>
  warnings.map(({ code, warning }) => ({ constraint: nameOf(key), code, warning }))
