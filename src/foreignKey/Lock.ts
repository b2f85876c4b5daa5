/** PostgreSQL's table locks (chapter "Explicit Locking"). */
import { qualified } from "./Sql.js"
import type { Relation, Table } from "./Catalog.js"

/** The modes above ACCESS SHARE that a change of a foreign key takes. */
export type Mode =
  | "ROW SHARE"
  | "ROW EXCLUSIVE"
  | "SHARE UPDATE EXCLUSIVE"
  | "SHARE ROW EXCLUSIVE"
  | "ACCESS EXCLUSIVE"

const modes = [
  "AccessShareLock",
  "RowShareLock",
  "RowExclusiveLock",
  "ShareUpdateExclusiveLock",
  "ShareLock",
  "ShareRowExclusiveLock",
  "ExclusiveLock",
  "AccessExclusiveLock"
]

const effects: {
  readonly [M in Mode]: { readonly conflicts: ReadonlyArray<string>; readonly blocks: string }
} = {
  "ROW SHARE": { conflicts: modes.slice(6), blocks: "nothing but schema changes" },
  "ROW EXCLUSIVE": { conflicts: modes.slice(4), blocks: "nothing but schema changes" },
  "SHARE UPDATE EXCLUSIVE": {
    conflicts: modes.slice(3),
    blocks: "vacuum and schema changes, no reads and no writes"
  },
  "SHARE ROW EXCLUSIVE": { conflicts: modes.slice(2), blocks: "writes, no reads" },
  "ACCESS EXCLUSIVE": { conflicts: modes, blocks: "reads and writes" }
}

/** The modes that a lock of this mode conflicts with, as `pg_locks.mode` spells them. */
export const conflicts = (mode: Mode): ReadonlyArray<string> => effects[mode].conflicts

/** What a lock of this mode keeps other sessions from doing, in a few words. */
export const blocks = (mode: Mode): string => effects[mode].blocks

/**
 * LOCK TABLE, in the order given. A partitioned table is locked with its partitions; a table that others inherit from is locked alone.
 */
export const statement = (tables: ReadonlyArray<Relation>, mode: Mode, noWait = false): string =>
  `LOCK TABLE ${tables.map(target).join(", ")} IN ${mode} MODE${noWait ? " NOWAIT" : ""}`

/** A table as ALTER TABLE and LOCK TABLE name it: with ONLY, unless it is partitioned. */
export const target = (relation: Relation): string =>
  relation.kind === "p" ? qualified(relation) : `ONLY ${qualified(relation)}`

/** A table and, if it is known to have some, its partitions. */
export const withPartitions = (relation: Relation | Table): ReadonlyArray<Relation> =>
  "partitions" in relation ? [relation, ...relation.partitions] : [relation]
