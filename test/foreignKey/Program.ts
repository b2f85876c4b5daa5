import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { bundled } from "../support/bundled.js"

/**
 * Starts a process of its own that changes every key to CASCADE, with the arguments of
 * `changeAll.ts`; it ends with the scope, at the latest.
 */
export const start = (args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = spawn(
        process.execPath,
        [bundled({ file: fileURLToPath(new URL("changeAll.ts", import.meta.url)) }), ...args],
        { stdio: "ignore" }
      )
      return {
        ended: Effect.sync(() => child.exitCode !== null || child.signalCode !== null),
        kill: () => child.kill("SIGKILL")
      }
    }),
    (child) => Effect.sync(child.kill)
  )
