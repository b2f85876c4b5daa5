import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { createRequire } from "node:module"
import { pathToFileURL } from "node:url"
import { Worker } from "node:worker_threads"
import { safetyNet } from "./speed.js"

/**
 * Asks the server something while this thread stands still, so that nothing the code under test
 * would do next can come in between: gives the single value of a query.
 */
export type Witness = (sql: string) => string

/** A witness with a session of its own in another thread. */
export const makeWitness = (url: Redacted.Redacted): Effect.Effect<Witness, never, Scope.Scope> =>
  Effect.gen(function* () {
    const signal = new Int32Array(new SharedArrayBuffer(4))
    const answer = new Uint8Array(new SharedArrayBuffer(4096))
    const worker = yield* Effect.acquireRelease(
      Effect.async<Worker>((resume) => {
        const worker = new Worker(program, {
          eval: true,
          workerData: {
            url: Redacted.value(url),
            signal,
            answer,
            pg: pathToFileURL(createRequire(import.meta.url).resolve("pg")).href
          }
        })
        worker.once("message", () => resume(Effect.succeed(worker)))
      }),
      (worker) => Effect.promise(() => worker.terminate())
    )
    return (sql) => {
      Atomics.store(signal, 0, 0)
      // oxlint-disable-next-line unicorn/require-post-message-target-origin -- no window
      worker.postMessage(sql)
      if (Atomics.wait(signal, 0, 0, Duration.toMillis(safetyNet("1 minute"))) === "timed-out")
        throw new Error("the witness did not answer")
      return new TextDecoder().decode(answer.slice(0, Atomics.load(signal, 0) - 1))
    }
  })

const program = `
  const { parentPort, workerData: { url, signal, answer, pg } } = require("node:worker_threads")
  import(pg).then(async ({ default: { Client } }) => {
    const client = new Client({ connectionString: url })
    await client.connect()
    parentPort.on("message", async (sql) => {
      const text = await client.query({ text: sql, rowMode: "array" }).then(
        ({ rows }) => String(rows[0]?.[0]),
        (error) => "ERROR " + error.message
      )
      const bytes = new TextEncoder().encode(text)
      answer.set(bytes)
      Atomics.store(signal, 0, bytes.length + 1)
      Atomics.notify(signal, 0)
    })
    parentPort.postMessage("ready")
  })
`
