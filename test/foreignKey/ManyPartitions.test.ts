import { assert, describe, it } from "../support/it.js"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ForeignKey from "../../src/ForeignKey.js"
import { safetyNet } from "../support/speed.js"
import { application, database } from "./support.js"

const partitions = 200

describe("a table of many partitions", () => {
  it.scopedLive(`is changed with all of its ${partitions} partitions`, () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`
          CREATE TABLE parent (id int PRIMARY KEY);
          CREATE TABLE child (id int, parent_id int CONSTRAINT child_parent REFERENCES parent) PARTITION BY RANGE (id);
          DO $$ BEGIN
            FOR n IN 1 .. ${partitions} LOOP
              EXECUTE format('CREATE TABLE child_%s PARTITION OF child FOR VALUES FROM (%s) TO (%s)', n, n, n + 1);
            END LOOP;
          END $$;
          INSERT INTO parent SELECT generate_series(1, ${partitions});
          INSERT INTO child SELECT id, id FROM parent`)
      // The swap computes for some 90 ms on a quiet machine.
      const limit = Duration.toMillis(safetyNet("1 second"))
      const { failed, rebuilt, refused } = yield* ForeignKey.rebuild({
        selectors: {},
        onDelete: "cascade",
        lockTimeout: limit
      })
      assert.deepStrictEqual([refused, failed], [[], []])
      // The limit does not hold for COMMIT, nor for the way of its answer.
      assert.isBelow(rebuilt[0]?.longestLockMs ?? Infinity, 1.25 * limit)
      assert.deepStrictEqual(yield* ForeignKey.check(), [])
      yield* session.query("DELETE FROM parent")
      assert.deepStrictEqual(yield* session.query("SELECT id FROM child"), [])
    }).pipe(Effect.provide(database))
  )
})
