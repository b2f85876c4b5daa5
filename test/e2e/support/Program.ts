import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { createRequire } from "node:module"
import { fileURLToPath, pathToFileURL } from "node:url"

/** The example as a process. */
export interface Program {
  /** Without a slash at its end. */
  readonly address: string
  readonly port: number
  /** What it has written so far, on both its outputs. */
  readonly written: () => string
  /** As `kill -9` does it; succeeds when it is dead. */
  readonly kill: Effect.Effect<void>
  /** As Ctrl-C does it; gives the exit code. */
  readonly interrupt: Effect.Effect<number | null>
}

/**
 * Starts `npm start`'s program, on this database or on one of its own in `directory`, and waits for
 * its address. It is killed with the scope, if it still runs.
 */
export const start = Effect.fn("Program.start")(function* (
  database: Redacted.Redacted | undefined,
  options: {
    readonly port?: number
    readonly directory?: string
    readonly environment?: Readonly<Record<string, string>>
  } = {}
): Effect.fn.Return<Program, never, Scope.Scope> {
  const exited = yield* Deferred.make<number | null>()
  const address = yield* Deferred.make<string>()
  let written = ""
  const process = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(globalThis.process.execPath, ["--import", tsx, main], {
        stdio: ["ignore", "pipe", "pipe"],
        cwd: options.directory,
        env: {
          ...globalThis.process.env,
          DATABASE_URL: database === undefined ? "" : Redacted.value(database),
          DATABASE_MIN_CONNECTIONS: "2",
          PORT: String(options.port ?? 0),
          ...options.environment
        }
      })
    ),
    (process) => {
      process.kill("SIGKILL")
      return Deferred.await(exited)
    }
  )
  const read = (chunk: Buffer) => {
    written += chunk.toString()
    const found = /(http:\/\/\S+)\/\n/.exec(written)?.[1]
    if (found !== undefined) Deferred.unsafeDone(address, Effect.succeed(found))
  }
  process.stdout.on("data", read)
  process.stderr.on("data", read)
  process.on("close", (code) => {
    Deferred.unsafeDone(exited, Effect.succeed(code))
    Deferred.unsafeDone(address, Effect.dieMessage(`The program ended without an address:\n${written}`))
  })
  const signal = (name: NodeJS.Signals) =>
    Effect.suspend(() => {
      process.kill(name)
      return Deferred.await(exited)
    })
  const found = yield* Deferred.await(address)
  return {
    address: found,
    port: Number(new URL(found).port),
    written: () => written,
    kill: Effect.asVoid(signal("SIGKILL")),
    interrupt: signal("SIGINT")
  }
})

/** Resolved from here: the program may run in another directory. */
const tsx = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href
const main = fileURLToPath(new URL("../../../examples/two-tab-sync/main.ts", import.meta.url))
