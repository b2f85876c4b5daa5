import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import type * as Database from "../../src/Database.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, comparable, database, snapshots } from "./support.js"
import * as Traffic from "./Traffic.js"
import { cases, isFull } from "../support/length.js"

/**
 * Nobody waits for a scan, or for a lost try of our cap: for no longer than that, beyond what this
 * machine makes everything wait.
 */
const bearable = ({ longestPingMillis }: Traffic.Report) => 1_000 + 20 * longestPingMillis

const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

/**
 * Changes the key with these applications beside it, and looks at what they and it went through.
 */
const soak = (
  cut: Traffic.Cut,
  swapTries: number,
  actions: ReadonlyArray<ForeignKey.Action>,
  mode?: string
) =>
  Effect.gen(function* () {
    const session = yield* application
    yield* session.query(Traffic.tables(cut, mode))
    const { report, result } = yield* Traffic.beside(
      Effect.forEach(actions, (onDelete) =>
        ForeignKey.rebuild({ selectors: {}, onDelete, swapTries, allowRowMovement: true })
      )
    )
    for (const { failed, rebuilt, refused } of result) {
      assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 1])
      assert.isBelow(rebuilt[0]?.longestLockMs ?? Infinity, bearable(report))
    }
    assert.deepStrictEqual(report.errors, [])
    assert.isBelow(report.longestMillis, bearable(report))
    assert.isAbove(report.done, 100)
    assert.deepStrictEqual(yield* session.query(Traffic.orphans), [{ n: 0 }])
  }).pipe(Effect.provide(database))

/** In `npm test` the plainest tables are changed as they usually are. */
const isTelling = (cut: Traffic.Cut, swapTries: number) => cut === "neither" && swapTries > 0

const thereAndBack = isFull
  ? (["cascade", "no-action", "cascade", "restrict"] as const)
  : (["cascade", "no-action"] as const)

describe("applications", () => {
  for (const cut of ["neither", "child", "parent", "both"] as const) {
    for (const [way, swapTries] of cases(ways, ([, swapTries]) => isTelling(cut, swapTries))) {
      it.scopedLive(
        `neither fail nor deadlock nor wait long while a key is changed there and back, ${way}, partitioned: ${cut}`,
        () => soak(cut, swapTries, thereAndBack)
      )
    }
  }

  inFull(it).scopedLive(
    "neither fail nor deadlock nor wait long while a key is changed that points to its own table",
    () => soak("one table", 60, ["cascade", "no-action", "cascade", "restrict"])
  )

  for (const [way, swapTries] of ways) {
    inFull(it).scopedLive(
      `neither fail nor deadlock nor wait long while a key is changed that is checked at commit, ${way}`,
      () => soak("neither", swapTries, ["cascade", "no-action"], "DEFERRABLE INITIALLY DEFERRED")
    )
  }

  for (const cut of ["neither", "child", "parent", "both"] as const) {
    for (const [way, swapTries] of cases(ways, ([, swapTries]) => isTelling(cut, swapTries))) {
      it.scopedLive(
        `see the original's name in every error, also in the middle of a change, ${way}, partitioned: ${cut}`,
        () =>
          Effect.gen(function* () {
            const session = yield* application
            yield* session.query(Traffic.tables(cut))
            const probe = (names: Set<string | undefined>) =>
              Effect.gen(function* () {
                for (const statement of [
                  "INSERT INTO child (parent_id) VALUES (-1)",
                  "UPDATE child SET parent_id = -1 WHERE id = 1",
                  "DELETE FROM parent WHERE id = 1"
                ]) {
                  const error = yield* Effect.flip(session.query(`BEGIN; ${statement}; COMMIT`)).pipe(
                    Effect.tap(session.query("ROLLBACK")),
                    Effect.catchAll(() => Effect.as(session.query("ROLLBACK"), undefined))
                  )
                  if (error !== undefined && "constraint" in error.reason) {
                    names.add(error.reason.constraint)
                  }
                }
              })
            const originals = new Set<string | undefined>()
            yield* probe(originals)
            const names = new Set<string | undefined>()
            // From one action that raises an error to another the steps that lock one table each
            // cannot do that (see the documentation).
            const raising = swapTries === 0 ? [] : (["no-action"] as const)
            for (const onDelete of ["cascade", "restrict", ...raising] as const) {
              const { rebuilt } = yield* ForeignKey.rebuild({
                selectors: {},
                onDelete,
                swapTries,
                allowRowMovement: true,
                onProgress: () => Effect.orDie(probe(names))
              })
              assert.strictEqual(rebuilt.length, 1)
            }
            assert.deepStrictEqual(names, originals)
            assert.include([...originals], "fk")
          }).pipe(Effect.provide(database))
      )
    }
  }

  inMatrix(it).scopedLive(
    "keep the old behaviour during a change even if the new triggers' names sort first",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(Traffic.tables())
        // As if the database's OIDs had got another digit since the key was made: "..._99" sorts
        // after "..._100000".
        yield* session.query(`
        DO $$ DECLARE r record; BEGIN
          FOR r IN SELECT tgname, tgrelid::regclass AS relation FROM pg_trigger WHERE tgisinternal LOOP
            EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, 'RI_ConstraintTrigger_zz' || r.tgname);
          END LOOP;
        END $$`)
        const before = comparable(yield* snapshots(session))
        const live: Array<ForeignKey.Action> = []
        const refused: Array<string | undefined> = []
        const probe = Effect.flip(session.query("DELETE FROM parent WHERE id = 1")).pipe(
          Effect.map((error) =>
            refused.push("constraint" in error.reason ? error.reason.constraint : undefined)
          ),
          Effect.orDie
        )
        yield* ForeignKey.rebuild({
          selectors: {},
          onDelete: "cascade",
          onProgress: (event) =>
            event._tag === "Overlap"
              ? Effect.zipRight(
                  Effect.sync(() => live.push(event.live)),
                  probe
                )
              : Effect.void
        })
        assert.deepStrictEqual([live, refused], [["no-action"], ["fk"]])
        yield* ForeignKey.rebuild({ selectors: {}, onDelete: "no-action" })
        assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("that hold a lock for long are named, never ended, and stop nobody else", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(Traffic.tables())
      const reader = yield* application
      yield* reader.query("SET application_name = 'dump'; BEGIN; SELECT count(*) FROM child")
      const seen = new Set<number | null>()
      const { report, result } = yield* Traffic.beside(
        ForeignKey.rebuild({
          selectors: {},
          onDelete: "cascade",
          budget: "3 seconds",
          onProgress: (event) =>
            Effect.sync(() => {
              if (event._tag === "Waiting") event.blockers.forEach(({ pid }) => seen.add(pid))
            })
        })
      )
      assert.strictEqual(result.failed[0]?.code, "LockBudgetExhausted")
      assert.include(result.failed[0]?.reason, `${reader.processId} (dump)`)
      assert.isTrue(seen.has(reader.processId))
      assert.deepStrictEqual(report.errors, [])
      assert.isBelow(report.longestMillis, bearable(report))
      yield* reader.query("COMMIT")
      const { rebuilt } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
      assert.strictEqual(rebuilt.length, 1)
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("are protected from two changes at a time", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(Traffic.tables())
      const services = yield* Effect.context<Database.Database>()
      const inner = ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", patience: 0 })
      const errors = new Set<string>()
      yield* ForeignKey.rebuild({
        selectors: {},
        onDelete: "cascade",
        onProgress: () =>
          Effect.flip(inner).pipe(
            Effect.map((error) => errors.add(error._tag)),
            Effect.orDie,
            Effect.provide(services)
          )
      })
      assert.deepStrictEqual([...errors], ["Busy"])
    }).pipe(Effect.provide(database))
  )
})
