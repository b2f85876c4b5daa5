import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "../support/it.js"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import type * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { testLayer, processId } from "../support/database.js"
import { type LogRecord, recordLogs } from "../support/logs.js"
import { eventually } from "../support/eventually.js"

const raise = (code: string, message = "raised") =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.unsafe(`DO $$ BEGIN RAISE EXCEPTION '${message}' USING ERRCODE = '${code}'; END $$`)
  )

/** How often a body runs that fails in this way each time, and how it ends. */
const tries = <E, R>(failure: Effect.Effect<unknown, E, R>) =>
  Effect.gen(function* () {
    let count = 0
    const body = Effect.suspend(() => {
      count++
      return failure
    })
    const exit = yield* Effect.exit(Transaction.run(body, { retry: { times: 2, base: "1 millis" } }))
    return { count, exit }
  })

const errorOf = (exit: Exit.Exit<unknown, unknown>): DatabaseError.DatabaseError => {
  const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  if (!DatabaseError.DatabaseError.is(error)) throw new Error(`not a DatabaseError: ${String(error)}`)
  return error
}

/** A test on a database of its own with this policy; what is logged is kept. */
const withPolicy = (
  name: string,
  errorPolicy: DatabaseError.ErrorPolicy,
  test: (records: ReadonlyArray<LogRecord>) => Effect.Effect<unknown, unknown, Database.Provided>
) =>
  it.live(name, () => {
    const records: Array<LogRecord> = []
    return test(records).pipe(
      Effect.provide(testLayer({ maxConnections: 1, errorPolicy })),
      Effect.provide(recordLogs(records))
    )
  })

describe("errorPolicy", () => {
  withPolicy(
    "lets a transaction run again that failed with a code and a text of the program's own",
    (reason) =>
      reason._tag === "RaisedException" && Redacted.value(reason.serverMessage) === "stale"
        ? { retry: "transaction" }
        : undefined,
    () =>
      Effect.gen(function* () {
        const stale = yield* tries(raise("P0001", "stale"))
        assert.strictEqual(stale.count, 3)
        assert.strictEqual(errorOf(stale.exit).retry, "transaction")
        const caught = yield* tries(Effect.ignore(raise("P0001", "stale")))
        assert.strictEqual(caught.count, 3)
        assert.strictEqual(errorOf(caught.exit).reason._tag, "TransactionRolledBack")
        assert.strictEqual(errorOf(caught.exit).retry, "transaction")
        const other = yield* tries(raise("P0001", "other"))
        assert.strictEqual(other.count, 1)
        assert.strictEqual(errorOf(other.exit).retry, "never")
        const standard = yield* tries(raise("40001"))
        assert.strictEqual(standard.count, 3)
      })
  )

  withPolicy(
    "keeps a transaction from running again, whether its error was seen or only followed from",
    (reason) => (reason._tag === "SerializationFailure" ? { retry: "never" } : undefined),
    () =>
      Effect.gen(function* () {
        const seen = yield* tries(raise("40001"))
        assert.strictEqual(seen.count, 1)
        assert.strictEqual(errorOf(seen.exit).retry, "never")
        const followed = yield* tries(Effect.ignore(raise("40001")))
        assert.strictEqual(followed.count, 1)
        assert.strictEqual(errorOf(followed.exit).retry, "never")
        assert.strictEqual((yield* tries(raise("40P01"))).count, 3)
      })
  )

  withPolicy(
    "decides on its own what becomes of the connection",
    (reason) =>
      "code" in reason && reason.code === "P0002"
        ? { disposition: "destroy" }
        : reason._tag === "ServerResources"
          ? { disposition: "keep" }
          : undefined,
    () =>
      Effect.gen(function* () {
        const first = yield* processId
        yield* Effect.exit(raise("P0001"))
        yield* Effect.exit(raise("53100"))
        assert.strictEqual(yield* processId, first)
        const error = errorOf(yield* Effect.exit(raise("P0002")))
        assert.deepStrictEqual([error.retry, error.disposition], ["never", "destroy"])
        const second = yield* processId
        assert.notStrictEqual(second, first)
        assert.strictEqual((yield* tries(raise("P0002"))).count, 1)
        assert.notStrictEqual(yield* processId, second)
      })
  )

  withPolicy(
    "lets a transaction run again whose connection was lost before COMMIT, on another one that it cannot keep the lost one from being",
    (reason) =>
      reason._tag === "ServerShutdown" ? { retry: "transaction", disposition: "keep" } : undefined,
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const pids: Array<number | undefined> = []
        yield* sql`CREATE TABLE done (id int)`
        yield* Transaction.run(
          Effect.gen(function* () {
            yield* sql`INSERT INTO done VALUES (1)`
            pids.push(yield* processId)
            if (pids.length === 1) yield* sql`SELECT pg_terminate_backend(pg_backend_pid())`
          }),
          { retry: { base: "1 millis" } }
        )
        assert.strictEqual(pids.length, 2)
        assert.notStrictEqual(pids[0], pids[1])
        assert.deepStrictEqual(yield* sql`SELECT count(*)::int AS rows FROM done`, [{ rows: 1 }])
        const lost = errorOf(yield* Effect.exit(sql`SELECT pg_terminate_backend(pg_backend_pid())`))
        assert.deepStrictEqual([lost.retry, lost.disposition], ["transaction", "invalidate"])
      })
  )

  withPolicy(
    "cannot make a transaction run again whose commit has an unknown outcome",
    () => ({ retry: "transaction", disposition: "keep" }),
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE done (id int)`
        yield* sql`CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$`
        yield* sql`CREATE CONSTRAINT TRIGGER leave AFTER INSERT ON done
          DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION leave()`
        const { count, exit } = yield* tries(sql`INSERT INTO done VALUES (1)`)
        assert.strictEqual(count, 1)
        const error = errorOf(exit)
        assert.strictEqual(error.reason._tag, "CommitOutcomeUnknown")
        assert.deepStrictEqual([error.retry, error.disposition], ["unknown", "destroy"])
      })
  )

  withPolicy(
    "changes nothing where it throws, and the log says so",
    () => {
      throw new Error("a bug of the policy's")
    },
    (records) =>
      Effect.gen(function* () {
        const error = errorOf(yield* Effect.exit(raise("23505")))
        assert.deepStrictEqual([error.retry, error.disposition], ["never", "keep"])
        assert.strictEqual((yield* tries(raise("40001"))).count, 3)
        yield* eventually(
          "the log tells of it",
          Effect.sync(() => records.some(({ message }) => message.startsWith("errorPolicy threw")))
        )
      })
  )
})
