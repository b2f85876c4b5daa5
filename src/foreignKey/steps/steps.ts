/**
 * The statements that change one key's ON DELETE action. `plan` prints them and the engine runs
 * them: the same texts.
 *
 * `referencing` is the table that has the constraint, `referenced` the one that it points to. Every
 * step runs in a transaction of its own, after the locks that {@link Step.locks} names were taken
 * explicitly, so that no statement of a step takes a lock by itself (rule R1), unless the role may
 * not LOCK a table.
 */
import * as Action from "../../catalog/action.js"
import type { Key, Relation, Table } from "../../catalog/foreignKeys.js"
import * as Comments from "../../catalog/comments.js"
import * as Snapshot from "../snapshot/snapshot.js"
import * as TableLocks from "../../catalog/tableLocks.js"
import * as Marker from "../snapshot/marker.js"
import * as Names from "../snapshot/names.js"
import { block, identifier, identifiers, literal, qualified } from "../../sql/identifiers.js"
import * as Target from "../snapshot/target.js"
import * as Triggers from "./triggers.js"

/** The steps of a change, by name. */
export type StepName =
  | "index-whole"
  | "index"
  | "index-attach"
  | "index-drop"
  | "add"
  | "order"
  | "validate"
  | "attach"
  | "swap"
  | "switch-enable"
  | "switch-names"
  | "switch-delete"
  | "switch-update"
  | "drop-original"
  | "settle"
  | "drop-temporary"
  | "reindex"
  | "create-ledger"
  | "record"
  | "record-end"

/** A lock of a step. */
export interface StepLock {
  readonly table: Relation
  readonly mode: TableLocks.Mode
  /** True where a statement takes it by itself, because the role may not LOCK that table. */
  readonly implicit?: true
}

/** One step: a transaction, or statements that cannot be in one. */
export interface Step {
  readonly name: StepName
  /**
   * The strongest lock on each table, in the order in which they are taken. A partitioned table is
   * locked with its partitions.
   */
  readonly locks: ReadonlyArray<StepLock>
  /**
   * Statements that prove what the step relies on. They come before the locks that others notice,
   * under SHARE UPDATE EXCLUSIVE on the same tables: no schema change of a table and no comment on
   * its constraints gets past that until the transaction ends, so what they prove holds to its end.
   */
  readonly guards?: ReadonlyArray<string>
  readonly statements: ReadonlyArray<string>
  /** True for statements that PostgreSQL runs outside a transaction only, each by itself. */
  readonly outsideTransaction?: true
}

/** What a change of one key needs to know. */
export interface Change {
  readonly key: Key
  readonly target: Target.Target
  /** The key when the change began, names of triggers included. */
  readonly original: Snapshot.Snapshot
  /** `server_version_num`. */
  readonly version: number
  /**
   * Whether the role is a superuser's, who can disable triggers of a key: then those of the new key
   * are, until it takes the original's place, and nothing follows it before. Those of another role
   * fire after the original's.
   */
  readonly superuser: boolean
}

/**
 * Roles of triggers that fired before the original's when they had the names that PostgreSQL gave
 * them.
 */
export type Late = ReadonlyArray<Snapshot.Role>

/**
 * Whether the temporary key is added to each partition of the referencing table first, because
 * PostgreSQL up to 17 has no NOT VALID keys on partitioned tables. {@link attach} then makes them
 * one key of the partitioned table.
 */
export const isLeafwise = ({ key, version }: Pick<Change, "key" | "version">): boolean =>
  key.referencing.kind === "p" && version < 180_000

/**
 * The tables to which the temporary key is added: the partitions get a part each if it is built
 * leafwise.
 */
export const places = (change: Pick<Change, "key" | "version">): ReadonlyArray<Relation> =>
  isLeafwise(change)
    ? change.key.referencing.partitions.filter((partition) => partition.kind !== "p")
    : [change.key.referencing]

/**
 * Lets the indexes step behind that a new key would be bound to (see `CompetingIndexes`). Reads and
 * writes go on.
 */
export const reindex = ({ key }: Pick<Change, "key">, statements: ReadonlyArray<string>): Step => ({
  name: "reindex",
  locks: [{ table: key.referenced, mode: "SHARE UPDATE EXCLUSIVE" }],
  statements,
  outsideTransaction: true
})

/**
 * Adds the constraint with the new action beside the original, not validated: nothing is scanned.
 * It does nothing that the original would not do: its triggers are disabled, or fire after the
 * original's. PostgreSQL fires triggers in the order of their names, which end in an OID, and
 * compares them as texts: in a database whose OIDs have just got another digit the new ones come
 * first. Where that was so (`late`) they are renamed before anybody sees them, which takes ACCESS
 * EXCLUSIVE on their table.
 *
 * If the original is DEFERRABLE the new one is INITIALLY DEFERRED until the swap: an application
 * that defers the original by name would otherwise be stopped by the new one.
 */
export const add = (change: Change, at: Relation = change.key.referencing, late: Late = []): Step => {
  const { key, original } = change
  const place = { ...placeOf(key, Names.temporary(key.name)), table: at.oid }
  const ends = at.oid === key.referenced.oid ? [at] : [key.referenced, at]
  return {
    name: "add",
    locks: possible(
      key,
      ends.map((table) => ({
        table,
        mode: late.some((role) => isOn(change, role, table)) ? "ACCESS EXCLUSIVE" : "SHARE ROW EXCLUSIVE"
      }))
    ),
    guards: [
      Triggers.guard(
        requireNames(ends),
        Snapshot.requireUnchanged(placeOf(key), original, isLeafwise(change) ? { allBut: at.oid } : {})
      )
    ],
    statements: [
      `ALTER TABLE ${TableLocks.target(at)} ADD CONSTRAINT ${identifier(place.name)} ${temporaryDefinition(change)} ${
        key.enforced ? "NOT VALID" : "NOT ENFORCED"
      }`,
      // Only by now has a table that the role may not LOCK come to keep its name.
      ...(key.referenced.owned ? [] : [Triggers.guard(requireNames(ends))]),
      comment(at, place.name, isLeafwise(change) ? partMarker(change) : marker(change)),
      ...behind(
        change,
        isLeafwise(change) ? { ...placeOf(key), partition: at.oid } : placeOf(key),
        place,
        late
      )
    ]
  }
}

/**
 * Adds the temporary key to the partitioned table, which attaches the valid parts of its partitions
 * without looking at a row. From here on it is one key, as on 18.
 *
 * No way leads around two tables at a time: the parts' own triggers on the referenced table are
 * dropped in the same command that locks every partition, and PostgreSQL would upgrade its lock on
 * the referenced table for that (rule R1), so ACCESS EXCLUSIVE is taken beforehand. Reads of the
 * referencing table go on, unless the referenced table is partitioned too: then rows of the parts
 * are dropped as well. The new triggers are those of the referenced table, so all of them can be
 * renamed.
 */
export const attach = (change: Change): Step => {
  const { key, original } = change
  const place = placeOf(key, Names.temporary(key.name))
  return {
    name: "attach",
    locks:
      key.referenced.kind === "p"
        ? both(change, "ACCESS EXCLUSIVE")
        : [
            { table: key.referenced, mode: "ACCESS EXCLUSIVE" },
            { table: key.referencing, mode: "SHARE ROW EXCLUSIVE" }
          ],
    guards: [
      Triggers.guard(requireNames(tables(key)), Snapshot.requireUnchanged(placeOf(key), original)),
      requireParts(change)
    ],
    statements: [
      `ALTER TABLE ${TableLocks.target(key.referencing)} ADD CONSTRAINT ${identifier(place.name)} ${temporaryDefinition(change)}`,
      comment(key.referencing, place.name, marker(change)),
      ...behind(change, placeOf(key), place, key.referenced.owned ? ["delete", "update"] : [])
    ]
  }
}

/** The temporary key, or its parts on the partitions. */
export const temporaryOf = (key: Key, isCut: boolean): Triggers.Place | Triggers.Parts =>
  isCut
    ? { partitionsOf: key.referencing.oid, name: Names.temporary(key.name) }
    : placeOf(key, Names.temporary(key.name))

/**
 * Lets a new key that is there already do nothing that the original would not do: a change was
 * interrupted before it saw to that, or somebody renamed triggers. A superuser disables the new
 * triggers; for another role those on one table are renamed.
 */
export const order = (
  change: Change,
  {
    roles,
    successor,
    table
  }: {
    readonly successor: Triggers.Place | Triggers.Parts
    readonly table: Relation
    readonly roles: Late
  }
): Step => ({
  name: "order",
  locks: change.superuser ? both(change, "SHARE ROW EXCLUSIVE") : [{ table, mode: "ACCESS EXCLUSIVE" }],
  statements: [
    Triggers.guard(
      change.superuser ? Triggers.mute(successor) : Triggers.fireLast(placeOf(change.key), successor, roles)
    )
  ]
})

/**
 * Checks the rows that exist. Reads and writes go on; only other schema changes and vacuum wait. A
 * partitioned table whose partitions are valid is not read again (18 and later), and the referenced
 * table not locked. Looking up row by row locks the partitions of the referenced table too.
 */
export const validate = (
  { key }: Pick<Change, "key">,
  at: Relation = key.referencing,
  name: string = Names.temporary(key.name)
): Step => {
  const cut = at.kind === "p" ? key.referencing.partitions.filter(({ kind }) => kind === "p") : []
  const referenced =
    at.kind === "p" || at.oid === key.referenced.oid
      ? []
      : [key.readable ? alone(key.referenced) : key.referenced]
  return {
    name: "validate",
    locks: [
      ...[alone(at), ...cut].map((table) => ({ table, mode: "SHARE UPDATE EXCLUSIVE" as const })),
      ...referenced.map((table) => ({ table, mode: "ROW SHARE" as const }))
    ],
    statements: [`ALTER TABLE ${qualified(at)} VALIDATE CONSTRAINT ${identifier(name)}`]
  }
}

/**
 * The original goes and the new constraint takes its place, in one transaction that proves them
 * equal before it commits. Names of triggers may have been exchanged since `current` was read
 * ({@link switchOn}); those that the original had are given back.
 */
export const swap = (change: Change, current: Snapshot.Snapshot): Step => {
  const { key } = change
  const { referencing } = key
  return {
    name: "swap",
    locks: both(change, "ACCESS EXCLUSIVE"),
    // Its triggers may have exchanged names since (see switchOn), and get those of the original
    // below.
    guards: stillAs(change, current),
    statements: [
      dropInPlace(change),
      renameConstraint(referencing, Names.temporary(key.name), key.name),
      ...finish(change)
    ]
  }
}

/**
 * Gives the new constraint the original's name; the original steps aside. Locks the referencing
 * table only.
 */
export const switchNames = (change: Change, current: Snapshot.Snapshot): Step => {
  const { key, original } = change
  const { referencing } = key
  const aside = placeOf(key, Names.aside(key.name))
  const place = placeOf(key)
  return {
    name: "switch-names",
    locks: [{ table: referencing, mode: "ACCESS EXCLUSIVE" }],
    guards: stillAs(change, current),
    statements: [
      renameConstraint(referencing, key.name, aside.name),
      ...Triggers.renameRows(
        aside,
        current.slice(1).map((entry) => ({
          relation: entry.constraint["conrelid"],
          referenced: entry.constraint["confrelid"],
          name: Names.aside(String(entry.constraint["conname"]))
        }))
      ),
      renameConstraint(referencing, Names.temporary(key.name), key.name),
      ...Triggers.restoreRows(place, original),
      comment(referencing, key.name, marker(change)),
      ...(isDeferrable(original)
        ? [alterConstraint(referencing, aside.name, "DEFERRABLE INITIALLY DEFERRED")]
        : []),
      Triggers.guard(
        Triggers.restoreEnabled(place, original, ["checkInsert", "checkUpdate"]),
        Triggers.fireFirst(place, aside, ["checkInsert", "checkUpdate"])
      )
    ]
  }
}

/**
 * Lets the new constraint act before it takes the original's name, so that a key under that name
 * always does: its triggers on the referenced table are enabled, if a superuser disabled them. If
 * it raises no error it comes first from here on, otherwise last until the names are exchanged, so
 * that errors keep naming the original. Locks the referenced table only. No step where there is
 * nothing to do.
 */
export const switchOn = (change: Change): ReadonlyArray<Step> => {
  const { key, original, superuser, target } = change
  const successor = placeOf(key, Names.temporary(key.name))
  const raises = Action.raises(target.action)
  const statements = [
    ...(superuser && key.enforced
      ? [
          Triggers.fireLast(placeOf(key), successor, raises ? ["delete", "update"] : ["update"]),
          Triggers.restoreEnabled(successor, original, ["delete", "update"])
        ]
      : []),
    ...(raises ? [] : [Triggers.fireFirst(successor, placeOf(key), ["delete"])])
  ]
  return statements.length === 0
    ? []
    : [
        {
          name: raises ? "switch-enable" : "switch-delete",
          locks: [{ table: key.referenced, mode: "ACCESS EXCLUSIVE" }],
          statements: [Triggers.guard(...statements)]
        }
      ]
}

/**
 * Lets the new constraint's triggers for one event of the referenced table fire first, after it
 * took the original's name. Locks the referenced table only.
 */
export const switchTriggers = ({ key }: Change, role: "delete" | "update"): Step => ({
  name: role === "delete" ? "switch-delete" : "switch-update",
  locks: [{ table: key.referenced, mode: "ACCESS EXCLUSIVE" }],
  statements: [Triggers.guard(Triggers.fireFirst(placeOf(key), placeOf(key, Names.aside(key.name)), [role]))]
})

/**
 * Drops the original after it stepped aside. `current` is the new key, if it is there already: it
 * must still be as it was read.
 */
export const dropOriginal = (change: Change, current?: Snapshot.Snapshot): Step => ({
  name: "drop-original",
  locks: both(change, "ACCESS EXCLUSIVE"),
  guards: stillAs(change, current),
  statements: [dropConstraint(change.key.referencing, Names.aside(change.key.name)), ...finish(change)]
})

/**
 * Gives the new key the original's mode, and proves the two equal. Only for a DEFERRABLE INITIALLY
 * IMMEDIATE original, and only when every transaction has ended that began before the new key took
 * the name: SET CONSTRAINTS keeps its state by OID, so such a transaction may have deferred the
 * original and rely on that. `current` as in {@link dropOriginal}.
 */
export const settle = (change: Change, current?: Snapshot.Snapshot): Step => {
  const { key, original } = change
  return {
    name: "settle",
    locks: [{ table: key.referencing, mode: "ACCESS EXCLUSIVE" }],
    guards: stillAs(change, current),
    statements: [
      alterConstraint(key.referencing, key.name, "DEFERRABLE INITIALLY IMMEDIATE"),
      comment(key.referencing, key.name, original[0].comment),
      Triggers.guard(Snapshot.requireEqual(placeOf(key), goal(change), foreign(key)))
    ]
  }
}

/** Whether a key with this original needs {@link settle} at the end. */
export const needsSettling = (original: Snapshot.Snapshot): boolean =>
  isDeferrable(original) && original[0].constraint["condeferred"] !== true

/** What the key must be like in the end: the original in everything but its action. */
export const goal = ({ key, original, target }: Change): Snapshot.Snapshot =>
  Target.snapshot(target, key, Snapshot.withoutNamesOn(original, foreign(key)), Snapshot.withAction)

/**
 * What the key must be like when the original is gone: its goal, or the state that {@link settle}
 * ends.
 */
export const almost = (change: Change): Snapshot.Snapshot =>
  needsSettling(change.original) ? Snapshot.unsettled(goal(change), marker(change)) : goal(change)

/**
 * Drops a constraint of ours: the new one before it took the original's name, so that the change is
 * given up and the original is as it was, or what is left of the change of a key that is gone.
 */
export const dropTemporary = (
  change: Change,
  at: Relation = change.key.referencing,
  name: string = Names.temporary(change.key.name)
): Step => ({
  name: "drop-temporary",
  locks: possible(
    change.key,
    (at.oid === change.key.referenced.oid ? [at] : [change.key.referenced, at]).map((table) => ({
      table,
      mode: "ACCESS EXCLUSIVE"
    }))
  ),
  statements: [
    dropConstraint(at, name),
    ...(at.oid === change.key.referencing.oid
      ? [
          Triggers.guard(
            Triggers.restoreTriggerNames(
              placeOf(change.key),
              Snapshot.withoutNamesOn(change.original, foreign(change.key))
            )
          )
        ]
      : [])
  ]
})

/**
 * Gives a key that was renamed in the middle of a change what it had before, and the change has not
 * given back yet. There is no proof: `change` has the key with its new name, which the record of
 * the original does not know.
 */
export const restoreRenamed = (change: Change): Step => {
  const { key, original } = change
  const place = placeOf(key)
  return {
    name: "settle",
    locks: both(change, "ACCESS EXCLUSIVE"),
    statements: [
      ...(Marker.decode(key.comment) === undefined
        ? []
        : [
            ...(needsSettling(original)
              ? [alterConstraint(key.referencing, key.name, "DEFERRABLE INITIALLY IMMEDIATE")]
              : []),
            ...Triggers.restoreRows(place, original),
            comment(key.referencing, key.name, original[0].comment)
          ]),
      Triggers.guard(Triggers.restoreTriggerNames(place, Snapshot.withoutNamesOn(original, foreign(key))))
    ]
  }
}

/**
 * A key as ALTER TABLE ... ADD CONSTRAINT takes it; `referenced` is a table with its columns, or
 * without.
 */
export const definition = (key: Key, referenced: string, target: Target.Target, mode: string): string =>
  `FOREIGN KEY (${identifiers(key.columns)}) REFERENCES ${referenced}${key.match === "full" ? " MATCH FULL" : ""} ON UPDATE ${Action.sql(
    key.onUpdate
  )} ${Target.sql(target)}${mode}`

/** Both tables of a key, the referenced one first; a self-reference has one. */
export const tables = (key: Key): ReadonlyArray<Table> =>
  isSelfReference(key) ? [key.referencing] : [key.referenced, key.referencing]

/**
 * Whether there is another way than the swap for tables that are too busy for it: it locks one
 * table at a time, and renames triggers on both, so there is none for a self-reference, nor
 * where another role owns the referenced table.
 */
export const canStepAside = (key: Key): boolean => !isSelfReference(key) && key.referenced.owned

/** Whether a key points to its own table. */
export const isSelfReference = (key: Key): boolean => key.referencing.oid === key.referenced.oid

/**
 * Whether the list of referenced columns can be left out: the key is bound to the primary key, in
 * the primary key's order.
 */
export const bindsPrimaryKeyByDefault = (key: Key): boolean =>
  key.boundIndex?.primary === true && key.boundIndex.inOrder

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * Fails unless the key is the one that was read, if that is known; a step before may have exchanged
 * the names of its triggers.
 */
const stillAs = ({ key }: Change, current: Snapshot.Snapshot | undefined) =>
  current === undefined
    ? []
    : [Triggers.guard(Snapshot.requireUnchanged(placeOf(key), current, { triggerNames: true }))]

/** Where a constraint of the key's table is; without a name the key itself. */
export const placeOf = (key: Key, name: string = key.name): Triggers.Place => ({
  table: key.referencing.oid,
  name,
  partitioned: tables(key).some(({ kind }) => kind === "p")
})

/** What the triggers of a key do. */
export const roles: ReadonlyArray<Snapshot.Role> = ["delete", "update", "checkInsert", "checkUpdate"]

/** Whether the triggers of a role are on this table. */
const isOn = ({ key }: Change, role: Snapshot.Role, table: Relation) =>
  (role === "delete" || role === "update") === (table.oid === key.referenced.oid) || isSelfReference(key)

/**
 * Lets a new constraint do nothing that the original would not do, in the transaction that adds it.
 */
const behind = (
  change: Change,
  original: Triggers.Place,
  place: Triggers.Place,
  late: Late
): ReadonlyArray<string> =>
  !change.key.enforced
    ? []
    : change.superuser
      ? [Triggers.guard(Triggers.mute(place))]
      : [
          Triggers.guard(
            // In one order, whoever found them, so that a plan has the text that is run.
            ...(late.length === 0
              ? []
              : [
                  Triggers.fireLast(
                    original,
                    place,
                    roles.filter((role) => late.includes(role))
                  )
                ]),
            Triggers.requireOrder(original, place),
            // Where its triggers keep their names, they must come where the original's are by
            // themselves.
            ...(change.key.referenced.owned ? [] : [Triggers.requirePlace(placeOf(change.key), place)])
          )
        ]

/**
 * The tables on which the role cannot rename triggers, because they are another role's: the
 * referenced one with its partitions.
 */
const foreign = ({ referenced }: Key): ReadonlyArray<number> =>
  referenced.owned ? [] : TableLocks.withPartitions(referenced).map(({ oid }) => oid)

/**
 * Drops the original. A trigger that got between it and the new key since `add` is seen under
 * the lock that this takes.
 */
const dropInPlace = (change: Change): string => {
  const { key } = change
  const drop = dropConstraint(key.referencing, key.name)
  return key.referenced.owned || !key.enforced
    ? drop
    : Triggers.guard(Triggers.requirePlace(placeOf(key), placeOf(key, Names.temporary(key.name)), drop))
}

/**
 * Locks as the role can have them: a table that it may not LOCK is locked by the statements, so
 * it comes last.
 */
const possible = ({ referenced }: Key, locks: ReadonlyArray<StepLock>): ReadonlyArray<StepLock> =>
  referenced.owned || referenced.lockable
    ? locks
    : [
        ...locks.filter(({ table }) => table.oid !== referenced.oid),
        ...locks.flatMap((lock) =>
          lock.table.oid === referenced.oid ? [{ ...lock, implicit: true as const }] : []
        )
      ]

const both = ({ key }: Change, mode: TableLocks.Mode) =>
  possible(
    key,
    tables(key).map((table) => ({ table, mode }))
  )

const isDeferrable = (snapshot: Snapshot.Snapshot) => snapshot[0].constraint["condeferrable"] === true

/**
 * The referenced columns are left out when that is what binds the key to the index that it was
 * bound to: with a list of columns PostgreSQL takes the oldest matching unique index, without one
 * the primary key (CREATE TABLE, REFERENCES).
 */
const temporaryDefinition = ({ key, original, target }: Change): string =>
  definition(
    key,
    `${qualified(key.referenced)}${bindsPrimaryKeyByDefault(key) ? "" : ` (${identifiers(key.referencedColumns)})`}`,
    target,
    isDeferrable(original) ? " DEFERRABLE INITIALLY DEFERRED" : ""
  )

/** A table without its partitions. */
const alone = ({ kind, name, oid, schema }: Relation): Relation => ({ kind, name, oid, schema })

const dropConstraint = (table: Relation, name: string) =>
  `ALTER TABLE ${TableLocks.target(table)} DROP CONSTRAINT ${identifier(name)}`

const renameConstraint = (table: Relation, from: string, to: string) =>
  `ALTER TABLE ${TableLocks.target(table)} RENAME CONSTRAINT ${identifier(from)} TO ${identifier(to)}`

/**
 * Both words are always spelled: a bare ALTER CONSTRAINT means NOT DEFERRABLE up to 17 and nothing
 * from 18 on.
 */
const alterConstraint = (table: Relation, name: string, mode: string) =>
  `ALTER TABLE ${qualified(table)} ALTER CONSTRAINT ${identifier(name)} ${mode}`

const comment = (table: Relation, name: string, text: Comments.Comment) =>
  `COMMENT ON CONSTRAINT ${identifier(name)} ON ${qualified(table)} IS ${Comments.sql(text)}`

/** The comment that records the original. */
const marker = ({ key, original, target }: Change) =>
  Marker.encode({ constraint: key.name, from: Target.ofSnapshot(key, original), to: target, original })

/** The comment on one partition's part: the original is as it was, so it needs no record. */
const partMarker = ({ key, original, target }: Change) =>
  Marker.encode({ constraint: key.name, from: Target.ofSnapshot(key, original), to: target })

/**
 * The locks were asked for by name: another table can have come to have it while they were waited
 * for, to which the key would be added.
 */
const requireNames = (relations: ReadonlyArray<Relation>) =>
  `IF ${relations
    .map(
      (relation) =>
        `pg_catalog.to_regclass(${literal(qualified(relation))}) IS DISTINCT FROM ${relation.oid}::oid::regclass`
    )
    .join(" OR ")} THEN
    RAISE EXCEPTION USING ERRCODE = ${literal(Snapshot.changedCode)}, MESSAGE = 'a table was renamed meanwhile';
  END IF;`

/**
 * Every partition must bring a valid part, or adding the key to the partitioned table would look at
 * every row while it is locked.
 */
const requireParts = ({ key }: Change) =>
  block(`BEGIN
  IF EXISTS (
    SELECT FROM pg_catalog.pg_partition_tree(${key.referencing.oid}::oid::regclass) q
    WHERE q.isleaf AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_constraint k
      WHERE k.conrelid = q.relid AND k.conname = ${literal(Names.temporary(key.name))} AND k.contype = 'f' AND k.convalidated
    )
  ) THEN
    RAISE EXCEPTION USING ERRCODE = ${literal(Snapshot.changedCode)}, MESSAGE = 'a partition was added meanwhile';
  END IF;
END`)

/** Names, comments and trigger names as the original had them, and the proof. */
const finish = (change: Change): ReadonlyArray<string> => {
  const { key, original } = change
  const place = placeOf(key)
  return [
    ...Triggers.restoreRows(place, original),
    Triggers.guard(Triggers.restoreTriggers(place, Snapshot.withoutNamesOn(original, foreign(key)))),
    comment(key.referencing, key.name, almost(change)[0].comment),
    Triggers.guard(Snapshot.requireEqual(place, almost(change), foreign(key)))
  ]
}
