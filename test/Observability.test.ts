import { assert, describe, it } from "@effect/vitest"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as MetricState from "effect/MetricState"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import * as Database from "../src/Database.js"
import * as DatabaseError from "../src/DatabaseError.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import * as Transaction from "../src/Transaction.js"
import { eventually } from "./support/eventually.js"

/** Everything that is logged, as one text. */
const recording = () => {
  const records: Array<string> = []
  const logger = Logger.make(({ annotations, message }) => {
    records.push(`${String(message)} ${JSON.stringify([...annotations])}`)
  })
  return { records, layer: Logger.replace(Logger.defaultLogger, logger) }
}

describe("what a database tells about itself", () => {
  it.scopedLive("a slow statement is logged with its text and without its parameters", () =>
    Effect.gen(function* () {
      const { layer, records } = recording()
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`SELECT ${"s3cr3t"}::text`
      }).pipe(
        Effect.provide(TestDatabase.layer({ settings: { slowStatement: "0 millis" } })),
        Effect.provide(layer)
      )
      const slow = records.filter((record) => record.startsWith("Slow statement"))
      assert.isTrue(slow.some((record) => record.includes("SELECT $1::text")))
      assert.notInclude(records.join("\n"), "s3cr3t")
    })
  )

  it.scopedLive("a connection that is held for too long is reported once, with the span that took it", () =>
    Effect.gen(function* () {
      const { layer, records } = recording()
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const database = yield* Database.Database
        const leaks = yield* Effect.fork(
          Stream.runHead(Stream.filter(database.events, (event) => event._tag === "Leak"))
        )
        yield* Effect.yieldNow()
        const done = yield* Deferred.make<void>()
        const holder = yield* Effect.fork(
          sql.withTransaction(Deferred.await(done)).pipe(Effect.withSpan("the culprit"))
        )
        const leak = yield* Fiber.join(leaks)
        assert.isTrue(
          leak._tag === "Some" && leak.value._tag === "Leak" && leak.value.holder.includes("the culprit")
        )
        yield* Deferred.succeed(done, undefined)
        yield* Fiber.join(holder)
      }).pipe(
        Effect.provide(TestDatabase.layer({ settings: { leakWarning: "1 millis" } })),
        Effect.provide(layer)
      )
      const reports = records.filter((record) => record.includes("the culprit"))
      assert.strictEqual(reports.length, 1)
    })
  )

  it.scopedLive("a queue that is full refuses at once", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const database = yield* Database.Database
      const done = yield* Deferred.make<void>()
      const holder = yield* Effect.fork(sql.withTransaction(Deferred.await(done)))
      yield* eventually(
        "the only connection is in use",
        Effect.map(database.stats, ({ busy }) => busy === 1)
      )
      const waiter = yield* Effect.fork(sql`SELECT 1`)
      yield* eventually(
        "one caller waits",
        Effect.map(database.stats, ({ waiting }) => waiting === 1)
      )
      const refused = yield* Effect.flip(sql`SELECT 2`)
      const reason = DatabaseError.reasonOf(refused)
      assert.strictEqual(
        reason?._tag === "Overloaded" ? reason.oldestHolder?.span : reason?._tag,
        "sql.transaction"
      )
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(holder)
      yield* Fiber.join(waiter)
    }).pipe(Effect.provide(TestDatabase.layer({ settings: { maxConnections: 1, maxWaiting: 1 } })))
  )

  it.scopedLive("transactions that wait for each other's connection are told so instead of hanging", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const both = yield* Deferred.make<void>()
      let inside = 0
      const nested = (name: string) =>
        Transaction.run(
          Effect.gen(function* () {
            if (++inside === 2) yield* Deferred.succeed(both, undefined)
            yield* Deferred.await(both)
            return yield* Effect.scoped(
              Effect.flatMap(sql.reserve, (own) => own.execute("SELECT 1", [], undefined))
            )
          })
        ).pipe(Effect.withSpan(name))
      const exits = yield* Effect.all([Effect.exit(nested("first")), Effect.exit(nested("second"))], {
        concurrency: 2
      })
      const failures = exits.flatMap((exit) => (exit._tag === "Failure" ? [Cause.squash(exit.cause)] : []))
      assert.strictEqual(failures.length, 1)
      const [error] = failures
      const reason = DatabaseError.reasonOf(error)
      assert.strictEqual(reason?._tag, "NestedAcquire")
      assert.match(String(error), /first/)
      assert.match(String(error), /second/)
    }).pipe(
      Effect.provide(
        TestDatabase.layer({
          settings: { minConnections: 2, maxConnections: 2, acquireTimeout: "20 seconds" }
        })
      )
    )
  )

  it.scopedLive("metrics have OpenTelemetry's names, and count what happened", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { config } = yield* Database.Database
      yield* Effect.forEach([1, 2, 3], () => sql`SELECT 1`)
      yield* Transaction.run(sql`SELECT 1`)
      yield* Effect.ignore(Transaction.run(Effect.fail("rolled back")))
      const snapshot = yield* Metric.snapshot
      const mine = snapshot.filter(({ metricKey }) =>
        Chunk.some(Chunk.fromIterable(metricKey.tags), ({ value }) =>
          value.includes(config.endpoint.database)
        )
      )
      const names = new Set(mine.map(({ metricKey }) => metricKey.name))
      for (const name of [
        "db.client.connection.count",
        "db.client.connection.pending_requests",
        "db.client.connection.wait_time",
        "db.client.connection.use_time",
        "db.client.connection.create_time",
        "promptgrimoire.db.transactions"
      ]) {
        assert.isTrue(names.has(name), name)
      }
      const transactions = mine
        .filter(({ metricKey }) => metricKey.name === "promptgrimoire.db.transactions")
        .map(({ metricKey, metricState }) => [
          Chunk.fromIterable(metricKey.tags).pipe(Chunk.findFirst(({ key }) => key === "outcome")),
          "count" in metricState ? metricState.count : undefined
        ])
      assert.strictEqual(transactions.filter(([, count]) => count === 1).length, 2)
    }).pipe(Effect.provide(TestDatabase.layer()))
  )

  it.scopedLive("a statement's span says what OpenTelemetry's conventions for PostgreSQL ask for", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { config } = yield* Database.Database
      const native = yield* Effect.tracer
      const spans: Array<Tracer.Span> = []
      const tracer = Tracer.make({
        span: (...args) => {
          const span = native.span(...args)
          spans.push(span)
          return span
        },
        context: (run, fiber) => native.context(run, fiber)
      })
      yield* sql`CREATE TABLE item (id int PRIMARY KEY, name text)`
      yield* Effect.gen(function* () {
        yield* Transaction.run(sql`SELECT name FROM item WHERE id = ${4711}`).pipe(Effect.withSpan("outer"))
        yield* Effect.exit(sql`INSERT INTO item VALUES (${"s3cr3t"}::text::int)`)
        yield* Effect.exit(sql`SELECT ${"a\0b"}::text FROM item`)
        yield* Stream.runDrain(sql`SELECT id FROM item`.stream)
        yield* Effect.exit(Stream.runDrain(sql`SELECT 1 / 0 FROM pg_class`.stream))
        yield* sql`SELECT 1`.pipe(
          Statement.withTransformer((_, sql) => Effect.succeed(sql`SELECT id FROM item`)),
          Effect.asVoid
        )
      }).pipe(Effect.withTracer(tracer))
      const common = {
        "db.system.name": "postgresql",
        "db.namespace": config.endpoint.database,
        "server.address": config.endpoint.host,
        "server.port": config.endpoint.port
      }
      const query = (text: string, summary: string, more: object) => ({
        name: summary,
        kind: "client",
        attributes: { ...common, "db.query.text": text, "db.query.summary": summary, ...more }
      })
      const item = { "db.collection.name": "item" }
      const select = { "db.operation.name": "SELECT" }
      const failed = (code: string) => ({ "db.response.status_code": code, "error.type": code })
      assert.deepStrictEqual<object>(
        spans
          .filter(({ name }) => name !== "outer")
          .map(({ attributes, kind, name }) => ({ name, kind, attributes: Object.fromEntries(attributes) })),
        [
          { name: "sql.transaction", kind: "client", attributes: common },
          query("SELECT name FROM item WHERE id = $1", "SELECT item", { ...select, ...item }),
          query("INSERT INTO item VALUES ($1::text::int)", "INSERT item", {
            "db.operation.name": "INSERT",
            ...item,
            ...failed("22P02")
          }),
          query("SELECT $1::text FROM item", "SELECT item", { ...select, ...item, ...failed("22021") }),
          query("SELECT id FROM item", "SELECT item", { ...select, ...item }),
          query("SELECT 1 / 0 FROM pg_class", "SELECT pg_class", {
            ...select,
            "db.collection.name": "pg_class",
            ...failed("22012")
          }),
          { ...query("SELECT id FROM item", "SELECT", select) }
        ]
      )
      const parents = spans.map(({ parent }) =>
        parent._tag === "Some" && parent.value._tag === "Span" ? parent.value.name : undefined
      )
      assert.deepStrictEqual(parents.slice(0, 3), [undefined, "outer", "sql.transaction"])
      const status = spans.map(({ status }) => (status._tag === "Ended" ? status.exit._tag : status._tag))
      assert.deepStrictEqual(status, [
        "Success",
        "Success",
        "Success",
        "Failure",
        "Failure",
        "Success",
        "Failure",
        "Success"
      ])
      assert.notMatch(JSON.stringify(spans.map(({ attributes }) => [...attributes])), /s3cr3t|4711/)
    }).pipe(Effect.provide(TestDatabase.layer()))
  )

  it.scopedLive("an operation's duration is measured by database, operation and error", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { config } = yield* Database.Database
      yield* sql`SELECT 1`
      yield* sql`SELECT 2`
      yield* Effect.exit(sql`SELECT 1 / 0`)
      yield* Transaction.run(sql`CREATE TABLE item (id int)`)
      const snapshot = yield* Metric.snapshot
      const counts = new Map<string, number>()
      for (const { metricKey, metricState } of snapshot) {
        if (metricKey.name !== "db.client.operation.duration" || !MetricState.isHistogramState(metricState))
          continue
        const tags = Object.fromEntries(
          Chunk.fromIterable(metricKey.tags).pipe(Chunk.map(({ key, value }) => [key, value]))
        )
        if (tags["db.namespace"] !== config.endpoint.database) continue
        assert.strictEqual(tags["db.system.name"], "postgresql")
        assert.strictEqual(tags["server.address"], config.endpoint.host)
        assert.strictEqual(tags["server.port"], String(config.endpoint.port))
        assert.strictEqual(tags["error.type"], tags["db.response.status_code"])
        counts.set(`${tags["db.operation.name"]} ${tags["error.type"] ?? "ok"}`, metricState.count)
      }
      assert.strictEqual(counts.get("SELECT 22012"), 1)
      assert.isAtLeast(counts.get("SELECT ok") ?? 0, 2)
      for (const once of ["BEGIN ok", "CREATE ok", "COMMIT ok"]) assert.strictEqual(counts.get(once), 1, once)
    }).pipe(Effect.provide(TestDatabase.layer()))
  )
})
