/**
 * What the usual ways to change a key do to the same applications that the engine leaves alone
 * (Soak.test.ts).
 */
import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { DatabaseError } from "../../src/DatabaseError.js"
import type { Session } from "../../src/connection/session.js"
import { eventually } from "../support/eventually.js"
import { application, database } from "./support.js"
import * as Traffic from "./Traffic.js"

const definition = "FOREIGN KEY (parent_id) REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE"

/**
 * How many sessions wait for a lock that `migration` holds or waits for, directly or behind others.
 */
const waiting = (observer: Session, migration: Session) =>
  Effect.map(
    observer.query<{ readonly waiting: number }>(
      `WITH RECURSIVE behind (pid) AS (
        SELECT $1::int
        UNION
        SELECT a.pid FROM behind b JOIN pg_stat_activity a ON b.pid = ANY (pg_blocking_pids(a.pid))
        WHERE a.datname = current_database()
      )
      SELECT count(*)::int - 1 AS waiting FROM behind`,
      [migration.processId]
    ),
    ([row]) => row?.waiting ?? 0
  )

/**
 * Ids are taken when a row is inserted, not while the insert waits for a lock, and can be read at
 * any time.
 */
const children = (observer: Session) =>
  Effect.map(
    observer.query<{ readonly last: string }>("SELECT last_value::text AS last FROM child_id_seq"),
    ([row]) => Number(row?.last)
  )

/**
 * The migration tool is as likely as an application to be the victim of a deadlock, and would be
 * run again then.
 */
const untilNoVictim = <A, R>(effect: Effect.Effect<A, DatabaseError, R>) =>
  Effect.retry(effect, { while: ({ reason }) => reason._tag === "DeadlockDetected" })

describe("applications suffer", () => {
  it.scopedLive(
    "from dropping and adding the key in one transaction: all stand still behind one reader",
    () =>
      Effect.gen(function* () {
        const observer = yield* application
        yield* observer.query(Traffic.tables())
        const reader = yield* application
        const migration = yield* application
        yield* reader.query("BEGIN; SELECT count(*) FROM child")
        const dropAndAdd = migration
          .query(
            `BEGIN; ALTER TABLE child DROP CONSTRAINT fk; ALTER TABLE child ADD CONSTRAINT fk ${definition}; COMMIT`
          )
          .pipe(Effect.tapError(() => Effect.ignore(migration.query("ROLLBACK"))))
        const { result } = yield* Traffic.beside(
          Effect.gen(function* () {
            const start = yield* children(observer)
            yield* eventually(
              "the applications insert",
              Effect.map(children(observer), (n) => n > start)
            )
            const changing = yield* Effect.fork(untilNoVictim(dropAndAdd))
            yield* eventually(
              "all wait that use the table",
              Effect.map(waiting(observer, migration), (n) => n >= Traffic.usersOfChild)
            )
            const before = yield* children(observer)
            yield* Effect.replicateEffect(
              observer.query("SELECT count(*) FROM generate_series(1, 100000)"),
              20
            )
            const meanwhile = (yield* children(observer)) - before
            yield* reader.query("COMMIT")
            yield* Fiber.join(changing)
            yield* eventually(
              "they insert again",
              Effect.map(children(observer), (n) => n > before)
            )
            return meanwhile
          })
        )
        assert.strictEqual(result, 0)
      }).pipe(Effect.provide(database))
  )

  it.scopedLive(
    "from dropping it and adding it NOT VALID, each by itself: orphans come in, and the key cannot be validated",
    () =>
      Effect.gen(function* () {
        const observer = yield* application
        yield* observer.query(Traffic.tables())
        const migration = yield* application
        // Deletes of parents leave others.
        const orphans = Effect.map(
          observer.query<{ readonly n: number }>("SELECT count(*)::int AS n FROM child WHERE parent_id = -1"),
          ([row]) => row?.n ?? 0
        )
        const { report } = yield* Traffic.beside(
          Effect.gen(function* () {
            yield* untilNoVictim(migration.query("ALTER TABLE child DROP CONSTRAINT fk"))
            yield* eventually(
              "an orphan that somebody has inserted",
              Effect.map(orphans, (n) => n > 0)
            )
            yield* untilNoVictim(
              migration.query(`ALTER TABLE child ADD CONSTRAINT fk ${definition} NOT VALID`)
            )
          })
        )
        assert.include(report.errors, "inserts orphans, which the key refuses: the row was accepted")
        assert.isAbove(yield* orphans, 0)
        const error = yield* Effect.flip(observer.query("ALTER TABLE child VALIDATE CONSTRAINT fk"))
        assert.strictEqual(error.reason._tag, "ForeignKeyViolation")
      }).pipe(Effect.provide(database))
  )
})
