import * as PgClient from "@effect/sql-pg/PgClient"
import { it } from "../support/it.js"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Database from "../../src/Database.js"
import type { Settings } from "../../src/DatabaseConfig.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import type { Session } from "../../src/connection/session.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { adminSession } from "../support/server.js"
import { eventually } from "../support/eventually.js"
import { type LogRecord, recordLogs } from "../support/logs.js"
import * as Proxy from "../support/Proxy.js"

/** What a check has written to the log so far. */
export class Logs extends Context.Tag("faults/Logs")<Logs, ReadonlyArray<LogRecord>>() {}

/** A fault check in real time; its log records are in {@link Logs}. */
export const check = (name: string, test: Effect.Effect<unknown, unknown, Scope.Scope | Logs>) =>
  it.scopedLive(name, () => {
    const records: Array<LogRecord> = []
    return test.pipe(Effect.provideService(Logs, records), Effect.provide(recordLogs(records)))
  })

/**
 * A database of its own behind a proxy, a pool that reaches it through the proxy, and a superuser's
 * session that does not.
 */
export interface Rig {
  readonly sql: PgClient.PgClient
  readonly database: Context.Tag.Service<Database.Database>
  readonly proxy: Proxy.Proxy
  readonly admin: Session
  readonly name: string
  readonly url: Redacted.Redacted
  /** `Transaction.run` on this database. */
  readonly transact: Context.Tag.Service<Database.Database>["transact"]
  readonly provide: <A, E, R>(
    effect: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E, Exclude<R, Database.Provided>>
  /** Process ids of the pool's backends, as the server knows them. */
  readonly backends: Effect.Effect<ReadonlyArray<Activity>>
}

/** A row of pg_stat_activity. */
export interface Activity {
  readonly pid: number
  readonly state: string
  readonly query: string
}

/** The pool's `application_name`. */
export const applicationName = "faults"

/** Builds a {@link Rig}. */
export const makeRig = (settings: Omit<Settings, "url"> = {}): Effect.Effect<Rig, never, Scope.Scope> =>
  Effect.gen(function* () {
    const url = yield* TestDatabase.make()
    const name = new URL(Redacted.value(url)).pathname.slice(1)
    const admin = yield* adminSession(name)
    const proxy = yield* Proxy.make(url)
    const context = yield* Layer.build(
      Database.layer({ minConnections: 0, applicationName, ...settings, url: proxy.url })
    )
    const provide: Rig["provide"] = (effect) => Effect.provide(effect, context)
    const database = Context.get(context, Database.Database)
    return {
      sql: Context.get(context, PgClient.PgClient),
      database,
      proxy,
      admin,
      name,
      url,
      provide,
      transact: database.transact,
      backends: Effect.orDie(
        admin.query<Activity>(
          "SELECT pid, state, query FROM pg_stat_activity WHERE datname = $1 AND application_name = $2",
          [name, applicationName]
        )
      )
    }
  }).pipe(Effect.orDie)

/** Ends a backend and waits until it is gone. */
export const kill = (rig: Rig, pid: number): Effect.Effect<void> =>
  Effect.zipRight(
    rig.admin.query("SELECT pg_terminate_backend($1)", [pid]),
    eventually(
      `backend ${pid} is gone`,
      Effect.map(rig.backends, (rows) => rows.every((row) => row.pid !== pid))
    )
  ).pipe(Effect.orDie)

/** The process id of the backend that a statement reaches. */
export const processId = (sql: PgClient.PgClient) =>
  Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => Number(rows[0]?.pid))

/** The tag of an error's reason, or what else it is. */
export const tagOf = (error: unknown): string =>
  DatabaseError.reasonOf(error)?._tag ?? `no DatabaseError: ${String(error)}`

/** `ok`, the reason's tag of a failure, or `interrupted` and `defect`. */
export const outcome = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<string, never, R> =>
  Effect.map(Effect.exit(effect), outcomeOf)

/** The same of an exit. */
export const outcomeOf = (exit: Exit.Exit<unknown, unknown>): string =>
  Exit.isSuccess(exit)
    ? "ok"
    : Option.match(Cause.failureOption(exit.cause), {
        onSome: tagOf,
        onNone: () =>
          Cause.isInterruptedOnly(exit.cause) ? "interrupted" : `defect: ${Cause.pretty(exit.cause)}`
      })

/** Runs an effect and measures it, in milliseconds. */
export const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const start = performance.now()
    const value = yield* effect
    return { value, millis: performance.now() - start }
  })

/** How often each outcome came. */
export const tally = (outcomes: ReadonlyArray<string>): Record<string, number> => {
  const counts: Record<string, number> = {}
  for (const outcome of outcomes) counts[outcome] = (counts[outcome] ?? 0) + 1
  return counts
}

/** Waits until so many statements that contain a text run on the server. */
export const running = (rig: Rig, text: string, count = 1) =>
  eventually(
    `${count} times on the server: ${text}`,
    Effect.map(
      rig.backends,
      (rows) => rows.filter((row) => row.state === "active" && row.query.includes(text)).length === count
    )
  )

/** Prints a measured figure, with a test that failed. */
export const report = (id: string, figures: Record<string, number | string>) =>
  Console.log(
    `${id}: ${Object.entries(figures)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ")}`
  )
