import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Server from "./server.js"
import * as ServerProcess from "./serverProcess.js"

/**
 * Runs `stop` when the process ends before the scope closes: at `process.exit`, after an uncaught
 * exception, or by a signal that nobody else handles. A program that does handle the signal, as
 * those under `runMain` do, closes the scope itself. `stop` is synchronous: nothing else runs at
 * that time.
 */
export const install = (stop: () => void): Effect.Effect<void, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const stopEmbeddedPostgres = (event: number | NodeJS.Signals) => {
        if (typeof event === "string" && hasOtherListeners(event)) return
        uninstall(stopEmbeddedPostgres)
        Option.liftThrowable(stop)()
        // What the signal would have done without us, once the last of us is through.
        if (typeof event === "string" && process.listenerCount(event) === 0) process.kill(process.pid, event)
      }
      process.on("exit", stopEmbeddedPostgres)
      for (const signal of signals) process.prependListener(signal, stopEmbeddedPostgres)
      return stopEmbeddedPostgres
    }),
    (listener) => Effect.sync(() => uninstall(listener))
  )

/**
 * Stops the server of a data directory, if there is one, and waits for at most three seconds while
 * everything else stands still.
 */
export const stopNow = (data: string, mode: Server.StopMode): void => {
  const running = Server.findPostmaster(data)
  if (Option.isNone(running)) return
  const { pid } = running.value
  process.kill(pid, Server.stopSignals[mode])
  const neverSignalled = new Int32Array(new SharedArrayBuffer(4))
  for (let waited = 0; waited < 3000 && ServerProcess.isPostmaster(pid, data); waited += 10) {
    Atomics.wait(neverSignalled, 0, 0, 10)
  }
}

// -----------------------------------------------------------------------------

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const

type Listener = (event: number | NodeJS.Signals) => void

const uninstall = (listener: Listener): void => {
  process.off("exit", listener)
  for (const signal of signals) process.off(signal, listener)
}

/**
 * Listeners that are not ours; ours, of which each server in the process has one, are known by
 * their name.
 */
const hasOtherListeners = (signal: NodeJS.Signals): boolean =>
  process.listeners(signal).some((listener) => listener.name !== "stopEmbeddedPostgres")
