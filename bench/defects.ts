/**
 * Runs the reproduced defects of the stock client on it and on ours, on one real server: `npm run
 * defects`.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Database from "../src/Database.js"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import { type Outcome, poolSize, scenarios } from "../test/support/stockDefects.js"

type Client = (url: Redacted.Redacted) => Layer.Layer<PgClient.PgClient, unknown>

const stock: Client = (url) => PgClient.layer({ url, maxConnections: poolSize })
const ours: Client = (url) => Database.layer({ url, minConnections: 1, maxConnections: poolSize })

const program = Effect.gen(function* () {
  const given = yield* Config.option(Config.nonEmptyString("DATABASE_URL"))
  const server = yield* Option.match(given, {
    onNone: () => Effect.map(EmbeddedPostgres.make(), ({ url }) => Redacted.value(url)),
    onSome: Effect.succeed
  })
  const rows = yield* Effect.forEach(scenarios, ({ expected, name, run }, index) =>
    Effect.gen(function* () {
      yield* Console.error(`${name} ...`)
      const stockDid = yield* onOwnDatabase(server, `defects_stock_${index}`, stock, run)
      const oursDid = yield* onOwnDatabase(server, `defects_ours_${index}`, ours, run)
      return { name, expected, stockDid, oursDid }
    })
  )
  for (const { expected, name, oursDid, stockDid } of rows) {
    yield* Console.log(
      [
        name,
        `  expected           ${expected}`,
        `  @effect/sql-pg     ${mark(stockDid)}  ${stockDid.observed}`,
        `  promptgrimoire-db  ${mark(oursDid)}  ${oursDid.observed}`,
        ""
      ].join("\n")
    )
  }
  return rows.some(({ oursDid }) => oursDid.defect) ? 1 : 0
})

const mark = ({ defect }: Outcome): string => (defect ? "DEFECT" : "ok    ")

const onOwnDatabase = (
  server: string,
  database: string,
  client: Client,
  run: Effect.Effect<Outcome, SqlError, PgClient.PgClient>
) => {
  const admin = (statement: string) =>
    Effect.flatMap(Database.Database, ({ session }) =>
      Effect.scoped(Effect.flatMap(session, ({ query }) => query(statement)))
    ).pipe(Effect.provide(Database.layer({ url: server, minConnections: 0, maxConnections: 1 })))
  const url = new URL(server)
  url.pathname = `/${database}`
  return Effect.acquireUseRelease(
    Effect.zipRight(
      admin(`DROP DATABASE IF EXISTS ${database} WITH (FORCE)`),
      admin(`CREATE DATABASE ${database}`)
    ),
    () => Effect.provide(run, client(Redacted.make(url.toString()))),
    () => Effect.orDie(admin(`DROP DATABASE ${database} WITH (FORCE)`))
  )
}

process.exitCode = await Effect.runPromise(
  Effect.scoped(program).pipe(Logger.withMinimumLogLevel(LogLevel.None))
)
