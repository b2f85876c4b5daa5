import * as PgClient from "@effect/sql-pg/PgClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { assert, describe, layer } from "../support/it.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as DatabaseError from "../../src/DatabaseError.js"
import { TestServer, databaseLayer } from "../support/database.js"

const silent = Logger.remove(Logger.defaultLogger)

const one = databaseLayer({ maxConnections: 1 })

const run = (connection: Connection, text: string) => connection.execute(text, [], undefined)

const rows = (connection: Connection, count: number) =>
  connection.executeStream(`SELECT n FROM generate_series(1, ${count}) AS n`, [], undefined)

const isInTransaction = (connection: Connection) =>
  Effect.map(
    Effect.zip(
      run(connection, "SELECT pg_current_xact_id()::text AS id"),
      run(connection, "SELECT pg_current_xact_id()::text AS id")
    ),
    ([[first], [second]]) => JSON.stringify(first) === JSON.stringify(second)
  )

const tagOf = (error: unknown) => DatabaseError.reasonOf(error)?._tag

layer(Layer.merge(TestServer.layer, silent), { excludeTestServices: true })("A reserved connection", (it) => {
  describe("with a stream", () => {
    it.effect("runs nothing else in the stream's own transaction, and says what to do", () =>
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const connection = yield* sql.reserve
        const refused: Array<unknown> = []
        yield* Stream.runForEach(Stream.take(rows(connection, 1000), 300), () =>
          Effect.flatMap(Effect.flip(run(connection, "SELECT 1")), (error) =>
            Effect.sync(() => refused.push(error))
          )
        )
        assert.strictEqual(refused.length, 300)
        assert.strictEqual(tagOf(refused[0]), "InvalidRequest")
        assert.match(String(refused[0]), /stream.*begin a transaction/)
        const second = yield* Effect.flip(
          Stream.runForEach(rows(connection, 1), () => Stream.runDrain(rows(connection, 1)))
        )
        assert.strictEqual(tagOf(second), "InvalidRequest")
        assert.isFalse(yield* isInTransaction(connection))
      }).pipe(Effect.scoped, Effect.provide(one))
    )

    it.effect("mixes it with statements in a transaction that its user began", () =>
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const connection = yield* sql.reserve
        yield* run(connection, "BEGIN")
        let seen = 0
        yield* Stream.runForEach(rows(connection, 300), () =>
          Effect.map(run(connection, "SELECT 1"), () => seen++)
        )
        assert.strictEqual(seen, 300)
        assert.isTrue(yield* isInTransaction(connection))
        yield* run(connection, "COMMIT")
      }).pipe(Effect.scoped, Effect.provide(one))
    )

    for (const [when, begins] of [
      ["of its own", false],
      ["of its user", true]
    ] as const) {
      it.effect(
        `reads no further after its end, in a transaction ${when}, and leaves the next borrower alone`,
        () =>
          Effect.gen(function* () {
            const sql = yield* PgClient.PgClient
            const reservation = yield* Scope.make()
            const connection = yield* Scope.extend(sql.reserve, reservation)
            if (begins) yield* run(connection, "BEGIN")
            const reading = yield* Scope.make()
            const pull = yield* Scope.extend(Stream.toPull(rows(connection, 1000)), reading)
            yield* pull
            yield* Scope.close(reservation, Exit.void)
            const lent = yield* Deferred.make<void>()
            const done = yield* Deferred.make<void>()
            const next = yield* Effect.fork(
              Effect.scoped(
                Effect.gen(function* () {
                  const other = yield* sql.reserve
                  yield* run(other, "BEGIN")
                  yield* Deferred.succeed(lent, undefined)
                  yield* Deferred.await(done)
                  return yield* isInTransaction(other)
                })
              )
            )
            yield* Deferred.await(lent)
            const error = yield* Effect.flip(pull)
            assert.strictEqual(tagOf(error._tag === "Some" ? error.value : undefined), "TransactionEnded")
            yield* Scope.close(reading, Exit.void)
            yield* Deferred.succeed(done, undefined)
            assert.isTrue(yield* Fiber.join(next))
          }).pipe(Effect.provide(one))
      )
    }

    it.effect("does not begin one after its end", () =>
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const ended = yield* Effect.scoped(sql.reserve)
        const other = yield* sql.reserve
        const error = yield* Effect.flip(Stream.runDrain(rows(ended, 1)))
        assert.strictEqual(tagOf(error), "TransactionEnded")
        yield* run(other, "BEGIN")
        assert.strictEqual(tagOf(yield* Effect.flip(Stream.runDrain(rows(ended, 1)))), "TransactionEnded")
      }).pipe(Effect.scoped, Effect.provide(one))
    )
  })

  describe("that is given back", () => {
    const session = `SELECT pg_backend_pid() AS pid, current_setting('search_path') AS path, current_setting('statement_timeout') AS statement,
      current_setting('app.tenant', true) AS tenant, current_user = session_user AS own,
      (SELECT count(*)::int FROM pg_class WHERE relpersistence = 't') AS temporary,
      (SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
      (SELECT count(*)::int FROM pg_listening_channels()) AS channels, (SELECT count(*)::int FROM pg_prepared_statements WHERE name = 'p') AS prepared`

    it.effect(
      "is the same connection for the next one, with nothing of what its user left in the session",
      () =>
        Effect.gen(function* () {
          const sql = yield* PgClient.PgClient
          // Prepared, it would count itself.
          const state = Effect.map(sql.unsafe(session).unprepared, ([row]) => row)
          const before = yield* state
          yield* Effect.scoped(
            Effect.gen(function* () {
              const connection = yield* sql.reserve
              yield* run(
                connection,
                "SET statement_timeout = 0; SET app.tenant = 'one'; SELECT set_config('search_path', '', false); CREATE TEMP TABLE t (id int); SELECT pg_advisory_lock(1); LISTEN c; PREPARE p AS SELECT 1; SET ROLE pg_monitor"
              )
            })
          )
          assert.deepStrictEqual(yield* state, { ...before, tenant: "" })
        }).pipe(Effect.provide(one))
    )

    it.effect("prepares again what it had prepared", () =>
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const statement = sql`SELECT ${1}::int AS n`
        for (let time = 0; time < 3; time++) {
          for (let use = 0; use < 3; use++) assert.deepStrictEqual(yield* statement, [{ n: 1 }])
          yield* Effect.scoped(Effect.flatMap(sql.reserve, (connection) => run(connection, "SELECT 1")))
        }
      }).pipe(Effect.provide(one))
    )

    it.effect("is closed when it cannot be reset, and the next one gets another", () =>
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        yield* Effect.scoped(
          Effect.gen(function* () {
            const connection = yield* sql.reserve
            yield* run(connection, "BEGIN; CREATE TEMP TABLE t (id int)")
          })
        )
        assert.deepStrictEqual(yield* sql`SELECT to_regclass('t') AS name`, [{ name: null }])
      }).pipe(Effect.provide(one))
    )
  })
})
