import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ForeignKey from "../../src/ForeignKey.js"
import { converges, prepared, rebuild, stopped } from "./Crash.js"
import { database } from "./support.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (
    id int PRIMARY KEY,
    parent_id int CONSTRAINT child_parent REFERENCES parent ON UPDATE CASCADE DEFERRABLE
  );
  COMMENT ON CONSTRAINT child_parent ON child IS 'kept';
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id, id FROM parent`

describe("a change that is stopped", () => {
  stopped("of plain tables", tables, 8)

  it.scopedLive("converges when run again after its session was ended in the middle of validation", () =>
    Effect.gen(function* () {
      const { reference, session } = yield* prepared(tables, 60)
      yield* session.query(
        "INSERT INTO child SELECT id, 1 + id % 100 FROM generate_series(1000, 1000000) AS id"
      )
      const fiber = yield* Effect.fork(rebuild("cascade", 60))
      let ended: ReadonlyArray<unknown> = []
      while (ended.length === 0 && (yield* Fiber.poll(fiber))._tag === "None") {
        ended = yield* session.query(
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Lock'
            AND query LIKE '%VALIDATE%' AND pid <> pg_backend_pid()`
        )
      }
      const result = yield* Fiber.join(fiber)
      assert.strictEqual(ended.length, 1)
      assert.strictEqual(result.failed[0]?.code, "ServerShutdown")
      const [key] = yield* ForeignKey.list()
      assert.deepInclude(key, { onDelete: "no-action", validated: true })
      yield* converges(session, 60, reference)
    }).pipe(Effect.provide(database))
  )
})
