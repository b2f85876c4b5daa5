import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, inFull, layer } from "../support/it.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import { DatabaseError } from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer, databaseLayer, processId } from "../support/database.js"
import { within } from "../support/within.js"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"

const silent = Logger.remove(Logger.defaultLogger)

const stats = Effect.flatMap(Database.Database, (database) => database.stats)

const reasonOf = (error: unknown): string =>
  DatabaseError.is(error) ? error.reason._tag : `not a DatabaseError: ${String(error)}`

/** What the server says of a backend. */
const stateOf = (pid: number) =>
  Effect.flatMap(TestServer, ({ admin }) =>
    Effect.map(
      admin.query<{ state: string }>("SELECT state FROM pg_stat_activity WHERE pid = $1", [pid]),
      (rows) => rows[0]?.state
    )
  )

const one = databaseLayer({ maxConnections: 1 })

layer(Layer.merge(TestServer.layer, silent), { excludeTestServices: true })("A statement", (it) => {
  it.effect("that is no prepared one runs once, although it fails as a stale one would", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql.unsafe(`
        CREATE TABLE runs (n int);
        CREATE PROCEDURE stale() LANGUAGE plpgsql AS $$
          BEGIN INSERT INTO runs VALUES (1); COMMIT; RAISE 'stale' USING ERRCODE = '26000'; END $$
      `)
      assert.strictEqual(reasonOf(yield* Effect.flip(sql`CALL stale()`)), "StalePreparedStatement")
      assert.strictEqual((yield* sql`SELECT n FROM runs`).length, 1)
    }).pipe(Effect.provide(one))
  )

  it.effect("whose limit a function has set ends as cancelled: that its time was over nobody has seen", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const ended = sql.unsafe(`
        DO $$ BEGIN PERFORM set_config('statement_timeout', '100ms', true); END $$;
        SELECT pg_sleep(60)`)
      assert.strictEqual(reasonOf(yield* Effect.flip(Transaction.run(ended))), "StatementCancelled")
      const known = sql.unsafe("SET LOCAL statement_timeout = '100ms'; SELECT pg_sleep(60)")
      assert.strictEqual(reasonOf(yield* Effect.flip(Transaction.run(known))), "StatementTimeout")
    }).pipe(Effect.provide(one))
  )

  it.effect("stores with sql.json what JSON.parse gives back, whatever it is", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const values = [[], [1, "two", null], {}, { a: [{}] }, "text", '"quoted"', "", 0, 1.5, true, false]
      const stored = yield* Effect.forEach(values, (value) =>
        Effect.map(sql<{ value: unknown }>`SELECT ${sql.json(value)}::jsonb AS value`, ([row]) => row?.value)
      )
      assert.deepStrictEqual(stored, values)
      const [none] = yield* sql`SELECT ${sql.json(null)}::jsonb IS NULL AS none`
      assert.deepStrictEqual(none, { none: true })
      const circular: Record<string, unknown> = {}
      circular["itself"] = circular
      assert.strictEqual(
        reasonOf(yield* Effect.flip(sql`SELECT ${sql.json(circular)}::jsonb`)),
        "InvalidRequest"
      )
    }).pipe(Effect.provide(one))
  )

  describe("that is interrupted", () => {
    it.effect("lets its fiber go at once and ends on the server, with every connection in use", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { admin } = yield* TestServer
        const pids: Array<number> = []
        const hold = Effect.scoped(
          Effect.gen(function* () {
            const connection = yield* sql.reserve
            const rows = yield* connection.execute("SELECT pg_backend_pid() AS pid", [], undefined)
            pids.push((rows[0] as { readonly pid: number }).pid)
            return yield* connection.executeRaw("SELECT pg_sleep(3600)", [])
          })
        )
        yield* admin.query("SELECT pg_advisory_lock(1)")
        const innocent = yield* Effect.fork(sql`SELECT pg_advisory_lock(1)`)
        const fibers = yield* Effect.all([Effect.fork(hold), Effect.fork(hold)])
        yield* eventually(
          "all are busy",
          Effect.map(stats, ({ busy }) => busy === 3 && pids.length === 2)
        )
        yield* within(200, admin.query("SELECT 1"))(Fiber.interruptAll(fibers))
        for (const pid of pids) {
          yield* eventually(
            "its backend is idle",
            Effect.map(stateOf(pid), (state) => state === "idle")
          )
        }
        yield* admin.query("SELECT pg_advisory_unlock(1)")
        yield* Fiber.join(innocent)
      }).pipe(
        Effect.provide(
          databaseLayer({ maxConnections: 3, lockTimeout: "1 hour", statementTimeout: "1 hour" })
        )
      )
    )

    it.effect("is cancelled although its fiber, and the Layer, cannot be interrupted in other places", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { admin } = yield* TestServer
        const fiber = yield* Effect.fork(
          Effect.uninterruptibleMask((restore) => restore(sql`SELECT pg_sleep(3600)`))
        )
        yield* eventually(
          "it runs",
          Effect.map(stats, ({ busy }) => busy === 1)
        )
        yield* within(200, admin.query("SELECT 1"))(Fiber.interrupt(fiber))
        yield* processId
      }).pipe(Effect.provide(one))
    )

    it.effect("never harms the next one: a late cancellation finds nobody", () =>
      Effect.scoped(
        Effect.gen(function* () {
          const { admin, url } = yield* TestServer
          const proxy = yield* Proxy.make(url)
          const released = yield* Deferred.make<void>()
          const cancel = yield* proxy.when(
            Proxy.client("CancelRequest"),
            Proxy.hold(Deferred.await(released))
          )
          yield* Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            const waits = (lock: number) =>
              eventually(
                `lock ${lock} is waited for`,
                Effect.map(
                  admin.query(
                    "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objid = $1 AND NOT l.granted",
                    [lock]
                  ),
                  (rows) => rows.length === 1
                )
              )
            yield* admin.query("SELECT pg_advisory_lock(1), pg_advisory_lock(2)")
            const interrupted = yield* Effect.fork(sql`SELECT pg_advisory_lock(1)`)
            yield* waits(1)
            yield* Fiber.interrupt(interrupted)
            // The statement ends by itself; the cancel request is still on its way.
            yield* admin.query("SELECT pg_advisory_unlock(1)")
            const next = yield* Effect.fork(Effect.either(sql`SELECT pg_advisory_lock(2)`))
            yield* waits(2)
            assert.strictEqual(yield* cancel.count, 1)
            yield* Deferred.succeed(released, undefined)
            yield* eventually(
              "the cancel request has arrived",
              Effect.map(proxy.connections, ({ open }) => open === 1)
            )
            yield* admin.query("SELECT pg_advisory_unlock(2)")
            assert.isTrue(Either.isRight(yield* Fiber.join(next)))
          }).pipe(
            Effect.provide(
              Database.layer({
                url: proxy.url,
                minConnections: 0,
                maxConnections: 1,
                lockTimeout: "1 hour",
                statementTimeout: "1 hour"
              })
            )
          )
        })
      )
    )

    inFull(it).effect("gives its connection up when the cancellation cannot be delivered", () =>
      Effect.scoped(
        Effect.gen(function* () {
          const { url } = yield* TestServer
          const proxy = yield* Proxy.make(url)
          yield* proxy.when(Proxy.client("CancelRequest"), Proxy.hold(Effect.never))
          yield* Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            const before = yield* processId
            // Longer than this test may take.
            yield* Effect.timeoutOption(sql`SELECT pg_sleep(3600)`, "50 millis")
            assert.notStrictEqual(yield* processId, before)
          }).pipe(Effect.provide(Database.layer({ url: proxy.url, minConnections: 0, maxConnections: 1 })))
        })
      )
    )
  })

  describe("that comes again", () => {
    const prepared = Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const rows = yield* sql<{
        statement: string
      }>`SELECT statement FROM pg_prepared_statements ORDER BY prepare_time`
      return rows.map(({ statement }) => statement)
    })

    it.effect("is prepared on the server, the second time", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const seen = () => sql`SELECT ${1}::int AS again`
        yield* seen()
        assert.deepStrictEqual(yield* prepared, [])
        yield* seen()
        yield* seen()
        assert.deepInclude(yield* prepared, "SELECT $1::int AS again")
      }).pipe(Effect.provide(one))
    )

    it.effect("is not when `prepare` is off", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        for (let time = 0; time < 3; time++) yield* sql`SELECT ${1}::int AS again`
        assert.deepStrictEqual(yield* prepared, [])
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 1, prepare: false })))
    )

    it.effect("gives its place up when 256 others came since, also inside a transaction", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const twice = (column: number) =>
          Effect.repeatN(sql.unsafe(`SELECT $1::int AS c${column}`, [column]), 1)
        yield* twice(0)
        yield* Transaction.run(
          Effect.gen(function* () {
            for (let column = 1; column <= 300; column++) yield* twice(column)
            // One that somebody else has given up already must not abort the transaction.
            yield* sql`DEALLOCATE ALL`
            yield* Effect.forEach([301, 302, 303], (column) =>
              sql.unsafe(`SELECT $1::int AS c${column}`, [column])
            )
          })
        )
        const all = yield* prepared
        assert.isAtMost(all.length, 256)
        assert.notInclude(all, "SELECT $1::int AS c0")
      }).pipe(Effect.provide(one))
    )

    it.effect("is prepared anew when its table has changed, or when it was deallocated", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE changing (id int)`
        yield* sql`INSERT INTO changing VALUES (1)`
        const all = () => sql`SELECT * FROM changing WHERE id = ${1}`
        for (let time = 0; time < 3; time++) assert.deepStrictEqual(yield* all(), [{ id: 1 }])
        yield* sql`ALTER TABLE changing ADD COLUMN name text DEFAULT 'new'`
        for (let time = 0; time < 3; time++) {
          assert.deepStrictEqual(yield* all(), [{ id: 1, name: "new" }])
        }
        yield* sql`DEALLOCATE ALL`
        for (let time = 0; time < 3; time++) {
          assert.deepStrictEqual(yield* all(), [{ id: 1, name: "new" }])
        }
      }).pipe(Effect.provide(one))
    )

    it.effect("works again and again with several statements in one text", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        for (let time = 0; time < 3; time++) {
          const results = yield* sql.unsafe("SELECT 1 AS a; SELECT 2 AS b")
          assert.deepStrictEqual(results, [[{ a: 1 }], [{ b: 2 }]])
        }
      }).pipe(Effect.provide(one))
    )
  })

  describe("whose limit the program raised itself", () => {
    const outlasting = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT pg_sleep(5.3)`)
    const raised: Readonly<Record<string, Effect.Effect<unknown, unknown, SqlClient.SqlClient>>> = {
      "by SET": Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SET statement_timeout = 0`),
      "by set_config": Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`SELECT set_config('statement_timeout', '0', false)`
      ),
      "by set_config with parameters": Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`SELECT set_config(${"Statement_Timeout"}, ${"0"}, false)`
      ),
      "by set_config in a stream": Effect.flatMap(SqlClient.SqlClient, (sql) =>
        Stream.runDrain(sql`SELECT set_config(${"statement_timeout"}, ${"0"}, false)`.stream)
      )
    }
    // The client gives a connection up 5 seconds after the limit that it knows.
    const limited = { maxConnections: 1, statementTimeout: "50 millis", lockTimeout: "50 millis" } as const
    inFull(it).effect("is not given up for the limit of the settings, however it was raised", () =>
      Effect.forEach(
        Object.values(raised),
        (raise) => Effect.provide(Effect.zipRight(raise, outlasting), databaseLayer(limited)),
        { concurrency: "unbounded", discard: true }
      )
    )
  })

  describe("that the client cannot express", () => {
    it.effect("is refused before it is sent, and the connection stays usable", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const before = yield* processId
        const circular: Record<string, unknown> = {}
        circular["self"] = circular
        const tooMany = Array.from({ length: 65_536 }, (_, index) => index)
        const refused = [
          sql.unsafe("SELECT 1 -- \0"),
          sql.unsafe("SELECT $1::jsonb", [circular as never]),
          sql.unsafe(`SELECT ${tooMany.map((index) => `$${index + 1}::int`).join("+")}`, tooMany)
        ]
        const errors = yield* Effect.forEach(refused, (statement) => Effect.flip(statement))
        assert.deepStrictEqual(errors.map(reasonOf), ["InvalidRequest", "InvalidRequest", "InvalidRequest"])
        assert.match(String(errors[2]), /65536 parameters/)
        const streamed = yield* Effect.flip(
          Stream.runDrain(sql.unsafe("SELECT $1::jsonb", [circular as never]).stream)
        )
        assert.strictEqual(reasonOf(streamed), "InvalidRequest")
        // The same inside a transaction does not abort it.
        const [row] = yield* Transaction.run(
          Effect.zipRight(
            Effect.flip(sql.unsafe("SELECT $1::jsonb", [circular as never])),
            sql`SELECT 1 AS one`
          )
        )
        assert.deepStrictEqual(row, { one: 1 })
        assert.strictEqual(yield* processId, before)
      }).pipe(Effect.provide(one))
    )

    it.effect("or the server cannot take fails as what it is", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        assert.strictEqual(reasonOf(yield* Effect.flip(sql`SELECT ${"a\0b"}::text`)), "DataException")
      }).pipe(Effect.provide(one))
    )

    it.effect("or that is a COPY fails with what to do instead, and is never an empty success", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE copied (id int)`
        yield* sql`INSERT INTO copied VALUES (1)`
        const before = yield* processId
        const texts = [
          "COPY copied FROM STDIN",
          "COPY copied TO STDOUT",
          "COPY (SELECT 1 WHERE false) TO STDOUT",
          "SELECT 1; COPY copied TO STDOUT; SELECT 2"
        ]
        for (const text of texts) {
          const statement = sql.unsafe(text)
          const ways = [statement, statement.raw, statement.values, statement.unprepared]
          for (const way of [...ways, ...(text.includes(";") ? [] : [Stream.runDrain(statement.stream)])]) {
            const error = yield* Effect.flip(way)
            assert.strictEqual(reasonOf(error), "InvalidRequest", text)
            assert.include(error.message, text.includes("FROM") ? "Copy.into" : "SELECT")
          }
          const inside = Transaction.run(Effect.zipRight(statement, sql`SELECT 1`))
          assert.strictEqual(reasonOf(yield* Effect.flip(inside)), "InvalidRequest", text)
        }
        // The server's own refusals are what they are.
        const unknown = yield* Effect.flip(sql`COPY unknown TO STDOUT`)
        assert.strictEqual(reasonOf(unknown), "UndefinedObject")
        const broken = yield* Effect.flip(sql`COPY (SELECT 1 / 0) TO STDOUT`)
        assert.strictEqual(reasonOf(broken), "DataException")
        assert.deepStrictEqual(yield* sql`SELECT id FROM copied`, [{ id: 1 }])
        assert.strictEqual(yield* processId, before)
      }).pipe(Effect.provide(one))
    )

    it.effect("of several statements gives the rows of each", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        assert.deepStrictEqual<unknown>(yield* sql.unsafe("SELECT 1 AS a; SELECT 2 AS b"), [
          [{ a: 1 }],
          [{ b: 2 }]
        ])
      }).pipe(Effect.provide(one))
    )

    it.effect("whose columns have one name twice gives all of them as values", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const statement = sql`SELECT 1 AS id, 2 AS id`
        assert.deepStrictEqual(yield* statement, [{ id: 2 }])
        assert.deepStrictEqual(yield* statement.values, [[1, 2]])
      }).pipe(Effect.provide(one))
    )
  })

  describe("gives its rows", () => {
    it.effect("as objects, as arrays, and raw; an empty one gives none", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const statement = sql`SELECT 1 AS a, ${"x"}::text AS b`
        for (let time = 0; time < 3; time++) {
          assert.deepStrictEqual(yield* statement, [{ a: 1, b: "x" }])
          assert.deepStrictEqual(yield* statement.values, [[1, "x"]])
          assert.deepStrictEqual(yield* statement.unprepared, [{ a: 1, b: "x" }])
          assert.deepInclude(yield* statement.raw, { command: "SELECT", rowCount: 1 })
        }
        for (const empty of ["", " ", "-- nothing"]) {
          assert.deepStrictEqual(yield* sql.unsafe(empty), [])
        }
        assert.deepStrictEqual([...(yield* Stream.runCollect(sql.unsafe("").stream))], [])
      }).pipe(Effect.provide(one))
    )

    it.effect("as a stream without reading ahead of its consumer", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE SEQUENCE produced`
        const rows = yield* Stream.runCollect(
          Stream.take(sql`SELECT nextval('produced') FROM generate_series(1, 1000000)`.stream, 10)
        )
        assert.strictEqual(rows.length, 10)
        const [row] = yield* sql<{ last_value: string }>`SELECT last_value FROM produced`
        assert.isAtMost(Number(row?.last_value), 1000)
      }).pipe(Effect.provide(one))
    )
  })
})
