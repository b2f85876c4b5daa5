import { assert, describe, inFull, it } from "../support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import type { Settings } from "../../src/DatabaseConfig.js"
import { reasonOf } from "../../src/DatabaseError.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import * as Transaction from "../../src/Transaction.js"

const on = (settings: Omit<Settings, "url" | "directUrl">) => Effect.provide(TestDatabase.layer({ settings }))

const limits = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    sql`SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock`
)

describe("A limit of a transaction", () => {
  it.live("that a nested one changes comes back, and no other that the program has set", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [inside, after] = yield* Transaction.run(
        Effect.gen(function* () {
          yield* sql`SET LOCAL statement_timeout = '10min'`
          const inside = yield* Transaction.run(limits, { lockTimeout: "1 second" })
          return [inside, yield* limits]
        })
      )
      assert.deepStrictEqual(inside, [{ statement: "10min", lock: "1s" }])
      assert.deepStrictEqual(after, [{ statement: "10min", lock: "5s" }])
    }).pipe(on({}))
  )

  inFull(it).live("of 0 is none, as on the server: the connection is not given up either", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const slept = yield* Transaction.run(sql`SELECT pg_sleep(5.5) IS NOT NULL AS slept`, {
        statementTimeout: 0
      })
      assert.deepStrictEqual(slept, [{ slept: true }])
    }).pipe(on({}))
  )
})

describe("A connection that is lost", () => {
  it.live("ends the waits of those in its transaction that wait for one another", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const inner = yield* Deferred.make<void>()
      const exit = yield* Effect.exit(
        Transaction.run(
          Effect.gen(function* () {
            // Runs on the outer level, which the nested transaction has in turn until it ends.
            const outer = yield* Effect.fork(Effect.zipRight(Deferred.await(inner), sql`SELECT 1`))
            return yield* Transaction.run(
              Effect.zipRight(Deferred.succeed(inner, undefined), Fiber.join(outer))
            )
          })
        )
      )
      assert.isTrue(Exit.isFailure(exit))
      const { stats } = yield* Database.Database
      assert.strictEqual((yield* stats).busy, 0)
    }).pipe(on({ idleInTransactionTimeout: "300 millis" }))
  )

  it.live("while a stream's own transaction is committed leaves its outcome unknown", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE noted (n int)`
      const error = yield* Effect.flip(
        Effect.flatMap(SqlClient.SqlClient, (failing) =>
          Stream.runDrain(failing`INSERT INTO noted VALUES (1) RETURNING n`.stream)
        ).pipe(
          Effect.provide(TestDatabase.failing([{ at: "COMMIT", fault: { _tag: "Cut", when: "after" } }]))
        )
      )
      assert.strictEqual(reasonOf(error)?._tag, "CommitOutcomeUnknown")
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int AS n FROM noted`, [{ n: 1 }])
    }).pipe(on({}))
  )
})

describe("A logger that throws", () => {
  it.live("does not change what a COMMIT was answered", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const ran: Array<string> = []
      yield* sql`CREATE TABLE noted (n int)`
      const exit = yield* Effect.exit(
        Transaction.run(
          Effect.gen(function* () {
            yield* sql`INSERT INTO noted VALUES (1)`
            yield* Transaction.afterCommit(Effect.sync(() => ran.push("committed")))
            yield* Transaction.afterRollback(Effect.sync(() => ran.push("rolled back")))
          })
        ).pipe(
          Effect.provide(
            Logger.replace(
              Logger.defaultLogger,
              Logger.make(() => {
                throw new Error("the logger's own")
              })
            )
          )
        )
      )
      assert.isTrue(Exit.isSuccess(exit))
      assert.deepStrictEqual(ran, ["committed"])
      assert.deepStrictEqual(yield* sql`SELECT n FROM noted`, [{ n: 1 }])
    }).pipe(on({ slowStatement: 0 }))
  )
})
