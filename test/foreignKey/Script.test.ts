import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Steps from "../../src/foreignKey/steps/steps.js"
import * as Snapshot from "../../src/foreignKey/snapshot/snapshot.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import type { Session } from "../../src/connection/session.js"
import * as Database from "../../src/Database.js"
import { psql } from "../support/psql.js"
import { eventually } from "../support/eventually.js"
import { emptyDatabase } from "../support/server.js"
import { application } from "./support.js"
import { cases } from "../support/length.js"

/** A database of its own, and what the tests do in it. */
const inDatabase = <A, E>(
  use: (
    session: Session,
    run: (script: string) => ReturnType<typeof psql>
  ) => Effect.Effect<A, E, Database.Database | Scope.Scope>
) =>
  Effect.gen(function* () {
    const { url } = yield* emptyDatabase
    return yield* Effect.scoped(
      Effect.flatMap(application, (session) => use(session, (script) => psql(url, script)))
    ).pipe(Effect.provide(Database.layer({ url, minConnections: 0 })))
  })

const script = (onDelete: ForeignKey.Action) =>
  Effect.map(ForeignKey.plan({ selectors: {}, onDelete, allowRowMovement: true }), ForeignKey.planScript)

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent);
  INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)`

const shapes: ReadonlyArray<readonly [name: string, sql: string]> = [
  ["a key of ordinary tables", pair],
  [
    "a self-reference",
    "CREATE TABLE node (id int PRIMARY KEY, up int CONSTRAINT fk REFERENCES node); INSERT INTO node VALUES (1, 1)"
  ],
  [
    "a DEFERRABLE key with a comment",
    `${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE INITIALLY IMMEDIATE; COMMENT ON CONSTRAINT fk ON child IS 'it''s; "kept"'`
  ],
  [
    "an INITIALLY DEFERRED key",
    `${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE INITIALLY DEFERRED`
  ],
  [
    "a partitioned referencing table",
    `CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent) PARTITION BY LIST (parent_id);
    CREATE TABLE one PARTITION OF child FOR VALUES IN (1); CREATE TABLE other PARTITION OF child DEFAULT;
    INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)`
  ],
  [
    "a partitioned referenced table",
    `CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY LIST (id);
    CREATE TABLE one PARTITION OF parent FOR VALUES IN (1); CREATE TABLE other PARTITION OF parent DEFAULT;
    CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent);
    INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)`
  ],
  [
    "names of every kind",
    `CREATE SCHEMA "; \\! psql's :own"; SET search_path = "; \\! psql's :own";
    CREATE TABLE "na""me
-- of
parent" ("$$id$$" int PRIMARY KEY);
    CREATE TABLE "名前 ':x'" ("back\\slash" int CONSTRAINT "E'fk'" REFERENCES "na""me
-- of
parent");
    COMMENT ON CONSTRAINT "E'fk'" ON "名前 ':x'" IS E'a\\\\b\\nc; :''d''';
    INSERT INTO "na""me
-- of
parent" VALUES (1); INSERT INTO "名前 ':x'" VALUES (1); RESET search_path`
  ],
  [
    "a key whose triggers would come to fire last",
    `${pair};
    DO $$ DECLARE r record; BEGIN
      FOR r IN SELECT tgname, tgrelid::regclass AS relation FROM pg_trigger LOOP
        EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, 'late_' || r.tgname);
      END LOOP;
    END $$`
  ]
]

const telling = new Set([
  "a DEFERRABLE key with a comment",
  "a partitioned referencing table",
  "names of every kind"
])

describe("a script for psql", () => {
  for (const [name, sql] of cases(
    shapes,
    ([name]) => telling.has(name),
    ([name]) => name === "a DEFERRABLE key with a comment"
  )) {
    it.scopedLive(`changes ${name} into what it is to be, and nothing else`, () =>
      inDatabase((session, run) =>
        Effect.gen(function* () {
          yield* session.query(sql)
          const [key] = yield* Catalog.read(session)
          assert(key !== undefined)
          const read = Effect.flatMap(
            Snapshot.read(session, key.referencing.oid, key.name),
            Effect.fromNullable
          )
          const original = yield* read
          const version = yield* Catalog.serverVersion(session)
          const { code, stderr, stdout } = yield* run(yield* script("cascade"))
          assert.deepStrictEqual([code, stdout, stderr], [0, "", ""])
          const goal = Steps.goal({
            key,
            original,
            target: { action: "cascade", columns: [] },
            version,
            superuser: true
          })
          assert.deepStrictEqual(Snapshot.compare(goal, yield* read), [])
          const after = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade", allowRowMovement: true })
          assert.deepStrictEqual(after.steps, [])
        })
      )
    )
  }

  inMatrix(it).scopedLive(
    "has the engine's limits: for autovacuum, for the sum of the waits, for the work",
    () =>
      inDatabase((session, run) =>
        Effect.gen(function* () {
          yield* session.query(pair)
          const text = yield* script("cascade")
          const swap = text.split("\n\n").find((section) => section.includes(": swap")) ?? ""
          assert.match(
            swap.replaceAll("\n", " "),
            /lock_timeout = '1500ms'.* IN SHARE UPDATE EXCLUSIVE MODE;.* SET LOCAL statement_timeout = '200ms'; DO 'DECLARE.* LOCK TABLE ONLY "public"."parent", ONLY "public"."child" IN ACCESS EXCLUSIVE MODE;.*set_config\(''statement_timeout'', greatest\(1, 250 -/
          )
          // It is not the wait for one lock that ends it.
          const holder = yield* application
          yield* holder.query("BEGIN; LOCK TABLE child IN ROW EXCLUSIVE MODE")
          const stopped = yield* run(text)
          assert.notStrictEqual(stopped.code, 0)
          assert.include(stopped.stderr, "the locks were not to be had")
          yield* holder.query("ROLLBACK")
          // What was done of it is not done again by the next script.
          const again = yield* run(yield* script("cascade"))
          assert.strictEqual(again.code, 0, again.stderr)
          const [info] = yield* ForeignKey.list()
          assert.strictEqual(info?.onDelete, "cascade")
          assert.deepStrictEqual(
            (yield* ForeignKey.history()).map(({ outcome }) => outcome),
            ["changed"]
          )
        })
      )
  )

  inMatrix(it).scopedLive("keeps to the deadlock_timeout of the server", () =>
    inDatabase((session) =>
      Effect.gen(function* () {
        yield* session.query(
          `${pair}; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''100ms''', current_database()); END $$`
        )
        assert.include(yield* script("cascade"), "SET LOCAL statement_timeout = '60ms'")
      })
    )
  )

  inFull(it).scopedLive("waits before it settles a DEFERRABLE key for transactions of before", () =>
    inDatabase((session, run) =>
      Effect.gen(function* () {
        yield* session.query(`${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE INITIALLY IMMEDIATE`)
        const old = yield* application
        yield* old.query("BEGIN; SET CONSTRAINTS fk DEFERRED; SELECT pg_current_xact_id()")
        const running = yield* Effect.fork(run(yield* script("cascade")))
        yield* eventually(
          "the script waits to settle",
          Effect.map(
            session.query(
              "SELECT FROM pg_stat_activity WHERE query LIKE '%deadline timestamptz%' AND wait_event = 'PgSleep' AND datname = current_database()"
            ),
            (rows) => rows.length === 1
          )
        )
        yield* old.query("INSERT INTO child VALUES (2); INSERT INTO parent VALUES (2); COMMIT")
        const { code, stderr } = yield* running
        assert.deepStrictEqual([code, stderr], [0, ""])
        assert.deepInclude((yield* ForeignKey.list())[0], { onDelete: "cascade", initiallyDeferred: false })
      })
    )
  )

  it.scopedLive("does not run beside another change, and says what it was made from and leaves out", () =>
    inDatabase((session, run) =>
      Effect.gen(function* () {
        yield* session.query(`${pair};
          CREATE TABLE done (parent_id int CONSTRAINT done REFERENCES parent ON DELETE CASCADE);
          CREATE TABLE broken (parent_id int CONSTRAINT broken REFERENCES parent);
          UPDATE pg_constraint SET confdeltype = 'n' WHERE conname = 'broken'`)
        const text = yield* script("cascade")
        const [{ version } = { version: "" }] = yield* session.query<{ version: string }>(
          "SELECT current_setting('server_version') AS version"
        )
        assert.include(text.split("\n")[0], `PostgreSQL ${version}, as they were at 2`)
        assert.include(text, "-- = public.done.done has this action already")
        assert.match(text, /^-- x public\.broken\.broken is refused: /m)
        assert.match(text, /^-- ! public\.child\.fk: deleting from public\.parent will also delete/m)
        yield* session.query("SELECT pg_advisory_lock(1885824098, 1718314361)")
        const busy = yield* run(text)
        assert.notStrictEqual(busy.code, 0)
        assert.match(busy.stderr, /are being changed by another process|P0001/)
      })
    )
  )
})
