import { assert, describe } from "./it.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { eventually } from "./eventually.js"
import * as Proxy from "./Proxy.js"
import { check, makeRig, outcome, processId, timed } from "../faults/support.js"

const one = { maxConnections: 1, validateAfterIdle: "off", acquireTimeout: "20 seconds" } as const

describe("The proxy", () => {
  check(
    "reads both directions: startup, simple and extended queries, answers, errors, the end",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(one)
      const rows = yield* proxy.count("DataRow")
      yield* sql`SELECT ${1}::int AS a`
      yield* sql.unsafe("SELECT 1; SELECT 2")
      yield* Effect.ignore(sql`SELECT 1 / 0`)
      const trace = yield* proxy.trace
      const names = trace.map(({ from, name, text }) => `${from} ${name} ${text}`.trim())
      assert.include(names, "client StartupMessage")
      assert.include(names, "server BackendKeyData")
      for (const name of ["Parse", "Bind", "Describe", "Execute"]) {
        assert.include(names, `client ${name} SELECT $1::int AS a`)
      }
      assert.include(names, "client Sync")
      assert.include(names, "client Query SELECT 1; SELECT 2")
      assert.include(names, "server CommandComplete SELECT 1")
      assert.include(names, "server ErrorResponse 22012")
      assert.include(names, "server ReadyForQuery I")
      assert.strictEqual(yield* proxy.count("DataRow"), rows + 3)
      assert.deepStrictEqual(yield* proxy.connections, { open: 1, accepted: 1, dialed: 1, cancels: 0 })
    })
  )

  check(
    "holds a message, and what follows it, until it is told to let go",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(one)
      const gate = yield* Deferred.make<void>()
      yield* sql`SELECT 1`
      const moment = yield* proxy.when(Proxy.server("CommandComplete"), Proxy.hold(Deferred.await(gate)))
      const fiber = yield* Effect.fork(sql`SELECT 2 AS n`)
      const message = yield* moment.reached
      assert.strictEqual(message.text, "SELECT 1")
      assert.strictEqual((yield* proxy.trace).at(-1)?.name, "CommandComplete")
      assert.isNull(fiber.unsafePoll())
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Fiber.join(fiber), [{ n: 2 }])
    })
  )

  check(
    "acts upon the message that is meant: the nth, and so many times",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(one)
      const moment = yield* proxy.when(Proxy.statement(/'here'/), Proxy.pass, { nth: 3, times: 2 })
      for (let i = 0; i < 6; i++) yield* sql`SELECT 'here'`
      yield* sql`SELECT 'there'`
      assert.strictEqual(yield* moment.count, 2)
    })
  )

  for (const how of ["reset", "end"] as const) {
    check(
      `cuts before a message with ${how}: the server never gets it`,
      Effect.gen(function* () {
        const { admin, proxy, sql } = yield* makeRig(one)
        yield* sql`CREATE TABLE t (id int)`
        yield* proxy.when(Proxy.statement(/INSERT/), Proxy.cutBefore(how))
        assert.strictEqual(yield* outcome(sql`INSERT INTO t VALUES (1)`), "ConnectionLost")
        yield* sql`SELECT 1`
        assert.deepStrictEqual(yield* admin.query("SELECT * FROM t"), [])
        assert.strictEqual((yield* proxy.connections).dialed, 2)
      })
    )

    check(
      `cuts after a message with ${how}: the server has got it, the client gets no answer`,
      Effect.gen(function* () {
        const { admin, proxy, sql } = yield* makeRig(one)
        yield* sql`CREATE TABLE t (id int)`
        yield* proxy.when(Proxy.client("Query", /INSERT/), Proxy.cutAfter(how))
        assert.strictEqual(yield* outcome(sql`INSERT INTO t VALUES (1)`), "ConnectionLost")
        yield* eventually(
          "the row is there",
          Effect.map(admin.query("SELECT * FROM t"), (rows) => rows.length === 1)
        )
      })
    )
  }

  check(
    "is a black hole from a message on: nothing passes, nothing is closed",
    Effect.gen(function* () {
      const { backends, proxy, sql } = yield* makeRig(one)
      yield* sql`SELECT 1`
      const moment = yield* proxy.when(Proxy.statement(/'lost'/), Proxy.blackHoleBefore)
      const fiber = yield* Effect.fork(Effect.exit(sql`SELECT 'lost'`))
      yield* moment.reached
      assert.strictEqual((yield* proxy.connections).open, 1)
      assert.deepStrictEqual(
        (yield* backends).map(({ state }) => state),
        ["idle"]
      )
      assert.isNull(fiber.unsafePoll())
      yield* Fiber.interrupt(fiber)
    })
  )

  check(
    "swallows a message, repeats one, and splits one into single bytes",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(one)
      const dropped = yield* proxy.when(Proxy.server("NoticeResponse"), Proxy.drop)
      yield* sql.unsafe("DO $$ BEGIN RAISE WARNING 'unheard'; END $$")
      assert.strictEqual(yield* dropped.count, 1)
      yield* proxy.when(Proxy.server("DataRow"), Proxy.duplicate)
      assert.deepStrictEqual(yield* sql`SELECT 7 AS n`, [{ n: 7 }, { n: 7 }])
      yield* proxy.when(Proxy.client("Query", /'split'/), Proxy.split(1))
      yield* proxy.when(Proxy.server("DataRow"), Proxy.split(1))
      assert.deepStrictEqual(yield* sql`SELECT 'split' AS word, 1 AS n`, [{ word: "split", n: 1 }])
    })
  )

  check(
    "delays a dial, refuses dials, and sends new connections to another server",
    Effect.gen(function* () {
      const { database, proxy, sql } = yield* makeRig({ maxConnections: 2, connectTimeout: "2 seconds" })
      const noneLeft = eventually(
        "the pool has noticed",
        Effect.map(database.stats, ({ total }) => total === 0)
      )
      yield* proxy.setDialDelay("300 millis")
      yield* Effect.zipRight(proxy.cutAll("reset"), noneLeft)
      const { millis } = yield* timed(Effect.all([sql`SELECT 1`, sql`SELECT 2`], { concurrency: 2 }))
      assert.isAtLeast(millis, 290)
      yield* proxy.setDialDelay(0)
      yield* proxy.refuse
      yield* Effect.zipRight(proxy.cutAll("end"), noneLeft)
      yield* eventually(
        "refused",
        Effect.map(outcome(sql`SELECT 1`), (tag) => tag === "ConnectFailed")
      )
      yield* proxy.accept
      yield* eventually(
        "accepted",
        Effect.map(outcome(sql`SELECT 1`), (tag) => tag === "ok")
      )
      const other = yield* Proxy.make(proxy.url)
      yield* proxy.cutAll("end")
      yield* proxy.retarget(other.url).pipe(Effect.zipRight(other.refuse))
      yield* eventually(
        "elsewhere",
        Effect.map(outcome(sql`SELECT 1`), (tag) => tag === "ConnectFailed")
      )
    })
  )

  check(
    "takes the network down and brings it back for new connections",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig({ ...one, validateAfterIdle: 0, connectTimeout: "500 millis" })
      const before = yield* processId(sql)
      yield* proxy.down
      const fiber = yield* Effect.fork(Effect.retry(processId(sql), { times: 3 }))
      yield* eventually(
        "a dial in vain",
        Effect.map(proxy.connections, ({ accepted }) => accepted > 1)
      )
      assert.strictEqual((yield* proxy.connections).dialed, 1)
      yield* proxy.up
      assert.notStrictEqual(yield* Fiber.join(fiber), before)
    })
  )

  check(
    "counts cancel requests and lets rules act upon them",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(one)
      const gate = yield* Deferred.make<void>()
      const moment = yield* proxy.when(Proxy.client("CancelRequest"), Proxy.hold(Deferred.await(gate)))
      yield* sql`SELECT 1`
      const fiber = yield* Effect.fork(sql`SELECT pg_sleep(20)`)
      yield* eventually(
        "the statement was sent",
        Effect.map(proxy.trace, (trace) => trace.some(({ text }) => text.includes("pg_sleep")))
      )
      yield* Effect.fork(Fiber.interrupt(fiber))
      yield* moment.reached
      yield* Deferred.succeed(gate, undefined)
      yield* sql`SELECT 1`
      assert.strictEqual((yield* proxy.connections).cancels, 1)
    })
  )
})
