import * as Command from "@effect/cli/Command"
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as Options from "@effect/cli/Options"
import * as ValidationError from "@effect/cli/ValidationError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { parts, table } from "../catalog/selectors.js"
import { json, loaded, url } from "./options.js"

// -----------------------------------------------------------------------------
// options
// -----------------------------------------------------------------------------

const invalid = (message: string) => ValidationError.invalidValue(HelpDoc.p(message))

const from = Options.text("from").pipe(
  Options.withPseudoName("[SCHEMA.]TABLE"),
  Options.withDescription("The table of the row."),
  Options.mapEffect((text) =>
    Option.match(Option.fromNullable(table(text)), {
      onNone: () => Effect.fail(invalid(`--from takes [SCHEMA.]TABLE, and "${text}" is not that`)),
      onSome: Effect.succeed
    })
  )
)

/** The text after the first equals sign is the value, and in no message. */
const where = Options.text("where").pipe(
  Options.withDescription(
    "For each column of a primary or unique key of the table. Repeatable. VALUE as PostgreSQL writes it."
  ),
  Options.withPseudoName("COLUMN=VALUE"),
  Options.atLeast(1),
  Options.mapEffect((texts) =>
    Effect.forEach(texts, (text) => {
      const [, name = "", value = ""] = /^("(?:[^"]|"")+"|[^="]+)=(.*)$/s.exec(text) ?? []
      const [column, ...rest] = parts(name.trim()) ?? []
      return column === undefined || rest.length > 0
        ? Effect.fail(invalid("--where takes COLUMN=VALUE"))
        : Effect.succeed({ column, value })
    })
  )
)

/** What `purge` takes. */
export const options = {
  url,
  json,
  from,
  where,
  batch: Options.integer("batch").pipe(
    Options.withPseudoName("ROWS"),
    Options.withDescription("The most rows that one transaction deletes, default 1000."),
    Options.withDefault(1000),
    Options.mapEffect((batch) =>
      batch > 0 ? Effect.succeed(batch) : Effect.fail(invalid("--batch takes a number above 0"))
    )
  ),
  trustTriggers: Options.boolean("trust-triggers").pipe(
    Options.withDescription(
      "Say that no trigger that fires before a delete keeps its row. Tables that have such a trigger are refused otherwise."
    )
  ),
  dryRun: Options.boolean("dry-run").pipe(
    Options.withDescription("Count what would be deleted, and delete nothing.")
  )
}

// -----------------------------------------------------------------------------
// command
// -----------------------------------------------------------------------------

/** `purge`. */
export const command = Command.make(
  "purge",
  options,
  loaded(() => import("./purgeHandlers.js").then(({ purge }) => purge))
).pipe(
  Command.withDescription(
    "Deletes a row and all that cascades from it, in batches. Each batch is a transaction of its own. Stopped at any point, it is resumed by running it again."
  )
)
