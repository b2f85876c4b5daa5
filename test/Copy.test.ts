import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it, layer } from "./support/it.js"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import * as Copy from "../src/Copy.js"
import * as Database from "../src/Database.js"
import * as DatabaseError from "../src/DatabaseError.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import * as Transaction from "../src/Transaction.js"
import { databaseLayer, testLayer, TestServer, processId } from "./support/database.js"
import { type LogRecord, recordLogs } from "./support/logs.js"
import { eventually } from "./support/eventually.js"
import * as Proxy from "./support/Proxy.js"

const silent = Logger.remove(Logger.defaultLogger)

const one = testLayer({ maxConnections: 1 })

const thing = { table: "thing", columns: ["id", "name"] }

const table = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE thing (id int CONSTRAINT thing_pkey PRIMARY KEY, name text)`
)

const count = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<{ n: number }>`SELECT count(*)::int AS n FROM thing`, ([row]) => row?.n)
)

const rows = (from: number, to: number): Stream.Stream<Copy.Row> =>
  Stream.map(Stream.range(from, to), (id) => [id, `name ${id}`])

const reason = (error: unknown) => DatabaseError.reasonOf(error)?._tag

/** Nothing of a load is there, and its connection serves the next statement. */
const leftNothing = (pid: number | undefined) =>
  Effect.gen(function* () {
    assert.strictEqual(yield* count, 0)
    assert.strictEqual(yield* processId, pid)
  })

/** Resumes when a backend waits for a lock. */
const someoneWaits = Effect.flatMap(TestServer, ({ admin }) =>
  eventually(
    "a backend waits for a lock",
    Effect.map(
      admin.query(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
      ),
      (found) => found.length > 0
    )
  )
)

describe("Copy.into", () => {
  it.scopedLive("stores what INSERT with parameters stores, whatever the values", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const columns = ["id", "text", "number", "flag", "bytes", "moment", "texts", "numbers", "blobs", "json"]
      for (const name of ["copied", "inserted"]) {
        yield* sql`
          CREATE TABLE ${sql(name)} (
            id int, text text, number numeric, flag boolean, bytes bytea, moment timestamptz, texts text[], numbers bigint[],
            blobs bytea[], json jsonb
          )
        `
      }
      const runPromise = Runtime.runPromise(yield* Effect.runtime<Database.Provided>())
      const text = FastCheck.array(
        FastCheck.constantFrom(
          ...Array.from("aN.\\\t\n\r\b\f\v\"'{},; 🙂é\u0001\u007f\ufeff\u2028"),
          "\\.",
          "\\N",
          "NULL",
          "\r\n",
          "\\t"
        ),
        { maxLength: 12 }
      ).map((parts) => parts.join(""))
      const orNull = <A>(value: FastCheck.Arbitrary<A>) => FastCheck.option(value)
      const bytes = FastCheck.uint8Array({ maxLength: 20 })
      const row = FastCheck.tuple(
        orNull(text),
        orNull(
          FastCheck.oneof(FastCheck.integer(), FastCheck.double({ noNaN: true, noDefaultInfinity: true }))
        ),
        orNull(FastCheck.boolean()),
        orNull(bytes),
        orNull(
          FastCheck.date({
            min: new Date("0100-01-01T00:00:00Z"),
            max: new Date("9998-01-01T00:00:00Z"),
            noInvalidDate: true
          })
        ),
        orNull(FastCheck.array(orNull(text), { maxLength: 4 })),
        orNull(FastCheck.array(FastCheck.bigInt(-(2n ** 63n), 2n ** 63n - 1n), { maxLength: 4 })),
        orNull(FastCheck.array(bytes, { maxLength: 3 })),
        orNull(FastCheck.record({ [`\\"key"\t`]: text }))
      )
      const property = FastCheck.asyncProperty(FastCheck.array(row, { maxLength: 8 }), (generated) =>
        runPromise(
          Effect.gen(function* () {
            yield* sql`TRUNCATE copied, inserted`
            const numbered = generated.map((values, id): Copy.Row => [id, ...values])
            yield* Effect.forEach(numbered, (values) =>
              sql.unsafe("INSERT INTO inserted VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", values)
            )
            const stored = yield* Copy.into(Stream.fromIterable(numbered), { table: "copied", columns })
            assert.strictEqual(stored, numbered.length)
            const [difference] = yield* sql<{ n: number }>`
              SELECT count(*)::int AS n
              FROM (SELECT c::text FROM copied AS c EXCEPT ALL SELECT i::text FROM inserted AS i) AS missing
            `
            assert.strictEqual(difference?.n, 0)
            assert.deepStrictEqual(
              yield* sql`SELECT * FROM copied ORDER BY id`,
              yield* sql`SELECT * FROM inserted ORDER BY id`
            )
          })
        )
      )
      yield* Effect.promise(() => FastCheck.assert(property, { numRuns: 100 }))
    }).pipe(Effect.provide(one))
  )

  it.scopedLive("tells '' from null, takes a schema, odd names and defaults, and no rows at all", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE SCHEMA "o""dd"`
      yield* sql`CREATE TABLE "o""dd"."ta ble" (id int, "co,l" text, made text DEFAULT 'made')`
      const target = { schema: 'o"dd', table: "ta ble", columns: ["id", "co,l"] }
      const loaded = Stream.make([1, ""], [2, null], [3, undefined], [4, "\\."])
      assert.strictEqual(yield* loaded.pipe(Copy.into(target)), 4)
      assert.strictEqual(yield* Copy.into(Stream.empty, target), 0)
      assert.deepStrictEqual(yield* sql`SELECT * FROM "o""dd"."ta ble" ORDER BY id`, [
        { id: 1, "co,l": "", made: "made" },
        { id: 2, "co,l": null, made: "made" },
        { id: 3, "co,l": null, made: "made" },
        { id: 4, "co,l": "\\.", made: "made" }
      ])
    }).pipe(Effect.provide(one))
  )

  it.scopedLive("is one statement, of which no value is logged", () =>
    Effect.gen(function* () {
      const records: Array<LogRecord> = []
      yield* table
      yield* Copy.into(rows(1, 100_000), thing).pipe(
        Effect.provide(Layer.merge(databaseLayer({ maxConnections: 1, echo: true }), recordLogs(records)))
      )
      assert.strictEqual(yield* count, 100_000)
      const copies = records.filter(({ message }) => message.startsWith("COPY"))
      assert.deepStrictEqual(
        copies.map(({ level, message }) => [level, message]),
        [["DEBUG", 'COPY "thing" ("id", "name") FROM STDIN']]
      )
      assert.notInclude(JSON.stringify(records), "name 7")
    }).pipe(Effect.provide(one))
  )

  it.scopedLive("takes no more rows than the server reads", () =>
    Effect.gen(function* () {
      yield* table
      const { admin } = yield* TestServer
      yield* admin.query("BEGIN")
      yield* admin.query("INSERT INTO thing VALUES (1, 'in the way')")
      let taken = 0
      const endless = Stream.map(
        Stream.tap(
          Stream.iterate(1, (id) => id + 1),
          () => Effect.sync(() => void taken++)
        ),
        (id): Copy.Row => [id, "x".repeat(1000)]
      )
      const fiber = yield* Effect.fork(Copy.into(endless, thing))
      yield* someoneWaits
      // What is under way fills the buffers of both sockets, and then nothing moves.
      let before = -1
      yield* eventually(
        "no more rows are taken",
        Effect.sync(() => {
          const stands = taken === before
          before = taken
          return stands
        })
      )
      assert.isBelow(taken, 100_000)
      yield* admin.query("COMMIT")
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.strictEqual(reason(error), "UniqueViolation")
      assert.notInclude(`${String(error)} ${JSON.stringify(error)} ${error.message}`, "xxx")
      assert.strictEqual(yield* count, 1)
    }).pipe(Effect.provide(Layer.merge(one, silent)))
  )

  describe("stores nothing, and leaves its connection fit for use,", () => {
    it.scopedLive("when the stream fails, dies, or has a row that does not fit", () =>
      Effect.gen(function* () {
        yield* table
        const pid = yield* processId
        const after = <E>(end: Stream.Stream<Copy.Row, E>) =>
          Copy.into(Stream.concat(rows(1, 5000), end), thing)
        assert.strictEqual(yield* Effect.flip(after(Stream.fail("mine" as const))), "mine")
        yield* leftNothing(pid)
        const defect = new Error("a defect")
        const died = yield* Effect.exit(after(Stream.die(defect)))
        assert.include(Exit.isFailure(died) ? String(Cause.squash(died.cause)) : "", defect.message)
        yield* leftNothing(pid)
        const unfit: Record<string, unknown> = { secret: 1 }
        unfit["itself"] = unfit
        for (const [row, message] of [
          [[1], "has 1 values for 2 columns"],
          [[1, "secret\0"], "cannot be sent: column name contains a NUL byte, which PostgreSQL cannot store"],
          [[1, unfit], "cannot be sent: column name cannot be turned into a PostgreSQL value"]
        ] as const) {
          const error = yield* Effect.flip(after(Stream.make(row)))
          assert.strictEqual(reason(error), "InvalidRequest")
          assert.include(error.message, `row 5000 of the COPY (counted from 0) ${message}`)
          assert.notInclude(error.message, "secret")
          yield* leftNothing(pid)
        }
      }).pipe(Effect.provide(one))
    )

    it.scopedLive("when the server refuses a row, the table or the name of a column", () =>
      Effect.gen(function* () {
        yield* table
        const pid = yield* processId
        const twice = Stream.concat(rows(1, 5000), Stream.repeatValue([1, "secret"]))
        const error = yield* Effect.flip(Copy.into(twice, thing))
        assert.strictEqual(reason(error), "UniqueViolation")
        assert.include(error.message, "thing_pkey")
        yield* leftNothing(pid)
        const malformed = yield* Effect.flip(Copy.into(Stream.make(["secret", "x"]), thing))
        assert.strictEqual(reason(malformed), "InvalidInput")
        assert.notInclude(`${malformed.message} ${String(malformed)}`, "secret")
        for (const target of [
          { table: "nothing", columns: ["id"] },
          { table: "thing", columns: ["id", "nothing"] }
        ]) {
          const unknown = yield* Effect.flip(Copy.into(Stream.repeatValue([1]), target))
          assert.strictEqual(reason(unknown), "UndefinedObject")
        }
        yield* leftNothing(pid)
      }).pipe(Effect.provide(one))
    )

    it.scopedLive("when it is interrupted while rows flow", () =>
      Effect.gen(function* () {
        yield* table
        const pid = yield* processId
        const flowing = yield* Deferred.make<void>()
        const endless = Stream.tap(
          Stream.map(
            Stream.iterate(1, (id) => id + 1),
            (id): Copy.Row => [id, "x"]
          ),
          ([id]) => (id === 50_000 ? Deferred.succeed(flowing, undefined) : Effect.void)
        )
        const fiber = yield* Effect.fork(Copy.into(endless, thing))
        yield* Deferred.await(flowing)
        assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
        yield* leftNothing(pid)
      }).pipe(Effect.provide(one))
    )

    it.scopedLive("when it is interrupted while the stream has nothing to give", () =>
      Effect.gen(function* () {
        yield* table
        const pid = yield* processId
        const stuck = yield* Deferred.make<void>()
        const silence = Stream.fromEffect(Effect.zipRight(Deferred.succeed(stuck, undefined), Effect.never))
        const fiber = yield* Effect.fork(Copy.into(Stream.concat(rows(1, 10), silence), thing))
        yield* Deferred.await(stuck)
        assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
        yield* leftNothing(pid)
      }).pipe(Effect.provide(one))
    )

    for (const { what, lock } of [
      { what: "the table", lock: "LOCK TABLE thing IN ACCESS EXCLUSIVE MODE" },
      { what: "a row of somebody else", lock: "INSERT INTO thing VALUES (3, 'in the way')" }
    ]) {
      it.scopedLive(`when it is interrupted while it waits for ${what}`, () =>
        Effect.gen(function* () {
          yield* table
          const pid = yield* processId
          const { admin } = yield* TestServer
          yield* admin.query("BEGIN")
          yield* admin.query(lock)
          const fiber = yield* Effect.fork(Copy.into(Stream.concat(rows(1, 20_000), Stream.never), thing))
          yield* someoneWaits
          assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
          yield* admin.query("ROLLBACK")
          yield* leftNothing(pid)
        }).pipe(Effect.provide(one))
      )
    }

    it.scopedLive("when it takes longer than the statement timeout", () =>
      Effect.gen(function* () {
        yield* table
        const pid = yield* processId
        const endless = Stream.map(
          Stream.iterate(1, (id) => id + 1),
          (id): Copy.Row => [id, "x"]
        )
        const error = yield* Effect.flip(
          Transaction.run(Copy.into(endless, thing), { statementTimeout: "200 millis" })
        )
        assert.strictEqual(reason(error), "StatementTimeout")
        yield* leftNothing(pid)
      }).pipe(Effect.provide(Layer.merge(one, silent)))
    )
  })

  it.scopedLive("fails as lost, and stores nothing, when the connection is cut", () =>
    Effect.gen(function* () {
      yield* table
      const { url } = yield* TestServer
      const proxy = yield* Proxy.make(url)
      yield* Effect.gen(function* () {
        yield* processId
        yield* proxy.when(Proxy.client("CopyData"), Proxy.cutBefore("end"), { nth: 2 })
        const error = yield* Effect.flip(Copy.into(rows(1, 100_000), thing))
        assert.strictEqual(reason(error), "ConnectionLost")
        assert.strictEqual(yield* Copy.into(rows(1, 10), thing), 10)
      }).pipe(Effect.provide(Database.layer({ url: proxy.url, minConnections: 0, maxConnections: 1 })))
      assert.strictEqual(yield* count, 10)
    }).pipe(Effect.provide(Layer.merge(one, silent)))
  )

  describe("inside a transaction", () => {
    it.scopedLive("is a part of it, and of its savepoints", () =>
      Effect.gen(function* () {
        yield* table
        yield* Transaction.run(
          Effect.gen(function* () {
            yield* Copy.into(rows(1, 10), thing)
            yield* Effect.ignore(
              Transaction.run(Effect.zipRight(Copy.into(rows(11, 20), thing), Effect.fail("no")))
            )
            const clash = Transaction.run(Copy.into(rows(5, 30), thing))
            assert.strictEqual(reason(yield* Effect.flip(clash)), "UniqueViolation")
            const failing = Transaction.run(
              Copy.into(Stream.concat(rows(31, 40), Stream.fail("mine")), thing)
            )
            assert.strictEqual(yield* Effect.flip(failing), "mine")
            assert.strictEqual(yield* count, 10)
          })
        )
        assert.strictEqual(yield* count, 10)
        yield* Effect.ignore(
          Transaction.run(Effect.zipRight(Copy.into(rows(11, 20), thing), Effect.fail("no")))
        )
        assert.strictEqual(yield* count, 10)
      }).pipe(Effect.provide(Layer.merge(one, silent)))
    )

    it.scopedLive("lets other statements of it wait for its end", () =>
      Effect.gen(function* () {
        yield* table
        const begun = yield* Deferred.make<void>()
        const go = yield* Deferred.make<void>()
        const waiting = Stream.fromEffect(
          Effect.as(Effect.zipRight(Deferred.succeed(begun, undefined), Deferred.await(go)), [0, "last"])
        )
        yield* Transaction.run(
          Effect.gen(function* () {
            const load = yield* Effect.fork(Copy.into(Stream.concat(rows(1, 9), waiting), thing))
            yield* Deferred.await(begun)
            const counted = yield* Effect.fork(count)
            yield* Deferred.succeed(go, undefined)
            assert.strictEqual(yield* Fiber.join(counted), 10)
            yield* Fiber.join(load)
          })
        )
      }).pipe(Effect.provide(one))
    )

    it.scopedLive(
      "refuses a stream that uses the transaction, and takes one that uses another connection",
      () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* table
          const series = sql`SELECT n FROM generate_series(1, 1000) AS n`
          const read = Stream.map(series.stream, ({ n }): Copy.Row => [n, "read"])
          const uses: ReadonlyArray<Stream.Stream<Copy.Row, unknown, Database.Database>> = [
            read,
            Stream.map(Stream.fromIterableEffect(series), ({ n }): Copy.Row => [n, "read"]),
            Stream.map(Stream.fromIterableEffect(Transaction.run(series)), ({ n }): Copy.Row => [n, "read"]),
            Stream.map(Stream.fromEffect(Copy.into(rows(1, 2), thing)), (n): Copy.Row => [n, "copied"])
          ]
          for (const use of uses) {
            const error = yield* Effect.flip(Transaction.run(Copy.into(use, thing)))
            assert.strictEqual(reason(error), "InvalidRequest")
            assert.include(String(error), "its connection is busy")
          }
          assert.strictEqual(yield* Copy.into(read, thing), 1000)
          const alone = Copy.into(read, { ...thing, columns: ["id", "name"] }).pipe(
            Effect.provide(databaseLayer({ maxConnections: 1 }))
          )
          assert.strictEqual(reason(yield* Effect.flip(alone)), "UniqueViolation")
        }).pipe(Effect.provide(Layer.merge(testLayer({ maxConnections: 2 }), silent)))
    )

    it.scopedLive("refuses a stream that waits for the only connection there is", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* table
        const read = Stream.map(
          Stream.fromIterableEffect(sql`SELECT n FROM generate_series(1, 10) AS n`),
          ({ n }): Copy.Row => [n, "read"]
        )
        assert.strictEqual(reason(yield* Effect.flip(Copy.into(read, thing))), "NestedAcquire")
        assert.strictEqual(yield* count, 0)
      }).pipe(Effect.provide(Layer.merge(one, silent)))
    )
  })
})

layer(TestDatabase.layer(), { excludeTestServices: true })("Copy.into in tests", (it) => {
  it.effect("is undone by TestDatabase.rollback, and fails by itself inside it", () =>
    Effect.gen(function* () {
      yield* table
      yield* Effect.gen(function* () {
        assert.strictEqual(yield* Copy.into(rows(1, 10), thing), 10)
        assert.strictEqual(reason(yield* Effect.flip(Copy.into(rows(5, 20), thing))), "UniqueViolation")
        assert.strictEqual(yield* Transaction.run(Copy.into(rows(11, 20), thing)), 10)
        assert.strictEqual(yield* count, 20)
      }).pipe(Effect.provide(TestDatabase.rollback))
      assert.strictEqual(yield* count, 0)
    })
  )

  it.effect("fails where TestDatabase.failing says", () =>
    Effect.gen(function* () {
      const failing = (fault: TestDatabase.Fault) =>
        Effect.flip(Copy.into(rows(1, 10), thing)).pipe(
          Effect.provide(TestDatabase.failing([{ at: "COPY", fault }])),
          Effect.map(reason)
        )
      assert.strictEqual(yield* failing({ _tag: "Fail", code: "53100" }), "ServerResources")
      assert.strictEqual(yield* failing({ _tag: "Cut", when: "before" }), "ConnectionLost")
      assert.strictEqual(yield* count, 0)
      assert.strictEqual(yield* failing({ _tag: "Cut", when: "after" }), "ConnectionLost")
      assert.strictEqual(yield* count, 10)
    })
  )
})
