import { assert, describe, inFull, it } from "../support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import type * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as Retry from "../../src/transaction/retry.js"
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
      yield* sql`CREATE SEQUENCE commits`
      yield* sql.unsafe(`
        CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF nextval('commits') = 1 THEN RAISE SQLSTATE '40001'; END IF;
          RETURN NULL;
        END $$
      `)
      yield* sql`
        CREATE CONSTRAINT TRIGGER fail_once AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION fail_once()
      `
      const ends: Array<number> = []
      let tries = 0
      yield* Transaction.run(
        Effect.gen(function* () {
          tries++
          yield* sql`UPDATE account SET balance = balance + 1 WHERE id = 1`
          ends.push(tries)
        }),
        { retry: { base: "1 millis" } }
      )
      // Both went through to their end: what failed was the COMMIT of the first.
      assert.deepStrictEqual(ends, [1, 2])
      assert.deepStrictEqual(yield* sql`SELECT balance FROM account WHERE id = 1`, [{ balance: 101 }])
    })
  )

  inFull(withAccounts)(
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

describe("The pause before a try", () => {
  /**
   * The pauses of one transaction that fails at every try, in milliseconds; nobody waits for them.
   */
  const pauses = (seed: number) =>
    Effect.gen(function* () {
      const real = yield* Effect.clock
      const slept: Array<number> = []
      const clock: Clock.Clock = {
        [Clock.ClockTypeId]: Clock.ClockTypeId,
        unsafeCurrentTimeMillis: () => real.unsafeCurrentTimeMillis(),
        unsafeCurrentTimeNanos: () => real.unsafeCurrentTimeNanos(),
        currentTimeMillis: real.currentTimeMillis,
        currentTimeNanos: real.currentTimeNanos,
        sleep: (duration) => Effect.sync(() => void slept.push(Duration.toMillis(duration)))
      }
      yield* Retry.run({ times: 6, base: "10 millis", max: "100 millis" }, (attempt) => {
        attempt.again = attempt.mayRetry
        return Effect.fail("again")
      }).pipe(Effect.exit, Effect.withRandom(Random.make(seed)), Effect.withClock(clock))
      return slept
    })

  it.effect(
    "is anything from zero to a limit that doubles up to the longest, and there is none after the last",
    () =>
      Effect.gen(function* () {
        const all = yield* Effect.forEach(
          Array.from({ length: 300 }, (_, seed) => seed),
          pauses
        )
        const limits = [10, 20, 40, 80, 100, 100]
        for (const [index, limit] of limits.entries()) {
          const these = all.map((one) => one[index] ?? Number.NaN)
          assert.isAtLeast(Math.min(...these), 0)
          assert.isAtMost(Math.max(...these), limit)
          // Full jitter: from one end to the other.
          assert.isBelow(Math.min(...these), limit * 0.1)
          assert.isAbove(Math.max(...these), limit * 0.9)
        }
        assert.isTrue(all.every((one) => one.length === limits.length))
      })
  )
})
