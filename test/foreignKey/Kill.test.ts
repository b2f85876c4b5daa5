import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { next } from "../support/length.js"
import { emptyDatabase } from "../support/server.js"
import * as Program from "./Program.js"
import { application, comparable, snapshots } from "./support.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT child_parent REFERENCES parent DEFERRABLE);
  COMMENT ON CONSTRAINT child_parent ON child IS 'kept';
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id, id FROM parent`

/**
 * The n-th DDL command or write to the ledger of a change waits, after it was carried out, until
 * the test lets go of a lock.
 */
const hold = `
  CREATE SCHEMA crash;
  CREATE SEQUENCE crash.command;
  CREATE FUNCTION crash.hold() RETURNS event_trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF nextval('crash.command') = current_setting('crash.at')::int THEN
      SET LOCAL statement_timeout = 0;
      SET LOCAL lock_timeout = 0;
      PERFORM pg_advisory_lock(42);
    END IF;
  END $$;
  CREATE FUNCTION crash.hold_too() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF nextval('crash.command') = current_setting('crash.at')::int THEN
      SET LOCAL statement_timeout = 0;
      SET LOCAL lock_timeout = 0;
      PERFORM pg_advisory_lock(42);
    END IF;
    RETURN NULL;
  END $$;
  CREATE TRIGGER hold AFTER INSERT OR UPDATE ON ${ForeignKey.defaultLedger}
    FOR EACH STATEMENT EXECUTE FUNCTION crash.hold_too();
  CREATE EVENT TRIGGER hold ON ddl_command_end EXECUTE FUNCTION crash.hold()`

const arm = (session: Session, at: number) =>
  session.query(`
    SELECT setval('crash.command', 1, false);
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET crash.at = ${at}', current_database()); END $$`)

/** Waits until a statement of a change stands at the lock; false if the change ended without. */
const standing = (session: Session, ended: Effect.Effect<boolean>) =>
  Effect.gen(function* () {
    for (;;) {
      const over = yield* ended
      const waiting = yield* session.query(
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 42"
      )
      if (waiting.length > 0) return true
      if (over) return false
      yield* Effect.sleep("5 millis")
    }
  })

/** The ledger has no open change, and the last one made it CASCADE from NO ACTION. */
const recorded = Effect.map(ForeignKey.history(), (entries) => {
  const { from, to } = entries.findLast(({ outcome }) => outcome === "changed") ?? {}
  assert.deepStrictEqual([from?.action, to?.action], ["no-action", "cascade"])
  assert.isTrue(entries.every(({ finishedAt }) => finishedAt !== null))
})

const change = (swapTries: number, reconnects?: number) =>
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", swapTries, reconnects, rehearse: false })

const back = ForeignKey.rebuild({ selectors: {}, onDelete: "no-action", rehearse: false })

const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

describe("a change converges when run again", () => {
  for (const [way, swapTries] of ways) {
    it.scopedLive(
      `after kill -9 of its process at any statement, ${way}, also while its last statement still runs`,
      () =>
        Effect.gen(function* () {
          const { url } = yield* emptyDatabase
          yield* Effect.gen(function* () {
            const session = yield* application
            yield* session.query(tables)
            const original = comparable(yield* snapshots(session))
            yield* change(swapTries)
            const reference = comparable(yield* snapshots(session))
            yield* back
            yield* session.query(hold)
            yield* session.query("SELECT pg_advisory_lock(42)")
            for (let at = 1; ; at = next(at)) {
              yield* arm(session, at)
              const process_ = yield* Program.start([Redacted.value(url), String(swapTries)])
              const stands = yield* standing(session, process_.ended)
              process_.kill()
              yield* arm(session, 0)
              if (!stands) {
                assert.isAbove(at, 8)
                break
              }
              const again = yield* Effect.fork(change(swapTries))
              yield* session.query("SELECT pg_advisory_unlock(42)")
              const result = yield* Fiber.join(again)
              assert.deepStrictEqual([result.refused, result.failed], [[], []])
              assert.deepStrictEqual(comparable(yield* snapshots(session)), reference)
              yield* recorded
              yield* session.query("SELECT pg_advisory_lock(42)")
              yield* back
              assert.deepStrictEqual(comparable(yield* snapshots(session)), original)
            }
          }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
        })
    )
  }

  it.scopedLive("after an immediate stop of the server at any statement", () =>
    Effect.gen(function* () {
      const server = yield* EmbeddedPostgres.make()
      const layer = Database.layer({ url: server.url, minConnections: 1 })
      /** Each stop ends all sessions, so each part has its own. */
      const during = <A, E>(use: (session: Session) => Effect.Effect<A, E, Database.Database>) =>
        Effect.scoped(Effect.flatMap(application, use)).pipe(Effect.provide(layer))
      const reference = yield* during((session) =>
        Effect.gen(function* () {
          yield* session.query(tables)
          yield* change(60)
          const snapshot = comparable(yield* snapshots(session))
          yield* back
          yield* session.query(hold)
          return snapshot
        })
      )
      for (let at = 1; ; at = next(at)) {
        const stopped = yield* during((session) =>
          Effect.gen(function* () {
            yield* arm(session, at)
            yield* session.query("SELECT pg_advisory_lock(42)")
            const running = yield* Effect.fork(change(60, 0))
            const ended = Effect.map(Fiber.poll(running), (exit) => exit._tag === "Some")
            if (!(yield* standing(session, ended))) return false
            yield* server.stop("immediate")
            yield* server.start
            const result = yield* Effect.either(Fiber.join(running))
            assert.isTrue(result._tag === "Left" || result.right.failed.length === 1)
            return true
          })
        )
        yield* during((session) =>
          Effect.gen(function* () {
            yield* arm(session, 0)
          })
        )
        const result = yield* during((session) =>
          Effect.gen(function* () {
            const again = yield* change(60)
            assert.deepStrictEqual(comparable(yield* snapshots(session)), reference)
            yield* recorded
            yield* back
            return again
          })
        )
        assert.deepStrictEqual([result.refused, result.failed], [[], []])
        if (!stopped) {
          assert.isAbove(at, 8)
          break
        }
      }
    })
  )
})
