/**
 * The index that a key should have on its referencing columns: without one, every delete of a
 * referenced row reads the whole referencing table.
 *
 * A partitioned table gets a partitioned index, which partitions of later inherit: first that index
 * alone, not valid, then one on each partition, built CONCURRENTLY, each of which is attached. What
 * is there already follows from the catalogs, so a build that was stopped anywhere is finished by
 * running it again.
 */
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type { Key, Relation } from "../../catalog/foreignKeys.js"
import type { Step } from "./steps.js"
import { identifier, identifiers, qualified } from "../../sql/identifiers.js"

/** One step of a build. */
export interface IndexStep extends Step {
  readonly name: "index" | "index-whole" | "index-attach" | "index-drop"
  /** The index that it creates, attaches or drops. */
  readonly index: string
}

/** What is still to be done until the key has a valid index, in order; empty if it has one. */
export const missing = (session: Session, key: Key): Effect.Effect<ReadonlyArray<IndexStep>, DatabaseError> =>
  Effect.map(session.query<{ readonly tables: string }>(select, [key.referencing.oid, key.columns]), (rows) =>
    steps(key, JSON.parse(rows[0]?.tables ?? "[]") as ReadonlyArray<Place>)
  )

/** The schemas in which indexes are still to be created. */
export const schemas = (session: Session, key: Key): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  Effect.map(missing(session, key), (steps) =>
    steps.flatMap(({ locks, name }) =>
      name === "index" || name === "index-whole" ? locks.map(({ table }) => table.schema) : []
    )
  )

/**
 * The OID of an index that is still to be made: who holds it can be seen when it is there, so steps
 * that lock it wait for the next reading.
 */
export const unknown = 0

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** A table of the partition tree, parents before their partitions, with its indexes. */
interface Place extends Relation {
  readonly parent: number | null
  readonly indexes: ReadonlyArray<Found>
}

interface Found extends Relation {
  readonly valid: boolean
  /**
   * Whether it finds the rows of one key: it is valid and starts with the referencing columns, in
   * any order.
   */
  readonly supports: boolean
  /** Whether it is just what we would build, and so can be a part of a partitioned one. */
  readonly exact: boolean
  /** The partitioned index that it is a part of. */
  readonly parent: number | null
}

const steps = (key: Key, places: ReadonlyArray<Place>): ReadonlyArray<IndexStep> => {
  const [root] = places
  if (root === undefined || root.indexes.some(({ supports }) => supports)) return []
  /** The index of each table, found or to be made; its OID is undefined if it is to be made. */
  const chosen = new Map<number, { readonly oid: number | undefined; readonly relation: Relation }>()
  const made: Array<IndexStep> = []
  const attached: Array<IndexStep> = []
  for (const place of places) {
    const whole = place.kind === "p"
    const above = place.parent === null ? undefined : chosen.get(place.parent)
    const usable = place.indexes.filter(({ exact, valid }) => exact && (valid || whole))
    const part = usable.find(({ parent }) => parent !== null && parent === above?.oid)
    const index = part ?? usable.find(({ parent }) => parent === null)
    const name = nameFor(key, place)
    const relation = index ?? { oid: unknown, schema: place.schema, name, kind: whole ? "I" : "i" }
    chosen.set(place.oid, { oid: index?.oid, relation })
    if (index === undefined) {
      if (place.indexes.some((leftover) => leftover.name === name && !leftover.valid))
        made.push(drop(place, relation))
      made.push(create(key, place, relation))
    }
    if (above !== undefined && part === undefined) attached.unshift(attach(above.relation, relation))
  }
  return [...made, ...attached]
}

/** SHARE keeps writers of the partitioned table away; nothing is read, so that is for a moment. */
const create = (key: Key, place: Place, index: Relation): IndexStep => {
  const whole = place.kind === "p"
  const { kind, name, oid, schema } = place
  return {
    name: whole ? "index-whole" : "index",
    index: index.name,
    ...(whole ? {} : { outsideTransaction: true }),
    locks: [{ table: { kind, name, oid, schema }, mode: whole ? "SHARE" : "SHARE UPDATE EXCLUSIVE" }],
    statements: [
      `CREATE INDEX ${whole ? "" : "CONCURRENTLY "}${identifier(index.name)} ON ${whole ? "ONLY " : ""}${qualified(
        place
      )} (${identifiers(key.columns)})`
    ]
  }
}

/**
 * An index that an interrupted build left behind is not valid: it costs writes and serves nobody.
 */
const drop = ({ kind, name, oid, schema }: Place, index: Relation): IndexStep => ({
  name: "index-drop",
  index: index.name,
  outsideTransaction: true,
  locks: [{ table: { kind, name, oid, schema }, mode: "SHARE UPDATE EXCLUSIVE" }],
  statements: [`DROP INDEX CONCURRENTLY ${qualified(index)}`]
})

/**
 * Every reader and writer of a table opens its indexes, so those of the partition wait for the
 * moment that it takes.
 */
const attach = (whole: Relation, part: Relation): IndexStep => ({
  name: "index-attach",
  index: part.name,
  locks: [
    { table: part, mode: "ACCESS EXCLUSIVE" },
    { table: whole, mode: "SHARE UPDATE EXCLUSIVE" }
  ],
  statements: [`ALTER INDEX ${qualified(whole)} ATTACH PARTITION ${qualified(part)}`]
})

/**
 * As PostgreSQL would name it, with a digest that keeps it apart from other indexes; 63 bytes at
 * most.
 */
const nameFor = (key: Key, place: Relation) => {
  const digest = createHash("sha256")
    .update(JSON.stringify([place.schema, place.name, key.columns]))
    .digest("hex")
    .slice(0, 8)
  let stem = `${place.name}_${key.columns.join("_")}`
  while (Buffer.byteLength(stem) > 50) stem = Array.from(stem).slice(0, -1).join("")
  return `${stem}_${digest}_idx`
}

/**
 * Columns by name: a partition can have them in another order. What `exact` compares is what ATTACH
 * PARTITION compares (CompareIndexInfo, index.c).
 */
const select = `
SELECT coalesce(jsonb_agg(jsonb_build_object(
  'oid', t.oid::int8, 'schema', n.nspname, 'name', t.relname, 'kind', t.relkind, 'parent', q.parentrelid::oid::int8,
  'indexes', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
      'oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind, 'valid', i.indisvalid,
      'supports', i.indisvalid AND i.indisready AND i.indpred IS NULL
        AND (m.amname = 'btree' OR (m.amname = 'hash' AND cardinality($2::text[]) = 1))
        AND i.indnkeyatts >= cardinality($2::text[])
        AND (SELECT array_agg(x ORDER BY x) FROM unnest(l.names[1:cardinality($2::text[])]) AS x)
          = (SELECT array_agg(x ORDER BY x) FROM unnest($2::text[]) AS x),
      'exact', m.amname = 'btree' AND NOT i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
        AND l.names = $2::text[] AND l.ordinary,
      'parent', (SELECT h.inhparent::int8 FROM pg_catalog.pg_inherits h WHERE h.inhrelid = c.oid)
    ) ORDER BY c.oid), '[]')
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am m ON m.oid = c.relam
    CROSS JOIN LATERAL (
      SELECT array_agg(a.attname::text ORDER BY u.position) AS names,
        bool_and(a.attcollation = (i.indcollation::oid[])[u.position - 1] AND o.opcdefault) AS ordinary
      FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u(number, position)
      LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
      LEFT JOIN pg_catalog.pg_opclass o ON o.oid = (i.indclass::oid[])[u.position - 1]
    ) l
    WHERE i.indrelid = t.oid
  )
) ORDER BY q.level, t.oid), '[]')::text AS tables
FROM (
  SELECT p.relid, p.parentrelid, p.level
  FROM pg_catalog.pg_class o CROSS JOIN LATERAL pg_catalog.pg_partition_tree(o.oid) p
  WHERE o.oid = $1::int8::oid AND o.relkind = 'p'
  UNION ALL
  SELECT o.oid, NULL, 0 FROM pg_catalog.pg_class o WHERE o.oid = $1::int8::oid AND o.relkind <> 'p'
) q
JOIN pg_catalog.pg_class t ON t.oid = q.relid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace`
