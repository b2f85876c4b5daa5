import { assert, describe, inFull, it, layer } from "./support/it.js"
import * as StockMigrator from "@effect/sql-pg/PgMigrator"
import * as SqlClient from "@effect/sql/SqlClient"
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Database from "../src/Database.js"
import * as Migrator from "../src/Migrator.js"
import * as Migration from "../src/migrator/migration.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"

const run = (statement: string) => Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement))

const one = run("CREATE TABLE one (id int)")
const two = run("CREATE TABLE two (id int)")

const tables = Effect.map(
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => sql<{ name: string }>`
      SELECT relname AS name FROM pg_class
      WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE 'effect_sql%' ORDER BY 1
    `
  ),
  (rows) => rows.map(({ name }) => name)
)

const ids = (result: Migrator.Result) => result.applied.map(({ id }) => id)

/** Each test has a database of its own. */
const migrating = (name: string, test: Effect.Effect<unknown, unknown, Database.Provided>) =>
  it.live(name, () => Effect.provide(test, TestDatabase.layer()))

const refusal = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), (error) => {
    assert.instanceOf(error, Migrator.MigratorError)
    return error
  })

describe("Migrator.run", () => {
  migrating(
    "applies what is pending in the order of the ids, and nothing the second time",
    Effect.gen(function* () {
      const loader = Migrator.fromRecord({ "10_two": two, "9_one": run("CREATE TABLE one (id int)") })
      const first = yield* Migrator.run({ loader })
      assert.deepStrictEqual([ids(first), first.current], [[9, 10], 10])
      const second = yield* Migrator.run({ loader })
      assert.deepStrictEqual([ids(second), second.current], [[], 10])
      assert.deepStrictEqual(yield* tables, ["one", "two"])
    })
  )

  migrating(
    "refuses a migration below the latest that never ran, and touches nothing",
    Effect.gen(function* () {
      yield* Migrator.run({ loader: Migrator.fromRecord({ "1_one": one, "3_three": Effect.void }) })
      const error = yield* refusal(
        Migrator.run({
          loader: Migrator.fromRecord({
            "1_one": one,
            "2_late": two,
            "3_three": Effect.void,
            "4_four": run("CREATE TABLE four ()")
          })
        })
      )
      assert.deepStrictEqual([error.reason, error.id], ["OutOfOrder", 2])
      assert.deepStrictEqual(yield* tables, ["one"])
    })
  )

  migrating(
    "refuses two migrations of one id, naming both",
    Effect.gen(function* () {
      const error = yield* refusal(
        Migrator.run({ loader: Migrator.fromRecord({ "1_one": one, "01_other": two }) })
      )
      assert.strictEqual(error.reason, "Duplicate")
      assert.include(error.message, "one")
      assert.include(error.message, "other")
    })
  )

  migrating(
    "refuses a migration whose name is not the one that was applied, and one that the files do not have",
    Effect.gen(function* () {
      yield* Migrator.run({ loader: Migrator.fromRecord({ "1_one": one, "2_two": two }) })
      const renamed = yield* refusal(
        Migrator.run({ loader: Migrator.fromRecord({ "1_uno": one, "2_two": two }) })
      )
      assert.deepStrictEqual([renamed.reason, renamed.id], ["Edited", 1])
      const gone = yield* refusal(Migrator.run({ loader: Migrator.fromRecord({ "1_one": one }) }))
      assert.deepStrictEqual([gone.reason, gone.id], ["Unknown", 2])
    })
  )

  migrating(
    "fails with a typed error that keeps the cause, undoes the failed migration and keeps the ones before it",
    Effect.gen(function* () {
      const loader = Migrator.fromRecord({
        "1_one": one,
        "2_bad": Effect.zipRight(two, run("SELECT * FROM nowhere")),
        "3_three": run("CREATE TABLE three (id int)")
      })
      const error = yield* refusal(Migrator.run({ loader }))
      assert.deepStrictEqual([error.reason, error.id, error.name], ["Failed", 2, "bad"])
      assert.include(error.message, "nowhere")
      assert.deepStrictEqual(yield* tables, ["one"])
      assert.strictEqual((yield* Migrator.status({ loader })).current, 1)
    })
  )

  migrating(
    "reports a migration that dies, as the failure that it is",
    Effect.gen(function* () {
      const error = yield* refusal(
        Migrator.run({ loader: Migrator.fromRecord({ "1_one": Effect.zipRight(one, Effect.die("boom")) }) })
      )
      assert.deepStrictEqual([error.reason, error.id], ["Failed", 1])
      assert.deepStrictEqual(yield* tables, [])
    })
  )

  migrating(
    "runs each migration in a transaction of its own, so that the next one can use a new enum value",
    Effect.gen(function* () {
      const result = yield* Migrator.run({
        loader: Migrator.fromRecord({
          "1_enum": run("CREATE TYPE colour AS ENUM ('red')"),
          "2_value": run("ALTER TYPE colour ADD VALUE 'blue'"),
          "3_use": Effect.zipRight(
            run("CREATE TABLE paint (c colour)"),
            run("INSERT INTO paint VALUES ('blue')")
          )
        })
      })
      assert.deepStrictEqual(ids(result), [1, 2, 3])
    })
  )

  migrating(
    "never reports success when the ledger cannot be written",
    Effect.gen(function* () {
      const loader = Migrator.fromRecord({ "1_one": one })
      yield* Migrator.run({ loader: Migrator.fromRecord({}) })
      yield* run(`
        CREATE FUNCTION deny() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'denied' USING ERRCODE = '42501'; END $$
      `)
      yield* run(
        "CREATE TRIGGER deny BEFORE INSERT ON effect_sql_migrations FOR EACH ROW EXECUTE FUNCTION deny()"
      )
      const error = yield* refusal(Migrator.run({ loader }))
      assert.deepStrictEqual([error.reason, error.id], ["Failed", 1])
      assert.deepStrictEqual(yield* tables, [])
    })
  )

  migrating(
    "lets one of many migrators on a fresh database do the work, and the others find it done",
    Effect.gen(function* () {
      const loader = Migrator.fromRecord({ "1_one": one, "2_two": two })
      const results = yield* Effect.all(
        Array.from({ length: 5 }, () => Migrator.run({ loader })),
        {
          concurrency: "unbounded"
        }
      )
      assert.deepStrictEqual(
        results.map(ids).filter((applied) => applied.length > 0),
        [[1, 2]]
      )
      assert.isTrue(results.every(({ current }) => current === 2))
    })
  )

  migrating(
    "does not wait longer than it may for another migrator, and says who holds the lock",
    Effect.gen(function* () {
      const started = yield* Deferred.make<void>()
      const first = yield* Effect.fork(
        Migrator.run({
          loader: Migrator.fromRecord({
            "1_slow": Effect.zipRight(Deferred.succeed(started, undefined), Effect.never)
          })
        })
      )
      yield* Deferred.await(started)
      const events: Array<string> = []
      const onProgress = ({ _tag }: Migrator.Progress) => Effect.sync(() => events.push(_tag))
      const error = yield* refusal(
        Migrator.run({
          loader: Migrator.fromRecord({ "1_slow": Effect.void }),
          wait: "200 millis",
          onProgress
        })
      )
      assert.strictEqual(error.reason, "Locked")
      assert.match(error.message, /process \d+, promptgrimoire-db-test/)
      assert.deepStrictEqual(events.splice(0), ["Waiting"])
      yield* Fiber.interrupt(first)
      const next = yield* Migrator.run({ loader: Migrator.fromRecord({ "1_slow": Effect.void }), onProgress })
      assert.deepStrictEqual(ids(next), [1])
      assert.notInclude(events, "Waiting")
    })
  )

  migrating(
    "stops when the session that holds its lock is lost, and does not work beside the next migrator",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      let working = 0
      const started = yield* Deferred.make<void>()
      const loader = (up: Effect.Effect<void>) =>
        Migrator.fromRecord({
          "1_online": Migrator.define({
            online: true,
            up: Effect.acquireUseRelease(
              Effect.sync(() => ++working),
              () => up,
              () => Effect.sync(() => --working)
            )
          })
        })
      const first = yield* Effect.fork(
        refusal(
          Migrator.run({
            loader: loader(Effect.zipRight(Deferred.succeed(started, undefined), Effect.never))
          })
        )
      )
      yield* Deferred.await(started)
      const [killed] = yield* sql<{ done: boolean }>`
        SELECT pg_terminate_backend(pid) AS done FROM pg_locks
        WHERE locktype = 'advisory' AND granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      `
      assert.isTrue(killed?.done)
      const error = yield* Fiber.join(first)
      assert.strictEqual(error.reason, "Locked")
      assert.include(error.message, "the session that held the lock was lost")
      assert.strictEqual(working, 0)
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader: loader(Effect.void) })), [1])
    })
  )

  inFull(migrating)(
    "keeps its lock although the server ends sessions that have nothing to do",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [name] = yield* sql<{ name: string }>`SELECT current_database() AS name`
      yield* sql`ALTER DATABASE ${sql(name?.name ?? "")} SET idle_session_timeout = '50ms'`
      const loader = Migrator.fromRecord({
        "1_slow": Migrator.define({ online: true, up: run("SELECT pg_sleep(1)") })
      })
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader })), [1])
    })
  )

  migrating(
    "does not say that nothing was kept when nobody knows whether the migration was committed",
    Effect.gen(function* () {
      const loader = Migrator.fromRecord({ "1_one": one })
      const error = yield* refusal(Migrator.run({ loader })).pipe(
        Effect.provide(
          TestDatabase.failing([{ at: "COMMIT", occurrence: 2, fault: { _tag: "Cut", when: "after" } }])
        )
      )
      assert.strictEqual(error.reason, "Failed")
      assert.include(error.message, "it may have been applied: see what `migrate status` says")
      assert.notInclude(error.message, "nothing of it was kept")
      assert.strictEqual((yield* Migrator.status({ loader })).current, 1)
    })
  )

  migrating(
    "gives way when a lock cannot be had, tries again, and goes on when the lock is free",
    Effect.gen(function* () {
      yield* run("CREATE TABLE busy (id int)")
      const { session } = yield* Database.Database
      const retries: Array<Migrator.Progress> = []
      const result = yield* Effect.scoped(
        Effect.gen(function* () {
          const holder = yield* session
          yield* holder.query("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
          return yield* Migrator.run({
            loader: Migrator.fromRecord({ "1_alter": run("ALTER TABLE busy ADD COLUMN more int") }),
            lockTimeout: "50 millis",
            onProgress: (event) =>
              event._tag === "Retrying" && retries.push(event) === 2
                ? Effect.orDie(Effect.asVoid(holder.query("COMMIT")))
                : Effect.void
          })
        })
      )
      assert.deepStrictEqual(ids(result), [1])
      assert.isAtLeast(retries.length, 2)
    })
  )

  migrating(
    "stops after the tries it was given, with the lock as the reason",
    Effect.gen(function* () {
      yield* run("CREATE TABLE busy (id int)")
      const { session } = yield* Database.Database
      yield* Effect.scoped(
        Effect.gen(function* () {
          const holder = yield* session
          yield* holder.query("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
          const error = yield* refusal(
            Migrator.run({
              loader: Migrator.fromRecord({ "1_alter": run("ALTER TABLE busy ADD COLUMN more int") }),
              lockTimeout: "20 millis",
              lockRetries: 2
            })
          )
          assert.strictEqual(error.reason, "Failed")
          assert.include(error.message, "LockTimeout")
        })
      )
    })
  )

  migrating(
    "runs an online migration outside any transaction, and again from the start when it was stopped",
    Effect.gen(function* () {
      yield* run("CREATE TABLE big (id int)")
      let runs = 0
      const loader = Migrator.fromRecord({
        "1_index": Migrator.define({
          online: true,
          up: Effect.gen(function* () {
            yield* run("CREATE INDEX CONCURRENTLY IF NOT EXISTS big_id ON big (id)")
            if (++runs === 1) return yield* Effect.fail("stopped")
          })
        })
      })
      const error = yield* refusal(Migrator.run({ loader }))
      assert.include(error.message, "run it again to resume")
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader })), [1])
    })
  )

  migrating(
    "can be interrupted, and leaves neither its lock nor half a migration",
    Effect.gen(function* () {
      const started = yield* Deferred.make<void>()
      const fiber = yield* Effect.fork(
        Migrator.run({
          loader: Migrator.fromRecord({
            "1_one": Effect.zipRight(one, Effect.zipRight(Deferred.succeed(started, undefined), Effect.never))
          })
        })
      )
      yield* Deferred.await(started)
      assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
      assert.deepStrictEqual(yield* tables, [])
      const loader = Migrator.fromRecord({ "1_one": one })
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader, wait: "5 seconds" })), [1])
    })
  )
})

describe("Migrator and the migrator of @effect/sql", () => {
  const migrations = { "1_one": Effect.asVoid(one), "2_two": Effect.asVoid(two) }
  const stock = Effect.provide(
    StockMigrator.run({ loader: StockMigrator.fromRecord(migrations) }),
    NodeContext.layer
  )

  migrating(
    "agree that a database migrated by ours is up to date",
    Effect.gen(function* () {
      yield* Migrator.run({ loader: Migrator.fromRecord(migrations) })
      assert.deepStrictEqual(yield* stock, [])
    })
  )

  migrating(
    "agree that a database migrated by theirs is up to date",
    Effect.gen(function* () {
      yield* stock
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader: Migrator.fromRecord(migrations) })), [])
    })
  )
})

/** What the program's connections, all of them, say their session is. */
const sessions = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const { config } = yield* Database.Database
  const meet = yield* Effect.makeSemaphore(0)
  const one = Effect.scoped(
    Effect.gen(function* () {
      const connection = yield* sql.reserve
      const rows = yield* connection.execute(
        `SELECT current_setting('search_path') AS path, current_setting('statement_timeout') AS statement,
           current_setting('lock_timeout') AS lock, current_setting('app.tenant', true) AS tenant, current_user = session_user AS own,
           (SELECT count(*)::int FROM pg_class WHERE relpersistence = 't') AS temporary,
           (SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS locks,
           (SELECT count(*)::int FROM pg_listening_channels()) AS channels`,
        [],
        undefined
      )
      yield* meet.release(1)
      yield* meet.take(config.maxConnections)
      yield* meet.release(config.maxConnections)
      return rows[0] as Readonly<Record<string, unknown>>
    })
  )
  const all = yield* Effect.all(
    Array.from({ length: config.maxConnections }, () => one),
    { concurrency: "unbounded" }
  )
  return [...new Set(all.map((session) => JSON.stringify(session)))]
})

const leaveAll = run(`
  SELECT pg_catalog.set_config('search_path', '', false);
  SET statement_timeout = 0; SET lock_timeout = 0; SET app.tenant = 'migration';
  CREATE TEMPORARY TABLE left_behind (id int);
  SELECT pg_catalog.pg_advisory_lock(4711);
  LISTEN left_behind
`)

describe("The session of a migration", () => {
  const few = TestDatabase.layer({ settings: { minConnections: 3, maxConnections: 3 } })
  for (const online of [false, true]) {
    const kind = online ? "an online" : "a transactional"
    it.live(`ends with it: nothing that ${kind} one sets, creates or locks reaches the program`, () =>
      Effect.gen(function* () {
        const before = yield* sessions
        assert.strictEqual(before.length, 1)
        const loader = Migrator.fromRecord({
          "1_leaves": Migrator.define({ online, up: leaveAll, down: leaveAll }),
          "2_role": Migrator.define({
            online,
            up: run("SET ROLE pg_monitor"),
            down: run("SET ROLE pg_monitor")
          })
        })
        yield* Migrator.run({ loader })
        assert.deepStrictEqual(yield* sessions, before)
        yield* Migrator.down({ loader, to: 0 })
        assert.deepStrictEqual(yield* sessions, before)
      }).pipe(Effect.provide(few))
    )
  }

  migrating(
    "begins for each from the defaults, and is one from the first statement of an online one to its last",
    Effect.gen(function* () {
      const setting = (name: string) =>
        Effect.map(
          run(`SELECT current_setting('${name}', true) AS value`),
          (rows) => (rows as ReadonlyArray<{ readonly value: string | null }>)[0]?.value ?? ""
        )
      const seen: Array<string> = []
      const note = Effect.map(setting("app.tenant"), (value) => void seen.push(value))
      yield* Migrator.run({
        loader: Migrator.fromRecord({
          "1_first": Migrator.define({
            online: true,
            up: Effect.zipRight(run("SET app.tenant = 'first'"), note)
          }),
          "2_second": Effect.zipRight(note, run("SET app.tenant = 'second'")),
          "3_third": note
        })
      })
      assert.deepStrictEqual(seen, ["first", "", ""])
    })
  )

  migrating(
    "may be without a search path, as a dump leaves it: the ledger is found where it was at the start",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* run('CREATE SCHEMA "app.one"; CREATE SCHEMA ledger')
      const dump = run(`
        SELECT pg_catalog.set_config('search_path', '', false);
        SET row_security = off;
        CREATE TABLE public.item (id int PRIMARY KEY)
      `)
      const loader = Migrator.fromRecord({ "1_dump": dump, "2_more": run("CREATE TABLE more (id int)") })
      for (const table of [undefined, "ledger.applied"]) {
        yield* run("DROP TABLE IF EXISTS public.item, public.more")
        const { applied } = yield* Migrator.run({ loader, table })
        assert.strictEqual(applied.length, 2)
        assert.strictEqual((yield* Migrator.status({ loader, table })).current, 2)
        assert.deepStrictEqual(yield* sql`SELECT count(*)::int AS n FROM item`, [{ n: 0 }])
      }
    })
  )

  migrating(
    "joins the transaction of the migration also for a statement of the program's own client",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const loader = Migrator.fromRecord({
        "1_kept": sql`CREATE TABLE kept (id int)`,
        "2_undone": Effect.zipRight(sql`CREATE TABLE undone (id int)`, Effect.fail("no"))
      })
      assert.strictEqual((yield* refusal(Migrator.run({ loader }))).id, 2)
      assert.deepStrictEqual(yield* tables, ["kept"])
    })
  )

  migrating(
    "is put back in a test that is rolled back",
    Effect.gen(function* () {
      const session = run(
        "SELECT current_setting('search_path') AS path, current_setting('statement_timeout') AS statement"
      )
      const before = yield* session
      const loader = Migrator.fromRecord({ "1_leaves": leaveAll, "2_two": run("CREATE TABLE two (id int)") })
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader })), [1, 2])
      assert.deepStrictEqual(yield* session, before)
      assert.deepStrictEqual(yield* tables, ["two"])
    }).pipe(Effect.provide(TestDatabase.rollback))
  )
})

describe("The ids of migrations", () => {
  const stamped = {
    "1_one": Effect.asVoid(one),
    "20240612093000_two": Effect.asVoid(two)
  }
  const stock = (migrations: Readonly<Record<string, Effect.Effect<void, unknown, SqlClient.SqlClient>>>) =>
    Effect.provide(
      StockMigrator.run({ loader: StockMigrator.fromRecord({ ...migrations }) }),
      NodeContext.layer
    )

  it.live("can be time stamps, in a ledger that the migrator of @effect/sql reads and goes on with", () =>
    Effect.gen(function* () {
      yield* stock({ "1_one": stamped["1_one"] })
      const first = yield* Migrator.run({ loader: Migrator.fromRecord(stamped) })
      assert.deepStrictEqual([ids(first), first.current], [[20240612093000], 20240612093000])
      assert.deepStrictEqual(yield* stock(stamped), [])
      const more = { ...stamped, "20250101000000_three": Effect.asVoid(run("CREATE TABLE three (id int)")) }
      assert.deepStrictEqual(yield* stock(more), [[20250101000000, "three"]])
      const last = yield* Migrator.run({ loader: Migrator.fromRecord(more) })
      assert.deepStrictEqual([ids(last), last.current], [[], 20250101000000])
      assert.deepStrictEqual(yield* tables, ["one", "three", "two"])
    }).pipe(Effect.provide(TestDatabase.layer({ settings: { prepare: false } })))
  )

  migrating(
    "leave the ledger's column as it is until one needs more, and can be undone and stamped",
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const type = sql`SELECT attrelid::regclass::text AS name, format_type(atttypid, NULL) AS type FROM pg_attribute
        WHERE attname = 'migration_id' AND attrelid::regclass::text LIKE 'effect_sql_migrations%'
          AND attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r') ORDER BY 1`
      const types = Effect.map(type, (rows) => rows.map((row) => row["type"]))
      const largest = Number.MAX_SAFE_INTEGER
      const loader = Migrator.fromRecord({
        "2147483647_one": one,
        [`${largest}_two`]: Migrator.define({ up: two, down: run("DROP TABLE two") })
      })
      yield* Migrator.stamp({ loader, id: 2147483647 })
      assert.deepStrictEqual(yield* types, ["integer", "integer"])
      yield* Migrator.run({ loader })
      assert.deepStrictEqual(yield* types, ["bigint", "bigint"])
      assert.strictEqual((yield* Migrator.down({ loader, to: 2147483647 })).current, 2147483647)
      assert.strictEqual((yield* Migrator.stamp({ loader, id: largest })).current, largest)
    })
  )

  it.effect("are refused where a number does not hold them, by whatever loader they come", () =>
    Effect.gen(function* () {
      for (const loader of [
        Migrator.fromRecord({ "9007199254740993_late": Effect.void }),
        StockMigrator.fromRecord({ "9007199254740993_late": Effect.void })
      ]) {
        const error = yield* Effect.flip(Migration.sources(loader))
        assert.strictEqual(error.reason, "ImportFailed")
        assert.include(error.message, "9007199254740991")
      }
    })
  )
})

describe("A directory without migrations", () => {
  const inDirectory = (test: (directory: string) => Effect.Effect<unknown, unknown, Database.Provided>) =>
    Effect.acquireUseRelease(
      Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "none-"))),
      test,
      (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true }))
    )

  migrating(
    "is refused, whatever is to be done with it, unless that is allowed",
    inDirectory((directory) =>
      Effect.gen(function* () {
        Fs.writeFileSync(Path.join(directory, "README.md"), "nothing")
        const loader = Migrator.fromDirectory(directory)
        for (const work of [
          Migrator.run({ loader }),
          Migrator.status({ loader }),
          Migrator.plan({ loader }),
          Migrator.check({ loader }),
          Migrator.stamp({ loader, id: 0 }),
          Migrator.down({ loader, to: 0 })
        ]) {
          const error = yield* refusal(
            Effect.asVoid(work as Effect.Effect<unknown, unknown, Database.Provided>)
          )
          assert.strictEqual(error.reason, "NoMigrations")
          assert.isTrue(Migrator.isRefusal(error))
          assert.include(error.message, directory)
        }
        const allowed = Migrator.fromDirectory(directory, { allowEmpty: true })
        assert.deepStrictEqual(yield* Migrator.run({ loader: allowed }), { applied: [], current: 0 })
      })
    )
  )
})

describe("The name of the ledger", () => {
  migrating(
    "is taken as it is written, with or without a schema",
    Effect.gen(function* () {
      yield* run('CREATE SCHEMA "My Schema"')
      const loader = Migrator.fromRecord({ "1_one": Effect.void })
      for (const table of ['My "Ledger"', "My Schema.Ledger"]) {
        assert.deepStrictEqual(ids(yield* Migrator.run({ loader, table })), [1])
        assert.strictEqual((yield* Migrator.status({ loader, table })).current, 1)
      }
      const sql = yield* SqlClient.SqlClient
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int AS n FROM "My Schema"."Ledger"`, [{ n: 1 }])
      assert.deepStrictEqual(yield* sql`SELECT count(*)::int AS n FROM public."My ""Ledger"""`, [{ n: 1 }])
    })
  )

  migrating(
    "is refused when PostgreSQL would take another one",
    Effect.gen(function* () {
      const loader = Migrator.fromRecord({ "1_one": Effect.void })
      for (const table of ["", "a.b.c", ".a", "a.", "x".repeat(54)]) {
        const error = yield* refusal(Migrator.status({ loader, table }))
        assert.strictEqual(error.reason, "Ledger")
        assert.include(error.message, "TABLE or SCHEMA.TABLE")
      }
    })
  )
})

describe("Migrator.stamp, status and down", () => {
  const loader = Migrator.fromRecord({
    "1_one": Migrator.define({ up: one, down: run("DROP TABLE one") }),
    "2_two": Migrator.define({ up: two, down: run("DROP TABLE two") }),
    "3_forever": Effect.void
  })
  const states = Effect.map(Migrator.status({ loader }), ({ migrations }) =>
    migrations.map(({ state }) => state)
  )

  migrating(
    "stamp marks migrations as applied and runs none",
    Effect.gen(function* () {
      yield* Migrator.stamp({ loader, id: 2 })
      assert.deepStrictEqual(yield* tables, [])
      assert.deepStrictEqual(yield* states, ["applied", "applied", "pending"])
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader })), [3])
    })
  )

  migrating(
    "stamp takes what never ran below the latest, as the refusal of it says, and nothing above the id",
    Effect.gen(function* () {
      const merged = Migrator.fromRecord({
        "1_one": one,
        "2_two": two,
        "3_three": Effect.void,
        "4_four": Effect.void
      })
      yield* Migrator.run({ loader: Migrator.fromRecord({ "1_one": one, "3_three": Effect.void }) })
      const error = yield* refusal(Migrator.run({ loader: merged }))
      assert.deepStrictEqual([error.reason, error.id], ["OutOfOrder", 2])
      assert.include(error.message, "stamp 2")
      const { migrations } = yield* Migrator.stamp({ loader: merged, id: 2 })
      assert.deepStrictEqual(
        migrations.map(({ state }) => state),
        ["applied", "applied", "applied", "pending"]
      )
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader: merged })), [4])
      assert.deepStrictEqual(yield* tables, ["one"])
    })
  )

  migrating(
    "stamp refuses where the ledger has what the files do not",
    Effect.gen(function* () {
      yield* Migrator.run({ loader })
      const error = yield* refusal(Migrator.stamp({ loader: Migrator.fromRecord({ "1_one": one }), id: 1 }))
      assert.deepStrictEqual([error.reason, error.id], ["Unknown", 2])
    })
  )

  migrating(
    "down goes back past what never ran",
    Effect.gen(function* () {
      const step = Migrator.define({ up: Effect.void, down: Effect.void })
      yield* Migrator.run({ loader: Migrator.fromRecord({ "1_one": step, "3_three": step }) })
      const merged = Migrator.fromRecord({ "1_one": step, "2_two": step, "3_three": step })
      const back = yield* Migrator.down({ loader: merged, to: 1 })
      assert.deepStrictEqual([ids(back), back.current], [[3], 1])
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader: merged })), [2, 3])
    })
  )

  migrating(
    "stamp refuses an id that does not exist",
    Effect.gen(function* () {
      const error = yield* refusal(Migrator.stamp({ loader, id: 7 }))
      assert.deepStrictEqual([error.reason, error.id], ["NoSuchMigration", 7])
    })
  )

  migrating(
    "status changes nothing, also on a database that was never migrated",
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* states, ["pending", "pending", "pending"])
      const sql = yield* SqlClient.SqlClient
      assert.deepStrictEqual(yield* sql`SELECT to_regclass('effect_sql_migrations') AS ledger`, [
        { ledger: null }
      ])
    })
  )

  migrating(
    "down undoes the latest first",
    Effect.gen(function* () {
      yield* Migrator.stamp({ loader, id: 0 })
      const some = Migrator.fromRecord({
        "1_one": Migrator.define({ up: one, down: run("DROP TABLE one") }),
        "2_two": Migrator.define({ up: two, down: run("DROP TABLE two") })
      })
      yield* Migrator.run({ loader: some })
      const result = yield* Migrator.down({ loader: some, to: 0 })
      assert.deepStrictEqual([ids(result), result.current], [[2, 1], 0])
      assert.deepStrictEqual(yield* tables, [])
    })
  )

  migrating(
    "down refuses before it undoes anything when one migration has no way back",
    Effect.gen(function* () {
      yield* Migrator.run({ loader })
      const error = yield* refusal(Migrator.down({ loader, to: 0 }))
      assert.deepStrictEqual([error.reason, error.id], ["Irreversible", 3])
      assert.deepStrictEqual(yield* tables, ["one", "two"])
    })
  )
})

/** A directory of migrations from which packages can be imported. */
const directory = (files: Record<string, string>) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const path = Fs.mkdtempSync(Path.join(Os.tmpdir(), "migrations-"))
      Fs.symlinkSync(
        fileURLToPath(new URL("../node_modules", import.meta.url)),
        Path.join(path, "node_modules")
      )
      Fs.writeFileSync(Path.join(path, "package.json"), '{ "type": "module" }')
      for (const [name, text] of Object.entries(files)) Fs.writeFileSync(Path.join(path, name), text)
      return path
    }),
    (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
  )

const file = (statement: string) => `
  import * as Effect from "effect/Effect"
  import { SqlClient } from "@effect/sql/SqlClient"
  export default Effect.flatMap(SqlClient, (sql) => sql\`${statement}\`)
`

layer(Layer.empty)("Migrator.fromDirectory", (it) => {
  it.scoped("applies files, and refuses one that was edited after it ran", () =>
    Effect.gen(function* () {
      const path = yield* directory({ "0001_one.js": file("CREATE TABLE one (id int)"), "notes.txt": "" })
      const loader = Migrator.fromDirectory(path)
      assert.deepStrictEqual(ids(yield* Migrator.run({ loader })), [1])
      Fs.writeFileSync(Path.join(path, "0001_one.js"), file("CREATE TABLE one (id bigint)"))
      const error = yield* refusal(Migrator.run({ loader }))
      assert.deepStrictEqual([error.reason, error.id], ["Edited", 1])
      const { migrations } = yield* Migrator.status({ loader })
      assert.deepStrictEqual(
        migrations.map(({ state }) => state),
        ["edited"]
      )
    }).pipe(Effect.provide(TestDatabase.layer()))
  )

  for (const [what, files] of [
    ["a number and no name", { "1_one.two.js": file("SELECT 1") }],
    ["an export that is not an Effect", { "1_one.js": "export default 42" }],
    ["no default export", { "1_one.js": "export const other = 1" }],
    ["a syntax error", { "1_one.js": "export default (" }]
  ] as const) {
    it.scoped(`refuses a file with ${what}`, () =>
      Effect.gen(function* () {
        const loader = Migrator.fromDirectory(yield* directory(files))
        const error = yield* refusal(Migrator.run({ loader }))
        assert.strictEqual(error.reason, "ImportFailed")
        assert.include(error.message, "1_one")
      }).pipe(Effect.provide(TestDatabase.layer()))
    )
  }

  it.scoped("names a directory that is not there", () =>
    Effect.gen(function* () {
      const error = yield* refusal(Migrator.run({ loader: Migrator.fromDirectory("/nowhere/migrations") }))
      assert.strictEqual(error.reason, "ImportFailed")
      assert.include(error.message, "/nowhere/migrations")
    }).pipe(Effect.provide(TestDatabase.layer()))
  )
})
