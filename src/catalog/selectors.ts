/** Which foreign keys are meant. */
import type { Table } from "./foreignKeys.js"
import { label } from "../sql/identifiers.js"

/** A table; without a schema, the table of this name in every schema. */
export interface TableSelector {
  readonly schema?: string | undefined
  readonly table: string
}

/** A constraint of a table. */
export interface ConstraintSelector extends TableSelector {
  readonly name: string
}

/**
 * Which keys are meant. Within one field any entry may match; a key must match every field that is
 * given. No field at all means every key.
 */
export interface Selectors {
  /** Schemas of the referencing table. */
  readonly schemas?: ReadonlyArray<string>
  /** Referencing tables. */
  readonly tables?: ReadonlyArray<TableSelector>
  readonly constraints?: ReadonlyArray<ConstraintSelector>
  /** Referenced tables. */
  readonly references?: ReadonlyArray<TableSelector>
}

/** The names of a key and its tables. */
export interface Named {
  readonly name: string
  readonly referencing: Pick<Table, "schema" | "name">
  readonly referenced: Pick<Table, "schema" | "name">
}

/** Whether a key is meant. */
export const matches = (selectors: Selectors, key: Named): boolean =>
  some(selectors.schemas, (schema) => schema === key.referencing.schema) &&
  some(selectors.tables, (table) => isTable(table, key.referencing)) &&
  some(selectors.references, (table) => isTable(table, key.referenced)) &&
  some(
    selectors.constraints,
    (constraint) => isTable(constraint, key.referencing) && constraint.name === key.name
  )

/** The entries that no key of these fits, in words: probably misspelled. */
export const unmatched = (selectors: Selectors, keys: ReadonlyArray<Named>): ReadonlyArray<string> => {
  const without = <A>(
    entries: ReadonlyArray<A> | undefined,
    matches: (entry: A, key: Named) => boolean,
    describe: (entry: A) => string
  ) => (entries ?? []).filter((entry) => !keys.some((key) => matches(entry, key))).map(describe)
  const tableName = ({ schema, table }: TableSelector) =>
    schema === undefined ? label(table) : label(schema, table)
  return [
    ...without(
      selectors.schemas,
      (schema, key) => schema === key.referencing.schema,
      (schema) => `schema ${label(schema)}`
    ),
    ...without(
      selectors.tables,
      (table, key) => isTable(table, key.referencing),
      (table) => `table ${tableName(table)}`
    ),
    ...without(
      selectors.constraints,
      (constraint, key) => isTable(constraint, key.referencing) && constraint.name === key.name,
      (constraint) => `constraint ${tableName(constraint)}.${label(constraint.name)}`
    ),
    ...without(
      selectors.references,
      (table, key) => isTable(table, key.referenced),
      (table) => `references ${tableName(table)}`
    )
  ]
}

/** Whether every key is meant. */
export const isAll = (selectors: Selectors): boolean =>
  [selectors.schemas, selectors.tables, selectors.constraints, selectors.references].every(
    (entries) => entries === undefined || entries.length === 0
  )

/**
 * Splits a name such as `public.user`, `"Odd.Name".t` or `public."user".user_fkey` as SQL does:
 * parts in double quotes are taken as they are (two double quotes stand for one), A to Z is folded
 * to lower case in others, which may hold anything but dots and quotes. Undefined if it is not a
 * name. It reads what {@link label} writes.
 */
export const parts = (text: string): ReadonlyArray<string> | undefined => {
  const found: Array<string> = []
  const part = /(?:"((?:[^"]|"")+)"|([^".]+))(\.|$)/y
  for (;;) {
    const match = part.exec(text)
    if (match === null) return undefined
    found.push(match[1] === undefined ? folded(match[2] ?? "") : match[1].replaceAll('""', '"'))
    if (match[3] === "") return found
  }
}

/** Reads one name; undefined if it is not that. */
export const name = (text: string): string | undefined => {
  const [first, ...rest] = parts(text) ?? []
  return rest.length > 0 ? undefined : first
}

/** Reads `[S.]T`; undefined if it is not that. */
export const table = (text: string): TableSelector | undefined => {
  const [first, second, ...rest] = parts(text) ?? []
  if (first === undefined || rest.length > 0) return undefined
  return second === undefined ? { table: first } : { schema: first, table: second }
}

/** Reads `[S.]T.NAME`; undefined if it is not that. */
export const constraint = (text: string): ConstraintSelector | undefined => {
  const [first, second, third, ...rest] = parts(text) ?? []
  if (first === undefined || second === undefined || rest.length > 0) return undefined
  return third === undefined ? { table: first, name: second } : { schema: first, table: second, name: third }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** As downcase_identifier (scansup.c) does for names in UTF-8. */
const folded = (part: string) => part.replaceAll(/[A-Z]+/g, (letters) => letters.toLowerCase())

const some = <A>(entries: ReadonlyArray<A> | undefined, matches: (entry: A) => boolean) =>
  entries === undefined || entries.length === 0 || entries.some(matches)

const isTable = (selector: TableSelector, table: Pick<Table, "schema" | "name">) =>
  selector.table === table.name && (selector.schema === undefined || selector.schema === table.schema)
