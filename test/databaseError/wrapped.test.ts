import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { assert, describe, it, layer } from "../support/it.js"
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as util from "node:util"
import * as DatabaseError from "../../src/DatabaseError.js"
import { classify } from "../../src/errors/classify.js"
import { testLayer } from "../support/database.js"

class Taken extends Data.TaggedError("Taken")<{ readonly cause?: unknown }> {}

/** What a library throws that keeps the client's error as its cause, and has no tag. */
class LibraryError extends Error {
  constructor(cause: unknown) {
    super("Failed query", { cause })
  }
}

const missing = new DatabaseError.DatabaseError({
  operation: "execute",
  reason: classify({ code: "42P01", severity: "ERROR", routine: "parserOpenTable" })
})

/** What an error has besides its message. */
const fieldsOf = (error: unknown) => Object.fromEntries(Object.entries(error ?? {}))

const tagOf = (error: unknown) => DatabaseError.reasonOf(error)?._tag

describe("The reason of a wrapped error", () => {
  it("is found in every form that Effect gives a failure", async () => {
    const failed = Effect.fail(missing)
    const thrown = await Effect.runPromise(failed).catch((error: unknown) => error)
    const forms: Readonly<Record<string, unknown>> = {
      "a FiberFailure": thrown,
      "a FiberFailure of a defect": await Effect.runPromise(Effect.die(missing)).catch(
        (error: unknown) => error
      ),
      "an Exit": Effect.runSyncExit(failed),
      "a Cause": Cause.fail(missing),
      "a Cause of a defect": Cause.die(new LibraryError(missing)),
      "a sequential Cause": Cause.sequential(Cause.interrupt(missing as never), Cause.fail(missing)),
      "a parallel Cause": Cause.parallel(
        Cause.die("other"),
        Cause.parallel(Cause.empty, Cause.fail(missing))
      ),
      "an UnknownException": new Cause.UnknownException(missing),
      "an error thrown over and over": new LibraryError(new LibraryError(thrown))
    }
    for (const [form, error] of Object.entries(forms))
      assert.strictEqual(tagOf(error), "UndefinedObject", form)
    assert.isUndefined(DatabaseError.reasonOf(Exit.succeed(1)))
  })

  it("is found by the cause alone, which libraries throw without the error", () => {
    for (const error of [
      missing.cause,
      new LibraryError(missing.cause),
      new SqlError({ cause: new LibraryError(missing.cause) }),
      new AggregateError([new Error("another"), new LibraryError(missing.cause)])
    ]) {
      assert.strictEqual(tagOf(error), "UndefinedObject")
    }
  })

  it("is the failure's where a Cause also has a defect, and the nearest one where errors are nested", () => {
    const lost: DatabaseError.Reason = { _tag: "ConnectionLost", phase: "commit", systemCode: "EPIPE" }
    const inner = new DatabaseError.DatabaseError({ operation: "commit", reason: lost })
    const unknown = new DatabaseError.DatabaseError({
      operation: "commit",
      reason: { _tag: "CommitOutcomeUnknown", transactionId: "7", systemCode: "EPIPE" },
      cause: inner
    })
    assert.strictEqual(
      tagOf(Cause.sequential(Cause.die(missing), Cause.fail(unknown))),
      "CommitOutcomeUnknown"
    )
    assert.strictEqual(tagOf(new LibraryError(unknown.cause)), "CommitOutcomeUnknown")
    assert.strictEqual(tagOf(unknown.cause.cause), "ConnectionLost")
  })

  it("is looked for once in errors that are their own cause", () => {
    const own = new Error("its own cause")
    own.cause = own
    const left = new LibraryError(undefined)
    const right = new AggregateError([left, left])
    left.cause = right
    assert.isUndefined(DatabaseError.reasonOf(own))
    assert.isUndefined(DatabaseError.reasonOf(right))
    right.errors.push(missing)
    assert.strictEqual(tagOf(left), "UndefinedObject")
  })
})

layer(Layer.merge(testLayer(), Logger.remove(Logger.defaultLogger)), { excludeTestServices: true })(
  "The cause of a DatabaseError",
  (it) => {
    it.effect("has what pg's error has and is no secret, in one line without a stack", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE account (email text NOT NULL CONSTRAINT account_email_key UNIQUE)`
        const insert = sql`INSERT INTO account VALUES (${"jane@example.org"})`
        yield* insert
        const error = yield* Effect.flip(insert)
        assert.instanceOf(error.cause, Error)
        const cause = error.cause as DatabaseError.DatabaseErrorCause
        assert.isTrue(util.types.isNativeError(cause))
        assert.deepStrictEqual(fieldsOf(cause), {
          code: "23505",
          severity: "ERROR",
          schema: "public",
          table: "account",
          constraint: "account_email_key",
          routine: "_bt_check_unique"
        })
        assert.strictEqual(
          cause.message,
          'duplicate key value violates unique constraint "account_email_key"'
        )
        assert.strictEqual(cause.stack, `DatabaseErrorCause: ${cause.message}`)
        const pretty = Cause.pretty(Cause.fail(error))
        const whole = Cause.pretty(Cause.fail(error), { renderErrorCause: true })
        assert.strictEqual(whole.split("\n").length, pretty.split("\n").length + 2)
        for (const text of [whole, util.inspect(error, { depth: 20 }), JSON.stringify(error)]) {
          assert.notInclude(text, "jane@example.org")
        }
        const column = yield* Effect.flip(sql`INSERT INTO account VALUES (NULL)`)
        assert.deepInclude(fieldsOf(column.cause), { code: "23502", column: "email" })
      })
    )

    it.effect("is there for every error, with the system's code if there is one", () =>
      Effect.sync(() => {
        const causeOf = (reason: DatabaseError.Reason) =>
          fieldsOf(new DatabaseError.DatabaseError({ operation: "execute", reason }).cause)
        assert.deepStrictEqual(causeOf({ _tag: "ConnectionLost", phase: "sent", systemCode: "ECONNRESET" }), {
          code: "ECONNRESET"
        })
        assert.deepStrictEqual(causeOf({ _tag: "TransactionAborted", first: missing.reason }), {
          code: "25P02"
        })
        assert.deepStrictEqual(causeOf({ _tag: "PoolClosed" }), {})
      })
    )

    it.effect("lets a wrapped violation become an error of the domain by its constraint", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE code (name text CONSTRAINT code_name_key UNIQUE)`
        yield* sql`INSERT INTO code VALUES ('a')`
        const insert = sql`INSERT INTO code VALUES ('a')`
        const toTaken = DatabaseError.catchUniqueViolation("code_name_key", () => new Taken({}))
        const asLibrariesDo = Effect.mapError(insert, ({ cause }): unknown => new LibraryError(cause))
        const asPromise = Effect.tryPromise(() => Effect.runPromise(asLibrariesDo))
        assert.instanceOf(yield* Effect.flip(toTaken(asLibrariesDo)), Taken)
        assert.instanceOf(yield* Effect.flip(toTaken(asPromise)), Taken)
        assert.strictEqual(
          yield* DatabaseError.catchReason(asLibrariesDo, "UniqueViolation", (_, error) =>
            Effect.succeed(error.retry)
          ),
          "never"
        )
        // Unchanged, not unwrapped.
        const other = DatabaseError.catchUniqueViolation(asLibrariesDo, "another_key", () => new Taken({}))
        assert.instanceOf(yield* Effect.flip(other), LibraryError)
      })
    )

    it.effect("is not looked for in an error of the program's own, which has been decided", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const own = Effect.mapError(sql`SELECT * FROM missing`, (cause) => new Taken({ cause }))
        const caught = DatabaseError.catchReason(own, "UndefinedObject", () => Effect.succeed("caught"))
        assert.instanceOf(yield* Effect.flip(caught), Taken)
      })
    )
  }
)
