import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Exit from "effect/Exit"
import { exitOf, watch } from "./output.js"
import { exitCodes } from "./report.js"
import { run } from "./run.js"

/** Runs the command as this process: its arguments, streams, signals and exit code. */
export const start = (): void => {
  const outputs = { stdout: watch(process.stdout), stderr: watch(process.stderr) }
  run(process.argv.slice(2), process).pipe(
    NodeRuntime.runMain({
      disableErrorReporting: true,
      disablePrettyLogger: true,
      teardown: (exit, onExit) =>
        exitOf(
          outputs,
          Exit.isSuccess(exit) && typeof exit.value === "number" ? exit.value : exitCodes.failed,
          onExit
        )
    })
  )
}
