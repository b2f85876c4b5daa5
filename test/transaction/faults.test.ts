import { SqlError } from "@effect/sql/SqlError"
import { assert, describe } from "../support/it.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Stream from "effect/Stream"
import { DatabaseError } from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { eventually } from "../support/eventually.js"
import { textOf } from "../support/logs.js"
import * as Proxy from "../support/Proxy.js"
import {
  check,
  kill,
  Logs,
  makeRig,
  outcome,
  processId,
  report,
  type Rig,
  running,
  tagOf,
  tally,
  timed
} from "../faults/support.js"

const single = { maxConnections: 1, acquireTimeout: "20 seconds" } as const

/**
 * Whether the connection that the next borrower gets is outside any transaction, as the server says
 * after its statement.
 */
const isClean = ({ proxy, sql }: Rig) =>
  Effect.gen(function* () {
    yield* sql`SELECT 1`
    return (yield* proxy.trace).findLast(({ name }) => name === "ReadyForQuery")?.text === "I"
  })

const warnings = Effect.map(Logs, (logs) => logs.filter(({ level }) => level === "WARN").map(textOf))

describe("A transaction", () => {
  const dirt = {
    "a raw BEGIN": ({ sql }: Rig) => sql.unsafe("BEGIN"),
    "an error after a raw BEGIN": ({ sql }: Rig) => Effect.ignore(sql.unsafe("BEGIN; SELECT 1 / 0")),
    "a raw BEGIN on a reserved connection": ({ sql }: Rig) =>
      Effect.scoped(Effect.flatMap(sql.reserve, (c) => c.executeUnprepared("BEGIN", [], undefined))),
    "a BEGIN and an error on a reserved connection": ({ sql }: Rig) =>
      Effect.scoped(
        Effect.flatMap(sql.reserve, (c) =>
          Effect.zipRight(
            c.executeUnprepared("BEGIN", [], undefined),
            Effect.ignore(c.executeUnprepared("SELECT 1 / 0", [], undefined))
          )
        )
      )
  }
  for (const [name, make] of Object.entries(dirt)) {
    check(
      `F7: ${name} does not reach the next borrower, and is logged`,
      Effect.gen(function* () {
        const rig = yield* makeRig(single)
        yield* make(rig)
        assert.isTrue(yield* isClean(rig))
        yield* eventually(
          "closed",
          Effect.map(rig.backends, (rows) => rows.length === 1)
        )
        assert.strictEqual((yield* warnings).length, 1)
      })
    )
  }

  check(
    "F8: a deferred foreign key that is violated at COMMIT is a typed failure; no value, no hook, and a clean connection",
    Effect.gen(function* () {
      const rig = yield* makeRig(single)
      const { backends, provide, sql, transact } = rig
      yield* sql`CREATE TABLE parent (id int PRIMARY KEY)`
      yield* sql`CREATE TABLE child (id int CONSTRAINT child_parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`
      const pid = yield* processId(sql)
      const ran: Array<string> = []
      const body = Effect.gen(function* () {
        yield* Transaction.afterCommit(Effect.sync(() => ran.push("commit")))
        yield* Transaction.afterRollback(Effect.sync(() => ran.push("rollback")))
        yield* sql`INSERT INTO child VALUES (1)`
        return "the value"
      })
      const error = yield* Effect.flip(provide(transact(body)))
      assert.instanceOf(error, DatabaseError)
      assert.strictEqual(error.reason._tag, "ForeignKeyViolation")
      assert.strictEqual("constraint" in error.reason ? error.reason.constraint : "", "child_parent")
      assert.deepStrictEqual(ran, ["rollback"])
      assert.isTrue(yield* isClean(rig))
      assert.deepStrictEqual(
        (yield* backends).map((row) => row.pid),
        [pid]
      )
      assert.deepStrictEqual(yield* sql`SELECT * FROM child`, [])
    })
  )

  check(
    "F10: a failed INSERT that is caught, then success: TransactionRolledBack, never success",
    Effect.gen(function* () {
      const { sql, transact } = yield* makeRig(single)
      yield* sql`CREATE TABLE t (id int PRIMARY KEY)`
      yield* sql`INSERT INTO t VALUES (1)`
      const body = Effect.gen(function* () {
        yield* sql`INSERT INTO t VALUES (2)`
        yield* Effect.ignore(sql`INSERT INTO t VALUES (1)`)
        return "success"
      })
      for (const run of [transact(body), sql.withTransaction(body)]) {
        const error = yield* Effect.flip(run)
        assert.strictEqual(tagOf(error), "TransactionRolledBack")
        assert.instanceOf(error, DatabaseError)
        const { reason } = error
        assert.strictEqual("first" in reason ? reason.first?._tag : "", "UniqueViolation")
      }
      assert.deepStrictEqual(yield* sql`SELECT id FROM t`, [{ id: 1 }])
    })
  )

  check(
    "F11: 1,000 nested transactions one after the other, failures among them, and 200 at once: every savepoint is released, no name is used twice",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(single)
      yield* sql`CREATE TABLE t (id int)`
      const nested = (id: number) =>
        Effect.ignore(
          sql.withTransaction(
            Effect.zipRight(sql`INSERT INTO t VALUES (${id})`, id % 3 === 0 ? Effect.fail("no") : Effect.void)
          )
        )
      const open = yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* Effect.forEach(Array.from({ length: 1000 }), (_, id) => nested(id), { discard: true })
          yield* Effect.forEach(Array.from({ length: 200 }), (_, id) => nested(1000 + id), {
            concurrency: "unbounded",
            discard: true
          })
          // A savepoint that is still there can be released.
          const names = (yield* proxy.trace).flatMap(({ text }) => /^SAVEPOINT (\w+)/.exec(text)?.[1] ?? [])
          assert.strictEqual(new Set(names).size, 1200)
          assert.strictEqual(names.length, 1200)
          return names
        })
      )
      const released = (yield* proxy.trace).flatMap(
        ({ text }) => /RELEASE SAVEPOINT (\w+)/.exec(text)?.[1] ?? []
      )
      assert.deepStrictEqual(released.toSorted(), open.toSorted())
      const kept = yield* sql<{ n: number }>`SELECT count(*)::int AS n FROM t`
      assert.strictEqual(kept[0]?.n, Array.from({ length: 1200 }).filter((_, id) => id % 3 !== 0).length)
    })
  )

  describe("F19: retries by itself", () => {
    const rows = ({ admin }: Rig) => Effect.map(admin.query("SELECT * FROM t"), (found) => found.length)
    const prepared = Effect.gen(function* () {
      const rig = yield* makeRig({ ...single, validateAfterIdle: 0 })
      yield* rig.sql`CREATE TABLE t (id int)`
      return rig
    })
    const killIdle = (rig: Rig) => Effect.flatMap(processId(rig.sql), (pid) => kill(rig, pid))

    check(
      "F19: what was not sent because the connection was dead: a read, a write, a transaction's first statement",
      Effect.gen(function* () {
        const rig = yield* prepared
        const { sql } = rig
        for (const attempt of [
          sql`SELECT 1`,
          sql`INSERT INTO t VALUES (1)`,
          sql.withTransaction(sql`INSERT INTO t VALUES (2)`)
        ]) {
          yield* killIdle(rig)
          assert.strictEqual(yield* outcome(attempt), "ok")
        }
        assert.strictEqual(yield* rows(rig), 2)
      })
    )

    check(
      "F19: nothing that was sent: a read, a write, a statement of a transaction, the first or a later one, fail once, whether the server got them or not",
      Effect.gen(function* () {
        const rig = yield* prepared
        const { proxy, sql } = rig
        const cases = {
          read: [sql`SELECT 'sent'`, /'sent'/],
          write: [sql`INSERT INTO t VALUES (1) -- sent`, /sent/],
          first: [sql.withTransaction(sql`INSERT INTO t VALUES (2) -- sent`), /sent/],
          later: [
            sql.withTransaction(Effect.zipRight(sql`SELECT 1`, sql`INSERT INTO t VALUES (3) -- sent`)),
            /sent/
          ]
        } as const
        const results: Record<string, string> = {}
        for (const [name, [attempt, text]] of Object.entries(cases)) {
          for (const action of [Proxy.cutBefore("reset"), Proxy.cutAfter("reset")]) {
            const moment = yield* proxy.when(Proxy.statement(text), action)
            const again = yield* proxy.when(Proxy.statement(text), Proxy.pass, { times: 10 })
            const result = yield* outcome(attempt as Effect.Effect<unknown, unknown>)
            const times = (yield* moment.count) + (yield* again.count)
            yield* moment.off
            yield* again.off
            results[`${name}, ${action._tag === "Cut" && action.delivered ? "got" : "lost"}`] =
              `${result} ${times}`
          }
        }
        for (const [name, result] of Object.entries(results)) {
          assert.strictEqual(result, "ConnectionLost 1", name)
        }
        // The one write that the server got outside a transaction.
        yield* eventually(
          "one row",
          Effect.map(rows(rig), (n) => n === 1)
        )
      })
    )

    check(
      "F19: nothing of a transaction whose connection died between two statements",
      Effect.gen(function* () {
        const rig = yield* prepared
        const { sql } = rig
        const body = Effect.gen(function* () {
          yield* sql`INSERT INTO t VALUES (1)`
          yield* kill(rig, yield* processId(sql))
          yield* sql`INSERT INTO t VALUES (2)`
        })
        assert.include(["ServerShutdown", "ConnectionLost"], yield* outcome(sql.withTransaction(body)))
        assert.strictEqual(yield* rows(rig), 0)
      })
    )
  })

  check(
    "F22: a storm of deadlocks and write skew, 32 fibers, serializable with retry: the sum is constant, retries are bounded, 99.9 % succeed",
    Effect.gen(function* () {
      const { admin, proxy, sql, transact } = yield* makeRig({
        maxConnections: 15,
        acquireTimeout: "60 seconds"
      })
      const accounts = 20
      yield* sql`CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`
      yield* sql`INSERT INTO account SELECT id, 100 FROM generate_series(1, ${accounts}) id`
      const seed = Date.now()
      const random = Random.make(seed)
      // So many that none runs out of them on a slow machine, where transfers overlap more.
      const times = 60
      const runs: Array<number> = []
      const transfer = Effect.gen(function* () {
        const transfer = runs.push(0) - 1
        const from = yield* random.nextIntBetween(1, accounts + 1)
        const to = 1 + ((from + (yield* random.nextIntBetween(0, accounts - 1))) % accounts)
        const amount = yield* random.nextIntBetween(1, 10)
        // In the order in which they come, so that two of them deadlock.
        return yield* timed(
          outcome(
            transact(
              Effect.gen(function* () {
                runs[transfer] = (runs[transfer] ?? 0) + 1
                const [row] = yield* sql<{ balance: number }>`SELECT balance FROM account WHERE id = ${from}`
                if ((row?.balance ?? 0) < amount) return
                yield* sql`UPDATE account SET balance = balance - ${amount} WHERE id = ${from}`
                yield* sql`UPDATE account SET balance = balance + ${amount} WHERE id = ${to}`
              }),
              { isolation: "serializable", retry: { times } }
            )
          )
        )
      })
      const total = 32 * 40
      const results = yield* Effect.forEach(
        Array.from({ length: 32 }),
        () => Effect.replicateEffect(transfer, 40),
        { concurrency: "unbounded" }
      )
      const all = results.flat()
      const outcomes = tally(all.map(({ value }) => value))
      const millis = all.map(({ millis }) => millis).toSorted((a, b) => a - b)
      const [sum] = yield* admin.query<{ sum: number; least: number }>(
        "SELECT sum(balance)::int AS sum, min(balance) AS least FROM account"
      )
      const failed = (yield* proxy.trace).filter(
        ({ name, text }) => name === "ErrorResponse" && text.startsWith("40")
      )
      yield* report("F22", {
        seed,
        outcomes: JSON.stringify(outcomes),
        "runs per transfer": (runs.reduce((sum, n) => sum + n, 0) / total).toFixed(2),
        "most runs of one": Math.max(...runs),
        errors: JSON.stringify(tally(failed.map(({ text }) => text))),
        "p50 (ms)": (millis[Math.floor(total * 0.5)] ?? 0).toFixed(0),
        "p99 (ms)": (millis[Math.floor(total * 0.99)] ?? 0).toFixed(0),
        "max (ms)": (millis.at(-1) ?? 0).toFixed(0)
      })
      assert.strictEqual(sum?.sum, accounts * 100)
      assert.isAtLeast(sum?.least ?? -1, 0)
      assert.isTrue(failed.some(({ text }) => text.startsWith("40001")))
      assert.isAtLeast((outcomes["ok"] ?? 0) / total, 0.999)
      assert.isAtMost(Math.max(...runs), times + 1)
      // As many as failed, and no more: nothing is run again that did not fail.
      assert.isAtMost(
        runs.reduce((sum, n) => sum + n, 0),
        total + failed.length
      )
      // No transfer starves: the slowest but one in a hundred take as long as some others together
      // do. How long a pause may be is tested with Retry.
      const mean = millis.reduce((sum, one) => sum + one, 0) / total
      assert.isBelow(millis[Math.floor(total * 0.99)] ?? 0, 25 * mean)
    })
  )

  check(
    "F22: a deadlock: both transfers are made, one of them at its second try",
    Effect.gen(function* () {
      const { admin, proxy, sql, transact } = yield* makeRig({ maxConnections: 4 })
      yield* sql`CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`
      yield* sql`INSERT INTO account VALUES (1, 100), (2, 100)`
      const bothHold = yield* Deferred.make<void>()
      let tries = 0
      const transfer = (from: number, to: number, amount: number) =>
        transact(
          Effect.gen(function* () {
            yield* sql`UPDATE account SET balance = balance - ${amount} WHERE id = ${from}`
            if (++tries === 2) yield* Deferred.succeed(bothHold, undefined)
            yield* Deferred.await(bothHold)
            yield* sql`UPDATE account SET balance = balance + ${amount} WHERE id = ${to}`
          }),
          { retry: { times: 5 } }
        )
      yield* Effect.all([transfer(1, 2, 10), transfer(2, 1, 30)], { concurrency: 2 })
      const deadlocks = (yield* proxy.trace).filter(
        ({ name, text }) => name === "ErrorResponse" && text.startsWith("40P01")
      )
      assert.lengthOf(deadlocks, 1)
      assert.strictEqual(tries, 3)
      assert.deepStrictEqual(yield* admin.query("SELECT id, balance FROM account ORDER BY id"), [
        { id: 1, balance: 120 },
        { id: 2, balance: 80 }
      ])
    })
  )

  check(
    "F22: a write skew: two doctors cannot both leave, and neither attempt is lost",
    Effect.gen(function* () {
      const { sql, transact } = yield* makeRig({ maxConnections: 4 })
      yield* sql`CREATE TABLE doctor (id int PRIMARY KEY, on_call boolean)`
      yield* sql`INSERT INTO doctor VALUES (1, true), (2, true)`
      const bothRead = yield* Deferred.make<void>()
      let readers = 0
      const leave = (id: number) =>
        transact(
          Effect.gen(function* () {
            const [row] = yield* sql<{ n: number }>`SELECT count(*)::int AS n FROM doctor WHERE on_call`
            if (++readers === 2) yield* Deferred.succeed(bothRead, undefined)
            yield* Deferred.await(bothRead)
            if ((row?.n ?? 0) < 2) return "stays"
            yield* sql`UPDATE doctor SET on_call = false WHERE id = ${id}`
            return "left"
          }),
          { isolation: "serializable", retry: { times: 5 } }
        )
      const results = yield* Effect.all([leave(1), leave(2)], { concurrency: 2 })
      assert.sameMembers(results, ["left", "stays"])
      assert.strictEqual(readers, 3)
    })
  )

  describe("F23: hooks", () => {
    const hooked = Effect.map(makeRig({ ...single, maxConnections: 2 }), (rig) => {
      const ran: Array<string> = []
      const note = (name: string) => Effect.sync(() => void ran.push(name))
      return { ...rig, ran, note }
    })

    check(
      "F23: run once, after the outermost commit, in order; those of a savepoint that was rolled back do not",
      Effect.gen(function* () {
        const { admin, note, provide, ran, sql, transact } = yield* hooked
        yield* sql`CREATE TABLE t (id int)`
        const seen: Array<number> = []
        const count = Effect.flatMap(admin.query("SELECT * FROM t"), (rows) =>
          Effect.sync(() => seen.push(rows.length))
        )
        yield* provide(
          transact(
            Effect.gen(function* () {
              yield* sql`INSERT INTO t VALUES (1)`
              yield* Transaction.afterCommit(Effect.zipRight(note("first"), count))
              yield* transact(Transaction.afterCommit(note("nested")))
              yield* Effect.ignore(
                transact(
                  Effect.gen(function* () {
                    yield* Transaction.afterCommit(note("dropped"))
                    yield* transact(Transaction.afterCommit(note("dropped, two levels down")))
                    yield* Transaction.afterRollback(note("nested rollback"))
                    return yield* Effect.fail("no")
                  })
                )
              )
              yield* Transaction.afterCommit(note("last"))
              assert.deepStrictEqual(
                ran.filter((name) => name !== "nested rollback"),
                []
              )
            })
          )
        )
        assert.deepStrictEqual(
          ran.filter((name) => name !== "nested rollback"),
          ["first", "nested", "last"]
        )
        assert.strictEqual(ran.filter((name) => name === "nested rollback").length, 1)
        assert.deepStrictEqual(seen, [1])
      })
    )

    check(
      "F23: of a transaction that does not commit never run; those for a rollback do, once",
      Effect.gen(function* () {
        const { note, provide, ran, sql, transact } = yield* hooked
        const body = Effect.gen(function* () {
          yield* sql`SELECT 1`
          yield* Transaction.afterCommit(note("commit"))
          yield* Transaction.afterRollback(note("rollback"))
        })
        yield* Effect.exit(provide(transact(Effect.zipRight(body, Effect.fail("no")))))
        yield* Effect.exit(provide(transact(Effect.zipRight(body, Effect.die("no")))))
        yield* Effect.exit(provide(transact(Effect.zipRight(body, Effect.interrupt))))
        assert.deepStrictEqual(ran, ["rollback", "rollback", "rollback"])
      })
    )

    check(
      "F23: of an attempt that is retried are dropped: they run once",
      Effect.gen(function* () {
        const { note, provide, ran, sql, transact } = yield* hooked
        let attempt = 0
        const body = Effect.gen(function* () {
          yield* Transaction.afterCommit(note(`commit ${++attempt}`))
          if (attempt < 3)
            yield* sql.unsafe("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$")
        })
        yield* provide(transact(body, { retry: { times: 5 } }))
        assert.deepStrictEqual(ran, ["commit 3"])
      })
    )

    check(
      "F23: that throw, fail or die do not undo the commit, are logged, and do not keep the next from running",
      Effect.gen(function* () {
        const { admin, note, provide, ran, sql, transact } = yield* hooked
        yield* sql`CREATE TABLE t (id int)`
        const body = Effect.gen(function* () {
          yield* sql`INSERT INTO t VALUES (1)`
          yield* Transaction.afterCommit(Effect.fail("hook fails"))
          yield* Transaction.afterCommit(Effect.die("hook dies"))
          yield* Transaction.afterCommit(
            Effect.sync(() => {
              throw new Error("hook throws")
            })
          )
          yield* Transaction.afterCommit(note("next"))
          return "value"
        })
        assert.strictEqual(yield* provide(transact(body)), "value")
        assert.deepStrictEqual(ran, ["next"])
        assert.strictEqual((yield* admin.query("SELECT * FROM t")).length, 1)
        const logged = (yield* Logs).map(textOf).join("\n")
        for (const text of ["hook fails", "hook dies", "hook throws"]) assert.include(logged, text)
      })
    )

    check(
      "F23: may start a transaction, on a pool of one connection too",
      Effect.gen(function* () {
        const { admin, provide, sql, transact } = yield* makeRig({ ...single, acquireTimeout: "2 seconds" })
        yield* sql`CREATE TABLE t (id int)`
        const hook = Effect.ignoreLogged(transact(sql`INSERT INTO t VALUES (2)`))
        yield* provide(
          transact(Effect.zipRight(sql`INSERT INTO t VALUES (1)`, Transaction.afterCommit(hook)))
        )
        assert.strictEqual((yield* admin.query("SELECT * FROM t")).length, 2)
      })
    )

    check(
      "F23: of a transaction whose COMMIT was lost do not run",
      Effect.gen(function* () {
        const { note, provide, proxy, ran, sql, transact } = yield* hooked
        yield* proxy.when(Proxy.server("CommandComplete", /^COMMIT/), Proxy.cutBefore("reset"))
        const body = Effect.gen(function* () {
          yield* sql`SELECT 1`
          yield* Transaction.afterCommit(note("commit"))
          yield* Transaction.afterRollback(note("rollback"))
        })
        assert.strictEqual(yield* outcome(provide(transact(body))), "CommitOutcomeUnknown")
        assert.deepStrictEqual(ran, [])
      })
    )
  })

  describe("F28: a stream", () => {
    const streaming = (inTransaction: boolean) =>
      Effect.gen(function* () {
        const rig = yield* makeRig(single)
        const { sql } = rig
        yield* sql`CREATE SEQUENCE produced`
        const rows = sql<{ n: string }>`SELECT nextval('produced') AS n FROM generate_series(1, 100000)`
          .stream
        // Asked inside the transaction, before it ends.
        const cursors = Effect.map(
          sql<{ n: number }>`SELECT count(*)::int AS n FROM pg_cursors WHERE name <> ''`,
          (found) => found[0]?.n
        )
        const within = <A, E>(effect: Effect.Effect<A, E>) =>
          inTransaction
            ? sql.withTransaction(
                Effect.zipLeft(
                  Effect.exit(effect),
                  Effect.flatMap(cursors, (n) => Effect.sync(() => assert.strictEqual(n, 0)))
                )
              )
            : Effect.exit(effect)
        const check = Effect.gen(function* () {
          const { millis, value } = yield* timed(sql<{ n: string }>`SELECT last_value AS n FROM produced`)
          assert.isBelow(millis, 1000)
          assert.isAtMost(Number(value[0]?.n), 1000)
          assert.isTrue(yield* isClean(rig))
          assert.strictEqual((yield* rig.database.stats).busy, 0)
          assert.strictEqual(yield* cursors, 0)
        })
        return { check, rows, within, rig }
      })

    for (const inTransaction of [false, true]) {
      const where = inTransaction ? "in a transaction" : "on its own"

      check(
        `F28: ${where} that is left midway closes its cursor, gives its place back and has not read ahead`,
        Effect.gen(function* () {
          const { check, rows, within } = yield* streaming(inTransaction)
          const exit = yield* within(Stream.runCount(Stream.take(rows, 300)))
          assert.deepStrictEqual(exit, Exit.succeed(300))
          yield* check
        })
      )

      check(
        `F28: ${where} whose consumer fails closes its cursor, gives its place back and has not read ahead`,
        Effect.gen(function* () {
          const { check, rows, within } = yield* streaming(inTransaction)
          let taken = 0
          const exit = yield* within(
            Stream.runForEach(rows, () => (++taken < 200 ? Effect.void : Effect.fail("consumer")))
          )
          assert.deepStrictEqual(exit, Exit.fail("consumer"))
          yield* check
        })
      )

      check(
        `F28: ${where} that is interrupted, between batches or during one, closes its cursor, gives its place back and has not read ahead`,
        Effect.gen(function* () {
          const { check, rig, rows, within } = yield* streaming(inTransaction)
          const reached = yield* Deferred.make<void>()
          let taken = 0
          const consumer = Stream.runForEach(rows, () =>
            ++taken === 200
              ? Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never)
              : Effect.void
          )
          const interrupted = Effect.gen(function* () {
            const fiber = yield* Effect.fork(consumer)
            yield* Deferred.await(reached)
            yield* Fiber.interrupt(fiber)
          })
          yield* within(interrupted)
          yield* check
          const slow = rig.sql`SELECT pg_sleep(30) FROM generate_series(1, 100000)`.stream
          const fiber = yield* Effect.fork(Stream.runDrain(slow))
          yield* running(rig, "pg_sleep(30)")
          yield* Fiber.interrupt(fiber)
          yield* check
        })
      )
    }

    check(
      "F28: whose rows come too slowly for its consumer's timeout fails, and its place is free",
      Effect.gen(function* () {
        const { check, rig } = yield* streaming(false)
        const slow = rig.sql`SELECT pg_sleep(30)`.stream
        const result = yield* Effect.flip(Effect.timeout(Stream.runDrain(slow), "200 millis"))
        assert.notInstanceOf(result, SqlError)
        yield* rig.sql`SELECT nextval('produced')`
        yield* check
      })
    )
  })
})
