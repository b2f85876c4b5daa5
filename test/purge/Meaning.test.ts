import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import * as Purge from "../../src/Purge.js"
import { adminSession, emptyDatabase } from "../support/server.js"
import { application, database } from "../foreignKey/support.js"

const row = (table: string, value: string, column = "id") => ({
  from: { table },
  where: [{ column, value }]
})

describe("a purge means the row that its value names", () => {
  it.scopedLive("and not one that the value would be cut or rounded to", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`
        CREATE DOMAIN short AS varchar(3);
        CREATE TABLE text3 (id varchar(3) PRIMARY KEY); INSERT INTO text3 VALUES ('abc');
        CREATE TABLE domain3 (id short PRIMARY KEY); INSERT INTO domain3 VALUES ('abc');
        CREATE TABLE char3 (id char(3) PRIMARY KEY); INSERT INTO char3 VALUES ('abc'), ('x');
        CREATE TABLE bits (id bit(3) PRIMARY KEY); INSERT INTO bits VALUES (B'101');
        CREATE TABLE price (id numeric(4, 1) PRIMARY KEY); INSERT INTO price VALUES (1.2);
        CREATE TABLE moment (id timestamp(0) PRIMARY KEY); INSERT INTO moment VALUES ('2026-01-01 00:00:01')`)
      const deleted = (table: string, value: string) =>
        Effect.map(Purge.run(row(table, value)), ({ rows }) => rows.length)
      assert.strictEqual(yield* deleted("text3", "abcd"), 0)
      assert.strictEqual(yield* deleted("domain3", "abcd"), 0)
      assert.strictEqual(yield* deleted("char3", "abcd"), 0)
      assert.strictEqual(yield* deleted("bits", "1011"), 0)
      assert.strictEqual(yield* deleted("price", "1.21"), 0)
      assert.strictEqual(yield* deleted("moment", "2026-01-01 00:00:00.6"), 0)
      assert.strictEqual(yield* deleted("text3", "abc"), 1)
      assert.strictEqual(yield* deleted("domain3", "abc"), 1)
      assert.strictEqual(yield* deleted("char3", "x"), 1)
      assert.strictEqual(yield* deleted("bits", "101"), 1)
      assert.strictEqual(yield* deleted("price", "1.20"), 1)
      assert.strictEqual(yield* deleted("moment", "2026-01-01 00:00:01"), 1)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("in a table of its own session or of everybody, not in another session's", () =>
    Effect.gen(function* () {
      const session = yield* application
      const other = yield* application
      yield* session.query("CREATE TABLE thing (id int PRIMARY KEY); INSERT INTO thing VALUES (1)")
      yield* other.query(
        "CREATE TEMPORARY TABLE thing (id int PRIMARY KEY); CREATE TEMPORARY TABLE part (id int REFERENCES thing)"
      )
      assert.deepStrictEqual((yield* Purge.run(row("thing", "1"))).rows, [{ table: "public.thing", rows: 1 }])
    }).pipe(Effect.provide(database))
  )
})

describe("a purge deletes what the single DELETE would delete", () => {
  const tree = `
    CREATE TABLE thing (id int PRIMARY KEY);
    CREATE TABLE part (id int PRIMARY KEY, thing_id int REFERENCES thing ON DELETE CASCADE);
    INSERT INTO thing VALUES (1), (2); INSERT INTO part VALUES (1, 1), (2, 1), (3, 2);
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$`

  it.scopedLive("and refuses a table whose trigger or rule could keep a row that others hang on", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${tree};
        CREATE TRIGGER soft BEFORE DELETE ON thing FOR EACH ROW EXECUTE FUNCTION keep()`)
      const refused = yield* Effect.flip(Purge.run(row("thing", "1")))
      assert.isTrue(refused._tag === "Refused")
      assert.deepStrictEqual(refused._tag === "Refused" ? refused.refusals.map(({ code }) => code) : [], [
        "kept-rows"
      ])
      assert.include(refused.message, "trigger soft of public.thing")
      assert.deepStrictEqual(yield* session.query("SELECT count(*)::int AS n FROM part"), [{ n: 3 }])
      yield* session.query(`DROP TRIGGER soft ON thing;
        CREATE TRIGGER noted BEFORE DELETE ON thing FOR EACH ROW EXECUTE FUNCTION pass()`)
      const { rows, warnings } = yield* Purge.run({ ...row("thing", "1"), trustTriggers: true })
      assert.sameDeepMembers(
        [...rows],
        [
          { table: "public.thing", rows: 1 },
          { table: "public.part", rows: 2 }
        ]
      )
      assert.isTrue(warnings.some((warning) => warning.startsWith("trigger noted of public.thing")))
      yield* session.query("CREATE RULE soft AS ON DELETE TO thing DO INSTEAD NOTHING")
      const ruled = yield* Effect.flip(Purge.run({ ...row("thing", "2"), trustTriggers: true }))
      assert.include(ruled.message, "rule soft")
      assert.notInclude(ruled.message, "--trust-triggers")
      assert.deepStrictEqual(yield* session.query("SELECT id FROM part"), [{ id: 3 }])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("and says so where a trigger keeps the row itself", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${tree}; DROP TABLE part;
        CREATE TRIGGER soft BEFORE DELETE ON thing FOR EACH ROW EXECUTE FUNCTION keep()`)
      const error = yield* Effect.flip(Purge.run(row("thing", "1")))
      assert.strictEqual(error._tag, "Stuck")
      assert.include(error.message, "public.thing")
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("also where columns of a key have different collations", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`
        CREATE TABLE thing (id text COLLATE "C" PRIMARY KEY);
        CREATE TABLE part (id int PRIMARY KEY, thing_id text COLLATE "POSIX" REFERENCES thing ON DELETE CASCADE);
        CREATE TABLE note (id int PRIMARY KEY, thing_id text COLLATE "POSIX" REFERENCES thing ON DELETE SET NULL);
        INSERT INTO thing VALUES ('a'), ('b'); INSERT INTO part VALUES (1, 'a'), (2, 'b'); INSERT INTO note VALUES (1, 'a')`)
      const { rows, updates } = yield* Purge.run(row("thing", "a"))
      assert.strictEqual(rows.length, 2)
      assert.strictEqual(updates.length, 1)
      assert.deepStrictEqual(yield* session.query("SELECT id FROM part"), [{ id: 2 }])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("and gives up where a trigger sets references back again and again", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`
        CREATE TABLE thing (id int PRIMARY KEY);
        CREATE TABLE note (id int PRIMARY KEY, thing_id int REFERENCES thing ON DELETE SET NULL);
        INSERT INTO thing VALUES (1); INSERT INTO note SELECT n, 1 FROM generate_series(1, 5) AS n;
        CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.thing_id := OLD.thing_id; RETURN NEW; END $$;
        CREATE TRIGGER stay BEFORE UPDATE ON note FOR EACH ROW EXECUTE FUNCTION stay()`)
      const error = yield* Effect.flip(Purge.run({ ...row("thing", "1"), batch: 5 }))
      assert.strictEqual(error._tag, "Stuck")
      assert.deepStrictEqual(yield* session.query("SELECT count(*)::int AS n FROM thing"), [{ n: 1 }])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("and calls no function that somebody else put into the search path", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* admin.query(`${tree};
        CREATE TABLE note (id int PRIMARY KEY, thing_id int REFERENCES thing ON DELETE SET NULL);
        INSERT INTO note VALUES (1, 1);
        CREATE TABLE called (what text);
        CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS
          $$ INSERT INTO public.called VALUES ('unnest'); SELECT NULL::text WHERE false $$;
        CREATE FUNCTION public.count() RETURNS bigint LANGUAGE sql AS
          $$ INSERT INTO public.called VALUES ('count'); SELECT 0::bigint $$`)
      const { rows } = yield* Purge.run(row("thing", "1")).pipe(
        Effect.provide(Database.layer({ url: Redacted.value(url), minConnections: 0 }))
      )
      assert.strictEqual(rows.length, 2)
      assert.deepStrictEqual(yield* admin.query("SELECT what FROM called"), [])
    })
  )
})
