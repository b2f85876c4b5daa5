import * as Args from "@effect/cli/Args"
import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import { defaultTable } from "../migrator/defaultTable.js"
import type { Tree } from "./help.js"
import { json, loaded, url } from "./options.js"

const directory = Options.directory("directory", { exists: "yes" }).pipe(
  Options.withPseudoName("DIRECTORY"),
  Options.withDescription(
    "The directory of the migrations, files named <id>_<name>.js (or .ts where Node can load it). Without it those of this package."
  ),
  Options.optional
)

const allowEmpty = Options.boolean("allow-empty").pipe(
  Options.withDescription("Take a directory without migrations for what it says, instead of refusing it.")
)

const table = Options.text("table").pipe(
  Options.withPseudoName("[SCHEMA.]TABLE"),
  Options.withDescription(
    `The ledger, as it is spelled in the catalog. Default: ${defaultTable}, in the schema that CREATE TABLE would use.`
  ),
  Options.optional
)

/** What every command of `migrate` takes. */
export const options = { url, json, directory, allowEmpty, table }

const migrateUp = Command.make(
  "migrate",
  options,
  loaded(() => import("./migrateHandlers.js").then(({ up }) => up))
).pipe(Command.withDescription("Applies what is pending."))

const status = Command.make(
  "status",
  options,
  loaded(() => import("./migrateHandlers.js").then(({ status }) => status))
).pipe(
  Command.withDescription(
    "Lists the migrations and which are applied. Exits with 3 when any is not, or was edited."
  )
)

/** What `stamp` takes. */
export const stampOptions = { ...options, id: Args.integer({ name: "id" }) }

const stamp = Command.make(
  "stamp",
  stampOptions,
  loaded(() => import("./migrateHandlers.js").then(({ stamp }) => stamp))
).pipe(
  Command.withDescription(
    "Records migrations as applied, and runs none. For a database that has its schema already: all up to ID count as applied."
  )
)

/** What `down` takes. */
export const downOptions = {
  ...options,
  to: Options.integer("to").pipe(
    Options.withPseudoName("ID"),
    Options.withDescription("The migration to go back to; 0 undoes all of them.")
  )
}

const down = Command.make(
  "down",
  downOptions,
  loaded(() => import("./migrateHandlers.js").then(({ down }) => down))
).pipe(Command.withDescription("Undoes every migration above an id, the latest first."))

const plan = Command.make(
  "plan",
  options,
  loaded(() => import("./migrateHandlers.js").then(({ plan }) => plan))
).pipe(
  Command.withDescription(
    "Prints the statements and locks of what is pending. It runs the migrations on a temporary database of the same server, without rows, and leaves yours alone."
  )
)

const check = Command.make(
  "check",
  options,
  loaded(() => import("./migrateHandlers.js").then(({ check }) => check))
).pipe(
  Command.withDescription(
    "Compares the schema with what its migrations make. It runs the applied ones on an empty, temporary database. Exits with 3 when the two differ."
  )
)

const below = [status, plan, check, stamp, down] as const

/** `migrate` and what belongs to it. */
export const command = migrateUp.pipe(Command.withSubcommands(below))

/** The same, for help. */
export const tree: Tree = { command: migrateUp, below: below.map((one) => ({ command: one })) }
