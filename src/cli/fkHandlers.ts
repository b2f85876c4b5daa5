/** What the commands of `fk` do. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ForeignKey from "../ForeignKey.js"
import type * as Definition from "./fk.js"
import * as FkOptions from "./fkOptions.js"
import * as FkPlan from "./fkPlan.js"
import * as FkReport from "./fkReport.js"
import type * as Undo from "./fkUndo.js"
import { noticing } from "./notices.js"
import type { Given } from "./options.js"
import * as Report from "./report.js"
import { runCommand } from "./runCommand.js"

/** `fk list`. */
export const list = ({ json, url, ...selected }: Given<typeof Definition.listOptions>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const keys = Report.byName(yield* ForeignKey.list(selected))
      yield* Report.result(json, keys, keys.length === 0 ? ["There are no foreign keys."] : listLines(keys))
    })
  )

/** `fk plan`. */
export const plan = ({ json, script, url, ...options }: Given<typeof Definition.planOptions>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      if (json && script) {
        return yield* new FkOptions.Contradiction({
          message: "--sql and --json contradict each other: one prints a script, the other a document"
        })
      }
      const result = yield* ForeignKey.plan({
        ...(yield* FkOptions.target(options)),
        createIndexes: options.createIndexes,
        orphanTimeout: Option.getOrUndefined(options.orphanTimeout)
      })
      // Whoever redirects the script has to see what it leaves out.
      if (script)
        yield* Effect.forEach(result.refused.map(FkPlan.refusalLine), Report.progress, { discard: true })
      return yield* Report.result(
        json,
        result,
        script ? [ForeignKey.planScript(result).trimEnd()] : FkPlan.lines(result),
        result.refused.length > 0 ? Report.exitCodes.refused : Report.exitCodes.done
      )
    })
  )

/** `fk rebuild`. */
export const rebuild = ({ json, url, ...options }: Given<typeof Definition.rebuildOptions>) =>
  Effect.flatMap(FkReport.reporter, ({ interrupted, onProgress, soFar }) =>
    runCommand(
      { json, url, interrupted, soFar },
      Effect.gen(function* () {
        const target = yield* FkOptions.target(options)
        const result = yield* noticing(
          ForeignKey.rebuild({ ...target, ...FkOptions.effortOf(options), onProgress })
        )
        yield* FkReport.result(json, result, "has this action already")
      })
    )
  )

/** `fk check`. */
export const check = ({ json, url, ...selected }: Given<typeof Definition.listOptions>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const found = yield* ForeignKey.check(selected)
      const isWell = found.every(({ problems }) => problems.length === 0)
      yield* Report.result(
        json,
        found,
        [
          ...found.flatMap(({ constraint, notes, problems }) =>
            [...problems, ...notes].map((text) => `! ${constraint}: ${text}`)
          ),
          ...(isWell ? [`Every ${found.length === 0 ? "" : "other "}foreign key does what it says.`] : [])
        ],
        isWell ? Report.exitCodes.done : Report.exitCodes.refused
      )
    })
  )

/** `fk undo`. */
export const undo = ({ json, url, ...options }: Given<typeof Undo.undoOptions>) =>
  Effect.flatMap(FkReport.reporter, ({ interrupted, onProgress, soFar }) =>
    runCommand(
      { json, url, interrupted, soFar },
      Effect.gen(function* () {
        const selected = FkOptions.selectedOf(options)
        const selectors = options.changes.length > 0 ? selected : yield* FkOptions.selectors(selected)
        const result = yield* noticing(
          ForeignKey.undo({
            selectors,
            changes: options.changes.length > 0 ? options.changes : undefined,
            allowRowMovement: options.allowRowMovement,
            rehearse: !options.noRehearsal,
            ledger: Option.getOrUndefined(options.ledgerTable),
            ...FkOptions.effortOf(options),
            onProgress
          })
        )
        yield* FkReport.result(json, result, "has nothing to undo")
      })
    )
  )

/** `fk history`. */
export const history = ({ json, ledgerTable, url, ...selectors }: Given<typeof Undo.historyOptions>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const changes = yield* ForeignKey.history({
        selectors,
        ledger: Option.getOrUndefined(ledgerTable)
      })
      yield* Report.result(json, changes, historyLines(changes))
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const listLines = (keys: ReadonlyArray<ForeignKey.ForeignKeyInfo>) => [
  ...Report.table(
    ["Foreign key", "Columns", "References", "On delete", "Index"],
    keys.map((key) => [
      FkReport.nameOf(key),
      columns(key.columns),
      `${ForeignKey.label(key.referencedSchema, key.referencedTable)} (${columns(key.referencedColumns)})`,
      FkReport.onDelete(key),
      key.index === null ? "none" : ForeignKey.label(key.index)
    ])
  ),
  ...keys.flatMap((key) => key.problems.map((problem) => `! ${FkReport.nameOf(key)}: ${problem}`))
]

const columns = (names: ReadonlyArray<string>) => names.map((name) => ForeignKey.label(name)).join(", ")

const historyLines = (changes: ReadonlyArray<ForeignKey.RecordedChange>) =>
  changes.length === 0
    ? ["No changes are recorded."]
    : Report.table(
        ["Change", "Foreign key", "From", "To", "Undoes", "Outcome", "Started at", "By"],
        changes.map((change) => [
          String(change.id),
          FkReport.nameOf(change),
          FkReport.action(change.from),
          FkReport.action(change.to),
          change.undoes === null ? "" : String(change.undoes),
          change.outcome ?? "not finished",
          change.startedAt,
          change.role
        ])
      )
