import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, comparable, database, leftovers, snapshots } from "./support.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent DEFERRABLE);
  COMMENT ON CONSTRAINT fk ON child IS 'kept';
  INSERT INTO parent SELECT generate_series(1, 10);
  INSERT INTO child SELECT id, id FROM parent`

const change = (swapTries: number, options: Partial<ForeignKey.RebuildOptions> = {}) =>
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", swapTries, ...options })

describe("a step that is not done soon after it got its locks", () => {
  it.scopedLive("is tried again for as long as the budget lasts, and says that it had its locks", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      // What a sequence has given out stays so when the transaction is rolled back.
      yield* session.query(`
        CREATE SEQUENCE tries;
        CREATE FUNCTION dawdle() RETURNS event_trigger LANGUAGE plpgsql SET search_path = public AS $$
        BEGIN
          IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'fk' AND confdeltype = 'a') AND nextval('tries') < 7
          THEN PERFORM pg_sleep(5); END IF;
        END $$;
        CREATE EVENT TRIGGER dawdle ON ddl_command_end WHEN tag IN ('COMMENT') EXECUTE FUNCTION dawdle()`)
      const waits: Array<ForeignKey.Progress & { readonly _tag: "Waiting" }> = []
      const { failed, rebuilt } = yield* change(60, {
        lockTimeout: "100 millis",
        onProgress: (event) =>
          Effect.sync(() => {
            if (event._tag === "Waiting") waits.push(event)
          })
      })
      assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      const slow = waits.filter((wait) => wait.slow > 0)
      assert.isAbove(slow.length, 0)
      for (const wait of slow) assert.deepInclude(wait, { step: "swap", lockTimeoutMs: 100, blockers: [] })
    }).pipe(Effect.provide(database))
  )

  for (const [what, sleeps] of [
    ["because one statement takes long", "IF tg_tag = 'COMMENT' THEN PERFORM pg_sleep(5); END IF"],
    ["because all of them together take long", "PERFORM pg_sleep(0.4)"]
  ] as const) {
    inFull(it).scopedLive(`is rolled back, ${what}, and done when it is given more time`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(tables)
        const before = comparable(yield* snapshots(session))["public.child.fk"]
        yield* session.query(`
          CREATE FUNCTION dawdle() RETURNS event_trigger LANGUAGE plpgsql SET search_path = public AS $$
          BEGIN
            IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'fk' AND confdeltype = 'a') THEN ${sleeps}; END IF;
          END $$;
          CREATE EVENT TRIGGER dawdle ON ddl_command_end EXECUTE FUNCTION dawdle()`)
        const { failed, rebuilt } = yield* change(60, { lockTimeout: "600 millis", budget: "1 second" })
        assert.deepStrictEqual([rebuilt, failed.map(({ code }) => code)], [[], ["StepTooSlow"]])
        assert.match(
          failed[0]?.reason ?? "",
          /^step swap was not done within the budget: (1 try|\d tries) had the locks, needed longer than 600 ms \(the lock timeout\)/
        )
        assert.deepStrictEqual(comparable(yield* snapshots(session))["public.child.fk"], before)
        const again = yield* change(60, { lockTimeout: "20 seconds" })
        assert.deepStrictEqual([again.failed, again.rebuilt.length], [[], 1])
        assert.isAbove(again.rebuilt[0]?.longestLockMs ?? 0, 600)
        assert.deepStrictEqual(yield* leftovers(session), [])
      }).pipe(Effect.provide(database))
    )
  }
})
