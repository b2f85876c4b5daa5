/**
 * What a test costs: in a rolled-back transaction of a shared database, and on a database cloned
 * from the template. Prints the median and the 95th percentile of each, and of what a clone cannot
 * do without. Exits with 1 when a median is above its budget.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { fileURLToPath } from "node:url"
import { Client } from "pg"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import * as Migrator from "../src/Migrator.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"

const loader = Migrator.fromDirectory(fileURLToPath(new URL("../migrations", import.meta.url)))

const one = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT 1`)

/** Measures, and gives the median in milliseconds. */
const measure = <E, R>(name: string, runs: number, test: Effect.Effect<unknown, E, R>) =>
  Effect.gen(function* () {
    yield* test
    const times = yield* Effect.replicateEffect(
      Effect.map(Effect.timed(test), ([time]) => Duration.toMillis(time)),
      runs
    )
    const sorted = times.sort((left, right) => left - right)
    const at = (share: number) => sorted[Math.floor(share * (runs - 1))] ?? Number.NaN
    const shown = (share: number) => at(share).toFixed(2).padStart(8)
    yield* Console.log(`${name.padEnd(52)} median ${shown(0.5)} ms   p95 ${shown(0.95)} ms   (${runs} runs)`)
    return at(0.5)
  })

/** What a test may cost, in milliseconds: its transaction, or its clone. */
const budgets = { rollback: 5, clone: 30 }

/** What a clone is made of, each part alone: the control of the figures above it. */
const parts = (server: Redacted.Redacted) =>
  Effect.gen(function* () {
    const dial = (url: string) =>
      Effect.acquireRelease(
        Effect.promise(async () => {
          const client = new Client(url)
          await client.connect()
          return client
        }),
        (client) => Effect.promise(() => client.end())
      )
    const admin = yield* dial(Redacted.value(server))
    const query = (text: string) => Effect.promise(() => admin.query<{ datname: string }>(text))
    const { rows } = yield* query(
      "SELECT datname FROM pg_database WHERE datistemplate AND datname LIKE 'promptgrimoire_test_%'"
    )
    const template = rows[0]?.datname ?? "template0"
    let count = 0
    const clone = Effect.suspend(() => query(`CREATE DATABASE bench_${++count} TEMPLATE ${template}`))
    yield* measure("  control: connect, and close again", 40, Effect.scoped(dial(Redacted.value(server))))
    yield* measure("  control: CREATE DATABASE alone", 40, clone)
    yield* measure(
      "  control: DROP DATABASE alone",
      40,
      Effect.suspend(() => query(`DROP DATABASE bench_${count--} WITH (FORCE)`))
    )
  })

const program = Effect.gen(function* () {
  const server = yield* EmbeddedPostgres.EmbeddedPostgres
  const configured = Layer.setConfigProvider(
    ConfigProvider.fromMap(new Map([["TEST_DATABASE_URL", Redacted.value(server.url)]]))
  )
  const rollback = yield* measure(
    "a test in TestDatabase.rollback",
    300,
    Effect.provide(one, TestDatabase.rollback)
  ).pipe(Effect.provide(TestDatabase.layer({ loader })), Effect.provide(configured))
  const clone = yield* measure(
    "TestDatabase.make: a clone of the migrated template",
    40,
    Effect.scoped(TestDatabase.make({ loader }))
  ).pipe(Effect.provide(configured))
  yield* measure(
    "TestDatabase.layer: the clone, and a pool on it",
    40,
    Effect.provide(one, TestDatabase.layer({ loader }))
  ).pipe(Effect.provide(configured))
  yield* Effect.scoped(parts(server.url))
  if (rollback <= budgets.rollback && clone <= budgets.clone) return 0
  yield* Console.error(
    `Above the budget of ${budgets.rollback} ms for a transaction and ${budgets.clone} ms for a clone.`
  )
  return 1
})

process.exitCode = await Effect.runPromise(program.pipe(Effect.provide(EmbeddedPostgres.layer())))
