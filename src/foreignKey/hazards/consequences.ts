/** What a changed action will do that it did not do before, as far as the catalogs tell. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Action from "../../catalog/action.js"
import { nameOf, type Key, type Table } from "../../catalog/foreignKeys.js"
import { label } from "../../sql/identifiers.js"
import type { Target } from "../snapshot/target.js"
import type { Warning } from "./warning.js"

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
  /**
   * Row triggers of users that run before a delete, and rules on DELETE: both can keep it from
   * happening.
   */
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

/**
 * What a reader of the plan should know about an enforced key that gets an action.
 *
 * @param keys All keys of the database, with the actions that they will have.
 * @param indexed Whether a key has an index on its referencing columns, or will have got one.
 */
export const warnings = (
  keys: ReadonlyArray<Key>,
  tables: ReadonlyMap<number, Facts>,
  indexed: (key: Key) => boolean
): ((key: Key, target: Target) => ReadonlyArray<Warning>) => {
  const graph = graphOf(keys)
  const effectsOf = remembering((key: Key) => effects(key, tables, indexed))
  // Those of which there is nothing to say are left out: a cascade can reach most keys of a
  // database, from each of them.
  const telling = graphOf(keys.filter((key) => key.enforced && effectsOf(key).length > 0))
  const reached = remembering((from: Table) => closure(from, graph))
  const reaches = remembering((from: Table): Warning => {
    const list = reached(from).map(({ oid, schema, name }) => {
      const rows = tables.get(oid)?.rows ?? -1
      return `${label(schema, name)} (${rows < 0 ? "never analyzed" : `about ${rows} rows`})`
    })
    return {
      code: "reaches",
      warning: `deleting from ${label(from.schema, from.name)} will also delete from ${list.join(", ")}`
    }
  })
  const joining = remembering((from: Table) => diamonds(from, reached(from), keys))
  return (key, target) => {
    if (!key.enforced) return []
    const parent = label(key.referenced.schema, key.referenced.name)
    const changed: Key = { ...key, onDelete: target.action, onDeleteColumns: target.columns }
    const found = effects(changed, tables, indexed).map((effect) => effect(parent))
    if (target.action === "cascade") {
      // What the cascade deletes in turn makes other keys act.
      for (const other of acting([key.referencing, ...reached(key.referencing)], telling)) {
        if (other.oid !== key.oid) {
          found.push(...effectsOf(other).map((effect) => effect(parent)))
        }
      }
      found.push(reaches(key.referenced))
    }
    for (const inner of joining(key.referenced)) {
      found.push({
        code: "firing-order",
        warning: `${nameOf(inner)} has ON DELETE ${Action.sql(inner.onDelete)} and joins two tables that a delete in ${parent} both reaches: whether that delete fails depends on the order in which triggers fire`
      })
    }
    return [...new Map(found.map((one) => [one.warning, one])).values()]
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const dedupe = (names: ReadonlyArray<string>) => [...new Set(names)]

/** The same answer for the same key or table, found once. */
const remembering = <A extends { readonly oid: number }, B>(find: (one: A) => B): ((one: A) => B) => {
  const known = new Map<number, B>()
  return (one) => {
    const before = known.get(one.oid)
    if (before !== undefined) return before
    const found = find(one)
    known.set(one.oid, found)
    return found
  }
}

/** A warning about a delete in the table called `origin`. */
type Effect = (origin: string) => Warning

/** What one key does to its referencing table when rows that it points to are deleted. */
const effects = (
  key: Key,
  tables: ReadonlyMap<number, Facts>,
  indexed: (key: Key) => boolean
): ReadonlyArray<Effect> => {
  const facts = tables.get(key.referencing.oid)
  const parts = [key.referencing, ...key.referencing.partitions].flatMap(({ oid }) => tables.get(oid) ?? [])
  const child = label(key.referencing.schema, key.referencing.name)
  const deletes = key.onDelete === "cascade"
  const changes = Action.takesColumns(key.onDelete)
  const found: Array<Effect> = []
  const warn = (code: Warning["code"], warning: string | ((origin: string) => string)) =>
    found.push((origin) => ({ code, warning: typeof warning === "string" ? warning : warning(origin) }))
  if (!indexed(key)) {
    warn(
      "no-index",
      `no index on (${key.columns.map((column) => label(column)).join(", ")}): every delete in ${label(
        key.referenced.schema,
        key.referenced.name
      )} reads all of ${child}`
    )
  }
  const unidentified = dedupe(
    parts.flatMap((part) => (deletes ? part.deletesUnidentified : changes ? part.updatesUnidentified : []))
  )
  if (unidentified.length > 0) {
    warn(
      "replica-identity",
      (origin) =>
        `${child} is published (${unidentified.join(", ")}) without a replica identity: deletes in ${origin} that reach it will fail with 55000`
    )
  }
  if ((deletes || changes) && facts?.rowSecurity === true) {
    warn(
      "row-security",
      `${child} has row security, which the ${deletes ? "cascade" : "change"} does not ask: it runs as the owner of ${child}`
    )
  }
  const hooks = dedupe(
    parts.flatMap((part) => (deletes ? part.deleteHooks : changes ? part.updateHooks : []))
  )
  if (hooks.length > 0) {
    warn(
      "may-keep-rows",
      `${hooks.join(", ")} on ${child} can keep rows from being ${deletes ? "deleted" : "changed"}: they would be left without a referenced row`
    )
  }
  if (key.onDelete === "set-null") {
    const columns = key.onDeleteColumns.length === 0 ? key.columns : key.onDeleteColumns
    const forbidden = columns.filter((column) => facts?.notNull.includes(column))
    if (forbidden.length > 0) {
      warn(
        "not-null",
        (origin) =>
          `${forbidden.map((column) => label(column)).join(", ")} is NOT NULL: deletes in ${origin} that reach it will fail with 23502`
      )
    }
  }
  return found
}

/**
 * Whether rows of one table are rows of the other: it is the same, or one is a partition of the
 * other.
 */
const shareRows = (one: Table, other: Table) =>
  one.oid === other.oid || isPartition(one, other) || isPartition(other, one)

const isPartition = (part: Table, of: Table) => of.partitions.some(({ oid }) => oid === part.oid)

/**
 * Whether a key can have something to do when rows of a table are deleted: it points to the table,
 * to a partition of it, or to a table that it is a partition of.
 */
const acts = (key: Key, table: Table) => shareRows(key.referenced, table)

/**
 * Where keys are among all keys, by the OIDs of the tables that they point to and of those tables'
 * partitions.
 */
interface Graph {
  readonly keys: ReadonlyArray<Key>
  readonly pointing: ReadonlyMap<number, ReadonlyArray<number>>
}

const graphOf = (keys: ReadonlyArray<Key>): Graph => {
  const pointing = new Map<number, Array<number>>()
  for (const [index, { referenced }] of keys.entries()) {
    for (const { oid } of [referenced, ...referenced.partitions]) {
      const others = pointing.get(oid)
      if (others === undefined) pointing.set(oid, [index])
      else others.push(index)
    }
  }
  return { keys, pointing }
}

/** The keys that {@link acts} is true of for one of the tables, in their order. */
const acting = (tables: ReadonlyArray<Table>, { keys, pointing }: Graph): ReadonlyArray<Key> => {
  const found = new Set(
    tables.flatMap((table) => [table, ...table.partitions].flatMap(({ oid }) => pointing.get(oid) ?? []))
  )
  return [...found].toSorted((one, other) => one - other).flatMap((index) => keys[index] ?? [])
}

/**
 * The tables that a delete in one table reaches by cascades, without itself unless it is reached
 * again; a partition stands for itself only if its table is not reached.
 */
const closure = (from: Table, graph: Graph): ReadonlyArray<Table> => {
  const reached = new Map<number, Table>()
  const open = [from]
  for (let table = open.pop(); table !== undefined; table = open.pop()) {
    for (const { enforced, onDelete, referencing } of acting([table], graph)) {
      if (onDelete === "cascade" && enforced && !reached.has(referencing.oid)) {
        reached.set(referencing.oid, referencing)
        open.push(referencing)
      }
    }
  }
  const tables = [...reached.values()]
  const parts = new Set(tables.flatMap(({ partitions }) => partitions.map(({ oid }) => oid)))
  return tables.filter(({ oid }) => !parts.has(oid))
}

/** Keys that raise an error on delete and whose two tables are both reached by the same delete. */
const diamonds = (from: Table, below: ReadonlyArray<Table>, keys: ReadonlyArray<Key>) => {
  const reached = new Set([from, ...below].map(({ oid }) => oid))
  const parts = new Set([from, ...below].flatMap(({ partitions }) => partitions.map(({ oid }) => oid)))
  const isReached = (table: Table) =>
    reached.has(table.oid) || parts.has(table.oid) || table.partitions.some(({ oid }) => reached.has(oid))
  return keys.filter(
    (key) =>
      Action.raises(key.onDelete) &&
      key.enforced &&
      !acts(key, from) &&
      !shareRows(key.referencing, key.referenced) &&
      isReached(key.referencing) &&
      isReached(key.referenced)
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
