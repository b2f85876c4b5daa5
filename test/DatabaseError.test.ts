import { SqlError } from "@effect/sql/SqlError"
import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it, layer } from "./support/it.js"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as util from "node:util"
import * as DatabaseError from "../src/DatabaseError.js"
import { classify } from "../src/errors/classify.js"
import { policy } from "../src/errors/policy.js"
import { testLayer } from "./support/database.js"

class Taken extends Data.TaggedError("Taken")<{ readonly constraint: string | undefined }> {}

const reasonOf = (error: unknown) => {
  if (!DatabaseError.DatabaseError.is(error)) throw new Error(`not a DatabaseError: ${String(error)}`)
  return error.reason
}

/** SQLSTATE, the reason it becomes, what may be retried, what becomes of the connection. */
const table = [
  ["40001", "SerializationFailure", "transaction", "keep"],
  ["40P01", "DeadlockDetected", "transaction", "keep"],
  ["55P03", "LockTimeout", "never", "keep"],
  ["57014", "StatementCancelled", "never", "keep"],
  ["53300", "TooManyConnections", "unsent", "destroy"],
  ["25006", "ReadOnlyTransaction", "transaction", "invalidate"],
  ["57P03", "ServerStarting", "unsent", "destroy"],
  ["57P01", "ServerShutdown", "unsent", "invalidate"],
  ["57P02", "ServerCrash", "unsent", "invalidate"],
  ["53100", "ServerResources", "never", "invalidate"],
  ["58030", "ServerSystemError", "never", "invalidate"],
  ["08006", "ServerConnectionException", "unsent", "destroy"],
  ["08P01", "ProtocolViolation", "never", "destroy"],
  ["23505", "UniqueViolation", "never", "keep"],
  ["23503", "ForeignKeyViolation", "never", "keep"],
  ["23001", "ForeignKeyViolation", "never", "keep"],
  ["23502", "NotNullViolation", "never", "keep"],
  ["23514", "CheckViolation", "never", "keep"],
  ["23P01", "ExclusionViolation", "never", "keep"],
  ["23000", "IntegrityViolation", "never", "keep"],
  ["22001", "ValueTooLong", "never", "keep"],
  ["22003", "OutOfRange", "never", "keep"],
  ["22P02", "InvalidInput", "never", "keep"],
  ["22012", "DataException", "never", "keep"],
  ["42501", "PermissionDenied", "never", "keep"],
  ["42P01", "UndefinedObject", "never", "keep"],
  ["42P07", "DuplicateObject", "never", "keep"],
  ["42601", "SyntaxError", "never", "keep"],
  ["42P17", "InvalidStatement", "never", "keep"],
  ["0A000", "FeatureNotSupported", "never", "keep"],
  ["26000", "StalePreparedStatement", "transaction", "keep"],
  ["28P01", "AuthenticationFailed", "never", "destroy"],
  ["3D000", "DatabaseUnavailable", "never", "invalidate"],
  ["P0001", "RaisedException", "never", "keep"],
  ["XX000", "ServerError", "never", "keep"],
  ["ZZ999", "ServerError", "never", "keep"]
] as const

layer(Layer.merge(testLayer(), Logger.remove(Logger.defaultLogger)), { excludeTestServices: true })(
  "A DatabaseError",
  (it) => {
    it.effect("says what the server raised, what may be retried, and what becomes of the connection", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        for (const [code, tag, retry, disposition] of table) {
          const error = yield* Effect.flip(
            sql.unsafe(`DO $$ BEGIN RAISE EXCEPTION 'raised' USING ERRCODE = '${code}'; END $$`)
          )
          const reason = reasonOf(error)
          assert.instanceOf(error, SqlError)
          assert.strictEqual(error._tag, "SqlError")
          assert.deepStrictEqual([code, reason._tag, policy(reason)], [code, tag, { retry, disposition }])
        }
      })
    )

    it.effect("names schema, table, column and constraint, and hides values everywhere", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE account (
          email text NOT NULL CONSTRAINT account_email_key UNIQUE,
          age int CONSTRAINT account_age_check CHECK (age > 0)
        )`
        yield* sql`INSERT INTO account VALUES ('jane@example.org', 1)`
        const unique = yield* Effect.flip(sql`INSERT INTO account VALUES (${"jane@example.org"}, 1)`)
        assert.deepInclude(reasonOf(unique), {
          _tag: "UniqueViolation",
          code: "23505",
          severity: "ERROR",
          schema: "public",
          table: "account",
          constraint: "account_email_key"
        })
        const missing = yield* Effect.flip(sql`INSERT INTO account VALUES (NULL, ${4711})`)
        assert.deepInclude(reasonOf(missing), { _tag: "NotNullViolation", table: "account", column: "email" })
        const young = yield* Effect.flip(sql`INSERT INTO account VALUES ('x', ${-4711})`)
        assert.deepInclude(reasonOf(young), { _tag: "CheckViolation", constraint: "account_age_check" })
        const wrong = yield* Effect.flip(
          sql`INSERT INTO account VALUES ('y', ${"jane@example.org"}::text::int)`
        )
        assert.strictEqual(reasonOf(wrong)._tag, "InvalidInput")
        for (const error of [unique, missing, young, wrong]) {
          const printed = [
            error.message,
            Cause.pretty(Cause.fail(error)),
            JSON.stringify(error),
            util.inspect(error, { depth: 20 }),
            String(error)
          ].join("\n")
          assert.notInclude(printed, "jane@example.org")
          assert.notInclude(printed, "4711")
        }
      })
    )

    it.effect("becomes an error of the domain by the exact name of its constraint", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE parent (id int CONSTRAINT parent_key PRIMARY KEY)`
        yield* sql`CREATE TABLE child (
          id int NOT NULL CONSTRAINT child_parent_fkey REFERENCES parent CONSTRAINT child_id_check CHECK (id < 100),
          during int4range,
          CONSTRAINT child_during_excl EXCLUDE USING gist (during WITH &&)
        )`
        yield* sql`INSERT INTO parent VALUES (1)`
        yield* sql`INSERT INTO child VALUES (1, '[1,5)')`
        const taken = (reason: { readonly constraint: string | undefined }) =>
          new Taken({ constraint: reason.constraint })
        const unique = sql`INSERT INTO parent VALUES (1)`
        const foreign = sql`INSERT INTO child VALUES (2)`
        const check = sql`INSERT INTO child VALUES (100)`
        const exclusion = sql`INSERT INTO child VALUES (1, '[4,6)')`
        const missing = sql`INSERT INTO child VALUES (NULL)`
        const caught = yield* Effect.all([
          Effect.flip(DatabaseError.catchUniqueViolation(unique, "parent_key", taken)),
          Effect.flip(foreign.pipe(DatabaseError.catchForeignKeyViolation("child_parent_fkey", taken))),
          Effect.flip(check.pipe(DatabaseError.catchCheckViolation("child_id_check", taken))),
          Effect.flip(exclusion.pipe(DatabaseError.catchExclusionViolation("child_during_excl", taken))),
          Effect.flip(missing.pipe(DatabaseError.catchNotNullViolation("id", taken)))
        ])
        assert.deepStrictEqual(
          caught.map((error) => error._tag),
          ["Taken", "Taken", "Taken", "Taken", "Taken"]
        )
        const passed = yield* Effect.all([
          Effect.flip(DatabaseError.catchUniqueViolation(unique, "parent_ke", taken)),
          Effect.flip(DatabaseError.catchUniqueViolation(unique, "PARENT_KEY", taken)),
          Effect.flip(DatabaseError.catchForeignKeyViolation(unique, "parent_key", taken)),
          Effect.flip(DatabaseError.catchCheckViolation(foreign, "child_parent_fkey", taken))
        ])
        assert.deepStrictEqual(
          passed.map((error) => error._tag),
          ["SqlError", "SqlError", "SqlError", "SqlError"]
        )
      })
    )

    it.effect("is caught by its reason, and an error of another kind passes", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const division = sql`SELECT 1 / 0`
        const code = DatabaseError.catchReason(division, "DataException", ({ code }) => Effect.succeed(code))
        assert.strictEqual(yield* code, "22012")
        const other = Effect.flip(DatabaseError.catchReason(division, "SyntaxError", () => Effect.void))
        assert.strictEqual(reasonOf(yield* other)._tag, "DataException")
        const own = new Taken({ constraint: "x" })
        const unrelated = Effect.fail(own).pipe(DatabaseError.catchReason("SyntaxError", () => Effect.void))
        assert.strictEqual(yield* Effect.flip(unrelated), own)
      })
    )
  }
)

/** What servers say in the languages of their catalogs of messages. */
const translations = [
  {
    severity: "ERROR",
    changed: "cached plan must not change result type",
    conflict: "canceling statement due to conflict with recovery",
    deadlock: "deadlock detected",
    lock: "canceling statement due to lock timeout",
    timeout: "canceling statement due to statement timeout",
    cancel: "canceling statement due to user request"
  },
  {
    severity: "FEHLER",
    changed: "gecachter Plan darf den Ergebnistyp nicht ändern",
    conflict: "storniere Anfrage wegen Konflikt mit der Wiederherstellung",
    deadlock: "Verklemmung (Deadlock) entdeckt",
    lock: "storniere Anfrage wegen Zeitüberschreitung einer Sperre",
    timeout: "storniere Anfrage wegen Zeitüberschreitung der Anfrage",
    cancel: "storniere Anfrage wegen Benutzeraufforderung"
  },
  {
    severity: "ERRORE",
    changed: "il cached plan non deve cambiare il tipo di risultato",
    conflict: "annullamento dell'istruzione a causa di un conflitto con il ripristino",
    deadlock: "deadlock rilevato",
    lock: "annullamento dell'istruzione a causa di timeout di lock",
    timeout: "annullamento dell'istruzione a causa di timeout",
    cancel: "annullamento dell'istruzione su richiesta dell'utente"
  },
  {
    severity: "エラー",
    changed: "キャッシュされた実行計画は結果型を変更してはなりません",
    conflict: "リカバリとの競合によりステートメントをキャンセルしています",
    deadlock: "デッドロックを検出しました",
    lock: "ロックのタイムアウトのためステートメントをキャンセルしています",
    timeout: "ステートメントのタイムアウトのためステートメントをキャンセルしています",
    cancel: "ユーザーからの要求により文をキャンセルしています"
  }
]

describe("The reason of an error", () => {
  it("says in its message what to do about it", () => {
    const pool = { total: 1, idle: 0, busy: 1, waiting: 3, max: 1 }
    const oldestHolder = { span: "orders", heldMillis: 5012 }
    const raised = (code: string) => classify({ code })
    const cases: ReadonlyArray<readonly [DatabaseError.Reason, RegExp]> = [
      [classify({ code: "57014" }, undefined, true), /raise statementTimeout/],
      [raised("55P03"), /raise lockTimeout/],
      [raised("25P03"), /raise idleInTransactionTimeout/],
      [raised("40001"), /option retry/],
      [raised("40P01"), /option retry/],
      [raised("53300"), /Lower maxConnections/],
      [raised("25006"), /primary/],
      [raised("28P01"), /pg_hba/],
      [raised("26000"), /set prepare to false/],
      [
        { _tag: "AcquireTimeout", timeoutMillis: 5000, pool, oldestHolder },
        /1 of 1 .* for 5012 ms by orders.*raise maxConnections or acquireTimeout/
      ],
      [
        { _tag: "Overloaded", pool, oldestHolder: undefined },
        /3 waiting\).*raise maxConnections or maxWaiting/
      ],
      [{ _tag: "PoolClosed" }, /keep the scope/],
      [{ _tag: "ConnectionLost", phase: "acquire", systemCode: undefined }, /can be run again/],
      [{ _tag: "ConnectionLost", phase: "sent", systemCode: "ECONNRESET" }, /ECONNRESET.*not known/],
      [
        { _tag: "CommitOutcomeUnknown", transactionId: "7", systemCode: undefined },
        /ask with Transaction\.resolve/
      ],
      [{ _tag: "CommitOutcomeUnknown", transactionId: undefined, systemCode: undefined }, /option resolvable/]
    ]
    for (const [reason, expected] of cases) {
      const error = new DatabaseError.DatabaseError({ reason, operation: "execute" })
      assert.match(error.message, expected)
    }
  })

  it("is found behind the SqlError of another client", () => {
    const raw = Object.assign(new Error("duplicate key"), {
      code: "23505",
      severity: "ERROR",
      constraint: "k"
    })
    assert.deepInclude(DatabaseError.reasonOf(new SqlError({ cause: raw, message: "failed" })), {
      _tag: "UniqueViolation",
      constraint: "k"
    })
    assert.isUndefined(DatabaseError.reasonOf(new Error("no code")))
    assert.isUndefined(DatabaseError.reasonOf(Object.assign(new Error("a system's"), { code: "EPIPE" })))
  })

  it("destroys the connection when it is FATAL, whatever the code", () => {
    const reason = classify({ code: "XX000", severity: "FATAL" })
    assert.deepStrictEqual(policy(reason), { retry: "never", disposition: "destroy" })
  })

  it("is the same in every language of the server's messages", () => {
    for (const { changed, conflict, deadlock, lock, timeout, cancel, severity } of translations) {
      const tagOf = (code: string, routine: string, message: string, isOverdue?: boolean) =>
        classify({ code, routine, message, severity }, undefined, isOverdue)._tag
      assert.deepStrictEqual(
        [
          tagOf("0A000", "RevalidateCachedQuery", changed),
          tagOf("0A000", "ExecInitPartitionInfo", changed),
          tagOf("40001", "ProcessInterrupts", conflict),
          tagOf("40001", "ProcessRecoveryConflictInterrupt", conflict),
          tagOf("40001", "ExecUpdate", conflict),
          tagOf("40P01", "DeadLockReport", deadlock),
          tagOf("55P03", "ProcessInterrupts", lock),
          tagOf("57014", "ProcessInterrupts", timeout, true),
          tagOf("57014", "ProcessInterrupts", cancel, false),
          // What nobody measured, and what has a limit that nobody knows.
          tagOf("57014", "ProcessInterrupts", timeout),
          tagOf("57014", "ProcessInterrupts", cancel)
        ],
        [
          "StalePreparedStatement",
          "FeatureNotSupported",
          "ReplicaConflict",
          "ReplicaConflict",
          "SerializationFailure",
          "DeadlockDetected",
          "LockTimeout",
          "StatementTimeout",
          "StatementCancelled",
          "StatementCancelled",
          "StatementCancelled"
        ]
      )
    }
  })

  it("does not say of another client's statement that its time was over, which nobody measured, but shows what the server says", () => {
    for (const { timeout } of translations) {
      const error = Object.assign(new Error(timeout), { code: "57014", severity: "ERROR" })
      assert.strictEqual(DatabaseError.reasonOf(error)?._tag, "StatementCancelled")
      assert.strictEqual(DatabaseError.shownOf(error).message, timeout)
    }
  })

  it("makes the retry of what was lost after COMMIT unknown", () => {
    const lost = (phase: DatabaseError.Phase) =>
      policy({ _tag: "ConnectionLost", phase, systemCode: undefined }).retry
    assert.strictEqual(lost("commit"), "unknown")
    assert.strictEqual(lost("sent"), "unsent")
  })
})
