import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "../support/it.js"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import { DatabaseError } from "../../src/DatabaseError.js"
import { policy } from "../../src/errors/policy.js"
import { eventually } from "../support/eventually.js"
import * as Standby from "./Standby.js"
import { check, processId, tagOf } from "./support.js"

const open = (url: Redacted.Redacted) =>
  Effect.map(
    Layer.build(Database.layer({ url, minConnections: 0, applicationName: "standby" })),
    (context) => ({
      sql: Context.get(context, PgClient.PgClient),
      ...Context.get(context, Database.Database)
    })
  )

/**
 * Both servers, and a table on them that replay empties: it takes an ACCESS EXCLUSIVE lock on the
 * standby, too.
 */
const servers = Effect.gen(function* () {
  const { primary, standby } = yield* Standby.make
  const writer = yield* open(primary)
  const reader = yield* open(standby)
  yield* writer.sql`CREATE TABLE item AS SELECT 1 AS id`
  yield* eventually(
    "the standby has the table",
    Effect.orElseSucceed(
      Effect.map(reader.sql`SELECT id FROM item`, (rows) => rows.length === 1),
      () => false
    )
  )
  const rewrite = writer.sql`ALTER TABLE item ALTER COLUMN id TYPE bigint`
  return { reader, rewrite, writer }
})

describe("A standby", () => {
  check(
    "F12: whose replay ends a statement is a ReplicaConflict, and Transaction.run with retry runs again on it",
    Effect.gen(function* () {
      const { reader, rewrite } = yield* servers
      const slow = reader.sql`SELECT id, pg_sleep(60) FROM item`
      const sleeping = eventually(
        "the statement runs",
        Effect.map(
          reader.sql`SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)%'
                     AND pid <> pg_backend_pid()`,
          (rows) => rows.length === 1
        )
      )
      const single = yield* Effect.fork(Effect.flip(slow))
      yield* sleeping
      yield* rewrite
      const error = yield* Fiber.join(single)
      if (!DatabaseError.is(error) || error.reason._tag !== "ReplicaConflict") throw error
      assert.strictEqual(error.reason.code, "40001")
      assert.strictEqual(error.reason.severity, "ERROR")
      assert.deepStrictEqual(policy(error.reason), { retry: "transaction", disposition: "keep" })
      assert.include(error.message, "conflict with recovery")

      let tries = 0
      const body = Effect.suspend(() => (++tries === 1 ? slow : reader.sql`SELECT id FROM item`))
      const transaction = yield* Effect.fork(
        reader.transact(body, { readOnly: true, retry: { base: "1 millis" } })
      )
      yield* sleeping
      yield* rewrite
      assert.strictEqual((yield* Fiber.join(transaction)).length, 1)
      assert.strictEqual(tries, 2)
    })
  )

  check(
    "F12: that ends an idle transaction's session is a ReplicaConflict which destroys the connection",
    Effect.gen(function* () {
      const { reader, rewrite } = yield* servers
      const hasRead = yield* Deferred.make<number>()
      const goOn = yield* Deferred.make<void>()
      const transaction = yield* reader
        .transact(
          Effect.gen(function* () {
            yield* reader.sql`SELECT id FROM item`
            yield* Deferred.succeed(hasRead, yield* processId(reader.sql))
            yield* Deferred.await(goOn)
            yield* reader.sql`SELECT id FROM item`
          })
        )
        .pipe(Effect.flip, Effect.fork)
      const pid = yield* Deferred.await(hasRead)
      yield* rewrite
      yield* eventually(
        "the session is gone",
        Effect.map(reader.sql`SELECT FROM pg_stat_activity WHERE pid = ${pid}`, (rows) => rows.length === 0)
      )
      yield* Deferred.succeed(goOn, undefined)
      const error = yield* Fiber.join(transaction)
      if (!DatabaseError.is(error) || error.reason._tag !== "ReplicaConflict") throw error
      assert.strictEqual(error.reason.severity, "FATAL")
      assert.deepStrictEqual([error.retry, error.disposition], ["transaction", "destroy"])
      assert.notStrictEqual(yield* processId(reader.sql), pid)
    })
  )

  check(
    "F25: that is written to refuses with ReadOnlyTransaction and has the pool replaced, unless the transaction is read only",
    Effect.gen(function* () {
      const { reader } = yield* servers
      const write = reader.sql`INSERT INTO item VALUES (2)`
      const before = yield* processId(reader.sql)
      const expected = yield* Effect.flip(reader.transact(write, { readOnly: true }))
      assert.strictEqual(tagOf(expected), "ReadOnlyTransaction")
      assert.strictEqual(yield* processId(reader.sql), before)
      assert.strictEqual(tagOf(yield* Effect.flip(write)), "ReadOnlyTransaction")
      assert.notStrictEqual(yield* processId(reader.sql), before)
    })
  )
})
