import * as Command from "@effect/cli/Command"
import * as FkOptions from "./fkOptions.js"
import { loaded } from "./options.js"

const changes = FkOptions.named(
  "change",
  "the number of a change",
  "Undo this change, by its number in `history`, also if it is not the key's last one or is an undo itself. Repeatable.",
  (text) => (/^[1-9]\d{0,14}$/.test(text) ? Number(text) : undefined)
)

const { allowRowMovement, connection, effort, ledgerTable, noRehearsal, selectorOptions } = FkOptions

/** What `undo` takes. */
export const undoOptions = {
  ...connection,
  ...selectorOptions,
  changes,
  allowRowMovement,
  noRehearsal,
  ledgerTable,
  ...effort
}

const undo = Command.make(
  "undo",
  undoOptions,
  loaded(() => import("./fkHandlers.js").then(({ undo }) => undo))
).pipe(
  Command.withDescription(
    "Gives keys the action from before their last change. The change is a recorded one, finished or interrupted, and is taken back in the steps of `rebuild`. Run again, it changes nothing."
  )
)

/** What `history` takes. */
export const historyOptions = { ...connection, ...selectorOptions, ledgerTable }

const history = Command.make(
  "history",
  historyOptions,
  loaded(() => import("./fkHandlers.js").then(({ history }) => history))
).pipe(
  Command.withDescription("Lists the recorded changes, the oldest first. All of them without selectors.")
)

/** `fk undo` and `fk history`. */
export const commands = [undo, history] as const
