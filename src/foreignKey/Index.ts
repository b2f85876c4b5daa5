/**
 * The index that a key should have on its referencing columns: without one, every delete of a referenced row reads the whole referencing table.
 *
 * A partitioned table gets a partitioned index, which partitions of later inherit: first that index alone, not valid, then one on each partition, built
 * CONCURRENTLY, each of which is attached. What is there already follows from the catalogs, so a build that was stopped anywhere is finished by running it again.
 */
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import * as Attempt from "./Attempt.js"
import { type Key, nameOf, type Relation } from "./Catalog.js"
import type { Step } from "./Change.js"
import { reported, Unstable } from "./Rebuild.js"
import { identifier, identifiers, qualified } from "./Sql.js"

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

/**
 * An index of each key whose leading columns are the referencing columns, in any order, by the key's
 * OID; keys without one are left out. If a partitioned table has none but each of its partitions
 * does, it is that of the first one.
 */
export const supporting = (
  session: Session,
  keys: ReadonlyArray<Key>
): Effect.Effect<ReadonlyMap<number, string>, DatabaseError> =>
  Effect.gen(function* () {
    const own = yield* found(
      session,
      keys.map((key) => ({ key, relation: key.referencing }))
    )
    const divided = keys.filter((key, index) => own[index] === null && key.referencing.kind === "p")
    const places = divided.flatMap((key) =>
      key.referencing.partitions.flatMap((relation) => (relation.kind === "p" ? [] : [{ key, relation }]))
    )
    const ofPlaces = yield* found(session, places)
    const names = new Map<number, string | null>(keys.map(({ oid }, index) => [oid, own[index] ?? null]))
    for (const [index, { key }] of places.entries()) {
      const first = places[index - 1]?.key !== key
      const name = ofPlaces[index] ?? null
      if (first || name === null) names.set(key.oid, name)
    }
    return new Map([...names].flatMap(([oid, name]) => (name === null ? [] : [[oid, name] as const])))
  })

/** The schemas in which indexes are still to be created. */
export const schemas = (session: Session, key: Key): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  Effect.map(missing(session, key), (steps) =>
    steps.flatMap(({ locks, name }) =>
      name === "index" || name === "index-whole" ? locks.map(({ table }) => table.schema) : []
    )
  )

/** Builds the index where it is missing. `onBuilt` is told the name of each index that was built. */
export const build = (
  bench: Attempt.Bench,
  key: Key,
  task: Parameters<typeof reported>[0],
  onBuilt: (index: string) => Effect.Effect<void>
) =>
  Effect.gen(function* () {
    // As in a change: each round makes progress or finds that somebody else did.
    const rounds = 100 + 10 * key.referencing.partitions.length
    for (let round = 0; round < rounds; round++) {
      const steps = yield* missing(bench.session, key)
      if (steps.length === 0) return undefined
      const end = steps.findIndex(({ locks }) => locks.some(({ table }) => table.oid === unknown))
      yield* Effect.forEach(
        end === -1 ? steps : steps.slice(0, end),
        (step) =>
          Effect.zipRight(
            reported(
              task,
              step,
              step.outsideTransaction === true
                ? Attempt.runOutsideTransaction(bench, step).pipe(
                    Effect.tapErrorTag("LockBudgetExhausted", () => tidy(bench, key))
                  )
                : Attempt.run(bench, step)
            ),
            step.name === "index" || step.name === "index-whole" ? onBuilt(step.index) : Effect.void
          ),
        { discard: true }
      ).pipe(Effect.catchTags({ ChangedMeanwhile: () => Effect.void, TriesExhausted: () => Effect.void }))
    }
    return yield* new Unstable({ constraint: nameOf(key) })
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * The OID of an index that is still to be made: who holds it can be seen when it is there, so steps
 * that lock it wait for the next reading.
 */
const unknown = 0

/** Drops what a build that did not come to its end has left, as far as that can be done at once. */
const tidy = (bench: Attempt.Bench, key: Key) =>
  Effect.flatMap(missing(bench.session, key), (steps) =>
    Attempt.tidy(
      bench,
      steps.flatMap(({ name, statements }) => (name === "index-drop" ? statements : []))
    )
  ).pipe(Effect.ignore)

/** A table of the partition tree, parents before their partitions, with its indexes. */
interface Place extends Relation {
  readonly parent: number | null
  readonly indexes: ReadonlyArray<Found>
}

interface Found extends Relation {
  readonly valid: boolean
  /** Whether it finds the rows of one key: it is valid and starts with the referencing columns, in any order. */
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

/** An index that an interrupted build left behind is not valid: it costs writes and serves nobody. */
const drop = ({ kind, name, oid, schema }: Place, index: Relation): IndexStep => ({
  name: "index-drop",
  index: index.name,
  outsideTransaction: true,
  locks: [{ table: { kind, name, oid, schema }, mode: "SHARE UPDATE EXCLUSIVE" }],
  statements: [`DROP INDEX CONCURRENTLY ${qualified(index)}`]
})

/** Every reader and writer of a table opens its indexes, so those of the partition wait for the moment that it takes. */
const attach = (whole: Relation, part: Relation): IndexStep => ({
  name: "index-attach",
  index: part.name,
  locks: [
    { table: part, mode: "ACCESS EXCLUSIVE" },
    { table: whole, mode: "SHARE UPDATE EXCLUSIVE" }
  ],
  statements: [`ALTER INDEX ${qualified(whole)} ATTACH PARTITION ${qualified(part)}`]
})

/** As PostgreSQL would name it, with a digest that keeps it apart from other indexes; 63 bytes at most. */
const nameFor = (key: Key, place: Relation) => {
  const digest = createHash("sha256")
    .update(JSON.stringify([place.schema, place.name, key.columns]))
    .digest("hex")
    .slice(0, 8)
  let stem = `${place.name}_${key.columns.join("_")}`
  while (Buffer.byteLength(stem) > 50) stem = Array.from(stem).slice(0, -1).join("")
  return `${stem}_${digest}_idx`
}

/** The name of an index for a key on each of these relations, in their order; null where there is none. */
const found = (
  session: Session,
  wanted: ReadonlyArray<{ readonly key: Key; readonly relation: Relation }>
): Effect.Effect<ReadonlyArray<string | null>, DatabaseError> =>
  wanted.length === 0
    ? Effect.succeed([])
    : session
        .query<{ readonly name: string | null }>(selectSupporting, [
          wanted.map(({ relation }) => relation.oid),
          wanted.map(({ key }) => key.oid)
        ])
        .pipe(Effect.map((rows) => rows.map(({ name }) => name)))

/** Columns by name: a partition can have them in another order than its partitioned table. */
const selectSupporting = `
SELECT (
  SELECT (SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.oid = i.indexrelid)
  FROM pg_catalog.pg_index i
  WHERE i.indrelid = w.relation::oid AND i.indisvalid AND i.indisready AND i.indpred IS NULL
    AND i.indnkeyatts >= cardinality(k.conkey)
    AND (SELECT array_agg(x ORDER BY x) FROM unnest((i.indkey::int2[])[0:cardinality(k.conkey) - 1]) AS x) = k.numbers
    AND (
      SELECT m.amname = 'btree' OR m.amname = 'hash' AND cardinality(k.conkey) = 1
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_am m ON m.oid = c.relam WHERE c.oid = i.indexrelid
    )
  ORDER BY i.indnkeyatts, i.indexrelid
  LIMIT 1
) AS name
FROM unnest($1::int8[], $2::int8[]) WITH ORDINALITY AS w (relation, key, position)
LEFT JOIN LATERAL (
  SELECT k.conkey, (
    SELECT array_agg(here.attnum ORDER BY here.attnum)
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_attribute here ON here.attrelid = w.relation::oid AND here.attname = a.attname
    WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
  ) AS numbers
  FROM pg_catalog.pg_constraint k WHERE k.oid = w.key::oid OFFSET 0
) k ON true
ORDER BY w.position`

/** Columns by name: a partition can have them in another order. What `exact` compares is what ATTACH PARTITION compares (CompareIndexInfo, index.c). */
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
