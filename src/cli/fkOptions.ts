/** The options of `fk` and what they mean. */
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as Options from "@effect/cli/Options"
import * as ValidationError from "@effect/cli/ValidationError"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as ForeignKey from "../ForeignKey.js"
import { all as actions } from "../catalog/action.js"
import { defaultTable as defaultLedger } from "../foreignKey/ledger/ledger.js"
import * as Selectors from "../catalog/selectors.js"
import { json, url } from "./options.js"

/** A repeatable option whose values are names of a form. */
export const named = <A>(
  name: string,
  form: string,
  description: string,
  parse: (text: string) => A | undefined
): Options.Options<ReadonlyArray<A>> =>
  Options.text(name).pipe(
    Options.withPseudoName(form.startsWith("[") ? form : form.startsWith("the number") ? "NUMBER" : "NAME"),
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

/** Which keys. */
export const selectorOptions = {
  all: Options.boolean("all").pipe(Options.withDescription("Every foreign key of the database.")),
  schemas: named(
    "schema",
    "the name of a schema",
    "The keys of the tables of a schema. Repeatable, like the others below. Names as SQL writes them, as `list` prints them.",
    Selectors.name
  ),
  tables: named("table", "[SCHEMA.]TABLE", "The keys of a referencing table.", Selectors.table),
  constraints: named("constraint", "[SCHEMA.]TABLE.NAME", "One key.", Selectors.constraint),
  references: named("references", "[SCHEMA.]TABLE", "The keys that reference a table.", Selectors.table)
}

/** What the options of {@link selectorOptions} parse to. */
export interface Selected {
  readonly all: boolean
  readonly schemas: ReadonlyArray<string>
  readonly tables: ReadonlyArray<ForeignKey.TableSelector>
  readonly constraints: ReadonlyArray<ForeignKey.ConstraintSelector>
  readonly references: ReadonlyArray<ForeignKey.TableSelector>
}

/** Nothing, or two contradicting things, were selected. */
class UnclearSelection extends Data.TaggedError("UnclearSelection")<{ readonly message: string }> {}

/** Two options that exclude each other. */
export class Contradiction extends Data.TaggedError("Contradiction")<{ readonly message: string }> {}

/** A change of every key must be asked for in so many words. */
export const selectors = ({
  all,
  ...selected
}: Selected): Effect.Effect<ForeignKey.Selectors, UnclearSelection> => {
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

const onDelete = Options.choice("on-delete", actions).pipe(
  Options.withDescription("The action that the keys shall have.")
)

const onDeleteColumns = named(
  "columns",
  "the name of a column",
  "With set-null and set-default: only this column is set (PostgreSQL 15 and later). Repeatable.",
  Selectors.name
)

/** Which database, and how to print. */
export const connection = { url, json }

export const allowRowMovement = Options.boolean("allow-row-movement").pipe(
  Options.withDescription(
    "PostgreSQL 13 and 14 only: change keys to partitioned tables, although an UPDATE that moves a row to another partition carries out ON DELETE there."
  )
)

/** The table of the changes. */
export const ledgerTable = Options.text("ledger").pipe(
  Options.withPseudoName("[SCHEMA.]TABLE"),
  Options.withDescription(
    `The table that records the changes for \`undo\`; created with the first one. Default: ${defaultLedger}, in the schema that CREATE TABLE would use.`
  ),
  Options.filterMap(
    (text) => Option.fromNullable(Selectors.table(text)),
    "--ledger takes [SCHEMA.]TABLE, names as SQL writes them"
  ),
  Options.optional
)

export const noRehearsal = Options.boolean("no-rehearsal").pipe(
  Options.withDescription(
    "Do not run the steps on empty copies of the tables first, in a transaction that is rolled back. What the server refuses is then found in the middle."
  )
)

const noLedger = Options.boolean("no-ledger").pipe(
  Options.withDescription("Record nothing: `undo` will not know what the keys were before.")
)

/** What to change, and to what. */
export const change = {
  ...connection,
  ...selectorOptions,
  onDelete,
  onDeleteColumns,
  allowRowMovement,
  ledgerTable,
  noLedger,
  noRehearsal
}

/** What {@link change} means to `ForeignKey`. */
export const target = (
  options: Selected & {
    readonly onDelete: ForeignKey.Action
    readonly onDeleteColumns: ReadonlyArray<string>
    readonly allowRowMovement: boolean
    readonly ledgerTable: Option.Option<ForeignKey.TableSelector>
    readonly noLedger: boolean
    readonly noRehearsal: boolean
  }
) =>
  Effect.gen(function* () {
    if (options.noLedger && Option.isSome(options.ledgerTable)) {
      return yield* new Contradiction({ message: "--ledger and --no-ledger contradict each other" })
    }
    return {
      selectors: yield* selectors(selectedOf(options)),
      onDelete: options.onDelete,
      allowRowMovement: options.allowRowMovement,
      rehearse: !options.noRehearsal,
      ledger: options.noLedger ? (false as const) : Option.getOrUndefined(options.ledgerTable),
      ...(options.onDeleteColumns.length > 0 ? { onDeleteColumns: options.onDeleteColumns } : {})
    }
  })

/** The selectors among other options. */
export const selectedOf = ({ all, constraints, references, schemas, tables }: Selected): Selected => ({
  all,
  schemas,
  tables,
  constraints,
  references
})

export const createIndexes = Options.boolean("create-indexes").pipe(
  Options.withDescription(
    "First build, CONCURRENTLY, the indexes on referencing columns that are missing: without one every delete scans the table."
  )
)

/** A duration of at least a millisecond. */
const duration = (name: string, description: string) =>
  Options.text(name).pipe(
    Options.withPseudoName("DURATION"),
    Options.withDescription(description),
    Options.filterMap(
      (value) => Option.filter(Duration.decodeUnknown(value), (decoded) => Duration.toMillis(decoded) >= 1),
      `--${name} takes a duration such as "500 millis" or "2 minutes"`
    ),
    Options.optional
  )

const lockTimeout = duration(
  "lock-timeout",
  'The longest that others wait because of one try, for its locks and its work together, default "250 millis". It asks for locks for up to 0.8 of this, and never for more than 0.6 of the server\'s deadlock_timeout.'
)

const budget = duration("budget", 'How long to go on trying for each key, default "10 minutes".')

const settlePatience = duration(
  "settle-patience",
  'How long to wait, for DEFERRABLE INITIALLY IMMEDIATE keys, for the transactions that may have deferred the original by name, default "1 minute".'
)

const patience = duration(
  "patience",
  'How long to wait for another process that changes foreign keys of this database, default "10 seconds".'
)

const count = (name: string, description: string) =>
  Options.integer(name).pipe(
    Options.withPseudoName("NUMBER"),
    Options.withDescription(description),
    Options.filterMap(
      (number) => (number >= 0 ? Option.some(number) : Option.none()),
      `--${name} takes a number that is not negative`
    ),
    Options.optional
  )

const swapTries = count(
  "swap-tries",
  "How often to try to swap with both tables locked, before the steps that lock one table each are taken, default 60. 0: at once."
)

const reconnects = count(
  "reconnects",
  "How often, for each key, to go on by itself after the connection was lost, default 5. 0: never."
)

const reportEvery = duration(
  "report-every",
  'How often to say that a step still works which takes long, default "10 seconds".'
)

/** How hard to try. */
export const effort = {
  createIndexes,
  lockTimeout,
  budget,
  swapTries,
  settlePatience,
  patience,
  reconnects,
  reportEvery
}

/** What {@link effort} means to `ForeignKey`. */
export const effortOf = (options: {
  readonly createIndexes: boolean
  readonly lockTimeout: Option.Option<Duration.Duration>
  readonly budget: Option.Option<Duration.Duration>
  readonly swapTries: Option.Option<number>
  readonly settlePatience: Option.Option<Duration.Duration>
  readonly patience: Option.Option<Duration.Duration>
  readonly reconnects: Option.Option<number>
  readonly reportEvery: Option.Option<Duration.Duration>
}) => ({
  createIndexes: options.createIndexes,
  lockTimeout: Option.getOrUndefined(options.lockTimeout),
  budget: Option.getOrUndefined(options.budget),
  swapTries: Option.getOrUndefined(options.swapTries),
  settlePatience: Option.getOrUndefined(options.settlePatience),
  patience: Option.getOrUndefined(options.patience),
  reconnects: Option.getOrUndefined(options.reconnects),
  reportEvery: Option.getOrUndefined(options.reportEvery)
})

/** How long a plan may count. */
export const orphanTimeout = duration(
  "orphan-timeout",
  'How long to count rows without a referenced row, for each key, default "5 seconds".'
)
