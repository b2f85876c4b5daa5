import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Names from "../../src/foreignKey/snapshot/names.js"
import type * as Refusals from "../../src/foreignKey/hazards/refusals.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { repository } from "../support/command.js"
import { eventually } from "../support/eventually.js"
import { application, comparable, database, snapshots, withRole } from "./support.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int NOT NULL CONSTRAINT fk REFERENCES parent);
  INSERT INTO parent SELECT generate_series(1, 10);
  INSERT INTO child SELECT id, id FROM parent`

/** The same, partitioned, with a partition in another schema. */
const cutPair = `
  CREATE SCHEMA elsewhere;
  CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
  CREATE TABLE parent_1 PARTITION OF parent FOR VALUES FROM (0) TO (10);
  CREATE TABLE parent_2 PARTITION OF parent DEFAULT;
  CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent) PARTITION BY RANGE (parent_id);
  CREATE TABLE child_1 PARTITION OF child FOR VALUES FROM (0) TO (10);
  CREATE TABLE child_2 PARTITION OF child DEFAULT PARTITION BY RANGE (parent_id);
  CREATE TABLE elsewhere.child_3 PARTITION OF child_2 DEFAULT`

/** The keys that a change to CASCADE is refused for; proves that nothing was touched. */
const refused = (options: Partial<ForeignKey.RebuildOptions> = {}) =>
  Effect.gen(function* () {
    const session = yield* application
    const before = yield* snapshots(session)
    const result = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", ...options })
    assert.deepStrictEqual([result.rebuilt, result.failed], [[], []])
    assert.deepStrictEqual(yield* snapshots(session), before)
    const planned = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade", ...options })
    assert.deepStrictEqual(planned.refused, result.refused)
    return result.refused
  })

/** The same, by code. */
const refusals = Effect.map(refused(), (keys) => keys.map(({ code }) => code))

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
          ],
          notes: []
        }
      ])
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("when one of its tables belongs to an extension", () =>
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

  it.scopedLive("when the role may not do what a change does with both tables, naming what is missing", () =>
    withRole(
      (role) => `${pair}; ALTER TABLE child OWNER TO ${role}`,
      ({ limited, role }) =>
        Effect.gen(function* () {
          const [key] = yield* Effect.provide(refused({ ledger: false }), limited)
          assert.deepStrictEqual(key, {
            constraint: "public.child.fk",
            code: "privileges",
            reason: `role ${role} lacks REFERENCES on the referenced table`
          })
        })
    )
  )

  inFull(it).scopedLive("when partitions that its steps work on belong to another role", () =>
    withRole(
      (role) => `${cutPair}; GRANT USAGE, CREATE ON SCHEMA public TO ${role};
        ALTER TABLE parent OWNER TO ${role}; ALTER TABLE child OWNER TO ${role};
        ALTER TABLE child_2 OWNER TO ${role}; ALTER TABLE elsewhere.child_3 OWNER TO ${role};
        ALTER TABLE parent_2 OWNER TO ${role}`,
      ({ limited, role, session }) =>
        Effect.gen(function* () {
          const version = yield* Catalog.serverVersion(session)
          const choice = { allowRowMovement: true, createIndexes: true }
          const [key] = yield* Effect.provide(refused(choice), limited)
          const missing = [
            `ownership of partition public.child_1${version < 150_000 ? ", partition public.parent_1" : ""}`,
            "USAGE on schema elsewhere",
            ...(version < 180_000
              ? ["UPDATE, DELETE or TRUNCATE (to lock it) on partition public.child_1"]
              : []),
            "SELECT on partition public.child_1",
            "CREATE (to build an index) on schema elsewhere"
          ]
          assert.deepStrictEqual(key, {
            constraint: "public.child.fk",
            code: "privileges",
            reason: `role ${role} lacks ${missing.join(", ")}`
          })
          yield* session.query(
            `ALTER TABLE child_1 OWNER TO ${role}; GRANT USAGE, CREATE ON SCHEMA elsewhere TO ${role}`
          )
          if (version < 150_000) yield* session.query(`ALTER TABLE parent_1 OWNER TO ${role}`)
          // What was not named is not needed, on the way of many steps either.
          for (const [onDelete, swapTries] of [
            ["cascade", 60],
            ["restrict", 0]
          ] as const) {
            const result = yield* ForeignKey.rebuild({ selectors: {}, onDelete, swapTries, ...choice }).pipe(
              Effect.provide(limited)
            )
            assert.deepStrictEqual([result.refused, result.failed, result.rebuilt.length], [[], [], 1])
          }
        })
    )
  )

  inFull(it).scopedLive("when it may not create the index that is to be built", () =>
    withRole(
      (role) => `${pair}; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
        ALTER TABLE parent OWNER TO ${role}; ALTER TABLE child OWNER TO ${role}`,
      ({ limited, role }) =>
        Effect.gen(function* () {
          const [key] = yield* Effect.provide(refused({ ledger: false, createIndexes: true }), limited)
          assert.deepStrictEqual(key, {
            constraint: "public.child.fk",
            code: "privileges",
            reason: `role ${role} lacks CREATE (to build an index) on schema public`
          })
          const without = yield* Effect.provide(
            ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", ledger: false }),
            limited
          )
          assert.deepStrictEqual([without.refused, without.rebuilt.length], [[], 1])
        })
    )
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

/** Kept complete by the type checker. */
const codes = {
  period: true,
  "foreign-table": true,
  extension: true,
  "row-movement": true,
  privileges: true,
  "catalog-disagrees": true,
  "trigger-state": true,
  "bound-index": true,
  columns: true,
  leftover: true,
  "partition-key": true,
  "detach-pending": true,
  ledger: true,
  "no-record": true,
  language: true,
  "typed-table": true,
  "generated-column": true,
  rehearsal: true,
  "unreadable-name": true,
  "firing-order": true
} satisfies Record<Refusals.Refusal["code"], true>

const cases: ReadonlyArray<{
  readonly code: keyof typeof codes
  readonly when: string
  readonly setup: (role: string) => string
  readonly options?: Partial<ForeignKey.RebuildOptions>
  /** Who asks, if not the superuser. */
  readonly by?: "owner"
  readonly reason: string
}> = [
  {
    // No server allows a key there; what is tested is that an edited catalog does no harm.
    code: "foreign-table",
    when: "a partition is a foreign table",
    setup: () => `${cutPair}; UPDATE pg_class SET relkind = 'f' WHERE oid = 'child_1'::regclass`,
    options: { allowRowMovement: true },
    reason: "partition public.child_1 is a foreign table"
  },
  {
    code: "foreign-table",
    when: "the referenced table is a foreign table",
    setup: () => `${pair}; UPDATE pg_class SET relkind = 'f' WHERE oid = 'parent'::regclass`,
    reason: "public.parent is a foreign table"
  },
  {
    code: "language",
    when: "PL/pgSQL is missing",
    setup: () => `${pair}; DROP EXTENSION plpgsql`,
    reason: "PL/pgSQL is missing, every step proves itself with it: CREATE EXTENSION plpgsql"
  },
  {
    code: "trigger-state",
    when: "a trigger is disabled, and the role could not disable the new one's",
    setup: (role) => `${pair}; ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role};
      DO $$ BEGIN EXECUTE format('ALTER TABLE parent DISABLE TRIGGER %I', (
        SELECT tgname FROM pg_trigger WHERE tgfoid = '"RI_FKey_noaction_del"'::regproc AND tgrelid = 'parent'::regclass
      )); END $$`,
    by: "owner",
    reason:
      "its trigger RI_FKey_noaction_del on public.parent is disabled, and only a superuser can keep that: enable it first, or run as a superuser"
  },
  {
    code: "columns",
    when: "a column is not one of the key",
    setup: () => pair,
    options: { onDelete: "set-null", onDeleteColumns: ["parent_id", "id"] },
    reason: "id is not one of its columns"
  },
  {
    code: "columns",
    when: "the action takes no columns",
    setup: () => pair,
    options: { onDelete: "restrict", onDeleteColumns: ["parent_id"] },
    reason: "ON DELETE RESTRICT takes no columns"
  },
  {
    code: "leftover",
    when: "what is left of a change of a key that is gone is there",
    setup: () => `${pair};
      ALTER TABLE child ADD CONSTRAINT ${Names.temporary("gone")} FOREIGN KEY (parent_id) REFERENCES parent NOT VALID`,
    options: { selectors: { constraints: [{ table: "child", name: "fk" }] } },
    reason: `public.child.${Names.temporary("gone")} is left over from a change of a constraint that is gone: drop it or rename it`
  },
  {
    code: "typed-table",
    when: "the referencing table is a typed one",
    setup: () => `CREATE TABLE parent (id int PRIMARY KEY); CREATE TYPE "Row" AS (id int, parent_id int);
      CREATE TABLE child OF "Row" (CONSTRAINT fk FOREIGN KEY (parent_id) REFERENCES parent)`,
    reason: `public.child is a typed table, of which PostgreSQL renames no constraint, so that the new key could not take its name: ALTER TABLE public.child NOT OF, change the key, and ALTER TABLE public.child OF public."Row"`
  },
  {
    code: "generated-column",
    when: "a generated column would be set",
    setup: () => `CREATE TABLE parent (id int PRIMARY KEY);
      CREATE TABLE child (id int, parent_id int GENERATED ALWAYS AS (id + 1) STORED CONSTRAINT fk REFERENCES parent)`,
    options: { onDelete: "set-default" },
    reason:
      "parent_id is generated, and PostgreSQL allows no ON DELETE SET DEFAULT for a key with generated columns: only cascade, restrict and no-action are possible"
  },
  {
    code: "rehearsal",
    when: "an event trigger fails on the statements of a step",
    setup: () => `${pair}; CREATE TABLE ddl_log (tag text);
      CREATE FUNCTION log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO ddl_log VALUES (tg_tag); END';
      CREATE EVENT TRIGGER log_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION log_ddl()`,
    reason:
      'PostgreSQL refuses step add: relation "ddl_log" does not exist (42P01). Event triggers that are enabled here: log_ddl. This was found in a rehearsal: nothing was touched'
  }
]

describe("a key is refused with a reason, and nothing touched, when", () => {
  for (const { by, code, options, reason, setup, when } of cases) {
    it.scopedLive(when, () =>
      withRole(setup, ({ limited, session }) =>
        Effect.gen(function* () {
          const version = yield* Catalog.serverVersion(session)
          const found = refused({ ledger: false, ...options })
          const keys = yield* by === "owner" ? Effect.provide(found, limited) : found
          const reasons =
            options?.onDeleteColumns !== undefined && version < 150_000
              ? `${reason}; a list of columns for SET NULL or SET DEFAULT needs PostgreSQL 15 or later`
              : reason
          assert.deepStrictEqual(keys, [{ constraint: "public.child.fk", code, reason: reasons }])
        })
      )
    )
  }

  it("for one of the reasons in the documentation, which has all of them", () => {
    const text = Fs.readFileSync(Path.join(repository, "docs/foreign-key-reference.md"), "utf8")
    const section = text.slice(text.indexOf("## What is refused"), text.indexOf("## Limits"))
    const documented = [...section.matchAll(/^\| (`[^|]+) \|/gm)].flatMap(([, cell = ""]) =>
      [...cell.matchAll(/`([^`]+)`/g)].map(([, code]) => code)
    )
    assert.sameMembers(documented, Object.keys(codes))
  })
})

describe("a role that only owns the tables", () => {
  inMatrix(it).scopedLive("changes their keys there and back, among sessions of other roles", () =>
    withRole(
      (role) => `${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE;
        ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role};
        GRANT CREATE ON SCHEMA public TO ${role}`,
      ({ limited, session }) =>
        Effect.gen(function* () {
          const before = comparable(yield* snapshots(session))
          for (const onDelete of ["cascade", "no-action"] as const) {
            const result = yield* Effect.provide(ForeignKey.rebuild({ selectors: {}, onDelete }), limited)
            assert.deepStrictEqual([result.refused, result.failed, result.rebuilt.length], [[], [], 1])
          }
          assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
        })
    )
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
      // With all that one run changes.
      const all = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
      assert.deepInclude(all.warnings, {
        constraint: "public.child.fk",
        code: "reaches",
        warning:
          "deleting from public.parent will also delete from public.child (about 10 rows), public.grandchild (never analyzed), public.bystander (never analyzed)"
      })
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

  inMatrix(it).scopedLive(
    "of what a delete reaches by keys to and of partitions, and by keys to the tables above them",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        const cut = (name: string, columns: string) => `
        CREATE TABLE ${name} (id int PRIMARY KEY, ${columns}) PARTITION BY RANGE (id);
        CREATE TABLE ${name}_1 PARTITION OF ${name} FOR VALUES FROM (0) TO (10);
        CREATE TABLE ${name}_2 PARTITION OF ${name} DEFAULT;`
        yield* session.query(`
        CREATE TABLE parent (id int PRIMARY KEY);
        ${cut("child", "parent_id int CONSTRAINT fk REFERENCES parent")}
        CREATE TABLE of_part (child_id int REFERENCES child_1 ON DELETE CASCADE);
        ${cut("leg", "child_id int")}
        ALTER TABLE leg_1 ADD FOREIGN KEY (child_id) REFERENCES child ON DELETE CASCADE;
        CREATE TABLE of_leg (leg_id int REFERENCES leg ON DELETE CASCADE);
        CREATE TABLE of_other_leg (leg_id int REFERENCES leg_2 ON DELETE CASCADE);
        CREATE TABLE loop (id int PRIMARY KEY, leg_id int REFERENCES leg_1 ON DELETE CASCADE,
          child_id int CONSTRAINT inner_key REFERENCES child_1)`)
        const found = yield* warnings("cascade")
        const list = found.find((warning) => warning.startsWith("deleting from public.parent"))
        assert.sameMembers(
          [...(list ?? "").matchAll(/public\.(\w+) \(/g)].map(([, table]) => table),
          ["child", "of_part", "leg_1", "of_leg", "loop"]
        )
        assert.isTrue(
          found.some((warning) => warning.startsWith("public.loop.inner_key has ON DELETE NO ACTION"))
        )
        // It is so: a delete goes all the way, and leaves alone what was not named.
        yield* ForeignKey.rebuild({
          selectors: { constraints: [{ table: "child", name: "fk" }] },
          onDelete: "cascade"
        })
        yield* session.query(`
        INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1); INSERT INTO of_part VALUES (1);
        INSERT INTO leg VALUES (1, 1), (11, 1); INSERT INTO of_leg VALUES (1), (11); INSERT INTO of_other_leg VALUES (11);
        INSERT INTO loop VALUES (1, 1, NULL);
        DELETE FROM parent`)
        const counts = yield* session.query(`SELECT (SELECT count(*)::int FROM child) AS child,
        (SELECT count(*)::int FROM of_part) AS of_part, (SELECT count(*)::int FROM leg) AS leg,
        (SELECT count(*)::int FROM of_leg) AS of_leg, (SELECT count(*)::int FROM of_other_leg) AS of_other_leg,
        (SELECT count(*)::int FROM loop) AS loop`)
        assert.deepStrictEqual(counts, [
          { child: 0, of_part: 0, leg: 1, of_leg: 1, of_other_leg: 1, loop: 0 }
        ])
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive(
    "of what is in the way in tables further down, but not beside the way of the delete",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${pair}; CREATE INDEX ON child (parent_id);
        CREATE TABLE grandchild (id int PRIMARY KEY, child_id int REFERENCES child ON DELETE CASCADE);
        CREATE TABLE follower (grandchild_id int NOT NULL REFERENCES grandchild ON DELETE SET NULL);
        CREATE TABLE guard (grandchild_id int REFERENCES grandchild);
        CREATE TABLE bystander (parent_id int REFERENCES parent ON DELETE CASCADE);
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER keep BEFORE DELETE ON grandchild FOR EACH ROW EXECUTE FUNCTION keep();
        ALTER TABLE grandchild ENABLE ROW LEVEL SECURITY;
        ALTER TABLE grandchild REPLICA IDENTITY NOTHING;
        CREATE PUBLICATION deletes FOR TABLE grandchild WITH (publish = 'delete');
        CREATE PUBLICATION updates FOR TABLE follower WITH (publish = 'update')`)
        const found = yield* warnings("cascade")
        assert.deepStrictEqual(
          found.filter((warning) => !warning.startsWith("deleting from")),
          [
            "no index on (child_id): every delete in public.child reads all of public.grandchild",
            "public.grandchild is published (deletes) without a replica identity: deletes in public.parent that reach it will fail with 55000",
            "public.grandchild has row security, which the cascade does not ask: it runs as the owner of public.grandchild",
            "trigger keep on public.grandchild can keep rows from being deleted: they would be left without a referenced row",
            "no index on (grandchild_id): every delete in public.grandchild reads all of public.follower",
            "public.follower is published (updates) without a replica identity: deletes in public.parent that reach it will fail with 55000",
            "grandchild_id is NOT NULL: deletes in public.parent that reach it will fail with 23502",
            "no index on (grandchild_id): every delete in public.grandchild reads all of public.guard"
          ]
        )
        // Without a cascade nothing further down is reached.
        assert.deepStrictEqual(yield* warnings("restrict"), [])
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
      const before = yield* snapshots(session)
      const { failed } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
      assert.strictEqual(failed[0]?.code, "RowsViolate")
      assert.include(failed[0]?.reason, "2 rows have no referenced row, for example with (77)")
      assert.deepStrictEqual(yield* snapshots(session), before)
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

describe("a NOT ENFORCED key (18 and later)", () => {
  it.scopedLive("is said never to act by plan, rebuild, list and check, and is no problem", () =>
    Effect.gen(function* () {
      const session = yield* application
      if ((yield* Catalog.serverVersion(session)) < 180_000) return
      yield* session.query(`
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent NOT ENFORCED);
        CREATE TABLE grandchild (child_id int CONSTRAINT fk REFERENCES child);
        INSERT INTO parent VALUES (1);
        INSERT INTO child VALUES (1, 1)`)
      const warning =
        "it is NOT ENFORCED: whatever its action, a delete in public.parent does nothing in public.child, and no row of it is checked"
      const selectors = { tables: [{ table: "child" }] }
      const warned = [{ constraint: "public.child.fk", code: "not-enforced", warning }] as const
      const planned = yield* ForeignKey.plan({ selectors, onDelete: "cascade", createIndexes: false })
      assert.deepStrictEqual(planned.warnings, warned)
      const events: Array<string> = []
      const changed = yield* ForeignKey.rebuild({
        selectors,
        onDelete: "cascade",
        onProgress: ({ _tag }) => Effect.sync(() => events.push(_tag))
      })
      assert.deepStrictEqual([changed.rebuilt.length, changed.warnings], [1, warned])
      assert.notInclude(events, "Overlap")
      const again = yield* ForeignKey.rebuild({ selectors, onDelete: "cascade" })
      assert.deepStrictEqual([again.unchanged, again.warnings], [["public.child.fk"], warned])
      const [listed] = yield* ForeignKey.list(selectors)
      assert.deepStrictEqual(
        [listed?.onDelete, listed?.enforced, listed?.problems],
        ["cascade", false, [warning]]
      )
      assert.deepStrictEqual(yield* ForeignKey.check(selectors), [
        { constraint: "public.child.fk", problems: [], notes: [warning] }
      ])
      yield* session.query("DELETE FROM parent")
      assert.strictEqual((yield* session.query("SELECT FROM child")).length, 1)
    }).pipe(Effect.provide(database))
  )
})

describe("a temporary table", () => {
  inMatrix(it).scopedLive(
    "is nobody's business but its session's: a change of all keys does not see its",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        const other = yield* application
        yield* other.query(pair.replaceAll("CREATE TABLE", "CREATE TEMPORARY TABLE"))
        const { failed, rebuilt, refused } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
        assert.deepStrictEqual(
          [failed, refused, rebuilt.map(({ constraint }) => constraint)],
          [[], [], ["public.child.fk"]]
        )
      }).pipe(Effect.provide(database))
  )
})

describe("a partitioned table", () => {
  const cut = `
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int, parent_id int) PARTITION BY RANGE (id);
    CREATE TABLE child_1 PARTITION OF child FOR VALUES FROM (0) TO (10);
    CREATE TABLE child_2 PARTITION OF child FOR VALUES FROM (10) TO (20);
    ALTER TABLE child_1 ADD CONSTRAINT a_own FOREIGN KEY (parent_id) REFERENCES parent ON DELETE CASCADE;
    COMMENT ON CONSTRAINT a_own ON child_1 IS 'mine';
    ALTER TABLE child ADD CONSTRAINT fk FOREIGN KEY (parent_id) REFERENCES parent`
  const whole = { selectors: { tables: [{ table: "child" }] } }

  inMatrix(it).scopedLive(
    "is refused while a partition has an equal key of its own, and leaves one alone that is not equal",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(cut)
        const own = Effect.map(snapshots(session), (all) => comparable(all)["public.child_1.a_own"])
        const before = yield* own
        const first = yield* ForeignKey.rebuild({ ...whole, onDelete: "cascade" })
        assert.deepStrictEqual(
          first.refused.map(({ code }) => code),
          ["partition-key"]
        )
        assert.include(first.refused[0]?.reason, "public.child_1.a_own is a key of that partition alone")
        const second = yield* ForeignKey.rebuild({ ...whole, onDelete: "restrict" })
        assert.deepStrictEqual([second.failed, second.refused, second.rebuilt.length], [[], [], 1])
        assert.deepStrictEqual(yield* own, before)
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("is refused while a DETACH CONCURRENTLY is not finished (14 and later)", () =>
    Effect.gen(function* () {
      const session = yield* application
      if ((yield* Catalog.serverVersion(session)) < 140_000) return
      yield* session.query(`${cut}; ALTER TABLE child_1 DROP CONSTRAINT a_own`)
      const reader = yield* application
      yield* reader.query("BEGIN; SELECT count(*) FROM child")
      const detaching = yield* application
      const detach = yield* Effect.fork(
        detaching.query("ALTER TABLE child DETACH PARTITION child_2 CONCURRENTLY")
      )
      yield* eventually(
        "the partition is marked",
        Effect.map(
          session.query("SELECT FROM pg_inherits i WHERE (to_jsonb(i) ->> 'inhdetachpending')::boolean"),
          ({ length }) => length === 1
        )
      )
      yield* session.query("SELECT pg_cancel_backend($1::int)", [detaching.processId])
      yield* Effect.flip(Fiber.join(detach))
      yield* reader.query("COMMIT")
      const { refused } = yield* ForeignKey.rebuild({ ...whole, onDelete: "cascade" })
      assert.deepStrictEqual(
        refused.map(({ code }) => code),
        ["detach-pending"]
      )
      const [, finish = ""] = / not finished: (.*)$/.exec(refused[0]?.reason ?? "") ?? []
      yield* session.query(finish)
      const { failed, rebuilt } = yield* ForeignKey.rebuild({ ...whole, onDelete: "cascade" })
      assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
    }).pipe(Effect.provide(database))
  )
})
