import { assert, describe, inFull, it, layer } from "../support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import * as Database from "../../src/Database.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Migrator from "../../src/Migrator.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { adminSession } from "../support/server.js"
import { loader } from "../support/migrations.js"

const run = (statement: string) => Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement))

const each = (...statements: ReadonlyArray<string>) => Effect.forEach(statements, run, { discard: true })

const scratchDatabases = Effect.map(
  run(
    "SELECT FROM pg_database WHERE datname LIKE 'promptgrimoire_scratch_' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '_%'"
  ),
  (rows) => rows.length
)

/** Each test has a database of its own. */
const inDatabase = (name: string, test: Effect.Effect<unknown, unknown, Database.Provided>) =>
  it.live(name, () => Effect.provide(test, TestDatabase.layer()))

const schema = each(
  "CREATE TYPE mood AS ENUM ('good', 'bad')",
  "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
  "CREATE TABLE parent (id int PRIMARY KEY, mood mood NOT NULL DEFAULT 'good', amount positive, at timestamptz(3))",
  "CREATE TABLE child (id bigint GENERATED ALWAYS AS IDENTITY, parent_id int CONSTRAINT fk REFERENCES parent ON DELETE CASCADE, UNIQUE (id))",
  "CREATE INDEX child_parent ON child (parent_id)",
  "CREATE VIEW joined AS SELECT p.id FROM parent p JOIN child c ON c.parent_id = p.id",
  "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
  "CREATE TRIGGER stop BEFORE DELETE ON parent FOR EACH ROW EXECUTE FUNCTION stop()",
  "CREATE TABLE cut (id int) PARTITION BY RANGE (id)",
  "CREATE TABLE cut_low PARTITION OF cut FOR VALUES FROM (0) TO (10)"
)

const loaded = Migrator.fromRecord({ "1_schema": schema })

/** A change behind the back of the migrations, and what is said about it. */
const drifts: ReadonlyArray<
  readonly [
    statement: string,
    ...found: ReadonlyArray<readonly [string, string, string | null, string | null]>
  ]
> = [
  ["ALTER TABLE parent ADD COLUMN extra text", ["column", "public.parent.extra", null, "text"]],
  [
    "ALTER TABLE parent ALTER COLUMN at TYPE timestamptz",
    ["column", "public.parent.at", "timestamp(3) with time zone", "timestamp with time zone"]
  ],
  [
    "ALTER TABLE parent ALTER COLUMN mood SET DEFAULT 'bad'",
    [
      "column",
      "public.parent.mood",
      "public.mood NOT NULL DEFAULT 'good'::public.mood",
      "public.mood NOT NULL DEFAULT 'bad'::public.mood"
    ]
  ],
  [
    "ALTER TABLE parent ALTER COLUMN mood DROP NOT NULL",
    [
      "column",
      "public.parent.mood",
      "public.mood NOT NULL DEFAULT 'good'::public.mood",
      "public.mood DEFAULT 'good'::public.mood"
    ]
  ],
  [
    "ALTER TABLE child DROP CONSTRAINT fk, ADD CONSTRAINT fk FOREIGN KEY (parent_id) REFERENCES parent",
    [
      "constraint",
      "public.child.fk",
      "FOREIGN KEY (parent_id) REFERENCES public.parent(id) ON DELETE CASCADE",
      "FOREIGN KEY (parent_id) REFERENCES public.parent(id)"
    ]
  ],
  [
    "DROP INDEX child_parent",
    [
      "index",
      "public.child_parent",
      "CREATE INDEX child_parent ON public.child USING btree (parent_id)",
      null
    ]
  ],
  [
    "ALTER TABLE parent DISABLE TRIGGER stop",
    [
      "trigger",
      "public.parent.stop",
      "CREATE TRIGGER stop BEFORE DELETE ON public.parent FOR EACH ROW EXECUTE FUNCTION public.stop()",
      "CREATE TRIGGER stop BEFORE DELETE ON public.parent FOR EACH ROW EXECUTE FUNCTION public.stop() DISABLED"
    ]
  ],
  ["ALTER TYPE mood ADD VALUE 'odd'", ["enum", "public.mood", "'good', 'bad'", "'good', 'bad', 'odd'"]],
  [
    "ALTER DOMAIN positive SET NOT NULL",
    [
      "domain",
      "public.positive",
      "integer CONSTRAINT positive_check CHECK ((VALUE > 0))",
      "integer NOT NULL CONSTRAINT positive_check CHECK ((VALUE > 0))"
    ]
  ],
  [
    "CREATE TABLE cut_high PARTITION OF cut FOR VALUES FROM (10) TO (20)",
    ["column", "public.cut_high.id", null, "integer"],
    ["table", "public.cut_high", null, "FOR VALUES FROM (10) TO (20) OF public.cut"]
  ],
  ["ALTER TABLE parent ENABLE ROW LEVEL SECURITY", ["table", "public.parent", "", "ROW LEVEL SECURITY"]],
  [
    "ALTER TABLE child ALTER COLUMN id SET CYCLE",
    [
      "sequence",
      "public.child_id_seq",
      "AS bigint START 1 INCREMENT 1 MINVALUE 1 MAXVALUE 9223372036854775807 CACHE 1",
      "AS bigint START 1 INCREMENT 1 MINVALUE 1 MAXVALUE 9223372036854775807 CACHE 1 CYCLE"
    ]
  ]
]

layer(TestDatabase.layer(), { excludeTestServices: true, timeout: "2 minutes" })("Migrator.check", (it) => {
  it.effect("finds every difference between the schema and what its migrations make, and no other", () =>
    Effect.gen(function* () {
      yield* Migrator.run({ loader: loaded })
      assert.deepStrictEqual(yield* Migrator.check({ loader: loaded }), { current: 1, differences: [] })
      // A schema in which no migration makes anything belongs to somebody else.
      yield* each(
        "CREATE SCHEMA other",
        "CREATE TABLE other.parent (id int)",
        ...drifts.map(([statement]) => statement)
      )
      const { differences } = yield* Migrator.check({ loader: loaded })
      const expected = drifts.flatMap(([, ...found]) => found)
      const merged = new Map(expected.map((one) => [`${one[0]} ${one[1]}`, one]))
      merged.set("column public.parent.mood", [
        "column",
        "public.parent.mood",
        "public.mood NOT NULL DEFAULT 'good'::public.mood",
        "public.mood DEFAULT 'bad'::public.mood"
      ])
      assert.deepStrictEqual(
        differences.map(({ actual, expected, kind, name }) => [kind, name, expected, actual]),
        [...merged.keys()].toSorted().map((key) => [...(merged.get(key) ?? [])])
      )
      assert.strictEqual(yield* scratchDatabases, 0)
    })
  )
})

describe("Migrator.check", () => {
  inDatabase(
    "refuses what does not fit the files, and says what a role needs that may create no database",
    Effect.gen(function* () {
      yield* Migrator.run({ loader: loaded })
      const unknown = yield* Effect.flip(Migrator.check({ loader: Migrator.fromRecord({}) }))
      assert.deepInclude(unknown, { reason: "Unknown" })
      const role = `without_databases_${process.pid}`
      const denied = yield* Effect.acquireUseRelease(
        each(
          `CREATE ROLE ${role}`,
          `GRANT USAGE ON SCHEMA public TO ${role}`,
          `GRANT SELECT ON ALL TABLES IN SCHEMA public TO ${role}`
        ),
        () =>
          Effect.gen(function* () {
            const { config } = yield* Database.Database
            const endpoint = { ...config.endpoint, options: `-c role=${role}` }
            return yield* Effect.flip(Migrator.check({ loader: loaded })).pipe(
              Effect.provide(
                Database.layerElsewhere({ ...config, directEndpoint: endpoint }, config.endpoint.database)
              )
            )
          }),
        () => Effect.orDie(each(`DROP OWNED BY ${role}`, `DROP ROLE ${role}`))
      )
      assert.deepInclude(denied, { reason: "NoScratchDatabase" })
      assert.include(denied.message, role)
      assert.include(denied.message, "CREATEDB")
    })
  )
})

describe("Migrator.plan", () => {
  inDatabase(
    "has the statements and locks of each pending migration, and leaves the database alone",
    Effect.gen(function* () {
      const migrations = {
        "1_schema": schema,
        "2_change": Effect.flatMap(SqlClient.SqlClient, (sql) =>
          Effect.zipRight(
            each(
              "ALTER TABLE parent ADD COLUMN note text",
              "CREATE INDEX ON child (id, parent_id)",
              "CREATE TABLE fresh (id int PRIMARY KEY)",
              "INSERT INTO fresh SELECT id FROM parent"
            ),
            sql`UPDATE parent SET note = ${"secret"} WHERE id = ${7}`
          )
        ),
        "3_concurrently": Migrator.define({
          online: true,
          up: each("CREATE INDEX CONCURRENTLY later ON fresh (id)", "ALTER TABLE fresh ADD COLUMN more int")
        })
      }
      yield* Migrator.run({ loader: loaded })
      const before = yield* run(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
      )
      const loader = Migrator.fromRecord(migrations)
      const { current, migrations: planned } = yield* Migrator.plan({ loader })
      assert.strictEqual(current, 1)
      assert.deepStrictEqual(planned, [
        {
          id: 2,
          name: "change",
          online: false,
          statements: [
            "ALTER TABLE parent ADD COLUMN note text",
            "CREATE INDEX ON child (id, parent_id)",
            "CREATE TABLE fresh (id int PRIMARY KEY)",
            "INSERT INTO fresh SELECT id FROM parent",
            "UPDATE parent SET note = $1 WHERE id = $2"
          ],
          locks: [
            { relation: "public.child", mode: "SHARE" },
            { relation: "public.parent", mode: "ACCESS EXCLUSIVE" },
            { relation: "public.parent_pkey", mode: "ROW EXCLUSIVE" }
          ],
          foreignKeys: []
        },
        {
          id: 3,
          name: "concurrently",
          online: true,
          statements: [
            "CREATE INDEX CONCURRENTLY later ON fresh (id)",
            "ALTER TABLE fresh ADD COLUMN more int"
          ],
          locks: null,
          foreignKeys: []
        }
      ])
      assert.deepStrictEqual(
        yield* run("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"),
        before
      )
      assert.strictEqual(yield* scratchDatabases, 0)
      yield* Migrator.run({ loader })
      assert.deepStrictEqual(yield* Migrator.plan({ loader }), { current: 3, migrations: [] })
    })
  )

  inFull(inDatabase)(
    "has the engine's plan where a migration changes foreign keys: of the keys as they are, or will be",
    Effect.gen(function* () {
      const untouched = yield* Migrator.plan({ loader })
      assert.deepStrictEqual(
        untouched.migrations.map(({ foreignKeys, id }) => [id, foreignKeys.length]),
        [
          [1, 0],
          [2, 1]
        ]
      )
      assert.strictEqual(untouched.migrations[0]?.locks?.length, 0)
      const steps = untouched.migrations[1]?.foreignKeys[0]?.steps ?? []
      assert.strictEqual(steps.filter(({ step }) => step === "swap").length, 3)

      yield* Migrator.stamp({ loader, id: 1 })
      const dump = yield* Effect.flatMap(Database.Database, ({ config }) =>
        adminSession(config.endpoint.database)
      )
      yield* dump.query(
        readFileSync(
          new URL("../fixtures/promptgrimoire-59d4ef6caf5d.sql", import.meta.url),
          "utf8"
        ).replaceAll(/^\\.*$/gm, "")
      )
      yield* dump.query(`BEGIN; LOCK TABLE "user", class, conversation IN EXCLUSIVE MODE`)
      const { migrations: planned } = yield* Migrator.plan({ loader })
      const here = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
      assert.deepStrictEqual(planned[0]?.foreignKeys[0]?.madeFrom.database, here.madeFrom.database)
      assert.sameDeepMembers([...(planned[0]?.foreignKeys[0]?.steps ?? [])], [...here.steps])
    }).pipe(Effect.scoped)
  )

  inDatabase(
    "fails as the migration would, and drops its database",
    Effect.gen(function* () {
      const failing = Migrator.fromRecord({ "1_failing": run("ALTER TABLE nowhere ADD COLUMN id int") })
      const error = yield* Effect.flip(Migrator.plan({ loader: failing }))
      assert.deepInclude(error, { reason: "Failed", id: 1 })
      assert.include(error.message, "tried on an empty temporary database")
      assert.strictEqual(yield* scratchDatabases, 0)
      assert.deepStrictEqual(yield* Migrator.status({ loader: Migrator.fromRecord({}) }), {
        current: 0,
        migrations: []
      })
    })
  )
})
