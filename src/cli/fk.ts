import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as FkOptions from "./fkOptions.js"
import * as Undo from "./fkUndo.js"
import type { Tree } from "./help.js"
import { loaded } from "./options.js"
import * as Purge from "./purge.js"

/** What `list` and `check` take. */
export const listOptions = { ...FkOptions.connection, ...FkOptions.selectorOptions }

const list = Command.make(
  "list",
  listOptions,
  loaded(() => import("./fkHandlers.js").then(({ list }) => list))
).pipe(
  Command.withDescription("Lists foreign keys and what is wrong with them. All of them without selectors.")
)

const script = Options.boolean("sql").pipe(
  Options.withDescription(
    "Print a script for psql, to be run by hand: the locks of each step, what is refused and what to look out for are comments in it. Not with --json."
  )
)

/** What `plan` takes. */
export const planOptions = {
  ...FkOptions.change,
  createIndexes: FkOptions.createIndexes,
  orphanTimeout: FkOptions.orphanTimeout,
  script
}

const plan = Command.make(
  "plan",
  planOptions,
  loaded(() => import("./fkHandlers.js").then(({ plan }) => plan))
).pipe(
  Command.withDescription(
    "Prints what `rebuild` would run, with its locks. It reads the tables too, and takes no lock above ACCESS SHARE."
  )
)

/** What `rebuild` takes. */
export const rebuildOptions = { ...FkOptions.change, ...FkOptions.effort }

const rebuild = Command.make(
  "rebuild",
  rebuildOptions,
  loaded(() => import("./fkHandlers.js").then(({ rebuild }) => rebuild))
).pipe(
  Command.withDescription(
    "Changes the ON DELETE action of keys while they are in use. Stopped at any point, it is resumed by running it again."
  )
)

const check = Command.make(
  "check",
  listOptions,
  loaded(() => import("./fkHandlers.js").then(({ check }) => check))
).pipe(
  Command.withDescription(
    "Looks for keys that do not do what the catalog says. It names those without triggers or not valid, and exits with 3 when there are any. Keys that are NOT ENFORCED are named too, and do not count: they do what they say, which is nothing."
  )
)

const own = Command.make("fk").pipe(
  Command.withDescription("Lists the foreign keys of a live database, and changes what a delete does.")
)

const below = [list, plan, rebuild, ...Undo.commands, check, Purge.command] as const

/** `fk` and what belongs to it. */
export const command = own.pipe(Command.withSubcommands(below))

/** The same, for help. */
export const tree: Tree = { command: own, below: below.map((one) => ({ command: one })) }
