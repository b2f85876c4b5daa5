/** What a change will do, step by step, before anything is done. */
import { nameOf, type Key } from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import * as Ledger from "../ledger/ledger.js"
import * as TableLocks from "../../catalog/tableLocks.js"
import { label } from "../../sql/identifiers.js"
import * as Target from "../snapshot/target.js"
import * as Limits from "./limits.js"
import type * as NextStep from "./nextStep.js"
import type { PlannedStep } from "../types.js"
import type * as IndexSteps from "../steps/indexSteps.js"

/** The steps that build the index of a key. */
export const indexSteps = (
  key: Key,
  steps: ReadonlyArray<IndexSteps.IndexStep>,
  limits: Limits.Limits
): ReadonlyArray<PlannedStep> => steps.map((step) => planned(key, step, "always", limits))

/** The steps that are left of one change, from what is to be done next. */
export const steps = (
  { change, current, does, todo }: NextStep.Next,
  limits: Limits.Limits
): ReadonlyArray<PlannedStep> => {
  const { key, original, superuser, target } = change
  const isSettling = does === "settle"
  const settling = Steps.needsSettling(original)
    ? [Steps.settle(change, isSettling ? current : undefined)]
    : []
  const taken = (when: PlannedStep["when"]) => (all: ReadonlyArray<Steps.Step>) =>
    all.map((step) => planned(key, step, when, limits))
  const always = taken("always")
  if (isSettling) return always(settling)
  const triggers = [Steps.switchTriggers(change, "delete"), Steps.switchTriggers(change, "update")]
  if (does === "finish") return always([...triggers, Steps.dropOriginal(change, current), ...settling])
  const order = always(todo.order === undefined ? [] : [todo.order.step])
  const drop = always(todo.drop.map(({ at, name }) => Steps.dropTemporary(change, at, name)))
  if (Target.equals(Target.of(key), target)) return [...order, ...drop]
  const isOrdered = key.enforced && !superuser
  const renamable: Steps.Late = [
    ...(key.referenced.owned ? (["delete", "update"] as const) : []),
    "checkInsert",
    "checkUpdate"
  ]
  const contended = !Steps.canStepAside(key)
    ? []
    : [
        ...Steps.switchOn(change),
        Steps.switchNames(change, original),
        ...triggers,
        Steps.dropOriginal(change)
      ]
  return [
    ...order,
    ...drop,
    ...always(todo.reindex.length === 0 ? [] : [Steps.reindex(change, todo.reindex)]),
    ...todo.add.flatMap((place) => [
      ...always([Steps.add(change, place)]),
      ...taken("if out of order")(isOrdered ? [Steps.add(change, place, renamable)] : [])
    ]),
    ...always(todo.validate.map(({ at, name }) => Steps.validate(change, at, name))),
    ...always(todo.attach ? [Steps.attach(change)] : []),
    ...always([Steps.swap(change, current)]),
    ...taken("contended")(contended),
    ...always(settling)
  ]
}

/**
 * What is written into the ledger before and after a change; the first change of `before` creates
 * it.
 */
export const recorded = (
  key: Key,
  ledger: Ledger.Ledger,
  record: Ledger.Record,
  steps: ReadonlyArray<PlannedStep>
): { readonly before: ReadonlyArray<PlannedStep>; readonly after: ReadonlyArray<PlannedStep> } => {
  const step = (name: Steps.StepName, statements: ReadonlyArray<string>): PlannedStep => ({
    constraint: nameOf(key),
    step: name,
    when: "always",
    sql: ["BEGIN", ...statements, "COMMIT"],
    locks: name === "create-ledger" ? [] : [{ relation: Ledger.name(ledger), mode: "ROW EXCLUSIVE" }],
    blocks:
      name === "create-ledger"
        ? "Blocks nothing: the table is new."
        : `${TableLocks.blocks("ROW EXCLUSIVE")}.`
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

const durations: { readonly [Name in Steps.StepName]?: string } = {
  index: ", while the index is built and the transactions from before end",
  "index-drop": ", while the index is dropped and the transactions from before end",
  reindex: ", while the index is built and the transactions from before end",
  validate: ", while the rows are checked"
}

const planned = (
  key: Key,
  step: Steps.Step,
  when: PlannedStep["when"],
  limits: Limits.Limits
): PlannedStep => ({
  constraint: nameOf(key),
  step: step.name,
  when,
  sql: statements(step, limits),
  locks: step.locks.flatMap(({ implicit, mode, table }) =>
    TableLocks.withPartitions(table).map(({ name, schema }) => ({
      relation: label(schema, name),
      mode,
      ...(implicit === undefined ? {} : { implicit })
    }))
  ),
  blocks: `${TableLocks.blocks(step.locks[0]?.mode ?? "ACCESS EXCLUSIVE")}${durations[step.name] ?? ", for milliseconds and at most for the lock timeout"}.`
})

const statements = (step: Steps.Step, limits: Limits.Limits): ReadonlyArray<string> => {
  if (step.outsideTransaction === true) return step.statements
  if (step.name === "validate") return Limits.besideWrites(step, limits)
  const { body, prelude } = Limits.transaction(step, "as-listed", limits)
  return [...prelude, ...body]
}
