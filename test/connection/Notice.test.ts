import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import * as Copy from "../../src/Copy.js"
import * as Database from "../../src/Database.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Notice from "../../src/connection/notice.js"
import * as Transaction from "../../src/Transaction.js"
import { eventually } from "../support/eventually.js"
import { type databaseLayer, TestServer, testLayer } from "../support/database.js"
import { type LogRecord, recordLogs } from "../support/logs.js"

const raising = (level: string, more = "") =>
  `DO $$ BEGIN RAISE ${level} 'seen by % rows', 17 ${more}; END $$`

/** The log records of notices, from the beginning of the effect. */
const recorded = <A, E>(
  program: (records: ReadonlyArray<LogRecord>) => Effect.Effect<A, E, Database.Provided | TestServer>,
  settings: Parameters<typeof databaseLayer>[0] = {}
) => {
  const records: Array<LogRecord> = []
  return Effect.suspend(() => program(records)).pipe(
    Effect.provide(testLayer({ maxConnections: 1, ...settings })),
    Effect.provide(recordLogs(records)),
    Effect.as(records)
  )
}

const notices = (records: ReadonlyArray<LogRecord>) =>
  records
    .filter(({ annotations }) => "severity" in annotations)
    .map(({ annotations, level, message }) => [level, message, annotations["code"]])

describe("What the server says beside an answer", () => {
  it.scopedLive(
    "is logged at the level of its severity, with hint and detail, and without where it came from",
    () =>
      Effect.gen(function* () {
        const records = yield* recorded(() =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* sql`SET client_min_messages = 'debug1'`
            yield* sql.unsafe(raising("WARNING", "USING HINT = 'look', DETAIL = 'closely'"))
            yield* sql.unsafe(raising("WARNING", "USING ERRCODE = 'U0001'"))
            for (const level of ["NOTICE", "INFO", "LOG", "DEBUG"]) yield* sql.unsafe(raising(level))
            // Nothing is said here.
            yield* sql`SELECT 1`
          })
        )
        const raised = notices(records).filter(([, message]) => message === "seen by 17 rows")
        assert.deepStrictEqual(raised, [
          ["WARN", "seen by 17 rows", "01000"],
          ["WARN", "seen by 17 rows", "U0001"],
          ["DEBUG", "seen by 17 rows", "00000"],
          ["INFO", "seen by 17 rows", "00000"],
          ["DEBUG", "seen by 17 rows", "00000"],
          ["TRACE", "seen by 17 rows", "00000"]
        ])
        const first = records.find(({ message }) => message === "seen by 17 rows")
        assert.deepStrictEqual(first?.annotations, {
          code: "01000",
          severity: "WARNING",
          hint: "look",
          detail: "closely"
        })
      })
  )

  it.scopedLive("is logged once in every way to run a statement, also before one that fails", () =>
    Effect.gen(function* () {
      const records = yield* recorded(() =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const database = yield* Database.Database
          yield* sql`CREATE TABLE said (way text)`
          yield* sql`CREATE FUNCTION say(way text) RETURNS text LANGUAGE plpgsql AS $$
            BEGIN RAISE WARNING '%', way; RETURN way; END $$`
          yield* sql`CREATE FUNCTION say_row() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM say(NEW.way); RETURN NEW; END $$`
          yield* sql`CREATE TRIGGER say BEFORE INSERT ON said FOR EACH ROW EXECUTE FUNCTION say_row()`
          yield* sql`SELECT say('statement')`
          yield* Stream.runDrain(sql`SELECT say('stream')`.stream)
          yield* Copy.into(Stream.make(["copy"]), { table: "said", columns: ["way"] })
          yield* Transaction.run(sql`SELECT say('transaction')`)
          yield* Effect.scoped(
            Effect.flatMap(sql.reserve, (own) => own.execute("SELECT say('reserved')", [], undefined))
          )
          yield* Effect.scoped(
            Effect.flatMap(database.session, (session) => session.query("SELECT say('session')"))
          )
          yield* Effect.flip(sql`SELECT 1 / length(substr(say('failing'), 100))`)
        })
      )
      assert.deepStrictEqual(
        notices(records).map(([, message]) => message),
        ["statement", "stream", "copy", "transaction", "reserved", "session", "failing"]
      )
    })
  )

  it.scopedLive("is logged while the statement runs, not at its end", () =>
    recorded((records) =>
      Effect.gen(function* () {
        const { admin } = yield* TestServer
        const sql = yield* SqlClient.SqlClient
        yield* admin.query("SELECT pg_advisory_lock(1)")
        const fiber = yield* Effect.fork(
          sql.unsafe("DO $$ BEGIN RAISE WARNING 'half'; PERFORM pg_advisory_lock(1); END $$")
        )
        yield* eventually(
          "it is logged",
          Effect.sync(() => records.some(({ message }) => message === "half"))
        )
        yield* admin.query("SELECT pg_advisory_unlock(1)")
        yield* Fiber.join(fiber)
      })
    )
  )

  it.scopedLive("belongs to the span of its statement", () =>
    Effect.gen(function* () {
      const spans: Array<string> = []
      const native = yield* Effect.tracer
      // Effect's own tracer keeps no spans, so under it statements make none.
      const tracer = Tracer.make({
        span: (...args) => native.span(...args),
        context: (...args) => native.context(...args)
      })
      const inSpan = <A, E, R>(statement: Effect.Effect<A, E, R>) =>
        Database.withNotices(statement, () =>
          Effect.map(Effect.orDie(Effect.currentSpan), ({ name }) => spans.push(name))
        )
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE FUNCTION say() RETURNS int LANGUAGE plpgsql AS $$
          BEGIN RAISE WARNING 'x'; RETURN 1; END $$`
        yield* sql`CREATE TABLE said AS SELECT 1 AS id`
        yield* inSpan(sql`SELECT say() FROM said`)
        yield* inSpan(Stream.runDrain(sql`SELECT say() FROM said`.stream))
        yield* inSpan(sql`SELECT say()`.pipe(Effect.withSpan("around")))
      }).pipe(Effect.withTracer(tracer), Effect.provide(testLayer()))
      assert.deepStrictEqual(spans, ["SELECT said", "SELECT said", "SELECT"])
    })
  )

  it.scopedLive(
    "goes to a handler of the program's own instead of the log, also with several connections",
    () =>
      Effect.gen(function* () {
        const seen: Array<string> = []
        const records = yield* recorded(
          () =>
            Effect.gen(function* () {
              const sql = yield* SqlClient.SqlClient
              const say = (who: string) =>
                Database.withNotices(sql.unsafe(raising("WARNING")), ({ message, severity }) =>
                  Effect.sync(() => seen.push(`${who}: ${severity} ${message}`))
                )
              yield* Effect.all([say("a"), say("b")], { concurrency: 2 })
              yield* Database.withNotices(sql.unsafe(raising("WARNING")), () =>
                Effect.die("a broken handler")
              )
            }),
          { maxConnections: 2 }
        )
        assert.sameMembers(seen, ["a: WARNING seen by 17 rows", "b: WARNING seen by 17 rows"])
        assert.deepStrictEqual(notices(records), [])
      })
  )

  it.scopedLive(
    "shows no text that a parameter may be in, and none that functions raise where showRaised is off",
    () =>
      Effect.gen(function* () {
        const program = () =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* sql`SELECT to_tsquery('english', ${"the"})`
            yield* sql`DROP TABLE IF EXISTS missing`
            yield* sql.unsafe(raising("WARNING", "USING HINT = 'look'"))
          })
        const hidden = "the server sent a notice whose text can hold values"
        assert.deepStrictEqual(notices(yield* recorded(program)), [
          ["DEBUG", hidden, "00000"],
          ["DEBUG", 'table "missing" does not exist, skipping', "00000"],
          ["WARN", "seen by 17 rows", "01000"]
        ])
        const records = yield* recorded(program, { showRaised: false })
        assert.deepStrictEqual(notices(records).at(-1), ["WARN", hidden, "01000"])
        assert.deepStrictEqual(
          records.find(({ level, message }) => level === "WARN" && message === hidden)?.annotations,
          { code: "01000", severity: "WARNING", routine: "exec_stmt_raise" }
        )
      })
  )

  it.effect("is a warning by its code where the severity is in another language", () =>
    Effect.gen(function* () {
      const seen: Array<string> = []
      yield* Effect.map(Effect.runtime(), (runtime) => {
        const tell = Notice.teller(runtime, true)
        tell({ severity: "WARNUNG", code: "01000" }, undefined)
        tell({ severity: "HINWEIS", code: "00000" }, undefined)
        tell({ severity: "WARNUNG", code: "U0001" }, undefined)
      }).pipe(Database.withNotices(({ severity }) => Effect.sync(() => seen.push(severity))))
      assert.deepStrictEqual(seen, ["WARNING", "NOTICE", "WARNING"])
    })
  )

  it.scopedLive("between two statements is logged by the Layer", () =>
    Effect.gen(function* () {
      const { url } = yield* EmbeddedPostgres.make()
      const records: Array<LogRecord> = []
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const idle = Effect.scoped(
          Effect.gen(function* () {
            const both = yield* Effect.all([sql.reserve, sql.reserve])
            return yield* both[0].execute("SELECT pg_backend_pid() AS pid", [], undefined)
          })
        )
        const [row] = yield* idle
        // The server ends every session when one backend has died so.
        yield* Effect.sync(() => process.kill(Number(Object(row).pid), "SIGKILL"))
        yield* eventually(
          "the other session was told",
          Effect.sync(() => notices(records).some(([, , code]) => code === "57P02"))
        )
      }).pipe(
        Effect.provide(Database.layer({ url, minConnections: 0, maxConnections: 2 })),
        Effect.provide(recordLogs(records))
      )
      const told = records.find(({ annotations }) => annotations["code"] === "57P02")
      assert.strictEqual(told?.level, "WARN")
      assert.match(told?.message ?? "", /crash of another server process/)
    })
  )
})
