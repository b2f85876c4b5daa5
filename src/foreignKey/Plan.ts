/** What a change will do, step by step, before anything is done. */
import * as Action from "./Action.js"
import { nameOf, type Key } from "./Catalog.js"
import * as Change from "./Change.js"
import type * as Index from "./Index.js"
import * as Lock from "./Lock.js"
import * as Name from "./Name.js"
import { label } from "./Sql.js"

/** One step of a plan: a transaction of its own, or a statement that cannot run in one. */
export interface PlannedStep {
  /** schema.table.name */
  readonly constraint: string
  readonly step: Change.StepName
  /**
   * `always`; `contended`: taken instead of `swap` only, when its locks cannot be had together; `if out of order`: only if the new key's triggers would fire before
   * the original's.
   */
  readonly when: "always" | "contended" | "if out of order"
  /** The transaction, statement by statement, BEGIN first; a statement without it cannot run in a transaction. */
  readonly sql: ReadonlyArray<string>
  /** The strongest lock on each table, in the order in which they are taken; ACCESS SHARE is left out. */
  readonly locks: ReadonlyArray<{ readonly relation: string; readonly mode: Lock.Mode }>
  /** What other sessions cannot do while the locks are held, and for how long that is. */
  readonly blocks: string
}

/** The steps that build the index of a key. */
export const indexSteps = (key: Key, steps: ReadonlyArray<Index.IndexStep>): ReadonlyArray<PlannedStep> =>
  steps.map((step) => {
    const plan = planned(key, step, "always")
    return step.concurrently
      ? {
          ...plan,
          sql: step.statements,
          blocks: `${Lock.blocks("SHARE UPDATE EXCLUSIVE")}, while the index is ${step.name === "index" ? "built" : "dropped"}`
        }
      : plan
  })

/** The steps of one change from its beginning. */
export const steps = (change: Change.Change): ReadonlyArray<PlannedStep> => {
  const { key, original, target } = change
  const places = Change.places(change)
  const leaves = Change.isLeafwise(change)
    ? []
    : key.referencing.partitions.filter((partition) => partition.kind !== "p")
  const contended = Change.isSelfReference(key)
    ? []
    : [
        ...(Action.raises(target.action)
          ? []
          : [Change.switchTriggers(change, "delete", Name.temporary(key.name), key.name)]),
        Change.switchNames(change, original),
        Change.switchTriggers(change, "delete", key.name, Name.aside(key.name)),
        Change.switchTriggers(change, "update", key.name, Name.aside(key.name)),
        Change.dropOriginal(change)
      ]
  const order = [Change.keepOrder(change, "referenced"), Change.keepOrder(change, "referencing")]
  const all = (when: PlannedStep["when"], steps: ReadonlyArray<Change.Step>) =>
    steps.map((step) => planned(key, step, when))
  return [
    ...all(
      "always",
      places.map((place) => Change.add(change, place))
    ),
    ...all("if out of order", Change.isLeafwise(change) ? [Change.keepPartsLate(change)] : order),
    ...all(
      "always",
      key.validated && key.enforced
        ? [...leaves, ...places].map((place) => Change.validate(change, place))
        : []
    ),
    ...(Change.isLeafwise(change)
      ? [...all("always", [Change.attach(change)]), ...all("if out of order", order)]
      : []),
    ...all("always", [Change.swap(change, original)]),
    ...all("contended", contended),
    ...all("always", Change.needsSettling(original) ? [Change.settle(change)] : [])
  ]
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const planned = (key: Key, step: Change.Step, when: PlannedStep["when"]): PlannedStep => {
  const lockable = step.locks.filter(({ table }) => Lock.isLockable(table))
  const tables = lockable.map(({ table }) => table)
  const mode = step.locks[0]?.mode ?? "ACCESS EXCLUSIVE"
  const lock =
    step.name === "validate" || tables.length === 0
      ? []
      : [Lock.statement(tables, "SHARE UPDATE EXCLUSIVE"), ...Lock.statements(lockable)]
  return {
    constraint: nameOf(key),
    step: step.name,
    when,
    sql: ["BEGIN", ...lock, ...step.statements, "COMMIT"],
    locks: step.locks.flatMap(({ mode, table }) =>
      Lock.withPartitions(table).map(({ name, schema }) => ({ relation: label(schema, name), mode }))
    ),
    blocks: `${Lock.blocks(mode)}${step.name === "validate" ? ", while the rows are checked" : ", for milliseconds"}`
  }
}
