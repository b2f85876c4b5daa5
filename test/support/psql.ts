import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Database from "../../src/Database.js"
import type { Ended } from "./command.js"
import { program } from "./command.js"

/**
 * Runs a script as psql does, which stops at the first error: through psql where it is installed,
 * else statement by statement.
 */
export const psql = (url: Redacted.Redacted, script: string): Effect.Effect<Ended> =>
  spawnSync("psql", ["--version"]).error === undefined ? throughPsql(url, script) : byStatements(url, script)

const throughPsql = (url: Redacted.Redacted, script: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "psql-"))),
        (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
      )
      const file = Path.join(directory, "script.sql")
      yield* Effect.sync(() => Fs.writeFileSync(file, script))
      return yield* program("psql", ["-X", "-q", "-f", file, Redacted.value(url)])
    })
  )

const byStatements = (url: Redacted.Redacted, script: string): Effect.Effect<Ended> =>
  Effect.gen(function* () {
    const { session } = yield* Database.Database
    const { query } = yield* session
    for (const statement of statements(script)) yield* query(statement)
    return { code: 0, stdout: "", stderr: "" }
  }).pipe(
    Effect.scoped,
    Effect.provide(Database.layer({ url, minConnections: 0 })),
    Effect.catchAll((error) => Effect.succeed({ code: 3, stdout: "", stderr: `ERROR:  ${error.message}` }))
  )

/**
 * What psql sends: without its own command and without comments, cut at each semicolon that is not
 * inside of quotes.
 */
const statements = (script: string): ReadonlyArray<string> => {
  const tokens = script
    .replaceAll(/^\\set .*$/gm, "")
    .matchAll(/E'(?:[^'\\]|\\[^]|'')*'|'[^']*'|"[^"]*"|--[^\n]*|[^]/g)
  const found = [""]
  for (const [token] of tokens) {
    if (token === ";") found.push("")
    else if (!token.startsWith("--")) found.push((found.pop() ?? "") + token)
  }
  return found.map((statement) => statement.trim()).filter((statement) => statement !== "")
}
