import { assert, describe, it } from "../support/it.js"
import { StatementLimit } from "../../src/connection/statementLimit.js"

describe("The limit of a statement", () => {
  const after = (...texts: ReadonlyArray<string>) => {
    const limit = new StatementLimit(1000)
    for (const text of texts)
      limit.note(text, [], texts[0]?.startsWith("BEGIN") === true && text !== texts[0])
    return limit
  }

  it("is that of the settings until the program sets another one", () => {
    assert.isFalse(after("SELECT 1").isOverdue(900))
    assert.isTrue(after("SELECT 1").isOverdue(1000))
    assert.isFalse(new StatementLimit(0).isOverdue(1e9))
    assert.isUndefined(new StatementLimit(undefined).isOverdue(1000))
  })

  it("is read from SET with any of PostgreSQL's units", () => {
    for (const text of [
      "SET statement_timeout = 200",
      "set session statement_timeout to '200ms'",
      "BEGIN; SET LOCAL statement_timeout = '200 ms'",
      "SET statement_timeout = '0.2s'",
      "SET statement_timeout = '200'"
    ]) {
      assert.isTrue(after(text).isOverdue(200), text)
      assert.isFalse(after(text).isOverdue(150), text)
    }
    assert.isFalse(after("SET statement_timeout = '2min'").isOverdue(119_000))
  })

  it("ends with the transaction that set it for itself", () => {
    const limit = after("BEGIN; SET LOCAL statement_timeout = 200")
    assert.isTrue(limit.isOverdue(300))
    limit.endTransaction()
    assert.isFalse(limit.isOverdue(300))
  })

  it("is not known where a function, a parameter or the end of a transaction decides about it", () => {
    assert.isUndefined(after("SELECT set_config('statement_timeout', '1s', false)").isOverdue(1e6))
    const byParameter = new StatementLimit(1000)
    byParameter.note("SELECT set_config($1, $2, false)", ["statement_timeout", "5s"], false)
    assert.isUndefined(byParameter.isOverdue(1e6))
    const inTransaction = after("BEGIN", "SET statement_timeout = 200")
    assert.isTrue(inTransaction.isOverdue(300))
    inTransaction.endTransaction()
    assert.isUndefined(inTransaction.isOverdue(300))
    assert.isFalse(after("SET statement_timeout = 200", "DISCARD ALL").isOverdue(300))
  })
})
