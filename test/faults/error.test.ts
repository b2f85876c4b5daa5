import { assert, describe } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Net from "node:net"
import * as Database from "../../src/Database.js"
import type { Settings } from "../../src/DatabaseConfig.js"
import { InvalidSettings } from "../../src/DatabaseConfig.js"
import { DatabaseError, type Disposition, reasonOf, type Retry } from "../../src/DatabaseError.js"
import { classify } from "../../src/errors/classify.js"
import { policy } from "../../src/errors/policy.js"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import { check, kill, makeRig, processId, running } from "./support.js"

interface Row {
  /** The kind that the error is exposed as. */
  readonly tag: string
  readonly retry: Retry
  readonly disposition: Disposition
}

const row = (tag: string, retry: Retry, disposition: Disposition): Row => ({ tag, retry, disposition })

/** The error table: SQLSTATE to kind, scope of a retry, and disposition of the connection. */
const table: Record<string, Row> = {
  "40001": row("SerializationFailure", "transaction", "keep"),
  "40P01": row("DeadlockDetected", "transaction", "keep"),
  "40000": row("SerializationFailure", "transaction", "keep"),
  OC000: row("SerializationFailure", "transaction", "keep"),
  OC001: row("SerializationFailure", "transaction", "keep"),
  "40002": row("IntegrityViolation", "never", "keep"),
  "40003": row("ServerConnectionException", "unknown", "destroy"),
  "08007": row("ServerConnectionException", "unknown", "destroy"),
  "55P03": row("LockTimeout", "never", "keep"),
  "57014": row("StatementCancelled", "never", "keep"),
  "25P03": row("IdleInTransactionTimeout", "never", "destroy"),
  "25P04": row("TransactionTimeout", "never", "destroy"),
  "57P05": row("IdleSessionTimeout", "unsent", "destroy"),
  "57P01": row("ServerShutdown", "unsent", "invalidate"),
  "57P02": row("ServerCrash", "unsent", "invalidate"),
  "57P03": row("ServerStarting", "unsent", "destroy"),
  "57P04": row("DatabaseUnavailable", "never", "invalidate"),
  "3D000": row("DatabaseUnavailable", "never", "invalidate"),
  "53300": row("TooManyConnections", "unsent", "destroy"),
  "53400": row("TooManyConnections", "unsent", "destroy"),
  "53000": row("ServerResources", "never", "invalidate"),
  "53100": row("ServerResources", "never", "invalidate"),
  "53200": row("ServerResources", "never", "invalidate"),
  "58000": row("ServerSystemError", "never", "invalidate"),
  "58030": row("ServerSystemError", "never", "invalidate"),
  F0000: row("ServerSystemError", "never", "invalidate"),
  XX000: row("ServerError", "never", "keep"),
  XX001: row("ServerError", "never", "keep"),
  "25006": row("ReadOnlyTransaction", "transaction", "invalidate"),
  "26000": row("StalePreparedStatement", "transaction", "keep"),
  "42P05": row("StalePreparedStatement", "transaction", "keep"),
  "0A000": row("FeatureNotSupported", "never", "keep"),
  "08P01": row("ProtocolViolation", "never", "destroy"),
  "08000": row("ServerConnectionException", "unsent", "destroy"),
  "08001": row("ServerConnectionException", "unsent", "destroy"),
  "08003": row("ServerConnectionException", "unsent", "destroy"),
  "08004": row("ServerConnectionException", "unsent", "destroy"),
  "08006": row("ServerConnectionException", "unsent", "destroy"),
  "23505": row("UniqueViolation", "never", "keep"),
  "23503": row("ForeignKeyViolation", "never", "keep"),
  "23001": row("ForeignKeyViolation", "never", "keep"),
  "23502": row("NotNullViolation", "never", "keep"),
  "23514": row("CheckViolation", "never", "keep"),
  "23P01": row("ExclusionViolation", "never", "keep"),
  "22001": row("ValueTooLong", "never", "keep"),
  "22003": row("OutOfRange", "never", "keep"),
  "22P02": row("InvalidInput", "never", "keep"),
  "22012": row("DataException", "never", "keep"),
  "42501": row("PermissionDenied", "never", "keep"),
  "42P01": row("UndefinedObject", "never", "keep"),
  "42703": row("UndefinedObject", "never", "keep"),
  "42601": row("SyntaxError", "never", "keep"),
  "42804": row("InvalidStatement", "never", "keep"),
  "28P01": row("AuthenticationFailed", "never", "destroy"),
  "28000": row("AuthenticationFailed", "never", "destroy"),
  P0001: row("RaisedException", "never", "keep")
}

const rowOf = (error: unknown): Row | string => {
  const reason = reasonOf(error)
  return reason === undefined ? `no DatabaseError: ${String(error)}` : { tag: reason._tag, ...policy(reason) }
}

const phaseOf = (error: unknown): string | undefined => {
  const reason = reasonOf(error)
  return reason !== undefined && "phase" in reason ? reason.phase : reason?._tag
}

/** Answers whoever connects with an error, as a server does that takes no connections yet. */
const refuseWith = (code: string) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.async<Net.Server>((resume) => {
        const fields = ["SFATAL", "VFATAL", `C${code}`, "Mnot yet", ""].map((field) => `${field}\0`).join("")
        const message = Buffer.alloc(5 + Buffer.byteLength(fields))
        message.write("E", 0)
        message.writeInt32BE(message.length - 1, 1)
        message.write(fields, 5)
        const server = Net.createServer((socket) => {
          socket.on("error", () => {})
          socket.once("data", () => socket.end(message, () => socket.destroy()))
        })
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
    ),
    (server) => {
      const address = server.address()
      const port = typeof address === "object" && address !== null ? address.port : 0
      return Redacted.make(`postgresql://nobody@127.0.0.1:${port}/none`)
    }
  )

const single = { maxConnections: 1, acquireTimeout: "20 seconds" } as const

describe("Errors", () => {
  for (const [code, expected] of Object.entries(table)) {
    check(
      `F12: ${code} raised by the server is ${expected.tag}: retry ${expected.retry}, connection ${expected.disposition}`,
      Effect.gen(function* () {
        const { sql } = yield* makeRig(single)
        const before = yield* processId(sql)
        const error = yield* Effect.flip(
          sql.unsafe(`DO $$ BEGIN RAISE EXCEPTION 'raised' USING ERRCODE = '${code}'; END $$`)
        )
        assert.deepStrictEqual(rowOf(error), expected)
        const reason = reasonOf(error)
        assert.strictEqual(reason !== undefined && "code" in reason ? reason.code : "", code)
        assert.strictEqual((yield* processId(sql)) === before, expected.disposition === "keep")
      })
    )
  }

  check(
    "F12: FATAL and PANIC destroy the connection whatever the code",
    Effect.sync(() => {
      for (const severity of ["FATAL", "PANIC"]) {
        for (const code of Object.keys(table)) {
          assert.notStrictEqual(policy(classify({ code, severity, message: "" })).disposition, "keep")
        }
      }
    })
  )

  check(
    "F12: real violations carry schema, table, column and constraint",
    Effect.gen(function* () {
      const { sql } = yield* makeRig(single)
      yield* sql`CREATE TABLE parent (id int CONSTRAINT parent_pkey PRIMARY KEY)`
      yield* sql`CREATE TABLE child (
        id int CONSTRAINT child_unique UNIQUE,
        parent int CONSTRAINT child_parent REFERENCES parent ON DELETE RESTRICT,
        size int NOT NULL CONSTRAINT child_size CHECK (size > 0),
        at int4range,
        name varchar(3),
        CONSTRAINT child_at EXCLUDE USING gist (at WITH &&)
      )`
      yield* sql`INSERT INTO parent VALUES (1)`
      yield* sql`INSERT INTO child VALUES (1, 1, 1, '[1,3)', 'a')`
      const cases = {
        "UniqueViolation child_unique": sql`INSERT INTO child VALUES (1, 1, 1)`,
        "ForeignKeyViolation child_parent": sql`INSERT INTO child VALUES (2, 9, 1)`,
        "ForeignKeyViolation child_parent (RESTRICT)": sql`DELETE FROM parent`,
        "CheckViolation child_size": sql`INSERT INTO child VALUES (3, 1, 0)`,
        "ExclusionViolation child_at": sql`INSERT INTO child VALUES (4, 1, 1, '[2,4)')`
      }
      for (const [name, attempt] of Object.entries(cases)) {
        const reason = reasonOf(yield* Effect.flip(attempt))
        const [tag, constraint] = name.split(" ")
        assert.strictEqual(reason?._tag, tag)
        assert.strictEqual(
          reason !== undefined && "constraint" in reason ? reason.constraint : "",
          constraint
        )
        assert.strictEqual(reason !== undefined && "table" in reason ? reason.table : "", "child")
        assert.strictEqual(reason !== undefined && "schema" in reason ? reason.schema : "", "public")
      }
      const missing = reasonOf(yield* Effect.flip(sql`INSERT INTO child (id) VALUES (5)`))
      assert.strictEqual(missing?._tag, "NotNullViolation")
      assert.strictEqual(missing !== undefined && "column" in missing ? missing.column : "", "size")
    })
  )

  check(
    "F12: a statement timeout, a lock timeout, a foreign cancel and our own are told apart",
    Effect.gen(function* () {
      const rig = yield* makeRig({ ...single, statementTimeout: "300 millis", lockTimeout: "100 millis" })
      const { admin, sql } = rig
      const timeout = yield* Effect.flip(sql`SELECT pg_sleep(5)`)
      assert.deepStrictEqual(rowOf(timeout), row("StatementTimeout", "never", "keep"))
      yield* sql`CREATE TABLE t (id int)`
      yield* admin.query("BEGIN; LOCK TABLE t")
      const lock = yield* Effect.flip(sql`SELECT * FROM t`)
      assert.deepStrictEqual(rowOf(lock), row("LockTimeout", "never", "keep"))
      yield* admin.query("COMMIT")
      const pid = yield* processId(sql)
      const fiber = yield* Effect.fork(Effect.flip(sql`SELECT pg_sleep(0.25) AS foreign_cancel`))
      yield* running(rig, "foreign_cancel")
      yield* admin.query("SELECT pg_cancel_backend($1)", [pid])
      assert.deepStrictEqual(rowOf(yield* Fiber.join(fiber)), row("StatementCancelled", "never", "keep"))
      const own = yield* Effect.fork(sql`SELECT pg_sleep(0.25) AS own_cancel`)
      yield* running(rig, "own_cancel")
      assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(own)))
    })
  )

  check(
    "F12: a killed backend, an idle transaction's end, a full server and a wrong password are what they are",
    Effect.gen(function* () {
      const rig = yield* makeRig({ ...single, idleInTransactionTimeout: "100 millis" })
      const { admin, name, sql, transact } = rig
      const pid = yield* processId(sql)
      const fiber = yield* Effect.fork(Effect.flip(sql`SELECT pg_sleep(5) AS victim`))
      yield* running(rig, "victim")
      yield* kill(rig, pid)
      assert.deepStrictEqual(rowOf(yield* Fiber.join(fiber)), row("ServerShutdown", "unsent", "invalidate"))
      const idle = yield* Effect.flip(
        transact(Effect.zipRight(sql`SELECT 1`, Effect.zipRight(Effect.sleep("400 millis"), sql`SELECT 2`)))
      )
      assert.deepStrictEqual(rowOf(idle), row("IdleInTransactionTimeout", "never", "destroy"))

      yield* admin.query(`CREATE ROLE "${name}" LOGIN PASSWORD 'right' CONNECTION LIMIT 0`)
      const connect = (password: string) => {
        const url = new URL(Redacted.value(rig.url))
        url.username = name
        url.password = password
        const layer = Database.layer({ url: url.toString(), connectTimeout: "1 second", minConnections: 0 })
        return Effect.flip(Effect.scoped(Layer.build(layer)))
      }
      assert.deepStrictEqual(rowOf(yield* connect("right")), row("TooManyConnections", "unsent", "destroy"))
      assert.deepStrictEqual(rowOf(yield* connect("wrong")), row("AuthenticationFailed", "never", "destroy"))
      yield* admin.query(`DROP ROLE "${name}"`)
    })
  )

  check(
    "F12: 25P02 carries the first error; 25006 of a transaction that asked to be read only leaves the pool alone",
    Effect.gen(function* () {
      const { sql, transact } = yield* makeRig(single)
      yield* sql`CREATE TABLE t (id int)`
      const aborted = yield* Effect.flip(
        transact(
          Effect.gen(function* () {
            yield* Effect.ignore(sql`SELECT 1 / 0`)
            yield* sql`SELECT 2`
          })
        )
      )
      const reason = reasonOf(aborted)
      assert.strictEqual(reason?._tag, "TransactionAborted")
      assert.strictEqual(reason?._tag === "TransactionAborted" ? reason.first?._tag : "", "DataException")
      const before = yield* processId(sql)
      const readOnly = yield* Effect.flip(transact(sql`INSERT INTO t VALUES (1)`, { readOnly: true }))
      assert.strictEqual(reasonOf(readOnly)?._tag, "ReadOnlyTransaction")
      assert.strictEqual(yield* processId(sql), before)
    })
  )

  check(
    "F12: a stale prepared statement is prepared anew, unless a transaction did something before it",
    Effect.gen(function* () {
      const { admin, sql, transact } = yield* makeRig(single)
      yield* sql`CREATE TABLE t (id int)`
      const read = sql`SELECT * FROM t WHERE id > ${0}`
      yield* Effect.all([read, read, read])
      yield* admin.query("ALTER TABLE t ADD COLUMN more int")
      assert.deepStrictEqual(yield* read, [])
      yield* Effect.all([read, read, read])
      yield* admin.query("ALTER TABLE t ADD COLUMN again int")
      const stale = yield* Effect.flip(transact(Effect.zipRight(sql`SELECT 1`, read)))
      assert.deepStrictEqual(rowOf(stale), row("StalePreparedStatement", "transaction", "keep"))
      assert.deepStrictEqual(yield* transact(read), [])
    })
  )

  for (const code of ["57P03", "53300"]) {
    check(
      `F12: ${code} while dialing is dialed again, less and less often, until the server takes connections`,
      Effect.gen(function* () {
        const { database, proxy, sql, url } = yield* makeRig({ ...single, connectTimeout: "10 seconds" })
        yield* proxy.retarget(yield* refuseWith(code))
        yield* proxy.cutAll("reset")
        yield* eventually(
          "no connection is left",
          Effect.map(database.stats, ({ total }) => total === 0)
        )
        const started = performance.now()
        const refusals: Array<number> = []
        const refused = yield* proxy.when((message) => {
          const isRefusal = Proxy.server("ErrorResponse", new RegExp(code))(message)
          if (isRefusal) refusals.push(performance.now() - started)
          return isRefusal && refusals.length === 4
        }, Proxy.pass)
        const waiting = yield* Effect.fork(sql`SELECT 1 AS one`)
        yield* refused.reached
        yield* proxy.retarget(url)
        assert.deepStrictEqual(yield* Fiber.join(waiting), [{ one: 1 }])
        // 50, 100 and 200 ms, each by a fifth more or less.
        assert.isAtLeast(refusals[3] ?? 0, 0.8 * (50 + 100 + 200))
      })
    )
  }

  check(
    "F12: one connection that is lost is one; two that are lost at once invalidate the idle ones, too",
    Effect.gen(function* () {
      const { database, proxy, sql } = yield* makeRig({ maxConnections: 4, minConnections: 4 })
      const invalidated: Array<unknown> = []
      yield* Effect.forkScoped(
        Stream.runForEach(database.events, (event) =>
          Effect.sync(() => event._tag === "Invalidated" && invalidated.push(event.error))
        )
      )
      const pids = () =>
        Effect.map(
          Effect.all(
            Array.from(
              { length: 4 },
              () => sql<{ pid: number }>`SELECT pg_backend_pid() AS pid, pg_sleep(0.1)`
            ),
            { concurrency: 4 }
          ),
          (rows) => rows.flat().map(({ pid }) => pid)
        )
      const lose = (count: number) =>
        Effect.gen(function* () {
          const moment = yield* proxy.when(Proxy.statement(/'lost'/), Proxy.cutBefore("reset"), {
            times: count
          })
          yield* Effect.all(
            Array.from({ length: count }, () => Effect.flip(sql`SELECT 'lost'`)),
            { concurrency: count }
          )
          yield* moment.off
        })
      const first = yield* pids()
      yield* lose(1)
      const second = yield* pids()
      assert.strictEqual(second.filter((pid) => first.includes(pid)).length, 3)
      assert.strictEqual(invalidated.length, 0)
      // The first loss is long ago.
      yield* Effect.sleep("1100 millis")
      yield* lose(2)
      const third = yield* pids()
      assert.deepStrictEqual(
        third.filter((pid) => second.includes(pid)),
        []
      )
      assert.isAtLeast(invalidated.length, 1)
    })
  )

  check(
    "F12: a server that ends the session before COMMIT has kept nothing: the transaction may run again, and does with retry; a single statement may not",
    Effect.gen(function* () {
      const { admin, sql, transact } = yield* makeRig(single)
      yield* sql`CREATE TABLE t (id int)`
      const end = Effect.asVoid(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
      const decisions = (error: unknown) =>
        DatabaseError.is(error) ? [error.reason._tag, error.retry, error.disposition] : []
      const alone = yield* Effect.flip(end)
      assert.deepStrictEqual(decisions(alone), ["ServerShutdown", "unsent", "invalidate"])
      const inside = yield* Effect.flip(transact(Effect.zipRight(sql`INSERT INTO t VALUES (1)`, end)))
      assert.deepStrictEqual(decisions(inside), ["ServerShutdown", "transaction", "invalidate"])
      let tries = 0
      yield* transact(
        Effect.zipRight(
          sql`INSERT INTO t VALUES (2)`,
          Effect.suspend(() => (++tries === 1 ? end : Effect.void))
        ),
        { retry: { base: "1 millis" } }
      )
      assert.strictEqual(tries, 2)
      assert.deepStrictEqual(yield* admin.query("SELECT id FROM t"), [{ id: 2 }])
    })
  )

  for (const how of ["reset", "end"] as const) {
    check(
      `F12: a socket's end (${how}) is ConnectionLost with its phase: dial, acquire, sent, commit`,
      Effect.gen(function* () {
        const { database, proxy, sql, transact } = yield* makeRig({
          ...single,
          acquireTimeout: "300 millis"
        })
        yield* proxy.when(Proxy.statement(/'sent'/), Proxy.cutBefore(how))
        const sent = reasonOf(yield* Effect.flip(sql`SELECT 'sent'`))
        assert.strictEqual(sent?._tag === "ConnectionLost" ? sent.phase : sent?._tag, "sent")
        yield* proxy.when(Proxy.statement(/^COMMIT/), Proxy.cutBefore(how))
        const commit = yield* Effect.flip(transact(sql`SELECT 1`))
        assert.deepStrictEqual(rowOf(commit), row("CommitOutcomeUnknown", "unknown", "destroy"))
        const dial = yield* proxy.when(Proxy.client("StartupMessage"), Proxy.cutBefore(how), { times: 10 })
        const refused = yield* Effect.flip(sql`SELECT 1`)
        assert.deepStrictEqual(rowOf(refused), row("ConnectFailed", "unsent", "destroy"))
        assert.strictEqual(phaseOf(refused), "dial")
        yield* dial.off
        const errors: Array<unknown> = []
        const body = Effect.gen(function* () {
          yield* sql`SELECT 1`
          yield* proxy.cutAll(how)
          yield* eventually(
            "the pool has noticed",
            Effect.map(database.stats, ({ total }) => total === 0)
          )
          errors.push(yield* Effect.flip(sql`SELECT 2`))
        })
        // Neither the statement nor COMMIT was sent.
        errors.push(yield* Effect.flip(transact(body)))
        assert.strictEqual(errors.length, 2)
        for (const error of errors) {
          assert.instanceOf(error, DatabaseError)
          assert.deepStrictEqual(rowOf(error), row("ConnectionLost", "unsent", "destroy"))
          assert.strictEqual(phaseOf(error), "acquire")
        }
      })
    )
  }

  check(
    "F15: contradictory settings fail at the Layer's build, all of them in one error",
    Effect.gen(function* () {
      const url = "postgresql://user:secret@127.0.0.1:1/none"
      const problems = (settings: Omit<Settings, "url">) =>
        Effect.map(Effect.flip(Effect.scoped(Layer.build(Database.layer({ url, ...settings })))), (error) => {
          assert.instanceOf(error, InvalidSettings)
          assert.notInclude(error.message, "secret")
          return error instanceof InvalidSettings ? error.problems.map(({ setting }) => setting) : []
        })
      assert.deepStrictEqual(yield* problems({ idleTimeout: "2 hours", connectionTTL: "1 hour" }), [
        "idleTimeout"
      ])
      assert.deepStrictEqual(yield* problems({ lockTimeout: "40 seconds" }), ["lockTimeout"])
      assert.deepStrictEqual(yield* problems({ minConnections: 20 }), ["minConnections"])
      const all = {
        minConnections: 20,
        idleTimeout: "2 hours",
        lockTimeout: "40 seconds",
        acquireTimeout: 0,
        connectTimeout: "off",
        validateAfterIdle: "soon",
        applicationName: "with\nnewline"
      }
      assert.sameMembers([...(yield* problems(all as unknown as Omit<Settings, "url">))], Object.keys(all))
      assert.sameMembers(
        [
          ...(yield* problems({ ...all, url: "mysql://x", directUrl: "nothing" } as unknown as Omit<
            Settings,
            "url"
          >))
        ],
        [...Object.keys(all), "url", "directUrl"]
      )
    })
  )
})
