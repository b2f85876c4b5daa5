import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "../support/it.js"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { EventEmitter } from "node:events"
import * as Database from "../../src/Database.js"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import { isFull } from "../support/length.js"
import { check, Logs, makeRig, outcome, report, type Rig, tally, timed } from "./support.js"

/** Opens so many connections at once. */
const open = ({ sql }: Rig, count: number) =>
  Effect.gen(function* () {
    const all = yield* Deferred.make<void>()
    let lent = 0
    const hold = Effect.scoped(
      Effect.gen(function* () {
        yield* sql.reserve
        if (++lent === count) yield* Deferred.succeed(all, undefined)
        yield* Deferred.await(all)
      })
    )
    yield* Effect.all(
      Array.from({ length: count }, () => hold),
      { concurrency: "unbounded", discard: true }
    )
  })

/** The clock on the wall, which can be set here; the time that passes goes on as it does. */
const makeWallClock = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => ({ now: Date.now, offset: 0 })),
    ({ now }) =>
      Effect.sync(() => {
        Date.now = now
      })
  ),
  (wall) => {
    Date.now = () => wall.now() + wall.offset
    return {
      jump: (by: Duration.DurationInput, direction: 1 | -1) =>
        Effect.sync(() => {
          wall.offset += direction * Duration.toMillis(by)
        })
    }
  }
)

/**
 * Resumes when whatever keeps house has been round once more: it reports the connection that is
 * held meanwhile. Needs a `leakWarning` of 1 ms.
 */
const houseKept = ({ sql }: Rig) =>
  Effect.scoped(
    Effect.gen(function* () {
      const leaks = Effect.map(Logs, (logs) => logs.filter(({ message }) => message.includes("held")).length)
      const before = yield* leaks
      yield* sql.reserve
      yield* eventually(
        "the report",
        Effect.map(leaks, (count) => count > before)
      )
    })
  )

const collect = (): void => {
  const { gc } = globalThis as { readonly gc?: () => void }
  if (gc === undefined)
    throw new Error("the fault checks need --expose-gc: run them through their vitest.config.ts")
  gc()
}

/** The heap in bytes once nothing more can be collected. */
const heap = Effect.gen(function* () {
  for (let i = 0; i < 3; i++) {
    yield* Effect.sync(collect)
    yield* Effect.sleep("20 millis")
  }
  return process.memoryUsage().heapUsed
})

/** Sockets and other handles of the process, and all listeners on them. */
const handles = Effect.sync(() => {
  const active = (
    process as unknown as { readonly _getActiveHandles: () => ReadonlyArray<unknown> }
  )._getActiveHandles()
  const emitters = active.filter((handle) => handle instanceof EventEmitter)
  const listeners = emitters.flatMap((emitter) =>
    emitter.eventNames().map((event) => emitter.listenerCount(event))
  )
  return { count: active.length, listeners: listeners.reduce((sum, n) => sum + n, 0) }
})

/** So often connections are lent 100,000 times, and what fails is tried. */
const rounds = isFull ? 10 : 2

describe("In the long run", () => {
  check(
    "F14: 50 connections opened at once, with a lifetime of 10 s, end spread over 10 % of it, and never fewer than the minimum are idle",
    Effect.gen(function* () {
      const ttl = 10_000
      const min = 40
      const closings: Array<number> = []
      const rig = yield* makeRig({
        minConnections: min,
        maxConnections: 50,
        connectionTTL: Duration.millis(ttl),
        idleTimeout: "off",
        acquireTimeout: "20 seconds"
      })
      const { database, proxy } = rig
      yield* open(rig, 50)
      const first = (yield* proxy.connections).dialed
      yield* proxy.when(({ connection, name }) => {
        if (name === "Terminate" && connection <= first) closings.push(performance.now())
        return false
      }, Proxy.pass)
      let leastIdle = Number.POSITIVE_INFINITY
      const watch = yield* Effect.fork(
        Effect.forever(
          Effect.delay(
            Effect.map(database.stats, ({ idle }) => {
              leastIdle = Math.min(leastIdle, idle)
            }),
            "5 millis"
          )
        )
      )
      yield* eventually(
        "all of the first 50 have ended",
        Effect.sync(() => closings.length === 50)
      )
      yield* Fiber.interrupt(watch)
      const spread = (closings.at(-1) ?? 0) - (closings[0] ?? 0)
      const perWindow = closings.map(
        (from) => closings.filter((at) => at >= from && at < from + ttl / 100).length
      )
      yield* report("F14", {
        "lifetime (ms)": ttl,
        "spread (ms)": spread.toFixed(0),
        "most in 1 % of the lifetime": Math.max(...perWindow),
        "least idle": `${leastIdle} of ${min}`
      })
      assert.isAtLeast(spread, ttl / 10)
      assert.isAtLeast(leastIdle, min)
    })
  )

  check(
    `F27: ${rounds * 100_000} loans, ${rounds * 1000} errors, ${rounds * 200} timeouts and interruptions leave heap, handles and listeners as they were`,
    Effect.gen(function* () {
      const rig = yield* makeRig()
      const context = yield* Layer.build(
        Database.layer({
          url: rig.url,
          minConnections: 4,
          maxConnections: 4,
          acquireTimeout: "5 millis",
          validateAfterIdle: "off"
        })
      )
      const sql = Context.get(context, PgClient.PgClient)
      const loan = Effect.ignore(Effect.scoped(sql.reserve))
      const times = (count: number, effect: Effect.Effect<unknown, unknown>) =>
        Effect.forEach(Array.from({ length: count / 4 }), () => Effect.ignore(effect), {
          discard: true
        }).pipe((all) => Effect.all([all, all, all, all], { concurrency: 4, discard: true }))
      const saturated = Effect.scoped(
        Effect.gen(function* () {
          yield* Effect.all([sql.reserve, sql.reserve, sql.reserve, sql.reserve])
          yield* Effect.replicateEffect(
            Effect.all(
              Array.from({ length: 50 }, (_, i) =>
                i % 2 === 0
                  ? Effect.ignore(sql`SELECT 1`)
                  : Effect.timeoutOption(Effect.ignore(sql`SELECT 1`), "1 millis")
              ),
              { concurrency: "unbounded", discard: true }
            ),
            4
          )
        })
      )
      const round = Effect.gen(function* () {
        yield* times(100_000, loan)
        yield* times(1000, sql`SELECT 1 / 0`)
        yield* times(400, sql.withTransaction(Effect.fail("no")))
        yield* saturated
      })
      yield* round
      const before = { heap: yield* heap, handles: yield* handles }
      const heaps: Array<number> = []
      for (let i = 0; i < rounds; i++) {
        yield* round
        heaps.push(yield* heap)
      }
      const after = yield* handles
      const grown = (heaps.at(-1) ?? 0) - before.heap
      yield* report("F27", {
        "heap before (MB)": (before.heap / 1e6).toFixed(2),
        "heap grown (MB)": (grown / 1e6).toFixed(2),
        "handles before and after": `${before.handles.count} ${after.count}`,
        "listeners before and after": `${before.handles.listeners} ${after.listeners}`
      })
      assert.isBelow(grown, 2_000_000)
      assert.deepStrictEqual(after, before.handles)
    })
  )

  check(
    "F29: a connection held for longer than leakWarning (here 0.5 s) is one warning with its holder's span, and none once it is back",
    Effect.gen(function* () {
      const { sql } = yield* makeRig({ maxConnections: 2, leakWarning: "500 millis" })
      const logs = yield* Logs
      const leaks = () => logs.filter(({ level, message }) => level === "WARN" && message.includes("held"))
      const held = yield* Deferred.make<void>()
      const holder = yield* Effect.fork(
        sql.withTransaction(Deferred.await(held)).pipe(Effect.withSpan("checkout.of.orders"))
      )
      yield* eventually(
        "the warning",
        Effect.sync(() => leaks().length > 0)
      )
      // Long enough for two more, if they came.
      yield* Effect.sleep("1500 millis")
      assert.strictEqual(leaks().length, 1)
      assert.include(leaks()[0]?.message, "checkout.of.orders")
      yield* Deferred.succeed(held, undefined)
      yield* Fiber.join(holder)
      for (let i = 0; i < 20; i++) yield* Effect.delay(sql`SELECT 1`, "50 millis")
      assert.strictEqual(leaks().length, 1)
      // Somebody else's is another one.
      yield* Effect.scoped(Effect.zipRight(sql.reserve, Effect.sleep("1800 millis")))
      assert.strictEqual(leaks().length, 2)
    })
  )

  const jumps = {
    "a day forwards": 1,
    "a day backwards": -1
  } as const
  for (const [name, direction] of Object.entries(jumps)) {
    check(
      `F31: the clock jumps ${name}: no connection is evicted, although none has to stay`,
      Effect.gen(function* () {
        const wall = yield* makeWallClock
        const rig = yield* makeRig({ minConnections: 0, leakWarning: "1 millis" })
        yield* open(rig, 10)
        const before = yield* rig.backends
        yield* wall.jump("1 day", direction)
        yield* houseKept(rig)
        yield* houseKept(rig)
        yield* open(rig, 10)
        const after = yield* rig.backends
        assert.strictEqual(before.length, 10)
        assert.sameMembers(
          after.map(({ pid }) => pid),
          before.map(({ pid }) => pid)
        )
      })
    )
  }

  check(
    "F31: the clock jumps a day backwards: connections are still recycled, closed when idle, and asked before they are lent",
    Effect.gen(function* () {
      const wall = yield* makeWallClock
      const rig = yield* makeRig({
        minConnections: 2,
        maxConnections: 3,
        connectionTTL: "3 seconds",
        idleTimeout: "1 second",
        validateAfterIdle: "500 millis"
      })
      const { proxy, sql } = rig
      yield* open(rig, 3)
      yield* wall.jump("1 day", -1)
      const first = new Set((yield* rig.backends).map(({ pid }) => pid))
      yield* eventually(
        "the one above the minimum is closed and all are new",
        Effect.map(rig.backends, (rows) => rows.length === 2 && rows.every(({ pid }) => !first.has(pid)))
      )
      yield* Effect.sleep("600 millis")
      yield* proxy.freeze
      const { millis, value } = yield* timed(outcome(sql`SELECT 1`))
      assert.strictEqual(value, "ok")
      assert.isBelow(millis, 4000)
    })
  )

  check(
    "F31: the event loop stands still for 5 s while 10 connections are asked whether they are alive: none is evicted, no statement fails",
    Effect.gen(function* () {
      const rig = yield* makeRig({
        minConnections: 10,
        maxConnections: 10,
        validateAfterIdle: 0
      })
      const { proxy, sql } = rig
      yield* open(rig, 10)
      const before = yield* proxy.connections
      const pings = yield* proxy.when(Proxy.statement(/^-- ping/), Proxy.pass, { times: 100 })
      const fibers = yield* Effect.forEach(Array.from({ length: 10 }), () =>
        Effect.fork(outcome(sql`SELECT 1`))
      )
      yield* pings.reached
      yield* Effect.sync(() => {
        const end = performance.now() + 5000
        while (performance.now() < end);
      })
      const outcomes = yield* Effect.all(fibers.map(Fiber.join))
      yield* Effect.sleep("1500 millis")
      assert.deepStrictEqual(tally(outcomes), { ok: 10 })
      assert.strictEqual((yield* proxy.connections).dialed, before.dialed)
    })
  )
})
