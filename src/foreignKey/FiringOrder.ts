/**
 * Where a change moves a key's triggers among those of other keys. PostgreSQL fires the triggers of a table in the order of their names; from 15 on the
 * triggers of a partition get the name of that of their partitioned table when it is renamed, as a change must do, whatever they were called before.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import { nameOf, type Key } from "./Catalog.js"
import { childrenOf, triggersOf } from "./Lookup.js"
import { roleOf } from "./Role.js"
import { label } from "./Sql.js"

/** What will be carried out in another order than before, in words. Nothing before 15. */
export const warnings = (
  session: Session,
  key: Key,
  version: number
): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  version < 150_000 || key.referenced.kind !== "p"
    ? Effect.succeed([])
    : Effect.map(session.query<Move>(moves, [key.oid]), (rows) => rows.map((move) => describe(key, move)))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** On some partitions one key will act before or after another one, and did not so far. */
interface Move {
  readonly role: "delete" | "update"
  /** Whether the key that is changed will come first. */
  readonly first: boolean
  /** The other key, by schema, table and name. */
  readonly schema: string
  readonly table: string
  readonly name: string
  /** One of the partitions, and how many there are. */
  readonly partitionSchema: string
  readonly partition: string
  readonly partitions: number
}

const describe = (
  key: Key,
  { first, name, partition, partitionSchema, partitions, role, schema, table }: Move
): string => {
  const pair = [nameOf(key), label(schema, table, name)]
  const [before, after] = first ? pair : pair.toReversed()
  return `on partition ${label(partitionSchema, partition)}${
    partitions > 1 ? ` and ${partitions - 1} more` : ""
  } ${role}s will carry out ${before} before ${after}, and do it the other way round now`
}

const moves = `
WITH RECURSIVE tree AS (
  SELECT k.oid FROM pg_catalog.pg_constraint k WHERE k.oid = $1::int8::oid
  UNION ALL
  SELECT k.oid FROM tree t CROSS JOIN LATERAL ${childrenOf("t.oid")} k
),
own AS MATERIALIZED (
  SELECT g.tgrelid, g.tgname, g.tgconstraint, ${roleOf("g.proname")} AS role
  FROM tree CROSS JOIN LATERAL ${triggersOf("tree.oid")} g
),
other AS MATERIALIZED (
  SELECT g.tgrelid, g.tgname, g.tgconstraint, ${roleOf("p.proname")} AS role
  FROM (SELECT DISTINCT tgrelid FROM own) o
  CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_trigger c WHERE c.tgrelid = o.tgrelid AND c.tgconstraint <> 0 OFFSET 0) g
  JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
  WHERE NOT EXISTS (SELECT FROM own WHERE own.tgconstraint = g.tgconstraint)
),
moved AS (
  SELECT other.tgconstraint, own.tgrelid, own.role, whole.tgname < other.tgname AS first
  FROM own whole
  JOIN own ON own.role = whole.role
  JOIN other ON other.tgrelid = own.tgrelid AND other.role = own.role
  WHERE whole.tgconstraint = $1::int8::oid AND whole.role IN ('delete', 'update')
    AND (whole.tgname < other.tgname) <> (own.tgname < other.tgname)
)
SELECT m.role, m.first, n.nspname AS schema, c.relname AS table, k.conname AS name,
  min(pn.nspname) AS "partitionSchema", min(pc.relname) AS partition, count(*)::int AS partitions
FROM (
  SELECT m.*, (
    WITH RECURSIVE above AS (
      SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k WHERE k.oid = m.tgconstraint
      UNION ALL
      SELECT k.oid, k.conparentid FROM pg_catalog.pg_constraint k JOIN above a ON k.oid = a.conparentid
    )
    SELECT a.oid FROM above a WHERE a.conparentid = 0
  ) AS topmost
  FROM moved m
) m
JOIN pg_catalog.pg_constraint k ON k.oid = m.topmost
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class pc ON pc.oid = m.tgrelid
JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
GROUP BY 1, 2, 3, 4, 5
ORDER BY 3, 4, 5, 1, 2`
