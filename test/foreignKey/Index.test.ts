import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import { psql } from "../support/psql.js"
import { emptyDatabase } from "../support/server.js"
import { application, database, heldBy } from "./support.js"
import { next } from "../support/length.js"

/** A partition has its own index already, and its columns in another order. */
const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int, parent_id int CONSTRAINT fk REFERENCES parent) PARTITION BY RANGE (id);
  CREATE TABLE low PARTITION OF child FOR VALUES FROM (0) TO (10);
  CREATE TABLE high PARTITION OF child FOR VALUES FROM (10) TO (100) PARTITION BY RANGE (id);
  CREATE TABLE higher PARTITION OF high FOR VALUES FROM (10) TO (50);
  CREATE TABLE highest (gone int, parent_id int, id int);
  ALTER TABLE highest DROP COLUMN gone;
  ALTER TABLE high ATTACH PARTITION highest FOR VALUES FROM (50) TO (100);
  CREATE INDEX mine ON highest (parent_id);
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id - 1, id FROM parent`

const build = { selectors: {}, onDelete: "cascade", createIndexes: true, rehearse: false } as const

const undo = { selectors: {}, onDelete: "no-action", rehearse: false } as const

/** Indexes on the referencing column by table, with what is unusual about them. */
const indexes = (session: Session) =>
  Effect.map(
    session.query<{ readonly table: string; readonly index: string }>(
      `SELECT i.indrelid::regclass::text AS table,
        CASE WHEN c.relname = 'mine' THEN 'mine' ELSE 'ours' END || CASE WHEN i.indisvalid THEN '' ELSE ' invalid' END
          || CASE WHEN c.relispartition THEN ' part' ELSE '' END AS index
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
      WHERE i.indrelid <> 'parent'::regclass AND i.indrelid >= 16384
        AND i.indrelid::regclass::text IN ('child', 'low', 'high', 'higher', 'highest', 'later')
      ORDER BY 1, 2`
    ),
    (rows) => rows.map(({ index, table }) => `${table}: ${index}`)
  )

const complete = [
  "child: ours",
  "high: ours part",
  "higher: ours part",
  "highest: mine part",
  "low: ours part"
]

const rebuilt = (result: ForeignKey.RebuildResult) => [result.failed, result.refused, result.rebuilt.length]

describe("the index of a partitioned referencing table", () => {
  it.scopedLive("is one that later partitions inherit, and takes in those that are there", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      assert.strictEqual((yield* ForeignKey.list())[0]?.index, null)
      assert.deepStrictEqual(rebuilt(yield* ForeignKey.rebuild(build)), [[], [], 1])
      assert.deepStrictEqual(yield* indexes(session), complete)
      assert.match((yield* ForeignKey.list())[0]?.index ?? "", /^child_parent_id_[0-9a-f]{8}_idx$/)
      yield* session.query("CREATE TABLE later PARTITION OF child FOR VALUES FROM (100) TO (200)")
      assert.deepStrictEqual(yield* indexes(session), [...complete, "later: ours part"].toSorted())
      const again = yield* ForeignKey.plan({ ...build, onDelete: "restrict" })
      assert.deepStrictEqual(
        again.steps.filter(({ step }) => step.startsWith("index")),
        []
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("counts as there when each partition has one", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${tables}; CREATE INDEX ON low (parent_id)`)
      assert.strictEqual((yield* ForeignKey.list())[0]?.index, null)
      yield* session.query("CREATE INDEX ON higher (parent_id, id)")
      assert.strictEqual((yield* ForeignKey.list())[0]?.index, "low_parent_id_idx")
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("is built with exactly the planned statements and locks", () =>
    Effect.gen(function* () {
      const session = yield* application
      const observer = yield* application
      yield* session.query(tables)
      const plan = yield* ForeignKey.plan(build)
      assert.isFalse(plan.warnings.some(({ warning }) => warning.startsWith("no index")))
      const steps = plan.steps.filter(({ step }) => step.startsWith("index"))
      assert.deepStrictEqual(
        steps.map(({ step }) => step),
        [
          "index-whole",
          "index",
          "index-whole",
          "index",
          "index-attach",
          "index-attach",
          "index-attach",
          "index-attach"
        ]
      )
      yield* session.query("SET search_path = pg_catalog")
      for (const { locks, sql, step } of steps) {
        for (const statement of sql.filter((statement) => statement !== "COMMIT")) {
          yield* session.query(statement)
        }
        if (sql[0]?.startsWith("BEGIN") !== true) continue
        const planned = Object.fromEntries(
          locks.map(({ mode, relation }) => [relation.replace(/^public\./, ""), mode])
        )
        const held = yield* heldBy(
          observer,
          session.processId,
          step === "index-attach" ? ["r", "p", "i", "I"] : ["r", "p"]
        )
        assert.deepStrictEqual(held, planned, step)
        yield* session.query("COMMIT")
      }
      yield* session.query("RESET search_path")
      assert.deepStrictEqual(yield* indexes(session), complete)
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("is in the script for psql, outside of transactions where it has to be", () =>
    Effect.gen(function* () {
      const { url } = yield* emptyDatabase
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(tables)
        const { code, stderr } = yield* psql(url, ForeignKey.planScript(yield* ForeignKey.plan(build)))
        assert.strictEqual(code, 0, stderr)
        assert.deepStrictEqual(yield* indexes(session), complete)
        assert.strictEqual((yield* ForeignKey.list())[0]?.onDelete, "cascade")
      }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
    })
  )

  inFull(it).scopedLive("is finished by a rerun after its session was ended at any statement", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      yield* session.query(`
        CREATE SCHEMA crash;
        CREATE SEQUENCE crash.command;
        CREATE FUNCTION crash.explode() RETURNS event_trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF nextval('crash.command') = nullif(current_setting('crash.at', true), '')::int THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
            PERFORM pg_sleep(60);
          END IF;
        END $$;
        CREATE EVENT TRIGGER explode ON ddl_command_end WHEN TAG IN ('CREATE INDEX', 'ALTER INDEX', 'DROP INDEX')
          EXECUTE FUNCTION crash.explode()`)
      const arm = (at: number) =>
        session.query(`
          SELECT setval('crash.command', 1, false);
          DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET crash.at = ${at}', current_database()); END $$`)
      for (let at = 1; ; at = next(at)) {
        yield* arm(at)
        const first = yield* ForeignKey.rebuild(build)
        yield* arm(0)
        if (first.failed.length > 0) {
          assert.deepStrictEqual(rebuilt(yield* ForeignKey.rebuild(build)), [[], [], 1])
        }
        assert.deepStrictEqual(yield* indexes(session), complete)
        yield* session.query(`DO $$ BEGIN
          EXECUTE format('DROP INDEX %s', (SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'child'::regclass));
          CREATE INDEX mine ON highest (parent_id);
        END $$`)
        yield* ForeignKey.rebuild(undo)
        if (first.failed.length === 0) {
          assert.isAbove(at, 8)
          break
        }
      }
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("does not keep what a build that was ended in its middle has left", () =>
    Effect.gen(function* () {
      const session = yield* application
      const other = yield* application
      yield* session.query(tables)
      // A build waits, CONCURRENTLY, for the end of a transaction that has written to the
      // partition.
      yield* other.query("BEGIN; INSERT INTO low VALUES (1, 1)")
      const fiber = yield* Effect.fork(ForeignKey.rebuild(build))
      const ended = yield* Ref.make(0)
      yield* eventually(
        "a build that waits",
        session
          .query(
            `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'CREATE INDEX CONCURRENTLY%'`
          )
          .pipe(
            Effect.tap((rows) => Ref.set(ended, rows.length)),
            Effect.map((rows) => rows.length === 1)
          )
      )
      assert.strictEqual((yield* Fiber.join(fiber)).failed[0]?.code, "ServerShutdown")
      yield* other.query("COMMIT")
      assert.includeMembers([...(yield* indexes(session))], ["low: ours invalid"])
      assert.include(
        (yield* ForeignKey.plan(build)).steps.map(({ step }) => step),
        "index-drop"
      )
      assert.deepStrictEqual(rebuilt(yield* ForeignKey.rebuild(build)), [[], [], 1])
      assert.deepStrictEqual(yield* indexes(session), complete)
    }).pipe(Effect.provide(database))
  )

  const old = [
    ["a snapshot elsewhere", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM parent", []],
    ["a lock on the partition", "BEGIN; INSERT INTO low VALUES (1, 1)", ["low: ours invalid"]]
  ] as const
  for (const [who, statement, left] of old) {
    inFull(it).scopedLive(`waits within the budget only for an old transaction that has ${who}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        const other = yield* application
        yield* session.query(tables)
        yield* other.query(statement)
        const { failed, rebuilt: none } = yield* ForeignKey.rebuild({ ...build, budget: "1 second" })
        assert.deepStrictEqual([none, failed.map(({ code }) => code)], [[], ["LockBudgetExhausted"]])
        assert.include(failed[0]?.reason, `in the way: client backend ${other.processId}`)
        assert.deepStrictEqual(
          (yield* indexes(session)).filter((index) => index.endsWith("invalid")),
          ["child: ours invalid", ...left]
        )
        assert.strictEqual((yield* ForeignKey.list())[0]?.onDelete, "no-action")
        yield* other.query("COMMIT")
        assert.deepStrictEqual(rebuilt(yield* ForeignKey.rebuild(build)), [[], [], 1])
        assert.deepStrictEqual(yield* indexes(session), complete)
      }).pipe(Effect.provide(database))
    )
  }

  inMatrix(it).scopedLive(
    "is attached as soon as a transaction that uses a partition has ended, and makes nobody wait for it",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        const other = yield* application
        const third = yield* application
        yield* session.query(tables)
        yield* other.query("BEGIN; SELECT count(*) FROM highest WHERE parent_id = 1")
        const waits = yield* Deferred.make<ReadonlyArray<ForeignKey.Blocker>>()
        const fiber = yield* Effect.fork(
          ForeignKey.rebuild({
            ...build,
            onProgress: (event) =>
              event._tag === "Waiting" && event.step === "index-attach"
                ? Deferred.succeed(waits, event.blockers)
                : Effect.void
          })
        )
        assert.deepStrictEqual(
          (yield* Deferred.await(waits)).map(({ pid }) => pid),
          [other.processId]
        )
        yield* third.query("SET lock_timeout = '1s'")
        yield* third.query("INSERT INTO highest (id, parent_id) VALUES (60, 1)")
        yield* third.query("SELECT count(*) FROM child")
        yield* other.query("COMMIT")
        assert.deepStrictEqual(rebuilt(yield* Fiber.join(fiber)), [[], [], 1])
        assert.deepStrictEqual(yield* indexes(session), complete)
      }).pipe(Effect.provide(database))
  )
})
