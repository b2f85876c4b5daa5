import * as CliConfig from "@effect/cli/CliConfig"
import * as Command from "@effect/cli/Command"
import * as ValidationError from "@effect/cli/ValidationError"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import * as NodeTerminal from "@effect/platform-node/NodeTerminal"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Doctor from "./doctor.js"
import * as Fk from "./fk.js"
import * as Help from "./help.js"
import * as Migrate from "./migrate.js"
import * as Report from "./report.js"
import { type Process, Surroundings } from "./surroundings.js"
import { version } from "./version.js"

const own = Command.make("promptgrimoire-db").pipe(
  Command.withDescription(
    "Migrates a PostgreSQL database, and changes foreign keys to ON DELETE CASCADE while it is in use."
  )
)

const command = own.pipe(Command.withSubcommands([Migrate.command, Fk.command, Doctor.command]))

const tree: Help.Tree = {
  command: own,
  below: [Migrate.tree, Fk.tree, { command: Doctor.command }]
}

const parsed = Command.run(command, { name: "promptgrimoire-db", version })

/** Standard output belongs to the results; logs go to standard error. */
const logger = Logger.replace(Logger.defaultLogger, Logger.withConsoleError(Logger.logfmtLogger))

const platform = Layer.mergeAll(
  NodeFileSystem.layer,
  NodePath.layer,
  NodeTerminal.layer,
  logger,
  CliConfig.layer({ showBuiltIns: false })
)

/**
 * Runs the command with these arguments, without the name of the program, and succeeds with its
 * exit code. It touches nothing of the process but its working directory: a test passes streams of
 * its own and reads what they got. Interrupt it as a signal would; what it then prints is in the
 * streams when the interruption is over, and its exit code is 1.
 *
 * It does not wait until the streams have delivered what was written to them; a process that
 * exits has to.
 */
export const run = (args: ReadonlyArray<string>, process: Process): Effect.Effect<Report.ExitCode> =>
  Effect.suspend(() => {
    const help = Help.of(tree, args)
    return help === undefined ? parsed(["", "", ...args]) : Console.log(help.join("\n"))
  }).pipe(
    Effect.provide(platform),
    Effect.provide(Surroundings.layer(process)),
    Effect.exit,
    Effect.map(exitCode)
  )

const exitCode = (exit: Exit.Exit<unknown, unknown>): Report.ExitCode => {
  if (Exit.isSuccess(exit)) return Report.exitCodes.done
  const error = Cause.squash(exit.cause)
  if (error instanceof Report.Exited) return error.code
  if (ValidationError.isValidationError(error)) return Report.exitCodes.usage
  return Report.exitCodes.failed
}
