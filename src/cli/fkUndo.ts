import * as Command from "@effect/cli/Command"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ForeignKey from "../ForeignKey.js"
import * as FkOptions from "./fkOptions.js"
import * as FkReport from "./fkReport.js"
import * as Report from "./Report.js"
import { runCommand } from "./runCommand.js"

const changes = FkOptions.named(
  "change",
  "the number of a change",
  "Undo this change, by its number in `history`, also if it is not the key's last one or is an undo itself. Repeatable.",
  (text) => (/^[1-9]\d{0,14}$/.test(text) ? Number(text) : undefined)
)

const { allowRowMovement, connection, effort, ledgerTable, noRehearsal, selectorOptions } = FkOptions

const undo = Command.make(
  "undo",
  { ...connection, ...selectorOptions, changes, allowRowMovement, noRehearsal, ledgerTable, ...effort },
  ({ json, url, ...options }) =>
    Effect.flatMap(FkReport.reporter, ({ interrupted, onProgress, soFar }) =>
      runCommand(
        { json, url, interrupted, soFar },
        Effect.gen(function* () {
          const selected = FkOptions.selectedOf(options)
          const selectors = options.changes.length > 0 ? selected : yield* FkOptions.selectors(selected)
          const result = yield* Report.noticing(
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
).pipe(
  Command.withDescription(
    "Gives foreign keys the action that they had before their last recorded change, finished or interrupted, as `rebuild` does. Run again, it changes nothing."
  )
)

const history = Command.make(
  "history",
  { ...connection, ...selectorOptions, ledgerTable },
  ({ json, ledgerTable, url, ...selectors }) =>
    runCommand(
      { json, url },
      Effect.gen(function* () {
        const changes = yield* ForeignKey.history({
          selectors,
          ledger: Option.getOrUndefined(ledgerTable)
        })
        yield* Report.result(json, changes, lines(changes))
      })
    )
).pipe(
  Command.withDescription(
    "Lists the changes that were recorded, the oldest first. All of them without selectors."
  )
)

const lines = (changes: ReadonlyArray<ForeignKey.RecordedChange>) =>
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

/** `fk undo` and `fk history`. */
export const commands = [undo, history] as const
