/**
 * Where a change moves a key's triggers among those of other keys. PostgreSQL fires the triggers of
 * a table in the order of their names; from 15 on the triggers of a partition get the name of that
 * of their partitioned table when it is renamed, as a change must do, whatever they were called
 * before.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import { nameOf, type Key } from "../../catalog/foreignKeys.js"
import { childrenOf, triggersOf } from "../../catalog/lookups.js"
import { roleOf } from "../../catalog/triggerRole.js"
import { label } from "../../sql/identifiers.js"
import { between } from "../steps/triggers.js"

/** What will be carried out in another order than before, in words. Nothing before 15. */
export const warnings = (
  session: Session,
  key: Key,
  version: number
): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  version < 150_000 || key.referenced.kind !== "p" || !key.referenced.owned
    ? Effect.succeed([])
    : Effect.map(session.query<Move>(moves, [key.oid]), (rows) => rows.map((move) => describe(key, move)))

/**
 * Why new keys would not act where these do, by OID, as far as can be told beforehand. Where the
 * referenced table is another role's, triggers there keep the names that PostgreSQL gives them.
 */
export const obstacles = (
  session: Session,
  keys: ReadonlyArray<Key>
): Effect.Effect<ReadonlyMap<number, string>, DatabaseError> =>
  Effect.gen(function* () {
    const foreign = keys.filter(({ enforced, referenced }) => enforced && !referenced.owned)
    if (foreign.length === 0) return new Map()
    const found = yield* session.query<Neighbour>(neighbours, [foreign.map(({ oid }) => oid)])
    const ofKey = new Map(found.map((neighbour) => [Number(neighbour.key), neighbour]))
    return new Map(
      foreign.flatMap((key): ReadonlyArray<readonly [number, string]> => {
        const neighbour = ofKey.get(key.oid)
        return neighbour === undefined ? [] : [[key.oid, misplaced(key, neighbour)]]
      })
    )
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * A trigger on the other side of which the new key would act, and the key that it belongs to, if
 * it does.
 */
interface Neighbour {
  /** The OID of the key that is to be changed. */
  readonly key: string
  readonly trigger: string | null
  readonly schema: string | null
  readonly table: string | null
  readonly name: string | null
  /** Whether the new key would act before the one that it is to replace. */
  readonly isLate: boolean
}

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

const misplaced = (key: Key, { isLate, name, schema, table, trigger }: Neighbour) => {
  const referenced = label(key.referenced.schema, key.referenced.name)
  const other =
    name === null ? `trigger ${label(trigger ?? "")} on it` : `key ${label(schema ?? "", table ?? "", name)}`
  return `the new key would act ${
    isLate
      ? "before the original until the swap"
      : `on the other side of ${other}, which acts on the same deletes or key updates`
  }, and only the owner of ${referenced} can rename triggers there: run it as a role that owns both tables, or as a superuser`
}

/**
 * The first trigger that is in the way of each key. OIDs are given out in ascending order, so the
 * next one is greater than the last trigger's and what the last checkpoint wrote. Where that is not
 * so, the step finds out.
 */
const neighbours = `
WITH RECURSIVE tree AS (
  SELECT k.oid AS key, k.oid FROM unnest($1::int8[]) AS w (oid)
  CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint k WHERE k.oid = w.oid::oid OFFSET 0) k
  UNION ALL
  SELECT t.key, k.oid FROM tree t CROSS JOIN LATERAL ${childrenOf("t.oid")} k
),
next AS MATERIALIZED (
  SELECT 'RI_ConstraintTrigger_a_' || greatest(c.next_oid::int8, (
    SELECT l.oid::int8 + 1 FROM pg_catalog.pg_trigger l ORDER BY l.oid DESC LIMIT 1
  )) AS name
  FROM pg_catalog.pg_control_checkpoint() c
),
own AS MATERIALIZED (
  SELECT t.key, g.tgrelid, g.tgname, ${roleOf("g.proname")} AS role, n.name AS next
  FROM tree t CROSS JOIN LATERAL ${triggersOf("t.oid")} g CROSS JOIN next n
  WHERE ${roleOf("g.proname")} IN ('delete', 'update')
    AND (SELECT r.relkind FROM pg_catalog.pg_class r WHERE r.oid = g.tgrelid) <> 'p'
)
SELECT DISTINCT ON (o.key) o.key::int8::text AS key, g.tgname::text AS trigger,
  n.nspname::text AS schema, c.relname::text AS table, k.conname::text AS name, o.late AS "isLate"
FROM (SELECT o.*, o.next COLLATE "C" < o.tgname COLLATE "C" AS late FROM own o) o
LEFT JOIN LATERAL (
  SELECT * FROM pg_catalog.pg_trigger g
  WHERE g.tgrelid = o.tgrelid AND ${between("g", "o.role", "o.tgname", "o.next")}
  ORDER BY g.tgname LIMIT 1
) g ON true
LEFT JOIN pg_catalog.pg_constraint k ON k.oid = g.tgconstraint AND g.tgconstraint <> 0
LEFT JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE o.late OR g.oid IS NOT NULL
ORDER BY o.key, o.late DESC, g.tgname`

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
