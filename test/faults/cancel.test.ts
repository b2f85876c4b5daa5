import type { SqlError } from "@effect/sql/SqlError"
import { assert, describe } from "../support/it.js"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Ref from "effect/Ref"
import * as Stream from "effect/Stream"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import {
  check,
  kill,
  makeRig,
  outcome,
  outcomeOf,
  processId,
  report,
  running,
  tally,
  timed
} from "./support.js"

describe("Cancelling", () => {
  check(
    "F4: an interrupted statement on a full pool lets its caller go on within 200 ms, ends on the server within 1 s, and no other notices",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 4, acquireTimeout: "20 seconds" })
      const { backends, sql } = rig
      const others = yield* Effect.forEach([1, 2, 3], () =>
        Effect.fork(outcome(sql`SELECT pg_sleep(3) AS other`))
      )
      const victim = yield* Effect.fork(sql`SELECT pg_sleep(30) AS victim`)
      yield* running(rig, "pg_sleep", 4)
      const queued = yield* Effect.fork(outcome(sql`SELECT 1`))
      const start = performance.now()
      yield* Fiber.interrupt(victim)
      const resumed = performance.now() - start
      yield* eventually(
        "the backend is idle",
        Effect.map(backends, (rows) =>
          rows.every(({ query, state }) => state !== "active" || !query.includes("victim"))
        )
      )
      const idle = performance.now() - start
      assert.isBelow(resumed, 200)
      assert.isBelow(idle, 1000)
      assert.strictEqual(yield* Fiber.join(queued), "ok")
      assert.deepStrictEqual(yield* Effect.all(others.map(Fiber.join)), ["ok", "ok", "ok"])
      yield* report("F4", { "caller (ms)": resumed.toFixed(0), "server (ms)": idle.toFixed(0) })
    })
  )

  check(
    "F5: a cancel request that is late by 300 ms never hits the next statement",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 1, acquireTimeout: "20 seconds" })
      const { proxy, sql } = rig
      const outcomes: Array<string> = []
      for (let run = 0; run < 10; run++) {
        const ended = yield* Deferred.make<void>()
        const held = yield* proxy.when(
          Proxy.client("CancelRequest"),
          Proxy.hold(Effect.zipRight(Deferred.await(ended), Effect.sleep("300 millis")))
        )
        const completed = yield* proxy.when(Proxy.server("CommandComplete", /SELECT/), Proxy.pass)
        const fiber = yield* Effect.fork(sql`SELECT pg_sleep(0.1) AS late`)
        yield* running(rig, "late")
        const interruption = yield* Effect.fork(Fiber.interrupt(fiber))
        yield* held.reached
        // The statement ends by itself; then somebody else wants the connection.
        yield* completed.reached
        yield* Deferred.succeed(ended, undefined)
        const next = yield* Effect.forEach([1, 2, 3], () => Effect.fork(outcome(sql`SELECT pg_sleep(0.15)`)))
        outcomes.push(...(yield* Effect.all(next.map(Fiber.join))))
        yield* Fiber.join(interruption)
      }
      assert.deepStrictEqual(tally(outcomes), { ok: 30 })
    })
  )

  check(
    "F5: a cancel request that never arrives costs the connection, never somebody else's statement",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 1, acquireTimeout: "20 seconds" })
      const { proxy, sql } = rig
      const before = yield* processId(sql)
      const gate = yield* Deferred.make<void>()
      const held = yield* proxy.when(Proxy.client("CancelRequest"), Proxy.hold(Deferred.await(gate)))
      const fiber = yield* Effect.fork(sql`SELECT pg_sleep(30) AS stuck`)
      yield* running(rig, "stuck")
      const { millis } = yield* timed(Fiber.interrupt(fiber))
      assert.isBelow(millis, 200)
      yield* held.reached
      const after = yield* processId(sql)
      assert.notStrictEqual(after, before)
      const innocent = yield* Effect.fork(outcome(sql`SELECT pg_sleep(0.3) AS innocent`))
      yield* running(rig, "innocent")
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual(yield* Fiber.join(innocent), "ok")
    })
  )

  check(
    "F6: one killed backend with 20 waiters costs exactly one failure",
    Effect.gen(function* () {
      for (let run = 0; run < 5; run++) {
        const rig = yield* makeRig({ maxConnections: 1, acquireTimeout: "20 seconds" })
        const { database, sql } = rig
        const pid = yield* processId(sql)
        const victim = yield* Effect.fork(Effect.exit(sql`SELECT pg_sleep(30) AS victim`))
        yield* running(rig, "victim")
        const queued = yield* Effect.forEach(Array.from({ length: 20 }), () =>
          Effect.fork(Effect.exit(sql`SELECT 1`))
        )
        yield* eventually(
          "20 wait",
          Effect.map(database.stats, ({ waiting }) => waiting === 20)
        )
        yield* kill(rig, pid)
        assert.strictEqual(outcomeOf(yield* Fiber.join(victim)), "ServerShutdown")
        const exits = yield* Effect.all(queued.map(Fiber.join))
        assert.deepStrictEqual(tally(exits.map(outcomeOf)), { ok: 20 })
      }
    })
  )

  check(
    "An interruption storm: 20,000 interruptions over a pool of 15 lose no connection and cancel no innocent statement",
    Effect.gen(function* () {
      const size = 15
      const target = 20_000
      const rig = yield* makeRig({
        maxConnections: size,
        minConnections: size,
        acquireTimeout: "30 seconds"
      })
      const { backends, database, proxy, sql } = rig
      yield* sql`CREATE TABLE stormy (id int)`
      const seed = Date.now()
      const seeded = `seed ${seed}`
      const random = Random.make(seed)
      const interruptions = yield* Ref.make(0)
      const work: ReadonlyArray<Effect.Effect<unknown, SqlError>> = [
        sql`SELECT pg_sleep(0.003)`,
        sql`SELECT ${1}::int`,
        sql.withTransaction(Effect.zipRight(sql`INSERT INTO stormy VALUES (1)`, sql`SELECT pg_sleep(0.002)`)),
        sql.withTransaction(Effect.ignore(sql.withTransaction(sql`INSERT INTO stormy VALUES (2)`))),
        Stream.runDrain(sql`SELECT generate_series(1, 600)`.stream),
        sql.withTransaction(Stream.runDrain(sql`SELECT generate_series(1, 300)`.stream)),
        Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) =>
            Effect.zipRight(
              connection.execute("SELECT 1", [], undefined),
              connection.execute("SELECT pg_sleep(0.001)", [], undefined)
            )
          )
        )
      ]
      const rioter = Effect.gen(function* () {
        const choice = yield* random.nextIntBetween(0, work.length)
        const millis = yield* random.nextRange(0, 10)
        const fiber = yield* Effect.forkDaemon(work[choice] as Effect.Effect<unknown, SqlError>)
        yield* millis < 1 ? Effect.yieldNow() : Effect.sleep(Duration.millis(millis))
        const exit = yield* Fiber.interrupt(fiber)
        if (outcomeOf(exit) === "interrupted") yield* Ref.update(interruptions, (n) => n + 1)
        return outcomeOf(exit)
      })
      const rioters = Effect.gen(function* () {
        const seen: Record<string, number> = {}
        while ((yield* Ref.get(interruptions)) < target) {
          const result = yield* rioter
          seen[result] = (seen[result] ?? 0) + 1
        }
        return seen
      })
      const innocentOutcomes: Record<string, number> = {}
      const innocent = Effect.gen(function* () {
        const result = yield* outcome(
          Effect.all([sql`SELECT pg_sleep(0.002)`, sql.withTransaction(sql`SELECT pg_sleep(0.001)`)])
        )
        innocentOutcomes[result] = (innocentOutcomes[result] ?? 0) + 1
      })
      const innocents = yield* Effect.fork(
        Effect.all(
          Array.from({ length: 5 }, () => Effect.forever(innocent)),
          { concurrency: "unbounded" }
        )
      )
      const { millis, value } = yield* timed(
        Effect.all(
          Array.from({ length: 20 }, () => rioters),
          { concurrency: "unbounded" }
        )
      )
      yield* Fiber.interrupt(innocents)
      const outcomes: Record<string, number> = {}
      for (const seen of value)
        for (const [key, n] of Object.entries(seen)) outcomes[key] = (outcomes[key] ?? 0) + n

      yield* eventually(
        `nothing is busy (${seeded})`,
        Effect.map(database.stats, ({ busy, waiting }) => busy === 0 && waiting === 0)
      )
      const states = tally((yield* backends).map(({ state }) => state))
      const all = yield* Deferred.make<void>()
      let lent = 0
      const hold = Effect.scoped(
        Effect.gen(function* () {
          const connection = yield* sql.reserve
          yield* connection.execute("SELECT 1", [], undefined)
          if (++lent === size) yield* Deferred.succeed(all, undefined)
          yield* Deferred.await(all)
        })
      )
      const lending = yield* timed(
        Effect.all(
          Array.from({ length: size }, () => hold),
          { concurrency: "unbounded" }
        ).pipe(Effect.timeoutOption("5 seconds"))
      )
      yield* report("Storm", {
        seed,
        "duration (s)": (millis / 1000).toFixed(1),
        outcomes: JSON.stringify(outcomes),
        innocents: JSON.stringify(innocentOutcomes),
        "cancel requests": (yield* proxy.connections).cancels,
        dials: (yield* proxy.connections).dialed,
        "lendable at once": `${lent} of ${size} in ${lending.millis.toFixed(0)} ms`,
        backends: JSON.stringify(states)
      })
      assert.strictEqual(lent, size, seeded)
      assert.deepStrictEqual(Object.keys(states), ["idle"], seeded)
      assert.deepStrictEqual(Object.keys(innocentOutcomes), ["ok"], seeded)
      assert.deepStrictEqual(
        Object.keys(outcomes).filter((key) => key !== "ok" && key !== "interrupted"),
        [],
        seeded
      )
    })
  )
})
