import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, layer } from "../support/it.js"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import { DatabaseError } from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer, databaseLayer, processId } from "../support/database.js"
import { type LogRecord, recordLogs } from "../support/logs.js"
import { within } from "../support/within.js"
import { safetyNet } from "../support/speed.js"
import { eventually, NeverCame } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import { isFull } from "../support/length.js"

/** How often an interruption is tried, at moments that differ. */
const rounds = isFull ? 300 : 48

const silent = Logger.remove(Logger.defaultLogger)

const stats = Effect.flatMap(Database.Database, (database) => database.stats)

const sleep = (seconds: number) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT pg_sleep(${seconds})`)

const reasonOf = (error: unknown): string =>
  DatabaseError.is(error) ? error.reason._tag : `not a DatabaseError: ${String(error)}`

const terminate = (pid: number) =>
  Effect.flatMap(TestServer, ({ admin }) => admin.query("SELECT pg_terminate_backend($1)", [pid]))

/** Nothing is lent or waited for, and every connection that may be had can be had, at once. */
const isWhole = (max: number) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* eventually(
      "nothing is busy",
      Effect.map(stats, ({ busy, total, waiting }) => busy === 0 && waiting === 0 && total <= max)
    )
    const all = yield* Deferred.make<void>()
    let lent = 0
    const takeOne = Effect.scoped(
      Effect.gen(function* () {
        // The pool may be one that keeps nobody waiting.
        yield* Effect.retry(sql.reserve, { while: (error) => reasonOf(error) === "AcquireTimeout" })
        if (++lent === max) yield* Deferred.succeed(all, undefined)
        yield* Deferred.await(all)
      })
    )
    yield* Effect.all(
      Array.from({ length: max }, () => takeOne),
      { concurrency: "unbounded" }
    ).pipe(
      Effect.timeoutFail({
        duration: safetyNet("10 seconds"),
        onTimeout: () => new NeverCame({ message: `only ${lent} could be had` })
      })
    )
  })

layer(Layer.merge(TestServer.layer, silent), { excludeTestServices: true })("The pool", (it) => {
  it.effect("lends what is free or can be opened where nobody may wait, and then refuses", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      // The first one is opened, the second one asked whether it is alive.
      yield* sql`SELECT 1`
      yield* sql`SELECT 2`
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Effect.all([sql.reserve, sql.reserve], { concurrency: "unbounded" })
          assert.strictEqual(reasonOf(yield* Effect.flip(sql`SELECT 3`)), "Overloaded")
        })
      )
      yield* sql`SELECT 4`
    }).pipe(Effect.provide(databaseLayer({ maxConnections: 2, maxWaiting: 0, validateAfterIdle: 0 })))
  )

  describe("loses no connection", () => {
    it.effect("to interruptions at any moment: queued, dialing, running, releasing", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const kinds = [
          sql`SELECT pg_sleep(0.001)`,
          sql`SELECT 1`,
          Effect.scoped(Effect.zipRight(sql.reserve, Effect.sleep("1 millis"))),
          Transaction.run(sql`SELECT 1`),
          Stream.runDrain(sql`SELECT generate_series(1, 300)`.stream)
        ]
        const one = Effect.gen(function* () {
          const kind = kinds[yield* Random.nextIntBetween(0, kinds.length)] ?? Effect.void
          const fiber = yield* Effect.fork(Effect.exit(kind))
          const patience = yield* Random.nextIntBetween(0, 12)
          if (patience < 6) for (let step = 0; step < patience; step++) yield* Effect.yieldNow()
          else yield* Effect.sleep(Duration.millis(patience - 6))
          yield* Fiber.interrupt(fiber)
        })
        for (let round = 0; round < 5; round++) {
          yield* Effect.all(
            Array.from({ length: 100 }, () => one),
            { concurrency: "unbounded" }
          )
        }
        yield* isWhole(2)
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 2, acquireTimeout: "60 seconds" })))
    )

    it.effect("when a wait is interrupted in the instant in which a connection is released", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        for (let round = 0; round < rounds; round++) {
          const held = yield* Deferred.make<void>()
          const done = yield* Deferred.make<void>()
          const holder = yield* Effect.fork(
            Effect.scoped(
              Effect.zipRight(
                sql.reserve,
                Effect.zipRight(Deferred.succeed(held, undefined), Deferred.await(done))
              )
            )
          )
          yield* Deferred.await(held)
          const waiter = yield* Effect.fork(sql`SELECT 1`)
          const other = yield* Effect.fork(sql`SELECT 2`)
          yield* eventually(
            "both wait",
            Effect.map(stats, ({ waiting }) => waiting === 2)
          )
          // All in one turn of the event loop, in different orders.
          yield* Deferred.succeed(done, undefined)
          for (let step = 0; step < round % 12; step++) yield* Effect.promise(() => Promise.resolve())
          yield* Fiber.interruptFork(waiter)
          yield* Fiber.join(other).pipe(
            Effect.timeoutFail({
              duration: safetyNet("10 seconds"),
              onTimeout: () => new NeverCame({ message: `stalled in round ${round}` })
            })
          )
          yield* Fiber.join(holder)
        }
        yield* isWhole(1)
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
    )

    it.effect("to acquire timeouts, and to questions whether it is alive", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* Effect.all(
          Array.from({ length: 100 }, () => Effect.exit(sql`SELECT pg_sleep(0.01)`)),
          { concurrency: "unbounded" }
        )
        yield* Effect.all(
          Array.from({ length: 100 }, (_, index) =>
            Effect.timeoutOption(Effect.exit(sql`SELECT 1`), Duration.millis(index % 5))
          ),
          { concurrency: "unbounded" }
        )
        yield* isWhole(2)
      }).pipe(
        Effect.provide(
          // The Layer's first connection may take longer than that to open.
          Layer.retry(
            databaseLayer({
              maxConnections: 2,
              acquireTimeout: "50 millis",
              validateAfterIdle: Duration.zero
            }),
            Schedule.recurWhile((error) => reasonOf(error) === "AcquireTimeout")
          )
        )
      )
    )
  })

  describe("lends no connection", () => {
    it.effect("of a killed backend: of 21 who want it, one fails", () =>
      Effect.gen(function* () {
        const pid = yield* processId
        const running = yield* Effect.fork(Effect.either(sleep(30)))
        yield* eventually(
          "the statement runs",
          Effect.map(stats, ({ busy }) => busy === 1)
        )
        const others = yield* Effect.fork(
          Effect.all(
            Array.from({ length: 20 }, () => Effect.either(processId)),
            { concurrency: "unbounded" }
          )
        )
        yield* eventually(
          "twenty wait",
          Effect.map(stats, ({ waiting }) => waiting === 20)
        )
        yield* terminate(pid)
        const first = yield* Fiber.join(running)
        assert.strictEqual(Either.isLeft(first) && reasonOf(first.left), "ServerShutdown")
        const rest = yield* Fiber.join(others)
        assert.deepStrictEqual(rest.filter(Either.isLeft), [])
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
    )

    it.effect("older than a shutdown that another one reported", () =>
      Effect.gen(function* () {
        const { admin } = yield* TestServer
        const pids = () =>
          Effect.map(
            admin.query<{ pid: number }>(
              "SELECT pid FROM pg_stat_activity WHERE application_name = 'invalidated'"
            ),
            (rows) => rows.map(({ pid }) => pid)
          )
        const before = yield* pids()
        assert.strictEqual(before.length, 3)
        const sql = yield* SqlClient.SqlClient
        const error = yield* Effect.flip(sql`SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)`)
        assert.strictEqual(reasonOf(error), "ServerShutdown")
        yield* eventually(
          "all are new",
          Effect.map(pids(), (now) => now.length === 3 && now.every((pid) => !before.includes(pid)))
        )
      }).pipe(Effect.provide(databaseLayer({ minConnections: 3, applicationName: "invalidated" })))
    )

    it.effect("that was left inside a transaction, open or failed, and warns of it", () =>
      Effect.gen(function* () {
        const records: Array<LogRecord> = []
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE dirty (id int)`
        const leave = (...statements: ReadonlyArray<string>) =>
          Effect.scoped(
            Effect.flatMap(sql.reserve, (connection) =>
              Effect.forEach(statements, (text) => Effect.exit(connection.executeRaw(text, [])))
            )
          )
        yield* Effect.gen(function* () {
          yield* leave("BEGIN", "INSERT INTO dirty VALUES (1)")
          yield* sql`INSERT INTO dirty VALUES (2)`
          yield* leave("BEGIN", "SELECT 1 / 0")
          yield* sql`INSERT INTO dirty VALUES (3)`
          yield* Effect.exit(sql`BEGIN`)
          yield* sql`INSERT INTO dirty VALUES (4)`
        }).pipe(Effect.provide(recordLogs(records)))
        assert.deepStrictEqual(
          yield* Effect.flatMap(TestServer, ({ admin }) => admin.query("SELECT id FROM dirty ORDER BY id")),
          [{ id: 2 }, { id: 3 }, { id: 4 }]
        )
        const warnings = records.filter(({ level }) => level === "WARN")
        assert.strictEqual(warnings.length, 3)
        assert.match(warnings[0]?.message ?? "", /inside an open transaction/)
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
    )

    it.effect("for longer than it is reserved", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const connection = yield* Effect.scoped(
          Effect.tap(sql.reserve, (reserved) =>
            Effect.gen(function* () {
              yield* reserved.executeRaw("CREATE TEMP TABLE own AS SELECT 1 AS id", [])
              assert.deepStrictEqual(yield* reserved.execute("SELECT id FROM own", [], undefined), [
                { id: 1 }
              ])
              assert.deepStrictEqual(yield* reserved.executeValues("SELECT id FROM own", []), [[1]])
              const streamed = yield* Stream.runCollect(
                reserved.executeStream("SELECT id FROM own", [], undefined)
              )
              assert.strictEqual(streamed.length, 1)
              assert.strictEqual((yield* stats).busy, 1)
            })
          )
        )
        const error = yield* Effect.flip(connection.executeRaw("SELECT 1", []))
        assert.strictEqual(reasonOf(error), "TransactionEnded")
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 2 })))
    )
  })

  describe("and the network:", () => {
    const behindProxy = <A, E, R>(
      use: (proxy: Proxy.Proxy) => Effect.Effect<A, E, R>,
      settings: Partial<Parameters<typeof Database.layer>[0]> = {}
    ) =>
      Effect.scoped(
        Effect.gen(function* () {
          const { url } = yield* TestServer
          const proxy = yield* Proxy.make(url)
          return yield* Effect.provide(
            use(proxy),
            Database.layer({ url: proxy.url, minConnections: 0, ...settings })
          )
        })
      )

    it.effect("a burst is served by the connections that there are, not by those that are being opened", () =>
      behindProxy(
        (proxy) =>
          Effect.gen(function* () {
            yield* proxy.setDialDelay("1 hour")
            yield* Effect.all(
              Array.from({ length: 50 }, () => sleep(0.002)),
              { concurrency: "unbounded" }
            )
            assert.isAtMost((yield* stats).total, 10)
          }),
        { minConnections: 5, maxConnections: 50, acquireTimeout: "1 hour", connectTimeout: "1 hour" }
      )
    )

    it.effect(
      "while it drops everything, every call returns in time, and works again when it comes back",
      () =>
        behindProxy(
          (proxy) =>
            Effect.gen(function* () {
              yield* processId
              yield* proxy.down
              const { admin } = yield* TestServer
              const ping = admin.query("SELECT 1")
              for (let call = 0; call < 3; call++) {
                assert.isTrue(Either.isLeft(yield* within(1100, ping)(Effect.either(processId))))
              }
              yield* proxy.up
              yield* within(
                2000,
                ping
              )(Effect.retry(processId, { times: 20, while: (error) => reasonOf(error) !== "SyntaxError" }))
            }),
          {
            maxConnections: 2,
            acquireTimeout: "1 second",
            connectTimeout: "500 millis",
            validateAfterIdle: Duration.zero
          }
        )
    )

    it.effect(
      "a connection that is given back while the server is silent returns to the pool all the same",
      () =>
        behindProxy(
          (proxy) =>
            Effect.gen(function* () {
              const sql = yield* SqlClient.SqlClient
              const leave = Effect.scoped(
                Effect.flatMap(sql.reserve, (connection) =>
                  Effect.zipRight(connection.executeRaw("BEGIN", []), proxy.freeze)
                )
              )
              const { admin } = yield* TestServer
              yield* within(500, admin.query("SELECT 1"))(leave)
              assert.isAbove(yield* processId, 0)
            }),
          { maxConnections: 1, acquireTimeout: "2 seconds" }
        )
    )

    it.effect("a full pool does not keep the others waiting while the minimum cannot be opened", () =>
      behindProxy(
        (proxy) =>
          Effect.gen(function* () {
            const pid = yield* processId
            yield* proxy.setDialDelay("1 hour")
            const before = (yield* proxy.connections).dialed
            yield* terminate(pid)
            yield* eventually(
              "one is lost, and its successor is being dialed",
              Effect.zipWith(
                stats,
                proxy.connections,
                ({ total }, { dialed }) => total === 2 && dialed > before
              )
            )
            yield* Effect.all([processId, processId], { concurrency: 2 })
          }),
        {
          minConnections: 3,
          maxConnections: 3,
          acquireTimeout: safetyNet("10 seconds"),
          connectTimeout: "1 hour"
        }
      )
    )
  })
})
