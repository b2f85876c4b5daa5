import * as Duration from "effect/Duration"
import { safetyNet } from "../support/speed.js"
import { assert, describe, it } from "../support/it.js"
import { Summaries } from "../../src/client/summaries.js"

/** A statement, its operation, its only table, and what its span is called. */
const table: ReadonlyArray<readonly [string, string | undefined, string | undefined, string]> = [
  ["SELECT 1", "SELECT", undefined, "SELECT"],
  ["select id from account where id = $1", "SELECT", "account", "SELECT account"],
  [`SELECT * FROM "user" u WHERE u.id = $1`, "SELECT", `"user"`, `SELECT "user"`],
  ["SELECT * FROM only app.item FOR UPDATE SKIP LOCKED", "SELECT", "app.item", "SELECT app.item"],
  ["-- all of them\n/* really */ SELECT * FROM item", "SELECT", "item", "SELECT item"],
  ["SELECT * FROM a JOIN b USING (id)", "SELECT", undefined, "SELECT a b"],
  ["SELECT * FROM a, b", "SELECT", undefined, "SELECT a"],
  ["SELECT * FROM a WHERE id IN (SELECT a_id FROM b)", "SELECT", undefined, "SELECT a"],
  ["SELECT extract(year FROM at), 'from nowhere' FROM event", "SELECT", "event", "SELECT event"],
  ["SELECT a IS DISTINCT FROM b FROM pair", "SELECT", "pair", "SELECT pair"],
  ["SELECT * FROM generate_series(1, 3)", "SELECT", undefined, "SELECT"],
  ["INSERT INTO item (id, name) VALUES ($1, $2)", "INSERT", "item", "INSERT item"],
  ["INSERT INTO item(id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = 1", "INSERT", "item", "INSERT item"],
  ["INSERT INTO item SELECT * FROM draft", "INSERT", undefined, "INSERT item draft"],
  ["UPDATE item SET n = $1", "UPDATE", "item", "UPDATE item"],
  ["DELETE FROM item USING other WHERE true", "DELETE", undefined, "DELETE item other"],
  ["WITH x AS (SELECT 1) SELECT * FROM x", "WITH", undefined, "WITH"],
  ["BEGIN;SET LOCAL lock_timeout = 1", "BEGIN", undefined, "BEGIN"],
  [`COPY "app"."item" ("id") FROM STDIN`, "COPY", `"app"."item"`, `COPY "app"."item"`],
  ["COPY (SELECT * FROM item) TO STDOUT", "COPY", undefined, "COPY"],
  ["TRUNCATE item", "TRUNCATE", undefined, "TRUNCATE"],
  ["hunter2", undefined, undefined, "postgresql"],
  ["", undefined, undefined, "postgresql"]
]

describe("The summary of a statement", () => {
  for (const [text, operation, name, summary] of table) {
    it(`of ${JSON.stringify(text)} is ${JSON.stringify(summary)}`, () => {
      const summaries = new Summaries()
      const expected = { operation, table: name, text: summary }
      assert.deepStrictEqual(summaries.of(text), expected)
      assert.deepStrictEqual(summaries.of(text), expected)
    })
  }

  it("never holds a value of the text", () => {
    const text = "INSERT INTO item VALUES ('into secret', $$from secret$$, $x$join secret$x$) -- into secret"
    assert.strictEqual(new Summaries().of(text).text, "INSERT item")
  })

  it("of a text too long to be read in full names no only table, and is made in no time", () => {
    const text = `SELECT * FROM item WHERE id IN (${"(".repeat(50_000)}`
    const started = performance.now()
    assert.deepStrictEqual(new Summaries().of(text), {
      operation: "SELECT",
      table: undefined,
      text: "SELECT item"
    })
    assert.isBelow(performance.now() - started, Duration.toMillis(safetyNet("5 seconds")))
  })
})
