import { assert, describe, it } from "../support/it.js"
import * as FastCheck from "effect/FastCheck"
import * as Selectors from "../../src/catalog/selectors.js"
import { label } from "../../src/sql/identifiers.js"

const awkward = FastCheck.oneof(
  FastCheck.constantFrom(
    "Order",
    "user",
    "select",
    "a.b",
    '"',
    '""',
    ".",
    " ",
    "two words",
    "Ünï",
    "1st",
    "$",
    "a$1",
    "\n"
  ),
  FastCheck.string({ unit: "grapheme", minLength: 1 }),
  FastCheck.string({
    unit: FastCheck.constantFrom("a", "A", ".", '"', " ", "é", "É", "_", "$", "1"),
    minLength: 1
  })
)

describe("a name that is printed", () => {
  it("is the selector of what it names", () => {
    FastCheck.assert(
      FastCheck.property(awkward, awkward, awkward, (schema, table, name) => {
        assert.deepStrictEqual(Selectors.constraint(label(schema, table, name)), { schema, table, name })
        assert.deepStrictEqual(Selectors.constraint(label(table, name)), { table, name })
        assert.deepStrictEqual(Selectors.table(label(schema, table)), { schema, table })
        assert.strictEqual(Selectors.name(label(name)), name)
      })
    )
  })

  it("is read as SQL reads it where it is not quoted", () => {
    assert.deepStrictEqual(Selectors.table('Public."Order"'), { schema: "public", table: "Order" })
    // PostgreSQL leaves other letters than A to Z as they are.
    assert.deepStrictEqual(Selectors.table("ÜBER"), { table: "Über" })
    for (const text of ["", ".", "a.", ".a", 'a"b', '"a', '""', "a.b.c.d"]) {
      assert.isUndefined(Selectors.constraint(text), text)
    }
  })
})
