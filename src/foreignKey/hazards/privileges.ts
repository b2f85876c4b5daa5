/**
 * What the current role must be allowed to do with the tables of a key, partitions included,
 * before a change of it begins. It need not own the referenced table (see
 * `FiringOrder.obstacles`), nor be allowed to LOCK or to read it then, except where PostgreSQL
 * would upgrade its own lock.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type { Key, Relation } from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import * as CompetingIndexes from "./competingIndexes.js"
import { label } from "../../sql/identifiers.js"

/** A key, and the schemas in which indexes are to be built for it. */
export interface Wanted {
  readonly key: Key
  readonly indexSchemas: ReadonlyArray<string>
}

/**
 * What is missing for each of the keys, in words, by OID; asked for all of them at once. Each
 * partition of the referencing table gets statements of its own: its part of the key is added
 * alone up to 17, validated, and its constraint renamed. Those of the referenced table are not
 * named in a statement, except up to 14, where the names of their triggers do not follow the
 * partitioned table's.
 */
export const missing = (
  session: Session,
  wanted: ReadonlyArray<Wanted>,
  version: number
): Effect.Effect<ReadonlyMap<number, ReadonlyArray<string>>, DatabaseError> =>
  Effect.map(
    session.query<Missing>(select, [
      JSON.stringify(
        wanted.flatMap(({ key }) => places(key, version).map((place) => ({ key: key.oid, ...place })))
      ),
      `UPDATE, DELETE, TRUNCATE${version < 170_000 ? "" : ", MAINTAIN"}`,
      JSON.stringify(
        wanted.flatMap(({ indexSchemas, key }) => indexSchemas.map((schema) => ({ key: key.oid, schema })))
      )
    ]),
    (rows) => {
      const found = new Map<number, Map<string, Array<string>>>()
      for (const { key, place, privilege } of rows) {
        const ofKey = found.get(Number(key)) ?? new Map<string, Array<string>>()
        found.set(Number(key), ofKey.set(privilege, [...(ofKey.get(privilege) ?? []), place]))
      }
      return new Map(
        [...found].map(([key, ofKey]) => [
          key,
          [...ofKey].map(([privilege, on]) => `${privilege} ${enumerate(on)}`)
        ])
      )
    }
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

interface Missing {
  /** The key's OID. */
  readonly key: string
  /** With its preposition: `ownership of`, `SELECT on`. */
  readonly privilege: string
  readonly place: string
}

/** A table and what is done with it besides what needs its owner. */
interface Place {
  readonly oid: number
  readonly place: string
  /** What only its owner may do; null if nothing. */
  readonly owner: string | null
  /** Whether LOCK TABLE names it. */
  readonly locked: boolean
  /** Whether VALIDATE reads it; without SELECT it would check row by row. */
  readonly read: boolean
  /** The columns that a new key refers to; null if none. */
  readonly referenced: ReadonlyArray<string> | null
}

const places = (key: Key, version: number): ReadonlyArray<Place> => {
  const { referenced, referencing } = key
  const partition = ({ kind, name, oid, schema }: Relation, worked: boolean): Place => ({
    oid,
    place: `partition ${label(schema, name)}`,
    owner: "ownership of",
    locked: worked && kind !== "p" && version < 180_000,
    read: worked && kind !== "p",
    referenced: null
  })
  return [
    {
      oid: referencing.oid,
      place: "the referencing table",
      owner: "ownership of",
      locked: true,
      read: true,
      referenced: null
    },
    {
      oid: referenced.oid,
      place: "the referenced table",
      owner: CompetingIndexes.of(key).length > 0 ? "ownership (to rebuild an index) of" : null,
      locked: referenced.owned || Steps.isLeafwise({ key, version }),
      read: referenced.owned,
      referenced: key.referencedColumns
    },
    ...referencing.partitions.map((part) => partition(part, true)),
    ...(version < 150_000 && referenced.owned
      ? referenced.partitions.filter(({ kind }) => kind !== "p").map((part) => partition(part, false))
      : [])
  ]
}

/** A table can have hundreds of partitions: the first three are named. */
const enumerate = (names: ReadonlyArray<string>) =>
  `${names.slice(0, 3).join(", ")}${names.length > 3 ? ` and ${names.length - 3} more` : ""}`

const select = `
SELECT m.key::text AS key, m.privilege, m.place
FROM (
  SELECT t.key, m.*, min(t.position) AS position
  FROM ROWS FROM (jsonb_to_recordset($1::jsonb) AS (key int8, oid int8, place text, owner text, locked boolean, read boolean, referenced text[]))
    WITH ORDINALITY AS t (key, oid, place, owner, locked, read, referenced, position)
  CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class c WHERE c.oid = t.oid::oid OFFSET 0) c
  CROSS JOIN LATERAL (
    SELECT 1 AS sort, t.owner AS privilege, t.place WHERE t.owner IS NOT NULL AND NOT pg_has_role(c.relowner, 'USAGE')
    UNION ALL
    SELECT 2, 'USAGE on schema', c.relnamespace::regnamespace::text WHERE NOT has_schema_privilege(c.relnamespace, 'USAGE')
    UNION ALL
    SELECT 3, 'UPDATE, DELETE or TRUNCATE (to lock it) on', t.place WHERE t.locked AND NOT has_table_privilege(c.oid, $2)
    UNION ALL
    SELECT 4, 'SELECT on', t.place WHERE t.read AND NOT has_table_privilege(c.oid, 'SELECT')
    UNION ALL
    SELECT 5, 'REFERENCES on', t.place WHERE NOT has_table_privilege(c.oid, 'REFERENCES')
      AND EXISTS (SELECT FROM unnest(t.referenced) AS r (name) WHERE NOT has_column_privilege(c.oid, r.name, 'REFERENCES'))
  ) m
  GROUP BY t.key, m.sort, m.privilege, m.place
  UNION ALL
  SELECT DISTINCT s.key, 6, 'CREATE (to build an index) on schema', n.oid::regnamespace::text, 0
  FROM jsonb_to_recordset($3::jsonb) AS s (key int8, schema text)
  JOIN pg_catalog.pg_namespace n ON n.nspname = s.schema
  WHERE NOT has_schema_privilege(n.oid, 'CREATE')
) m
ORDER BY m.key, m.sort, m.position, m.place`
