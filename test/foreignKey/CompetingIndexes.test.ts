import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import { application, comparable, database, heldBy, snapshots } from "./support.js"
import { cases } from "../support/length.js"

/** The key is bound to the index with the highest OID; `bystander` is bound to another one. */
const tables = Effect.fnUntraced(function* (session: Session) {
  yield* session.query(`
    CREATE TABLE parent (id int CONSTRAINT "first Key" UNIQUE);
    ALTER TABLE parent ADD CONSTRAINT second UNIQUE (id);
    CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent (id));
    INSERT INTO parent SELECT generate_series(1, 10);
    INSERT INTO child SELECT id FROM parent`)
  yield* session.query('REINDEX INDEX CONCURRENTLY "first Key"')
  yield* session.query("CREATE TABLE bystander (parent_id int CONSTRAINT other REFERENCES parent (id))")
})

const child = { tables: [{ table: "child" }] }

const change = (onDelete: ForeignKey.Action, options: Partial<ForeignKey.RebuildOptions> = {}) =>
  ForeignKey.rebuild({ selectors: child, onDelete, ...options })

const bound = (session: Session) =>
  session.query(
    "SELECT conname::text AS key, conindid::regclass::text AS index FROM pg_constraint WHERE contype = 'f' ORDER BY 1"
  )

const invalid = (session: Session) =>
  session.query("SELECT indexrelid::regclass::text AS index FROM pg_index WHERE NOT indisvalid")

const wasBound = [
  { key: "fk", index: '"first Key"' },
  { key: "other", index: "second" }
]

describe("a key that is bound to one of several equal unique indexes", () => {
  it.scopedLive("is bound to the same one after its action was changed, and other keys keep theirs", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* tables(session)
      assert.deepStrictEqual(yield* bound(session), wasBound)
      const before = comparable(yield* snapshots(session))
      const { steps } = yield* ForeignKey.plan({ selectors: child, onDelete: "cascade" })
      assert.deepInclude(
        steps.find(({ step }) => step === "reindex"),
        {
          sql: ['REINDEX INDEX CONCURRENTLY "public"."second"'],
          locks: [{ relation: "public.parent", mode: "SHARE UPDATE EXCLUSIVE" }]
        }
      )
      for (const onDelete of ["cascade", "no-action"] as const) {
        const { failed, rebuilt, refused } = yield* change(onDelete)
        assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 1])
      }
      assert.deepStrictEqual(yield* bound(session), wasBound)
      const after = comparable(yield* snapshots(session))
      assert.deepStrictEqual(after["public.child.fk"], before["public.child.fk"])
      const all = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
      assert.strictEqual(all.rebuilt.length, 2)
      assert.deepStrictEqual(yield* bound(session), wasBound)
      assert.deepStrictEqual([yield* invalid(session), yield* ForeignKey.check()], [[], []])
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive(
    "is changed beside writers: the step waits for old transactions, nobody waits for it",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        const writer = yield* application
        yield* tables(session)
        const { steps } = yield* ForeignKey.plan({ selectors: child, onDelete: "cascade" })
        const planned = steps.find(({ step }) => step === "reindex")?.locks ?? []
        yield* session.query("BEGIN; INSERT INTO parent VALUES (11)")
        const waits: Array<ForeignKey.Blocker> = []
        const fiber = yield* Effect.fork(
          change("cascade", {
            onProgress: (event) =>
              Effect.sync(() => {
                if (event._tag === "Waiting" && event.step === "reindex") waits.push(...event.blockers)
              })
          })
        )
        yield* eventually(
          "the step waits, and says for whom",
          Effect.sync(() => waits.some(({ pid }) => pid === session.processId))
        )
        const [ours] = yield* writer.query<{ pid: number }>(
          "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'REINDEX%' AND pid <> pg_backend_pid()"
        )
        assert.deepStrictEqual(
          yield* heldBy(writer, ours?.pid ?? 0),
          Object.fromEntries(planned.map(({ mode, relation }) => [relation.replace(/^public\./, ""), mode]))
        )
        yield* writer.query(`SET lock_timeout = '1s'; INSERT INTO parent VALUES (12); INSERT INTO child VALUES (12);
        UPDATE parent SET id = 13 WHERE id = 10 AND false; DELETE FROM parent WHERE id = 99`)
        yield* session.query("COMMIT")
        const { failed, rebuilt, refused } = yield* Fiber.join(fiber)
        assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 1])
        assert.deepStrictEqual(yield* bound(session), wasBound)
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("is given up when the budget is used up, and what was begun is dropped", () =>
    Effect.gen(function* () {
      const session = yield* application
      const other = yield* application
      yield* tables(session)
      // REINDEX waits for this at the very end, and to drop what it built needs no lock of it.
      yield* session.query("CREATE TABLE elsewhere ()")
      yield* other.query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM elsewhere")
      const { failed } = yield* change("cascade", { budget: "1 second" })
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["LockBudgetExhausted"]
      )
      assert.include(failed[0]?.reason, `in the way: client backend ${other.processId}`)
      assert.deepStrictEqual([yield* invalid(session), yield* bound(session)], [[], wasBound])
      yield* other.query("COMMIT")
      assert.strictEqual((yield* change("cascade")).rebuilt.length, 1)
    }).pipe(Effect.provide(database))
  )

  for (const [leftover, holds] of cases(
    [
      ["second_ccnew", "INSERT INTO parent VALUES (11)"],
      ["second_ccold", "SELECT FROM parent"]
    ] as const,
    ([leftover]) => leftover === "second_ccold"
  )) {
    inFull(it).scopedLive(`converges when run again after it was ended with ${leftover} left behind`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* tables(session)
        const before = comparable(yield* snapshots(session))["public.child.fk"]
        yield* session.query(`BEGIN; ${holds}`)
        const fiber = yield* Effect.fork(change("cascade"))
        yield* eventually(
          `${leftover} is there`,
          Effect.map(
            session.query(`SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
              WHERE NOT l.granted AND l.locktype = 'virtualxid' AND a.query LIKE 'REINDEX%' AND to_regclass('${leftover}') IS NOT NULL`),
            (rows) => rows.length > 0
          )
        )
        yield* session.query(
          "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'REINDEX%' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        const { failed } = yield* Fiber.join(fiber)
        yield* session.query("COMMIT")
        assert.strictEqual(failed[0]?.code, "ServerShutdown")
        assert.deepStrictEqual(yield* invalid(session), [{ index: leftover }])
        const plan = yield* ForeignKey.plan({ selectors: child, onDelete: "cascade" })
        assert.strictEqual(
          plan.steps.find(({ step }) => step === "reindex")?.sql[0],
          `DROP INDEX CONCURRENTLY "public"."${leftover}"`
        )
        for (const onDelete of ["cascade", "no-action"] as const) {
          const again = yield* change(onDelete)
          assert.deepStrictEqual([again.failed, again.refused, again.rebuilt.length], [[], [], 1])
        }
        assert.deepStrictEqual(yield* invalid(session), [])
        assert.deepStrictEqual(yield* bound(session), wasBound)
        assert.deepStrictEqual(comparable(yield* snapshots(session))["public.child.fk"], before)
      }).pipe(Effect.provide(database))
    )
  }

  it.scopedLive("is refused where the other index cannot step behind: those of a partitioned table", () =>
    Effect.gen(function* () {
      const session = yield* application
      const version = yield* Catalog.serverVersion(session)
      yield* session.query(`
        CREATE TABLE parent (id int) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF parent DEFAULT;
        ALTER TABLE parent ADD CONSTRAINT first UNIQUE (id);
        ALTER TABLE parent ADD CONSTRAINT second UNIQUE (id);
        ALTER TABLE parent DROP CONSTRAINT first;
        CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent (id))`)
      // The only one can be bound; one with a lower OID cannot be had on a partitioned table, but
      // by a dropped one whose OID is used again.
      yield* session.query(`
        ALTER TABLE parent ADD CONSTRAINT third UNIQUE (id);
        UPDATE pg_constraint SET conindid = 'third'::regclass WHERE conname LIKE 'fk%' AND contype = 'f' AND conindid = 'second'::regclass`)
      const { failed, rebuilt, refused } = yield* change("cascade", { allowRowMovement: version < 150_000 })
      assert.deepStrictEqual([failed, rebuilt, refused[0]?.code], [[], [], "bound-index"])
      assert.include(refused[0]?.reason, "public.second")
      assert.include(refused[0]?.reason, "not for a partitioned one")
    }).pipe(Effect.provide(database))
  )
})
