import * as Command from "@effect/cli/Command"
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as Options from "@effect/cli/Options"
import * as ValidationError from "@effect/cli/ValidationError"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ForeignKey from "../ForeignKey.js"
import * as Connection from "./Connection.js"
import * as Purge from "./purge.js"
import * as Report from "./Report.js"
import { runCommand } from "./runCommand.js"

// -----------------------------------------------------------------------------
// options
// -----------------------------------------------------------------------------

/** A repeatable option whose values are names of a form. */
const named = <A>(
  name: string,
  form: string,
  description: string,
  parse: (text: string) => A | undefined
): Options.Options<ReadonlyArray<A>> =>
  Options.text(name).pipe(
    Options.withDescription(description),
    Options.repeated,
    Options.mapEffect((texts) =>
      Effect.forEach(texts, (text) =>
        Option.match(Option.fromNullable(parse(text)), {
          onNone: () =>
            Effect.fail(
              ValidationError.invalidValue(HelpDoc.p(`--${name} takes ${form}, and "${text}" is not that`))
            ),
          onSome: Effect.succeed
        })
      )
    )
  )

const selectorOptions = {
  all: Options.boolean("all").pipe(Options.withDescription("Every foreign key of the database.")),
  schemas: Options.text("schema").pipe(
    Options.withDescription("The keys of the tables of a schema. Repeatable, like the others below."),
    Options.repeated
  ),
  tables: named(
    "table",
    "[SCHEMA.]TABLE",
    "The keys of a referencing table, [SCHEMA.]TABLE.",
    ForeignKey.parseTable
  ),
  constraints: named(
    "constraint",
    "[SCHEMA.]TABLE.NAME",
    "One key, [SCHEMA.]TABLE.NAME.",
    ForeignKey.parseConstraint
  ),
  references: named(
    "references",
    "[SCHEMA.]TABLE",
    "The keys that reference a table, [SCHEMA.]TABLE.",
    ForeignKey.parseTable
  )
}

/** What the options of {@link selectorOptions} parse to. */
interface Selected {
  readonly all: boolean
  readonly schemas: ReadonlyArray<string>
  readonly tables: ReadonlyArray<ForeignKey.TableSelector>
  readonly constraints: ReadonlyArray<ForeignKey.ConstraintSelector>
  readonly references: ReadonlyArray<ForeignKey.TableSelector>
}

/** Nothing, or two contradicting things, were selected. */
class UnclearSelection extends Data.TaggedError("UnclearSelection")<{ readonly message: string }> {}

/** A change of every key must be asked for in so many words. */
const selectors = ({ all, ...selected }: Selected): Effect.Effect<ForeignKey.Selectors, UnclearSelection> => {
  const none = Object.values(selected).every((entries) => entries.length === 0)
  if (all !== none) {
    return new UnclearSelection({
      message: none
        ? "say which foreign keys: --all, or any of --schema, --table, --constraint and --references"
        : "--all goes alone, without --schema, --table, --constraint and --references"
    })
  }
  return Effect.succeed(selected)
}

const onDelete = Options.choice("on-delete", ForeignKey.actions).pipe(
  Options.withDescription("The action that the keys shall have.")
)

const onDeleteColumns = Options.text("columns").pipe(
  Options.withDescription(
    "With set-null and set-default: only this column is set (PostgreSQL 15 and later). Repeatable."
  ),
  Options.repeated
)

const connection = { url: Connection.url, json: Connection.json }

const allowRowMovement = Options.boolean("allow-row-movement").pipe(
  Options.withDescription(
    "PostgreSQL 13 and 14 only: change keys to partitioned tables, although an UPDATE that moves a row to another partition carries out ON DELETE there."
  )
)

const createIndexes = Options.boolean("create-indexes").pipe(
  Options.withDescription(
    "First build, CONCURRENTLY, the indexes on referencing columns that are missing: without one every delete scans the table."
  )
)

const changeOptions = {
  ...connection,
  ...selectorOptions,
  onDelete,
  onDeleteColumns,
  allowRowMovement,
  createIndexes
}

const target = (
  options: Selected & {
    readonly onDelete: ForeignKey.Action
    readonly onDeleteColumns: ReadonlyArray<string>
    readonly allowRowMovement: boolean
  }
) =>
  Effect.map(
    selectors({
      all: options.all,
      schemas: options.schemas,
      tables: options.tables,
      constraints: options.constraints,
      references: options.references
    }),
    (selected) => ({
      selectors: selected,
      onDelete: options.onDelete,
      allowRowMovement: options.allowRowMovement,
      ...(options.onDeleteColumns.length > 0 ? { onDeleteColumns: options.onDeleteColumns } : {})
    })
  )

// -----------------------------------------------------------------------------
// commands
// -----------------------------------------------------------------------------

const list = Command.make("list", { ...connection, ...selectorOptions }, ({ json, url, ...selected }) =>
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
      `${key.schema}.${key.table}.${key.name}`,
      key.columns.join(", "),
      `${key.referencedSchema}.${key.referencedTable} (${key.referencedColumns.join(", ")})`,
      Report.words(key.onDelete),
      key.index ?? "none"
    ])
  ),
  ...keys.flatMap((key) =>
    key.problems.map((problem) => `! ${key.schema}.${key.table}.${key.name}: ${problem}`)
  )
]

const script = Options.boolean("sql").pipe(
  Options.withDescription(
    "Print a script for psql, with the locks of each step in comments, to be run by hand."
  )
)

const plan = Command.make("plan", { ...changeOptions, script }, ({ json, script, url, ...options }) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const result = yield* ForeignKey.plan({
        ...(yield* target(options)),
        createIndexes: options.createIndexes
      })
      yield* Report.result(
        json,
        result,
        script ? [ForeignKey.planScript(result).trimEnd()] : planLines(result),
        result.refused.length > 0 ? Report.exitCodes.refused : Report.exitCodes.done
      )
    })
  )
).pipe(
  Command.withDescription(
    "Prints every statement that `rebuild` would run, its locks and what they block. Takes no lock itself."
  )
)

const conditions: { readonly [When in ForeignKey.PlannedStep["when"]]: string } = {
  always: "",
  contended: " (only if its tables are too busy for the swap)",
  "if out of order": " (only if the new key's triggers would fire before the original's)"
}

const planLines = ({ refused, steps, unchanged, warnings }: ForeignKey.PlanResult) => [
  ...steps.flatMap((step, index) => [
    `${index + 1}. ${step.constraint}: ${step.step}${conditions[step.when]}`,
    ...step.sql.map((statement) => `     ${abbreviate(statement)};`),
    ...step.locks.map(({ mode, relation }) => `   locks ${relation} in ${mode} mode`),
    `   ${step.blocks}`,
    ""
  ]),
  ...unchanged.map((constraint) => `= ${constraint} has this action already`),
  ...warnings.map(({ constraint, warning }) => `! ${constraint}: ${warning}`),
  ...refused.map(({ constraint, reason }) => `x ${constraint} is refused: ${reason}`)
]

/** The proofs are pages of PL/pgSQL: a person reads what is changed, and finds the whole text with --sql or --json. */
const abbreviate = (statement: string): string => {
  if (statement.startsWith("DO ")) return "DO ... (checks or restores catalog entries; --sql prints it whole)"
  return statement.length > 200 ? `${statement.slice(0, 160)} ...` : statement
}

const duration = (name: string, description: string) =>
  Options.text(name).pipe(
    Options.withDescription(description),
    Options.filterMap(
      (value) => Option.filter(Duration.decodeUnknown(value), (decoded) => Duration.toMillis(decoded) >= 1),
      `--${name} takes a duration such as "500 millis" or "2 minutes"`
    ),
    Options.optional
  )

const lockTimeout = duration(
  "lock-timeout",
  'The longest that one try asks for locks, default "250 millis". Never more than 0.6 of the server\'s deadlock_timeout.'
)

const budget = duration("budget", 'How long to go on trying for each key, default "10 minutes".')

const rebuildOptions = { ...changeOptions, lockTimeout, budget }

const rebuild = Command.make("rebuild", rebuildOptions, ({ json, url, ...options }) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const result = yield* ForeignKey.rebuild({
        ...(yield* target(options)),
        createIndexes: options.createIndexes,
        lockTimeout: Option.getOrUndefined(options.lockTimeout),
        budget: Option.getOrUndefined(options.budget),
        onProgress: (event) => (json ? Effect.void : Report.progress(describe(event)))
      })
      const code =
        result.failed.length > 0
          ? Report.exitCodes.failed
          : result.refused.length > 0
            ? Report.exitCodes.refused
            : Report.exitCodes.done
      yield* Report.result(json, result, rebuildLines(result), code)
    })
  )
).pipe(
  Command.withDescription(
    "Changes the ON DELETE action of foreign keys while the database is in use. Stopped at any point, it is resumed by running it again."
  )
)

const rebuildLines = ({ failed, rebuilt, refused, unchanged }: ForeignKey.RebuildResult) => [
  ...rebuilt.map(
    ({ constraint, durationMs, longestLockMs, previous }) =>
      `Rebuilt ${constraint} in ${Report.duration(durationMs)}, longest lock ${Report.duration(longestLockMs)} (was ${previous.action}).`
  ),
  ...unchanged.map((constraint) => `= ${constraint} has this action already`),
  ...refused.map(({ constraint, reason }) => `x ${constraint} is refused: ${reason}`),
  ...failed.map(({ constraint, reason }) => `x ${constraint} failed: ${reason}`)
]

const describe = (event: ForeignKey.Progress): string => {
  switch (event._tag) {
    case "Started":
      return `${event.constraint}: ${event.from.action} -> ${event.to.action}`
    case "StepStarted":
      return `${event.constraint}: ${event.step} ...`
    case "StepDone":
      return `${event.constraint}: ${event.step} done in ${Report.duration(event.durationMs)}`
    case "Waiting":
      return `${event.constraint}: ${event.step} waits for locks (${event.tries} tries, ${Report.duration(event.elapsedMs)})${event.blockers
        .map((blocker) => `\n  held by ${ForeignKey.describeBlocker(blocker)}`)
        .join("")}`
    case "IndexBuilt":
      return `${event.constraint}: built index ${event.index}`
    case "Overlap":
      return `${event.constraint}: until the swap, deletes follow ${event.live}`
    case "Finished":
      return `${event.constraint}: done`
  }
}

const check = Command.make("check", { ...connection, ...selectorOptions }, ({ json, url, ...selected }) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const found = yield* ForeignKey.check(selected)
      yield* Report.result(
        json,
        found,
        found.length === 0
          ? ["Every foreign key does what it says."]
          : found.flatMap(({ constraint, problems }) =>
              problems.map((problem) => `! ${constraint}: ${problem}`)
            ),
        found.length === 0 ? Report.exitCodes.done : Report.exitCodes.refused
      )
    })
  )
).pipe(
  Command.withDescription(
    "Looks for foreign keys that do not do what their catalog entry says, have no triggers, or are not valid. Exits with 3 when there are any."
  )
)

/** `fk` and what belongs to it. */
export const command = Command.make("fk").pipe(
  Command.withDescription("Foreign keys of a live database: list them, and change what a delete does."),
  Command.withSubcommands([list, plan, rebuild, check, Purge.command])
)
