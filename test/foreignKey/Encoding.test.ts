import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Purge from "../../src/Purge.js"
import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import { psql } from "../support/psql.js"
import { emptyDatabaseOf } from "../support/server.js"
import { application } from "./support.js"

/** A database of an encoding, with these tables. */
const inDatabase = <A, E>(
  encoding: string,
  tables: string,
  use: (session: Session, url: Redacted.Redacted) => Effect.Effect<A, E, Database.Database | Scope.Scope>
) =>
  Effect.gen(function* () {
    const { url } = yield* emptyDatabaseOf(encoding)
    yield* Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      yield* use(session, url)
    }).pipe(Effect.scoped, Effect.provide(Database.layer({ url, minConnections: 0 })))
  })

/**
 * The bytes of all comments on foreign keys, whose names are given in hexadecimal where they cannot
 * be read.
 */
const comments = (session: Session) =>
  session.query(
    `SELECT k.conrelid::int8::int AS relation, encode(convert_to(k.conname::text, e.name), 'escape') AS name,
      encode(convert_to(obj_description(k.oid, 'pg_constraint'), e.name), 'hex') AS comment
    FROM pg_constraint k CROSS JOIN (SELECT getdatabaseencoding()::text AS name) e
    WHERE k.contype = 'f' ORDER BY 1, 2, k.confrelid`
  )

/** What each key does on a delete. */
const actions = (session: Session) =>
  Effect.map(
    session.query<{ readonly actions: string }>(
      `SELECT string_agg(confdeltype::text, '' ORDER BY conrelid, confrelid) AS actions
      FROM pg_constraint WHERE contype = 'f'`
    ),
    ([row]) => row?.actions
  )

/** A statement in a text that has escapes for bytes, which no text in UTF-8 can have itself. */
const bytes = (statement: string) => `DO $do$ BEGIN EXECUTE E'${statement.replaceAll("'", "''")}'; END $do$`

/** In ISO 8859-1, with all that has a meaning in a string constant or in JSON. */
const cafe = `caf\\xE9 \\xC3\\xA9 \\\\ '' " \\n \\x01 {"bytes": "00"}`

const unchecked = [
  "CREATE TABLE parent (id int PRIMARY KEY)",
  `CREATE TABLE child (parent_id int CONSTRAINT "Schlüssel" REFERENCES parent)`,
  `COMMENT ON CONSTRAINT "Schlüssel" ON child IS 'für ''Eltern'' \\ 名前'`,
  "CREATE TABLE deferred (parent_id int CONSTRAINT fk REFERENCES parent DEFERRABLE)",
  bytes(`COMMENT ON CONSTRAINT fk ON deferred IS '${cafe}'`),
  "CREATE TABLE whole (parent_id int CONSTRAINT fk REFERENCES parent) PARTITION BY LIST (parent_id)",
  "CREATE TABLE part PARTITION OF whole DEFAULT",
  bytes(`COMMENT ON CONSTRAINT fk ON whole IS '\\xE4'`),
  bytes(`COMMENT ON CONSTRAINT fk ON part IS '${cafe}'`),
  "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1); INSERT INTO whole VALUES (1)"
].join("; ")

/** Names that no statement in UTF-8 can have. */
const unreadable = [
  bytes(`CREATE TABLE named (parent_id int CONSTRAINT "k\\xE9y" REFERENCES parent)`),
  "CREATE TABLE quiet (parent_id int CONSTRAINT fk REFERENCES parent)",
  bytes(`ALTER TABLE quiet RENAME parent_id TO "\\xE9"`),
  "CREATE TABLE above (parent_id int CONSTRAINT fk REFERENCES parent) PARTITION BY LIST (parent_id)",
  bytes(`CREATE TABLE "below\\xE9" PARTITION OF above DEFAULT`),
  bytes(`CREATE TABLE "\\xE9" (x int)`)
].join("; ")

const readable = ['public.child."Schlüssel"', "public.deferred.fk", "public.whole.fk"]

const refused = [
  ["public.above.fk", '"below\uFFFD"'],
  ['public.named."k\uFFFDy"', '"k\uFFFDy"'],
  ["public.quiet.fk", '"\uFFFD"']
].map(([constraint, name]) => ({
  constraint,
  code: "unreadable-name",
  reason: `${name} is not valid UTF-8, and no statement in UTF-8 can name it: rename it first`
}))

const names = (all: ReadonlyArray<{ readonly constraint: string }>) =>
  all.map(({ constraint }) => constraint).toSorted()

const byConstraint = <A extends { readonly constraint: string }>(all: ReadonlyArray<A>) =>
  all.toSorted((one, other) => (one.constraint < other.constraint ? -1 : 1))

const selectors = {}

describe("In a database of encoding SQL_ASCII", () => {
  it.scopedLive("keys change and change back, and each comment keeps its bytes, UTF-8 or not", () =>
    inDatabase("SQL_ASCII", unchecked, (session) =>
      Effect.gen(function* () {
        const before = yield* comments(session)
        assert.deepStrictEqual((yield* ForeignKey.list()).map(({ name }) => name).toSorted(), [
          "Schlüssel",
          "fk",
          "fk"
        ])
        assert.deepStrictEqual(yield* ForeignKey.check(), [])
        const plan = yield* ForeignKey.plan({ selectors, onDelete: "cascade" })
        assert.deepStrictEqual(
          [plan.refused, plan.warnings.filter(({ code }) => code === "not-rehearsed")],
          [[], []]
        )
        const rebuilt = yield* ForeignKey.rebuild({ selectors, onDelete: "cascade" })
        assert.deepStrictEqual(names(rebuilt.rebuilt), readable)
        assert.strictEqual(yield* actions(session), "cccc")
        assert.deepStrictEqual(yield* comments(session), before)
        assert.strictEqual((yield* ForeignKey.history()).length, 3)
        const undone = yield* ForeignKey.undo({ selectors })
        assert.deepStrictEqual(names(undone.rebuilt), readable)
        assert.strictEqual(yield* actions(session), "aaaa")
        assert.deepStrictEqual(yield* comments(session), before)
      })
    )
  )

  inFull(it).scopedLive("the script of a plan keeps the bytes of comments", () =>
    inDatabase("SQL_ASCII", unchecked, (session, url) =>
      Effect.gen(function* () {
        const before = yield* comments(session)
        const plan = yield* ForeignKey.plan({ selectors, onDelete: "cascade" })
        const { code, stderr } = yield* psql(url, ForeignKey.planScript(plan))
        assert.deepStrictEqual([code, stderr], [0, ""])
        assert.strictEqual(yield* actions(session), "cccc")
        assert.deepStrictEqual(yield* comments(session), before)
      })
    )
  )

  inFull(it).scopedLive("a change that was interrupted gives the comment back when it is gone on with", () =>
    inDatabase("SQL_ASCII", unchecked, (session) =>
      Effect.gen(function* () {
        const before = yield* comments(session)
        const deferred = { tables: [{ table: "deferred" }] }
        for (const step of ["add", "swap"]) {
          const fiber = yield* Effect.fork(
            ForeignKey.rebuild({
              selectors: deferred,
              onDelete: step === "add" ? "cascade" : "restrict",
              onProgress: (event) =>
                event._tag === "StepDone" && event.step === step ? Effect.interrupt : Effect.void
            })
          )
          assert.strictEqual((yield* Fiber.await(fiber))._tag, "Failure")
          const { rebuilt } = yield* ForeignKey.rebuild({
            selectors: deferred,
            onDelete: step === "add" ? "cascade" : "restrict"
          })
          assert.strictEqual(rebuilt.length, 1)
          assert.deepStrictEqual(yield* comments(session), before)
        }
      })
    )
  )

  inMatrix(it).scopedLive(
    "a key that cannot be named in UTF-8 is refused before anything is touched, and the others go on",
    () =>
      inDatabase("SQL_ASCII", `${unchecked}; ${unreadable}`, (session) =>
        Effect.gen(function* () {
          const before = yield* comments(session)
          assert.strictEqual((yield* ForeignKey.list()).length, 6)
          assert.deepStrictEqual(yield* ForeignKey.check(), [])
          const plan = yield* ForeignKey.plan({ selectors, onDelete: "cascade" })
          assert.deepStrictEqual(byConstraint(plan.refused), refused)
          const rebuilt = yield* ForeignKey.rebuild({ selectors, onDelete: "cascade" })
          assert.deepStrictEqual(byConstraint(rebuilt.refused), refused)
          assert.deepStrictEqual([names(rebuilt.rebuilt), rebuilt.failed], [readable, []])
          assert.deepStrictEqual(yield* comments(session), before)
        })
      )
  )

  inFull(it).scopedLive(
    "a purge follows the keys whose tables and columns it can name, whatever their comments are",
    () =>
      inDatabase(
        "SQL_ASCII",
        `${unchecked}; ${bytes(`CREATE TABLE alone (id int PRIMARY KEY, up int CONSTRAINT "\\xE9" REFERENCES alone)`)}; INSERT INTO alone VALUES (1, 1)`,
        (session) =>
          Effect.gen(function* () {
            yield* ForeignKey.rebuild({
              selectors: { references: [{ table: "parent" }] },
              onDelete: "cascade"
            })
            const result = yield* Purge.run({
              from: { table: "parent" },
              where: [{ column: "id", value: "1" }]
            })
            assert.deepStrictEqual(result.rows.map(({ rows, table }) => `${table} ${rows}`).toSorted(), [
              "public.child 1",
              "public.parent 1",
              "public.whole 1"
            ])
            yield* session.query(bytes(`ALTER TABLE child RENAME parent_id TO "\\xE9"`))
            const plan = yield* Purge.plan({
              from: { table: "parent" },
              where: [{ column: "id", value: "1" }]
            })
            assert.deepStrictEqual(plan.refused, [
              {
                code: "unreadable-name",
                reason: '"\uFFFD" is not valid UTF-8, and no statement in UTF-8 can name it: rename it first'
              }
            ])
          })
      )
  )

  it.scopedLive("a purge fails where the key of a row cannot be read, and takes it for no other row", () =>
    inDatabase(
      "SQL_ASCII",
      `CREATE TABLE parent (id int PRIMARY KEY);
      CREATE TABLE child (name text PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE);
      CREATE TABLE leaf (name text REFERENCES child ON DELETE CASCADE);
      INSERT INTO parent VALUES (1), (2);
      INSERT INTO child VALUES (E'\\xE9', 1), (E'\uFFFD', 2); INSERT INTO leaf SELECT name FROM child`,
      (session) =>
        Effect.gen(function* () {
          const error = yield* Effect.flip(
            Purge.run({ from: { table: "parent" }, where: [{ column: "id", value: "1" }] })
          )
          assert.include(error.message, "22021")
          assert.deepStrictEqual(yield* session.query("SELECT count(*)::int AS rows FROM leaf"), [
            { rows: 2 }
          ])
        })
    )
  )
})

describe("In a database of encoding LATIN1", () => {
  inFull(it).scopedLive("keys with umlauts in names and comments change and change back", () =>
    inDatabase(
      "LATIN1",
      `CREATE SCHEMA "Übersicht"; CREATE TABLE "Übersicht"."Bücher" ("Schlüssel" int PRIMARY KEY);
      CREATE TABLE "Übersicht"."Sätze" ("Nº" int CONSTRAINT "Führt zu" REFERENCES "Übersicht"."Bücher") PARTITION BY LIST ("Nº");
      CREATE TABLE "Übersicht"."Füße" PARTITION OF "Übersicht"."Sätze" DEFAULT;
      COMMENT ON CONSTRAINT "Führt zu" ON "Übersicht"."Sätze" IS 'für ''Bücher'' \\ ÿ';
      COMMENT ON CONSTRAINT "Führt zu" ON "Übersicht"."Füße" IS 'Maß';
      INSERT INTO "Übersicht"."Bücher" VALUES (1); INSERT INTO "Übersicht"."Sätze" VALUES (1)`,
      (session, url) =>
        Effect.gen(function* () {
          const before = yield* comments(session)
          const key = '"Übersicht"."Sätze"."Führt zu"'
          assert.deepStrictEqual(
            (yield* ForeignKey.list()).map(({ columns, name, table }) => [table, name, columns]),
            [["Sätze", "Führt zu", ["Nº"]]]
          )
          assert.deepStrictEqual(yield* ForeignKey.check(), [])
          const { rebuilt } = yield* ForeignKey.rebuild({ selectors, onDelete: "cascade" })
          assert.deepStrictEqual(names(rebuilt), [key])
          assert.strictEqual(yield* actions(session), "cc")
          assert.deepStrictEqual(yield* comments(session), before)
          assert.deepStrictEqual(names((yield* ForeignKey.undo({ selectors })).rebuilt), [key])
          assert.strictEqual(yield* actions(session), "aa")
          assert.deepStrictEqual(yield* comments(session), before)
          const plan = yield* ForeignKey.plan({ selectors, onDelete: "cascade" })
          const { code, stderr } = yield* psql(url, ForeignKey.planScript(plan))
          assert.deepStrictEqual([code, stderr], [0, ""])
          assert.deepStrictEqual([yield* actions(session), yield* comments(session)], ["cc", before])
        })
    )
  )
})
