/**
 * The four defects of the stock client that were reproduced on a real server, as programs that run
 * on any client. Used by the tests and by `npm run defects`.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import { isFull } from "./length.js"

/** What a client did. */
export interface Outcome {
  readonly defect: boolean
  readonly observed: string
}

/** A program that shows a defect, or shows that it is not there. */
export interface Scenario {
  readonly name: string
  readonly expected: string
  readonly run: Effect.Effect<Outcome, SqlError, PgClient.PgClient>
}

/** The clients have this many connections. */
export const poolSize = 4

const failedCommit: Scenario = {
  name: "COMMIT fails (deferred foreign key)",
  expected: "a typed failure that catchAll sees",
  run: Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    yield* sql`CREATE TABLE parent (id int PRIMARY KEY)`
    yield* sql`CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`
    const exit = yield* sql.withTransaction(sql`INSERT INTO child VALUES (1)`).pipe(
      Effect.catchAll(() => Effect.succeed("caught")),
      Effect.exit
    )
    return Exit.match(exit, {
      onSuccess: (value) => ({ defect: value !== "caught", observed: `catchAll saw it` }),
      onFailure: (cause) => ({
        defect: true,
        observed: Cause.isDie(cause) ? "a defect that catchAll never saw" : "a failure after catchAll"
      })
    })
  })
}

const lostRow: Scenario = {
  name: "a failed statement is caught, the body succeeds",
  expected: "a failure, since the row is not kept",
  run: Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    yield* sql`CREATE TABLE kept (id int)`
    const result = yield* Effect.gen(function* () {
      yield* sql`INSERT INTO kept VALUES (1)`
      yield* Effect.ignore(sql`SELECT 1 / 0`)
    }).pipe(sql.withTransaction, Effect.either)
    const rows = yield* sql`SELECT id FROM kept`
    const said = Either.isRight(result) ? "success" : "a failure"
    return {
      defect: Either.isRight(result) && rows.length === 0,
      observed: `${said}, and ${rows.length === 0 ? "the row is not there" : "the row is there"}`
    }
  })
}

const notify: Scenario = {
  name: "notify(channel, payload)",
  expected: "success",
  run: Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const result = yield* Effect.either(sql.notify("channel", "it's a payload"))
    return Either.match(result, {
      onRight: () => ({ defect: false, observed: "success" }),
      onLeft: (error) => ({ defect: true, observed: messageOf(error) })
    })
  })
}

const innocents: Scenario = {
  name: "4 fibers interrupt their queries, 4 innocent ones do not",
  expected: "no innocent query fails",
  run: Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const interrupting = Random.nextRange(0, 4).pipe(
      Effect.flatMap((millis) =>
        Effect.timeoutOption(sql`SELECT pg_sleep(0.002)`, Duration.millis(millis)).pipe(Effect.ignore)
      ),
      Effect.forever
    )
    const innocent = Effect.replicateEffect(Effect.either(sql`SELECT pg_sleep(0.001)`), innocentQueries)
    const rivals = yield* Effect.fork(
      Effect.all(
        Array.from({ length: poolSize }, () => interrupting),
        { concurrency: "unbounded" }
      )
    )
    const results = yield* Effect.all(
      Array.from({ length: poolSize }, () => innocent),
      { concurrency: "unbounded" }
    )
    yield* Fiber.interrupt(rivals)
    const failures = results.flat().filter(Either.isLeft)
    const total = poolSize * innocentQueries
    return {
      defect: failures.length > 0,
      observed: `${failures.length} of ${total} innocent queries failed${
        failures[0] === undefined ? "" : ` (${messageOf(failures[0].left)})`
      }`
    }
  })
}

/** All of them; each needs an empty database. */
export const scenarios: ReadonlyArray<Scenario> = [failedCommit, lostRow, notify, innocents]

const innocentQueries = isFull ? 400 : 100

const messageOf = (error: SqlError): string =>
  error.cause instanceof Error ? error.cause.message : error.message
