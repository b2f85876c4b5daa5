/**
 * PL/pgSQL fragments that give the rows and triggers of one key what they should have. A key of partitioned tables is a tree of constraints, whose
 * generated names a statement cannot know in advance, so these read the catalogs while they run, under the locks of their step.
 */
import type * as Fidelity from "./Fidelity.js"
import * as Lookup from "./Lookup.js"
import { block, literal } from "./Sql.js"
import { roleOf } from "./Role.js"

/** A constraint by the table it is on and its name. */
export interface Place {
  readonly table: number
  readonly name: string
  /** Only what concerns this partition, as in {@link Fidelity.concerning}. */
  readonly partition?: number
}

/** An anonymous block of fragments, each of which may use the variables `vector jsonb` and `r record`. */
export const guard = (...fragments: ReadonlyArray<string>): string =>
  block(`DECLARE
  vector jsonb;
  r record;
BEGIN
  ${fragments.join("\n  ")}
END`)

/** Names and comments of the constraints below the topmost one, as a vector has them. */
export const restoreRows = (place: Place, vector: Fidelity.Vector): ReadonlyArray<string> => {
  const [, ...rest] = vector
  if (rest.length === 0) return []
  const wanted = recordset(
    rest.map(({ comment, constraint }) => ({
      relation: constraint["conrelid"],
      referenced: constraint["confrelid"],
      name: constraint["conname"],
      comment
    })),
    "relation oid, referenced oid, name text, comment text"
  )
  const rows = `${rowsOf(place)} k JOIN ${wanted} ON w.relation = k.conrelid AND w.referenced = k.confrelid`
  return [
    // In two passes: a generated name can be the one that another row of the same table should have.
    guard(
      `FOR r IN
    SELECT k.conrelid::regclass AS relation, k.conname, k.oid FROM ${rows}
    WHERE k.depth > 0 AND k.conname <> w.name
  LOOP
    EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', r.relation, r.conname, 'promptgrimoire_fk_row_' || r.oid);
  END LOOP;`,
      `FOR r IN
    SELECT k.conrelid::regclass AS relation, k.conname, w.name FROM ${rows}
    WHERE k.depth > 0 AND k.conname <> w.name
  LOOP
    EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', r.relation, r.conname, r.name);
  END LOOP;`
    ),
    guard(`FOR r IN
    SELECT k.conrelid::regclass AS relation, k.conname, w.comment FROM ${rows}
    WHERE k.depth > 0 AND pg_catalog.obj_description(k.oid, 'pg_constraint') IS DISTINCT FROM w.comment
  LOOP
    EXECUTE format('COMMENT ON CONSTRAINT %I ON %s IS %L', r.conname, r.relation, r.comment);
  END LOOP;`)
  ]
}

/** New names for the constraints below the topmost one: each gets the one that `names` pairs it with. */
export const renameRows = (
  place: Place,
  names: ReadonlyArray<{ readonly relation: unknown; readonly referenced: unknown; readonly name: string }>
): ReadonlyArray<string> =>
  names.length === 0
    ? []
    : [
        guard(`FOR r IN
    SELECT k.conrelid::regclass AS relation, k.conname, w.name
    FROM ${rowsOf(place)} k
    JOIN ${recordset(names, "relation oid, referenced oid, name text")} ON w.relation = k.conrelid AND w.referenced = k.confrelid
    WHERE k.depth > 0 AND k.conname <> w.name
  LOOP
    EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', r.relation, r.conname, r.name);
  END LOOP;`)
      ]

/** Gives the triggers of a key the names that a vector has: PostgreSQL fires triggers in the order of their names. */
export const restoreTriggerNames = (place: Place, vector: Fidelity.Vector): string =>
  guard(`FOR r IN
    SELECT g.tgrelid::regclass AS relation, g.tgname, w.name
    FROM ${triggersOf(place)} g
    JOIN ${recordset(
      triggers(vector).map(({ name, role, table }) => ({ relation: table, role, name })),
      "relation oid, role text, name text"
    )} ON w.relation = g.tgrelid AND w.role = g.role
    WHERE g.tgparentid = 0 AND g.tgname <> w.name
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, r.name);
  END LOOP;`)

/**
 * Exchanges the names of two keys' triggers where the second key's would fire before the first's. From 15 on the triggers of partitions follow
 * that of their partitioned table when it is renamed, and have had names of their own until then: where one of them is late although its partitioned table's is not, that
 * one is renamed away and back.
 */
export const fireFirst = (first: Place, second: Place, roles: ReadonlyArray<Fidelity.Role>): string =>
  guard(`FOR r IN
    WITH pair AS MATERIALIZED (${pairs(first, second)})
    SELECT p.relation::regclass AS relation, p.one, p.other, p.late FROM pair p
    WHERE p.role IN (${roles.map(literal).join(", ")}) AND p.whole
      AND (p.late OR EXISTS (SELECT FROM pair c WHERE c.role = p.role AND NOT c.whole AND c.late))
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO promptgrimoire_fk_exchange', r.other, r.relation);
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO promptgrimoire_fk_exchanged', r.one, r.relation);
    EXECUTE format('ALTER TRIGGER promptgrimoire_fk_exchange ON %s RENAME TO %I', r.relation, CASE WHEN r.late THEN r.one ELSE r.other END);
    EXECUTE format('ALTER TRIGGER promptgrimoire_fk_exchanged ON %s RENAME TO %I', r.relation, CASE WHEN r.late THEN r.other ELSE r.one END);
  END LOOP;`)

/** The roles in which a trigger of the second key fires before the first key's on some table, as an SQL expression of type jsonb. */
export const lateRoles = (first: Place, second: Place): string =>
  `(SELECT coalesce(jsonb_agg(DISTINCT p.role), '[]') FROM (${pairs(first, second)}) p WHERE p.late)`

/** Gives the triggers of the partitions' own keys of one name a late name where they would fire before those of their partitioned table's key. */
export const firePartsLast = (whole: Place, part: string, roles: ReadonlyArray<Fidelity.Role>): string =>
  guard(`FOR r IN
    SELECT DISTINCT p.tgrelid::regclass AS relation, p.tgname, p.oid
    FROM ${triggersOf(whole)} w
    JOIN ${triggersOf({ partitionsOf: whole.table, name: part })} p ON p.tgrelid = w.tgrelid AND p.role = w.role
    WHERE w.role IN (${roles.map(literal).join(", ")}) AND p.tgparentid = 0
      AND p.tgname COLLATE "C" < w.tgname COLLATE "C"
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, 'promptgrimoire_fk_late_' || r.oid);
  END LOOP;`)

/** A trigger that was disabled, or fires always or on replicas only, stays so. Only a superuser may do this to such a trigger. */
export const restoreEnabled = (place: Place, vector: Fidelity.Vector): string =>
  guard(`FOR r IN
    SELECT g.tgrelid::regclass AS relation, g.tgname,
      CASE w.enabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END AS clause
    FROM ${triggersOf(place)} g
    JOIN ${recordset(
      triggers(vector).map(({ enabled, role, table }) => ({ relation: table, role, enabled })),
      "relation oid, role text, enabled text"
    )} ON w.relation = g.tgrelid AND w.role = g.role
    WHERE g.tgenabled::text <> w.enabled
  LOOP
    EXECUTE format('ALTER TABLE ONLY %s %s TRIGGER %I', r.relation, r.clause, r.tgname);
  END LOOP;`)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const triggers = (vector: Fidelity.Vector) => vector.flatMap((entry) => entry.triggers)

/** The triggers of two keys that do the same on the same table, and whether the second key's is the earlier one. Those of partitions that follow another one are not whole. */
const pairs = (first: Place, second: Place) => `
    SELECT f.tgrelid AS relation, f.role, f.tgname AS one, s.tgname AS other, f.tgparentid = 0 AS whole,
      s.tgname COLLATE "C" < f.tgname COLLATE "C" AS late
    FROM ${triggersOf(first)} f
    JOIN ${triggersOf(second)} s ON s.tgrelid = f.tgrelid AND s.role = f.role`

/** Rows of our own as a table `w`. */
const recordset = (rows: ReadonlyArray<object>, columns: string) =>
  `jsonb_to_recordset(${literal(JSON.stringify(rows))}::jsonb) AS w (${columns})`

/** The keys of one name on all partitions of a table. */
interface Parts {
  readonly partitionsOf: number
  readonly name: string
}

/** The constraints of a key, the topmost one with depth 0. */
const rowsOf = (place: Place | Parts) => `(
    WITH RECURSIVE tree AS (
      SELECT k.oid, k.conrelid, k.confrelid, k.conname::text, 0 AS depth
      FROM pg_catalog.pg_constraint k
      WHERE k.conrelid ${
        "table" in place
          ? `= ${place.table}::oid`
          : `= ANY (ARRAY(SELECT q.relid::oid FROM pg_catalog.pg_partition_tree(${place.partitionsOf}::oid::regclass) q WHERE q.isleaf))`
      } AND k.conname = ${literal(place.name)} AND k.contype = 'f'
      UNION ALL
      SELECT k.oid, k.conrelid, k.confrelid, k.conname::text, t.depth + 1
      FROM tree t CROSS JOIN LATERAL ${Lookup.childrenOf("t.oid")} k
    )
    SELECT * FROM tree${
      "partition" in place ? ` WHERE conrelid IN (${place.table}::oid, ${place.partition}::oid)` : ""
    }
  )`

const triggersOf = (place: Place | Parts) => `(
    SELECT g.oid, g.tgrelid, g.tgname::text AS tgname, g.tgenabled, g.tgparentid, ${roleOf("g.proname")} AS role
    FROM ${rowsOf(place)} k
    CROSS JOIN LATERAL ${Lookup.triggersOf("k.oid")} g
  )`
