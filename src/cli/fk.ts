import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ForeignKey from "../ForeignKey.js"
import * as FkOptions from "./fkOptions.js"
import * as FkPlan from "./fkPlan.js"
import * as FkReport from "./fkReport.js"
import * as Undo from "./fkUndo.js"
import * as Purge from "./purge.js"
import * as Report from "./Report.js"
import { runCommand } from "./runCommand.js"

const list = Command.make(
  "list",
  { ...FkOptions.connection, ...FkOptions.selectorOptions },
  ({ json, url, ...selected }) =>
    runCommand(
      { json, url },
      Effect.gen(function* () {
        const keys = Report.byName(yield* ForeignKey.list(selected))
        yield* Report.result(json, keys, keys.length === 0 ? ["There are no foreign keys."] : listLines(keys))
      })
    )
).pipe(
  Command.withDescription("Lists foreign keys and what is wrong with them. All of them without selectors.")
)

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

const script = Options.boolean("sql").pipe(
  Options.withDescription(
    "Print a script for psql, to be run by hand: the locks of each step, what is refused and what to look out for are comments in it. Not with --json."
  )
)

const plan = Command.make(
  "plan",
  {
    ...FkOptions.change,
    createIndexes: FkOptions.createIndexes,
    orphanTimeout: FkOptions.orphanTimeout,
    script
  },
  ({ json, script, url, ...options }) =>
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
).pipe(
  Command.withDescription(
    "Prints every statement that `rebuild` would run, its locks and what they block. Reads the tables too, and takes no lock above ACCESS SHARE."
  )
)

const rebuild = Command.make(
  "rebuild",
  { ...FkOptions.change, ...FkOptions.effort },
  ({ json, url, ...options }) =>
    Effect.flatMap(FkReport.reporter, ({ interrupted, onProgress, soFar }) =>
      runCommand(
        { json, url, interrupted, soFar },
        Effect.gen(function* () {
          const target = yield* FkOptions.target(options)
          const result = yield* Report.noticing(
            ForeignKey.rebuild({ ...target, ...FkOptions.effortOf(options), onProgress })
          )
          yield* FkReport.result(json, result, "has this action already")
        })
      )
    )
).pipe(
  Command.withDescription(
    "Changes the ON DELETE action of foreign keys while the database is in use. Stopped at any point, it is resumed by running it again."
  )
)

const check = Command.make(
  "check",
  { ...FkOptions.connection, ...FkOptions.selectorOptions },
  ({ json, url, ...selected }) =>
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
).pipe(
  Command.withDescription(
    "Looks for foreign keys that do not do what their catalog entry says, have no triggers, or are not valid. Exits with 3 when there are any. Keys that are NOT ENFORCED are named too, and do not count: they do what they say, which is nothing."
  )
)

/** `fk` and what belongs to it. */
export const command = Command.make("fk").pipe(
  Command.withDescription("Foreign keys of a live database: list them, and change what a delete does."),
  Command.withSubcommands([list, plan, rebuild, ...Undo.commands, check, Purge.command])
)
