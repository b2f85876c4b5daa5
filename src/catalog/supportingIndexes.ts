/** The indexes that serve deletes and key updates of referenced rows. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import type { Key, Relation } from "./foreignKeys.js"

/**
 * An index of each key whose leading columns are the referencing columns, in any order, by the
 * key's OID; keys without one are left out. If a partitioned table has none but each of its
 * partitions does, it is that of the first one.
 */
export const read = (
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

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * The name of an index for a key on each of these relations, in their order; null where there is
 * none.
 */
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
