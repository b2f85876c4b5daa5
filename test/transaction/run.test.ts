import * as Reactivity from "@effect/experimental/Reactivity"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as SqlResolver from "@effect/sql/SqlResolver"
import { assert, describe, inFull, layer } from "../support/it.js"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import { DatabaseError } from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer, databaseLayer, testLayer, processId, show } from "../support/database.js"
import { type LogRecord, recordLogs } from "../support/logs.js"
import { within } from "../support/within.js"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import { makeWitness } from "../support/witness.js"

class Refused extends Data.TaggedError("Refused")<{ readonly why: string }> {}

/** An empty table of its own for each test. */
const makeTable = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const name = `t_${Math.random().toString(36).slice(2)}`
  yield* sql`CREATE TABLE ${sql(name)} (id int PRIMARY KEY)`
  return {
    name,
    insert: (id: number) => sql`INSERT INTO ${sql(name)} VALUES (${id})`,
    ids: Effect.map(sql<{ id: number }>`SELECT id FROM ${sql(name)} ORDER BY id`, (rows) =>
      rows.map(({ id }) => id)
    )
  }
})

const terminate = (pid: number) =>
  Effect.flatMap(TestServer, ({ admin }) =>
    Effect.zipRight(
      admin.query("SELECT pg_terminate_backend($1)", [pid]),
      eventually(
        "the backend is gone",
        Effect.map(
          admin.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1", [pid]),
          (rows) => rows.length === 0
        )
      )
    )
  )

/** The reason's tag of an error that must be a DatabaseError. */
const reasonOf = (error: unknown): string =>
  DatabaseError.is(error) ? error.reason._tag : `not a DatabaseError: ${String(error)}`

const failure = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.map(Effect.flip(effect), reasonOf)

const silent = Logger.remove(Logger.defaultLogger)

layer(Layer.merge(testLayer({ maxConnections: 8 }), silent), { excludeTestServices: true })(
  "Transaction.run",
  (it) => {
    describe("keeps or discards", () => {
      it.effect("what the body wrote, as a whole", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          assert.strictEqual(yield* Transaction.run(Effect.as(insert(1), "done")), "done")
          const body = Effect.zipRight(insert(2), Effect.fail(new Refused({ why: "no" })))
          const error = yield* Effect.flip(Transaction.run(body))
          assert.instanceOf(error, Refused)
          assert.deepStrictEqual(yield* ids, [1])
        })
      )

      it.effect("in the data-last form and through sql.withTransaction alike", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { ids, insert } = yield* makeTable
          yield* insert(1).pipe(Transaction.run({ name: "data-last" }))
          yield* sql.withTransaction(insert(2))
          yield* Effect.exit(insert(3).pipe(Effect.zipRight(Effect.die("bug")), sql.withTransaction))
          const nested = Effect.exit(Transaction.run(Effect.zipRight(insert(5), Effect.fail("no"))))
          yield* sql.withTransaction(Effect.zipRight(insert(4), nested))
          assert.deepStrictEqual(yield* ids, [1, 2, 4])
        })
      )

      it.effect("nothing when a fiber of it goes on after its end: those statements fail", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const sql = yield* SqlClient.SqlClient
          const ended = yield* Deferred.make<void>()
          const late = Effect.zipRight(
            Deferred.await(ended),
            Effect.all([
              failure(insert(2)),
              failure(sql.withTransaction(insert(3))),
              failure(Stream.runDrain(sql`SELECT 1`.stream))
            ])
          )
          const fiber = yield* Transaction.run(Effect.zipRight(insert(1), Effect.forkDaemon(late)))
          yield* Deferred.succeed(ended, undefined)
          assert.deepStrictEqual(yield* Fiber.join(fiber), [
            "TransactionEnded",
            "TransactionEnded",
            "TransactionEnded"
          ])
          assert.deepStrictEqual(yield* ids, [1])
        })
      )

      it.effect("nothing on another connection after its own was lost", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const errors: Array<string> = []
          const body = Effect.gen(function* () {
            yield* insert(1)
            yield* terminate(yield* processId)
            errors.push(yield* failure(insert(2)))
            errors.push(yield* failure(Transaction.run(insert(3))))
          })
          const error = yield* Effect.flip(Transaction.run(body))
          assert.deepStrictEqual(errors, ["ServerShutdown", "ServerShutdown"])
          assert.strictEqual(reasonOf(error), "ServerShutdown")
          assert.deepStrictEqual(yield* ids, [])
        })
      )

      it.effect("nothing outside of it after a raw COMMIT in its body", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            yield* insert(1)
            yield* sql`COMMIT`
            assert.strictEqual(yield* failure(insert(2)), "TransactionEnded")
            assert.strictEqual(yield* failure(Transaction.run(insert(3))), "TransactionEnded")
          })
          assert.strictEqual(yield* failure(Transaction.run(body)), "TransactionEnded")
          assert.deepStrictEqual(yield* ids, [1])
        })
      )
    })

    describe("writes the log record before ROLLBACK is sent", () => {
      const observed = (
        body: (insert: Effect.Effect<unknown, SqlError>) => Effect.Effect<unknown, unknown>
      ) =>
        Effect.gen(function* () {
          const { url } = yield* TestServer
          const witness = yield* makeWitness(url)
          const { ids, insert, name } = yield* makeTable
          const records: Array<LogRecord> = []
          const atRecord: Array<string> = []
          const exit = yield* Transaction.run(body(insert(1)), { name: "sign up" }).pipe(
            Effect.exit,
            Effect.provide(
              recordLogs(records, ({ message }) => {
                if (message !== Transaction.rollbackMessage) return
                atRecord.push(
                  witness(`SELECT (SELECT count(*) FROM pg_sleep(0.05)) || ' ' || count(*) FROM pg_locks
                    WHERE relation = '${name}'::regclass AND mode = 'RowExclusiveLock'`)
                )
              })
            )
          )
          assert.deepStrictEqual(yield* ids, [])
          // The transaction is still open, and holds its lock on the table.
          assert.deepStrictEqual(atRecord, ["1 1"])
          const [record, ...others] = records.filter(({ level }) => level !== "DEBUG")
          assert.deepStrictEqual(others, [])
          assert.strictEqual(record?.message, "Database session error, rolling back transaction")
          assert.deepStrictEqual(record?.annotations, { transaction: "sign up" })
          assert.strictEqual(record?.level, "ERROR")
          return { exit, details: record?.details ?? "" }
        })

      it.scoped("when the body fails", () =>
        Effect.gen(function* () {
          const { details, exit } = yield* observed((insert) =>
            Effect.zipRight(insert, Effect.fail(new Refused({ why: "no such class" })))
          )
          assert.match(details, /Refused/)
          assert.isTrue(Exit.isFailure(exit) && Cause.isFailType(exit.cause))
        })
      )

      it.scoped("when the body dies", () =>
        Effect.gen(function* () {
          const { details, exit } = yield* observed((insert) =>
            Effect.zipRight(insert, Effect.die(new Error("a bug")))
          )
          assert.match(details, /a bug/)
          assert.isTrue(Exit.isFailure(exit) && Cause.isDieType(exit.cause))
        })
      )

      it.scoped("when the body is interrupted", () =>
        Effect.gen(function* () {
          const { details, exit } = yield* observed((insert) => Effect.zipRight(insert, Effect.interrupt))
          assert.match(details, /interrupt/)
          assert.isTrue(Exit.isFailure(exit) && Cause.isInterruptedOnly(exit.cause))
        })
      )

      it.effect("at WARNING, without a trace, when the error is expected", () =>
        Effect.gen(function* () {
          const records: Array<LogRecord> = []
          const run = (body: Effect.Effect<never, Refused>, expected: (error: Refused) => boolean) =>
            Effect.exit(Transaction.run(body, { expected }))
          const refuse = Effect.fail(new Refused({ why: "taken" }))
          yield* Effect.gen(function* () {
            yield* run(refuse, ({ why }) => why === "taken")
            yield* run(refuse, () => false)
            yield* run(Effect.ensuring(refuse, Effect.die("a bug as well")), () => true)
          }).pipe(Effect.provide(recordLogs(records)))
          const levels = records.filter(({ level }) => level !== "DEBUG").map(({ level }) => level)
          assert.deepStrictEqual(levels, ["WARN", "ERROR", "ERROR"])
          assert.notInclude(records[0]?.details, "at ")
        })
      )

      it.effect("and rolls back even if that test or the logger throws", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const broken = Logger.replace(
            Logger.defaultLogger,
            Logger.make(() => {
              throw new Error("the disk is full")
            })
          )
          const body = Effect.zipRight(insert(1), Effect.fail("the body's"))
          const before = yield* Effect.flatMap(Database.Database, ({ stats }) => stats)
          for (const exit of [
            yield* Effect.exit(Effect.provide(Transaction.run(body), broken)),
            yield* Effect.exit(
              Transaction.run(body, {
                expected: () => {
                  throw new Error("a bug in the test")
                }
              })
            )
          ]) {
            assert.deepStrictEqual(exit, Exit.fail("the body's"))
          }
          assert.deepStrictEqual(yield* ids, [])
          assert.deepStrictEqual(yield* Effect.flatMap(Database.Database, ({ stats }) => stats), before)
        })
      )
    })

    describe("tells the truth about COMMIT", () => {
      const makeDeferred = Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { name, ...parent } = yield* makeTable
        yield* sql`CREATE TABLE ${sql(`${name}_child`)} (id int REFERENCES ${sql(name)} DEFERRABLE INITIALLY DEFERRED)`
        return {
          ...parent,
          name,
          insertChild: (id: number) => sql`INSERT INTO ${sql(`${name}_child`)} VALUES (${id})`
        }
      })

      it.effect("which fails: a typed failure, and a clean connection", () =>
        Effect.gen(function* () {
          const { insertChild, name } = yield* makeDeferred
          const records: Array<LogRecord> = []
          const error = yield* Transaction.run(Effect.as(insertChild(1), "not returned")).pipe(
            Effect.flip,
            Effect.provide(recordLogs(records))
          )
          assert.instanceOf(error, DatabaseError)
          assert.include(error.reason, {
            _tag: "ForeignKeyViolation",
            table: `${name}_child`,
            constraint: `${name}_child_id_fkey`
          })
          assert.deepStrictEqual(
            records.map(({ level, message }) => [level, message]),
            [["ERROR", "Database session error, the transaction was not committed"]]
          )
          const { busy, waiting } = yield* Effect.flatMap(Database.Database, ({ stats }) => stats)
          assert.deepStrictEqual({ busy, waiting }, { busy: 0, waiting: 0 })
        })
      )

      it.effect("which the server answers with ROLLBACK: a failure that names the first error", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            yield* insert(1)
            yield* Effect.ignore(insert(1))
            const error = yield* Effect.flip(sql`SELECT 1`)
            assert.instanceOf(error, DatabaseError)
            assert.deepInclude(error.reason, { _tag: "TransactionAborted" })
            assert.match(error.message, /UniqueViolation/)
          })
          const error = yield* Effect.flip(Transaction.run(body))
          assert.instanceOf(error, DatabaseError)
          assert.isTrue(
            error.reason._tag === "TransactionRolledBack" && error.reason.first?._tag === "UniqueViolation"
          )
          assert.deepStrictEqual(yield* ids, [])
        })
      )

      it.scoped("which is lost on its way: the outcome is unknown", () =>
        Effect.gen(function* () {
          const { url } = yield* TestServer
          const { ids, name } = yield* makeTable
          const proxy = yield* Proxy.make(url)
          const insert = (id: number) =>
            Effect.flatMap(SqlClient.SqlClient, (sql) => sql`INSERT INTO ${sql(name)} VALUES (${id})`).pipe(
              Transaction.run(),
              Effect.flip,
              Effect.map(reasonOf),
              Effect.provide(Database.layer({ url: proxy.url, minConnections: 0 }))
            )
          yield* proxy.when(Proxy.statement(/COMMIT/), Proxy.cutBefore("end"))
          assert.strictEqual(yield* insert(1), "CommitOutcomeUnknown")
          yield* proxy.when(Proxy.statement(/COMMIT/), Proxy.cutAfter("end"))
          assert.strictEqual(yield* insert(2), "CommitOutcomeUnknown")
          yield* eventually(
            "the second one is committed",
            Effect.map(ids, (all) => all.length === 1 && all[0] === 2)
          )
        })
      )

      inFull(it).effect(
        "which may take as long as the transaction's own limit allows, also when the settings allow less",
        () =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            const { ids, insert, name } = yield* makeTable
            yield* sql.unsafe(`
              CREATE FUNCTION check_${name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5.5); RETURN NULL; END $$;
              CREATE CONSTRAINT TRIGGER late AFTER INSERT ON ${name} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION check_${name}()
            `)
            yield* Transaction.run(insert(1), { statementTimeout: "20 seconds" })
            assert.deepStrictEqual(yield* ids, [1])
          }).pipe(
            Effect.provide(databaseLayer({ statementTimeout: "200 millis", lockTimeout: "100 millis" }))
          )
      )

      it.effect("with the longest limit that PostgreSQL has, which no timer of Node can hold", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          yield* Transaction.run(insert(1), { statementTimeout: Duration.millis(2 ** 31 - 1) })
          assert.deepStrictEqual(yield* ids, [1])
        })
      )

      it.effect("which is lost in another database: this one's hooks run", () =>
        Effect.gen(function* () {
          const ran: Array<string> = []
          const lost = new DatabaseError({
            operation: "commit",
            reason: { _tag: "CommitOutcomeUnknown", transactionId: undefined, systemCode: undefined }
          })
          yield* Effect.exit(
            Transaction.run(
              Effect.zipRight(
                Transaction.afterRollback(Effect.sync(() => ran.push("rolled back"))),
                Effect.fail(lost)
              )
            )
          )
          assert.deepStrictEqual(ran, ["rolled back"])
        })
      )

      it.effect("which cannot be sent because the connection is lost: it is certainly not committed", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const { stats } = yield* Database.Database
          const body = Effect.gen(function* () {
            yield* insert(1)
            const { total: before } = yield* stats
            yield* terminate(yield* processId)
            yield* eventually(
              "the pool knows",
              Effect.map(stats, ({ total }) => total < before)
            )
          })
          assert.strictEqual(yield* failure(Transaction.run(body)), "ServerShutdown")
          assert.deepStrictEqual(yield* ids, [])
        })
      )
    })

    describe("keeps the body's error", () => {
      it.scoped("first when ROLLBACK fails as well", () =>
        Effect.gen(function* () {
          const { url } = yield* TestServer
          const proxy = yield* Proxy.make(url)
          yield* proxy.when(Proxy.statement(/ROLLBACK/), Proxy.cutBefore("end"))
          const exit = yield* Transaction.run(Effect.fail(new Refused({ why: "the body's" }))).pipe(
            Effect.exit,
            Effect.provide(Database.layer({ url: proxy.url, minConnections: 0 }))
          )
          assert.isTrue(Exit.isFailure(exit))
          const cause = Exit.isFailure(exit) ? exit.cause : Cause.empty
          assert.deepStrictEqual(
            [...Cause.failures(cause)].map((error) => error instanceof Refused && error.why),
            ["the body's"]
          )
          assert.deepStrictEqual([...Cause.defects(cause)].map(reasonOf), ["ConnectionLost"])
        })
      )

      it.effect("when the connection is gone before ROLLBACK", () =>
        Effect.gen(function* () {
          const body = Effect.zipRight(Effect.flatMap(processId, terminate), Effect.fail("the body's"))
          const cause = yield* Effect.flip(Effect.sandbox(Transaction.run(body)))
          assert.deepStrictEqual([...Cause.failures(cause)], ["the body's"])
          // The end of the connection is known before ROLLBACK is sent, or is the answer to it: a
          // pooler passes it on later.
          for (const defect of Cause.defects(cause)) {
            assert.include(["ServerShutdown", "ConnectionLost"], reasonOf(defect))
          }
        })
      )

      inFull(it).scoped("and does not wait for a server that does not answer ROLLBACK", () =>
        Effect.gen(function* () {
          const { url } = yield* TestServer
          const proxy = yield* Proxy.make(url)
          const exit = yield* Transaction.run(Effect.zipRight(proxy.down, Effect.fail("the body's"))).pipe(
            Effect.exit,
            Effect.provide(Database.layer({ url: proxy.url, minConnections: 0 }))
          )
          assert.isTrue(
            Exit.isFailure(exit) && Option.contains(Cause.failureOption(exit.cause), "the body's")
          )
        })
      )
    })

    describe("waits for a connection", () => {
      const exhausted = databaseLayer({
        // Opened before the acquire timeout counts.
        minConnections: 1,
        maxConnections: 1,
        acquireTimeout: "300 millis"
      })

      const whileHeld = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.gen(function* () {
          const held = yield* Deferred.make<void>()
          const done = yield* Deferred.make<void>()
          const holder = yield* Effect.fork(
            Transaction.run(Effect.zipRight(Deferred.succeed(held, undefined), Deferred.await(done))).pipe(
              Effect.withSpan("the holder")
            )
          )
          yield* Deferred.await(held)
          const result = yield* effect
          yield* Deferred.succeed(done, undefined)
          yield* Fiber.join(holder)
          return result
        })

      it.effect("no longer than the acquire timeout, which is a failure of its own", () =>
        Effect.gen(function* () {
          const error = yield* whileHeld(Effect.flip(Transaction.run(Effect.void)))
          assert.isTrue(DatabaseError.is(error))
          const { oldestHolder, ...reason } = { oldestHolder: undefined, ...error.reason }
          assert.deepStrictEqual<object>(reason, {
            _tag: "AcquireTimeout",
            timeoutMillis: 300,
            pool: { total: 1, idle: 0, busy: 1, waiting: 0, max: 1 }
          })
          assert.strictEqual(oldestHolder?.span, "sql.transaction in the holder")
          assert.isAtLeast(oldestHolder?.heldMillis ?? 0, 299)
          assert.match(error.message, /for \d+ ms by sql\.transaction in the holder/)
        }).pipe(Effect.provide(exhausted))
      )

      it.effect("until it is interrupted, and sends no BEGIN afterwards", () =>
        Effect.gen(function* () {
          const { stats } = yield* Database.Database
          let began = false
          const body = Effect.sync(() => {
            began = true
          })
          const { admin } = yield* TestServer
          const result = yield* whileHeld(
            within(200, admin.query("SELECT 1"))(Effect.timeoutOption(Transaction.run(body), "100 millis"))
          )
          assert.isTrue(Option.isNone(result))
          assert.strictEqual((yield* stats).waiting, 0)
          yield* Transaction.run(Effect.void)
          assert.isFalse(began)
        }).pipe(Effect.provide(exhausted))
      )
    })

    describe("takes options", () => {
      it.effect("of isolation, access mode and deferrability to the server", () =>
        Effect.gen(function* () {
          for (const isolation of ["read committed", "repeatable read", "serializable"] as const) {
            assert.strictEqual(
              yield* Transaction.run(show("transaction_isolation"), { isolation }),
              isolation
            )
          }
          const modes = Effect.all([show("transaction_read_only"), show("transaction_deferrable")])
          const run = Transaction.run(modes, { isolation: "serializable", readOnly: true, deferrable: true })
          assert.deepStrictEqual(yield* run, ["on", "on"])
          assert.deepStrictEqual(yield* Transaction.run(modes, { readOnly: false }), ["off", "off"])
        })
      )

      it.effect("and refuses writes in a read-only transaction, on a connection that stays", () =>
        Effect.gen(function* () {
          const { insert } = yield* makeTable
          const before = yield* processId
          const error = yield* Effect.flip(Transaction.run(insert(1), { readOnly: true }))
          assert.strictEqual(reasonOf(error), "ReadOnlyTransaction")
          assert.strictEqual(yield* processId, before)
        }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
      )

      it.effect("of timeouts for this transaction only", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const limits = Effect.all([show("statement_timeout"), show("lock_timeout")])
          const options = { statementTimeout: "200 millis", lockTimeout: "100 millis" } as const
          const inner = Transaction.run(
            Effect.all([limits, Transaction.run(limits, { lockTimeout: "25 millis" }), limits]),
            { lockTimeout: "50 millis" }
          )
          assert.deepStrictEqual(yield* Transaction.run(Effect.all([limits, inner, limits]), options), [
            ["200ms", "100ms"],
            [
              ["200ms", "50ms"],
              ["200ms", "25ms"],
              ["200ms", "50ms"]
            ],
            ["200ms", "100ms"]
          ])
          const slow = Transaction.run(sql`SELECT pg_sleep(10)`, options)
          assert.strictEqual(yield* failure(slow), "StatementTimeout")
          assert.deepStrictEqual(yield* limits, ["30s", "5s"])
        }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
      )

      it.effect("that a nested transaction cannot change, and says so", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            yield* insert(1)
            const error = yield* Effect.flip(
              Transaction.run(insert(2), { isolation: "serializable", readOnly: true })
            )
            assert.strictEqual(reasonOf(error), "InvalidRequest")
            assert.match(String(error), /isolation, readOnly/)
            yield* insert(3)
          })
          yield* Transaction.run(body, { isolation: "repeatable read" })
          assert.deepStrictEqual(yield* ids, [1, 3])
        })
      )
    })

    describe("inside another one is a savepoint", () => {
      it.effect("that is rolled back alone", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            yield* insert(1)
            yield* Effect.exit(Transaction.run(Effect.zipRight(insert(2), Effect.fail("no"))))
            yield* Effect.exit(Transaction.run(insert(1)))
            yield* Transaction.run(insert(3))
          })
          yield* Transaction.run(body)
          assert.deepStrictEqual(yield* ids, [1, 3])
        })
      )

      it.effect("that is released, a thousand times in one transaction", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { ids, insert } = yield* makeTable
          const openTransactions = Effect.map(
            sql<{ open: number }>`SELECT count(*)::int AS open FROM pg_locks
              WHERE pid = pg_backend_pid() AND locktype = 'transactionid'`,
            (rows) => rows[0]?.open
          )
          const body = Effect.gen(function* () {
            for (let id = 0; id < 1000; id++) {
              const nested = Transaction.run(
                id % 2 === 0 ? insert(id) : Effect.zipRight(insert(id), Effect.fail("no"))
              )
              yield* Effect.exit(nested)
            }
            return yield* openTransactions
          })
          assert.strictEqual(yield* Transaction.run(body), 1)
          assert.strictEqual((yield* ids).length, 500)
        })
      )

      it.effect("whose failed statement, caught, is a failure, and the transaction goes on", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            yield* insert(1)
            const error = yield* Effect.flip(
              Transaction.run(Effect.zipRight(insert(2), Effect.ignore(insert(1))))
            )
            assert.isTrue(
              DatabaseError.is(error) &&
                error.reason._tag === "TransactionRolledBack" &&
                error.reason.first?._tag === "UniqueViolation"
            )
            yield* insert(3)
          })
          yield* Transaction.run(body)
          assert.deepStrictEqual(yield* ids, [1, 3])
        })
      )

      it.effect("that siblings take turns for, and that no statement of the parent gets into", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const sibling = (id: number) =>
            Transaction.run(
              Effect.gen(function* () {
                yield* insert(id)
                yield* Effect.yieldNow()
                yield* Transaction.run(insert(id + 1000))
                yield* Effect.when(Effect.fail("no"), () => id % 2 === 1)
              })
            )
          const body = Effect.forEach(
            Array.from({ length: 40 }, (_, id) => id),
            (id) => Effect.zip(Effect.exit(sibling(id)), insert(id + 2000), { concurrent: true }),
            { concurrency: "unbounded" }
          )
          yield* Transaction.run(body)
          const even = Array.from({ length: 20 }, (_, half) => half * 2)
          assert.deepStrictEqual(yield* ids, [
            ...even,
            ...even.map((id) => id + 1000),
            ...Array.from({ length: 40 }, (_, id) => id + 2000)
          ])
        })
      )

      it.effect("that leaves the transaction usable when it is interrupted", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            yield* insert(1)
            const nested = Transaction.run(Effect.zipRight(insert(2), sql`SELECT pg_sleep(30)`))
            yield* Effect.timeoutOption(nested, "50 millis")
            yield* insert(3)
          })
          yield* Transaction.run(body)
          assert.deepStrictEqual(yield* ids, [1, 3])
        })
      )

      it.effect("whose turn is never lost, whenever its fiber is interrupted", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const body = Effect.gen(function* () {
            for (let round = 0; round < 200; round++) {
              const fibers = yield* Effect.forEach([1, 2, 3, 4], () =>
                Effect.fork(Transaction.run(Effect.void))
              )
              for (let step = 0; step < round % 7; step++) yield* Effect.yieldNow()
              yield* Fiber.interruptAll(fibers)
            }
            yield* insert(1)
          })
          yield* Transaction.run(body)
          assert.deepStrictEqual(yield* ids, [1])
        })
      )
    })

    describe("and interruption:", () => {
      it.effect(
        "a running statement is cancelled, the transaction rolled back, the connection used again",
        () =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            const { ids, insert } = yield* makeTable
            const before = yield* processId
            const { admin } = yield* TestServer
            yield* Transaction.run(Effect.zipRight(insert(1), sql`SELECT pg_sleep(3600)`)).pipe(
              Effect.timeoutOption("100 millis"),
              within(300, admin.query("SELECT 1"))
            )
            assert.deepStrictEqual(yield* ids, [])
            assert.strictEqual(yield* processId, before)
          }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
      )

      it.effect("of BEGIN, at any moment, costs no connection and no log record", () =>
        Effect.gen(function* () {
          const records: Array<LogRecord> = []
          const before = yield* processId
          yield* Effect.gen(function* () {
            for (let round = 0; round < 100; round++) {
              const fiber = yield* Effect.fork(Transaction.run(Effect.never))
              for (let step = 0; step < round % 10; step++) yield* Effect.yieldNow()
              yield* Fiber.interrupt(fiber)
            }
          }).pipe(Effect.provide(recordLogs(records)))
          assert.strictEqual(yield* processId, before)
          assert.notInclude(
            records.map(({ message }) => message).join("\n"),
            "checked in inside an open transaction"
          )
        }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
      )
    })

    describe("streams", () => {
      const series = (last: number) =>
        Effect.map(
          SqlClient.SqlClient,
          (sql) => sql<{ n: number }>`SELECT n::int FROM generate_series(1, ${last}::int) AS n`.stream
        )

      it.effect("rows of its own, with other statements between the batches", () =>
        Effect.gen(function* () {
          const { ids, insert } = yield* makeTable
          const numbers = yield* series(1000)
          const body = Stream.runForEach(numbers, ({ n }) => Effect.when(insert(n), () => n % 250 === 0))
          yield* Transaction.run(body)
          assert.deepStrictEqual(yield* ids, [250, 500, 750, 1000])
        })
      )

      it.effect("and goes on after one that was abandoned midway, failed or was interrupted", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { ids, insert } = yield* makeTable
          const numbers = yield* series(100_000)
          const body = Effect.gen(function* () {
            yield* Stream.runDrain(Stream.take(numbers, 3))
            yield* insert(1)
            yield* Effect.exit(Stream.runForEach(numbers, () => Effect.fail("the consumer's")))
            yield* insert(2)
            const failing = Transaction.run(
              Stream.runDrain(sql`SELECT 1 / (5000 - n) FROM generate_series(1, 10000) AS n`.stream)
            )
            assert.strictEqual(yield* failure(failing), "DataException")
            yield* insert(3)
            const slow = sql`SELECT pg_sleep(0.01) FROM generate_series(1, 10000)`.stream
            yield* Transaction.run(Stream.runDrain(slow)).pipe(Effect.timeoutOption("50 millis"))
            yield* insert(4)
            const cursors = yield* sql`SELECT name FROM pg_cursors WHERE name <> ''`
            assert.strictEqual(cursors.length, 0)
          })
          yield* Transaction.run(body)
          assert.deepStrictEqual(yield* ids, [1, 2, 3, 4])
        })
      )

      it.effect("outside of any transaction in one of their own", () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const { stats } = yield* Database.Database
          const { ids, name } = yield* makeTable
          const before = yield* processId
          const numbers = yield* series(100_000)
          assert.strictEqual(yield* Stream.runCount(numbers), 100_000)
          yield* Stream.runDrain(Stream.take(numbers, 3))
          yield* Effect.exit(Stream.runForEach(numbers, () => Effect.fail("the consumer's")))
          yield* Effect.timeoutOption(
            Stream.runDrain(sql`SELECT pg_sleep(0.01) FROM generate_series(1, 10000)`.stream),
            "50 millis"
          )
          const inserting = sql`INSERT INTO ${sql(name)} SELECT n FROM generate_series(1, 1000) AS n RETURNING id`
          yield* Effect.exit(Stream.runForEach(inserting.stream, () => Effect.fail("the consumer's")))
          assert.deepStrictEqual(yield* ids, [])
          yield* Stream.runDrain(Stream.take(inserting.stream, 1))
          assert.strictEqual((yield* ids).length, 1000)
          yield* eventually(
            "nothing is busy",
            Effect.map(stats, ({ busy }) => busy === 0)
          )
          assert.strictEqual(yield* processId, before)
        }).pipe(Effect.provide(databaseLayer({ maxConnections: 1 })))
      )
    })

    it.effect("is not for the statements of another client, which are refused", () =>
      Effect.gen(function* () {
        const { url } = yield* TestServer
        const sql = yield* SqlClient.SqlClient
        const stock = yield* PgClient.make({ url })
        const { ids, insert } = yield* makeTable
        const refused = yield* Transaction.run(
          Effect.gen(function* () {
            yield* insert(1)
            return yield* Effect.all([
              Effect.flip(stock`SELECT 1`),
              Effect.flip(Stream.runDrain(stock`SELECT 1`.stream)),
              Effect.flip(Effect.sandbox(stock.withTransaction(Effect.void)))
            ])
          })
        )
        for (const error of refused) assert.include(String(error), "not of this database")
        assert.deepStrictEqual(yield* ids, [1])
        // Outside it is its own.
        assert.deepStrictEqual(yield* stock`SELECT 1 AS n`, yield* sql`SELECT 1 AS n`)
      }).pipe(Effect.scoped, Effect.provide(Reactivity.layer))
    )

    it.effect("is joined by the batches of a resolver", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const { ids, insert, name } = yield* makeTable
        let batches = 0
        const byId = yield* SqlResolver.findById("ById", {
          Id: Schema.Number,
          Result: Schema.Struct({ id: Schema.Number, xid: Schema.String }),
          ResultId: ({ id }) => id,
          execute: (wanted) => {
            batches++
            return sql`SELECT id, txid_current()::text AS xid FROM ${sql(name)} WHERE ${sql.in("id", wanted)}`
          }
        })
        const body = Effect.gen(function* () {
          yield* insert(1)
          yield* insert(2)
          const [current] = yield* sql<{ xid: string }>`SELECT txid_current()::text AS xid`
          const found = yield* Effect.forEach([1, 2], byId.execute, { batching: true })
          assert.deepStrictEqual(found.map(Option.map(({ xid }) => xid)), [
            Option.some(current?.xid ?? ""),
            Option.some(current?.xid ?? "")
          ])
          return yield* Effect.fail("roll back")
        })
        yield* Effect.exit(Transaction.run(body))
        assert.strictEqual(batches, 1)
        assert.deepStrictEqual(yield* ids, [])
      })
    )
  }
)
