import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "../support/it.js"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Client } from "pg"
import * as Database from "../../src/Database.js"
import { DatabaseError } from "../../src/DatabaseError.js"
import * as NotificationHub from "../../src/client/notificationHub.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Notification from "../../src/Notification.js"
import * as Transaction from "../../src/Transaction.js"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import { check, kill, Logs, makeRig, outcome, processId, report, tagOf, tally, timed } from "./support.js"

/** A connection of plain `pg`, beside the code under test. */
const plain = (url: Redacted.Redacted, ...statements: ReadonlyArray<string>) =>
  Effect.tryPromise(async () => {
    const client = new Client({ connectionString: Redacted.value(url), connectionTimeoutMillis: 1000 })
    client.on("error", () => {})
    await client.connect()
    for (const statement of statements) await client.query(statement)
    await client.end()
  })

describe("A lost connection", () => {
  for (const how of ["reset", "end"] as const) {
    check(
      `F9: lost during ROLLBACK (${how}): the body's error comes first, the rollback's is attached, and the log was written before`,
      Effect.gen(function* () {
        const { proxy, sql, transact } = yield* makeRig({ maxConnections: 1 })
        const logs = yield* Logs
        let loggedBefore = false
        const moment = yield* proxy.when((message) => {
          const isRollback = Proxy.statement(/^ROLLBACK/)(message)
          if (isRollback)
            loggedBefore = logs.some(({ message }) => message.includes(Transaction.rollbackMessage))
          return isRollback
        }, Proxy.cutBefore(how))
        const exit = yield* Effect.exit(transact(Effect.zipRight(sql`SELECT 1`, Effect.fail("the body's"))))
        assert.strictEqual(yield* moment.count, 1)
        assert.isTrue(loggedBefore)
        const cause = Exit.isFailure(exit) ? exit.cause : Cause.empty
        assert.deepStrictEqual([...Cause.failures(cause)], ["the body's"])
        assert.deepStrictEqual([...Cause.defects(cause)].map(tagOf), ["ConnectionLost"])
        assert.strictEqual(yield* outcome(sql`SELECT 1`), "ok")
      })
    )
  }

  const commitCuts = {
    "before the server gets COMMIT (RST)": [Proxy.statement(/^COMMIT/), Proxy.cutBefore("reset")],
    "before the server gets COMMIT (FIN)": [Proxy.statement(/^COMMIT/), Proxy.cutBefore("end")],
    "when the server has got COMMIT (RST)": [Proxy.statement(/^COMMIT/), Proxy.cutAfter("reset")],
    "when the server has got COMMIT (FIN)": [Proxy.statement(/^COMMIT/), Proxy.cutAfter("end")],
    "instead of the answer": [Proxy.server("CommandComplete", /^COMMIT/), Proxy.cutBefore("reset")]
  } as const

  check(
    "F13: 500 connections cut between COMMIT and its answer: the outcome is unknown, the resolver's answer is what the table says, nothing is applied twice",
    Effect.gen(function* () {
      const { admin, proxy, provide, sql, transact } = yield* makeRig({
        maxConnections: 8,
        acquireTimeout: "30 seconds"
      })
      yield* sql`CREATE TABLE applied (id int)`
      const tags: Array<string> = []
      const answers = new Map<number, string>()
      let id = 0
      for (const [match, action] of Object.values(commitCuts)) {
        const rule = yield* proxy.when(match, action, { times: Number.POSITIVE_INFINITY })
        yield* Effect.forEach(
          Array.from({ length: 100 }, () => ++id),
          (id) =>
            Effect.gen(function* () {
              const error = yield* Effect.flip(
                transact(sql`INSERT INTO applied VALUES (${id})`, { resolvable: true })
              )
              tags.push(tagOf(error))
              assert.instanceOf(error, DatabaseError)
              assert.strictEqual(error.retry, "unknown")
              answers.set(id, yield* provide(Transaction.resolve(error)))
            }),
          { concurrency: 8 }
        )
        yield* rule.off
      }
      const rows = yield* admin.query<{ id: number; n: number }>(
        "SELECT id, count(*)::int AS n FROM applied GROUP BY id"
      )
      const found = new Map(rows.map(({ id, n }) => [id, n]))
      const wrong = [...answers].filter(
        ([id, answer]) => answer !== (found.get(id) === undefined ? "aborted" : "committed")
      )
      yield* report("F13", { ...tally(tags), answers: JSON.stringify(tally([...answers.values()])) })
      assert.deepStrictEqual(tally(tags), { CommitOutcomeUnknown: 500 })
      assert.deepStrictEqual(wrong, [])
      assert.isTrue(rows.every(({ n }) => n === 1))
    })
  )

  check(
    "F19: a BEGIN that finds its connection dead is sent once more, on another one; its body runs once, or not at all when that one is dead, too",
    Effect.gen(function* () {
      const { proxy, sql, transact } = yield* makeRig({ maxConnections: 2, validateAfterIdle: "off" })
      let bodies = 0
      const work = transact(
        Effect.map(sql`SELECT 1`, () => bodies++),
        { isolation: "repeatable read", resolvable: true }
      )
      const isBegin = Proxy.statement(/^BEGIN/)
      for (const action of [
        Proxy.cutBefore("reset"),
        Proxy.cutBefore("end"),
        Proxy.cutAfter("reset"),
        Proxy.cutAfter("end")
      ]) {
        for (const [times, expected] of [
          [1, { result: "ok", sent: 2, bodies: 1 }],
          [2, { result: "ConnectionLost", sent: 2, bodies: 0 }]
        ] as const) {
          bodies = 0
          const sentBefore = (yield* proxy.trace).filter(isBegin).length
          const moment = yield* proxy.when(isBegin, action, { times })
          const result = yield* outcome(work)
          assert.strictEqual(yield* moment.count, times)
          yield* moment.off
          const sent = (yield* proxy.trace).filter(isBegin).length - sentBefore
          assert.deepStrictEqual({ result, sent, bodies }, expected)
        }
      }
    })
  )

  check(
    "F19: a BEGIN that is answered with the end of its session is sent once more; one that the server refuses is not",
    Effect.gen(function* () {
      const rig = yield* makeRig({ maxConnections: 1, validateAfterIdle: "off" })
      const { admin, proxy, sql, transact } = rig
      const pid = yield* processId(sql)
      // The server's last word waits on the wire until BEGIN has been sent.
      const begun = yield* proxy.when(Proxy.statement(/^BEGIN/), Proxy.pass)
      const word = yield* proxy.when(Proxy.server("ErrorResponse", /57P01/), Proxy.hold(begun.reached))
      yield* admin.query("SELECT pg_terminate_backend($1)", [pid])
      yield* word.reached
      assert.strictEqual(yield* outcome(transact(sql`SELECT 1`)), "ok")
      assert.strictEqual(yield* begun.count, 1)
      const before = (yield* proxy.trace).filter(Proxy.statement(/^BEGIN/)).length
      const refused = yield* outcome(transact(sql`SELECT 1`, { statementTimeout: Duration.millis(2 ** 31) }))
      assert.strictEqual(refused, "DataException")
      assert.strictEqual((yield* proxy.trace).filter(Proxy.statement(/^BEGIN/)).length, before + 1)
    })
  )

  for (const [state, busy] of [
    ["idle", 0],
    ["exhausted", 2]
  ] as const) {
    check(
      `Health: a silent server is down within the check's own four seconds, with an ${state} pool, and ready again afterwards`,
      Effect.gen(function* () {
        const { database, proxy, sql } = yield* makeRig({ minConnections: 2, maxConnections: 2 })
        const holders = yield* Effect.forEach(Array.from({ length: busy }), () =>
          Effect.fork(sql`SELECT pg_sleep(60)`)
        )
        yield* eventually(
          `${busy} are busy`,
          Effect.map(database.stats, (stats) => stats.busy === busy)
        )
        yield* proxy.down
        const { millis, value } = yield* timed(database.health)
        yield* report(`Health (${state})`, { "answer after (ms)": millis.toFixed(0) })
        assert.strictEqual(value.status, "down")
        assert.isBelow(millis, 4500)
        yield* proxy.up
        yield* Effect.forEach(holders, Fiber.interrupt, { concurrency: "unbounded" })
        yield* eventually(
          "it is ready again",
          Effect.map(database.health, ({ status }) => status === "ready")
        )
      })
    )
  }

  check(
    "F16: a LISTEN connection that dies in silence is found by its heartbeat: the listener is told of the gap and gets the next NOTIFY",
    Effect.gen(function* () {
      const { database, proxy, sql } = yield* makeRig({ validateAfterIdle: 0 })
      const hub = yield* NotificationHub.make(database.session, {
        every: "200 millis",
        patience: "300 millis"
      })
      const mailbox = yield* hub.subscribe("news")
      const alive = yield* proxy.when(Proxy.statement(/^SELECT 1$/), Proxy.pass)
      yield* alive.reached
      yield* proxy.freeze
      const { millis, value } = yield* timed(mailbox.take)
      yield* report("F16 (frozen)", { "gap after (ms)": millis.toFixed(0) })
      assert.deepStrictEqual(value, { _tag: "Gap", channel: "news", reason: "reconnected" })
      assert.isBelow(millis, 5000)
      yield* sql.notify("news", "after")
      assert.include(yield* mailbox.take, { payload: "after" })
    })
  )

  check(
    "F16: who begins to listen while the connection is being opened again is told that it listens when it does",
    Effect.gen(function* () {
      const { database, proxy, sql } = yield* makeRig()
      const log: Array<string> = []
      const first = yield* database.notifications.subscribe("first")
      const acknowledge = yield* Deferred.make<void>()
      const again = yield* proxy.when(
        Proxy.statement(/LISTEN "first"/),
        Proxy.hold(Deferred.await(acknowledge))
      )
      yield* proxy.cutAll("reset")
      yield* again.reached
      const joining = yield* Effect.fork(
        Effect.tap(database.notifications.subscribe("second"), () =>
          Effect.sync(() => log.push("second listens"))
        )
      )
      yield* Effect.repeatN(Effect.yieldNow(), 100)
      log.push("first listens")
      yield* Deferred.succeed(acknowledge, undefined)
      const second = yield* Fiber.join(joining)
      assert.deepStrictEqual(log, ["first listens", "second listens"])
      yield* sql.notify("second", "news")
      // It was not there when the first connection was, so that it has no gap.
      assert.include(yield* second.take, { payload: "news" })
      assert.include(yield* first.take, { _tag: "Gap" })
    })
  )

  check(
    "F16: a LISTEN stream survives a restart: it reconnects, tells of the gap, and gets the next NOTIFY; the pool recovers within a second of the server",
    Effect.gen(function* () {
      const server = yield* EmbeddedPostgres.make()
      const context = yield* Layer.build(Database.layer({ url: server.url }))
      const sql = yield* Effect.provide(PgClient.PgClient, context)
      const mailbox = yield* Effect.provide(Notification.subscribe("news"), context)
      for (const mode of ["fast", "immediate"] as const) {
        yield* Effect.all(
          Array.from({ length: 5 }, () => sql`SELECT pg_sleep(0.01)`),
          { concurrency: 5 }
        )
        const results: Array<{ readonly at: number; readonly result: string }> = []
        const calls = yield* Effect.fork(
          outcome(sql`SELECT 1`).pipe(
            Effect.tap((result) => Effect.sync(() => results.push({ at: performance.now(), result }))),
            Effect.delay("20 millis"),
            Effect.forever
          )
        )
        yield* server.stop(mode)
        let accepting = Number.POSITIVE_INFINITY
        const probe = yield* Effect.fork(
          plain(server.url).pipe(
            Effect.retry({ while: () => true }),
            Effect.tap(() =>
              Effect.sync(() => {
                accepting = performance.now()
              })
            )
          )
        )
        yield* server.start
        yield* Fiber.join(probe)
        const recovered = () => results.find(({ at, result }) => at > accepting && result === "ok")
        yield* eventually(
          "a success",
          Effect.sync(() => recovered() !== undefined)
        )
        const first = recovered()?.at ?? Number.POSITIVE_INFINITY
        const after = performance.now()
        yield* eventually(
          "more of them",
          Effect.sync(() => results.filter(({ at }) => at > after).length > 20)
        )
        yield* Fiber.interrupt(calls)
        yield* report(`Restart (${mode})`, {
          "first success after the server accepts (ms)": (first - accepting).toFixed(0),
          outcomes: JSON.stringify(tally(results.map(({ result }) => result)))
        })
        assert.isBelow(first - accepting, 1000)
        assert.deepStrictEqual(
          results.filter(({ at, result }) => at > after && result !== "ok"),
          []
        )
        const [gap] = yield* mailbox.takeN(1)
        assert.deepStrictEqual(
          Chunk.toReadonlyArray(gap).map((event) => event._tag),
          ["Gap"]
        )
        yield* Effect.provide(Notification.notify("news", `after ${mode}`), context)
        const [news] = yield* mailbox.takeN(1)
        assert.deepStrictEqual(
          Chunk.toReadonlyArray(news).map((event) => (event._tag === "Notification" ? event.payload : "")),
          [`after ${mode}`]
        )
      }
    })
  )

  const half = { maxConnections: 1, acquireTimeout: "20 seconds" } as const

  check(
    "F20: a peer that is silent at ROLLBACK gives its place back within 6 s",
    Effect.gen(function* () {
      const { proxy, sql, transact } = yield* makeRig(half)
      const silent = yield* proxy.when(Proxy.statement(/^ROLLBACK/), Proxy.blackHoleBefore)
      const fiber = yield* Effect.fork(
        Effect.exit(transact(Effect.zipRight(sql`SELECT 1`, Effect.fail("no"))))
      )
      yield* silent.reached
      const { millis, value } = yield* timed(outcome(sql`SELECT 2`))
      assert.strictEqual(value, "ok")
      assert.isBelow(millis, 6000)
      const exit = yield* Fiber.join(fiber)
      assert.deepStrictEqual(Exit.isFailure(exit) ? [...Cause.failures(exit.cause)] : [], ["no"])
    })
  )

  check(
    "F20: a peer that is silent when a statement is interrupted lets its caller go within 200 ms and gives its place back within 3 s",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(half)
      const moment = yield* proxy.when(Proxy.statement(/'silent'/), Proxy.blackHoleBefore)
      const fiber = yield* Effect.fork(sql`SELECT 'silent'`)
      yield* moment.reached
      // Nor does the server ever answer the cancel request.
      const cancel = yield* proxy.when(Proxy.client("CancelRequest"), Proxy.blackHoleBefore)
      const interrupted = yield* timed(Fiber.interrupt(fiber))
      assert.isBelow(interrupted.millis, 200)
      yield* cancel.reached
      const { millis, value } = yield* timed(outcome(sql`SELECT 2`))
      assert.strictEqual(value, "ok")
      assert.isBelow(millis, 3000)
    })
  )

  check(
    "F20: a peer that is silent when a stream is left gives its place back within 6 s",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig(half)
      const silent = yield* proxy.when(Proxy.client("Close"), Proxy.blackHoleBefore)
      const fiber = yield* Effect.fork(
        Effect.exit(Stream.runDrain(Stream.take(sql`SELECT generate_series(1, 10000)`.stream, 200)))
      )
      yield* silent.reached
      const { millis, value } = yield* timed(outcome(sql`SELECT 2`))
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(value, "ok")
      assert.isBelow(millis, 6000)
    })
  )

  check(
    "F20: a peer that is silent at the COMMIT of a stream's own transaction gives its place back within the statement timeout and 6 s",
    Effect.gen(function* () {
      const { proxy, sql } = yield* makeRig({
        ...half,
        statementTimeout: "1 second",
        lockTimeout: "1 second"
      })
      const silent = yield* proxy.when(Proxy.statement(/^COMMIT/), Proxy.blackHoleBefore)
      const fiber = yield* Effect.fork(
        Effect.exit(Stream.runDrain(sql`SELECT generate_series(1, 300)`.stream))
      )
      yield* silent.reached
      const { millis, value } = yield* timed(outcome(sql`SELECT 2`))
      assert.strictEqual(value, "ok")
      assert.isBelow(millis, 7000)
      yield* Fiber.interrupt(fiber)
    })
  )

  check(
    "F20: a peer that is silent at COMMIT gives its place back within the statement timeout and 6 s, and the outcome is unknown",
    Effect.gen(function* () {
      const { proxy, sql, transact } = yield* makeRig({
        ...half,
        statementTimeout: "1 second",
        lockTimeout: "1 second"
      })
      const silent = yield* proxy.when(Proxy.statement(/^COMMIT/), Proxy.blackHoleBefore)
      const fiber = yield* Effect.fork(outcome(transact(sql`SELECT 1`)))
      yield* silent.reached
      const { millis, value } = yield* timed(outcome(sql`SELECT 2`))
      assert.strictEqual(value, "ok")
      assert.isBelow(millis, 7000)
      assert.strictEqual(yield* Fiber.join(fiber), "CommitOutcomeUnknown")
    })
  )

  check(
    "F20: while 3 of 4 connections are silent on release, others are served",
    Effect.gen(function* () {
      const { proxy, sql, transact } = yield* makeRig({ maxConnections: 4 })
      const silent = yield* proxy.when(Proxy.statement(/^ROLLBACK/), Proxy.blackHoleBefore, { times: 3 })
      const fibers = yield* Effect.forEach([1, 2, 3], () =>
        Effect.fork(Effect.exit(transact(Effect.zipRight(sql`SELECT 1`, Effect.fail("no")))))
      )
      yield* eventually(
        "three are silent",
        Effect.map(silent.count, (n) => n === 3)
      )
      const waits = yield* Effect.forEach(Array.from({ length: 20 }), () =>
        Effect.map(timed(sql`SELECT 1`), ({ millis }) => millis)
      )
      assert.isBelow(Math.max(...waits), 500)
      yield* Effect.all(fibers.map(Fiber.join))
    })
  )

  for (const how of ["killed", "reset", "end"] as const) {
    check(
      `F21: a transaction's connection dies (${how}) while its body does other work: every later statement fails typed, nothing of it runs elsewhere`,
      Effect.gen(function* () {
        const rig = yield* makeRig({ maxConnections: 4 })
        const { admin, database, proxy, sql, transact } = rig
        yield* sql`CREATE TABLE t (id int)`
        yield* Effect.all([sql`SELECT pg_sleep(0.05)`, sql`SELECT pg_sleep(0.05)`], { concurrency: 2 })
        const later: Array<string> = []
        const body = Effect.gen(function* () {
          yield* sql`INSERT INTO t VALUES (1)`
          const pid = yield* processId(sql)
          const before = yield* database.stats
          if (how === "killed") yield* kill(rig, pid)
          else yield* proxy.cutAll(how)
          // Other work of the body, during which the socket's end arrives.
          yield* eventually(
            "noticed",
            Effect.map(database.stats, ({ total }) => total < before.total)
          )
          later.push(
            yield* outcome(sql`INSERT INTO t VALUES (2)`),
            yield* outcome(sql.withTransaction(sql`INSERT INTO t VALUES (3)`)),
            yield* outcome(Stream.runDrain(sql`INSERT INTO t VALUES (4) RETURNING id`.stream)),
            yield* outcome(sql.unsafe("INSERT INTO t VALUES (5)").raw),
            yield* outcome(sql.notify("channel", "6"))
          )
        })
        const result = yield* outcome(transact(body))
        const typed = how === "killed" ? ["ServerShutdown", "ConnectionLost"] : ["ConnectionLost"]
        assert.strictEqual(later.length, 5)
        for (const tag of [...later, result]) assert.include(typed, tag)
        assert.deepStrictEqual(yield* admin.query("SELECT * FROM t"), [])
        const sent = (yield* proxy.trace).filter(({ text }) => /VALUES \([2-5]\)|pg_notify/.test(text))
        assert.deepStrictEqual(sent, [])
        assert.strictEqual(yield* outcome(sql`INSERT INTO t VALUES (9)`), "ok")
      })
    )
  }

  check(
    "F25: the primary is demoted and its sockets stay open: one failed write at most for each connection in use, the pool is flushed, and all is well without a restart",
    Effect.gen(function* () {
      const size = 6
      const demoted = yield* EmbeddedPostgres.make()
      const promoted = yield* EmbeddedPostgres.make()
      const account = (server: typeof demoted) => {
        const url = new URL(Redacted.value(server.urlFor("failover")))
        url.username = "failover"
        url.password = "failover"
        return Redacted.make(url.toString())
      }
      for (const server of [demoted, promoted]) {
        yield* plain(
          server.url,
          "CREATE ROLE failover LOGIN PASSWORD 'failover'",
          "CREATE DATABASE failover OWNER failover"
        )
        yield* plain(account(server), "CREATE TABLE writes (id int)")
      }
      const proxy = yield* Proxy.make(account(demoted))
      const context = yield* Layer.build(
        Database.layer({ url: proxy.url, minConnections: size, maxConnections: size })
      )
      const sql = yield* Effect.provide(PgClient.PgClient, context)
      const { stats } = yield* Effect.provide(Database.Database, context)
      const write = sql`INSERT INTO writes VALUES (1)`
      yield* Effect.all(
        Array.from({ length: size }, () => write),
        { concurrency: size }
      )

      yield* proxy.retarget(account(promoted))
      yield* plain(
        demoted.url,
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()"
      )
      yield* eventually(
        "demoted",
        Effect.map(
          outcome(plain(account(demoted), "INSERT INTO writes VALUES (0)")),
          (result) => result !== "ok"
        )
      )
      const failures: Array<string> = []
      yield* Effect.forEach(
        Array.from({ length: size }),
        () =>
          Effect.forEach(Array.from({ length: 10 }), () =>
            Effect.map(outcome(write), (result) => result === "ok" || failures.push(result))
          ),
        { concurrency: "unbounded" }
      )
      yield* report("F25", { [`failed writes of ${size * 10}`]: failures.length })
      assert.deepStrictEqual(Object.keys(tally(failures)), ["ReadOnlyTransaction"])
      assert.isAtMost(failures.length, size)
      yield* eventually(
        "all of them are new",
        Effect.map(stats, ({ total }) => total === size)
      )
      const addresses = yield* Effect.all(
        Array.from(
          { length: size },
          () => sql<{ port: number }>`SELECT inet_server_port() AS port, pg_sleep(0.05)`
        ),
        { concurrency: size }
      )
      const port = Number(new URL(Redacted.value(promoted.url)).port)
      assert.deepStrictEqual([...new Set(addresses.flat().map((row) => row.port))], [port])
    })
  )
})
