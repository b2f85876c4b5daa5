/**
 * SET CONSTRAINTS keeps its state by the constraint's OID, so what an application has deferred by
 * name is another constraint after the swap.
 */
import { assert, describe, inMatrix, it } from "../support/it.js"
import { cases } from "../support/length.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Session } from "../../src/connection/session.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, comparable, database, snapshots } from "./support.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent DEFERRABLE);
  COMMENT ON CONSTRAINT fk ON child IS 'kept';
  INSERT INTO parent VALUES (1);
  INSERT INTO child VALUES (1, 1)`

/** What the catalogs say of every key. */
const keys = (session: Session) =>
  session.query(
    `SELECT conname::text AS name, confdeltype AS action, condeferrable AS deferrable, condeferred AS deferred,
      obj_description(oid, 'pg_constraint') LIKE 'promptgrimoire-db%' AS marked
    FROM pg_constraint WHERE contype = 'f'`
  )

/** The child first: allowed to who defers the key. */
const childFirst = "INSERT INTO child VALUES (2, 2); INSERT INTO parent VALUES (2)"

const change = (
  settlePatience: ForeignKey.RebuildOptions["settlePatience"],
  swapTries: number,
  swapped: Effect.Effect<unknown>
) =>
  ForeignKey.rebuild({
    selectors: {},
    onDelete: "cascade",
    settlePatience,
    swapTries,
    onProgress: (event) =>
      event._tag === "StepDone" && (event.step === "swap" || event.step === "drop-original")
        ? Effect.asVoid(swapped)
        : Effect.void
  })

const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

describe("a transaction that has deferred the key by name before the swap, and touches the tables after it", () => {
  for (const [way, swapTries] of cases(ways, ([way]) => way === "table by table")) {
    inMatrix(it).scopedLive(`commits within settlePatience, and the key is settled after it, ${way}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        const observer = yield* application
        yield* session.query(tables)
        yield* session.query("BEGIN; SET CONSTRAINTS fk DEFERRED")
        const swapped = yield* Deferred.make<void>()
        const fiber = yield* Effect.fork(change("1 minute", swapTries, Deferred.succeed(swapped, undefined)))
        yield* Deferred.await(swapped)
        assert.deepStrictEqual(yield* keys(observer), [
          { name: "fk", action: "c", deferrable: true, deferred: true, marked: true }
        ])
        // Until then it is checked when a transaction commits, and no later.
        const refused = yield* Effect.flip(observer.query("BEGIN; INSERT INTO child VALUES (9, 9); COMMIT"))
        assert.deepInclude(refused.reason, { _tag: "ForeignKeyViolation", constraint: "fk" })
        yield* session.query(childFirst)
        yield* session.query("COMMIT")
        const { failed, rebuilt } = yield* Fiber.join(fiber)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        assert.deepStrictEqual(yield* keys(observer), [
          { name: "fk", action: "c", deferrable: true, deferred: false, marked: false }
        ])
      }).pipe(Effect.provide(database))
    )

    it.scopedLive(`gets an error that names the key if it is open for longer, ${way}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        const observer = yield* application
        yield* session.query(tables)
        const before = comparable(yield* snapshots(observer))
        yield* session.query("BEGIN; SET CONSTRAINTS fk DEFERRED")
        const { failed, rebuilt } = yield* change("300 millis", swapTries, Effect.void)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        const refused = yield* Effect.flip(session.query(childFirst))
        assert.deepInclude(refused.reason, { _tag: "ForeignKeyViolation", constraint: "fk" })
        yield* session.query("ROLLBACK")
        // Who defers it now, defers the new key.
        yield* session.query(`BEGIN; SET CONSTRAINTS fk DEFERRED; ${childFirst}; COMMIT`)
        yield* ForeignKey.rebuild({ selectors: {}, onDelete: "no-action" })
        assert.deepStrictEqual(comparable(yield* snapshots(observer)), before)
      }).pipe(Effect.provide(database))
    )
  }

  inMatrix(it).scopedLive("is not affected if it has deferred all keys", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      yield* session.query("BEGIN; SET CONSTRAINTS ALL DEFERRED")
      yield* change("100 millis", 60, Effect.void)
      yield* session.query(`${childFirst}; COMMIT`)
      assert.deepStrictEqual(yield* session.query("SELECT count(*)::int AS n FROM child"), [{ n: 2 }])
    }).pipe(Effect.provide(database))
  )
})
