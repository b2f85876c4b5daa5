/**
 * How long applications stand still, on tables that cannot be read in the time that a change may
 * ask for locks.
 */
import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { Session } from "../../src/connection/session.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, database } from "./support.js"
import * as Traffic from "./Traffic.js"

/** The longest that one try asks for locks. */
const lockBudget = 250

/** The key is compared row by row, as slowly as with many more rows. */
const rows = `
  BEGIN;
  SET LOCAL session_replication_role = replica;
  INSERT INTO child (parent_id) SELECT 1 + n % 900 FROM generate_series(1, 1000000) AS n;
  COMMIT;
  DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET enable_hashjoin = off', current_database());
    EXECUTE format('ALTER DATABASE %I SET enable_mergejoin = off', current_database());
  END $$`

const definition = "FOREIGN KEY (parent_id) REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE"

/** Some hundred pieces of work without any change. */
const nothing = (observer: Session) =>
  Effect.repeat(observer.query("SELECT count(*) FROM generate_series(1, 100000)"), Schedule.recurs(50))

describe("applications", () => {
  it.scopedLive(
    "wait for a change no longer than it may ask for locks, and for dropping and adding the key as long as the rows are read",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(Traffic.tables())
        yield* session.query(rows)
        yield* session.query("VACUUM ANALYZE child")
        const control = yield* Traffic.beside(nothing(session))
        // What this machine makes anything wait that is ready to go on.
        const limit = lockBudget + control.report.longestMillis
        const { report, result } = yield* Traffic.beside(
          Effect.forEach(
            [
              ["cascade", 60],
              ["no-action", 0]
            ] as const,
            ([onDelete, swapTries]) => ForeignKey.rebuild({ selectors: {}, onDelete, swapTries })
          )
        )
        for (const { failed, rebuilt } of result) {
          assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        }
        assert.deepStrictEqual(report.errors, [])
        const migration = yield* application
        yield* migration.query("SET application_name = 'migration'")
        const usual = yield* Traffic.beside(
          Effect.retry(
            Effect.tapError(
              migration.query(
                `BEGIN; ALTER TABLE child DROP CONSTRAINT fk; ALTER TABLE child ADD CONSTRAINT fk ${definition}; COMMIT`
              ),
              () => Effect.ignore(migration.query("ROLLBACK"))
            ),
            { while: ({ reason }) => reason._tag === "DeadlockDetected" }
          )
        )
        assert.isBelow(report.longestWaitMillis, limit)
        assert.isAbove(usual.report.longestWaitMillis, limit)
        assert.isBelow(report.longestMillis, usual.report.longestMillis)
      }).pipe(Effect.provide(database))
  )
})
