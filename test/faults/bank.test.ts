import { assert, describe } from "../support/it.js"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Cause from "effect/Cause"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Crypto from "node:crypto"
import * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Transaction from "../../src/Transaction.js"
import { isFull } from "../support/length.js"
import * as Proxy from "../support/Proxy.js"
import { safetyNet } from "../support/speed.js"
import { check, report, tagOf, tally } from "./support.js"

const seconds = Number(process.env["BANK_SECONDS"] ?? (isFull ? 60 : 15))

const fibers = 32
const accounts = 64
const initial = 1000

/** What became of a transfer, as its caller knows it. */
interface Transfer {
  readonly id: string
  readonly outcome: "acknowledged" | "failed" | "unknown"
  /** The tag of the failure, or `ok`. */
  readonly tag: string
  /** What the resolver says of an unknown outcome. */
  readonly answer: Transaction.Outcome | undefined
}

/** Moves money between two accounts, and writes it down in the same transaction. */
const transfer = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const id = Crypto.randomUUID()
  const [from, to] = [yield* Random.nextIntBetween(0, accounts), yield* Random.nextIntBetween(0, accounts)]
  const amount = yield* Random.nextIntBetween(1, 10)
  const body = Effect.gen(function* () {
    const rows = yield* sql<{ balance: number }>`SELECT balance FROM account WHERE id = ${from}`
    const balance = rows[0]?.balance ?? 0
    // Written back as read: a lost update would change the total.
    yield* sql`UPDATE account SET balance = ${balance - amount} WHERE id = ${from}`
    const [other] = yield* sql<{ balance: number }>`SELECT balance FROM account WHERE id = ${to}`
    yield* sql`UPDATE account SET balance = ${(other?.balance ?? 0) + amount} WHERE id = ${to}`
    yield* sql`INSERT INTO ledger (id, source, target, amount) VALUES (${id}, ${from}, ${to}, ${amount})`
  })
  const exit = yield* Effect.exit(
    Transaction.run(body, {
      isolation: "serializable",
      resolvable: true,
      retry: { times: 20, base: "5 millis", max: "200 millis" }
    })
  )
  if (Exit.isSuccess(exit)) {
    return { id, outcome: "acknowledged", tag: "ok", answer: undefined } satisfies Transfer
  }
  const error = Option.getOrUndefined(Cause.failureOption(exit.cause))
  // A defect or an interruption is none of the faults: the test fails with it.
  if (!DatabaseError.DatabaseError.is(error)) return yield* Effect.failCause(exit.cause)
  return error.retry === "unknown"
    ? ({ id, outcome: "unknown", tag: tagOf(error), answer: yield* resolved(error) } satisfies Transfer)
    : ({ id, outcome: "failed", tag: tagOf(error), answer: undefined } satisfies Transfer)
})

/**
 * What the resolver says of an unknown outcome, in the midst of the faults: asked until the server
 * can be reached.
 */
const resolved = (error: DatabaseError.DatabaseError) =>
  Transaction.resolve(error).pipe(
    Effect.retry({ schedule: Schedule.spaced("100 millis").pipe(Schedule.upTo("30 seconds")) })
  )

const nothing = ["nothing", Effect.void] as const

describe("A bank under faults", () => {
  check(
    `loses and doubles no money while backends are killed, the server restarts and connections are cut (${seconds} s)`,
    Effect.gen(function* () {
      const server = yield* EmbeddedPostgres.make({ settings: { max_connections: "100" } })
      const proxy = yield* Proxy.make(server.url)
      const settings = { minConnections: 0, connectTimeout: "2 seconds" } as const
      const bank = yield* Layer.build(
        Database.layer({ ...settings, url: proxy.url, applicationName: "bank" })
      )
      // Beside the faults of the network, not beside those of the server.
      const admin = yield* Layer.build(
        Database.layer({ ...settings, url: server.url, applicationName: "admin", maxConnections: 2 })
      )
      const sql = yield* Effect.provide(PgClient.PgClient, admin)
      yield* sql`CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`
      yield* sql`CREATE TABLE ledger (id uuid PRIMARY KEY, source int NOT NULL, target int NOT NULL, amount int NOT NULL)`
      yield* sql`INSERT INTO account SELECT id, ${initial} FROM generate_series(0, ${accounts - 1}) AS id`

      const transfers: Array<Transfer> = []
      const faults: Array<string> = []
      const end = performance.now() + seconds * 1000
      const withOutcome = (outcome: Transfer["outcome"]) =>
        transfers.filter((made) => made.outcome === outcome)
      // On a slow machine less happens in that time: it goes on until enough has happened to tell.
      const isTelling = () =>
        withOutcome("acknowledged").length > 100 &&
        withOutcome("unknown").length > 0 &&
        ["backend killed", ...cuts.map(([name]) => name)].every((fault) => faults.includes(fault))
      const untilEnd = Effect.suspend(() => Effect.succeed(performance.now() < end || !isTelling()))
      const whileOpen = <A, E, R>(step: Effect.Effect<A, E, R>) =>
        Effect.repeat(step, { while: () => untilEnd })

      const teller = whileOpen(
        Effect.flatMap(transfer, (made) => {
          transfers.push(made)
          return made.outcome === "failed" ? Effect.sleep("20 millis") : Effect.void
        })
      )
      const pause = (least: number, most: number) =>
        Effect.flatMap(Random.nextRange(least, most), (millis) => Effect.sleep(Duration.millis(millis)))
      const note = (fault: string) => Effect.sync(() => void faults.push(fault))

      const killer = whileOpen(
        pause(50, 400).pipe(
          Effect.zipRight(sql`
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'bank' ORDER BY random() LIMIT 1
          `),
          Effect.tap((killed) => (killed.length > 0 ? note("backend killed") : Effect.void)),
          // The server may be down.
          Effect.ignore
        )
      )
      const atCommit = (action: Proxy.Action) =>
        Effect.asVoid(proxy.when(Proxy.statement(/^COMMIT/i), action))
      const cuts: ReadonlyArray<readonly [string, Effect.Effect<void>]> = [
        ["everything cut", proxy.cutAll("reset")],
        ["everything ended", proxy.cutAll("end")],
        ["cut before COMMIT arrives", atCommit(Proxy.cutBefore("reset"))],
        ["cut after COMMIT arrived", atCommit(Proxy.cutAfter("reset"))],
        [
          "answer to COMMIT lost",
          Effect.asVoid(proxy.when(Proxy.server("CommandComplete", /^COMMIT/), Proxy.cutBefore("reset")))
        ]
      ] as const
      const network = whileOpen(
        Effect.gen(function* () {
          yield* pause(100, 500)
          const [[fault, act] = nothing] = Chunk.toReadonlyArray(yield* Random.shuffle(cuts))
          yield* act
          yield* note(fault)
        })
      )
      const restarts = Effect.forEach(["fast", "immediate"] as const, (mode) =>
        Effect.gen(function* () {
          yield* Effect.sleep(Duration.seconds(seconds / 3))
          yield* server.stop(mode)
          yield* Effect.sleep("500 millis")
          yield* server.start
          yield* note(`server restarted (${mode})`)
        })
      )
      const others = yield* Effect.forkScoped(
        Effect.all([killer, network, restarts], { concurrency: "unbounded", discard: true })
      )
      yield* Effect.all(
        Array.from({ length: fibers }, () => teller),
        {
          concurrency: "unbounded",
          discard: true
        }
      ).pipe(Effect.provide(bank), Effect.timeout(safetyNet(Duration.seconds(seconds + 60))))
      yield* Fiber.join(others)

      const unknown = withOutcome("unknown")
      for (const { answer, id, tag } of unknown)
        yield* report(`unknown outcome ${id}`, { tag, answer: String(answer) })
      yield* report("transfers", tally(transfers.map(({ outcome, tag }) => `${outcome} (${tag})`)))
      yield* report("resolver", tally(unknown.map(({ answer }) => String(answer))))
      yield* report("faults", tally(faults))

      const [{ total } = { total: "0" }] = yield* sql<{
        total: string
      }>`SELECT sum(balance)::text AS total FROM account`
      assert.strictEqual(Number(total), accounts * initial)
      const rows = yield* sql<{ id: string }>`SELECT id FROM ledger`
      const ledger = new Set(rows.map((row) => row.id))
      // A transfer is in the ledger exactly when somebody knows that it was committed: nothing is
      // missing, nothing is there twice.
      const committed = [
        ...withOutcome("acknowledged"),
        ...unknown.filter(({ answer }) => answer === "committed")
      ].map(({ id }) => id)
      assert.deepStrictEqual([...ledger].toSorted(), committed.toSorted())
      assert.deepStrictEqual(
        unknown.filter(({ answer }) => answer !== "committed" && answer !== "aborted"),
        []
      )
      // And the balances are what the ledger says.
      const wrong = yield* sql`
        SELECT account.id FROM account
        LEFT JOIN (
          SELECT id, sum(amount) AS change
          FROM (SELECT target AS id, amount FROM ledger UNION ALL SELECT source, -amount FROM ledger) AS move
          GROUP BY id
        ) AS moved USING (id)
        WHERE balance <> ${initial} + coalesce(change, 0)
      `
      assert.deepStrictEqual(wrong, [])
      assert.sameMembers(Object.keys(tally(faults)), [
        "backend killed",
        "server restarted (fast)",
        "server restarted (immediate)",
        ...cuts.map(([name]) => name)
      ])
    })
  )
})
