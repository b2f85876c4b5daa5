import { assert, describe, expect, inFull, it, layer } from "../support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Crypto from "node:crypto"
import * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as Migrator from "../../src/Migrator.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import * as Transaction from "../../src/Transaction.js"
import { eventually } from "../support/eventually.js"
import { loader } from "../support/migrations.js"
import { adminSession, emptyDatabase, serverUrl } from "../support/server.js"

const count = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<{ n: number }>`SELECT count(*)::int AS n FROM thing`, ([row]) => row?.n)
)

const insert = (id: number, parent: number | null = null) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql`INSERT INTO thing VALUES (${id}, ${parent})`)

/** A program as users write them: it knows nothing of the Layer that it runs on. */
const program = Effect.gen(function* () {
  const log: Array<string> = []
  yield* insert(1)
  yield* Transaction.run(
    Effect.gen(function* () {
      yield* insert(2)
      yield* Transaction.afterCommit(Effect.sync(() => log.push("after commit")))
      yield* Effect.ignore(Transaction.run(Effect.zipRight(insert(3), Effect.fail("undone"))))
    })
  )
  yield* Effect.ignore(Transaction.run(Effect.zipRight(insert(4), Effect.fail("undone too"))))
  const duplicate = yield* Effect.flip(insert(1))
  log.push(DatabaseError.reasonOf(duplicate)?._tag ?? "none")
  const unfit = yield* Effect.flip(Transaction.run(insert(5, 404)))
  log.push(`commit ${DatabaseError.reasonOf(unfit)?._tag}`)
  const lost = yield* Effect.flip(Transaction.run(Effect.zipRight(insert(6), Effect.ignore(insert(1)))))
  log.push(DatabaseError.reasonOf(lost)?._tag ?? "none")
  let tries = 0
  yield* Transaction.run(
    Effect.suspend(() => (++tries < 2 ? fails("40001") : Effect.void)),
    { retry: { base: "1 millis" } }
  )
  log.push(`tries ${tries}`)
  const sql = yield* SqlClient.SqlClient
  log.push(`streamed ${yield* Stream.runCount(sql`SELECT * FROM generate_series(1, 300)`.stream)}`)
  return { log, rows: yield* sql`SELECT id FROM thing ORDER BY id` }
})

const fails = (code: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.asVoid(sql.unsafe(`DO $$ BEGIN RAISE SQLSTATE '${code}'; END $$`))
  )

const expected = {
  log: [
    "after commit",
    "UniqueViolation",
    "commit ForeignKeyViolation",
    "TransactionRolledBack",
    "tries 2",
    "streamed 300"
  ],
  rows: [{ id: 1 }, { id: 2 }]
}

const table = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    sql`CREATE TABLE thing (id int PRIMARY KEY, parent int REFERENCES thing DEFERRABLE INITIALLY DEFERRED)`
)

describe("TestDatabase.layer", () => {
  it.live("is a migrated database of its own", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      assert.deepStrictEqual(yield* sql`SELECT migration_id FROM effect_sql_migrations ORDER BY 1`, [
        { migration_id: 1 },
        { migration_id: 2 }
      ])
      yield* sql`CREATE TABLE only_here ()`
      const elsewhere = yield* Effect.flatMap(
        SqlClient.SqlClient,
        (other) => other`SELECT to_regclass('only_here') AS found`
      ).pipe(Effect.provide(TestDatabase.layer({ loader })))
      assert.deepStrictEqual(elsewhere, [{ found: null }])
    }).pipe(Effect.provide(TestDatabase.layer({ loader })))
  )

  it.scopedLive("drops the databases of runs that were killed, and none that is in use", () =>
    Effect.gen(function* () {
      const admin = yield* adminSession()
      const name = `promptgrimoire_test_${"0".repeat(32)}`
      yield* admin.query(`CREATE DATABASE ${name}`)
      const exists = Effect.map(
        admin.query("SELECT 1 FROM pg_database WHERE datname = $1", [name]),
        (rows) => rows.length === 1
      )
      const mine = yield* TestDatabase.make()
      yield* eventually("the end of the leftover", Effect.negate(exists))
      yield* Effect.provide(Effect.void, Database.layer({ url: mine, minConnections: 1 }))
    })
  )

  it.live("has what the migrations say now, also when they do not say that they changed", () =>
    Effect.gen(function* () {
      const columns = (column: string, version?: string) =>
        Effect.flatMap(
          SqlClient.SqlClient,
          (sql) => sql<{ name: string }>`
            SELECT attname AS name FROM pg_attribute WHERE attrelid = 'thing'::regclass AND attnum > 0
          `
        ).pipe(
          Effect.provide(
            TestDatabase.layer({
              loader: Migrator.fromRecord(
                {
                  "0001_thing": Effect.flatMap(
                    SqlClient.SqlClient,
                    (sql) => sql`CREATE TABLE thing (${sql(column)} int)`
                  )
                },
                { version }
              )
            })
          ),
          Effect.map((rows) => rows.map(({ name }) => name))
        )
      assert.deepStrictEqual(yield* columns("before"), ["before"])
      assert.deepStrictEqual(yield* columns("after"), ["after"])
      assert.deepStrictEqual(yield* columns("kept", "1"), ["kept"])
      assert.deepStrictEqual(yield* columns("not_run", "1"), ["kept"])
      assert.deepStrictEqual(yield* columns("next", "2"), ["next"])
    })
  )

  it.scopedLive("drops the database once its scope is closed, whoever is still connected to it", () =>
    Effect.gen(function* () {
      const admin = yield* adminSession()
      const scope = yield* Scope.make()
      const url = yield* Scope.extend(TestDatabase.make({ loader }), scope)
      const name = new URL(Redacted.value(url)).pathname.slice(1)
      const found = Effect.map(
        admin.query("SELECT 1 FROM pg_database WHERE datname = $1", [name]),
        (rows) => rows.length === 1
      )
      yield* Database.layer({ url, minConnections: 2 }).pipe(Layer.build)
      assert.isTrue(yield* found)
      yield* Scope.close(scope, Exit.void)
      yield* eventually("the end of the database", Effect.negate(found))
      const sessions = admin.query(
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND objid = (hashtextextended($1, 0) & 4294967295)::oid",
        [name]
      )
      yield* eventually(
        "the end of the session that held its lock",
        Effect.map(sessions, (rows) => rows.length === 0)
      )
    })
  )

  it.scopedLive("keeps a database when asked to, and says how to connect without telling the password", () =>
    Effect.gen(function* () {
      const records: Array<string> = []
      const logger = Logger.make(({ message }) => void records.push(String(message)))
      yield* Effect.scoped(TestDatabase.make()).pipe(
        Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
        Effect.withConfigProvider(
          ConfigProvider.fromMap(
            new Map([
              ["TEST_DATABASE_URL", serverUrl()],
              ["KEEP_TEST_DATABASE", "1"]
            ])
          )
        )
      )
      const [, kept] = /(promptgrimoire_kept_[0-9a-f]{32})/.exec(records.join("\n")) ?? []
      assert.isDefined(kept)
      const { password } = new URL(serverUrl())
      assert.notInclude(records.join("\n"), password === "" ? "no password" : password)
      const admin = yield* adminSession()
      yield* admin.query(`DROP DATABASE ${kept}`)
    })
  )

  it.effect("says that it cannot keep a database on a server that ends with the tests", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Effect.scoped(TestDatabase.make()))
      assert.strictEqual(error._tag, "CannotKeep")
      assert.include(error.message, "DATABASE_URL")
    }).pipe(Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["KEEP_TEST_DATABASE", "1"]]))))
  )

  it.scopedLive("leaves a database alone that a run on another database of the server uses", () =>
    Effect.gen(function* () {
      const elsewhere = yield* emptyDatabase
      const admin = yield* adminSession()
      const nameOf = (url: Redacted.Redacted) => new URL(Redacted.value(url)).pathname.slice(1)
      // Nobody is connected to it: only its lock, which is one of another database, tells that it
      // is used.
      const theirs = yield* TestDatabase.make({ loader }).pipe(
        Effect.withConfigProvider(
          ConfigProvider.fromMap(new Map([["TEST_DATABASE_URL", Redacted.value(elsewhere.url)]]))
        )
      )
      const abandoned = `promptgrimoire_test_${"1".repeat(32)}`
      yield* admin.query(`CREATE DATABASE ${abandoned}`)
      const names = Effect.map(admin.query<{ datname: string }>("SELECT datname FROM pg_database"), (rows) =>
        rows.map(({ datname }) => datname)
      )
      yield* TestDatabase.make({ loader })
      yield* eventually(
        "the end of the abandoned one",
        Effect.map(names, (found) => !found.includes(abandoned))
      )
      assert.include(yield* names, nameOf(theirs))
    })
  )

  it.scopedLive("makes one template, also for runs that are connected to different databases", () =>
    Effect.gen(function* () {
      const version = Crypto.randomUUID()
      const migrations = Migrator.fromRecord(
        {
          "0001_thing": Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`CREATE TABLE thing (made text DEFAULT ${sql.literal(`'${version}'`)})`
          )
        },
        { version }
      )
      const servers = [serverUrl(), Redacted.value((yield* emptyDatabase).url), serverUrl()]
      const made = yield* Effect.forEach(
        servers,
        (url) =>
          TestDatabase.make({ loader: migrations }).pipe(
            Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["TEST_DATABASE_URL", url]])))
          ),
        { concurrency: "unbounded" }
      )
      for (const url of made) {
        yield* Effect.flatMap(SqlClient.SqlClient, (sql) => sql`INSERT INTO thing DEFAULT VALUES`).pipe(
          Effect.provide(Database.layer({ url, minConnections: 1 }))
        )
      }
    })
  )

  it.scopedLive("takes the url of a socket, and shows no password of a url that it cannot read", () =>
    Effect.gen(function* () {
      const admin = yield* adminSession()
      const [row] = yield* admin.query<{ directories: string }>(
        "SELECT current_setting('unix_socket_directories') AS directories"
      )
      const directory = row?.directories.split(",")[0] ?? ""
      const { password, port, username } = new URL(serverUrl())
      const through = (url: string) =>
        TestDatabase.make().pipe(
          Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["TEST_DATABASE_URL", url]])))
        )
      if (directory !== "") {
        const made = yield* through(
          `postgresql://${username}:${password}@:${port}/postgres?host=${encodeURIComponent(directory)}`
        )
        yield* Effect.provide(Effect.void, Database.layer({ url: made, minConnections: 1 }))
      }
      const cause = yield* Effect.sandbox(through("postgresql://user:s3cret@[/postgres")).pipe(Effect.flip)
      assert.strictEqual(Cause.failures(cause).pipe(Chunk.toReadonlyArray)[0]?._tag, "InvalidSettings")
      assert.notInclude(Cause.pretty(cause), "s3cret")
    })
  )

  it.live("runs a program as production would", () =>
    Effect.gen(function* () {
      yield* table
      assert.deepStrictEqual(yield* program, expected)
    }).pipe(Effect.provide(TestDatabase.layer()))
  )
})

layer(TestDatabase.layer(), { excludeTestServices: true })("TestDatabase.rollback", (it) => {
  it.effect("runs the same program, with the same result", () =>
    Effect.gen(function* () {
      yield* table
      yield* Effect.gen(function* () {
        const { captured, run } = yield* TestDatabase.AfterCommit
        const { log, rows } = yield* program
        assert.deepStrictEqual({ log, rows }, { ...expected, log: expected.log.slice(1) })
        assert.strictEqual((yield* captured).length, 1)
        assert.strictEqual(yield* run, 1)
        assert.deepStrictEqual(log, [...expected.log.slice(1), "after commit"])
        assert.strictEqual(yield* run, 0)
      }).pipe(Effect.provide(TestDatabase.rollback))
      assert.strictEqual(yield* count, 0)
    })
  )

  it.effect("captures what waits for a commit that came, in order, and runs it outside the transaction", () =>
    Effect.gen(function* () {
      const ran: Array<string> = []
      const note = (name: string) => Transaction.afterCommit(Effect.sync(() => ran.push(name)))
      const { captured, run } = yield* TestDatabase.AfterCommit
      yield* Transaction.run(
        Effect.all([
          note("first"),
          Effect.ignore(Transaction.run(Effect.zipRight(note("dropped"), Effect.fail("no")))),
          Transaction.run(note("second"))
        ])
      )
      yield* Effect.ignore(Transaction.run(Effect.zipRight(note("dropped"), Effect.fail("no"))))
      yield* note("outside")
      yield* Transaction.run(
        Transaction.afterCommit(Transaction.run(Effect.zipRight(insert(50), insert(51))))
      )
      assert.deepStrictEqual(ran, [])
      assert.strictEqual((yield* captured).length, 4)
      assert.strictEqual(yield* run, 4)
      assert.deepStrictEqual(ran, ["first", "second", "outside"])
      assert.strictEqual(yield* count, 2)
      yield* Transaction.run(Transaction.afterCommit(Effect.fail("cannot be sent")))
      assert.strictEqual(yield* Effect.flip(run), "cannot be sent")
    }).pipe(Effect.provide(TestDatabase.rollback))
  )

  for (const test of [1, 2, 3]) {
    it.effect(`leaves nothing behind for the next test (${test})`, () =>
      Effect.gen(function* () {
        assert.strictEqual(yield* count, 0)
        yield* Effect.forEach([1, 2, 3], (id) => Transaction.run(insert(id)), { concurrency: "unbounded" })
        assert.strictEqual(yield* count, 3)
      }).pipe(Effect.provide(TestDatabase.rollback))
    )
  }

  it.effect("takes back with a transaction what was set for it", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const settings = sql`
        SELECT current_setting('statement_timeout') AS statement_timeout, current_setting('lock_timeout') AS lock_timeout,
          current_setting('timezone') AS timezone, current_setting('work_mem') AS work_mem, current_setting('role') AS role,
          coalesce(current_setting('test.tenant', true), '') AS tenant
      `
      const before = yield* settings
      const inside = yield* Transaction.run(
        Effect.gen(function* () {
          yield* sql`SELECT set_config('test.tenant', ${"7"}, true)`
          yield* sql`SELECT set_config(${"work_mem"}, '1MB', true)`
          yield* sql`SET LOCAL ROLE pg_monitor`
          yield* sql`SET LOCAL TIME ZONE 'Asia/Tokyo'`
          yield* Transaction.run(Effect.void, { lockTimeout: "7 seconds" })
          return yield* settings
        }),
        { statementTimeout: "100 millis" }
      )
      assert.deepInclude(inside[0], {
        statement_timeout: "100ms",
        timezone: "Asia/Tokyo",
        work_mem: "1MB",
        role: "pg_monitor",
        tenant: "7"
      })
      assert.deepStrictEqual(yield* settings, before)
      yield* sql`SELECT set_config('test.tenant', '8', true)`
      assert.deepStrictEqual(yield* settings, before)
    }).pipe(Effect.provide(TestDatabase.rollback))
  )

  it.effect(
    "waits for its one connection as long as settings say, and not for one that the caller holds",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const perRow = sql`SELECT n FROM generate_series(1, 3) AS n`.stream.pipe(
          Stream.mapEffect(() => sql`SELECT 1`),
          Stream.runDrain
        )
        const late = yield* Effect.flip(perRow)
        assert.strictEqual(DatabaseError.reasonOf(late)?._tag, "AcquireTimeout")
        const second = yield* Effect.flip(Transaction.run(Effect.scoped(sql.reserve)))
        assert.strictEqual(DatabaseError.reasonOf(second)?._tag, "InvalidRequest")
        assert.include(second.message, "TestDatabase.layer")
      }).pipe(
        Effect.provide(TestDatabase.rollback),
        Effect.provide(TestDatabase.layer({ settings: { acquireTimeout: "200 millis" } }))
      )
  )

  it.effect("lets a program use constraints that share their name with one that cannot be deferred", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE one (id int CONSTRAINT same UNIQUE DEFERRABLE INITIALLY DEFERRED)`
      yield* sql`CREATE TABLE other (id int CONSTRAINT same CHECK (id > 0))`
      yield* sql`INSERT INTO one VALUES (1)`
      yield* sql`DROP TABLE one`
      yield* sql`INSERT INTO other VALUES (1)`
    }).pipe(Effect.provide(TestDatabase.rollback))
  )

  it.effect("lets a program use an initially deferred constraint in every one of its transactions", () =>
    Effect.gen(function* () {
      for (const id of [10, 20]) {
        yield* Transaction.run(Effect.zipRight(insert(id, id + 1), insert(id + 1)))
      }
      assert.strictEqual(yield* count, 4)
    }).pipe(Effect.provide(TestDatabase.rollback))
  )
})

layer(TestDatabase.layer(), { excludeTestServices: true })("TestDatabase.failing", (it) => {
  const reason = <A, E>(
    effect: Effect.Effect<A, E, Database.Provided>,
    points: ReadonlyArray<TestDatabase.FaultPoint>
  ) =>
    Effect.map(
      Effect.exit(Effect.provide(effect, TestDatabase.failing(points))),
      Exit.match({
        onFailure: (cause) => DatabaseError.reasonOf(Cause.squash(cause))?._tag ?? Cause.squash(cause),
        onSuccess: () => "success"
      })
    )

  it.effect("fails, dies, waits or is cut where it was told to, on a real server", () =>
    Effect.gen(function* () {
      yield* table
      const fail = (code: string) => ({ _tag: "Fail", code }) as const
      const body = Transaction.run(insert(1))
      assert.strictEqual(yield* reason(body, [{ at: "BEGIN", fault: fail("53300") }]), "TooManyConnections")
      assert.strictEqual(
        yield* reason(body, [{ at: "INSERT INTO thing", fault: fail("23505") }]),
        "UniqueViolation"
      )
      assert.strictEqual(
        yield* reason(body, [{ at: "COMMIT", fault: fail("40001") }]),
        "SerializationFailure"
      )
      assert.strictEqual(yield* count, 0)
      assert.strictEqual(
        yield* reason(body, [{ at: "COMMIT", fault: { _tag: "Cut", when: "before" } }]),
        "ConnectionLost"
      )
      assert.strictEqual(yield* count, 0)
      assert.strictEqual(
        yield* reason(body, [{ at: "COMMIT", fault: { _tag: "Cut", when: "after" } }]),
        "CommitOutcomeUnknown"
      )
      assert.strictEqual(yield* count, 1)
      const defect = new Error("a defect of the test")
      assert.strictEqual(yield* reason(count, [{ at: /count/, fault: { _tag: "Die", defect } }]), defect)
      let waited = false
      const until = Effect.sync(() => {
        waited = true
      })
      assert.strictEqual(yield* reason(count, [{ at: /count/, fault: { _tag: "Delay", until } }]), "success")
      expect(waited).toBe(true)
    })
  )

  it.effect("keeps the body's error when ROLLBACK is cut, and fails the chosen occurrence only", () =>
    Effect.gen(function* () {
      const failed = Transaction.run(Effect.zipRight(insert(7), Effect.fail("mine")))
      assert.strictEqual(
        yield* reason(failed, [{ at: "ROLLBACK", fault: { _tag: "Cut", when: "before" } }]),
        "mine"
      )
      const twice = Effect.zipRight(Effect.ignore(insert(8)), insert(9))
      assert.strictEqual(
        yield* reason(twice, [{ at: "INSERT", occurrence: 2, fault: { _tag: "Fail", code: "23514" } }]),
        "CheckViolation"
      )
    })
  )

  it.effect("counts a statement at every point that means it, also for patterns that keep their place", () =>
    Effect.gen(function* () {
      const at = /INSERT/g
      const points: ReadonlyArray<TestDatabase.FaultPoint> = [
        { at, fault: { _tag: "Fail", code: "23514" } },
        { at, occurrence: 2, fault: { _tag: "Fail", code: "23502" } },
        { at, occurrence: 3, fault: { _tag: "Fail", code: "23503" } }
      ]
      const tag = (id: number) =>
        Effect.map(Effect.flip(insert(id)), (error) => DatabaseError.reasonOf(error)?._tag)
      assert.deepStrictEqual(
        yield* Effect.all([tag(100), tag(101), tag(102)]).pipe(Effect.provide(TestDatabase.failing(points))),
        ["CheckViolation", "NotNullViolation", "ForeignKeyViolation"]
      )
    })
  )

  it.effect("fails, dies, waits or is cut in a stream, too", () =>
    Effect.gen(function* () {
      const rows = Effect.flatMap(SqlClient.SqlClient, (sql) =>
        Stream.runCount(sql`SELECT n FROM generate_series(1, 300) AS n`.stream)
      )
      const at = "generate_series"
      const defect = new Error("a defect of the test")
      let waited = 0
      const until = Effect.sync(() => waited++)
      assert.strictEqual(
        yield* reason(rows, [{ at, fault: { _tag: "Fail", code: "22012" } }]),
        "DataException"
      )
      assert.strictEqual(yield* reason(rows, [{ at, fault: { _tag: "Die", defect } }]), defect)
      assert.strictEqual(yield* reason(rows, [{ at, fault: { _tag: "Delay", until } }]), "success")
      assert.strictEqual(waited, 1)
      for (const when of ["before", "after"] as const) {
        assert.strictEqual(yield* reason(rows, [{ at, fault: { _tag: "Cut", when } }]), "ConnectionLost")
      }
    })
  )

  it.effect("without a point is the database as it is", () =>
    Effect.gen(function* () {
      yield* table
      assert.deepStrictEqual(yield* Effect.provide(program, TestDatabase.failing([])), expected)
    }).pipe(Effect.provide(TestDatabase.layer()))
  )
})

layer(
  TestDatabase.layer({
    settings: {
      statementTimeout: "100 millis",
      lockTimeout: "50 millis",
      minConnections: 0,
      maxConnections: 3
    }
  }),
  { excludeTestServices: true }
)("A transaction with a longer limit than its settings", (it) => {
  inFull(it).effect("is waited for under every test Layer", () => {
    const long = Transaction.run(
      Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT pg_sleep(5.5)`),
      { statementTimeout: "1 minute" }
    )
    return Effect.all(
      [long, Effect.provide(long, TestDatabase.failing([])), Effect.provide(long, TestDatabase.rollback)],
      { concurrency: "unbounded" }
    )
  })
})
