import { assert, describe, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import type { Session } from "../../src/connection/session.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, comparable, database, leftovers, snapshots } from "./support.js"
import { cases, next } from "../support/length.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent DEFERRABLE);
  COMMENT ON CONSTRAINT fk ON child IS 'kept';
  INSERT INTO parent SELECT generate_series(1, 10);
  INSERT INTO child SELECT id, id FROM parent`

/**
 * Somebody else's event trigger, which does something in the transaction that drops the original.
 */
const meddle = (statement: string, when = "true") => `
  CREATE SCHEMA meddling;
  CREATE FUNCTION meddling.meddle() RETURNS event_trigger LANGUAGE plpgsql SET search_path = public AS $$
  BEGIN
    IF current_setting('meddling.done', true) IS DISTINCT FROM 'yes' AND EXISTS (
      SELECT FROM pg_constraint WHERE conname = 'fk' AND confdeltype = 'c'
    ) AND ${when} THEN
      PERFORM set_config('meddling.done', 'yes', true);
      ${statement};
    END IF;
  END $$;
  CREATE EVENT TRIGGER meddle ON ddl_command_end WHEN TAG IN ('COMMENT') EXECUTE FUNCTION meddling.meddle()`

const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

const change = (swapTries: number, options: Partial<ForeignKey.RebuildOptions> = {}) =>
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", swapTries, ...options })

describe("a change whose result would differ from the original", () => {
  const meddling = [
    ["0.comment", "COMMENT ON CONSTRAINT fk ON child IS 'meddled with'"],
    ["0.constraint.condeferrable", "ALTER TABLE child ALTER CONSTRAINT fk NOT DEFERRABLE"],
    ["0.triggers.0.enabled", "ALTER TABLE parent DISABLE TRIGGER ALL"],
    ["constraint", "ALTER TABLE child DROP CONSTRAINT fk"]
  ] as const
  for (const [field, statement] of cases(meddling, ([field]) => field.includes("enabled"))) {
    it.scopedLive(`is rolled back, and names what differs: ${statement}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(tables)
        const before = comparable(yield* snapshots(session))
        yield* session.query(meddle(statement))
        const { failed, rebuilt, refused } = yield* change(60)
        assert.deepStrictEqual([refused, rebuilt, failed.map(({ code }) => code)], [[], [], ["Unfaithful"]])
        assert.include(failed[0]?.reason, `${field} (`)
        assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
        assert.deepStrictEqual(yield* leftovers(session), [])
        assert.deepStrictEqual(
          (yield* ForeignKey.history()).map(({ outcome }) => outcome),
          ["taken back"]
        )
        yield* session.query("DROP EVENT TRIGGER meddle")
        assert.strictEqual((yield* change(60)).rebuilt.length, 1)
      }).pipe(Effect.provide(database))
    )
  }

  inMatrix(it).scopedLive("keeps both keys if the original has stepped aside, until it is run again", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      yield* session.query(
        meddle(
          "ALTER TABLE parent DISABLE TRIGGER ALL",
          "NOT EXISTS (SELECT FROM pg_constraint WHERE conname LIKE '%_old_%')"
        )
      )
      const { failed } = yield* change(0)
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["Unfaithful"]
      )
      assert.deepStrictEqual(
        yield* session.query("SELECT DISTINCT tgenabled FROM pg_trigger WHERE tgrelid = 'parent'::regclass"),
        [{ tgenabled: "O" }]
      )
      yield* session.query("DROP EVENT TRIGGER meddle")
      assert.strictEqual((yield* change(0)).rebuilt.length, 1)
      assert.deepStrictEqual(yield* leftovers(session), [])
    }).pipe(Effect.provide(database))
  )
})

/** What somebody else does to the key, and whether it is there afterwards. */
const events = [
  ["dropped", "ALTER TABLE child DROP CONSTRAINT fk", "gone"],
  ["renamed", "ALTER TABLE child RENAME CONSTRAINT fk TO other", "gone"],
  [
    "dropped and created again, with other actions",
    `ALTER TABLE child DROP CONSTRAINT fk;
      ALTER TABLE child ADD CONSTRAINT fk FOREIGN KEY (parent_id) REFERENCES parent ON UPDATE CASCADE`,
    "there"
  ],
  ["given another comment", "COMMENT ON CONSTRAINT fk ON child IS 'by somebody else'", "there"],
  ["given another mode", "ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE INITIALLY DEFERRED", "there"],
  ["in a table that is renamed", "ALTER TABLE child RENAME TO infant", "there"],
  ["in a table that is dropped", "DROP TABLE child", "gone"],
  ["on a column that is renamed", "ALTER TABLE child RENAME COLUMN parent_id TO guardian", "there"]
] as const

const keys = (session: Session) =>
  session.query<{
    readonly name: string
    readonly action: string
    readonly comment: string | null
    readonly mode: string
  }>(
    `SELECT conname::text AS name, confdeltype AS action, confupdtype AS update, obj_description(oid, 'pg_constraint') AS comment,
      CASE WHEN NOT condeferrable THEN 'not deferrable' WHEN condeferred THEN 'deferred' ELSE 'immediate' END AS mode
    FROM pg_constraint WHERE contype = 'f'`
  )

/** Where somebody can come in between; the steps before the swap are the same on both ways. */
const isStop = (event: ForeignKey.Progress, swapTries: number) =>
  swapTries > 0
    ? event._tag === "StepStarted" || event._tag === "StepDone"
    : event._tag === "StepStarted" && /^(switch|drop|settle)/.test(event.step)

const telling = new Set(["dropped and created again, with other actions, in one transaction"])

describe("a key that somebody else changes between any two steps", () => {
  for (const [what, statement, afterwards] of events) {
    for (const [way, swapTries] of cases(ways, ([way]) => telling.has(`${what}, ${way}`))) {
      it.scopedLive(`${what}, ${way}`, () =>
        Effect.gen(function* () {
          const session = yield* application
          for (let at = 1; ; at = next(at)) {
            yield* session.query(`DROP TABLE IF EXISTS child, infant, parent; ${tables}`)
            const seen = yield* Ref.make(0)
            const found = yield* Ref.make(yield* keys(session))
            const result = yield* change(swapTries, {
              onProgress: (event) =>
                Effect.gen(function* () {
                  if (!isStop(event, swapTries)) return
                  if ((yield* Ref.updateAndGet(seen, (n) => n + 1)) !== at) return
                  yield* Ref.set(found, yield* keys(session))
                  yield* session.query(statement)
                }).pipe(Effect.orDie)
            })
            const where = `at ${at}: ${JSON.stringify(result)}`
            const happened = (yield* Ref.get(seen)) >= at
            const isGone = happened && afterwards === "gone"
            assert.deepStrictEqual(
              [result.refused, result.failed.map(({ code }) => code), result.rebuilt.length],
              isGone ? [[], ["Disappeared"], 0] : [[], [], 1],
              where
            )
            // Until it is settled a key that is INITIALLY IMMEDIATE looks as if somebody had given
            // it the other mode.
            const isOpen = (yield* Ref.get(found)).some(
              ({ action, mode, name }) => name === "fk" && action === "c" && mode === "deferred"
            )
            const after = yield* keys(session)
            assert.deepStrictEqual(yield* leftovers(session), [], where)
            assert.deepStrictEqual(yield* ForeignKey.check(), [], where)
            assert.deepStrictEqual(
              after.map(({ name }) => name),
              !isGone ? ["fk"] : what === "renamed" ? ["other"] : [],
              where
            )
            for (const key of after) {
              const isNew = happened && what.startsWith("dropped and created")
              const isOther = happened && what === "given another comment"
              assert.deepInclude(
                key,
                {
                  ...(isGone ? {} : { action: "c", update: isNew ? "c" : "a" }),
                  comment: isNew ? null : isOther ? "by somebody else" : "kept",
                  mode: isNew
                    ? "not deferrable"
                    : happened && !isOpen && what === "given another mode"
                      ? "deferred"
                      : "immediate"
                },
                where
              )
            }
            if (!happened) break
          }
        }).pipe(Effect.provide(database))
      )
    }
  }

  it.scopedLive("is changed all the same where somebody drops the new key before the swap", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      let dropped = 0
      const { failed, rebuilt } = yield* change(60, {
        onProgress: (event) =>
          event._tag === "StepStarted" && event.step === "swap" && dropped++ === 0
            ? Effect.orDie(
                Effect.asVoid(
                  session.query(`DO $$ BEGIN EXECUTE (
                    SELECT format('ALTER TABLE child DROP CONSTRAINT %I', conname) FROM pg_constraint
                    WHERE conname LIKE 'promptgrimoire_fk_new_%'
                  ); END $$`)
                )
              )
            : Effect.void
      })
      assert.deepStrictEqual([failed, rebuilt.length, dropped], [[], 1, 2])
      assert.deepStrictEqual(yield* leftovers(session), [])
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("again and again ends the run, and keeps what it was given", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      let times = 0
      const { failed, rebuilt } = yield* change(60, {
        onProgress: (event) =>
          event._tag === "StepStarted" && event.step === "swap"
            ? Effect.orDie(
                Effect.asVoid(session.query(`COMMENT ON CONSTRAINT fk ON child IS '${String(++times)}'`))
              )
            : Effect.void
      })
      assert.deepStrictEqual([rebuilt, failed.map(({ code }) => code)], [[], ["Unstable"]])
      assert.strictEqual((yield* ForeignKey.list())[0]?.onDelete, "no-action")
      assert.strictEqual((yield* change(60)).rebuilt.length, 1)
      assert.deepInclude((yield* keys(session))[0], { comment: String(times) })
    }).pipe(Effect.provide(database))
  )
})

describe("a key whose record somebody removed while no run was there", () => {
  it.scopedLive("is not finished, and what is in force and what is left is named", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      const fiber = yield* Effect.fork(
        change(0, {
          onProgress: (event) =>
            event._tag === "StepDone" && event.step === "switch-names" ? Effect.interrupt : Effect.void
        })
      )
      yield* Fiber.await(fiber)
      yield* session.query("COMMENT ON CONSTRAINT fk ON child IS NULL")
      const { failed } = yield* change(60)
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["RecordLost"]
      )
      assert.match(
        failed[0]?.reason ?? "",
        /compare it with public\.child\.promptgrimoire_fk_old_[0-9a-f]{24} and/
      )
      assert.strictEqual((yield* ForeignKey.list())[0]?.onDelete, "cascade")
    }).pipe(Effect.provide(database))
  )
})

describe("a step that names what is not there although nobody changes the key", () => {
  it.scopedLive("fails with the server's error, not as if others changed it", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      yield* session.query(`
        CREATE FUNCTION broken() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM FROM public.no_such_table; END $$;
        CREATE EVENT TRIGGER broken ON ddl_command_end WHEN TAG IN ('COMMENT') EXECUTE FUNCTION broken()`)
      const { failed } = yield* change(60, { rehearse: false })
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["UndefinedObject"]
      )
      assert.deepStrictEqual(yield* leftovers(session), [])
    }).pipe(Effect.provide(database))
  )
})
