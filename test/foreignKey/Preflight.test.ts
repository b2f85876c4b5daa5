import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Catalog from "../../src/foreignKey/Catalog.js"
import * as Database from "../../src/Database.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, comparable, database, vectors } from "./support.js"
import { emptyDatabase } from "../support/server.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int NOT NULL CONSTRAINT fk REFERENCES parent);
  INSERT INTO parent SELECT generate_series(1, 10);
  INSERT INTO child SELECT id, id FROM parent`

/** What a change to CASCADE is refused for, by code; proves that nothing was touched. */
const refusals = Effect.gen(function* () {
  const session = yield* application
  const before = yield* vectors(session)
  const result = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
  assert.deepStrictEqual([result.rebuilt, result.failed], [[], []])
  assert.deepStrictEqual(yield* vectors(session), before)
  const planned = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
  assert.deepStrictEqual(planned.refused, result.refused)
  return result.refused.map(({ code }) => code)
})

const warnings = (onDelete: ForeignKey.Action) =>
  Effect.map(
    ForeignKey.plan({ selectors: { constraints: [{ table: "child", name: "fk" }] }, onDelete }),
    (plan) => plan.warnings.map(({ warning }) => warning)
  )

describe("a key is refused, and nothing touched", () => {
  it.scopedLive("when its trigger carries out another action than its definition says", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; UPDATE pg_constraint SET confdeltype = 'n' WHERE conname = 'fk'`)
      assert.deepStrictEqual(yield* refusals, ["catalog-disagrees"])
      assert.deepStrictEqual(yield* ForeignKey.check(), [
        {
          constraint: "public.child.fk",
          problems: [
            "ON DELETE trigger of the referenced table should be RI_FKey_setnull_del, is RI_FKey_noaction_del"
          ]
        }
      ])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("when one of its tables belongs to an extension", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* session.query("ALTER EXTENSION plpgsql ADD TABLE parent")
      assert.deepStrictEqual(yield* refusals, ["extension"])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("when it is a temporal key (18 and later)", () =>
    Effect.gen(function* () {
      const session = yield* application
      if ((yield* Catalog.serverVersion(session)) < 180_000) return
      yield* session.query(`
        CREATE TABLE parent (id int4range, during daterange, PRIMARY KEY (id, during WITHOUT OVERLAPS));
        CREATE TABLE child (id int4range, during daterange, FOREIGN KEY (id, PERIOD during) REFERENCES parent (id, PERIOD during))`)
      assert.deepStrictEqual(yield* refusals, ["period"])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("when the role may not change both tables, naming what is missing", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const owner = Database.layer({ url, minConnections: 1 })
      const role = `r${name}`
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${pair}; CREATE ROLE ${role} LOGIN PASSWORD 'x'; ALTER TABLE child OWNER TO ${role};
          GRANT REFERENCES, SELECT ON parent TO ${role}`)
        yield* Effect.addFinalizer(() =>
          Effect.ignore(session.query(`DROP OWNED BY ${role}; DROP ROLE ${role}`))
        )
        const limited = new URL(Redacted.value(url))
        limited.username = role
        limited.password = "x"
        const codes = yield* Effect.provide(
          refusals,
          Database.layer({ url: limited.toString(), minConnections: 1 })
        )
        assert.deepStrictEqual(codes, ["privileges"])
      }).pipe(Effect.provide(owner))
    })
  )

  it.scopedLive(
    "when an update could move rows of its partitioned referenced table (13 and 14), unless allowed",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        if ((yield* Catalog.serverVersion(session)) >= 150_000) return
        yield* session.query(`
        CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF parent DEFAULT;
        CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent)`)
        assert.deepStrictEqual(yield* refusals, ["row-movement"])
        const allowed = yield* ForeignKey.rebuild({
          selectors: {},
          onDelete: "cascade",
          allowRowMovement: true
        })
        assert.strictEqual(allowed.rebuilt.length, 1)
      }).pipe(Effect.provide(database))
  )
})

describe("a role that only owns the tables", () => {
  it.scopedLive("changes their keys there and back, among sessions of other roles", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const role = `r${name}`
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${pair}; CREATE ROLE ${role} LOGIN PASSWORD 'x';
          ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE;
          ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role};
          GRANT CREATE ON SCHEMA public TO ${role}`)
        yield* Effect.addFinalizer(() =>
          Effect.ignore(session.query(`DROP OWNED BY ${role}; DROP ROLE ${role}`))
        )
        const before = comparable(yield* vectors(session))
        const limited = new URL(Redacted.value(url))
        limited.username = role
        limited.password = "x"
        for (const onDelete of ["cascade", "no-action"] as const) {
          const result = yield* ForeignKey.rebuild({ selectors: {}, onDelete }).pipe(
            Effect.provide(Database.layer({ url: limited.toString(), minConnections: 1 }))
          )
          assert.deepStrictEqual([result.refused, result.failed, result.rebuilt.length], [[], [], 1])
        }
        assert.deepStrictEqual(comparable(yield* vectors(session)), before)
      }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
    })
  )
})

describe("a plan warns", () => {
  it.scopedLive("of everything that one delete will reach, with the planner's estimates", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair};
        CREATE TABLE grandchild (child_id int REFERENCES child ON DELETE CASCADE);
        CREATE TABLE bystander (child_id int REFERENCES child ON DELETE SET NULL);
        ANALYZE child`)
      assert.deepInclude(
        yield* warnings("cascade"),
        "deleting from public.parent will also delete from public.child (about 10 rows), public.grandchild (never analyzed)"
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("of triggers, row security, publications and NOT NULL columns in the way", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair};
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER keep BEFORE DELETE ON child FOR EACH ROW EXECUTE FUNCTION keep();
        ALTER TABLE child ENABLE ROW LEVEL SECURITY;
        ALTER TABLE child REPLICA IDENTITY NOTHING;
        CREATE PUBLICATION all_changes FOR TABLE child`)
      assert.includeMembers(
        [...(yield* warnings("cascade"))],
        [
          "no index on (parent_id): every delete in public.parent reads all of public.child",
          "public.child is published (all_changes) without a replica identity: deletes in public.parent that reach it will fail with 55000",
          "public.child has row security, which the cascade does not ask: it runs as the owner of public.child",
          "trigger keep on public.child can keep rows from being deleted: they would be left without a referenced row"
        ]
      )
      assert.include(
        yield* warnings("set-null"),
        "parent_id is NOT NULL: deletes in public.parent that reach it will fail with 23502"
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("of deletes whose outcome depends on the order in which triggers fire", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair};
        CREATE TABLE other (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE,
          child_id int CONSTRAINT inner_key REFERENCES child)`)
      assert.isTrue(
        (yield* warnings("cascade")).some((text) =>
          text.startsWith("public.other.inner_key has ON DELETE NO ACTION")
        )
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("of rows that lost their referenced row, with their number and keys", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* session.query(
        "SET session_replication_role = replica; INSERT INTO child VALUES (11, 77), (12, 77); RESET session_replication_role"
      )
      assert.include(yield* warnings("cascade"), "2 rows have no referenced row, for example with (77)")
      const before = yield* vectors(session)
      const { failed } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
      assert.strictEqual(failed[0]?.code, "RowsViolate")
      assert.include(failed[0]?.reason, "2 rows have no referenced row, for example with (77)")
      assert.deepStrictEqual(yield* vectors(session), before)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("of the transactions that are in the way right now, without what they run", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; SET application_name = 'reporting'`)
      yield* session.query("BEGIN; SELECT count(*) FROM child; SELECT pg_sleep(0.6)")
      const found = (yield* warnings("cascade")).find((warning) => warning.startsWith("in the way"))
      assert.match(
        found ?? "",
        new RegExp(`client backend ${session.processId} \\(reporting\\), idle in transaction`)
      )
    }).pipe(Effect.provide(database))
  )
})

describe("an index on the referencing columns", () => {
  it.scopedLive("is built first if asked for, and what an interrupted build left is cleaned up", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* session.query("UPDATE child SET parent_id = parent_id")
      const build = { selectors: {}, onDelete: "cascade", createIndexes: true } as const
      yield* ForeignKey.rebuild(build)
      const [built] = yield* ForeignKey.list()
      assert.match(built?.index ?? "", /^child_parent_id_[0-9a-f]{8}_idx$/)
      yield* session.query(
        `UPDATE pg_index SET indisvalid = false WHERE indexrelid = '${built?.index}'::regclass`
      )
      assert.strictEqual((yield* ForeignKey.list())[0]?.index, null)
      yield* ForeignKey.rebuild({ ...build, onDelete: "restrict" })
      assert.strictEqual((yield* ForeignKey.list())[0]?.index, built?.index)
      const count = yield* session.query(
        "SELECT count(*)::int AS n FROM pg_index WHERE indrelid = 'child'::regclass"
      )
      assert.deepStrictEqual(count, [{ n: 2 }])
    }).pipe(Effect.provide(database))
  )
})
