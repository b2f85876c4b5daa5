import { assert, describe, it } from "./support/it.js"
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
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
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

/**
 * The metrics of one database: a gauge's value, a counter's and a histogram's count, a histogram's
 * sum in seconds.
 */
const metricsOf = (database: string) =>
  Effect.map(Metric.snapshot, (snapshot) => {
    const values = new Map<string, number>()
    for (const { metricKey, metricState } of snapshot) {
      const tags = [...metricKey.tags]
      if (!tags.some(({ value }) => value.endsWith(`/${database}`))) continue
      const label = tags.find(({ key }) => key.endsWith("state") || key === "outcome")?.value
      const name = label === undefined ? metricKey.name : `${metricKey.name} ${label}`
      if (MetricState.isGaugeState(metricState)) values.set(name, Number(metricState.value))
      if (MetricState.isCounterState(metricState)) values.set(name, Number(metricState.count))
      if (MetricState.isHistogramState(metricState)) {
        values.set(name, metricState.count)
        values.set(`${name} sum`, metricState.sum)
      }
    }
    return values
  })

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

  it.scopedLive("a statement is slow from the threshold on, and a quick one is not logged", () =>
    Effect.gen(function* () {
      const { layer, records } = recording()
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`SELECT 'quick'`
        yield* sql`SELECT 'slow', pg_sleep(0.6)`
      }).pipe(
        Effect.provide(TestDatabase.layer({ settings: { slowStatement: "500 millis" } })),
        Effect.provide(layer)
      )
      const slow = records.filter((record) => record.startsWith("Slow statement"))
      assert.strictEqual(slow.filter((record) => record.includes("'slow'")).length, 1)
      assert.strictEqual(slow.filter((record) => record.includes("'quick'")).length, 0)
    })
  )

  it.scopedLive("metrics have OpenTelemetry's names, and say what a program saw at the checkout", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const database = yield* Database.Database
      const metrics = metricsOf(database.config.endpoint.database)
      const before = yield* metrics
      assert.strictEqual(before.get("db.client.connection.max"), 1)
      assert.strictEqual(before.get("db.client.connection.idle.min"), 1)
      assert.strictEqual(before.get("db.client.connection.create_time"), 1)
      assert.isAbove(before.get("db.client.connection.create_time sum") ?? 0, 0)

      // One holds the only connection for 300 ms while another one waits for it.
      const start = performance.now()
      const held = yield* Deferred.make<void>()
      const holder = yield* Effect.fork(
        sql.withTransaction(Effect.zipRight(Deferred.succeed(held, undefined), sql`SELECT pg_sleep(0.3)`))
      )
      yield* Deferred.await(held)
      const waiter = yield* Effect.fork(sql`SELECT 1`)
      yield* eventually(
        "it waits",
        Effect.map(database.stats, ({ waiting }) => waiting === 1)
      )
      const during = yield* metrics
      assert.strictEqual(during.get("db.client.connection.count used"), 1)
      assert.strictEqual(during.get("db.client.connection.count idle"), 0)
      yield* Fiber.join(holder)
      yield* Fiber.join(waiter)
      const after = yield* metrics
      const elapsed = (performance.now() - start) / 1000
      const grown = (name: string) => (after.get(name) ?? 0) - (before.get(name) ?? 0)
      assert.strictEqual(grown("db.client.connection.wait_time"), 2)
      assert.isAtLeast(grown("db.client.connection.wait_time sum"), 0.2)
      assert.isBelow(grown("db.client.connection.wait_time sum"), 2 * elapsed)
      assert.strictEqual(grown("db.client.connection.use_time"), 2)
      assert.isAtLeast(grown("db.client.connection.use_time sum"), 0.3)
      assert.isBelow(grown("db.client.connection.use_time sum"), 2 * elapsed)
      assert.strictEqual(after.get("db.client.connection.count used"), 0)
      assert.strictEqual(after.get("db.client.connection.count idle"), 1)
      assert.strictEqual(after.get("db.client.connection.pending_requests"), 0)
      assert.strictEqual(grown("promptgrimoire.db.transactions committed"), 1)
    }).pipe(Effect.provide(TestDatabase.layer({ settings: { minConnections: 1, maxConnections: 1 } })))
  )

  it.scopedLive("metrics count transactions by outcome, retries and waits in vain", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { config } = yield* Database.Database
      const metrics = metricsOf(config.endpoint.database)
      yield* sql.unsafe(`
        CREATE TABLE item (id int);
        CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER leave AFTER INSERT ON item
          DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION leave()
      `)
      const before = yield* metrics
      yield* Transaction.run(sql`SELECT 1`)
      yield* Effect.ignore(Transaction.run(Effect.fail("rolled back")))
      yield* Effect.ignore(Transaction.run(sql`INSERT INTO item VALUES (1)`))
      let tries = 0
      yield* Transaction.run(
        Effect.suspend(() =>
          ++tries === 1 ? sql`DO $$ BEGIN RAISE 'again' USING ERRCODE = '40001'; END $$` : sql`SELECT 1`
        ),
        { retry: { base: "1 millis" } }
      )
      const vain = yield* Effect.flip(Transaction.run(Effect.scoped(sql.reserve)))
      assert.include(["NestedAcquire", "AcquireTimeout"], DatabaseError.reasonOf(vain)?._tag)
      const done = yield* Deferred.make<void>()
      const holder = yield* Effect.fork(Effect.scoped(Effect.zipRight(sql.reserve, Deferred.await(done))))
      const late = yield* Effect.flip(Effect.zipRight(Effect.yieldNow(), sql`SELECT 1`))
      assert.strictEqual(DatabaseError.reasonOf(late)?._tag, "AcquireTimeout")
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(holder)
      const after = yield* metrics
      const grown = (name: string) => (after.get(name) ?? 0) - (before.get(name) ?? 0)
      assert.strictEqual(grown("promptgrimoire.db.transactions committed"), 2)
      assert.strictEqual(grown("promptgrimoire.db.transactions rolled back"), 3)
      assert.strictEqual(grown("promptgrimoire.db.transactions unknown"), 1)
      assert.strictEqual(grown("promptgrimoire.db.transaction.retries"), 1)
      assert.strictEqual(grown("db.client.connection.timeouts"), 1)
    }).pipe(
      Effect.provide(TestDatabase.layer({ settings: { maxConnections: 1, acquireTimeout: "500 millis" } }))
    )
  )

  it.scopedLive(
    "events tell of connections that open, close, cannot be opened or are given up, and of callers refused",
    () =>
      Effect.gen(function* () {
        const server = yield* EmbeddedPostgres.make()
        yield* Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const database = yield* Database.Database
          const events: Array<Database.PoolEvent> = []
          yield* Effect.forkScoped(
            Stream.runForEach(database.events, (event) => Effect.sync(() => events.push(event)))
          )
          const saw = (tag: Database.PoolEvent["_tag"]) =>
            eventually(
              tag,
              Effect.sync(() => events.some(({ _tag }) => _tag === tag))
            )
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* sql.reserve
              // Events come from the moment of the subscription on.
              yield* eventually(
                "a refusal is seen",
                Effect.map(Effect.flip(sql`SELECT 1`), () => events.length > 0)
              )
            })
          )
          yield* saw("Refused")
          yield* Effect.exit(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
          yield* saw("Invalidated")
          yield* saw("Closed")
          yield* sql`SELECT 1`
          yield* saw("Opened")
          yield* server.stop("immediate")
          // The pool may not have noticed yet that its connection is gone, and lend that one first.
          yield* eventually(
            "DialFailed",
            Effect.map(Effect.exit(sql`SELECT 1`), () => events.some(({ _tag }) => _tag === "DialFailed"))
          )
          const failed = events.find(({ _tag }) => _tag === "DialFailed")
          assert.strictEqual(
            failed?._tag === "DialFailed" ? failed.error.reason._tag : undefined,
            "ConnectFailed"
          )
          const opened = events.find(({ _tag }) => _tag === "Opened")
          assert.isTrue(opened?._tag === "Opened" && opened.processId > 0 && opened.millis > 0)
        }).pipe(
          Effect.provide(
            Database.layer({
              url: server.url,
              minConnections: 0,
              maxConnections: 1,
              maxWaiting: 0,
              acquireTimeout: "2 seconds"
            })
          )
        )
      })
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
