import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import { cases } from "../support/length.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import * as Blocker from "../../src/catalog/lockHolders.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as SessionSettings from "../../src/catalog/sessionSettings.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import { emptyDatabase } from "../support/server.js"
import { application, database, snapshots } from "./support.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int, parent_id int CONSTRAINT fk REFERENCES parent);
  COMMENT ON CONSTRAINT fk ON child IS 'of the application';
  INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1)`

/** Runs a change until a step begins or is done, and ends it there. */
const until = (event: ForeignKey.Progress["_tag"], step: string, options: { readonly swapTries?: number }) =>
  Effect.gen(function* () {
    const reached = yield* Deferred.make<void>()
    const run = ForeignKey.rebuild({
      selectors: {},
      onDelete: "cascade",
      ...options,
      onProgress: (progress) =>
        progress._tag === event && "step" in progress && progress.step === step
          ? Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never)
          : Effect.void
    })
    const fiber = yield* Effect.fork(run)
    yield* Effect.raceFirst(Deferred.await(reached), Effect.asVoid(Fiber.join(fiber)))
    yield* Fiber.interrupt(fiber)
  })

const rebuild = ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })

describe("an interrupted change", () => {
  const interrupted = [
    ["whose original stepped aside", pair, "switch-names", { swapTries: 0 }],
    [
      "whose DEFERRABLE original stepped aside",
      `${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE`,
      "switch-names",
      { swapTries: 0 }
    ],
    ["whose key is not settled yet", `${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE`, "swap", {}]
  ] as const
  for (const [name, table, step, options] of cases(interrupted, ([name]) => name.includes("DEFERRABLE"))) {
    it.scopedLive(`${name} is finished although its index and its table were changed meanwhile`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(table)
        const said = session.query(
          `SELECT condeferrable, condeferred, convalidated, obj_description(oid, 'pg_constraint') AS comment
          FROM pg_constraint WHERE contype = 'f'`
        )
        const before = yield* said
        yield* until("StepDone", step, options)
        yield* session.query("REINDEX INDEX CONCURRENTLY parent_pkey")
        yield* session.query("CREATE SCHEMA elsewhere; ALTER TABLE child SET SCHEMA elsewhere")
        const { failed, refused, rebuilt } = yield* rebuild
        assert.deepStrictEqual(
          { failed, refused, count: rebuilt.length },
          { failed: [], refused: [], count: 1 }
        )
        assert.deepStrictEqual(yield* said, before)
        const after = yield* snapshots(session)
        assert.deepStrictEqual(Object.keys(after), ["elsewhere.child.fk"])
        assert.strictEqual(after["elsewhere.child.fk"]?.[0].constraint["confdeltype"], "c")
      }).pipe(Effect.provide(database))
    )
  }

  inMatrix(it).scopedLive(
    "that is not in force yet and whose record somebody edited is listed, checked and finished",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        yield* until("StepDone", "add", {})
        const [marked] = yield* session.query<{ name: string; comment: string }>(
          "SELECT conname AS name, obj_description(oid, 'pg_constraint') AS comment FROM pg_constraint WHERE contype = 'f' AND conname <> 'fk'"
        )
        const edited = (marked?.comment ?? "").slice(0, -20).replaceAll("'", "''")
        yield* session.query(`COMMENT ON CONSTRAINT ${marked?.name} ON child IS '${edited} (see wiki)'`)
        assert.strictEqual((yield* ForeignKey.list()).length, 1)
        assert.isAbove((yield* ForeignKey.check()).length, 0)
        const { failed, rebuilt } = yield* rebuild
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        assert.deepStrictEqual(Object.keys(yield* snapshots(session)), ["public.child.fk"])
      }).pipe(Effect.provide(database))
  )
})

describe("an interrupted change", () => {
  const edit = "(see wiki)"

  inFull(it).scopedLive("that is in force and whose record somebody edited says what is to be done", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE`)
      yield* until("StepDone", "swap", {})
      yield* session.query(`DO $$ BEGIN
        EXECUTE format('COMMENT ON CONSTRAINT fk ON child IS %L',
          (SELECT obj_description(oid, 'pg_constraint') || '${edit}' FROM pg_constraint WHERE conname = 'fk'));
      END $$`)
      assert.strictEqual((yield* ForeignKey.list()).length, 1)
      const { failed } = yield* rebuild
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["RecordUnreadable"]
      )
      yield* session.query(
        "ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE INITIALLY IMMEDIATE; COMMENT ON CONSTRAINT fk ON child IS 'mine'"
      )
      const again = yield* rebuild
      assert.deepStrictEqual(
        [again.failed, again.refused, again.unchanged.length + again.rebuilt.length],
        [[], [], 1]
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("takes over what was done to the original's triggers since", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* until("StepDone", "validate", {})
      const state = session.query(
        `SELECT DISTINCT tgenabled::text AS enabled FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
        WHERE k.conname = 'fk' AND g.tgrelid = 'child'::regclass`
      )
      yield* session.query(`DO $$ DECLARE r record; BEGIN
        FOR r IN SELECT g.tgname FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
          WHERE k.conname = 'fk' AND g.tgrelid = 'child'::regclass
        LOOP EXECUTE format('ALTER TABLE child ENABLE ALWAYS TRIGGER %I', r.tgname); END LOOP;
      END $$`)
      const before = yield* state
      const { failed, rebuilt } = yield* rebuild
      assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      assert.deepStrictEqual(yield* state, before)
      assert.deepStrictEqual(before, [{ enabled: "A" }])
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("that is undone counts as changed, from the action that it had brought", () =>
    Effect.gen(function* () {
      yield* (yield* application).query(pair)
      yield* until("StepDone", "swap", {})
      const { rebuilt, unchanged } = yield* ForeignKey.undo({ selectors: {} })
      assert.deepStrictEqual([rebuilt.map(({ previous }) => previous.action), unchanged], [["cascade"], []])
    }).pipe(Effect.provide(database))
  )
})

describe("a change", () => {
  inMatrix(it).scopedLive("to SET NULL of a column that is named twice is one change", () =>
    Effect.gen(function* () {
      const session = yield* application
      if ((yield* Catalog.serverVersion(session)) < 150_000) return
      yield* session.query(pair)
      const { rebuilt } = yield* ForeignKey.rebuild({
        selectors: {},
        onDelete: "set-null",
        onDeleteColumns: ["parent_id", "parent_id"]
      })
      assert.strictEqual(rebuilt.length, 1)
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("follows its table when another one takes the name while it waits", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; CREATE TABLE child_new (id int, parent_id int)`)
      const blocker = yield* application
      yield* blocker.query("BEGIN; LOCK child IN ROW EXCLUSIVE MODE")
      const waiting = yield* Deferred.make<void>()
      const fiber = yield* Effect.fork(
        ForeignKey.rebuild({
          selectors: {},
          onDelete: "cascade",
          onProgress: ({ _tag }) => (_tag === "Waiting" ? Deferred.succeed(waiting, undefined) : Effect.void)
        })
      )
      yield* Deferred.await(waiting)
      yield* blocker.query(
        "ALTER TABLE child RENAME TO child_old; ALTER TABLE child_new RENAME TO child; COMMIT"
      )
      const { failed, rebuilt } = yield* Fiber.join(fiber)
      assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      assert.deepStrictEqual(Object.keys(yield* snapshots(session)), ["public.child_old.fk"])
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive(
    "leaves a partition valid whose key is valid although the whole one is not (18 and later)",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        if ((yield* Catalog.serverVersion(session)) < 180_000) return
        yield* session.query(`
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int, parent_id int) PARTITION BY RANGE (id);
        CREATE TABLE child_low PARTITION OF child FOR VALUES FROM (MINVALUE) TO (0);
        CREATE TABLE child_high PARTITION OF child FOR VALUES FROM (0) TO (MAXVALUE);
        ALTER TABLE child ADD CONSTRAINT fk FOREIGN KEY (parent_id) REFERENCES parent NOT VALID;
        ALTER TABLE child_low VALIDATE CONSTRAINT fk`)
        const validity = session.query(
          "SELECT conrelid::regclass::text AS relation, convalidated FROM pg_constraint WHERE contype = 'f' ORDER BY 1"
        )
        const before = yield* validity
        const { failed, rebuilt } = yield* rebuild
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        assert.deepStrictEqual(yield* validity, before)
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("waits to settle for transactions of roles that its own may not look at", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const [owner, user] = [`o${name}`, `u${name}`]
      const as = (role: string) => {
        const own = new URL(Redacted.value(url))
        own.username = role
        own.password = "x"
        return Database.layer({ url: own.toString(), minConnections: 0 })
      }
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE;
          CREATE ROLE ${owner} LOGIN PASSWORD 'x'; CREATE ROLE ${user} LOGIN PASSWORD 'x';
          ALTER TABLE parent OWNER TO ${owner}; ALTER TABLE child OWNER TO ${owner};
          GRANT CREATE ON SCHEMA public TO ${owner}; GRANT INSERT, SELECT ON parent, child TO ${user}`)
        yield* Effect.addFinalizer(() =>
          Effect.ignore(
            session.query(`DROP OWNED BY ${owner}, ${user} CASCADE; DROP ROLE ${owner}; DROP ROLE ${user}`)
          )
        )
        const writer = yield* Effect.flatMap(Database.Database, (one) => one.session).pipe(
          Effect.provide(as(user))
        )
        yield* writer.query("BEGIN; SET CONSTRAINTS fk DEFERRED")
        const waits = yield* Deferred.make<string>()
        const fiber = yield* Effect.fork(
          ForeignKey.rebuild({
            selectors: {},
            onDelete: "cascade",
            onProgress: (event) =>
              event._tag === "Waiting" && event.step === "settle"
                ? Deferred.succeed(waits, "waits")
                : Effect.void
          }).pipe(Effect.provide(as(owner)))
        )
        assert.strictEqual(
          yield* Effect.raceFirst(Deferred.await(waits), Effect.as(Fiber.join(fiber), "settled")),
          "waits"
        )
        yield* writer.query("INSERT INTO child VALUES (2, 2); INSERT INTO parent VALUES (2); COMMIT")
        const { failed, rebuilt } = yield* Fiber.join(fiber)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
    })
  )

  inMatrix(it).scopedLive(
    "gives way to an application in a circle, also as a role that takes on another one",
    () =>
      Effect.gen(function* () {
        const { name, url } = yield* emptyDatabase
        const [login, owner] = [`l${name}`, `o${name}`]
        yield* Effect.gen(function* () {
          const session = yield* application
          yield* session.query(`${pair};
          CREATE ROLE ${owner}; CREATE ROLE ${login} LOGIN PASSWORD 'x' IN ROLE ${owner};
          ALTER ROLE ${login} SET role = '${owner}';
          ALTER TABLE parent OWNER TO ${owner}; ALTER TABLE child OWNER TO ${owner}`)
          yield* Effect.addFinalizer(() =>
            Effect.ignore(
              session.query(`DROP OWNED BY ${owner}, ${login}; DROP ROLE ${login}; DROP ROLE ${owner}`)
            )
          )
          const own = new URL(Redacted.value(url))
          own.username = login
          own.password = "x"
          yield* Effect.gen(function* () {
            const { session: open } = yield* Database.Database
            const change = yield* SessionSettings.prepared(open, "test")
            const watcher = yield* SessionSettings.prepared(open, "test (watcher)")
            yield* SessionSettings.asLoginRole(watcher)
            const writer = yield* application
            yield* change.query("BEGIN; LOCK public.parent IN ACCESS EXCLUSIVE MODE")
            yield* writer.query("BEGIN; LOCK public.child IN ROW EXCLUSIVE MODE")
            const locking = yield* Effect.fork(
              Effect.flip(change.query("LOCK public.child IN ACCESS EXCLUSIVE MODE"))
            )
            const waits = (pid: number) =>
              Effect.map(
                session.query("SELECT 1 FROM pg_locks WHERE pid = $1 AND NOT granted", [pid]),
                (rows) => rows.length === 1
              )
            yield* eventually("the change waits", waits(change.processId))
            const writing = yield* Effect.fork(writer.query("SELECT FROM public.parent"))
            yield* eventually("the application waits", waits(writer.processId))
            yield* Blocker.watch(watcher, change.processId)
            assert.strictEqual((yield* Fiber.join(locking)).reason._tag, "StatementCancelled")
            yield* change.query("ROLLBACK")
            yield* Fiber.join(writing)
          }).pipe(Effect.provide(Database.layer({ url: own.toString(), minConnections: 0 })))
        }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
      })
  )
})

describe("what is listed and checked", () => {
  it.scopedLive("is what the selectors mean, and they must mean something", () =>
    Effect.gen(function* () {
      yield* (yield* application).query(pair)
      const misspelled = { tables: [{ table: "chidl" }] }
      assert.strictEqual((yield* Effect.flip(ForeignKey.list(misspelled)))._tag, "NoMatch")
      const error = yield* Effect.flip(ForeignKey.check(misspelled))
      assert.strictEqual(error.message, "no foreign key fits table chidl")
      assert.strictEqual((yield* ForeignKey.list({ tables: [{ table: "child" }] })).length, 1)
      assert.deepStrictEqual(yield* ForeignKey.check({ tables: [{ table: "child" }] }), [])
    }).pipe(Effect.provide(database))
  )

  it.live("may be nothing in a database without foreign keys", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* ForeignKey.list(), [])
      assert.deepStrictEqual(yield* ForeignKey.check(), [])
    }).pipe(Effect.provide(database))
  )
})
