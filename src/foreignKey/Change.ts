/**
 * The statements that change one key's ON DELETE action. `plan` prints them and the engine runs them: the same texts.
 *
 * `referencing` is the table that has the constraint, `referenced` the one that it points to. Every step runs in a transaction of its
 * own, after the locks that {@link Step.locks} names were taken explicitly, so that no statement of a step takes a lock by itself (rule R1).
 */
import * as Action from "./Action.js"
import type { Key, Table } from "./Catalog.js"
import * as Fidelity from "./Fidelity.js"
import * as Lock from "./Lock.js"
import * as Marker from "./Marker.js"
import * as Name from "./Name.js"
import { block, identifier, identifiers, literal, qualified } from "./Sql.js"
import * as Target from "./Target.js"

/** The steps of a change, by name. */
export type StepName =
  | "add"
  | "validate"
  | "swap"
  | "switch-names"
  | "switch-delete"
  | "switch-update"
  | "drop-original"
  | "settle"
  | "drop-temporary"

/** One step: a transaction. */
export interface Step {
  readonly name: StepName
  /** The strongest lock on each table, in the order in which they are taken. */
  readonly locks: ReadonlyArray<{ readonly table: Table; readonly mode: Lock.Mode }>
  readonly statements: ReadonlyArray<string>
}

/** What a change of one key needs to know. */
export interface Change {
  readonly key: Key
  readonly target: Target.Target
  /** The key when the change began, names of triggers included. */
  readonly original: Fidelity.Vector
  /** `server_version_num`. */
  readonly version: number
}

/**
 * Adds the constraint with the new action beside the original, not validated: nothing is scanned.
 *
 * If the original is DEFERRABLE the new one is INITIALLY DEFERRED until the swap: an application that defers the original by name
 * would otherwise be stopped by the new one.
 */
export const add = (change: Change): Step => {
  const { key, original } = change
  const name = Name.temporary(key.name)
  return {
    name: "add",
    locks: both(change, "SHARE ROW EXCLUSIVE"),
    statements: [
      guard(Fidelity.requireUnchanged(key.referencing.oid, key.name, original)),
      `ALTER TABLE ${Lock.target(key.referencing)} ADD CONSTRAINT ${identifier(name)} ${definition(change)}`,
      comment(key, name, marker(change)),
      ...restoreEnabled(change, name)
    ]
  }
}

/** Checks the rows that exist. Reads and writes go on; only other schema changes and vacuum wait. */
export const validate = ({ key }: Change): Step => ({
  name: "validate",
  locks: [
    { table: key.referencing, mode: "SHARE UPDATE EXCLUSIVE" },
    ...(isSelfReference(key) ? [] : [{ table: key.referenced, mode: "ROW SHARE" as const }])
  ],
  statements: [
    `ALTER TABLE ${Lock.target(key.referencing)} VALIDATE CONSTRAINT ${identifier(Name.temporary(key.name))}`
  ]
})

/** The original goes and the new constraint takes its place, in one transaction that proves them equal before it commits. */
export const swap = (change: Change, current: Fidelity.Vector): Step => {
  const { key } = change
  return {
    name: "swap",
    locks: both(change, "ACCESS EXCLUSIVE"),
    statements: [
      guard(Fidelity.requireUnchanged(key.referencing.oid, key.name, current)),
      dropConstraint(key, key.name),
      renameConstraint(key, Name.temporary(key.name), key.name),
      ...finish(change)
    ]
  }
}

/** Gives the new constraint the original's name; the original steps aside. Locks the referencing table only. */
export const switchNames = (change: Change, current: Fidelity.Vector): Step => {
  const { key } = change
  const aside = Name.aside(key.name)
  return {
    name: "switch-names",
    locks: [{ table: key.referencing, mode: "ACCESS EXCLUSIVE" }],
    statements: [
      guard(Fidelity.requireUnchanged(key.referencing.oid, key.name, current)),
      renameConstraint(key, key.name, aside),
      renameConstraint(key, Name.temporary(key.name), key.name),
      comment(key, key.name, marker(change)),
      ...(isDeferrable(change.original)
        ? [alterConstraint(key, aside, "DEFERRABLE INITIALLY DEFERRED")]
        : []),
      guard(fireFirst(key.referencing, ["checkInsert", "checkUpdate"], key, key.name, aside))
    ]
  }
}

/** Lets the new constraint's triggers for one event of the referenced table fire first. Locks the referenced table only. */
export const switchTriggers = (
  change: Change,
  role: "delete" | "update",
  first: string,
  second: string
): Step => ({
  name: role === "delete" ? "switch-delete" : "switch-update",
  locks: [{ table: change.key.referenced, mode: "ACCESS EXCLUSIVE" }],
  statements: [guard(fireFirst(change.key.referenced, [role], change.key, first, second))]
})

/** Drops the original after it stepped aside. */
export const dropOriginal = (change: Change): Step => ({
  name: "drop-original",
  locks: both(change, "ACCESS EXCLUSIVE"),
  statements: [dropConstraint(change.key, Name.aside(change.key.name)), ...finish(change)]
})

/**
 * Gives the new key the original's mode, and proves the two equal. Only for a DEFERRABLE INITIALLY IMMEDIATE original, and only when every
 * transaction has ended that began before the new key took the name: SET CONSTRAINTS keeps its state by OID, so such a transaction may have deferred the
 * original and rely on that.
 */
export const settle = (change: Change): Step => {
  const { key, original } = change
  return {
    name: "settle",
    locks: [{ table: key.referencing, mode: "ACCESS EXCLUSIVE" }],
    statements: [
      alterConstraint(key, key.name, "DEFERRABLE INITIALLY IMMEDIATE"),
      comment(key, key.name, original[0].comment),
      guard(Fidelity.requireEqual(key.referencing.oid, key.name, goal(change)))
    ]
  }
}

/** Whether a key with this original needs {@link settle} at the end. */
export const needsSettling = (original: Fidelity.Vector): boolean =>
  isDeferrable(original) && original[0].constraint["condeferred"] !== true

/** What the key must be like in the end: the original in everything but its action. */
export const goal = ({ key, original, target }: Change): Fidelity.Vector =>
  Target.vector(target, key, original, Fidelity.withAction)

/** What the key must be like when the original is gone: its goal, or the state that {@link settle} ends. */
export const almost = (change: Change): Fidelity.Vector =>
  needsSettling(change.original) ? Fidelity.unsettled(goal(change), marker(change)) : goal(change)

/** Drops the new constraint before it took the original's name: the change is given up, and the original is as it was. */
export const dropTemporary = (change: Change): Step => ({
  name: "drop-temporary",
  locks: both(change, "ACCESS EXCLUSIVE"),
  statements: [
    dropConstraint(change.key, Name.temporary(change.key.name)),
    guard(renameTriggers(change.key, change.key.name, change.original))
  ]
})

/** Both tables of a key, the referenced one first; a self-reference has one. */
export const tables = (key: Key): ReadonlyArray<Table> =>
  isSelfReference(key) ? [key.referencing] : [key.referenced, key.referencing]

/** Whether a key points to its own table. */
export const isSelfReference = (key: Key): boolean => key.referencing.oid === key.referenced.oid

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const both = ({ key }: Change, mode: Lock.Mode) => tables(key).map((table) => ({ table, mode }))

const guard = (statements: string) =>
  block(`DECLARE
  vector jsonb;
  r record;
BEGIN
  ${statements}
END`)

/** The comment that records the original. */
const marker = ({ key, original, target }: Change) =>
  Marker.encode({ constraint: key.name, from: Target.ofVector(key, original), to: target, original })

const isDeferrable = (vector: Fidelity.Vector) => vector[0].constraint["condeferrable"] === true

/**
 * The referenced columns are left out when that is what binds the key to the index that it was bound to: with a list of columns
 * PostgreSQL takes the oldest matching unique index, without one the primary key (CREATE TABLE, REFERENCES).
 */
const definition = ({ key, original, target }: Change): string => {
  const list = bindsPrimaryKeyByDefault(key) ? "" : ` (${identifiers(key.referencedColumns)})`
  const match = key.match === "full" ? " MATCH FULL" : ""
  const deferrable = isDeferrable(original) ? " DEFERRABLE INITIALLY DEFERRED" : ""
  return `FOREIGN KEY (${identifiers(key.columns)}) REFERENCES ${qualified(key.referenced)}${list}${match} ON UPDATE ${Action.sql(
    key.onUpdate
  )} ${Target.sql(target)}${deferrable} ${key.enforced ? "NOT VALID" : "NOT ENFORCED"}`
}

/** Whether the list of referenced columns can be left out: the key is bound to the primary key, in the primary key's order. */
export const bindsPrimaryKeyByDefault = (key: Key): boolean =>
  key.boundIndex?.primary === true &&
  key.primaryKeyColumns.length === key.referencedColumns.length &&
  key.primaryKeyColumns.every((column, index) => column === key.referencedColumns[index])

const dropConstraint = (key: Key, name: string) =>
  `ALTER TABLE ${Lock.target(key.referencing)} DROP CONSTRAINT ${identifier(name)}`

const renameConstraint = (key: Key, from: string, to: string) =>
  `ALTER TABLE ${Lock.target(key.referencing)} RENAME CONSTRAINT ${identifier(from)} TO ${identifier(to)}`

/** Both words are always spelled: a bare ALTER CONSTRAINT means NOT DEFERRABLE up to 17 and nothing from 18 on. */
const alterConstraint = (key: Key, name: string, mode: string) =>
  `ALTER TABLE ${Lock.target(key.referencing)} ALTER CONSTRAINT ${identifier(name)} ${mode}`

/** Comment and trigger names as the original had them, and the proof. */
const finish = (change: Change): ReadonlyArray<string> => {
  const { key, original } = change
  return [
    comment(key, key.name, almost(change)[0].comment),
    guard(renameTriggers(key, key.name, original)),
    guard(Fidelity.requireEqual(key.referencing.oid, key.name, almost(change)))
  ]
}

const comment = (key: Key, name: string, text: string | null) =>
  `COMMENT ON CONSTRAINT ${identifier(name)} ON ${qualified(key.referencing)} IS ${
    text === null ? "NULL" : literal(text)
  }`

const constraintOid = (key: Key, name: string) => `(
    SELECT k.oid FROM pg_catalog.pg_constraint k
    WHERE k.conrelid = ${key.referencing.oid}::oid AND k.conname = ${literal(name)} AND k.contype = 'f'
  )`

const triggersOf = (key: Key, name: string) => `
    SELECT g.tgrelid, g.tgname::text AS tgname, g.tgenabled, ${Fidelity.roleOf("p.proname")} AS role
    FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
    WHERE g.tgconstraint = ${constraintOid(key, name)}`

const values = (rows: ReadonlyArray<ReadonlyArray<string | number>>) =>
  `(VALUES ${rows
    .map(
      (row) =>
        `(${row.map((cell) => (typeof cell === "number" ? `${cell}::oid` : literal(cell))).join(", ")})`
    )
    .join(", ")})`

/** Gives the triggers of a constraint the names that the original's had: PostgreSQL fires triggers in the order of their names. */
const renameTriggers = (key: Key, name: string, names: Fidelity.Vector) => {
  const wanted = names[0].triggers.map((trigger) => [trigger.table, trigger.role, trigger.name])
  return wanted.length === 0
    ? "NULL;"
    : `FOR r IN
    SELECT g.tgrelid::regclass AS relation, g.tgname, w.name
    FROM (${triggersOf(key, name)}) g
    JOIN ${values(wanted)} AS w (relation, role, name) ON w.relation = g.tgrelid AND w.role = g.role
    WHERE g.tgname <> w.name
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, r.name);
  END LOOP;`
}

/** Exchanges the names of two constraints' triggers where the second constraint's would fire before the first's. */
const fireFirst = (
  table: Table,
  roles: ReadonlyArray<Fidelity.Role>,
  key: Key,
  first: string,
  second: string
) =>
  `FOR r IN
    SELECT f.tgname AS late, s.tgname AS early
    FROM (${triggersOf(key, first)}) f
    JOIN (${triggersOf(key, second)}) s ON s.tgrelid = f.tgrelid AND s.role = f.role
    WHERE f.tgrelid = ${table.oid}::oid AND f.role IN (${roles.map(literal).join(", ")})
      AND s.tgname COLLATE "C" < f.tgname COLLATE "C"
  LOOP
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO promptgrimoire_fk_exchange', r.early, ${literal(qualified(table))});
    EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.late, ${literal(qualified(table))}, r.early);
    EXECUTE format('ALTER TRIGGER promptgrimoire_fk_exchange ON %s RENAME TO %I', ${literal(qualified(table))}, r.late);
  END LOOP;`

/** A trigger that was disabled, or fires always or on replicas only, stays so. Only a superuser may do this to such a trigger. */
const restoreEnabled = (change: Change, name: string): ReadonlyArray<string> => {
  const { key, original } = change
  const states = original[0].triggers
    .filter((trigger) => trigger.enabled !== "O")
    .map((trigger) => [trigger.table, trigger.role, stateClause(trigger.enabled)])
  return states.length === 0
    ? []
    : [
        guard(`FOR r IN
    SELECT g.tgrelid::regclass AS relation, g.tgname, w.clause
    FROM (${triggersOf(key, name)}) g
    JOIN ${values(states)} AS w (relation, role, clause) ON w.relation = g.tgrelid AND w.role = g.role
  LOOP
    EXECUTE format('ALTER TABLE %s %s TRIGGER %I', r.relation, r.clause, r.tgname);
  END LOOP;`)
      ]
}

const stateClause = (enabled: string) =>
  enabled === "D" ? "DISABLE" : enabled === "A" ? "ENABLE ALWAYS" : "ENABLE REPLICA"
