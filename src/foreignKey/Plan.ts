/** What a change will do, step by step, before anything is done. */
import * as Action from "./Action.js"
import { nameOf, type Key } from "./Catalog.js"
import * as Change from "./Change.js"
import * as Ledger from "./Ledger.js"
import * as Lock from "./Lock.js"
import * as Name from "./Name.js"
import { label } from "./Sql.js"

/** One step of a plan: a transaction of its own. */
export interface PlannedStep {
  /** schema.table.name */
  readonly constraint: string
  readonly step: Change.StepName
  /**
   * `always`; `contended`: taken instead of `swap` only, when its locks cannot be had together; `if out of order`: only if the new key's triggers would fire before
   * the original's.
   */
  readonly when: "always" | "contended" | "if out of order"
  /** The transaction, statement by statement. */
  readonly sql: ReadonlyArray<string>
  /** The strongest lock on each table, in the order in which they are taken; ACCESS SHARE is left out. */
  readonly locks: ReadonlyArray<{ readonly relation: string; readonly mode: Lock.Mode }>
  /** What other sessions cannot do while the locks are held, and for how long that is. */
  readonly blocks: string
}

/** The steps of one change from its beginning. */
export const steps = (change: Change.Change): ReadonlyArray<PlannedStep> => {
  const { key, original, target } = change
  const places = Change.places(change)
  const leaves = Change.isLeafwise(change)
    ? []
    : key.referencing.partitions.filter((partition) => partition.kind !== "p")
  const always = [
    ...places.map((place) => Change.add(change, place)),
    ...(key.validated && key.enforced
      ? [...leaves, ...places].map((place) => Change.validate(change, place))
      : []),
    Change.swap(change, original)
  ]
  const contended =
    Change.isSelfReference(key) || Change.isLeafwise(change)
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
  const last = Change.needsSettling(original) ? [Change.settle(change)] : []
  const order = Change.isLeafwise(change)
    ? []
    : [Change.keepOrder(change, "referenced"), Change.keepOrder(change, "referencing")]
  return [
    ...always.slice(0, 1).map((step) => planned(key, step, "always")),
    ...order.map((step) => planned(key, step, "if out of order")),
    ...always.slice(1).map((step) => planned(key, step, "always")),
    ...contended.map((step) => planned(key, step, "contended")),
    ...last.map((step) => planned(key, step, "always"))
  ]
}

/** What is written into the ledger before and after a change; the first change of `before` creates it. */
export const recorded = (
  key: Key,
  ledger: Ledger.Ledger,
  record: Ledger.Record,
  steps: ReadonlyArray<PlannedStep>
): { readonly before: ReadonlyArray<PlannedStep>; readonly after: ReadonlyArray<PlannedStep> } => {
  const step = (name: Change.StepName, statements: ReadonlyArray<string>): PlannedStep => ({
    constraint: nameOf(key),
    step: name,
    when: "always",
    sql: ["BEGIN", ...statements, "COMMIT"],
    locks: name === "create-ledger" ? [] : [{ relation: Ledger.name(ledger), mode: "ROW EXCLUSIVE" }],
    blocks: name === "create-ledger" ? "nothing: the table is new" : Lock.blocks("ROW EXCLUSIVE")
  })
  const creates = !ledger.exists && steps.every((planned) => planned.step !== "create-ledger")
  return {
    before:
      record.before.length === 0
        ? []
        : [...(creates ? [step("create-ledger", Ledger.create(ledger))] : []), step("record", record.before)],
    after: record.after === undefined ? [] : [step("record-end", [Ledger.close(ledger, key, record.after)])]
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const planned = (key: Key, step: Change.Step, when: PlannedStep["when"]): PlannedStep => {
  const tables = step.locks.map((lock) => lock.table)
  const mode = step.locks[0]?.mode ?? "ACCESS EXCLUSIVE"
  const lock =
    step.name === "validate"
      ? []
      : [Lock.statement(tables, "SHARE UPDATE EXCLUSIVE"), Lock.statement(tables, mode)]
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
