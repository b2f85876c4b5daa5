/**
 * A program of its own that uses the server: `program.ts plain|main [DIRECTORY]`. It prints one
 * line of JSON when the server is up, and leaves when its input ends. `main` runs under runMain,
 * which handles signals; `plain` handles none.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"

const [how, dataDirectory] = process.argv.slice(2)

const inputEnds = Effect.async<void>((resume) => {
  process.stdin.on("end", () => resume(Effect.void))
  process.stdin.resume()
})

const program = Effect.gen(function* () {
  const server = yield* EmbeddedPostgres.make(dataDirectory === undefined ? {} : { dataDirectory })
  const processId = yield* server.processId
  const report = { processId, url: Redacted.value(server.url), dataDirectory: server.dataDirectory }
  process.stdout.write(`${JSON.stringify(report)}\n`)
  yield* inputEnds
}).pipe(Effect.scoped)

if (how === "main") NodeRuntime.runMain(program)
else void Effect.runPromise(program).then(() => process.stdin.destroy())
