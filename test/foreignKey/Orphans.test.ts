import { assert, describe, it } from "../support/it.js"
import { cases } from "../support/length.js"
import * as Effect from "effect/Effect"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, database, withRole } from "./support.js"

/**
 * Pairs of types that a key compares in its own way: a plain `=`, with names resolved in pg_catalog
 * only, finds another operator for some and none for others.
 */
const pairs = [
  {
    what: "an operator that no search path finds",
    before: "CREATE SCHEMA extensions; CREATE EXTENSION citext SCHEMA extensions",
    referenced: "extensions.citext",
    referencing: "extensions.citext",
    values: ["Ada", "ADA"]
  },
  {
    what: "a cast that the key makes",
    before: "",
    referenced: "char(5)",
    referencing: "varchar(9)",
    values: ["a", "a   "]
  },
  {
    what: "different types",
    before: "",
    referenced: "int",
    referencing: "bigint",
    values: ["1", "1"]
  },
  {
    what: "different collations",
    before: "",
    referenced: 'text COLLATE "C"',
    referencing: 'varchar COLLATE "POSIX"',
    values: ["a", "a"]
  },
  {
    what: "an operator for every array",
    before: "",
    referenced: "int[]",
    referencing: "int[]",
    values: ["{1,2}", "{1,2}"]
  },
  {
    what: "a domain",
    before: `CREATE DOMAIN "Name" AS text`,
    referenced: '"Name"',
    referencing: "varchar",
    values: ["a", "a"]
  },
  {
    what: "an operator for every enum",
    before: "CREATE TYPE mood AS ENUM ('good')",
    referenced: "mood",
    referencing: "mood",
    values: ["good", "good"]
  }
]

const warnings = Effect.map(ForeignKey.plan({ selectors: {}, onDelete: "restrict" }), (plan) =>
  plan.warnings.map(({ warning }) => warning).filter((warning) => warning.includes("referenced row"))
)

describe("rows without a referenced row are counted as the key compares them", () => {
  for (const { before, referenced, referencing, values, what } of cases(
    pairs,
    () => true,
    ({ what }) => what === "an operator that no search path finds" || what === "different types"
  )) {
    it.scopedLive(`with ${what}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${before};
          CREATE TABLE parent (n int, "key" ${referenced}, PRIMARY KEY (n, "key"));
          CREATE TABLE child ("the Key" ${referencing}, n bigint,
            CONSTRAINT fk FOREIGN KEY (n, "the Key") REFERENCES parent (n, "key"));
          INSERT INTO parent VALUES (1, '${values[0]}'), (2, '${values[0]}');
          INSERT INTO child VALUES ('${values[1]}', 1), (NULL, 1), ('${values[1]}', NULL)`)
        assert.deepStrictEqual(yield* warnings, [])
        yield* session.query(`SET session_replication_role = replica;
          INSERT INTO child VALUES ('${values[1]}', 3);
          UPDATE child SET n = 4 WHERE n IS NULL`)
        assert.match(
          (yield* warnings).join(),
          /^2 rows have no referenced row, for example with \(([34]), .*\), \([34], .*\)$/
        )
      }).pipe(Effect.provide(database))
    )
  }

  it.scopedLive.each(["referenced", "referencing"])(
    "are not counted for an owner who is forced to see no row of the table that is %s",
    (hidden) =>
      withRole(
        (role) => `
          GRANT ALL ON SCHEMA public TO ${role};
          CREATE TABLE referenced (id int PRIMARY KEY);
          CREATE TABLE referencing (id int REFERENCES referenced);
          CREATE INDEX ON referencing (id);
          ALTER TABLE referenced OWNER TO ${role}; ALTER TABLE referencing OWNER TO ${role};
          INSERT INTO referenced VALUES (1); INSERT INTO referencing VALUES (1);
          ALTER TABLE ${hidden} ENABLE ROW LEVEL SECURITY; ALTER TABLE ${hidden} FORCE ROW LEVEL SECURITY`,
        ({ limited }) =>
          Effect.gen(function* () {
            const table = `public.${hidden}`
            assert.deepStrictEqual(yield* warnings, [
              `row security hides rows of ${table} from this role: rows without a referenced row were not counted${
                hidden === "referenced" ? ", and validation fails for rows that refer to hidden ones" : ""
              }`
            ])
            const { failed, rebuilt } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
            if (hidden === "referencing") return assert.strictEqual(rebuilt.length, 1)
            assert.deepStrictEqual(
              failed.map(({ code, reason }) => [code, reason]),
              [
                [
                  "RowsViolate",
                  "row security of public.referenced is forced on its owner, and VALIDATE CONSTRAINT as this role did not find all rows of public.referenced that public.referencing.referencing_id_fkey refers to: run it again as a superuser or a role with BYPASSRLS; the original is as it was"
                ]
              ]
            )
          }).pipe(Effect.provide(limited))
      )
  )
})
