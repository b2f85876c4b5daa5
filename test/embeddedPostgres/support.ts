import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { Client } from "pg"
import * as Eventually from "../support/eventually.js"
import { bundled } from "../support/bundled.js"

/** Rows of a query, over a connection of its own. */
export const query = (url: Redacted.Redacted | string, text: string) =>
  Effect.tryPromise(async () => {
    const connectionString = typeof url === "string" ? url : Redacted.value(url)
    const client = new Client({ connectionString, connectionTimeoutMillis: 10_000 })
    client.on("error", () => {})
    await client.connect()
    try {
      return (await client.query<Record<string, unknown>>(text)).rows
    } finally {
      await client.end()
    }
  })

/** An empty directory, removed with the scope. */
export const directory = Effect.acquireRelease(
  Effect.sync(() => {
    const created = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "embedded-test-")))
    fs.chmodSync(created, 0o711)
    return created
  }),
  (created) => Effect.sync(() => fs.rmSync(created, { recursive: true, force: true, maxRetries: 10 }))
)

/** Waits until the condition holds; a defect when that never comes. */
export const eventually = (what: string, condition: () => boolean) =>
  Effect.orDie(Eventually.eventually(what, Effect.sync(condition)))

/** Whether a process runs; a zombie does not. */
export const runs = (pid: number): boolean => {
  try {
    return !/^State:\s+Z/m.test(fs.readFileSync(`/proc/${pid}/status`, "utf8"))
  } catch {
    return false
  }
}

/** What a program reports when its server is up. */
interface Report {
  readonly processId: number
  readonly url: string
  readonly dataDirectory: string
}

/** Another process that uses the server. */
export interface Program {
  readonly process: ChildProcess
  readonly report: Effect.Effect<Report>
  /** Ends it in order, and waits. */
  readonly leave: Effect.Effect<void>
  readonly signal: (signal: NodeJS.Signals) => Effect.Effect<void>
}

/** Starts `program.ts`. It is killed with the scope if it still runs. */
export const startProgram = (how: "plain" | "main", dataDirectory?: string, env: NodeJS.ProcessEnv = {}) =>
  Effect.acquireRelease(
    Effect.sync((): Program => {
      const file = fileURLToPath(new URL("program.ts", import.meta.url))
      const args = [bundled({ file }), how, ...(dataDirectory === undefined ? [] : [dataDirectory])]
      const child = spawn(process.execPath, args, {
        stdio: ["pipe", "pipe", "pipe"],
        env: { ...process.env, ...env }
      })
      const output: Array<string> = []
      const errors: Array<string> = []
      child.stdout.on("data", (chunk: Buffer) => output.push(chunk.toString()))
      child.stderr.on("data", (chunk: Buffer) => errors.push(chunk.toString()))
      child.stdin.on("error", () => {})
      const hasEnded = () => child.exitCode !== null || child.signalCode !== null
      const ended = eventually("the program ends", hasEnded)
      return {
        process: child,
        report: eventually("the program reports", () => output.join("").includes("\n") || hasEnded()).pipe(
          Effect.zipRight(
            Effect.sync(() => {
              if (!output.join("").includes("\n")) throw new Error(`the program ended: ${errors.join("")}`)
              return JSON.parse(output.join("")) as Report
            })
          )
        ),
        leave: Effect.zipRight(
          Effect.sync(() => child.stdin.end()),
          ended
        ),
        signal: (signal) =>
          Effect.zipRight(
            Effect.sync(() => child.kill(signal)),
            ended
          )
      }
    }),
    ({ process }) => Effect.sync(() => process.kill("SIGKILL"))
  )
