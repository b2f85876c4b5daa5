import * as SqlClient from "@effect/sql/SqlClient"
import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Stream from "effect/Stream"
import type * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer, databaseLayer } from "../support/database.js"

const silent = Logger.remove(Logger.defaultLogger)

let tables = 0

/**
 * A table, a statement over all its columns that every connection has prepared, and what changes
 * the columns.
 */
const changing = (connections: number) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const { admin } = yield* TestServer
    const table = `changing_${++tables}`
    yield* admin.query(`CREATE TABLE ${table} (id int); INSERT INTO ${table} VALUES (1)`)
    const read = sql.unsafe<{ readonly id: number }>(`SELECT * FROM ${table} WHERE id = $1`, [1])
    const here = Effect.makeSemaphore(connections)
    const held = yield* here
    // Each transaction keeps its connection until all have one.
    const prepareIn = Effect.gen(function* () {
      yield* Effect.repeatN(read, 2)
      yield* held.release(1)
      yield* held.take(connections)
      yield* held.release(connections)
    })
    yield* held.take(connections)
    yield* Effect.all(
      Array.from({ length: connections }, () => Transaction.run(prepareIn)),
      { concurrency: "unbounded", discard: true }
    )
    let columns = 0
    const change = admin.query(`ALTER TABLE ${table} ADD COLUMN c${++columns} int`)
    return { admin, sql, table, read, change }
  })

const stale = (error: unknown) => ({
  reason: DatabaseError.reasonOf(error)?._tag,
  retry: DatabaseError.DatabaseError.is(error) ? error.retry : undefined
})

const test = (
  it: { readonly effect: (name: string, run: () => Effect.Effect<unknown, unknown, TestServer>) => void },
  name: string,
  connections: number,
  run: Effect.Effect<unknown, unknown, Database.Provided | TestServer>
) =>
  it.effect(name, () =>
    Effect.provide(
      run,
      databaseLayer({ maxConnections: connections, minConnections: connections, prepare: true })
    )
  )

layer(Layer.merge(TestServer.layer, silent), { excludeTestServices: true })(
  "A prepared statement whose table has changed",
  (it) => {
    test(
      it,
      "is run as the first of a transaction on every connection, and nobody notices",
      5,
      Effect.gen(function* () {
        const { change, read } = yield* changing(5)
        yield* change
        const all = yield* Effect.all(
          Array.from({ length: 10 }, () => Transaction.run(read, { isolation: "serializable" })),
          { concurrency: "unbounded" }
        )
        for (const rows of all) assert.deepStrictEqual(rows, [{ id: 1, c1: null } as { readonly id: number }])
      })
    )

    test(
      it,
      "keeps the modes, the limits and the id of the transaction that it begins anew",
      1,
      Effect.gen(function* () {
        const { change, read, sql } = yield* changing(1)
        yield* change
        const [row] = yield* Transaction.run(
          Effect.zipRight(
            read,
            sql`SELECT current_setting('transaction_isolation') AS isolation, current_setting('transaction_read_only') AS "readOnly", current_setting('statement_timeout') AS limit`
          ),
          { isolation: "repeatable read", readOnly: true, statementTimeout: "7 seconds" }
        )
        assert.deepStrictEqual(row, { isolation: "repeatable read", readOnly: "on", limit: "7s" })
      })
    )

    test(
      it,
      "is run as the first of a savepoint, and keeps what was done before the savepoint",
      1,
      Effect.gen(function* () {
        const { change, read, sql, table } = yield* changing(1)
        yield* sql.unsafe(`CREATE TABLE ${table}_log (n int)`)
        const [limit] = yield* Transaction.run(
          Effect.gen(function* () {
            yield* sql.unsafe(`INSERT INTO ${table}_log VALUES (1)`)
            yield* change
            return yield* Transaction.run(
              Effect.zipRight(read, sql`SELECT current_setting('lock_timeout') AS limit`),
              { lockTimeout: "3 seconds" }
            )
          })
        )
        assert.deepStrictEqual(limit, { limit: "3s" })
        assert.strictEqual((yield* sql.unsafe(`SELECT n FROM ${table}_log`)).length, 1)
      })
    )

    test(
      it,
      "is run for the first of several fibers that share a transaction, and for the others after it",
      1,
      Effect.gen(function* () {
        const { change, read } = yield* changing(1)
        yield* change
        const all = yield* Transaction.run(
          Effect.all([read, read, read, Stream.runCollect(read.stream)], { concurrency: "unbounded" })
        )
        assert.deepStrictEqual(
          all.map((rows) => [...rows].length),
          [1, 1, 1, 1]
        )
      })
    )

    test(
      it,
      "fails later in a transaction as one that can be retried; one failure lets every connection prepare anew",
      5,
      Effect.gen(function* () {
        const { change, read, sql } = yield* changing(5)
        yield* change
        const later = Transaction.run(Effect.zipRight(sql`SELECT 1`, read))
        assert.deepStrictEqual(stale(yield* Effect.flip(later)), {
          reason: "StalePreparedStatement",
          retry: "transaction"
        })
        const rest = yield* Effect.all(
          Array.from({ length: 10 }, () => Effect.either(later)),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(
          rest.map(({ _tag }) => _tag),
          Array.from({ length: 10 }, () => "Right")
        )
      })
    )

    test(
      it,
      "is run again with the whole transaction where that has `retry`",
      5,
      Effect.gen(function* () {
        const { change, read, sql } = yield* changing(5)
        yield* change
        const retried = Transaction.run(Effect.zipRight(sql`SELECT 1`, read), {
          retry: { times: 3, base: "1 millis" }
        })
        yield* Effect.all(
          Array.from({ length: 10 }, () => retried),
          { concurrency: "unbounded" }
        )
      })
    )

    test(
      it,
      "is run on a reserved connection, outside any transaction that its user began",
      1,
      Effect.gen(function* () {
        const { change, read, sql } = yield* changing(1)
        const [text, values] = read.compile()
        yield* change
        const rows = yield* Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) => connection.execute(text, values, undefined))
        )
        assert.strictEqual(rows.length, 1)
      })
    )

    test(
      it,
      "is run when the type of a parameter changed with its column",
      1,
      Effect.gen(function* () {
        const { admin, read, sql, table } = yield* changing(1)
        const [, values] = read.compile()
        const byId = sql.unsafe(`SELECT 1 AS one FROM ${table} WHERE id = $1`, values)
        yield* Effect.repeatN(byId, 2)
        yield* admin.query(`ALTER TABLE ${table} ALTER COLUMN id TYPE text`)
        assert.deepStrictEqual(yield* Transaction.run(byId), [{ one: 1 }])
        yield* Effect.repeatN(byId, 2)
        yield* admin.query(`ALTER TABLE ${table} ALTER COLUMN id TYPE int USING id::int`)
        assert.deepStrictEqual(yield* byId, [{ one: 1 }])
      })
    )

    test(
      it,
      "is run when the server has forgotten it, also as the first of a transaction",
      1,
      Effect.gen(function* () {
        const { read, sql } = yield* changing(1)
        for (const forget of ["DEALLOCATE ALL", "DISCARD ALL"]) {
          yield* Effect.repeatN(read, 1)
          yield* sql.unsafe(forget)
          assert.deepStrictEqual(yield* Transaction.run(read), [{ id: 1 }])
          yield* Effect.repeatN(read, 1)
          yield* sql.unsafe(forget)
          assert.deepStrictEqual(yield* read, [{ id: 1 }])
        }
      })
    )
  }
)
