/** What a changed action will do that it did not do before, as far as the catalogs tell. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import * as Action from "./Action.js"
import { nameOf, type Key, type Relation } from "./Catalog.js"
import { label } from "./Sql.js"
import type { Target } from "./Target.js"

/** What matters about a table when its rows are deleted or changed by a foreign key. */
export interface Facts {
  readonly oid: number
  /** The planner's estimate; -1 if the table was never analyzed. */
  readonly rows: number
  readonly rowSecurity: boolean
  /** Publications that replicate its deletes, although nothing identifies its rows. */
  readonly deletesUnidentified: ReadonlyArray<string>
  /** The same for updates. */
  readonly updatesUnidentified: ReadonlyArray<string>
  /** Row triggers of users that run before a delete, and rules on DELETE: both can keep it from happening. */
  readonly deleteHooks: ReadonlyArray<string>
  /** The same for updates. */
  readonly updateHooks: ReadonlyArray<string>
  readonly notNull: ReadonlyArray<string>
}

/** Reads the facts of tables. */
export const facts = (
  session: Session,
  tables: ReadonlyArray<number>
): Effect.Effect<ReadonlyMap<number, Facts>, DatabaseError> =>
  session.query<{ readonly facts: string }>(select, [tables]).pipe(
    Effect.map((rows) => {
      const all = rows.map((row) => JSON.parse(row.facts) as Facts)
      return new Map(all.map((one) => [one.oid, one]))
    })
  )

/** What a reader of the plan should know about one key, in sentences. */
export const warnings = (
  key: Key,
  target: Target,
  keys: ReadonlyArray<Key>,
  tables: ReadonlyMap<number, Facts>,
  createIndexes = false
): ReadonlyArray<string> => {
  const child = tables.get(key.referencing.oid)
  const parts = [key.referencing, ...key.referencing.partitions].flatMap(({ oid }) => tables.get(oid) ?? [])
  const child_ = label(key.referencing.schema, key.referencing.name)
  const parent = label(key.referenced.schema, key.referenced.name)
  const deletes = target.action === "cascade"
  const changes = Action.takesColumns(target.action)
  const found: Array<string> = []
  if (key.supportingIndex === null && !createIndexes) {
    found.push(
      `no index on (${key.columns.map((column) => label(column)).join(", ")}): every delete in ${parent} reads all of ${child_}`
    )
  }
  const unidentified = dedupe(
    parts.flatMap((part) => (deletes ? part.deletesUnidentified : changes ? part.updatesUnidentified : []))
  )
  if (unidentified.length > 0) {
    found.push(
      `${child_} is published (${unidentified.join(", ")}) without a replica identity: deletes in ${parent} that reach it will fail with 55000`
    )
  }
  if ((deletes || changes) && child?.rowSecurity === true) {
    found.push(
      `${child_} has row security, which the ${deletes ? "cascade" : "change"} does not ask: it runs as the owner of ${child_}`
    )
  }
  const hooks = dedupe(
    parts.flatMap((part) => (deletes ? part.deleteHooks : changes ? part.updateHooks : []))
  )
  if (hooks.length > 0) {
    found.push(
      `${hooks.join(", ")} on ${child_} can keep rows from being ${deletes ? "deleted" : "changed"}: they would be left without a referenced row`
    )
  }
  if (target.action === "set-null") {
    const columns = target.columns.length === 0 ? key.columns : target.columns
    const forbidden = columns.filter((column) => child?.notNull.includes(column))
    if (forbidden.length > 0) {
      found.push(
        `${forbidden.map((column) => label(column)).join(", ")} is NOT NULL: deletes in ${parent} that reach it will fail with 23502`
      )
    }
  }
  const after = keys.map((other) => (other.oid === key.oid ? { ...other, onDelete: target.action } : other))
  if (deletes) {
    const reached = closure(key.referenced, after)
    const list = reached.map(({ oid, schema, name }) => {
      const rows = tables.get(oid)?.rows ?? -1
      return `${label(schema, name)} (${rows < 0 ? "never analyzed" : `about ${rows} rows`})`
    })
    found.push(`deleting from ${parent} will also delete from ${list.join(", ")}`)
  }
  for (const inner of diamonds(key.referenced, after)) {
    found.push(
      `${nameOf(inner)} has ON DELETE ${Action.sql(inner.onDelete)} and joins two tables that a delete in ${parent} both reaches: whether that delete fails depends on the order in which triggers fire`
    )
  }
  return found
}

/** The tables that a delete in one table reaches by cascades, without itself unless it is reached again. */
export const closure = (from: Relation, keys: ReadonlyArray<Key>): ReadonlyArray<Relation> => {
  const reached = new Map<number, Relation>()
  const open = [from.oid]
  for (let oid = open.pop(); oid !== undefined; oid = open.pop()) {
    for (const key of keys) {
      if (key.referenced.oid === oid && key.onDelete === "cascade" && !reached.has(key.referencing.oid)) {
        reached.set(key.referencing.oid, key.referencing)
        open.push(key.referencing.oid)
      }
    }
  }
  return [...reached.values()]
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const dedupe = (names: ReadonlyArray<string>) => [...new Set(names)]

/** Keys that raise an error on delete and whose two tables are both reached by the same delete. */
const diamonds = (from: Relation, keys: ReadonlyArray<Key>) => {
  const reached = new Set([from.oid, ...closure(from, keys).map(({ oid }) => oid)])
  return keys.filter(
    (key) =>
      Action.raises(key.onDelete) &&
      key.referenced.oid !== from.oid &&
      key.referencing.oid !== key.referenced.oid &&
      reached.has(key.referencing.oid) &&
      reached.has(key.referenced.oid)
  )
}

const hooks = (bit: number, event: string) => `(
    SELECT coalesce(jsonb_agg(h.name ORDER BY h.name), '[]') FROM (
      SELECT 'trigger ' || quote_ident(g.tgname) AS name FROM pg_catalog.pg_trigger g
      WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype & 1 = 1 AND g.tgtype & 2 = 2
        AND g.tgtype & ${bit} = ${bit}
      UNION ALL
      SELECT 'rule ' || quote_ident(w.rulename) FROM pg_catalog.pg_rewrite w
      WHERE w.ev_class = c.oid AND w.ev_type = '${event}' AND w.ev_enabled <> 'D'
    ) h
  )`

const unidentified = (column: string) => `(
    SELECT coalesce(jsonb_agg(DISTINCT p.pubname), '[]')
    FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
    WHERE t.schemaname = n.nspname AND t.tablename = c.relname AND p.${column}
      AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
      )))
  )`

const select = `
SELECT jsonb_build_object(
  'oid', c.oid::int8,
  'rows', CASE c.relkind WHEN 'p' THEN (
      SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)::int8
      FROM pg_catalog.pg_partition_tree(c.oid) q JOIN pg_catalog.pg_class l ON l.oid = q.relid WHERE q.isleaf
    ) WHEN 'r' THEN CASE WHEN c.reltuples = 0 AND c.relpages = 0 AND current_setting('server_version_num')::int < 140000
      THEN -1 ELSE c.reltuples::int8 END ELSE -1 END,
  'rowSecurity', c.relrowsecurity,
  'deletesUnidentified', ${unidentified("pubdelete")},
  'updatesUnidentified', ${unidentified("pubupdate")},
  'deleteHooks', ${hooks(8, "4")},
  'updateHooks', ${hooks(16, "2")},
  'notNull', (
    SELECT coalesce(jsonb_agg(a.attname), '[]') FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnotnull AND a.attnum > 0 AND NOT a.attisdropped
  )
)::text AS facts
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (($1::int8[])::oid[])`
