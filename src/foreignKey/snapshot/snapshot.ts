/**
 * Everything the catalogs say about a foreign key, as one JSON document that two keys can be
 * compared by: the row of pg_constraint (all columns, so also those of versions to come), comment,
 * dependencies, and each enforcing trigger with its name (PostgreSQL fires triggers in the order of
 * their names), state and deferrability. A key of a partitioned table is a tree of rows.
 */
import * as Array from "effect/Array"
import * as Effect from "effect/Effect"
import * as Struct from "effect/Struct"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Action from "../../catalog/action.js"
import * as Comments from "../../catalog/comments.js"
import { roleOf } from "../../catalog/triggerRole.js"
import { childrenOf, triggersOf } from "../../catalog/lookups.js"
import { literal } from "../../sql/identifiers.js"

/** What a trigger of a foreign key does. */
export type Role = "delete" | "update" | "checkInsert" | "checkUpdate"

/** One of the triggers that enforce a foreign key. */
export interface Trigger {
  readonly role: Role
  /** The table it is on (OID). */
  readonly table: number
  /**
   * Null for a trigger on a partition that follows the one on its partitioned table (15 and later).
   */
  readonly name: string | null
  readonly function: string
  readonly deferrable: boolean
  readonly initiallyDeferred: boolean
  /** `pg_trigger.tgenabled`: `O` origin, `D` disabled, `R` replica, `A` always. */
  readonly enabled: string
  readonly [field: string]: unknown
}

/** One row of pg_constraint with what belongs to it. */
export interface Entry {
  readonly oid: number
  readonly constraint: { readonly [column: string]: unknown }
  readonly comment: Comments.Comment
  readonly triggers: ReadonlyArray<Trigger>
  readonly [field: string]: unknown
}

/** A key: its own row first, then those of its partitions. */
export type Snapshot = readonly [Entry, ...ReadonlyArray<Entry>]

/** A constraint by the table it is on and its name. */
export interface Place {
  readonly table: number
  readonly name: string
  /**
   * Whether one of the key's tables is partitioned. If not, it is one row, and looking for others
   * would cost most of the time.
   */
  readonly partitioned: boolean
}

/** How one field of a key differs from what it should be. */
export interface Difference {
  readonly field: string
  readonly expected: unknown
  readonly actual: unknown
}

/** Reads the snapshot of a key; undefined if there is no such key. */
export const read = (
  session: Session,
  table: number,
  name: string
): Effect.Effect<Snapshot | undefined, DatabaseError> =>
  session
    .query<{ readonly snapshot: string | null }>(one, [table, name], { prepare: true })
    .pipe(Effect.map((rows) => parse(rows[0]?.snapshot ?? null)))

/** Reads the snapshots of many keys, by their OIDs. Those that are gone are left out. */
export const readAll = (
  session: Session,
  keys: ReadonlyArray<number>
): Effect.Effect<ReadonlyMap<number, Snapshot>, DatabaseError> =>
  Effect.forEach(Array.chunksOf(keys, most), (some) =>
    session.query<{ readonly oid: string; readonly snapshot: string | null }>(
      `SELECT one.oid::int8::text AS oid, (${expression("one.conrelid", "one.conname")})::text AS snapshot
      FROM unnest($1::int8[]) AS w (oid)
      CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint c WHERE c.oid = w.oid::oid OFFSET 0) one`,
      [some]
    )
  ).pipe(
    Effect.map(
      (found) =>
        new Map(
          found.flat().flatMap(({ oid, snapshot }): ReadonlyArray<readonly [number, Snapshot]> => {
            const parsed = parse(snapshot)
            return parsed === undefined ? [] : [[Number(oid), parsed]]
          })
        )
    )
  )

/** Reads a snapshot back from its text. */
export const parse = (text: string | null): Snapshot | undefined =>
  text === null ? undefined : ((JSON.parse(text) as Snapshot | null) ?? undefined)

/**
 * The snapshot that a key must have after its ON DELETE action was changed: the same but for the
 * action itself.
 */
export const withAction = (
  snapshot: Snapshot,
  action: Action.Action,
  columns: ReadonlyArray<number>
): Snapshot =>
  mapEntries(snapshot, (entry) => ({
    ...entry,
    constraint: {
      ...entry.constraint,
      confdeltype: Action.code(action),
      ...("confdelsetcols" in entry.constraint
        ? { confdelsetcols: columns.length === 0 ? null : columns }
        : {})
    },
    triggers: entry.triggers.map((trigger) =>
      trigger.role === "delete"
        ? {
            ...trigger,
            function: Action.deleteFunction(action),
            deferrable: action === "no-action" && entry.constraint["condeferrable"] === true,
            initiallyDeferred: action === "no-action" && entry.constraint["condeferred"] === true
          }
        : trigger
    )
  }))

/**
 * The snapshot of a key while its checks wait for the end of the transaction, and its comment is
 * this one.
 */
export const unsettled = (snapshot: Snapshot, comment: string): Snapshot =>
  mapEntries(snapshot, (entry, index) => ({
    ...entry,
    constraint: { ...entry.constraint, condeferred: true },
    comment: index === 0 ? comment : entry.comment,
    triggers: entry.triggers.map((trigger) =>
      trigger.deferrable ? { ...trigger, initiallyDeferred: true } : trigger
    )
  }))

/** A snapshot with another comment on the topmost constraint. */
export const withComment = (snapshot: Snapshot, comment: Comments.Comment): Snapshot =>
  mapEntries(snapshot, (entry, index) => (index === 0 ? { ...entry, comment } : entry))

/** A snapshot whose triggers have the names that they have in another one. */
export const withTriggerNames = (snapshot: Snapshot, names: Snapshot): Snapshot =>
  mapEntries(snapshot, (entry) => ({
    ...entry,
    triggers: entry.triggers.map((trigger) => ({
      ...trigger,
      name:
        counterpart(names, entry)?.triggers.find((other) => isSameTrigger(other, trigger))?.name ??
        trigger.name
    }))
  }))

/**
 * The record of an original, brought up to date with the partitions that were attached or detached
 * since: `current` is the key that took its place, from which new partitions have inherited.
 */
export const reconcile = (recorded: Snapshot, current: Snapshot): Snapshot =>
  mapEntries(current, (entry, index) => {
    const known = index === 0 ? recorded[0] : counterpart(recorded, entry)
    return (
      known ?? {
        ...entry,
        constraint: { ...entry.constraint, condeferred: recorded[0].constraint["condeferred"] },
        triggers: entry.triggers.map((trigger) => ({
          ...trigger,
          initiallyDeferred: trigger.deferrable && recorded[0].constraint["condeferred"] === true
        }))
      }
    )
  })

/**
 * The original as the constraint that stepped aside still has it, which follows what is done to its
 * table and its index meanwhile, with what the record alone still knows: mode, comments and names
 * of triggers. `current` took its name, and those of its partitions' rows.
 */
export const ofRecordedAside = (aside: Snapshot, recorded: Snapshot, current: Snapshot): Snapshot => {
  const mode = recorded[0].constraint["condeferred"]
  return mapEntries(current, (entry, index) => {
    const stepped = index === 0 ? aside[0] : (counterpart(aside, entry) ?? entry)
    const known = index === 0 ? recorded[0] : counterpart(recorded, entry)
    return {
      ...stepped,
      constraint: {
        ...stepped.constraint,
        conname: entry.constraint["conname"],
        condeferred: mode
      },
      comment: known === undefined ? entry.comment : known.comment,
      triggers: stepped.triggers.map((trigger) => ({
        ...trigger,
        name: known?.triggers.find((other) => isSameTrigger(other, trigger))?.name ?? trigger.name,
        initiallyDeferred: trigger.deferrable && mode === true
      }))
    }
  })
}

/**
 * What a key that took the original's place must be when it gets the recorded mode and comment: as
 * it is in everything else but its OID, which says that it is the original's.
 */
export const withModeOf = (recorded: Snapshot, current: Snapshot): Snapshot => {
  const mode = recorded[0].constraint["condeferred"]
  return mapEntries(current, (entry, index) => ({
    ...entry,
    oid: index === 0 ? recorded[0].oid : entry.oid,
    constraint: { ...entry.constraint, condeferred: mode },
    comment: index === 0 ? recorded[0].comment : entry.comment,
    triggers: entry.triggers.map((trigger) => ({
      ...trigger,
      initiallyDeferred: trigger.deferrable && mode === true
    }))
  }))
}

/**
 * The original as the constraint that stepped aside still has it, where no record of it is left:
 * `current` took its name, and those of its partitions' rows. Triggers may have exchanged their
 * names; the original's were the first. Undefined for a DEFERRABLE key, whose mode was changed when
 * it stepped aside.
 */
export const ofAside = (aside: Snapshot, current: Snapshot): Snapshot | undefined =>
  aside[0].constraint["condeferrable"] === true
    ? undefined
    : mapEntries(aside, (entry, index) => {
        const successor = index === 0 ? current[0] : counterpart(current, entry)
        return {
          ...entry,
          constraint: {
            ...entry.constraint,
            conname: (successor ?? entry).constraint["conname"]
          },
          triggers: entry.triggers.map((trigger) => {
            const name = successor?.triggers.find((other) => isSameTrigger(other, trigger))?.name ?? null
            return name !== null && trigger.name !== null && name < trigger.name
              ? { ...trigger, name }
              : trigger
          })
        }
      })

/** A snapshot without the names of the triggers on some tables. */
export const withoutNamesOn = (snapshot: Snapshot, tables: ReadonlyArray<number>): Snapshot =>
  tables.length === 0
    ? snapshot
    : mapEntries(snapshot, (entry) => ({
        ...entry,
        triggers: entry.triggers.map((trigger) =>
          tables.includes(trigger.table) ? { ...trigger, name: null } : trigger
        )
      }))

/**
 * Whether the triggers that carry out ON DELETE have exchanged their names: those of the successor
 * have what the original's were called.
 */
export const haveExchanged = (original: Snapshot, successor: Snapshot): boolean =>
  successor.some((entry) =>
    entry.triggers.some(
      (trigger) =>
        trigger.role === "delete" &&
        trigger.name !== null &&
        counterpart(original, entry)?.triggers.some(
          (other) => isSameTrigger(other, trigger) && other.name === trigger.name
        ) === true
    )
  )

/** The fields in which two snapshots differ, OIDs of the constraints themselves aside. */
export const compare = (expected: Snapshot, actual: Snapshot): ReadonlyArray<Difference> =>
  differences("", withoutOids(expected), withoutOids(actual))

/**
 * What of a key concerns one partition of its referencing table: its own row and those for
 * partitions of the referenced table, and that of the partition.
 */
export const concerning = (snapshot: Snapshot, partition: number): Snapshot => {
  const [first, ...rest] = snapshot
  const tables = new Set([Number(first.constraint["conrelid"]), partition])
  return [first, ...rest.filter(({ constraint }) => tables.has(Number(constraint["conrelid"])))]
}

/** What {@link requireUnchanged} leaves out. */
export interface Leniency {
  /** Names of triggers, because a step before has exchanged them. */
  readonly triggerNames?: boolean
  /** All but what concerns this partition, because the step is about it alone. */
  readonly allBut?: number
}

/**
 * A statement that fails with {@link changedCode} unless the key is exactly this one, OIDs
 * included.
 */
export const requireUnchanged = (
  place: Place,
  snapshot: Snapshot,
  { allBut, triggerNames = false }: Leniency = {}
): string => {
  const part = allBut === undefined ? snapshot : concerning(snapshot, allBut)
  return `document := (${ofPlace(place, { triggerNames: !triggerNames, partition: allBut })});
  IF document IS DISTINCT FROM ${literal(
    JSON.stringify(triggerNames ? withoutTriggerNames(part) : part)
  )}::jsonb THEN
    RAISE EXCEPTION USING ERRCODE = ${literal(changedCode)},
      MESSAGE = 'the foreign key was changed by somebody else meanwhile', DETAIL = coalesce(document::text, 'null');
  END IF;`
}

/**
 * A statement that fails with {@link unfaithfulCode} unless the key equals this snapshot in every
 * field but OIDs; the names of triggers on the tables `unnamed` do not count, and are null in
 * the snapshot.
 */
export const requireEqual = (place: Place, snapshot: Snapshot, unnamed: ReadonlyArray<number>): string =>
  `document := (${ofPlace(place, { oids: false, unnamed })});
  IF document IS DISTINCT FROM ${literal(JSON.stringify(withoutOids(snapshot)))}::jsonb THEN
    RAISE EXCEPTION USING ERRCODE = ${literal(unfaithfulCode)},
      MESSAGE = 'the rebuilt foreign key would not equal the original', DETAIL = coalesce(document::text, 'null');
  END IF;`

/** SQLSTATE of our own: the key is not the one that was read before. */
export const changedCode = "FKG01"

/** SQLSTATE of our own: the key that was built is not equal to the original. */
export const unfaithfulCode = "FKG02"

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const mapEntries = (snapshot: Snapshot, change: (entry: Entry, index: number) => Entry): Snapshot => {
  const [first, ...rest] = snapshot
  return [change(first, 0), ...rest.map((entry, index) => change(entry, index + 1))]
}

/** A snapshot without the OIDs of its constraints, which a new key does not share. */
export const withoutOids = (snapshot: ReadonlyArray<Entry>): ReadonlyArray<Omit<Entry, "oid">> =>
  snapshot.map((entry) => Struct.omit(entry, "oid"))

const withoutTriggerNames = (snapshot: Snapshot): Snapshot =>
  mapEntries(snapshot, (entry) => ({
    ...entry,
    triggers: entry.triggers.map((trigger) => ({ ...trigger, name: null }))
  }))

/** The entry for the same two tables. */
const counterpart = (snapshot: Snapshot, entry: Entry) =>
  snapshot.find(
    (other) =>
      other.constraint["conrelid"] === entry.constraint["conrelid"] &&
      other.constraint["confrelid"] === entry.constraint["confrelid"]
  )

const isSameTrigger = (one: Trigger, other: Trigger) => one.role === other.role && one.table === other.table

const differences = (field: string, expected: unknown, actual: unknown): ReadonlyArray<Difference> => {
  if (isRecord(expected) && isRecord(actual)) {
    const names = new Set([...Object.keys(expected), ...Object.keys(actual)])
    return [...names].flatMap((name) =>
      differences(field === "" ? name : `${field}.${name}`, expected[name], actual[name])
    )
  }
  return JSON.stringify(expected) === JSON.stringify(actual) ? [] : [{ field, expected, actual }]
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null

/**
 * The snapshot of one key, as an SQL expression of type jsonb. Left out, because a new key cannot
 * be made to have the same: OIDs of constraints and triggers; connoinherit, which depends on
 * whether the table is or was a partition, and on how it became one, and which nothing reads;
 * convalidated of the rows for partitions of the referenced table, which VALIDATE leaves alone (13
 * to 17) and nothing reads; connamespace of the rows of partitions up to 14, which is the
 * partitioned table's schema or the partition's own, depending on which of the two was there first;
 * names of triggers that are renamed together with the one of their partitioned table (15 and
 * later).
 */
export const expression = (table: string, name: string, shown: Shown = {}): string => `
SELECT json_agg(v.entry ORDER BY v.depth, v.conrelid, v.confrelid)::jsonb
FROM (
  WITH RECURSIVE tree (oid, conrelid, confrelid, depth, parent, referenced) AS (
    SELECT k.oid, k.conrelid, k.confrelid, 0, NULL::json, false
    FROM pg_catalog.pg_constraint k
    WHERE k.conrelid = ${table} AND k.conname = ${name} AND k.contype = 'f'
    UNION ALL
    SELECT k.oid, k.conrelid, k.confrelid, t.depth + 1, json_build_array(t.conrelid::int8, t.confrelid::int8), k.conrelid = t.conrelid
    FROM tree t CROSS JOIN LATERAL ${childrenOf("t.oid")} k
  )
  SELECT t.depth, t.conrelid, t.confrelid, ${entry(
    "t.parent",
    `
      - CASE WHEN t.referenced AND current_setting('server_version_num')::int < 180000 THEN 'convalidated' ELSE '' END
      - CASE WHEN t.depth > 0 AND current_setting('server_version_num')::int < 150000 THEN 'connamespace' ELSE '' END`,
    shown
  )} AS entry
  FROM tree t CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint k WHERE k.oid = t.oid OFFSET 0) k${
    shown.partition === undefined
      ? ""
      : `
  WHERE t.conrelid IN (${table}, ${shown.partition}::oid)`
  }
) v`

/** The same for a key that is one row. */
const single = (table: string, name: string, shown: Shown) => `
SELECT json_build_array(${entry("NULL::json", "", shown)})::jsonb
FROM pg_catalog.pg_constraint k
WHERE k.conrelid = ${table} AND k.conname = ${name} AND k.contype = 'f'`

/**
 * What belongs to one row `k` of pg_constraint: text until all is together, because every level of
 * jsonb would be written anew.
 */
const entry = (
  parent: string,
  without: string,
  { oids = true, triggerNames = true, unnamed = [] }: Shown
) => `json_build_object(
    ${oids ? "'oid', k.oid::int8," : ""}
    'parent', ${parent},
    'constraint', to_jsonb(k) - '{oid,conparentid,connoinherit}'::text[]${without},
    'comment', ${Comments.read("k.oid")},
    'dependencies', (
      SELECT json_agg(json_build_array(d.refclassid::int8, d.refobjid::int8, d.refobjsubid, d.deptype)
        ORDER BY d.refclassid, d.refobjid, d.refobjsubid, d.deptype)
      FROM pg_catalog.pg_depend d
      WHERE d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid
        AND d.refclassid <> 'pg_catalog.pg_constraint'::regclass
    ),
    'triggers', (
      SELECT coalesce(json_agg(json_build_object(
        'role', ${roleOf("g.proname")},
        'table', g.tgrelid::int8, 'name', CASE WHEN g.tgparentid = 0 AND ${triggerNames}${
          unnamed.length === 0 ? "" : ` AND g.tgrelid <> ALL ('{${unnamed.join(",")}}'::oid[])`
        } THEN g.tgname END, 'function', g.proname, 'type', g.tgtype, 'enabled', g.tgenabled,
        'deferrable', g.tgdeferrable, 'initiallyDeferred', g.tginitdeferred, 'internal', g.tgisinternal,
        'otherTable', g.tgconstrrelid::int8, 'index', g.tgconstrindid::int8
      ) ORDER BY g.tgrelid, ${roleOf("g.proname")}), '[]')
      FROM ${triggersOf("k.oid")} g
    )
  )`

/** What of a snapshot is read; all of it unless this says otherwise. */
interface Shown {
  /** Whether the OIDs of constraints are. */
  readonly oids?: boolean
  readonly triggerNames?: boolean
  /** Tables whose triggers' names are not read. */
  readonly unnamed?: ReadonlyArray<number>
  /** What concerns this partition only. */
  readonly partition?: number | undefined
}

const ofPlace = ({ name, partitioned, table }: Place, shown: Shown = {}) =>
  (partitioned ? expression : single)(`${table}::oid`, literal(name), shown)

/** The snapshot of a key by the OID of its table and its name. */
const one = `SELECT (${expression("$1::int8::oid", "$2::name")})::text AS snapshot`

/** So many snapshots are read by one statement, which is to end before its timeout. */
const most = 200
