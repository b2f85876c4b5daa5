import type { SqlError } from "@effect/sql/SqlError"
import { assert, describe } from "../support/it.js"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import dns from "node:dns"
import { SqlClient } from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg/PgClient"
import * as Database from "../../src/Database.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { eventually, NeverCame } from "../support/eventually.js"
import { adminSession } from "../support/server.js"
import * as Proxy from "../support/Proxy.js"
import { check, makeRig, outcome, report, type Rig, running, tally, tagOf, timed } from "./support.js"

/**
 * Lends so many connections at once, each with a statement on it, and gives the longest wait in
 * milliseconds.
 */
const lendable = ({ sql }: Pick<Rig, "sql">, count: number) =>
  Effect.gen(function* () {
    const all = yield* Deferred.make<void>()
    let lent = 0
    const hold = Effect.scoped(
      Effect.gen(function* () {
        const { millis, value } = yield* timed(sql.reserve)
        yield* value.execute("SELECT 1", [], undefined)
        if (++lent === count) yield* Deferred.succeed(all, undefined)
        yield* Deferred.await(all)
        return millis
      })
    )
    return Math.max(
      ...(yield* Effect.all(
        Array.from({ length: count }, () => hold),
        { concurrency: count }
      ))
    )
  }).pipe(
    Effect.timeoutFail({
      duration: "10 seconds",
      onTimeout: () => new NeverCame({ message: `never lent: ${count} connections` })
    })
  )

/** Holds every connection of the pool until the scope closes. */
const exhaust = ({ sql }: Rig, count: number) =>
  Effect.forEach(Array.from({ length: count }), () => sql.reserve, { discard: true })

describe("Getting a connection", () => {
  check(
    "F1: 200 fibers on 2 connections, each interrupted at a random moment, leave nothing behind",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 2, acquireTimeout: "30 seconds" })
      const { database, proxy, sql } = rig
      // Dials take a while, so that some interruptions come during one.
      yield* proxy.setDialDelay("5 millis")
      const work = [
        sql`SELECT pg_sleep(0.002)`,
        sql.withTransaction(sql`SELECT pg_sleep(0.001)`),
        Effect.scoped(Effect.flatMap(sql.reserve, (c) => c.execute("SELECT 1", [], undefined))),
        Stream.runDrain(sql`SELECT generate_series(1, 300)`.stream)
      ]
      const seed = Date.now()
      const random = Random.make(seed)
      for (let round = 0; round < 3; round++) {
        const fibers = yield* Effect.forEach(Array.from({ length: 200 }), (_, i) =>
          Effect.forkDaemon(work[i % work.length] as Effect.Effect<unknown, SqlError>)
        )
        yield* Effect.forEach(
          fibers,
          (fiber) =>
            Effect.gen(function* () {
              yield* Effect.sleep(Duration.millis(yield* random.nextRange(0, 250)))
              yield* Fiber.interrupt(fiber)
            }),
          { concurrency: "unbounded" }
        )
      }
      yield* eventually(
        `nothing is busy or waiting (seed ${seed})`,
        Effect.map(database.stats, ({ busy, waiting }) => busy === 0 && waiting === 0)
      )
      yield* proxy.setDialDelay(0)
      const { total } = yield* database.stats
      assert.isAtMost(total, 2, `seed ${seed}`)
      const longest = yield* lendable(rig, 2)
      assert.isBelow(longest, 100, `seed ${seed}`)
      const open = yield* rig.backends
      assert.isAtMost(open.length, 2, `seed ${seed}`)
      assert.isTrue(
        open.every(({ state }) => state === "idle"),
        `seed ${seed}`
      )
      yield* report("F1", { "longest acquire afterwards (ms)": longest.toFixed(1) })
    })
  )

  check(
    "F2: a transaction with a timeout on an exhausted pool fails in time, and no BEGIN follows",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 2, acquireTimeout: "5 seconds" })
      const scope = yield* Scope.make()
      yield* Scope.extend(exhaust(rig, 2), scope)
      const attempt = rig.sql.withTransaction(rig.sql`SELECT 1`).pipe(Effect.timeout("100 millis"))
      const { millis, value } = yield* timed(Effect.flip(attempt))
      assert.isTrue(Cause.isTimeoutException(value))
      assert.isAtLeast(millis, 50)
      assert.isAtMost(millis, 150)
      yield* Scope.close(scope, Exit.void)
      yield* rig.sql`SELECT 'after'`
      assert.isFalse((yield* rig.proxy.trace).some(({ text }) => text.startsWith("BEGIN")))
    })
  )

  check(
    "F2: the acquire timeout is a failure of its own, in time, and no BEGIN follows",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 2, acquireTimeout: "100 millis" })
      const scope = yield* Scope.make()
      yield* Scope.extend(exhaust(rig, 2), scope)
      const { millis, value } = yield* timed(Effect.flip(rig.transact(rig.sql`SELECT 1`)))
      assert.strictEqual(tagOf(value), "AcquireTimeout")
      assert.isAtLeast(millis, 50)
      assert.isAtMost(millis, 150)
      yield* Scope.close(scope, Exit.void)
      yield* rig.sql`SELECT 'after'`
      assert.isFalse((yield* rig.proxy.trace).some(({ text }) => text.startsWith("BEGIN")))
    })
  )

  check(
    "F2: a queue that is full refuses at once, with what the pool does",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 2, maxWaiting: 3, acquireTimeout: "5 seconds" })
      yield* exhaust(rig, 2)
      const waiters = yield* Effect.forEach([1, 2, 3], () => Effect.fork(outcome(rig.sql`SELECT 1`)))
      yield* eventually(
        "three wait",
        Effect.map(rig.database.stats, ({ waiting }) => waiting === 3)
      )
      const { millis, value } = yield* timed(outcome(rig.sql`SELECT 1`))
      assert.strictEqual(value, "Overloaded")
      assert.isBelow(millis, 100)
      yield* Fiber.interruptAll(waiters)
    })
  )

  check(
    "F2: fibers that each hold a connection and wait for another one are told so, instead of waiting for each other",
    Effect.gen(function* () {
      const size = 3
      const rig = yield* makeRig({ maxConnections: size, acquireTimeout: "10 seconds" })
      const everybody = yield* Deferred.make<void>()
      let holders = 0
      const nested = Effect.gen(function* () {
        if (++holders === size) yield* Deferred.succeed(everybody, undefined)
        yield* Deferred.await(everybody)
        yield* Effect.scoped(Effect.flatMap(rig.sql.reserve, (c) => c.execute("SELECT 1", [], undefined)))
      })
      const { millis, value } = yield* timed(
        Effect.all(
          Array.from({ length: size }, () => outcome(rig.transact(nested))),
          { concurrency: "unbounded" }
        )
      )
      const outcomes = tally(value)
      yield* report("Ring", { outcomes: JSON.stringify(outcomes), ms: millis.toFixed(0) })
      assert.isBelow(millis, 1000)
      assert.sameMembers(Object.keys(outcomes), ["ok", "NestedAcquire"])
    })
  )

  check(
    "F3: the network is gone for 30 s (dropped, not reset): every call returns within the acquire timeout, and the first success comes within 2 s of its return",
    Effect.gen(function* () {
      const acquireSeconds = 5
      const { proxy, sql } = yield* makeRig({
        minConnections: 5,
        acquireTimeout: Duration.seconds(acquireSeconds)
      })
      const calls: Array<{ readonly at: number; readonly millis: number; readonly result: string }> = []
      const call = Effect.gen(function* () {
        const { millis, value } = yield* timed(outcome(sql`SELECT 1`))
        calls.push({ at: performance.now(), millis, result: value })
      })
      const begun: Array<Fiber.RuntimeFiber<void>> = []
      const borrower = yield* Effect.fork(
        Effect.repeat(
          Effect.map(Effect.forkDaemon(call), (fiber) => void begun.push(fiber)),
          Schedule.spaced("2 seconds")
        )
      )
      yield* eventually(
        "the first call",
        Effect.sync(() => calls.length > 0)
      )
      yield* proxy.down
      yield* Effect.sleep("30 seconds")
      yield* proxy.up
      const returned = performance.now()
      // What the regular borrower gets can be as late as its next turn; this asks without a pause.
      yield* Effect.retry(sql`SELECT 'back'`, { while: () => performance.now() - returned < 20_000 })
      const recovery = performance.now() - returned
      yield* eventually(
        "a regular success",
        Effect.sync(() => calls.some(({ at, result }) => at > returned && result === "ok"))
      )
      yield* Fiber.interrupt(borrower)
      // Every call, also one that would wait for good.
      yield* Fiber.joinAll(begun).pipe(Effect.timeout("10 seconds"))
      assert.strictEqual(calls.length, begun.length)
      assert.isAtLeast(begun.length, 15)
      const longest = Math.max(...calls.map(({ millis }) => millis))
      yield* report("F3", {
        "longest call (ms)": longest.toFixed(0),
        "first success after the return (ms)": recovery.toFixed(0),
        outcomes: JSON.stringify(tally(calls.map(({ result }) => result)))
      })
      assert.isAtMost(longest, acquireSeconds * 1100)
      assert.isAtMost(recovery, 2000)
    })
  )

  check(
    "F3: statements that were under way when the network went do not hold their connections for good",
    Effect.gen(function* () {
      const rig = yield* makeRig({
        maxConnections: 3,
        statementTimeout: "1 second",
        lockTimeout: "1 second",
        acquireTimeout: "2 seconds"
      })
      const { proxy, sql } = rig
      const fibers = yield* Effect.forEach([1, 2, 3], () =>
        Effect.fork(outcome(sql`SELECT pg_sleep(0.5) AS under_way`))
      )
      yield* running(rig, "under_way", 3)
      yield* proxy.down
      const ended = yield* Effect.all(fibers.map(Fiber.join)).pipe(Effect.timeoutOption("10 seconds"))
      yield* proxy.up
      const { value } = yield* timed(
        Effect.retry(sql`SELECT 1`, { times: 3 }).pipe(Effect.timeout("9 seconds"), outcome)
      )
      assert.deepStrictEqual(
        Option.getOrElse(ended, () => ["still waiting"]),
        ["ConnectionLost", "ConnectionLost", "ConnectionLost"]
      )
      assert.strictEqual(value, "ok")
    })
  )

  check(
    "F17: a spike of 50 on 5 idle connections, dials of 150 ms: all done before the first dial, 10 connections at most",
    Effect.gen(function* () {
      const { database, proxy, sql } = yield* makeRig({ minConnections: 5, maxConnections: 50 })
      const all = (concurrency: 5 | "unbounded") =>
        timed(
          Effect.all(
            Array.from({ length: 50 }, () => sql`SELECT pg_sleep(0.002)`),
            { concurrency }
          )
        )
      // Statements are prepared at their second use: a warm pool is what a spike meets.
      yield* all(5)
      const { millis: alone } = yield* all(5)
      yield* eventually(
        "5 idle connections",
        Effect.map(database.stats, ({ idle, total }) => idle === 5 && total === 5)
      )
      // No dial gets on before all are done, however slow this machine is.
      const done = yield* Deferred.make<void>()
      const dials = yield* proxy.when(
        Proxy.client("StartupMessage"),
        Proxy.hold(Effect.zipRight(Deferred.await(done), Effect.sleep("150 millis"))),
        { times: 50 }
      )
      const { millis } = yield* all("unbounded").pipe(Effect.timeout("4 seconds"))
      const { total: during } = yield* database.stats
      yield* Deferred.succeed(done, undefined)
      // Who else was dialed by then counts, too.
      yield* eventually(
        "every dial that began is over",
        Effect.map(Effect.all([database.stats, dials.count]), ([{ total }, count]) => total === 5 + count)
      )
      const { total } = yield* database.stats
      yield* report("F17", {
        "all 50 done (ms)": millis.toFixed(1),
        "5 at a time (ms)": alone.toFixed(1),
        "connections at the end": total
      })
      assert.strictEqual(during, 5)
      // Less than a dial, but where the machine needs longer for the statements themselves.
      assert.isBelow(millis, Math.max(150, 4 * alone))
      assert.isAtMost(total, 10)
    })
  )

  check(
    "F18: a dial that succeeds just after its timeout leaves no session behind, and its place is free again",
    Effect.gen(function* () {
      const rig = yield* makeRig({
        maxConnections: 2,
        connectTimeout: "200 millis",
        acquireTimeout: "2 seconds"
      })
      yield* rig.proxy.cutAll("end")
      yield* eventually(
        "the pool is empty",
        Effect.map(rig.database.stats, ({ total }) => total === 0)
      )
      const gate = yield* Deferred.make<void>()
      const late = yield* rig.proxy.when(Proxy.server("ReadyForQuery"), Proxy.hold(Deferred.await(gate)), {
        times: 2
      })
      const results = yield* Effect.all([outcome(rig.sql`SELECT 1`), outcome(rig.sql`SELECT 2`)], {
        concurrency: 2
      })
      assert.include(results, "ConnectFailed")
      yield* late.reached
      yield* Deferred.succeed(gate, undefined)
      yield* eventually(
        "both places are free",
        Effect.map(outcome(lendable(rig, 2)), (result) => result === "ok")
      )
      yield* eventually(
        "no session but those of the pool",
        Effect.map(
          Effect.all([rig.backends, rig.database.stats]),
          ([open, { total }]) => open.length === total
        )
      )
    })
  )

  check(
    "F18: a name server that does not answer costs the connect timeout, not a connection's place",
    Effect.gen(function* () {
      let hangs = true
      const hanging: Array<() => void> = []
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const original = dns.lookup
          const hang = (name: string, ...rest: ReadonlyArray<unknown>) => {
            const go = () => Reflect.apply(original, dns, ["127.0.0.1", ...rest])
            if (name !== "hanging.test") Reflect.apply(original, dns, [name, ...rest])
            else if (hangs) hanging.push(go)
            else go()
          }
          dns.lookup = hang as typeof dns.lookup
          return original
        }),
        (original) =>
          Effect.sync(() => {
            dns.lookup = original
          })
      )
      const rig = yield* makeRig({ maxConnections: 1 })
      const url = new URL(Redacted.value(rig.url))
      url.hostname = "hanging.test"
      const settings = {
        url: url.toString(),
        applicationName: "hanging",
        minConnections: 0,
        maxConnections: 2,
        connectTimeout: "300 millis",
        acquireTimeout: "2 seconds"
      } as const
      const scope = yield* Scope.make()
      const building = yield* Effect.fork(
        Effect.either(Scope.extend(Layer.build(Database.layer(settings)), scope))
      )
      const { millis, value } = yield* timed(Fiber.join(building))
      assert.strictEqual(Either.match(value, { onLeft: tagOf, onRight: () => "built" }), "ConnectFailed")
      assert.isBelow(millis, 2200)
      assert.isAbove(hanging.length, 0)
      // The answer comes after everybody has given up.
      for (const go of hanging.splice(0)) go()
      yield* Scope.close(scope, Exit.void)

      // The same in a pool that runs, when both of its connections are lost.
      hangs = false
      const context = yield* Layer.build(Database.layer(settings))
      const pool = {
        sql: Context.get(context, PgClient),
        stats: Context.get(context, Database.Database).stats
      }
      yield* lendable(pool, 2)
      hangs = true
      yield* rig.admin.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hanging'"
      )
      yield* eventually(
        "both are lost",
        Effect.map(pool.stats, ({ total }) => total === 0)
      )
      const lost = yield* Effect.all(
        Array.from({ length: 4 }, () => timed(outcome(pool.sql`SELECT 1`))),
        { concurrency: "unbounded" }
      )
      for (const { millis, value } of lost) {
        assert.include(["ConnectFailed", "AcquireTimeout"], value)
        assert.isBelow(millis, 2200)
      }
      assert.isAbove(hanging.length, 0)
      hangs = false
      for (const go of hanging.splice(0)) go()
      yield* eventually(
        "both places are free",
        Effect.map(outcome(lendable(pool, 2)), (result) => result === "ok")
      )
      const [open] = yield* rig.admin.query<{ n: number }>(
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE application_name = 'hanging'"
      )
      assert.strictEqual(open?.n, 2)
      yield* rig.admin.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hanging'"
      )
      yield* eventually(
        "no session of it",
        Effect.map(
          rig.admin.query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'hanging'"),
          (rows) => rows.length === 0
        )
      )
    })
  )

  check(
    "F18: dials that the server turns down at the end of their handshake leave no session and no place behind",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 2, acquireTimeout: "500 millis" })
      yield* rig.proxy.cutAll("end")
      yield* eventually(
        "the pool is empty",
        Effect.map(rig.database.stats, ({ total }) => total === 0)
      )
      const cut = yield* rig.proxy.when(Proxy.server("BackendKeyData"), Proxy.cutBefore("reset"), {
        times: 12
      })
      const results = yield* Effect.all(Array.from({ length: 8 }, () => outcome(rig.sql`SELECT 1`)))
      assert.notInclude(results, "ok")
      yield* cut.off
      yield* eventually(
        "both places are free",
        Effect.map(outcome(lendable(rig, 2)), (result) => result === "ok")
      )
      yield* eventually(
        "no session but those of the pool",
        Effect.map(
          Effect.all([rig.backends, rig.database.stats]),
          ([open, { total }]) => open.length === total
        )
      )
    })
  )

  check(
    "F24: a shutdown fails who waits at once, lets who works finish, cuts off who does not, and closes every socket; twice is the same",
    Effect.gen(function* () {
      const url = yield* TestDatabase.make()
      const proxy = yield* Proxy.make(url)
      const admin = yield* adminSession(new URL(Redacted.value(url)).pathname.slice(1))
      yield* admin.query("SELECT pg_advisory_lock(1)")
      const scope = yield* Scope.make()
      const context = yield* Layer.build(
        Database.layer({ url: proxy.url, minConnections: 0, maxConnections: 2, acquireTimeout: "20 seconds" })
      ).pipe(Scope.extend(scope))
      const inside = Effect.provide(
        Effect.gen(function* () {
          const { stats } = yield* Database.Database
          const sql = yield* SqlClient
          const working = yield* Effect.fork(outcome(sql`SELECT pg_advisory_lock(1)`))
          const endless = yield* Effect.fork(outcome(sql`SELECT pg_sleep(60)`))
          yield* eventually(
            "both work",
            Effect.map(stats, ({ busy }) => busy === 2)
          )
          const waiters = yield* Effect.forEach([1, 2, 3], () => Effect.fork(timed(outcome(sql`SELECT 1`))))
          yield* eventually(
            "three wait",
            Effect.map(stats, ({ waiting }) => waiting === 3)
          )
          const closing = yield* Effect.fork(timed(Scope.close(scope, Exit.void)))
          const again = yield* Effect.fork(Scope.close(scope, Exit.void))
          const waited = yield* Effect.all(waiters.map(Fiber.join))
          assert.deepStrictEqual(
            waited.map(({ value }) => value),
            ["PoolClosed", "PoolClosed", "PoolClosed"]
          )
          yield* admin.query("SELECT pg_advisory_unlock(1)")
          assert.strictEqual(yield* Fiber.join(working), "ok")
          const cancelled = yield* Fiber.join(endless)
          assert.include(["ConnectionLost", "StatementCancelled", "PoolClosed"], cancelled)
          const { millis } = yield* Fiber.join(closing)
          yield* Fiber.join(again)
          yield* Scope.close(scope, Exit.void)
          assert.isBelow(millis, 6000)
          assert.strictEqual(yield* outcome(sql`SELECT 1`), "PoolClosed")
          return millis
        }),
        context
      )
      const millis = yield* inside
      yield* eventually(
        "no socket",
        Effect.map(proxy.connections, ({ open }) => open === 0)
      )
      yield* report("F24", { "close with an endless statement (ms)": millis.toFixed(0) })
    })
  )

  check(
    "F24: a shutdown while dialing ends the dial and fails who waits for it",
    Effect.gen(function* () {
      const url = yield* TestDatabase.make()
      const proxy = yield* Proxy.make(url)
      const scope = yield* Scope.make()
      const context = yield* Layer.build(
        Database.layer({ url: proxy.url, minConnections: 0, maxConnections: 4, acquireTimeout: "20 seconds" })
      ).pipe(Scope.extend(scope))
      const hung = yield* proxy.when(Proxy.client("StartupMessage"), Proxy.hold(Effect.never), { times: 10 })
      const sql = yield* Effect.provide(SqlClient, context)
      const holder = yield* Effect.fork(Effect.scoped(Effect.zipRight(sql.reserve, Effect.never)))
      const waiters = yield* Effect.forEach([1, 2, 3], () => Effect.fork(outcome(sql`SELECT 1`)))
      yield* hung.reached
      yield* Fiber.interrupt(holder)
      const { millis } = yield* timed(Scope.close(scope, Exit.void))
      const results = yield* Effect.all(waiters.map(Fiber.join))
      assert.isTrue(
        results.every((result) => result === "PoolClosed" || result === "ok"),
        results.join()
      )
      assert.isBelow(millis, 4000)
      yield* eventually(
        "no socket",
        Effect.map(proxy.connections, ({ open }) => open === 0)
      )
    })
  )
})
