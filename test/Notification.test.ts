import { assert, describe, inFull, it } from "./support/it.js"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Mailbox from "effect/Mailbox"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Database from "../src/Database.js"
import * as DatabaseError from "../src/DatabaseError.js"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import * as Notification from "../src/Notification.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import * as Transaction from "../src/Transaction.js"
import { within } from "./support/within.js"
import { eventually } from "./support/eventually.js"

const listening = (name: string, test: Effect.Effect<unknown, unknown, Database.Provided | Scope.Scope>) =>
  it.scopedLive(name, () => Effect.provide(test, TestDatabase.layer()))

/** The next so many payloads. */
const payloads = (mailbox: Mailbox.ReadonlyMailbox<Notification.Event>, count: number) =>
  Effect.map(mailbox.takeN(count), ([events]) =>
    Chunk.toReadonlyArray(events).map((event) => (event._tag === "Notification" ? event.payload : event._tag))
  )

const listenSessions = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const [row] = yield* sql<{ n: number }>`
    SELECT count(*)::int AS n FROM pg_stat_activity
    WHERE datname = current_database() AND (query LIKE 'LISTEN%' OR query LIKE 'UNLISTEN%')
  `
  return row?.n
})

/** Whether a LISTEN is done: what is sent from now on arrives. */
const isListening = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const sessions = yield* sql`
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'
  `
  return sessions.length === 1
})

describe("Notification", () => {
  listening(
    "delivers what was sent after the subscription succeeded, empty payloads too, in order",
    Effect.gen(function* () {
      const mailbox = yield* Notification.subscribe("news")
      yield* Notification.notify("news", "one")
      yield* Notification.notify("news")
      yield* Notification.notify("other", "not this")
      yield* Notification.notify("news", "three")
      assert.deepStrictEqual(yield* payloads(mailbox, 3), ["one", "", "three"])
    })
  )

  listening(
    "joins the open transaction: nothing before the commit, nothing at all after a rollback",
    Effect.gen(function* () {
      const mailbox = yield* Notification.subscribe("news")
      yield* Effect.ignore(
        Transaction.run(Effect.zipRight(Notification.notify("news", "undone"), Effect.fail("rollback")))
      )
      yield* Transaction.run(
        Effect.gen(function* () {
          yield* Notification.notify("news", "done")
          yield* Database.Database.pipe(
            Effect.flatMap(({ session }) => session),
            Effect.flatMap(({ query }) => query("NOTIFY news, 'outside'")),
            Effect.scoped
          )
        })
      )
      assert.deepStrictEqual(yield* payloads(mailbox, 2), ["outside", "done"])
    })
  )

  listening(
    "serves two listeners of one channel, and one goes on when the other leaves",
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const first = yield* Scope.extend(Notification.subscribe("news"), scope)
      const second = yield* Notification.subscribe("news")
      yield* Notification.notify("news", "both")
      assert.deepStrictEqual(yield* payloads(first, 1), ["both"])
      assert.deepStrictEqual(yield* payloads(second, 1), ["both"])
      yield* Scope.close(scope, Exit.void)
      yield* Notification.notify("news", "one")
      assert.deepStrictEqual(yield* payloads(second, 1), ["one"])
    })
  )

  listening(
    "uses one session for all channels and closes it after the last listener",
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      yield* Effect.forEach(["a", "b", 'odd "name" 🙂'], (channel) =>
        Scope.extend(Notification.subscribe(channel), scope)
      )
      assert.strictEqual(yield* listenSessions, 1)
      yield* Scope.close(scope, Exit.void)
      yield* eventually(
        "the session is closed",
        Effect.map(listenSessions, (n) => n === 0)
      )
      const again = yield* Notification.subscribe('odd "name" 🙂')
      yield* Notification.notify('odd "name" 🙂', "back")
      assert.deepStrictEqual(yield* payloads(again, 1), ["back"])
    })
  )

  listening(
    "survives many listeners that come and go at once",
    Effect.gen(function* () {
      yield* Effect.forEach(
        Array.from({ length: 60 }),
        (_, index) =>
          Effect.scoped(
            Effect.gen(function* () {
              const channel = `c${index % 3}`
              const mailbox = yield* Notification.subscribe(channel)
              yield* Notification.notify(channel, String(index))
              yield* Stream.runHead(
                Stream.filter(
                  Stream.repeatEffect(mailbox.take),
                  (event) => event._tag === "Notification" && event.payload === String(index)
                )
              )
            })
          ),
        { concurrency: "unbounded", discard: true }
      )
    })
  )

  listening(
    "reconnects when its backend is killed, tells every listener of the gap, and delivers what comes then",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const first = yield* Notification.subscribe("news")
      const second = yield* Notification.subscribe("weather")
      yield* sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()`
      assert.deepStrictEqual(yield* payloads(first, 1), ["Gap"])
      assert.deepStrictEqual(yield* payloads(second, 1), ["Gap"])
      yield* Notification.notify("news", "after")
      assert.deepStrictEqual(yield* payloads(first, 1), ["after"])
    })
  )

  inFull(listening)(
    "comes back after the eighth loss as soon as after the first",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const mailbox = yield* Notification.subscribe("news")
      for (let losses = 0; losses < 8; losses++) {
        yield* sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()`
        const gap = yield* within(1000, sql`SELECT 1`)(payloads(mailbox, 1))
        assert.deepStrictEqual(gap, ["Gap"])
      }
    })
  )

  listening(
    "tells a listener that is too slow for a burst of the gap at once, not with what comes next, and then delivers again",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const slow = yield* Notification.subscribe("news")
      const witness = yield* Notification.subscribe("witness")
      const all = { _tag: "Notification", channel: "news" } as const
      yield* sql`SELECT count(pg_notify('news', n::text)) FROM generate_series(1, 15000) AS n`
      // Later than those on the same connection.
      yield* Notification.notify("witness", "burst is over")
      yield* payloads(witness, 1)
      const [events] = yield* slow.takeAll
      const got = Chunk.toReadonlyArray(events)
      assert.strictEqual(got.length, 10_001)
      assert.deepInclude(got[0], { ...all, payload: "1" })
      assert.deepInclude(got[9999], { ...all, payload: "10000" })
      assert.deepStrictEqual(got[10_000], { _tag: "Gap", channel: "news", reason: "overflow" })
      yield* Notification.notify("news", "after")
      assert.deepStrictEqual(yield* payloads(slow, 1), ["after"])
    })
  )

  listening(
    "loses nothing after a gap that was taken",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const slow = yield* Notification.subscribe("news")
      const witness = yield* Notification.subscribe("witness")
      const burst = (from: number, to: number) =>
        Effect.gen(function* () {
          yield* sql`SELECT count(pg_notify('news', n::text)) FROM generate_series(${from}::int, ${to}::int) AS n`
          yield* Notification.notify("witness", String(to))
          yield* payloads(witness, 1)
        })
      yield* burst(1, 10_001)
      // What comes before the gap is taken belongs to it, also when there is room again.
      yield* slow.takeN(5000)
      yield* burst(10_002, 10_100)
      const [rest] = yield* slow.takeAll
      assert.strictEqual(Chunk.size(rest), 5001)
      yield* burst(10_101, 10_103)
      assert.deepStrictEqual(yield* payloads(slow, 3), ["10101", "10102", "10103"])
    })
  )

  listening(
    "refuses a payload and a channel that PostgreSQL cannot take, and says so",
    Effect.gen(function* () {
      yield* Notification.notify("news", "x".repeat(7999))
      const long = yield* Effect.flip(Notification.notify("news", "é".repeat(4000)))
      assert.strictEqual(DatabaseError.reasonOf(long)?._tag, "InvalidRequest")
      assert.include(long.message, "8000")
      for (const channel of ["", "x".repeat(64), "nul\0"]) {
        const error = yield* Effect.flip(Notification.subscribe(channel))
        assert.strictEqual(error.reason._tag, "InvalidRequest")
      }
    })
  )

  listening(
    "PgClient.listen and PgClient.notify do the same",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const fiber = yield* Effect.fork(Stream.runCollect(Stream.take(sql.listen("news"), 2)))
      yield* eventually("the session listens", isListening)
      yield* sql.notify("news", "one")
      yield* sql.notify("news", "it's two")
      assert.deepStrictEqual(Chunk.toReadonlyArray(yield* Fiber.join(fiber)), ["one", "it's two"])
    })
  )

  it.scopedLive("comes back after a restart of the server", () =>
    Effect.gen(function* () {
      const server = yield* EmbeddedPostgres.make()
      yield* Effect.gen(function* () {
        const mailbox = yield* Notification.subscribe("news")
        yield* server.stop("immediate")
        yield* server.start
        assert.deepStrictEqual(yield* payloads(mailbox, 1), ["Gap"])
        yield* Effect.retry(Notification.notify("news", "after"), { times: 5 })
        assert.deepStrictEqual(yield* payloads(mailbox, 1), ["after"])
      }).pipe(Effect.provide(Database.layer({ url: server.url, minConnections: 0 })))
    })
  )

  it.scopedLive("fails when the first connection cannot be opened", () =>
    Effect.gen(function* () {
      const url = yield* TestDatabase.make()
      const error = yield* Effect.flip(Notification.subscribe("news")).pipe(
        Effect.provide(
          Database.layer({ url, directUrl: "postgresql://nobody:secret@127.0.0.1:1/none", minConnections: 0 })
        )
      )
      assert.strictEqual(error.reason._tag, "ConnectFailed")
    })
  )
})
