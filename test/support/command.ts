import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { createRequire } from "node:module"
import { PassThrough } from "node:stream"
import { text } from "node:stream/consumers"
import { fileURLToPath, pathToFileURL } from "node:url"
import { run } from "../../src/cli/run.js"
import { bundled } from "./bundled.js"

/** How a program ended. */
export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** The folder of this repository. */
export const repository = fileURLToPath(new URL("../..", import.meta.url))

/** Runs a program to its end; interrupting it kills the program. */
export const program = (
  command: string,
  args: ReadonlyArray<string>,
  options: { readonly cwd?: string; readonly env?: Record<string, string | undefined> } = {}
): Effect.Effect<Ended> =>
  Effect.async((resume) => {
    const child = spawn(command, args, {
      cwd: options.cwd ?? repository,
      env: { ...process.env, ...options.env },
      stdio: ["ignore", "pipe", "pipe"]
    })
    let stdout = ""
    let stderr = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text))
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text))
    child.on("error", (error) => resume(Effect.die(error)))
    child.on("close", (code) => resume(Effect.succeed({ code, stdout, stderr })))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** What makes Node load TypeScript, with `--import`. */
export const tsx = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href

/** What Node needs to run this repository's command from its sources. */
export const fromSources = ["--import", tsx, `${repository}/src/cli/main.ts`]

/** Whose commands these are: nobody has told them of a database. */
const strangers = { DATABASE_URL: undefined, DATABASE_DIRECT_URL: undefined }

/**
 * What Node needs to run this repository's command in one file; it cannot load migrations that are
 * TypeScript.
 */
export const bundledCommand = () => [bundled({ file: `${repository}/src/cli/main.ts` })]

/**
 * Runs this repository's command in this process; with a working directory of its own, in another
 * one.
 */
export const promptgrimoireDb = (
  args: ReadonlyArray<string>,
  options: { readonly cwd?: string; readonly env?: Record<string, string | undefined> } = {}
): Effect.Effect<Ended> => {
  const env = { ...strangers, ...options.env }
  if (options.cwd !== undefined) {
    return program(process.execPath, [...fromSources, ...args], { cwd: options.cwd, env })
  }
  // With a clock that goes on, and fibers of its own.
  return Effect.promise(async (signal) => {
    const stdout = new PassThrough()
    const stderr = new PassThrough()
    const texts = Promise.all([text(stdout), text(stderr)])
    const code = await Effect.runPromise(run(args, { stdout, stderr, env: { ...process.env, ...env } }), {
      signal
    })
    stdout.end()
    stderr.end()
    const [out, error] = await texts
    return { code, stdout: out, stderr: error }
  })
}

/**
 * Runs this repository's command, and does something, once, when its standard error matches; the
 * command goes on meanwhile. What is done gets a way to send it a signal.
 */
export const whenItSays = (
  marker: RegExp,
  args: ReadonlyArray<string>,
  act: (signal: (name: NodeJS.Signals) => void) => void
): Effect.Effect<Ended> =>
  Effect.async((resume) => {
    const command = args[0] === "migrate" ? fromSources : bundledCommand()
    const child = spawn(process.execPath, [...command, ...args], {
      env: { ...process.env, ...strangers },
      stdio: ["ignore", "pipe", "pipe"]
    })
    let stdout = ""
    let stderr = ""
    let isDone = false
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text))
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      stderr += chunk
      if (!isDone && marker.test(stderr)) {
        isDone = true
        act((name) => child.kill(name))
      }
    })
    child.on("error", (error) => resume(Effect.die(error)))
    child.on("close", (code) => resume(Effect.succeed({ code, stdout, stderr })))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/**
 * Runs this repository's command and kills it with SIGKILL when its standard error says something;
 * it may also end before.
 */
export const killedAt = (marker: string, args: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.asVoid(
    whenItSays(new RegExp(marker), args, (signal) => {
      signal("SIGKILL")
    })
  )
