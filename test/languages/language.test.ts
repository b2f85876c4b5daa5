import * as SqlClient from "@effect/sql/SqlClient"
import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer, databaseLayer } from "../support/database.js"
import { eventually } from "../support/eventually.js"

const read = (error: unknown) => {
  const reason = DatabaseError.reasonOf(error)
  assert.isTrue(reason !== undefined && "severity" in reason, String(error))
  return reason as Extract<DatabaseError.Reason, DatabaseError.ServerFields>
}

layer(Layer.merge(TestServer.layer, Logger.remove(Logger.defaultLogger)), { excludeTestServices: true })(
  "A server whose messages are not English",
  (it) => {
    it.effect("is what these tests run on", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { serverMessage, severity } = read(yield* Effect.flip(sql`SELECT 1 / 0`))
        assert.notStrictEqual(Redacted.value(serverMessage), "division by zero")
        assert.strictEqual(severity, "ERROR")
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
    )

    it.effect("has its timeouts told from a cancellation, whoever set the limit", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { admin } = yield* TestServer
        const sleep = sql`SELECT pg_sleep(30) AS sleeping`
        const timeouts = [
          sleep,
          Transaction.run(sleep, { statementTimeout: "100 millis" }),
          Transaction.run(Transaction.run(sleep, { statementTimeout: "100 millis" })),
          Transaction.run(Effect.zipRight(sql`SET LOCAL statement_timeout = '100ms'`, sleep)),
          sql.unsafe("SET statement_timeout = '0.1s'; SELECT pg_sleep(30)")
        ]
        for (const timeout of timeouts) {
          assert.strictEqual(read(yield* Effect.flip(timeout))._tag, "StatementTimeout")
        }
        const cancelled = yield* Effect.fork(
          Effect.flip(Transaction.run(sleep, { statementTimeout: "20 seconds" }))
        )
        yield* eventually(
          "it is cancelled",
          Effect.map(
            admin.query<{ done: boolean }>(
              "SELECT pg_cancel_backend(pid) AS done FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE '%sleeping' AND pid <> pg_backend_pid()"
            ),
            (rows) => rows.length > 0
          )
        )
        assert.strictEqual(read(yield* Fiber.join(cancelled))._tag, "StatementCancelled")
      }).pipe(
        Effect.provide(
          databaseLayer({ maxConnections: 1, statementTimeout: "1 second", lockTimeout: "1 second" })
        )
      )
    )

    it.effect("has the end of a session told from an error", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const ended = yield* Effect.flip(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        assert.deepInclude(read(ended), { _tag: "ServerShutdown", severity: "FATAL" })
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
    )
  }
)
