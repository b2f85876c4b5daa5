/**
 * PL/pgSQL fragments that give the rows and triggers of one key what they should have. A key of
 * partitioned tables is a tree of constraints, whose generated names a statement cannot know in
 * advance, so these read the catalogs while they run, under the locks of their step.
 */
import * as Comments from "../../catalog/comments.js"
import type * as Snapshot from "../snapshot/snapshot.js"
import * as Lookup from "../../catalog/lookups.js"
import { block, literal } from "../../sql/identifiers.js"
import { roleOf } from "../../catalog/triggerRole.js"

/** A constraint by the table it is on and its name. */
export interface Place extends Snapshot.Place {
  /** Only what concerns this partition, as in {@link Snapshot.concerning}. */
  readonly partition?: number
}

/** The keys of one name on all partitions of a table. */
export interface Parts {
  readonly partitionsOf: number
  readonly name: string
}

/**
 * An anonymous block of fragments, each of which may use the variables `document jsonb` and `r
 * record`.
 */
export const guard = (...fragments: ReadonlyArray<string>): string =>
  block(`DECLARE
  document jsonb;
  r record;
BEGIN
  ${fragments.join("\n  ")}
END`)

/** Names and comments of the constraints below the topmost one, as a snapshot has them. */
export const restoreRows = (place: Place, snapshot: Snapshot.Snapshot): ReadonlyArray<string> => {
  const [, ...rest] = snapshot
  if (rest.length === 0) return []
  const wanted = recordset(
    rest.map(({ comment, constraint }) => ({
      relation: constraint["conrelid"],
      referenced: constraint["confrelid"],
      name: constraint["conname"],
      comment
    })),
    "relation oid, referenced oid, name text, comment jsonb"
  )
  const wantedComment = Comments.fromJson("w.comment")
  const rows = `${rowsOf(place)} k JOIN ${wanted} ON w.relation = k.conrelid AND w.referenced = k.confrelid`
  return [
    // A generated name can be the one that another row of the same table should have: it makes way.
    guard(
      `FOR r IN
    SELECT k.conrelid::regclass AS relation, k.conname, k.oid FROM ${rows}
    WHERE k.depth > 0 AND k.conname <> w.name
      AND EXISTS (SELECT FROM ${wanted} WHERE w.relation = k.conrelid AND w.referenced <> k.confrelid AND w.name = k.conname)
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
    SELECT k.conrelid::regclass AS relation, k.conname, ${wantedComment} AS comment FROM ${rows}
    WHERE k.depth > 0 AND pg_catalog.obj_description(k.oid, 'pg_constraint') IS DISTINCT FROM ${wantedComment}
  LOOP
    EXECUTE format('COMMENT ON CONSTRAINT %I ON %s IS %L', r.conname, r.relation, r.comment);
  END LOOP;`)
  ]
}

/**
 * New names for the constraints below the topmost one: each gets the one that `names` pairs it
 * with.
 */
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

/**
 * A fragment that gives the triggers of a key the names that a snapshot has: PostgreSQL fires
 * triggers in the order of their names.
 */
export const restoreTriggerNames = (place: Place, snapshot: Snapshot.Snapshot): string =>
  `FOR r IN
    SELECT g.tgrelid::regclass AS relation, g.tgname, w.name
    FROM ${triggersOf(place)} g
    JOIN ${recordset(
      triggers(snapshot).map(({ name, role, table }) => ({ relation: table, role, name })),
      "relation oid, role text, name text"
    )} ON w.relation = g.tgrelid AND w.role = g.role
    WHERE g.tgparentid = 0 AND g.tgname <> w.name
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, r.name);
  END LOOP;`

/**
 * A fragment that gives the triggers of a key the states and the names that a snapshot has; a name
 * that is null there is left as it is. Those of one table are read once.
 */
export const restoreTriggers = (place: Place, snapshot: Snapshot.Snapshot): string =>
  isOneRow(place)
    ? `FOR r IN
    SELECT g.tgrelid::regclass AS relation,
      string_agg(${enabling}, ', ') FILTER (WHERE g.tgenabled::text <> w.enabled) AS clauses,
      string_agg(format('ALTER TRIGGER %I ON %s RENAME TO %I', g.tgname, g.tgrelid::regclass, w.name), '; ')
        FILTER (WHERE g.tgname <> w.name) AS renames
    FROM ${triggersOf(place)} g
    JOIN ${recordset(
      triggers(snapshot).map(({ enabled, name, role, table }) => ({ relation: table, role, enabled, name })),
      "relation oid, role text, enabled text, name text"
    )} ON w.relation = g.tgrelid AND w.role = g.role
    GROUP BY g.tgrelid
  LOOP
    IF r.clauses IS NOT NULL THEN EXECUTE format('ALTER TABLE ONLY %s %s', r.relation, r.clauses); END IF;
    IF r.renames IS NOT NULL THEN EXECUTE r.renames; END IF;
  END LOOP;`
    : `${restoreEnabled(place, snapshot)}\n  ${restoreTriggerNames(place, snapshot)}`

/**
 * A fragment that exchanges the names of two keys' triggers where the second key's would fire
 * before the first's. From 15 on the triggers of partitions follow that of their partitioned table
 * when it is renamed, and have had names of their own until then: where one of them is late
 * although its partitioned table's is not, that one is renamed away and back.
 */
export const fireFirst = (first: Place, second: Place, roles: ReadonlyArray<Snapshot.Role>): string =>
  `FOR r IN
    WITH pair AS MATERIALIZED (${pairs(first, second)})
    SELECT p.relation::regclass AS relation, p.one, p.other, p.late FROM pair p
    WHERE p.role IN (${roles.map(literal).join(", ")}) AND p.whole
      AND (p.late OR EXISTS (SELECT FROM pair c WHERE c.role = p.role AND NOT c.whole AND c.late))
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO promptgrimoire_fk_exchange', r.other, r.relation);
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO promptgrimoire_fk_exchanged', r.one, r.relation);
    EXECUTE format('ALTER TRIGGER promptgrimoire_fk_exchange ON %s RENAME TO %I', r.relation, CASE WHEN r.late THEN r.one ELSE r.other END);
    EXECUTE format('ALTER TRIGGER promptgrimoire_fk_exchanged ON %s RENAME TO %I', r.relation, CASE WHEN r.late THEN r.other ELSE r.one END);
  END LOOP;`

/**
 * Whether a key and the one that is to take its place act in the right order, as {@link standing}
 * finds it.
 */
export interface Standing {
  /**
   * Where an enabled trigger of the new key fires before the original's: deletes, key updates or
   * error messages follow the new key.
   */
  readonly late: ReadonlyArray<{ readonly role: Snapshot.Role; readonly table: number }>
  /** Whether the new key acts on deletes or key updates at all. */
  readonly acts: boolean
  /** Whether triggers of the new key are disabled that are not so in the original. */
  readonly muted: boolean
}

/**
 * How the triggers of a key stand to those of the one that is to take its place, or of its parts,
 * as an SQL expression of type jsonb (a {@link Standing}).
 */
export const standing = (original: Place, successor: Place | Parts): string =>
  `(SELECT jsonb_build_object(
    'late', coalesce(jsonb_agg(DISTINCT jsonb_build_object('role', p.role, 'table', p.relation::int8)) FILTER (WHERE p.late), '[]'),
    'acts', coalesce(bool_or(p.acts AND p.role IN ('delete', 'update')), false),
    'muted', coalesce(bool_or(p.muted), false)
  ) FROM (${meetings(original, successor)}) p)`

/**
 * A fragment that fails with {@link outOfOrderCode}, and the roles as its detail, if a trigger of
 * the new key would fire before the original's on some table.
 */
export const requireOrder = (original: Place, successor: Place | Parts): string =>
  `document := (SELECT jsonb_agg(DISTINCT p.role) FROM (${meetings(original, successor)}) p WHERE p.late);
  IF document IS NOT NULL THEN
    RAISE EXCEPTION USING ERRCODE = ${literal(outOfOrderCode)},
      MESSAGE = 'the new key would act before the original', DETAIL = document::text;
  END IF;`

/** SQLSTATE of our own: triggers of the new key would fire before the original's. */
export const outOfOrderCode = "FKG04"

/**
 * A fragment that fails with {@link outOfPlaceCode} if a trigger of the referenced table fires
 * between those of the two keys: the new key would not act where the original did. The detail is a
 * {@link Between}. `dropOriginal` is run before the look, because it is what locks that table.
 */
export const requirePlace = (original: Place, successor: Place, dropOriginal?: string): string =>
  `document := (SELECT coalesce(jsonb_agg(to_jsonb(m)), '[]') FROM (${meetings(original, successor)}) m);${
    dropOriginal === undefined ? "" : `\n  ${dropOriginal};`
  }
  document := (
    SELECT jsonb_build_object('table', t.tgrelid::regclass::text, 'trigger', quote_ident(t.tgname), 'key', (
      SELECT k.conrelid::regclass::text || '.' || quote_ident(k.conname) FROM pg_catalog.pg_constraint k
      WHERE k.oid = t.tgconstraint AND t.tgconstraint <> 0
    ))
    FROM jsonb_to_recordset(document) AS m (relation oid, role text, one text, other text)
    JOIN pg_catalog.pg_trigger t ON t.tgrelid = m.relation AND ${between("t", "m.role", "m.one", "m.other")}
    ORDER BY t.tgname COLLATE "C" LIMIT 1
  );
  IF document IS NOT NULL THEN
    RAISE EXCEPTION USING ERRCODE = ${literal(outOfPlaceCode)},
      MESSAGE = 'the new key would not act where the original did', DETAIL = document::text;
  END IF;`

/**
 * A trigger that fires between those of two keys; its table and the key that it belongs to, as
 * SQL names them.
 */
export interface Between {
  readonly table: string
  readonly trigger: string
  readonly key: string | null
}

/**
 * SQLSTATE of our own: between the triggers of the original and the new key, those of others
 * fire.
 */
export const outOfPlaceCode = "FKG05"

/** Whether a trigger fires for the event of a role between two others, after rows have changed. */
export const between = (trigger: string, role: string, one: string, other: string) =>
  `${trigger}.tgtype::int & 3 = 1
      AND ${trigger}.tgtype::int & CASE ${role} WHEN 'delete' THEN 8 WHEN 'update' THEN 16 ELSE 0 END <> 0
      AND ${trigger}.tgname COLLATE "C" > least(${one} COLLATE "C", ${other} COLLATE "C")
      AND ${trigger}.tgname COLLATE "C" < greatest(${one} COLLATE "C", ${other} COLLATE "C")`

/**
 * A fragment that renames the triggers of the new key, or of its parts, that would fire before the
 * original's, so that they fire after them on every table. The original's keep their names, and
 * with them their places among those of other keys. The name is the greatest of the original's and
 * something that sorts after it; one of 63 bytes is cut for that, as late as possible.
 */
export const fireLast = (
  original: Place,
  successor: Place | Parts,
  roles: ReadonlyArray<Snapshot.Role>
): string =>
  `FOR r IN
    SELECT s.tgrelid::regclass AS relation, s.tgname, (
      SELECT n.name
      FROM generate_series(0, char_length(g.greatest)) cut
      CROSS JOIN LATERAL (SELECT left(g.greatest, char_length(g.greatest) - cut) || '~' || s.oid AS name) n
      WHERE octet_length(n.name) < 64 AND n.name COLLATE "C" > g.greatest COLLATE "C"
      ORDER BY cut LIMIT 1
    ) AS name
    FROM ${triggersOf(successor)} s
    JOIN (
      SELECT f.role, max(f.tgname COLLATE "C") AS greatest FROM ${triggersOf(original)} f GROUP BY f.role
    ) g ON g.role = s.role
    WHERE s.tgparentid = 0 AND s.role IN (${roles.map(literal).join(", ")})
      AND s.role IN (SELECT p.role FROM (${meetings(original, successor)}) p WHERE p.early)
  LOOP
    IF r.name IS NOT NULL THEN EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, r.name); END IF;
  END LOOP;`

/**
 * A fragment that disables all triggers of a key, or of the parts of one. Only a superuser may do
 * this to such triggers.
 */
export const mute = (place: Place | Parts): string =>
  enable(place, `${triggersOf(place)} g CROSS JOIN (VALUES ('D')) AS w (enabled)`)

/**
 * A fragment: a trigger that was disabled, or fires always or on replicas only, is so in the place
 * of this snapshot too. Only a superuser may do this to such a trigger.
 */
export const restoreEnabled = (
  place: Place,
  snapshot: Snapshot.Snapshot,
  roles: ReadonlyArray<Snapshot.Role> = ["delete", "update", "checkInsert", "checkUpdate"]
): string =>
  enable(
    place,
    `${triggersOf(place)} g
    JOIN ${recordset(
      triggers(snapshot)
        .filter(({ role }) => roles.includes(role))
        .map(({ enabled, role, table }) => ({ relation: table, role, enabled })),
      "relation oid, role text, enabled text"
    )} ON w.relation = g.tgrelid AND w.role = g.role`
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * Brings the triggers `g` into the states `w.enabled`, those of a table by one statement. From 15
 * on that of a partitioned table takes those of its partitions along, so it comes first; the others
 * follow one by one.
 */
const enable = (place: Place | Parts, wanted: string) => {
  const loop = (where: string, only: string) => `FOR r IN
    SELECT g.tgrelid::regclass AS relation, string_agg(${enabling}, ', ') AS clauses
    FROM ${wanted}
    WHERE ${where}g.tgenabled::text <> w.enabled
    GROUP BY g.tgrelid
  LOOP
    EXECUTE format('ALTER TABLE ${only}%s %s', r.relation, r.clauses);
  END LOOP;`
  return isOneRow(place)
    ? loop("", "ONLY ")
    : [loop("g.kind = 'p' AND g.tgparentid = 0 AND ", ""), loop("", "ONLY ")].join("\n  ")
}

/** The clause of ALTER TABLE that brings a trigger `g` into the state `w.enabled`. */
const enabling = `format('%s TRIGGER %I',
      CASE w.enabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END, g.tgname)`

/** Whether it is one constraint, because none of its tables is partitioned. */
const isOneRow = (place: Place | Parts) => "table" in place && !place.partitioned

const triggers = (snapshot: Snapshot.Snapshot) => snapshot.flatMap((entry) => entry.triggers)

/**
 * The triggers of two keys that do the same on the same table, and whether the second key's is the
 * earlier one. Those of partitions that follow another one are not whole.
 */
const pairs = (first: Place, second: Place) => `
    SELECT f.tgrelid AS relation, f.role, f.tgname AS one, s.tgname AS other, f.tgparentid = 0 AS whole,
      s.tgname COLLATE "C" < f.tgname COLLATE "C" AS late
    FROM ${triggersOf(first)} f
    JOIN ${triggersOf(second)} s ON s.tgrelid = f.tgrelid AND s.role = f.role`

/**
 * The triggers of two keys where they meet: those of a partitioned table itself fire for no row.
 */
const meetings = (original: Place, successor: Place | Parts) => `
    SELECT m.*, m.early AND m.acts AS late
    FROM (
      SELECT s.tgrelid AS relation, s.role, f.tgname AS one, s.tgname AS other,
        s.tgname COLLATE "C" < f.tgname COLLATE "C" AS early,
        s.tgenabled <> 'D' AS acts, s.tgenabled = 'D' AND f.tgenabled <> 'D' AS muted
      FROM ${triggersOf(original)} f
      JOIN ${triggersOf(successor)} s ON s.tgrelid = f.tgrelid AND s.role = f.role
      WHERE f.kind <> 'p'
    ) m`

/** Rows of our own as a table `w`. */
const recordset = (rows: ReadonlyArray<object>, columns: string) =>
  `jsonb_to_recordset(${literal(JSON.stringify(rows))}::jsonb) AS w (${columns})`

/** The constraints of a key, the topmost one with depth 0. */
const rowsOf = (place: Place | Parts) =>
  "table" in place && !place.partitioned
    ? `(
    SELECT k.oid, k.conrelid, k.confrelid, k.conname::text, 0 AS depth
    FROM pg_catalog.pg_constraint k
    WHERE k.conrelid = ${place.table}::oid AND k.conname = ${literal(place.name)} AND k.contype = 'f'
  )`
    : `(
    WITH RECURSIVE tree AS (
      SELECT k.oid, k.conrelid, k.confrelid, k.conname::text, 0 AS depth
      FROM pg_catalog.pg_constraint k
      WHERE k.conrelid ${
        "partitionsOf" in place
          ? `= ANY (ARRAY(SELECT q.relid::oid FROM pg_catalog.pg_partition_tree(${place.partitionsOf}::oid::regclass) q WHERE q.isleaf))`
          : `= ${place.table}::oid`
      } AND k.conname = ${literal(place.name)} AND k.contype = 'f'
      UNION ALL
      SELECT k.oid, k.conrelid, k.confrelid, k.conname::text, t.depth + 1
      FROM tree t CROSS JOIN LATERAL ${Lookup.childrenOf("t.oid")} k
    )
    SELECT * FROM tree${
      "partition" in place ? ` WHERE conrelid IN (${place.table}::oid, ${place.partition}::oid)` : ""
    }
  )`

/** The triggers of a key. Those of many partitions are read once, whatever they are joined with. */
const triggersOf = (place: Place | Parts) => `(
    WITH found AS ${isOneRow(place) ? "NOT MATERIALIZED" : "MATERIALIZED"} (
    SELECT g.oid, g.tgrelid, g.tgname::text AS tgname, g.tgenabled, g.tgparentid, ${roleOf("g.proname")} AS role,
      (SELECT t.relkind FROM pg_catalog.pg_class t WHERE t.oid = g.tgrelid) AS kind
    FROM ${rowsOf(place)} k
    CROSS JOIN LATERAL ${Lookup.triggersOf("k.oid")} g
    )
    SELECT * FROM found
  )`
