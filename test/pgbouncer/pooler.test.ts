import { assert, describe, it } from "../support/it.js"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import type { Settings } from "../../src/DatabaseConfig.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Migrator from "../../src/Migrator.js"
import * as Notification from "../../src/Notification.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import * as Transaction from "../../src/Transaction.js"
import * as PgBouncer from "./PgBouncer.js"
import { promptgrimoireDb } from "../support/command.js"
import * as Fs from "node:fs"
import { direct } from "./direct.js"

/** A database's url through the pooler. */
const through = (direct: Redacted.Redacted): Redacted.Redacted => {
  const url = new URL(process.env["TEST_POOLER_URL"] ?? "")
  url.pathname = new URL(Redacted.value(direct)).pathname
  return Redacted.make(url.toString())
}

const shown = (name: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(sql<{ value: string }>`SELECT current_setting(${name}) AS value`, ([row]) => row?.value)
  )

/** What a Layer logs at WARNING when it is built. */
const warnings = (settings: Settings) =>
  Effect.gen(function* () {
    const records: Array<string> = []
    const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
      if (logLevel._tag === "Warning") records.push(String(message))
    })
    yield* Effect.void.pipe(
      Effect.provide(Database.layer({ minConnections: 1, ...settings })),
      Effect.provide(Logger.replace(Logger.defaultLogger, logger))
    )
    return records.join("\n")
  })

describe("F26: behind a transaction pooler", () => {
  it("each test that is left out of this suite exists, by its whole last name", () => {
    const sources = [
      "../Database.test.ts",
      "../transaction/run.test.ts",
      "../connection/Statement.test.ts",
      "../transaction/errorPolicy.test.ts"
    ].map((file) => Fs.readFileSync(new URL(file, import.meta.url), "utf8"))
    const titles = sources.flatMap((text) =>
      [...text.matchAll(/(?:it\.effect|withPolicy)\(\s*"([^"]+)"/g)].map(([, title]) => String(title))
    )
    for (const name of Object.keys(direct)) {
      assert.lengthOf(
        titles.filter((title) => name.endsWith(title)),
        1,
        name
      )
    }
  })

  it.scopedLive("the limits are set in each transaction, and do not leak into the next one's session", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* Transaction.run(shown("statement_timeout")), "7s")
      assert.strictEqual(yield* Transaction.run(shown("lock_timeout")), "3s")
      assert.strictEqual(yield* Transaction.run(shown("idle_in_transaction_session_timeout")), "1min")
      assert.strictEqual(
        yield* Transaction.run(shown("statement_timeout"), { statementTimeout: "2 seconds" }),
        "2s"
      )
      const streamed = (sql: SqlClient.SqlClient) =>
        sql<{ value: string }>`SELECT current_setting('statement_timeout') AS value`.stream
      const own = yield* Stream.runHead(Stream.unwrap(Effect.map(SqlClient.SqlClient, streamed)))
      assert.deepStrictEqual(own, Option.some({ value: "7s" }))
      assert.strictEqual(yield* shown("statement_timeout"), "0")
    }).pipe(
      Effect.provide(
        TestDatabase.layer({ settings: { statementTimeout: "7 seconds", lockTimeout: "3 seconds" } })
      )
    )
  )

  it.scopedLive("a Layer that does not know of the pooler fails when it is built, and says what to set", () =>
    Effect.gen(function* () {
      const direct = yield* TestDatabase.make()
      const error = yield* Effect.flip(
        Effect.provide(Effect.void, Database.layer({ url: through(direct), minConnections: 1 }))
      )
      assert.include(error.message, 'set pooler to "transaction"')
    })
  )

  it.scopedLive("what needs a session fails when its Layer is built, and names directUrl", () =>
    Effect.gen(function* () {
      const url = through(yield* TestDatabase.make())
      const database = Database.layer({ url, pooler: "transaction", minConnections: 1 })
      const migrated = Migrator.layer({ loader: Migrator.fromRecord({ "0001_nothing": Effect.void }) })
      for (const needy of [Database.layerSession, migrated]) {
        const error = yield* Effect.flip(
          Effect.provide(Effect.void, needy).pipe(Effect.scoped, Effect.provide(database))
        )
        assert.strictEqual(DatabaseError.reasonOf(error)?._tag, "SessionUnavailable")
        assert.include(String(error), "set directUrl (DATABASE_DIRECT_URL)")
      }
      yield* Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const needs: ReadonlyArray<Effect.Effect<unknown, unknown, Database.Provided>> = [
          Stream.runHead(Notification.listen("news")),
          Stream.runHead(sql.listen("news")),
          ForeignKey.list(),
          Effect.scoped(Effect.flatMap(Database.Database, ({ session }) => session))
        ]
        for (const need of needs) {
          const error = yield* Effect.flip(need)
          assert.strictEqual(DatabaseError.reasonOf(error)?._tag, "SessionUnavailable")
        }
        // What needs none goes through the pooler as ever.
        yield* Transaction.run(Notification.notify("news", "sent"))
      }).pipe(Effect.provide(database))
    })
  )

  it.scopedLive("a session past the pooler is proven when its Layer is built", () =>
    Effect.void.pipe(Effect.provide(Database.layerSession), Effect.provide(TestDatabase.layer()))
  )

  it.scopedLive("a pooler that ignores the limits in silence is found, and warned of", () =>
    Effect.gen(function* () {
      const direct = yield* TestDatabase.make()
      const lenient = yield* PgBouncer.make(process.env["TEST_DATABASE_URL"] ?? "", [
        "ignore_startup_parameters = options"
      ])
      const url = new URL(lenient.url)
      url.pathname = new URL(Redacted.value(direct)).pathname
      assert.include(yield* warnings({ url: url.toString() }), "There is a connection pooler")
      const { stdout } = yield* promptgrimoireDb(["doctor", "--url", url.toString()], {
        env: { DATABASE_DIRECT_URL: Redacted.value(direct) }
      })
      assert.match(stdout, /^Pooler +present, and the setting is none$/m)
      assert.match(stdout, /^Pooler problem +There is a connection pooler/m)
    })
  )

  it.scopedLive("a pooler that is set and not there is warned of, and one that is there is not", () =>
    Effect.gen(function* () {
      const direct = yield* TestDatabase.make()
      assert.include(
        yield* warnings({ url: direct, pooler: "transaction" }),
        "no connection pooler was found"
      )
      assert.strictEqual(yield* warnings({ url: direct }), "")
      assert.strictEqual(yield* warnings({ url: through(direct), pooler: "transaction" }), "")
    })
  )

  it.scopedLive("doctor sees the pooler, and the limits that a transaction has", () =>
    Effect.gen(function* () {
      const direct = yield* TestDatabase.make()
      const { code, stdout } = yield* promptgrimoireDb(
        ["doctor", "--json", "--url", Redacted.value(through(direct))],
        {
          env: {
            DATABASE_POOLER: "transaction",
            DATABASE_DIRECT_URL: Redacted.value(direct),
            DATABASE_STATEMENT_TIMEOUT: "9 seconds"
          }
        }
      )
      assert.strictEqual(code, 0, stdout)
      const { pooler, poolerProblem, poolerSetting, timeouts } = JSON.parse(stdout)
      assert.strictEqual(pooler, "present")
      assert.strictEqual(poolerSetting, "transaction")
      assert.isNull(poolerProblem)
      assert.strictEqual(timeouts.statement_timeout, "9s")
    })
  )

  it.scopedLive("doctor without a way past the pooler says what it can, and what the rest needs", () =>
    Effect.gen(function* () {
      const url = Redacted.value(through(yield* TestDatabase.make()))
      const env = { DATABASE_POOLER: "transaction" }
      const asJson = yield* promptgrimoireDb(["doctor", "--json", "--url", url], { env })
      assert.strictEqual(asJson.code, 1)
      const diagnosis = JSON.parse(asJson.stdout)
      assert.strictEqual(diagnosis.pooler, "present")
      assert.strictEqual(diagnosis.health.status, "ready")
      assert.isNull(diagnosis.foreignKeysWithoutIndex)
      assert.match(diagnosis.missing.join(), /^foreign keys: .*DATABASE_DIRECT_URL/)
      const asText = yield* promptgrimoireDb(["doctor", "--url", url], { env })
      assert.strictEqual(asText.code, 1)
      assert.include(asText.stdout, "Pending migrations:")
      assert.match(asText.stdout, /^Not found out: foreign keys: .*DATABASE_DIRECT_URL/m)
      assert.notInclude(asText.stdout, "Foreign keys without an index")
    })
  )
})
