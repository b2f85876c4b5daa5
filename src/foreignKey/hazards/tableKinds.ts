/**
 * What the tables and columns of keys are besides their names: what makes PostgreSQL refuse
 * statements of a change, and what makes two changes alike.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"

/** What a key is. */
export interface Kind {
  /** The type that the referencing table was made of (CREATE TABLE ... OF); null for any other. */
  readonly typed: string | null
  /** Its referencing columns that are generated. */
  readonly generated: ReadonlyArray<string>
  /**
   * Equal for keys that the server can tell apart by names, rows, and the number of partitions
   * only; the action ON DELETE is left out.
   */
  readonly likeness: string
}

/** Reads the kinds of keys, by their OIDs. */
export const read = (
  session: Session,
  keys: ReadonlyArray<number>
): Effect.Effect<ReadonlyMap<number, Kind>, DatabaseError> =>
  session
    .query<Kind & { readonly oid: string }>(select, [keys])
    .pipe(Effect.map((rows) => new Map(rows.map(({ oid, ...kind }) => [Number(oid), kind]))))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const table = (oid: string) => `(
  SELECT jsonb_build_array(c.relnamespace, c.relkind, c.relpersistence, c.reloftype, c.relowner, (
    SELECT jsonb_agg(DISTINCT jsonb_build_array(p.relkind, t.partstrat))
    FROM pg_catalog.pg_partition_tree(c.oid) q JOIN pg_catalog.pg_class p ON p.oid = q.relid
    LEFT JOIN pg_catalog.pg_partitioned_table t ON t.partrelid = p.oid
    WHERE c.relkind = 'p'
  ))
  FROM pg_catalog.pg_class c WHERE c.oid = ${oid}
)`

const columns = (relation: string, numbers: string) => `(
  SELECT jsonb_agg(jsonb_build_array(a.atttypid, a.atttypmod, a.attcollation, a.attgenerated, a.attnotnull) ORDER BY u.position)
  FROM unnest(${numbers}) WITH ORDINALITY AS u (number, position)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = ${relation} AND a.attnum = u.number
)`

const select = `
SELECT k.oid::text AS oid, CASE WHEN c.reloftype <> 0 THEN c.reloftype::regtype::text END AS typed,
  ARRAY(
    SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND a.attgenerated <> '' ORDER BY a.attnum
  ) AS generated,
  jsonb_build_array(
    k.conrelid = k.confrelid, ${table("k.conrelid")}, ${table("k.confrelid")},
    ${columns("k.conrelid", "k.conkey")}, ${columns("k.confrelid", "k.confkey")},
    k.confupdtype, k.confmatchtype, k.condeferrable, k.condeferred, k.convalidated, to_jsonb(k) -> 'conenforced',
    (SELECT jsonb_build_array(i.indclass::text, i.indnkeyatts, i.indnatts) FROM pg_catalog.pg_index i WHERE i.indexrelid = k.conindid)
  )::text AS likeness
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.oid = ANY (($1::int8[])::oid[])`
