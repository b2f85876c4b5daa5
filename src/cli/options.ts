/** What every command takes, and how a command loads the rest of itself. */
import type * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as Effect from "effect/Effect"

/** Which database a command works on. */
export const url = Options.redacted("url").pipe(
  Options.withPseudoName("URL"),
  Options.withDescription(
    "The database, postgresql://user:password@host:5432/name. Without it DATABASE_URL is used, and without that an embedded PostgreSQL in .data/."
  ),
  Options.optional
)

/** Whether to print one JSON document instead of text. */
export const json = Options.boolean("json").pipe(
  Options.withDescription("Print one JSON document on standard output, and nothing else there.")
)

/**
 * The handler of a command, whose modules are loaded when it runs: what only describes a command,
 * or finds that it was typed wrongly, does not wait for the modules that work on a database.
 */
export const loaded =
  <Given, A, E, R>(load: () => Promise<(given: Given) => Effect.Effect<A, E, R>>) =>
  (given: Given): Effect.Effect<A, E, R> =>
    Effect.flatMap(Effect.promise(load), (handle) => handle(given))

/** What the options of a command are when they are read: what its handler is given. */
export type Given<Config extends Command.Command.Config> = Command.Command.ParseConfig<Config>
