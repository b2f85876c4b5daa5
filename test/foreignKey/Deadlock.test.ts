/**
 * What keeps an application from becoming the victim of a deadlock with a change: the watcher,
 * which cancels our request as soon as somebody waits for it in a circle, and the cap, which ends
 * it before the server looks for deadlocks. Each is tested where the other one cannot help.
 */
import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { within } from "../support/within.js"
import { eventually } from "../support/eventually.js"
import { adminSession, emptyDatabase } from "../support/server.js"
import { application } from "./support.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY, touched int);
  CREATE TABLE child (id int, parent_id int CONSTRAINT fk REFERENCES parent);
  CREATE TABLE other (id int PRIMARY KEY, touched int);
  INSERT INTO parent SELECT generate_series(1, 10);
  INSERT INTO other VALUES (1)`

/** A database whose sessions have this deadlock_timeout. */
const database = (deadlockTimeout: string) =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* Effect.orDie(
        admin.query(`ALTER DATABASE ${name} SET deadlock_timeout = '${deadlockTimeout}'; ${tables}`)
      )
      return Database.layer({ url, minConnections: 0 })
    })
  )

/** Queues behind old transactions every time, for as long as the cap allows. */
const change = (options: Partial<ForeignKey.RebuildOptions>) =>
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", ...options }).pipe(
    Effect.withRandom(Random.fixed([0]))
  )

/** Until a session's transaction is older than this. */
const isOld = (observer: Session, session: Session, millis: number) =>
  eventually(
    `a transaction that is ${millis} ms old`,
    Effect.map(
      observer.query(
        "SELECT FROM pg_stat_activity WHERE pid = $1 AND clock_timestamp() - xact_start > $2 * interval '1 millisecond'",
        [session.processId, millis]
      ),
      (rows) => rows.length > 0
    )
  )

/** Until the change has waited for a table for so long. */
const queued = (observer: Session, table: string, millis = 0) =>
  eventually(
    `the change waits for ${table}`,
    Effect.map(
      observer.query(
        `SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE NOT l.granted AND l.relation = to_regclass($1) AND a.application_name = 'promptgrimoire-db: change foreign keys'
          AND clock_timestamp() - a.query_start > $2 * interval '1 millisecond'`,
        [table, millis]
      ),
      (rows) => rows.length > 0
    )
  )

describe.concurrent("an application that closes a circle with a change that waits for it", () => {
  // The server would look for deadlocks after a minute, and our request for a lock ends after two
  // seconds.
  const patient = { lockTimeout: "2 seconds" } as const
  for (const [step, holds, waitedFor, wants] of [
    ["add", "INSERT INTO child VALUES (1)", "child", "UPDATE parent SET touched = 1 WHERE id = 1"],
    ["swap", "SELECT FROM parent", "parent", "SELECT FROM child"]
  ] as const) {
    inFull(it).scopedLive(`goes on at once: ${step}`, () =>
      Effect.gen(function* () {
        const observer = yield* application
        const app = yield* application
        yield* app.query(`BEGIN; ${holds}`)
        yield* isOld(observer, app, 4_000)
        const fiber = yield* Effect.fork(change(patient))
        yield* queued(observer, waitedFor)
        yield* within(1_000, observer.query("SELECT 1"))(app.query(`${wants}; COMMIT`))
        const { failed, rebuilt } = yield* Fiber.join(fiber)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      }).pipe(Effect.provide(database("1min")))
    )
  }

  inFull(it).scopedLive("goes on at once, if the circle goes through somebody else", () =>
    Effect.gen(function* () {
      const observer = yield* application
      const app = yield* application
      const third = yield* application
      yield* app.query("BEGIN; INSERT INTO child VALUES (1)")
      yield* third.query("BEGIN; UPDATE other SET touched = 1")
      yield* isOld(observer, app, 4_000)
      const fiber = yield* Effect.fork(change(patient))
      const waiting = yield* Effect.fork(app.query("UPDATE other SET touched = 2; COMMIT"))
      yield* queued(observer, "child")
      yield* within(
        1_000,
        observer.query("SELECT 1")
      )(third.query("UPDATE parent SET touched = 1 WHERE id = 1; COMMIT"))
      yield* Fiber.join(waiting)
      const { failed, rebuilt } = yield* Fiber.join(fiber)
      assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
    }).pipe(Effect.provide(database("1min")))
  )

  // To move autovacuum aside takes longer than a second, so there the cap is above every
  // deadlock_timeout that is shorter.
  inMatrix(it).scopedLive(
    "is not the victim, where the server looks for deadlocks sooner than our request ends",
    () =>
      Effect.gen(function* () {
        const observer = yield* application
        const app = yield* application
        yield* app.query("BEGIN; LOCK TABLE child IN SHARE ROW EXCLUSIVE MODE")
        yield* isOld(observer, app, 1_000)
        const fiber = yield* Effect.fork(change(patient))
        // The change has looked for a deadlock already, and found none, so that the server would
        // end the application's transaction.
        yield* queued(observer, "child", 600)
        yield* app.query("LOCK TABLE parent IN SHARE MODE; COMMIT")
        const { failed, rebuilt } = yield* Fiber.join(fiber)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      }).pipe(Effect.provide(database("500ms")))
  )
})

describe("a change behind a transaction that does not end", () => {
  inFull(it).scopedLive(
    "never waits for so long that the server looks for deadlocks, whatever lock timeout it is given",
    () =>
      Effect.gen(function* () {
        const { url } = yield* EmbeddedPostgres.make({
          settings: { deadlock_timeout: "200ms", log_lock_waits: "on", logging_collector: "on" }
        })
        yield* Effect.gen(function* () {
          const observer = yield* application
          const holder = yield* application
          const app = yield* application
          yield* observer.query(tables)
          yield* holder.query("BEGIN; UPDATE parent SET touched = 0 WHERE id = 1")
          yield* isOld(observer, holder, 300)
          const pids = new Set<number>()
          const fiber = yield* Effect.fork(change({ lockTimeout: "20 seconds", budget: "5 seconds" }))
          const writing = yield* Effect.fork(
            Effect.forever(
              Effect.zipRight(
                app.query("UPDATE parent SET touched = touched + 1 WHERE id = 2"),
                Effect.map(
                  observer.query<{ pid: number }>(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'promptgrimoire-db: change foreign keys'"
                  ),
                  (rows) => rows.forEach(({ pid }) => pids.add(pid))
                )
              )
            )
          )
          const { failed } = yield* Fiber.join(fiber)
          assert.deepStrictEqual(
            failed.map(({ code }) => code),
            ["LockBudgetExhausted"]
          )
          yield* Fiber.interrupt(writing)
          // The log does tell who waits that long.
          const waiting = yield* Effect.fork(
            observer.query("BEGIN; UPDATE parent SET touched = 3 WHERE id = 1; COMMIT")
          )
          const log = Effect.map(
            app.query<{ readonly line: string }>(
              `SELECT line FROM regexp_split_to_table(pg_read_file(pg_current_logfile()), '\\n') AS line
            WHERE line LIKE '%still waiting for%'`
            ),
            (rows) => rows.map(({ line }) => Number(/process (\d+) still waiting/.exec(line)?.[1]))
          )
          yield* eventually(
            "a wait is in the log",
            Effect.map(log, (waits) => waits.includes(observer.processId))
          )
          assert.strictEqual(pids.size, 1)
          assert.notIncludeMembers(yield* log, [...pids])
          yield* holder.query("COMMIT")
          yield* Fiber.join(waiting)
        }).pipe(Effect.provide(Database.layer({ url, minConnections: 0 })))
      })
  )
})
