import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, it, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as DatabaseError from "../../src/DatabaseError.js"
import { classify, type ServerErrorLike } from "../../src/errors/classify.js"
import * as Transaction from "../../src/Transaction.js"
import { databaseLayer, TestServer } from "../support/database.js"

const text = { message: "the message", detail: "the detail", hint: "the hint" }
const none = { message: undefined, detail: undefined, hint: undefined }

const shown = (error: Partial<ServerErrorLike>, statement?: string) => {
  const reason = classify({ code: "XX000", ...text, ...error }, statement)
  return "shown" in reason ? reason.shown : none
}

describe("What may be shown of the server's message, detail and hint", () => {
  it("is everything where the code is about a session, a lock, a right or a resource", () => {
    const codes = ["25001", "25006", "28000", "3D000", "40001", "40P01", "42501", "53100", "53300"]
    for (const code of [...codes, "55P03", "57014", "57P01", "21000", "26000"]) {
      assert.deepStrictEqual(shown({ code }), text, code)
    }
  })

  it("is the message alone where the detail is a row", () => {
    for (const code of ["23505", "23503", "23001", "23502", "23P01", "P0002"]) {
      assert.deepStrictEqual(shown({ code }), { ...none, message: text.message }, code)
    }
  })

  it("is nothing where a value can be in any of them", () => {
    for (const code of [
      "22P02",
      "22001",
      "22012",
      "23514",
      "40002",
      "44000",
      "58P01",
      "XX000",
      "HV000",
      "08P01"
    ]) {
      assert.deepStrictEqual(shown({ code }), none, code)
    }
  })

  it("is everything about a statement's own text, and nothing where a value may have caused it", () => {
    for (const code of ["42601", "42P01", "42703", "0A000", "2BP01", "54001", "55006", "3F000"]) {
      assert.deepStrictEqual(shown({ code }), none, code)
      assert.deepStrictEqual(shown({ code, position: "7" }), text, code)
      assert.deepStrictEqual(shown({ code }, "ALTER TABLE a DROP COLUMN b"), text, code)
      assert.deepStrictEqual(shown({ code }, "CREATE TABLE a AS SELECT b::regclass FROM c"), none, code)
    }
  })

  it("is everything that a function's author wrote, under any code", () => {
    for (const error of [
      { code: "P0001" },
      { code: "P0004", routine: "exec_stmt_assert" },
      { code: "23505", routine: "exec_stmt_raise" },
      { code: "XX000", routine: "do_util_elog" },
      { code: "U0001" },
      { code: "9Z999" }
    ]) {
      assert.deepStrictEqual(shown(error), text, error.code)
    }
    // What another language has thrown can have been caused by a value.
    assert.deepStrictEqual(shown({ code: "42501", routine: "PLy_elog_impl" }), none)
  })
})

layer(Layer.merge(TestServer.layer, Logger.remove(Logger.defaultLogger)), { excludeTestServices: true })(
  "What the server says about a failure",
  (it) => {
    const raise = Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`DO $$ BEGIN
        RAISE EXCEPTION 'seat 12 is taken' USING DETAIL = 'until noon', HINT = 'take seat 13'; END $$`
    )

    it.effect("is in the error's message where a function raised it, and the rest of it beside", () =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(raise)
        assert.strictEqual(error.message, "execute: RaisedException (P0001): seat 12 is taken")
        const said = { message: "seat 12 is taken", detail: "until noon", hint: "take seat 13" }
        assert.deepStrictEqual(DatabaseError.shownOf(error), said)
        assert.deepStrictEqual(DatabaseError.shownOf(error.cause), said)
        const aborted = yield* Effect.flip(
          Transaction.run(
            Effect.zipRight(
              Effect.ignore(raise),
              Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT 1`)
            )
          )
        )
        assert.strictEqual(DatabaseError.reasonOf(aborted)?._tag, "TransactionAborted")
        assert.deepStrictEqual(DatabaseError.shownOf(aborted), said)
      }).pipe(Effect.provide(databaseLayer()))
    )

    it.effect("is in neither where showRaised is off", () =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(raise)
        assert.strictEqual(error.message, "execute: RaisedException (P0001)")
        assert.deepStrictEqual(DatabaseError.shownOf(error), none)
        const aborted = yield* Effect.flip(
          Transaction.run(
            Effect.zipRight(
              Effect.ignore(raise),
              Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT 1`)
            )
          )
        )
        assert.deepStrictEqual(DatabaseError.shownOf(aborted), none)
        assert.notInclude(aborted.message, "seat")
      }).pipe(Effect.provide(databaseLayer({ showRaised: false })))
    )

    it.effect("names what depends on an object that cannot be dropped", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE base (id int)`
        yield* sql`CREATE VIEW upon AS SELECT id FROM base`
        const error = yield* Effect.flip(sql`DROP TABLE base`)
        assert.deepStrictEqual(DatabaseError.shownOf(error), {
          message: "cannot drop table base because other objects depend on it",
          detail: "view upon depends on table base",
          hint: "Use DROP ... CASCADE to drop the dependent objects too."
        })
      }).pipe(Effect.provide(databaseLayer()))
    )
  }
)
