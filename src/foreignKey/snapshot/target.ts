/** The ON DELETE action that a key is to have. */
import * as Action from "../../catalog/action.js"
import type { Key } from "../../catalog/foreignKeys.js"
import type * as Snapshot from "./snapshot.js"
import { identifiers } from "../../sql/identifiers.js"

/**
 * An ON DELETE action; `columns` limits SET NULL and SET DEFAULT to some of the columns, empty
 * means all.
 */
export interface Target {
  readonly action: Action.Action
  readonly columns: ReadonlyArray<string>
}

/** The action that a key has. */
export const of = (key: Key): Target => ({ action: key.onDelete, columns: key.onDeleteColumns })

/** The action that a key had when its snapshot was read. */
export const ofSnapshot = (key: Key, snapshot: Snapshot.Snapshot): Target => {
  const { confdelsetcols, confdeltype, conkey } = snapshot[0].constraint
  const numbers = conkey as ReadonlyArray<number>
  return {
    action: Action.fromCode(confdeltype as string),
    columns: ((confdelsetcols ?? []) as ReadonlyArray<number>).flatMap((number) => {
      const column = key.columns[numbers.indexOf(number)]
      return column === undefined ? [] : [column]
    })
  }
}

/** Whether two targets are the same; the order of columns is kept by PostgreSQL and so matters. */
export const equals = (left: Target, right: Target): boolean =>
  left.action === right.action &&
  left.columns.length === right.columns.length &&
  left.columns.every((column, index) => column === right.columns[index])

/** As SQL spells it: `SET NULL ("a", "b")`. */
export const words = ({ action, columns }: Target): string =>
  `${Action.sql(action)}${columns.length === 0 ? "" : ` (${identifiers(columns)})`}`

/** The clause of ALTER TABLE ... ADD FOREIGN KEY. */
export const sql = (target: Target): string => `ON DELETE ${words(target)}`

/** The snapshot that a key must have with this action. */
export const snapshot = (
  target: Target,
  key: Key,
  original: Snapshot.Snapshot,
  apply: typeof Snapshot.withAction
) =>
  apply(
    original,
    target.action,
    target.columns.flatMap((column) => {
      const numbers = original[0].constraint["conkey"] as ReadonlyArray<number>
      const number = numbers[key.columns.indexOf(column)]
      return number === undefined ? [] : [number]
    })
  )
