import { assert, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import * as Crypto from "node:crypto"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { bundled } from "../support/bundled.js"
import { repository } from "../support/command.js"
import { eventually } from "../support/eventually.js"
import { adminSession } from "../support/server.js"

/** A run that has its database, and will not end by itself. */
const program = `
  import * as Effect from "effect/Effect"
  import * as Redacted from "effect/Redacted"
  import * as TestDatabase from "./src/testing/TestDatabase.ts"
  await Effect.runPromise(Effect.scoped(Effect.flatMap(TestDatabase.make(), (url) => {
    console.log(new URL(Redacted.value(url)).pathname.slice(1))
    return Effect.never
  })))
`

/** The program, and the name of its database. */
const running = Effect.acquireRelease(
  Effect.async<{ readonly name: string; readonly kill: () => void }>((resume) => {
    const child = spawn(process.execPath, [bundled({ text: program })], {
      cwd: repository,
      stdio: ["ignore", "pipe", "inherit"]
    })
    const kill = () => void child.kill("SIGKILL")
    child.stdout.once("data", (text: Buffer) =>
      resume(Effect.succeed({ name: text.toString().trim(), kill }))
    )
    child.once("close", () => resume(Effect.dieMessage("the program ended before it had a database")))
  }),
  ({ kill }) => Effect.sync(kill)
)

inFull(it).scopedLive(
  "a run that is killed leaves a database that nobody drops before, and the next run does",
  () =>
    Effect.gen(function* () {
      const { kill, name } = yield* running
      const admin = yield* adminSession()
      const exists = (database: string) =>
        Effect.map(
          admin.query("SELECT 1 FROM pg_database WHERE datname = $1", [database]),
          (rows) => rows.length === 1
        )
      const found = exists(name)
      const abandoned = `promptgrimoire_test_${Crypto.randomUUID().replaceAll("-", "")}`
      yield* admin.query(`CREATE DATABASE ${abandoned}`)
      yield* TestDatabase.make()
      yield* eventually("the end of what nobody holds", Effect.negate(exists(abandoned)))
      assert.isTrue(yield* found)
      kill()
      yield* eventually(
        "the end of the leftover",
        Effect.zipRight(Effect.scoped(TestDatabase.make()), Effect.negate(found))
      )
    })
)
