import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Database from "../../src/Database.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Blocker from "../../src/foreignKey/Blocker.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import { application } from "./support.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int, parent_id int CONSTRAINT fk REFERENCES parent);
  INSERT INTO parent SELECT generate_series(1, 10)`

/** A server of its own, with settings. */
const server = (settings: Record<string, string>) =>
  Effect.map(EmbeddedPostgres.make({ settings }), ({ url }) => Database.layer({ url, minConnections: 0 }))

describe("a prepared transaction in the way", () => {
  it.scopedLive("is named by the plan, while the change waits, and when it gives up", () =>
    Effect.gen(function* () {
      const layer = yield* server({ max_prepared_transactions: "2" })
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        yield* session.query("BEGIN; INSERT INTO child VALUES (1, 1); PREPARE TRANSACTION 'of the importer'")
        yield* eventually(
          "the plan warns",
          Effect.map(ForeignKey.plan({ selectors: {}, onDelete: "cascade" }), ({ warnings }) =>
            warnings.some(
              ({ warning }) => warning === "in the way right now: prepared transaction of the importer"
            )
          )
        )
        const change = { selectors: {}, onDelete: "cascade" } as const
        const { failed } = yield* ForeignKey.rebuild({ ...change, budget: "1 second" })
        assert.strictEqual(failed[0]?.code, "LockBudgetExhausted")
        assert.include(failed[0]?.reason, "in the way: prepared transaction of the importer.")
        const seen: Array<ForeignKey.Blocker> = []
        const { rebuilt } = yield* ForeignKey.rebuild({
          ...change,
          onProgress: (event) =>
            Effect.gen(function* () {
              if (event._tag !== "Waiting" || seen.length > 0) return
              seen.push(...event.blockers)
              yield* session.query("COMMIT PREPARED 'of the importer'")
            }).pipe(Effect.orDie)
        })
        assert.strictEqual(rebuilt.length, 1)
        assert.deepStrictEqual(
          seen.map(({ kind, pid, preparedTransaction }) => [kind, pid, preparedTransaction]),
          [["prepared transaction", null, "of the importer"]]
        )
      }).pipe(Effect.provide(layer))
    })
  )
})

describe("a backend that waits", () => {
  it.scopedLive("is blocked by the prepared transactions that hold what it waits for, and by no other", () =>
    Effect.gen(function* () {
      const layer = yield* server({ max_prepared_transactions: "2" })
      yield* Effect.gen(function* () {
        const session = yield* application
        const waiting = yield* application
        yield* session.query(pair)
        yield* session.query("BEGIN; INSERT INTO child VALUES (1, 1); PREPARE TRANSACTION 'in the way'")
        yield* session.query("BEGIN; INSERT INTO parent VALUES (11); PREPARE TRANSACTION 'elsewhere'")
        const fiber = yield* Effect.fork(
          waiting.query("SET lock_timeout = 0; BEGIN; LOCK TABLE child IN SHARE ROW EXCLUSIVE MODE; COMMIT")
        )
        let seen: ReadonlyArray<Blocker.Blocker> = []
        yield* eventually(
          "it waits",
          Effect.map(Blocker.watch(session, waiting.processId), (blockers) => {
            seen = blockers
            return blockers.length > 0
          })
        )
        assert.deepStrictEqual(
          seen.map((blocker) => Blocker.describe(blocker)),
          ["prepared transaction in the way"]
        )
        yield* session.query("COMMIT PREPARED 'in the way'")
        yield* session.query("ROLLBACK PREPARED 'elsewhere'")
        yield* Fiber.join(fiber)
      }).pipe(Effect.provide(layer))
    })
  )
})

describe("autovacuum on a table", () => {
  it.scopedLive("is moved aside, and writers do not wait for that", () =>
    Effect.gen(function* () {
      const layer = yield* server({ autovacuum_naptime: "1s" })
      yield* Effect.gen(function* () {
        const session = yield* application
        const writer = yield* application
        // A page takes 100 ms, so that it would take minutes.
        yield* session.query(`${pair};
          ALTER TABLE child SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
            autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
          INSERT INTO child SELECT n, 1 FROM generate_series(1, 300000) AS n;
          DELETE FROM child WHERE id % 2 = 0`)
        const vacuums = session.query<{ pid: number }>(
          `SELECT a.pid FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.relation = 'child'::regclass
          WHERE a.backend_type = 'autovacuum worker' AND l.granted AND l.mode = 'ShareUpdateExclusiveLock'`
        )
        yield* eventually(
          "autovacuum works on it",
          Effect.map(vacuums, (rows) => rows.length === 1)
        )
        let longest = 0
        const writing = yield* Effect.fork(
          Effect.forever(
            Effect.gen(function* () {
              const start = yield* Clock.currentTimeMillis
              yield* writer.query("INSERT INTO child VALUES (0, 1); UPDATE parent SET id = id WHERE id = 1")
              longest = Math.max(longest, (yield* Clock.currentTimeMillis) - start)
            })
          )
        )
        const { failed, rebuilt } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
        yield* Fiber.interrupt(writing)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        assert.isAbove(longest, 0)
        assert.isBelow(longest, 1_000)
        // None came to its end: whoever was there was cancelled.
        assert.deepStrictEqual(
          yield* session.query(
            "SELECT autovacuum_count::int AS ended FROM pg_stat_user_tables WHERE relname = 'child'"
          ),
          [{ ended: 0 }]
        )
      }).pipe(Effect.provide(layer))
    })
  )
})
