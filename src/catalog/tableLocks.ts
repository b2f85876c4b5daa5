/** PostgreSQL's table locks (chapter "Explicit Locking"). */
import { qualified } from "../sql/identifiers.js"
import type { Relation, Table } from "./foreignKeys.js"

/** The modes above ACCESS SHARE that a change of a foreign key takes. */
export type Mode =
  | "ROW SHARE"
  | "ROW EXCLUSIVE"
  | "SHARE UPDATE EXCLUSIVE"
  | "SHARE"
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
  "ROW SHARE": { conflicts: modes.slice(6), blocks: "Blocks other schema changes only" },
  "ROW EXCLUSIVE": { conflicts: modes.slice(4), blocks: "Blocks schema changes only" },
  "SHARE UPDATE EXCLUSIVE": {
    conflicts: modes.slice(3),
    blocks: "Blocks vacuum and schema changes, but no reads or writes"
  },
  SHARE: { conflicts: [...modes.slice(2, 4), ...modes.slice(5)], blocks: "Blocks writes, but no reads" },
  "SHARE ROW EXCLUSIVE": { conflicts: modes.slice(2), blocks: "Blocks writes, but no reads" },
  "ACCESS EXCLUSIVE": { conflicts: modes, blocks: "Blocks reads and writes" }
}

/** The modes that a lock of this mode conflicts with, as `pg_locks.mode` spells them. */
export const conflicts = (mode: Mode): ReadonlyArray<string> => effects[mode].conflicts

/** What a lock of this mode keeps other sessions from doing: a sentence without its full stop. */
export const blocks = (mode: Mode): string => effects[mode].blocks

/**
 * LOCK TABLE, in the order given. A partitioned table is locked with its partitions; a table that
 * others inherit from is locked alone.
 */
export const statement = (tables: ReadonlyArray<Relation>, mode: Mode, noWait = false): string =>
  `LOCK TABLE ${tables.map(target).join(", ")} IN ${mode} MODE${noWait ? " NOWAIT" : ""}`

/**
 * LOCK TABLE for tables in different modes, in the order given: a statement for each run of one
 * mode.
 */
export const statements = (
  locks: ReadonlyArray<{ readonly table: Relation; readonly mode: Mode }>
): ReadonlyArray<string> => {
  const [first] = locks
  if (first === undefined) return []
  const end = locks.findIndex(({ mode }) => mode !== first.mode)
  const run = end === -1 ? locks : locks.slice(0, end)
  return [
    statement(
      run.map(({ table }) => table),
      first.mode
    ),
    ...statements(locks.slice(run.length))
  ]
}

/** Whether LOCK TABLE can lock it: it cannot lock indexes. */
export const isLockable = ({ kind }: Relation): boolean => kind !== "i" && kind !== "I"

/**
 * A table as ALTER TABLE and LOCK TABLE name it: with ONLY, unless it stands for its partitions
 * too.
 */
export const target = (relation: Relation | Table): string =>
  relation.kind === "p" && "partitions" in relation ? qualified(relation) : `ONLY ${qualified(relation)}`

/** A table and, if it is known to have some, its partitions. */
export const withPartitions = (relation: Relation | Table): ReadonlyArray<Relation> =>
  "partitions" in relation ? [relation, ...relation.partitions] : [relation]
