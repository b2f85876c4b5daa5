import * as Args from "@effect/cli/Args"
import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { fileURLToPath } from "node:url"
import * as ForeignKey from "../ForeignKey.js"
import * as Migrator from "../Migrator.js"
import { defaultTable } from "../migrator/Ledger.js"
import * as Connection from "./Connection.js"
import * as FkPlan from "./fkPlan.js"
import * as FkReport from "./fkReport.js"
import { runCommand } from "./runCommand.js"
import * as Report from "./Report.js"

const directory = Options.directory("directory", { exists: "yes" }).pipe(
  Options.withDescription(
    "The directory of the migrations, files named <id>_<name>.js (or .ts where Node can load it). Without it those of this package."
  ),
  Options.optional
)

const allowEmpty = Options.boolean("allow-empty").pipe(
  Options.withDescription("Take a directory without migrations for what it says, instead of refusing it.")
)

const table = Options.text("table").pipe(
  Options.withDescription(
    `The ledger, [SCHEMA.]TABLE, as it is spelled in the catalog. Default: ${defaultTable}, in the schema that CREATE TABLE would use.`
  ),
  Options.optional
)

const options = { url: Connection.url, json: Connection.json, directory, allowEmpty, table }

/** What says which migrations a command is about. */
interface Chosen {
  readonly directory: Option.Option<string>
  readonly allowEmpty: boolean
  readonly table: Option.Option<string>
}

/** The migrations of this package, next to `src` both here and in the built package. */
export const ownDirectory = fileURLToPath(new URL("../../migrations", import.meta.url))

const migrations = ({ allowEmpty, directory, table }: Chosen): Migrator.Options => ({
  loader: Migrator.fromDirectory(
    Option.getOrElse(directory, () => ownDirectory),
    { allowEmpty }
  ),
  table: Option.getOrUndefined(table),
  onProgress: (event) => Report.progress(describe(event))
})

const interrupted = Effect.succeed(
  "interrupted: a migration that was running is rolled back, an online one is half done; run the same command again to go on"
)

const describe = (event: Migrator.Progress): string => {
  switch (event._tag) {
    case "Waiting":
      return "Waiting for another migrator to finish ..."
    case "Started":
      return `${event.direction === "up" ? "Applying" : "Undoing"} ${event.id}_${event.name} ...`
    case "Retrying":
      return `${event.id}_${event.name} could not get its locks (try ${event.attempt}, ${event.reason}); trying again ...`
    case "Finished":
      return `${event.id}_${event.name} done in ${Report.duration(event.durationMs)}`
  }
}

const migrateUp = Command.make("migrate", options, ({ json, url, ...chosen }) =>
  runCommand(
    { json, url, interrupted },
    Effect.gen(function* () {
      const result = yield* Report.noticing(Migrator.run(migrations(chosen)))
      const lines = [
        ...(result.applied.length === 0
          ? ["Nothing to do: every migration is applied."]
          : result.applied.map(
              ({ durationMs, id, name }) => `Applied ${id}_${name} in ${Report.duration(durationMs)}.`
            )),
        `Current migration: ${result.current}.`
      ]
      const keys = json ? [] : yield* foreignKeyLines
      yield* Report.result(json, result, [...lines, ...keys])
    })
  )
).pipe(Command.withDescription("Applies what is pending."))

/** After a migration a person wants to see what a delete does now. */
const foreignKeyLines = Effect.map(Effect.map(ForeignKey.list(), Report.byName), (keys) =>
  keys.length === 0
    ? []
    : [
        "",
        ...Report.table(
          ["Foreign key", "References", "On delete"],
          keys.map((key) => [
            FkReport.nameOf(key),
            ForeignKey.label(key.referencedSchema, key.referencedTable),
            FkReport.onDelete(key)
          ])
        )
      ]
)

const statusLines = ({ current, migrations }: Migrator.Status): ReadonlyArray<string> => [
  ...(migrations.length === 0
    ? ["There are no migrations."]
    : Report.table(
        ["Id", "Name", "State", "Applied at"],
        migrations.map(({ appliedAt, id, name, state }) => [
          String(id),
          name,
          state,
          appliedAt?.toISOString() ?? ""
        ])
      )),
  `Current migration: ${current}.`
]

const status = Command.make("status", options, ({ json, url, ...chosen }) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const status = yield* Migrator.status(migrations(chosen))
      const upToDate = status.migrations.every(({ state }) => state === "applied")
      yield* Report.result(
        json,
        status,
        statusLines(status),
        upToDate ? Report.exitCodes.done : Report.exitCodes.refused
      )
    })
  )
).pipe(
  Command.withDescription(
    "Lists the migrations and which are applied. Exits with 3 when any is not, or was edited."
  )
)

const stamp = Command.make(
  "stamp",
  { ...options, id: Args.integer({ name: "id" }) },
  ({ id, json, url, ...chosen }) =>
    runCommand(
      { json, url },
      Effect.gen(function* () {
        const status = yield* Migrator.stamp({ ...migrations(chosen), id })
        yield* Report.result(json, status, statusLines(status))
      })
    )
).pipe(
  Command.withDescription(
    "Writes down that every migration up to an id is applied, and runs none: for a database that has its schema already."
  )
)

const down = Command.make(
  "down",
  {
    ...options,
    to: Options.integer("to").pipe(
      Options.withDescription("The migration to go back to; 0 undoes all of them.")
    )
  },
  ({ json, to, url, ...chosen }) =>
    runCommand(
      { json, url, interrupted },
      Effect.gen(function* () {
        const { applied: undone, current } = yield* Report.noticing(
          Migrator.down({ ...migrations(chosen), to })
        )
        yield* Report.result(json, { undone, current }, [
          ...(undone.length === 0
            ? ["Nothing to do."]
            : undone.map(
                ({ durationMs, id, name }) => `Undid ${id}_${name} in ${Report.duration(durationMs)}.`
              )),
          `Current migration: ${current}.`
        ])
      })
    )
).pipe(Command.withDescription("Undoes every migration above an id, the latest first."))

const plan = Command.make("plan", options, ({ json, url, ...chosen }) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const result = yield* Report.noticing(Migrator.plan(migrations(chosen)))
      const isRefused = result.migrations.some(({ foreignKeys }) =>
        foreignKeys.some(({ refused }) => refused.length > 0)
      )
      yield* Report.result(
        json,
        result,
        planLines(result),
        isRefused ? Report.exitCodes.refused : Report.exitCodes.done
      )
    })
  )
).pipe(
  Command.withDescription(
    "Prints the statements and locks of what is pending, and takes none: it runs the migrations on a temporary database of the same server, without rows."
  )
)

const planLines = ({ current, migrations }: Migrator.Plan): ReadonlyArray<string> => [
  ...(migrations.length === 0 ? ["Nothing to do: every migration is applied."] : []),
  ...migrations.flatMap(({ foreignKeys, id, locks, name, online, statements }) => [
    `${id}_${name}${online ? " (online: not in one transaction, so its locks are those of each statement)" : ""}`,
    ...statements.map((statement) => `     ${FkPlan.abbreviate(statement.trim().replaceAll(/\s+/g, " "))};`),
    ...(locks ?? []).map(({ mode, relation }) => `   locks ${relation} in ${mode} mode`),
    ...foreignKeys.flatMap(FkPlan.lines),
    ""
  ]),
  `Current migration: ${current}.`
]

const check = Command.make("check", options, ({ json, url, ...chosen }) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const result = yield* Migrator.check(migrations(chosen))
      yield* Report.result(
        json,
        result,
        checkLines(result),
        result.differences.length === 0 ? Report.exitCodes.done : Report.exitCodes.refused
      )
    })
  )
).pipe(
  Command.withDescription(
    "Compares the schema with what the applied migrations make of an empty, temporary database. Exits with 3 when they differ."
  )
)

const checkLines = ({ current, differences }: Migrator.Drift): ReadonlyArray<string> => [
  ...(differences.length === 0
    ? ["The schema is what its migrations make."]
    : differences.flatMap(({ actual, expected, kind, name }) =>
        expected === null
          ? [`! ${kind} ${name} is there, and no migration makes it`]
          : actual === null
            ? [`! ${kind} ${name} is missing: ${expected}`]
            : [
                `! ${kind} ${name} is not what the migrations make`,
                `    expected: ${expected}`,
                `    found:    ${actual}`
              ]
      )),
  `Current migration: ${current}.`
]

/** `migrate` and what belongs to it. */
export const command = migrateUp.pipe(Command.withSubcommands([status, plan, check, stamp, down]))
