import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, inFull, it, layer } from "./support/it.js"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Either from "effect/Either"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as fs from "node:fs"
import * as Net from "node:net"
import * as path from "node:path"
import * as util from "node:util"
import * as Database from "../src/Database.js"
import type { Settings } from "../src/DatabaseConfig.js"
import { DatabaseError } from "../src/DatabaseError.js"
import * as Transaction from "../src/Transaction.js"
import { TestServer, databaseLayer, processId, show } from "./support/database.js"
import { type LogRecord, recordLogs } from "./support/logs.js"
import { within } from "./support/within.js"
import { safetyNet } from "./support/speed.js"
import { eventually } from "./support/eventually.js"
import * as Proxy from "./support/Proxy.js"
import { emptyDatabase } from "./support/server.js"

const silent = Logger.remove(Logger.defaultLogger)

/** The backends of a Layer with this application name, as the server counts them. */
const backends = (applicationName: string) =>
  Effect.flatMap(TestServer, ({ admin }) =>
    Effect.map(
      admin.query<{ pid: number }>(
        "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid",
        [applicationName]
      ),
      (rows) => rows.map(({ pid }) => pid)
    )
  )

const sleep = (seconds: number) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT pg_sleep(${seconds})`)

layer(Layer.merge(TestServer.layer, silent), { excludeTestServices: true })("Database.layer", (it) => {
  it.effect(
    "with a transaction pooler and no directUrl is built, and what needs a session is refused at once",
    () =>
      Effect.gen(function* () {
        assert.strictEqual(yield* processId.pipe(Effect.map((pid) => pid > 0)), true)
        const refused = yield* Effect.flip(Effect.scoped(Layer.build(Database.layerSession)))
        assert.deepStrictEqual(refused.reason, { _tag: "SessionUnavailable" })
        assert.include(refused.message, "set directUrl (DATABASE_DIRECT_URL)")
      }).pipe(Effect.provide(databaseLayer({ pooler: "transaction", directUrl: undefined })))
  )

  it.effect("takes settings that Config reads, as its namesake of the stock client does", () =>
    Effect.gen(function* () {
      const { url } = yield* TestServer
      const configured = Database.layerConfig({
        url: Config.redacted("PRIMARY_URL"),
        maxConnections: Config.integer("POOL_SIZE"),
        minConnections: Config.succeed(0),
        idleTimeout: Config.duration("IDLE").pipe(Config.withDefault(Duration.minutes(1)))
      })
      const stats = Effect.flatMap(Database.Database, ({ stats }) => stats)
      const given = (entries: ReadonlyArray<readonly [string, string]>) =>
        Effect.provide(stats, configured).pipe(
          Effect.withConfigProvider(ConfigProvider.fromMap(new Map(entries))),
          Effect.either
        )
      const right = yield* given([
        ["PRIMARY_URL", Redacted.value(url)],
        ["POOL_SIZE", "3"]
      ])
      assert.deepInclude(Either.getOrThrow(right), { total: 1, max: 3 })
      const missing = yield* given([["POOL_SIZE", "3"]])
      assert.include(JSON.stringify(Either.getOrThrow(Either.flip(missing))), "PRIMARY_URL")
      const wrong = yield* given([
        ["PRIMARY_URL", Redacted.value(url)],
        ["POOL_SIZE", "0"]
      ])
      assert.include(Either.getOrThrow(Either.flip(wrong)), { _tag: "InvalidSettings" })
    })
  )

  it.effect("opens sessions over directUrl, and says when it is built that they can be had", () =>
    Effect.gen(function* () {
      const { url } = yield* TestServer
      yield* Effect.scoped(Layer.build(Database.layerSession)).pipe(
        Effect.provide(databaseLayer({ pooler: "transaction", directUrl: url }))
      )
      const nowhere = new URL(Redacted.value(url))
      nowhere.port = "1"
      const error = yield* Effect.flip(
        Effect.scoped(Layer.build(Database.layerSession)).pipe(
          Effect.provide(databaseLayer({ pooler: "transaction", directUrl: nowhere.toString() }))
        )
      )
      assert.strictEqual(error._tag === "SqlError" && error.reason._tag, "ConnectFailed")
    })
  )

  describe("puts its settings into effect on the server:", () => {
    const limits = Effect.all([
      show("statement_timeout"),
      show("lock_timeout"),
      show("idle_in_transaction_session_timeout"),
      show("application_name")
    ])

    it.effect("the default limits", () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* limits, ["30s", "5s", "1min", "promptgrimoire-db"])
      }).pipe(Effect.provide(databaseLayer()))
    )

    it.effect("other limits, and none", () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* limits, ["1500ms", "0", "0", "a name, with a space"])
      }).pipe(
        Effect.provide(
          databaseLayer({
            statementTimeout: "1500 millis",
            lockTimeout: "off",
            idleInTransactionTimeout: Duration.infinity,
            applicationName: "a name, with a space"
          })
        )
      )
    )

    it.effect(
      "a statement that runs for too long ends with StatementTimeout, one that waits with LockTimeout",
      () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const slow = yield* Effect.flip(sql`SELECT pg_sleep(10)`)
          assert.deepInclude((slow as DatabaseError).reason, { _tag: "StatementTimeout", code: "57014" })
          yield* sql`CREATE TABLE locked ()`
          const { admin } = yield* TestServer
          yield* admin.query("BEGIN; LOCK TABLE locked")
          const waited = yield* Effect.flip(sql`SELECT FROM locked`)
          yield* admin.query("ROLLBACK")
          assert.deepInclude((waited as DatabaseError).reason, { _tag: "LockTimeout", code: "55P03" })
        }).pipe(Effect.provide(databaseLayer({ statementTimeout: "300 millis", lockTimeout: "100 millis" })))
    )

    it.effect("a body that idles for too long loses its transaction, and is told why", () =>
      Effect.gen(function* () {
        const { admin } = yield* TestServer
        const error = yield* Effect.gen(function* () {
          const pid = yield* processId
          yield* eventually(
            "the server has ended the session",
            Effect.map(
              admin.query("SELECT FROM pg_stat_activity WHERE pid = $1", [pid]),
              (rows) => rows.length === 0
            )
          )
          yield* processId
        }).pipe(Transaction.run(), Effect.flip)
        assert.strictEqual((error as DatabaseError).reason._tag, "IdleInTransactionTimeout")
        yield* processId
      }).pipe(Effect.provide(databaseLayer({ idleInTransactionTimeout: "100 millis", maxConnections: 1 })))
    )
  })

  describe("keeps as many connections as it should:", () => {
    it.effect("the minimum from the start, and until its end", () =>
      Effect.gen(function* () {
        yield* Effect.gen(function* () {
          assert.strictEqual((yield* backends("minimum")).length, 3)
          const [pid] = yield* backends("minimum")
          const { admin } = yield* TestServer
          yield* admin.query("SELECT pg_terminate_backend($1)", [pid])
          yield* eventually(
            "the lost one is replaced",
            Effect.map(backends("minimum"), (pids) => pids.length === 3 && !pids.includes(Number(pid)))
          )
        }).pipe(Effect.provide(databaseLayer({ minConnections: 3, applicationName: "minimum" })))
        assert.deepStrictEqual(yield* backends("minimum"), [])
      })
    )

    it.effect("never more than the maximum", () =>
      Effect.gen(function* () {
        const { stats } = yield* Database.Database
        let most = 0
        const watch = Effect.forever(
          Effect.map(backends("maximum"), (pids) => {
            most = Math.max(most, pids.length)
          })
        )
        const work = Effect.all(
          Array.from({ length: 200 }, () => sleep(0.005)),
          { concurrency: "unbounded" }
        )
        yield* Effect.raceFirst(watch, work)
        assert.strictEqual(most, 4)
        assert.deepStrictEqual(yield* stats, { total: 4, idle: 4, busy: 0, waiting: 0, max: 4 })
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 4, applicationName: "maximum" })))
    )

    it.effect("those above the minimum until they were idle for the idle timeout", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const enough = yield* Deferred.make<void>()
        const hold = Effect.scoped(Effect.zipRight(sql.reserve, Deferred.await(enough)))
        const holders = yield* Effect.fork(
          Effect.all(
            Array.from({ length: 5 }, () => hold),
            { concurrency: "unbounded" }
          )
        )
        yield* eventually(
          "there are five",
          Effect.map(backends("idle"), (pids) => pids.length === 5)
        )
        yield* Deferred.succeed(enough, undefined)
        yield* Fiber.join(holders)
        yield* eventually(
          "two are left",
          Effect.map(backends("idle"), (pids) => pids.length === 2)
        )
        const kept = yield* backends("idle")
        yield* Effect.sleep("1500 millis")
        assert.deepStrictEqual(yield* backends("idle"), kept)
      }).pipe(
        Effect.provide(
          databaseLayer({ minConnections: 2, idleTimeout: "200 millis", applicationName: "idle" })
        )
      )
    )

    it.effect("none beyond its lifetime, while the database answers", () =>
      Effect.gen(function* () {
        const first = yield* backends("recycle")
        const work = yield* Effect.fork(Effect.forever(processId))
        yield* eventually(
          "all are new",
          Effect.map(
            backends("recycle"),
            (pids) => pids.length === 2 && pids.every((pid) => !first.includes(pid))
          )
        )
        assert.isTrue((yield* Fiber.poll(work))._tag === "None", "no statement failed")
        yield* Fiber.interrupt(work)
      }).pipe(
        Effect.provide(
          databaseLayer({
            minConnections: 2,
            maxConnections: 2,
            idleTimeout: "1 second",
            connectionTTL: "1 second",
            applicationName: "recycle"
          })
        )
      )
    )

    inFull(it).effect("none that does not answer: it is asked before it is lent", () =>
      Effect.scoped(
        Effect.gen(function* () {
          const { admin, url } = yield* TestServer
          const proxy = yield* Proxy.make(url)
          const lend = (validateAfterIdle: Settings["validateAfterIdle"], patience: Duration.DurationInput) =>
            Effect.gen(function* () {
              yield* processId
              yield* proxy.freeze
              return yield* Effect.timeoutOption(processId, patience)
            }).pipe(
              Effect.provide(
                Database.layer({ url: proxy.url, minConnections: 0, maxConnections: 1, validateAfterIdle })
              )
            )
          const answered = yield* within(
            2000,
            admin.query("SELECT 1")
          )(lend(Duration.zero, safetyNet("20 seconds")))
          assert.isTrue(answered._tag === "Some")
          const unasked = yield* lend("off", "3 seconds")
          assert.isTrue(unasked._tag === "None")
        })
      )
    )
  })

  describe("echo", () => {
    it.effect("logs each statement at DEBUG, and never a parameter", () =>
      Effect.gen(function* () {
        const records: Array<LogRecord> = []
        yield* Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* sql`SELECT ${"sesame"}::text AS word`
          yield* Transaction.run(sql`SELECT ${"sesame"}::varchar AS word`)
          yield* Stream.runDrain(sql`SELECT ${"sesame"}::bpchar AS word`.stream)
        }).pipe(Effect.provide(databaseLayer({ echo: true })), Effect.provide(recordLogs(records)))
        const texts = records
          .filter(({ level }) => level === "DEBUG")
          // Behind a pooler the limits follow.
          .map(({ message }) => message.replace(/^BEGIN;.*$/, "BEGIN"))
        assert.includeMembers(texts, [
          "SELECT $1::text AS word",
          "BEGIN",
          "SELECT $1::varchar AS word",
          "COMMIT",
          "SELECT $1::bpchar AS word"
        ])
        assert.notInclude(JSON.stringify(records), "sesame")
      })
    )
  })

  describe("provides services that", () => {
    it.effect("are the same object for everybody under one Layer", () =>
      Effect.gen(function* () {
        assert.strictEqual(yield* Database.Database, yield* Database.Database)
        assert.strictEqual(
          Context.unsafeGet(yield* Effect.context<SqlClient.SqlClient>(), SqlClient.SqlClient),
          yield* PgClient.PgClient
        )
      }).pipe(Effect.provide(databaseLayer()))
    )

    it.effect("nobody has without a Layer", () =>
      Effect.gen(function* () {
        // A missing Layer is an error of the compiler; whoever talks it out of that gets a defect.
        const nothing = Context.empty() as Context.Context<Database.Database>
        const without = Effect.provide(Transaction.run(Effect.void), nothing)
        const exit = yield* Effect.exit(without)
        assert.match(
          Exit.isFailure(exit) ? Cause.pretty(exit.cause) : "",
          /Service not found: promptgrimoire-db\/Database/
        )
      })
    )

    it.effect("show their limits, and no password", () =>
      Effect.gen(function* () {
        const { config } = yield* PgClient.PgClient
        assert.include(config, { minConnections: 1, maxConnections: 7, applicationName: "shown" })
        assert.strictEqual(Duration.toMillis(config.connectTimeout ?? 0), 10_000)
        assert.strictEqual(Duration.toMillis(config.idleTimeout ?? 0), 600_000)
        assert.strictEqual(Duration.toMillis(config.connectionTTL ?? 0), 3_600_000)
        const database = yield* Database.Database
        const { url } = yield* TestServer
        const password = new URL(Redacted.value(url)).password
        const everything = [config, database.config].map(
          (value) => util.inspect(value, { depth: 10, showHidden: true }) + JSON.stringify(value)
        )
        assert.isAbove(password.length, 10)
        assert.notInclude(everything.join("\n"), password)
      }).pipe(
        Effect.provide(databaseLayer({ minConnections: 1, maxConnections: 7, applicationName: "shown" }))
      )
    )
  })

  describe("of which there are two", () => {
    const build = (settings: Settings) =>
      Layer.build(Layer.fresh(Database.layer({ minConnections: 0, maxConnections: 2, ...settings })))

    it.scoped("never mixes transactions: each statement runs on the client that it was written on", () =>
      Effect.gen(function* () {
        const { url } = yield* TestServer
        const other = yield* emptyDatabase
        const first = yield* build({ url })
        for (const second of [yield* build({ url }), yield* build({ url: other.url })]) {
          const [a, b] = [first, second].map((context) => Context.get(context, SqlClient.SqlClient))
          if (a === undefined || b === undefined) throw new Error("two clients were built")
          yield* a`CREATE TABLE IF NOT EXISTS mixed (id int)`
          yield* b`CREATE TABLE IF NOT EXISTS mixed (id int)`
          yield* a`INSERT INTO mixed VALUES (1)`
          const pid = (sql: SqlClient.SqlClient) =>
            Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => row?.pid)
          const body = Effect.gen(function* () {
            yield* a`DELETE FROM mixed`
            assert.notStrictEqual(yield* pid(a), yield* pid(b))
            yield* b.withTransaction(b`INSERT INTO mixed VALUES (2)`)
            return yield* Effect.fail("roll a back")
          })
          yield* Effect.exit(a.withTransaction(body))
          assert.deepStrictEqual(yield* a`SELECT id FROM mixed WHERE id = 1 LIMIT 1`, [{ id: 1 }])
          assert.deepStrictEqual(yield* b`SELECT id FROM mixed WHERE id = 2 LIMIT 1`, [{ id: 2 }])
        }
      })
    )
  })

  describe("when a session's body fails", () => {
    it.scoped("gives the same error to the caller, logs it, and rolls back exactly once", () =>
      Effect.gen(function* () {
        const { url } = yield* TestServer
        const proxy = yield* Proxy.make(url)
        const records: Array<LogRecord> = []
        const error = new Error("Test error")
        const failed = yield* Transaction.run(Effect.zipRight(processId, Effect.fail(error))).pipe(
          Effect.flip,
          Effect.provide(Database.layer({ url: proxy.url, minConnections: 0 })),
          Effect.provide(recordLogs(records))
        )
        assert.strictEqual(Cause.originalError(failed), error)
        const sent = (yield* proxy.trace).flatMap((message) =>
          Proxy.statement(/(?:)/)(message) ? (message.text.match(/BEGIN|COMMIT|ROLLBACK/g) ?? []) : []
        )
        assert.deepStrictEqual(sent, ["BEGIN", "ROLLBACK"])
        const record = records.find(({ level }) => level === "ERROR")
        assert.strictEqual(record?.message, "Database session error, rolling back transaction")
        assert.include(record?.details, "Test error")
      })
    )
  })

  describe("that closes", () => {
    const open = (settings: Partial<Settings>) =>
      Effect.gen(function* () {
        const { url } = yield* TestServer
        const scope = yield* Effect.scope
        return yield* Layer.buildWithScope(
          Layer.fresh(Database.layer({ url, minConnections: 0, ...settings })),
          scope
        )
      })

    it.effect("ends every connection, and fails what comes later as PoolClosed", () =>
      Effect.gen(function* () {
        const context = yield* Effect.scoped(
          Effect.tap(open({ minConnections: 3, applicationName: "closing" }), (context) =>
            Effect.provide(Effect.all([processId, processId], { concurrency: 2 }), context)
          )
        )
        assert.deepStrictEqual(yield* backends("closing"), [])
        const error = yield* Effect.flip(Effect.provide(processId, context))
        assert.strictEqual((error as DatabaseError).reason._tag, "PoolClosed")
      })
    )

    it.effect("fails who waits at once, lets who works finish, and cuts off who does not", () =>
      Effect.gen(function* () {
        const started = yield* Deferred.make<void>()
        const begin = Deferred.succeed(started, undefined)
        const fork = <A, E>(
          effect: Effect.Effect<A, E, Database.Provided>,
          context: Context.Context<Database.Provided>
        ) => Effect.forkDaemon(Effect.timed(Effect.either(Effect.provide(effect, context))))
        const fibers = yield* Effect.scoped(
          Effect.gen(function* () {
            const context = yield* open({ maxConnections: 2, applicationName: "cut off" })
            const finishing = yield* fork(Transaction.run(Effect.zipRight(begin, sleep(0.5))), context)
            yield* Deferred.await(started)
            const endless = yield* fork(sleep(60), context)
            yield* eventually(
              "both are busy",
              Effect.map(Context.get(context, Database.Database).stats, ({ busy }) => busy === 2)
            )
            const waiting = yield* fork(processId, context)
            yield* eventually(
              "one waits",
              Effect.map(Context.get(context, Database.Database).stats, (state) => state.waiting === 1)
            )
            return { finishing, endless, waiting }
          })
        )
        const [finished] = [yield* Fiber.join(fibers.finishing)]
        assert.strictEqual(finished[1]._tag, "Right")
        const [, waited] = yield* Fiber.join(fibers.waiting)
        assert.strictEqual(waited._tag === "Left" && (waited.left as DatabaseError).reason._tag, "PoolClosed")
        const [took, cut] = yield* Fiber.join(fibers.endless)
        assert.strictEqual(cut._tag, "Left")
        assert.isBelow(Duration.toMillis(took), 6000)
        yield* eventually(
          "nothing runs on the server",
          Effect.map(backends("cut off"), (pids) => pids.length === 0)
        )
      })
    )
  })

  describe("that cannot connect", () => {
    const secret = "s3cret-Passw0rd"

    /**
     * Builds a Layer that must fail, and looks for the password in everything that can be printed
     * of it.
     */
    const refusal = (change: (url: URL) => void, settings: Partial<Settings> = {}) =>
      Effect.gen(function* () {
        const { admin, url } = yield* TestServer
        const changed = new URL(Redacted.value(url))
        const realPassword = changed.password
        change(changed)
        const records: Array<LogRecord> = []
        const exit = yield* Layer.build(
          Database.layer({
            url: changed.toString(),
            connectTimeout: "1 second",
            minConnections: 2,
            ...settings
          })
        ).pipe(
          Effect.scoped,
          Effect.tapErrorCause((cause) => Effect.logError("failed", cause)),
          Effect.exit,
          within(2000, admin.query("SELECT 1")),
          Effect.provide(recordLogs(records))
        )
        if (Exit.isSuccess(exit)) return assert.fail("the Layer was built")
        const error = Cause.squash(exit.cause)
        const printed = [
          records,
          Cause.pretty(exit.cause),
          JSON.stringify(exit),
          JSON.stringify(error),
          String(error),
          util.inspect(exit, { depth: 20, showHidden: true }),
          util.inspect(error, { depth: 20, showHidden: true })
        ].map((value) => (typeof value === "string" ? value : util.inspect(value, { depth: 20 })))
        for (const password of [secret, realPassword]) assert.notInclude(printed.join("\n"), password)
        assert.instanceOf(error, DatabaseError)
        return error
      })

    /** A server that is none: does with its clients what it likes. */
    const otherServer = (serve: (socket: Net.Socket) => void) =>
      Effect.map(
        Effect.acquireRelease(
          Effect.async<{ readonly server: Net.Server; readonly sockets: Set<Net.Socket> }>((resume) => {
            const sockets = new Set<Net.Socket>()
            const server = Net.createServer((socket) => {
              sockets.add(socket.on("error", () => {}))
              serve(socket)
            })
            server.listen(0, "127.0.0.1", () => resume(Effect.succeed({ server, sockets })))
          }),
          ({ server, sockets }) =>
            Effect.sync(() => {
              server.close()
              for (const socket of sockets) socket.destroy()
            })
        ),
        ({ server }) => String((server.address() as Net.AddressInfo).port)
      )

    const problem = (error: DatabaseError) =>
      error.reason._tag === "ConnectFailed" ? error.reason.problem : error.reason._tag

    it.effect("says that the host is not found", () =>
      Effect.gen(function* () {
        const error = yield* refusal((url) => {
          url.hostname = "no-such-host.invalid"
        })
        assert.strictEqual(problem(error), "host not found")
        assert.include(error.message, "no-such-host.invalid")
      })
    )

    it.scoped("says that the port refuses", () =>
      Effect.gen(function* () {
        const port = yield* Effect.scoped(otherServer(() => {}))
        const error = yield* refusal((url) => {
          url.port = port
        })
        assert.strictEqual(problem(error), "refused")
        assert.include(error.message, `127.0.0.1:${port}`)
      })
    )

    it.effect("says that user and password are refused", () =>
      Effect.gen(function* () {
        const error = yield* refusal((url) => {
          url.password = secret
        })
        assert.strictEqual(problem(error), "AuthenticationFailed")
        assert.include(error.message, "28P01")
      })
    )

    it.effect("says that the url has no password where the server asks for one", () =>
      Effect.gen(function* () {
        const error = yield* refusal((url) => {
          url.password = ""
        })
        assert.strictEqual(problem(error), "no password given")
        assert.include(error.message, "The server asks for a password, and the url has none")
      })
    )

    it.effect("says that the database does not exist", () =>
      Effect.gen(function* () {
        const error = yield* refusal((url) => {
          url.pathname = "/no_such_database"
        })
        assert.strictEqual(problem(error), "DatabaseUnavailable")
        assert.include(error.message, "no_such_database")
      })
    )

    it.scoped("says that a silent server did not answer in time", () =>
      Effect.gen(function* () {
        const port = yield* otherServer(() => {})
        for (const sslmode of ["", "?sslmode=require"]) {
          const error = yield* refusal((url) => {
            url.port = port
            url.search = sslmode
          })
          assert.strictEqual(problem(error), "timeout")
        }
      })
    )

    it.scoped("says that what answers is not a PostgreSQL server", () =>
      Effect.gen(function* () {
        const banner = yield* otherServer((socket) => socket.write("SSH-2.0-OpenSSH_9.9\r\n"))
        const http = yield* otherServer((socket) =>
          socket.on("data", () => socket.write("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"))
        )
        for (const port of [banner, http]) {
          for (const sslmode of ["", "?sslmode=require"]) {
            const error = yield* refusal((url) => {
              url.port = port
              url.search = sslmode
            })
            assert.strictEqual(problem(error), "not a PostgreSQL server")
          }
        }
      })
    )

    it.scoped("says that the server closed the connection", () =>
      Effect.gen(function* () {
        const port = yield* otherServer((socket) => socket.on("data", () => socket.destroy()))
        const error = yield* refusal((url) => {
          url.port = port
        })
        assert.strictEqual(problem(error), "closed by the server")
      })
    )

    it.effect("says that the server offers no TLS", () =>
      Effect.gen(function* () {
        const error = yield* refusal((url) => {
          url.search = "?sslmode=require"
        })
        assert.strictEqual(problem(error), "TLS not offered by the server")
      })
    )

    it.effect("says so whatever the minimum is", () =>
      Effect.gen(function* () {
        const error = yield* refusal(
          (url) => {
            url.password = secret
          },
          { minConnections: 0 }
        )
        assert.strictEqual(problem(error), "AuthenticationFailed")
      })
    )
  })

  it.effect("builds and closes where nothing can be interrupted", () =>
    Effect.uninterruptible(
      Effect.gen(function* () {
        for (const minConnections of [0, 2]) {
          yield* Effect.provide(processId, databaseLayer({ minConnections }))
        }
      })
    )
  )
})

describe("The sources", () => {
  const files = fs
    .readdirSync(path.join(import.meta.dirname, "../src"), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))

  it("hold no module state", () => {
    assert.isAbove(files.length, 15)
    const offending = files.flatMap((file) =>
      fs
        .readFileSync(path.join(import.meta.dirname, "../src", file), "utf8")
        .split("\n")
        .filter((line) =>
          /^(export )?((let|var) |const \w+(: [^=]+)? = (new (Map|Set|WeakMap|WeakSet)(<.*>)?\(\)|\[\](?! as const)|\{\}))/.test(
            line
          )
        )
        .map((line) => `${file}: ${line}`)
    )
    assert.deepStrictEqual(offending, [])
  })
})
