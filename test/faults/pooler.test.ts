import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "../support/it.js"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import { withDatabase } from "../../src/connection/endpoint.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import * as PgBouncer from "../pgbouncer/PgBouncer.js"
import { serverUrl } from "../support/server.js"
import { check, outcome, tally } from "./support.js"

describe("Behind PgBouncer", () => {
  check(
    "F26: in transaction mode statements and transactions of 16 clients on 4 server connections work, with their limits, and sessions are refused (the whole of it is npm run test:pgbouncer)",
    Effect.gen(function* () {
      const name = new URL(Redacted.value(yield* TestDatabase.make())).pathname.slice(1)
      const pooler = yield* PgBouncer.make(serverUrl())
      const context = yield* Layer.build(
        Database.layer({
          url: withDatabase(pooler.url, name),
          pooler: "transaction",
          maxConnections: 16,
          statementTimeout: "7 seconds"
        })
      )
      const sql = Context.get(context, PgClient.PgClient)
      const { session, transact } = Context.get(context, Database.Database)
      yield* sql`CREATE TABLE t (id int PRIMARY KEY)`
      const work = (id: number) =>
        transact(
          Effect.gen(function* () {
            const before =
              yield* sql`SELECT pg_backend_pid() AS pid, current_setting('statement_timeout') AS limit`
            yield* sql`INSERT INTO t VALUES (${id})`
            const after = yield* sql`SELECT pg_backend_pid() AS pid, '7s' AS limit`
            assert.deepStrictEqual(before, after)
          })
        )
      const outcomes = yield* Effect.forEach(
        Array.from({ length: 320 }, (_, id) => id),
        (id) => outcome(Effect.zipRight(work(id), sql`SELECT id FROM t WHERE id = ${id}`)),
        { concurrency: 16 }
      )
      assert.deepStrictEqual(tally(outcomes), { ok: 320 })
      assert.strictEqual(yield* outcome(work(1)), "UniqueViolation")
      assert.strictEqual(yield* outcome(Effect.scoped(session)), "SessionUnavailable")
    })
  )
})
