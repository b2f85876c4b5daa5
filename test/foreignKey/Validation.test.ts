/**
 * VALIDATE can take hours: whatever ends it in the middle, the next run goes on, and no limit of
 * the role or the database ends it.
 */
import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import * as Program from "./Program.js"
import { application, comparable, snapshots } from "./support.js"
import { cases } from "../support/length.js"

/**
 * Rows are compared by a function that waits, while VALIDATE scans them, for a lock that the test
 * holds.
 */
const tables = `
  CREATE FUNCTION slowly(a int, b int) RETURNS bool LANGUAGE plpgsql AS $$
  BEGIN
    IF current_query() LIKE '%VALIDATE%' THEN
      SET LOCAL lock_timeout = 0;
      PERFORM pg_advisory_xact_lock_shared(42);
    END IF;
    RETURN a OPERATOR(pg_catalog.=) b;
  END $$;
  CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = slowly, COMMUTATOR = ===);
  CREATE OPERATOR CLASS slow_ops FOR TYPE int USING btree AS
    OPERATOR 1 pg_catalog.<, OPERATOR 2 pg_catalog.<=, OPERATOR 3 ===, OPERATOR 4 pg_catalog.>=, OPERATOR 5 pg_catalog.>,
    FUNCTION 1 btint4cmp(int, int);
  CREATE TABLE parent (id int NOT NULL);
  CREATE UNIQUE INDEX parent_id ON parent (id slow_ops);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent (id));
  INSERT INTO parent SELECT generate_series(1, 3);
  INSERT INTO child SELECT id, id FROM parent`

const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

const change = (options: Partial<ForeignKey.RebuildOptions> = {}) =>
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", ...options })

/** Until the scan stands at the test's lock. */
const scanning = (session: Session) =>
  eventually(
    "VALIDATE is in the middle of its scan",
    Effect.map(
      session.query(
        `SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.objid = 42 AND NOT l.granted AND a.datname = current_database() AND a.query LIKE '%VALIDATE%'`
      ),
      (rows) => rows.length > 0
    )
  )

/** Nothing of a scan is left running. */
const over = (session: Session) =>
  eventually(
    "no VALIDATE is left",
    Effect.map(
      session.query(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE '%VALIDATE%' AND pid <> pg_backend_pid()"
      ),
      (rows) => rows.length === 0
    )
  )

describe("a change whose VALIDATE", () => {
  it.scopedLive(
    "is ended in the middle, by the death of its session, its process or the server, goes on when run again",
    () =>
      Effect.gen(function* () {
        // An index compares while it holds a lock on its page, and a backend that does so cannot be
        // ended.
        const server = yield* EmbeddedPostgres.make({
          settings: { enable_indexscan: "off", enable_indexonlyscan: "off", enable_bitmapscan: "off" }
        })
        const layer = Database.layer({ url: server.url, minConnections: 0 })
        /** A stop of the server ends all sessions, so each part has its own. */
        const during = <A, E>(use: (session: Session) => Effect.Effect<A, E, Database.Database>) =>
          Effect.scoped(Effect.flatMap(application, use)).pipe(Effect.provide(layer))
        const { original, reference } = yield* during((session) =>
          Effect.gen(function* () {
            yield* session.query(tables)
            const original = comparable(yield* snapshots(session))
            yield* change()
            const reference = comparable(yield* snapshots(session))
            yield* change({ onDelete: "no-action" })
            return { original, reference }
          })
        )
        for (const [way, swapTries] of cases(ways, ([, swapTries]) => swapTries > 0)) {
          for (const death of cases(
            ["of its session", "of its process", "of the server"] as const,
            (death) => death === "of its session"
          )) {
            const what = `${death}, ${way}`
            yield* during((session) =>
              Effect.scoped(
                Effect.gen(function* () {
                  yield* session.query("SELECT pg_advisory_lock(42)")
                  const running =
                    death === "of its process"
                      ? yield* Program.start([Redacted.value(server.url), String(swapTries)])
                      : yield* Effect.fork(Effect.either(change({ swapTries, reconnects: 0 })))
                  yield* scanning(session)
                  if (death === "of its session") {
                    yield* session.query(
                      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%VALIDATE%' AND pid <> pg_backend_pid()"
                    )
                  }
                  if (death === "of the server") {
                    yield* server.stop("immediate")
                    yield* server.start
                  }
                  if ("kill" in running) return running.kill()
                  const result = yield* Fiber.join(running)
                  return assert.isTrue(result._tag === "Left" || result.right.failed.length === 1, what)
                })
              )
            )
            yield* during((session) =>
              Effect.gen(function* () {
                yield* over(session)
                const [key] = yield* ForeignKey.list()
                assert.deepInclude(key, { onDelete: "no-action", validated: true }, what)
                const again = yield* change({ swapTries })
                assert.deepStrictEqual([again.failed, again.refused], [[], []], what)
                assert.deepStrictEqual(comparable(yield* snapshots(session)), reference, what)
                yield* change({ onDelete: "no-action" })
                assert.deepStrictEqual(comparable(yield* snapshots(session)), original, what)
              })
            )
          }
        }
      })
  )

  inFull(it).scopedLive(
    "takes longer than the statement_timeout of the role and the database is not ended by it",
    () =>
      Effect.gen(function* () {
        const server = yield* EmbeddedPostgres.make()
        const layer = Database.layer({
          url: server.url,
          minConnections: 0,
          statementTimeout: "1 second",
          lockTimeout: "1 second"
        })
        yield* Effect.gen(function* () {
          const session = yield* application
          yield* session.query(tables)
          yield* session.query(`
          CREATE TABLE seen (statement_timeout text);
          CREATE FUNCTION dawdle() RETURNS event_trigger LANGUAGE plpgsql AS $$
          BEGIN
            IF current_query() LIKE '%VALIDATE%' THEN
              INSERT INTO public.seen VALUES (current_setting('statement_timeout'));
              PERFORM pg_sleep(1.5);
            END IF;
          END $$;
          CREATE EVENT TRIGGER dawdle ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION dawdle();
          DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET statement_timeout = 1000', current_database());
            EXECUTE format('ALTER ROLE %I SET statement_timeout = 1000', current_user);
          END $$`)
          const { failed, rebuilt } = yield* change()
          assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
          assert.deepStrictEqual(yield* session.query("SELECT * FROM seen"), [{ statement_timeout: "0" }])
        }).pipe(Effect.provide(layer))
      })
  )
})
