import { assert, describe, it } from "@effect/vitest"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import type * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import * as Transaction from "../../src/Transaction.js"

const withAccounts = (name: string, test: Effect.Effect<unknown, unknown, Database.Provided>) =>
  it.live(name, () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`
      yield* sql`INSERT INTO account SELECT n, 100 FROM generate_series(1, 8) AS n`
      yield* test
    }).pipe(Effect.provide(TestDatabase.layer()))
  )

/** The levels and first words of what is logged. */
const recorded = <A, E, R>(effect: Effect.Effect<A, E, R>) => {
  const records: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => {
    records.push(`${logLevel.label} ${String(Array.isArray(message) ? message[0] : message)}`)
  })
  return Effect.map(
    Effect.exit(Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger))),
    (exit) => ({ exit, records })
  )
}

const fails = (code: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(`DO $$ BEGIN RAISE SQLSTATE '${code}'; END $$`))

describe("Transaction.run with retry", () => {
  withAccounts(
    "runs the body again after a serialization failure and a deadlock, and logs each try",
    Effect.gen(function* () {
      for (const code of ["40001", "40P01"]) {
        let tries = 0
        const { exit, records } = yield* recorded(
          Transaction.run(
            Effect.suspend(() => (++tries < 3 ? Effect.asVoid(fails(code)) : Effect.void)),
            { retry: { times: 3, base: "1 millis" } }
          )
        )
        assert.isTrue(exit._tag === "Success")
        assert.strictEqual(tries, 3)
        assert.deepStrictEqual(records, [
          `WARN ${Transaction.rollbackMessage}; try 1 failed, trying again`,
          `WARN ${Transaction.rollbackMessage}; try 2 failed, trying again`
        ])
      }
    })
  )

  withAccounts(
    "gives up after the tries it has, with the error and a record at ERROR",
    Effect.gen(function* () {
      let tries = 0
      const { exit, records } = yield* recorded(
        Transaction.run(
          Effect.suspend(() => {
            tries++
            return fails("40001")
          }),
          { retry: { times: 2, base: "1 millis" } }
        )
      )
      assert.strictEqual(tries, 3)
      assert.isTrue(exit._tag === "Failure")
      if (exit._tag === "Failure") {
        assert.strictEqual(DatabaseError.reasonOf(Cause.squash(exit.cause))?._tag, "SerializationFailure")
      }
      assert.strictEqual(records.at(-1), `ERROR ${Transaction.rollbackMessage}`)
    })
  )

  withAccounts(
    "does not run again what failed for another reason, was interrupted, or did not ask for it",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      let tries = 0
      const once = (body: Effect.Effect<unknown, unknown, SqlClient.SqlClient>, retry = true) =>
        Effect.gen(function* () {
          tries = 0
          yield* Effect.exit(
            Transaction.run(
              Effect.suspend(() => {
                tries++
                return body
              }),
              retry ? { retry: { base: "1 millis" } } : {}
            )
          )
          assert.strictEqual(tries, 1)
        })
      yield* once(sql`INSERT INTO account VALUES (1, 1)`)
      yield* once(Effect.fail("domain"))
      yield* once(Effect.die("defect"))
      yield* once(Effect.interrupt)
      yield* once(fails("40001"), false)
    })
  )

  withAccounts(
    "runs again when the serialization failure was caught in the body, or hidden in another error",
    Effect.gen(function* () {
      const hidden = [
        Effect.ignore(fails("40001")),
        Effect.mapError(Effect.asVoid(fails("40001")), () => "mine")
      ]
      for (const failure of hidden) {
        let tries = 0
        yield* Transaction.run(
          Effect.suspend(() => (++tries === 1 ? failure : Effect.void)),
          { retry: { base: "1 millis" } }
        )
        assert.strictEqual(tries, 2)
      }
    })
  )

  withAccounts(
    "runs again when COMMIT itself could not serialize",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      let tries = 0
      const read = yield* Deferred.make<void>()
      const other = Transaction.run(
        Effect.gen(function* () {
          yield* sql`SELECT sum(balance) FROM account`
          yield* Deferred.await(read)
          yield* sql`UPDATE account SET balance = balance + 1 WHERE id = 2`
        }),
        { isolation: "serializable", retry: { base: "1 millis" } }
      )
      const mine = Transaction.run(
        Effect.gen(function* () {
          tries++
          yield* sql`SELECT sum(balance) FROM account`
          yield* sql`UPDATE account SET balance = balance + 1 WHERE id = 1`
          if (tries === 1) yield* Deferred.succeed(read, undefined)
        }),
        { isolation: "serializable", retry: { base: "1 millis", times: 10 } }
      )
      yield* Effect.all([mine, other], { concurrency: 2 })
      assert.deepStrictEqual(yield* sql`SELECT sum(balance)::int AS total FROM account`, [{ total: 802 }])
    })
  )

  withAccounts(
    "keeps a bank's total under a storm of serializable transfers",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const transfer = (n: number) =>
        Transaction.run(
          Effect.gen(function* () {
            const [from, to] = [1 + (n % 8), 1 + ((n * 5 + 3) % 8)]
            const [row] = yield* sql<{ balance: number }>`SELECT balance FROM account WHERE id = ${from}`
            if (row === undefined || row.balance < 1) return
            yield* sql`UPDATE account SET balance = balance - 1 WHERE id = ${from}`
            yield* sql`UPDATE account SET balance = balance + 1 WHERE id = ${to}`
          }),
          { isolation: "serializable", retry: { times: 30 } }
        )
      yield* Effect.forEach(
        Array.from({ length: 300 }, (_, n) => n),
        transfer,
        {
          concurrency: 16,
          discard: true
        }
      ).pipe(Effect.provide(Logger.remove(Logger.defaultLogger)))
      assert.deepStrictEqual(yield* sql`SELECT sum(balance)::int AS total FROM account`, [{ total: 800 }])
    })
  )
})
