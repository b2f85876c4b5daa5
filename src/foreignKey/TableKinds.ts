/** What tables and columns are besides ordinary, where PostgreSQL refuses statements of a change because of it. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"

/** What is special about a key. */
export interface Kind {
  /** The type that the referencing table was made of (CREATE TABLE ... OF); null for any other. */
  readonly typed: string | null
  /** Its referencing columns that are generated. */
  readonly generated: ReadonlyArray<string>
}

/** Reads the kinds of keys, by their OIDs. */
export const read = (
  session: Session,
  keys: ReadonlyArray<number>
): Effect.Effect<ReadonlyMap<number, Kind>, DatabaseError> =>
  session
    .query<Kind & { readonly oid: string }>(select, [keys])
    .pipe(
      Effect.map(
        (rows) => new Map(rows.map(({ generated, oid, typed }) => [Number(oid), { typed, generated }]))
      )
    )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const select = `
SELECT k.oid::text AS oid, CASE WHEN c.reloftype <> 0 THEN c.reloftype::regtype::text END AS typed,
  ARRAY(
    SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND a.attgenerated <> '' ORDER BY a.attnum
  ) AS generated
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.oid = ANY (($1::int8[])::oid[])`
