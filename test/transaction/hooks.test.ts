import { assert, describe, it } from "../support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Database from "../../src/Database.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import * as Transaction from "../../src/Transaction.js"
import { eventually } from "../support/eventually.js"

const withTable = (
  name: string,
  test: (log: Array<string>) => Effect.Effect<unknown, unknown, Database.Provided>
) =>
  it.live(name, () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE parent (id int PRIMARY KEY)`
      yield* sql`CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`
      yield* test([])
    }).pipe(Effect.provide(TestDatabase.layer()))
  )

describe("Transaction.afterCommit and afterRollback", () => {
  withTable("run once, after the outermost commit, in order, and see what was committed", (log) =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const rows = Effect.map(sql`SELECT 1 FROM parent`, (found) => found.length)
      yield* Transaction.run(
        Effect.gen(function* () {
          yield* Transaction.afterCommit(Effect.map(rows, (n) => log.push(`first sees ${n}`)))
          yield* Transaction.run(
            Effect.gen(function* () {
              yield* sql`INSERT INTO parent VALUES (1)`
              yield* Transaction.afterCommit(Effect.sync(() => log.push("nested")))
            })
          )
          yield* Transaction.afterCommit(Effect.sync(() => log.push("last")))
          yield* Transaction.afterRollback(Effect.sync(() => log.push("never")))
          assert.deepStrictEqual(log, [])
        })
      )
      assert.deepStrictEqual(log, ["first sees 1", "nested", "last"])
    })
  )

  it.live("that wait for a connection do not count as waits of whoever got the one before", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { stats } = yield* Database.Database
      const waiting = (n: number) =>
        eventually(
          `${n} in the queue`,
          Effect.map(stats, (now) => now.waiting === n)
        )
      const [first, second, last, inside, outside] = yield* Effect.all(
        Array.from({ length: 5 }, () => Deferred.make<void>())
      )
      if (!first || !second || !last || !inside || !outside) return
      const reserved = (end: Deferred.Deferred<void>) =>
        Effect.scoped(Effect.zipRight(sql.reserve, Deferred.await(end)))
      // Holds one of two connections, and will ask for another one.
      const asking = yield* Effect.fork(
        Transaction.run(Effect.zipRight(Deferred.await(inside), reserved(last)))
      )
      // Holds the other one, and leaves somebody behind who waits.
      const leaving = yield* Effect.fork(
        Transaction.run(
          Effect.zipRight(
            Effect.zipRight(Deferred.await(second), Effect.forkDaemon(reserved(last))),
            Deferred.await(first)
          )
        )
      )
      const bothLent = eventually(
        "both connections are lent",
        Effect.map(stats, ({ busy }) => busy === 2)
      )
      yield* bothLent
      const working = yield* Effect.fork(reserved(outside))
      yield* waiting(1)
      yield* Deferred.succeed(second, undefined)
      yield* waiting(2)
      yield* Deferred.succeed(first, undefined)
      yield* Fiber.join(leaving)
      yield* waiting(1)
      yield* bothLent
      // The other one works, and will give its connection back.
      yield* Deferred.succeed(inside, undefined)
      yield* Effect.raceFirst(waiting(2), Effect.asVoid(Fiber.join(asking)))
      yield* Deferred.succeed(outside, undefined)
      yield* Deferred.succeed(last, undefined)
      yield* Fiber.join(working)
      yield* Fiber.join(asking)
    }).pipe(Effect.provide(TestDatabase.layer({ settings: { minConnections: 2, maxConnections: 2 } })))
  )

  withTable("can be ended by their own timeout, and not by an interruption of what they wait for", (log) =>
    Effect.gen(function* () {
      const begun = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const fiber = yield* Effect.fork(
        Transaction.run(
          Effect.gen(function* () {
            yield* Transaction.afterCommit(
              Effect.never.pipe(
                Effect.timeoutTo({
                  duration: "1 millis",
                  onSuccess: () => 0,
                  onTimeout: () => log.push("timed out")
                })
              )
            )
            yield* Transaction.afterCommit(
              Deferred.succeed(begun, undefined).pipe(
                Effect.zipRight(Deferred.await(go)),
                Effect.zipRight(Effect.sync(() => log.push("done")))
              )
            )
          })
        )
      )
      yield* Deferred.await(begun)
      const interrupted = yield* Effect.fork(Fiber.interrupt(fiber))
      yield* Effect.yieldNow()
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(interrupted)
      assert.deepStrictEqual(log, ["timed out", "done"])
    })
  )

  it.live("wait for a connection like anybody else: their transaction's own is given back", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { stats } = yield* Database.Database
      const release = yield* Deferred.make<void>()
      const other = Effect.scoped(Effect.zipRight(sql.reserve, Deferred.await(release)))
      const hook = Effect.gen(function* () {
        yield* Effect.fork(other)
        yield* eventually(
          "somebody else with the only connection",
          Effect.map(stats, ({ busy }) => busy === 1)
        )
        const query = yield* Effect.fork(sql`SELECT 1 AS one`)
        yield* eventually(
          "the hook in the queue",
          Effect.map(stats, ({ waiting }) => waiting === 1)
        ).pipe(Effect.raceFirst(Effect.ignore(Fiber.join(query))))
        yield* Deferred.succeed(release, undefined)
        return yield* Fiber.join(query)
      })
      let found: unknown
      yield* Transaction.run(
        Transaction.afterCommit(
          Effect.map(Effect.exit(hook), (exit) => {
            found = exit
          })
        )
      )
      assert.deepStrictEqual(found, Exit.succeed([{ one: 1 }]))
    }).pipe(Effect.provide(TestDatabase.layer({ settings: { maxConnections: 1 } })))
  )

  withTable("are dropped with their savepoint, whose rollback is reported after the outermost end", (log) =>
    Effect.gen(function* () {
      yield* Transaction.run(
        Effect.gen(function* () {
          yield* Effect.ignore(
            Transaction.run(
              Effect.gen(function* () {
                yield* Transaction.afterCommit(Effect.sync(() => log.push("dropped")))
                yield* Transaction.afterRollback(Effect.sync(() => log.push("savepoint rolled back")))
                return yield* Effect.fail("undo")
              })
            )
          )
          yield* Transaction.afterCommit(Effect.sync(() => log.push("committed")))
        })
      )
      assert.deepStrictEqual(log, ["savepoint rolled back", "committed"])
    })
  )

  withTable("afterRollback runs when the body fails, and when COMMIT does", (log) =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const hooks = Effect.zipRight(
        Transaction.afterCommit(Effect.sync(() => log.push("committed"))),
        Transaction.afterRollback(Effect.sync(() => log.push("rolled back")))
      )
      yield* Effect.ignore(Transaction.run(Effect.zipRight(hooks, Effect.fail("no"))))
      yield* Effect.ignore(Transaction.run(Effect.zipRight(hooks, sql`INSERT INTO child VALUES (404)`)))
      assert.deepStrictEqual(log, ["rolled back", "rolled back"])
    })
  )

  withTable("cannot undo the commit by failing, and the next one still runs", (log) =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* Transaction.run(
        Effect.gen(function* () {
          yield* sql`INSERT INTO parent VALUES (1)`
          yield* Transaction.afterCommit(Effect.fail("typed"))
          yield* Transaction.afterCommit(Effect.die("defect"))
          yield* Transaction.afterCommit(Effect.sync(() => log.push("still here")))
        })
      )
      assert.deepStrictEqual(log, ["still here"])
      assert.strictEqual((yield* sql`SELECT 1 FROM parent`).length, 1)
    })
  )

  withTable("may begin a transaction of their own", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* Transaction.run(
        Transaction.afterCommit(
          Transaction.run(sql`INSERT INTO parent VALUES (7)`, { isolation: "serializable" })
        )
      )
      assert.deepStrictEqual(yield* sql`SELECT id FROM parent`, [{ id: 7 }])
    })
  )

  withTable("outside any transaction run at once, and never", (log) =>
    Effect.gen(function* () {
      yield* Transaction.afterCommit(Effect.sync(() => log.push("at once")))
      yield* Transaction.afterRollback(Effect.sync(() => log.push("never")))
      assert.deepStrictEqual(log, ["at once"])
    })
  )

  it.live(
    "get a connection of their own in their turn, although the transaction's went to whoever waited",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { stats } = yield* Database.Database
        const ran: Array<string> = []
        const inside = yield* Deferred.make<void>()
        const waiter = yield* Effect.fork(Effect.zipRight(Deferred.await(inside), sql`SELECT pg_sleep(0.3)`))
        yield* Transaction.run(
          Effect.gen(function* () {
            yield* Transaction.afterCommit(
              eventually(
                "the other one has the connection",
                Effect.map(stats, ({ busy, waiting }) => busy === 1 && waiting === 0)
              )
            )
            yield* Transaction.afterCommit(Effect.map(sql`SELECT 1`, () => ran.push("hook")))
            yield* Deferred.succeed(inside, undefined)
            yield* eventually(
              "somebody waits",
              Effect.map(stats, ({ waiting }) => waiting === 1)
            )
          })
        )
        yield* Fiber.join(waiter)
        assert.deepStrictEqual(ran, ["hook"])
      }).pipe(Effect.provide(TestDatabase.layer({ settings: { maxConnections: 1 } })))
  )
})
