/**
 * What was changed, in a table of the user's database: one row for each change of one key, written
 * before the change begins and closed after it ended. It is what an undo reads. The comment on the
 * constraint ends with the change, and a list of columns for SET NULL is nowhere else afterwards.
 *
 * Nothing is decided from it that the catalogs can tell: a row that is not closed says only that a
 * run ended before it could say how.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type { Key, Named } from "../../catalog/foreignKeys.js"
import type { TableSelector } from "../../catalog/selectors.js"
import { label, literal, qualified } from "../../sql/identifiers.js"
import * as Target from "../snapshot/target.js"

/** The table's name where no other is given. */
export const defaultTable = "promptgrimoire_db_foreign_key_changes"

/**
 * How a change ended. `changed`: the key has the new action. `taken back`: it has the old one,
 * because the change failed or was asked back by a rebuild. `undone`: the same by an undo, before
 * the change was finished.
 */
export type Outcome = "changed" | "taken back" | "undone"

/** A change of one key. */
export interface Entry {
  readonly id: number
  readonly schema: string
  readonly table: string
  readonly name: string
  readonly referencedSchema: string
  readonly referencedTable: string
  readonly from: Target.Target
  readonly to: Target.Target
  /** The key when the row was written, before the change, as `pg_get_constraintdef` writes it. */
  readonly definition: string
  /** The change that this one undoes; null if it is not an undo. */
  readonly undoes: number | null
  /** ISO 8601. */
  readonly startedAt: string
  /** ISO 8601; null while the change goes on, or if it was interrupted. */
  readonly finishedAt: string | null
  /** Null as long as {@link finishedAt} is. */
  readonly outcome: Outcome | null
  readonly role: string
  /** The application_name of the program. */
  readonly application: string
}

/** The ledger of one database. */
export interface Ledger {
  readonly table: { readonly schema: string; readonly name: string }
  readonly exists: boolean
  /** Why the current role cannot keep it, and what to do; undefined if it can. */
  readonly problem: string | undefined
  /** Whether {@link entries} are what is recorded: false if the ledger could not be looked at. */
  readonly readable: boolean
  readonly entries: ReadonlyArray<Entry>
  /** The same by the names of their keys, for {@link of}. */
  readonly byKey: ReadonlyMap<string, ReadonlyArray<Entry>>
}

/** The ledger cannot be read. */
export class LedgerUnreadable extends Data.TaggedError("LedgerUnreadable")<{ readonly problem: string }> {
  override get message() {
    return this.problem
  }
}

/**
 * Finds the ledger and reads it; locks nothing above ACCESS SHARE. Without a schema it is in the
 * one that CREATE TABLE would use, next to that of the migrations.
 */
export const open = (
  session: Session,
  at: TableSelector = { table: defaultTable }
): Effect.Effect<Ledger, DatabaseError> =>
  Effect.gen(function* () {
    const schema = at.schema ?? (yield* currentSchema(session))
    const table = { schema: schema ?? "", name: at.table }
    const ledger = (
      exists: boolean,
      readable: boolean,
      problem?: string,
      entries: ReadonlyArray<Entry> = []
    ): Ledger => ({ table, exists, readable, problem, entries, byKey: byKey(entries) })
    if (schema === null) {
      const problem = "no schema of the search path exists to keep the ledger in"
      return ledger(false, false, `${problem}: name one with its schema (${option})`)
    }
    const [found] = yield* session.query<Found>(inspect, [schema, at.table, columns.map(([name]) => name)])
    const name = label(schema, at.table)
    const within = label(schema)
    if (found === undefined) {
      return ledger(false, false, `schema ${within} of the ledger does not exist: create it, ${otherwise}`)
    }
    const role = label(found.role)
    const lacks = (what: string, grant: string) =>
      `role ${role} may not ${what}: GRANT ${grant} TO ${role}, ${otherwise}`
    if (!found.usage) {
      return ledger(false, false, lacks(`use schema ${within} of the ledger`, `USAGE ON SCHEMA ${within}`))
    }
    if (!found.exists) {
      return ledger(
        false,
        true,
        found.create ? undefined : lacks(`create the ledger ${name}`, `CREATE ON SCHEMA ${within}`)
      )
    }
    if (!found.ours) {
      return ledger(
        true,
        false,
        `${name} is there, and is not a ledger of this tool: name another (${option})`
      )
    }
    const problem = found.write
      ? undefined
      : lacks(`write the ledger ${name}`, `SELECT, INSERT, UPDATE ON ${name}`)
    return found.read
      ? ledger(true, true, problem, yield* read(session, table))
      : ledger(true, false, problem)
  })

/** What is recorded; fails if the ledger is there and cannot be read. */
export const history = ({
  entries,
  problem,
  readable
}: Ledger): Effect.Effect<ReadonlyArray<Entry>, LedgerUnreadable> =>
  readable ? Effect.succeed(entries) : Effect.fail(new LedgerUnreadable({ problem: problem ?? "" }))

/** The name of the ledger in messages and documents: schema and table. */
export const name = ({ table }: Ledger): string => label(table.schema, table.name)

/** The changes of a key, the latest last. */
export const of = (ledger: Ledger, key: Named): ReadonlyArray<Entry> =>
  ledger.byKey.get(label(key.referencing.schema, key.referencing.name, key.name)) ?? []

/** The change of a key that was not closed: it goes on, or was interrupted. */
export const unfinished = (ledger: Ledger, key: Key): Entry | undefined =>
  of(ledger, key).find(({ finishedAt }) => finishedAt === null)

/** The statements that create the ledger. */
export const create = (ledger: Ledger): ReadonlyArray<string> => {
  const table = qualified(ledger.table)
  return [
    `CREATE TABLE ${table} (${columns.map(([name, type]) => `${name} ${type}`).join(", ")})`,
    `CREATE UNIQUE INDEX ON ${table} (schema_name, table_name, constraint_name) WHERE finished_at IS NULL`,
    `COMMENT ON TABLE ${table} IS ${literal(
      "Foreign keys that promptgrimoire-db changed, and how they were before. promptgrimoire-db fk undo reads it."
    )}`
  ]
}

/** A change that is about to begin. */
export interface Beginning {
  readonly key: Key
  readonly from: Target.Target
  readonly to: Target.Target
  readonly undoes: number | undefined
}

/**
 * The statements that write down a change that is about to begin, in a transaction of their own.
 */
export const begin = (ledger: Ledger, { from, key, to, undoes }: Beginning): ReadonlyArray<string> => {
  const values = [
    ["schema_name", literal(key.referencing.schema)],
    ["table_name", literal(key.referencing.name)],
    ["constraint_name", literal(key.name)],
    ["referenced_schema", literal(key.referenced.schema)],
    ["referenced_table", literal(key.referenced.name)],
    ["from_action", literal(from.action)],
    ["from_columns", texts(from.columns)],
    ["to_action", literal(to.action)],
    ["to_columns", texts(to.columns)],
    ["definition", "pg_catalog.pg_get_constraintdef(k.oid)"],
    ["undoes", undoes === undefined ? "NULL" : String(undoes)],
    // What a program calls itself, and not what our session is called while it works.
    ["application", "pg_catalog.current_setting('application_name')"]
  ]
  const insert = `INSERT INTO ${qualified(ledger.table)} (${values.map(([column]) => column).join(", ")}) SELECT ${values
    .map(([, value]) => value)
    .join(
      ", "
    )} FROM pg_catalog.pg_constraint k WHERE k.conrelid = ${key.referencing.oid}::oid AND k.conname = ${literal(key.name)} AND k.contype = 'f'`
  return ["SET LOCAL application_name TO DEFAULT", insert]
}

/** Closes the change of a key that is open. */
export const close = (ledger: Ledger, key: Key, outcome: Outcome): string =>
  `UPDATE ${qualified(ledger.table)} SET finished_at = pg_catalog.clock_timestamp(), outcome = ${literal(
    outcome
  )} WHERE schema_name = ${literal(key.referencing.schema)} AND table_name = ${literal(
    key.referencing.name
  )} AND constraint_name = ${literal(key.name)} AND finished_at IS NULL`

/** What a change is about to do with a key, and what is known of it. */
export interface Situation {
  readonly key: Key
  readonly target: Target.Target
  /** The change that this one undoes. */
  readonly undoes: number | undefined
  /** The row of an earlier run that was not closed. */
  readonly unfinished: Entry | undefined
  /** Whether the catalogs show a change that was begun and not finished. */
  readonly interrupted: boolean
  /** The action before the change that the catalogs show; that of the key if they show none. */
  readonly recorded: Target.Target
}

/** What the ledger has to be told before and after a change. */
export interface Record {
  /** The action that the change starts from, also where an earlier run began it. */
  readonly from: Target.Target
  /** Statements of one transaction before the first step; empty if all is written down already. */
  readonly before: ReadonlyArray<string>
  /** How the open row ends if the change succeeds; undefined if no row is open. */
  readonly after: Outcome | undefined
}

/**
 * What to write down. A row that an earlier run left open is gone on with if this change leads to
 * where that one led to or came from; otherwise it is closed with what became of it.
 */
export const record = (ledger: Ledger, situation: Situation): Record => {
  const { interrupted, key, recorded, target, undoes, unfinished } = situation
  const now = Target.of(key)
  const begins = (from: Target.Target, before: ReadonlyArray<string>): Record =>
    Target.equals(from, target)
      ? { from, before, after: undefined }
      : { from, before: [...before, ...begin(ledger, { key, from, to: target, undoes })], after: "changed" }
  if (unfinished === undefined) return begins(recorded, [])
  const known = interrupted || Target.equals(now, unfinished.from) || Target.equals(now, unfinished.to)
  if (known && Target.equals(target, unfinished.to)) {
    return { from: unfinished.from, before: [], after: "changed" }
  }
  if (known && Target.equals(target, unfinished.from)) {
    const outcome = undoes === unfinished.id ? "undone" : "taken back"
    return { from: unfinished.from, before: [], after: outcome }
  }
  const arrived = !interrupted && Target.equals(now, unfinished.to)
  return begins(interrupted ? unfinished.from : now, [close(ledger, key, arrived ? "changed" : "taken back")])
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const byKey = (entries: ReadonlyArray<Entry>): Ledger["byKey"] => {
  const all = new Map<string, Array<Entry>>()
  for (const entry of entries) {
    const name = label(entry.schema, entry.table, entry.name)
    const same = all.get(name)
    if (same === undefined) all.set(name, [entry])
    else same.push(entry)
  }
  return all
}

const option = "--ledger SCHEMA.TABLE"

const otherwise = `name another table (${option}), or go without a record for undo (--no-ledger)`

const columns: ReadonlyArray<readonly [name: string, type: string]> = [
  ["id", "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"],
  ["schema_name", "text NOT NULL"],
  ["table_name", "text NOT NULL"],
  ["constraint_name", "text NOT NULL"],
  ["referenced_schema", "text NOT NULL"],
  ["referenced_table", "text NOT NULL"],
  ["from_action", "text NOT NULL"],
  ["from_columns", "text[] NOT NULL"],
  ["to_action", "text NOT NULL"],
  ["to_columns", "text[] NOT NULL"],
  ["definition", "text NOT NULL"],
  ["undoes", "bigint"],
  ["started_at", "timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp()"],
  ["finished_at", "timestamp with time zone"],
  ["outcome", "text CHECK (outcome IN ('changed', 'taken back', 'undone'))"],
  ["role_name", "text NOT NULL DEFAULT CURRENT_USER"],
  ["application", "text NOT NULL"]
]

interface Found {
  readonly role: string
  readonly usage: boolean
  readonly create: boolean
  readonly exists: boolean
  readonly ours: boolean
  readonly read: boolean
  readonly write: boolean
}

const inspect = `
SELECT current_user::text AS role, has_schema_privilege(n.oid, 'USAGE') AS usage, has_schema_privilege(n.oid, 'CREATE') AS create,
  c.oid IS NOT NULL AS exists,
  c.relkind IN ('r', 'p') AND NOT EXISTS (
    SELECT FROM unnest($3::text[]) AS wanted (name)
    WHERE NOT EXISTS (
      SELECT FROM pg_catalog.pg_attribute a
      WHERE a.attrelid = c.oid AND a.attname = wanted.name AND a.attnum > 0 AND NOT a.attisdropped
    )
  ) AS ours,
  has_table_privilege(c.oid, 'SELECT') AS read,
  has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AS write
FROM pg_catalog.pg_namespace n
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = $2
WHERE n.nspname = $1`

/**
 * Where CREATE TABLE would put a table: our sessions resolve names in pg_catalog only, so the
 * search path is put back for the question.
 */
const currentSchema = (session: Session) =>
  Effect.gen(function* () {
    yield* session.query("BEGIN; SET LOCAL search_path TO DEFAULT")
    const rows = yield* session.query<{ readonly schema: string | null }>(
      "SELECT pg_catalog.current_schema()::text AS schema"
    )
    yield* session.query("ROLLBACK")
    return rows[0]?.schema ?? null
  })

const read = (session: Session, table: Ledger["table"]) =>
  session
    .query<{ readonly entry: string }>(
      `SELECT jsonb_build_object(
        'id', l.id, 'schema', l.schema_name, 'table', l.table_name, 'name', l.constraint_name,
        'referencedSchema', l.referenced_schema, 'referencedTable', l.referenced_table,
        'from', jsonb_build_object('action', l.from_action, 'columns', l.from_columns),
        'to', jsonb_build_object('action', l.to_action, 'columns', l.to_columns),
        'definition', l.definition, 'undoes', l.undoes, 'startedAt', ${iso("l.started_at")}, 'finishedAt', ${iso("l.finished_at")},
        'outcome', l.outcome, 'role', l.role_name, 'application', l.application
      )::text AS entry
      FROM ${qualified(table)} l ORDER BY l.id`
    )
    .pipe(Effect.map((rows) => rows.map(({ entry }) => JSON.parse(entry) as Entry)))

const iso = (column: string) => `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`

const texts = (values: ReadonlyArray<string>) => `ARRAY[${values.map(literal).join(", ")}]::text[]`
