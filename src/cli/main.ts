#!/usr/bin/env node
import * as CliConfig from "@effect/cli/CliConfig"
import * as Command from "@effect/cli/Command"
import * as ValidationError from "@effect/cli/ValidationError"
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Doctor from "./doctor.js"
import * as Fk from "./fk.js"
import * as Migrate from "./migrate.js"
import * as Report from "./Report.js"
import { version } from "./version.js"

const command = Command.make("promptgrimoire-db").pipe(
  Command.withDescription(
    "Migrates a PostgreSQL database, and changes foreign keys to ON DELETE CASCADE while it is in use."
  ),
  Command.withSubcommands([Migrate.command, Fk.command, Doctor.command])
)

const run = Command.run(command, { name: "promptgrimoire-db", version })

/** Standard output belongs to the results; logs go to standard error. */
const logger = Logger.replace(Logger.defaultLogger, Logger.withConsoleError(Logger.logfmtLogger))

const exitCode = (exit: Exit.Exit<unknown, unknown>): number => {
  if (Exit.isSuccess(exit)) return Report.exitCodes.done
  const error = Cause.squash(exit.cause)
  if (error instanceof Report.Exited) return error.code
  if (ValidationError.isValidationError(error)) return Report.exitCodes.usage
  return Report.exitCodes.failed
}

Effect.suspend(() => run(process.argv)).pipe(
  Effect.provide(Layer.mergeAll(NodeContext.layer, logger, CliConfig.layer({ showBuiltIns: false }))),
  NodeRuntime.runMain({
    disableErrorReporting: true,
    disablePrettyLogger: true,
    teardown: (exit, onExit) => onExit(exitCode(exit))
  })
)
