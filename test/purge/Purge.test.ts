import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Purge from "../../src/Purge.js"
import { bundled } from "../support/bundled.js"
import { eventually } from "../support/eventually.js"
import { adminSession, emptyDatabase } from "../support/server.js"
import { disable } from "./Graphs.js"
import { application, database } from "../foreignKey/support.js"
import { cases } from "../support/length.js"

/**
 * Courses with posts, which have replies by two ways and likes; a log of which transaction deleted
 * how many rows.
 */
const tables = `
  CREATE TABLE course (id int PRIMARY KEY, code text UNIQUE);
  CREATE TABLE post (
    id int PRIMARY KEY,
    course_id int NOT NULL CONSTRAINT post_course REFERENCES course ON DELETE CASCADE,
    previous_id int CONSTRAINT post_previous REFERENCES post ON DELETE CASCADE
  );
  CREATE TABLE "like" (post_id int NOT NULL CONSTRAINT like_post REFERENCES post ON DELETE CASCADE, who int);
  CREATE TABLE note (id int PRIMARY KEY, course_id int CONSTRAINT note_course REFERENCES course ON DELETE SET NULL);
  CREATE INDEX ON post (course_id);
  CREATE INDEX ON post (previous_id);
  CREATE INDEX ON "like" (post_id);
  CREATE INDEX ON note (course_id);
  INSERT INTO course SELECT n, 'c' || n FROM generate_series(1, 3) AS n;
  INSERT INTO post SELECT n, 1 + n % 2, CASE WHEN n > 2 THEN n - 2 END FROM generate_series(1, 600) AS n;
  INSERT INTO "like" SELECT p.id, n FROM post p, generate_series(1, 3) AS n;
  INSERT INTO note SELECT n, 1 + n % 3 FROM generate_series(1, 90) AS n;
  CREATE TABLE gone (transaction bigint, relation text, event text);
  CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO gone VALUES (txid_current(), TG_TABLE_NAME, TG_OP); RETURN NULL; END $$;
  CREATE TRIGGER gone AFTER DELETE ON course FOR EACH ROW EXECUTE FUNCTION gone();
  CREATE TRIGGER gone AFTER DELETE ON post FOR EACH ROW EXECUTE FUNCTION gone();
  CREATE TRIGGER gone AFTER DELETE ON "like" FOR EACH ROW EXECUTE FUNCTION gone();
  CREATE TRIGGER gone AFTER UPDATE ON note FOR EACH ROW EXECUTE FUNCTION gone()`

const course = { from: { table: "course" }, where: [{ column: "id", value: "1" }] }

const contents = (session: Session) =>
  session.query(
    `SELECT (SELECT string_agg(t::text, ' ' ORDER BY t) FROM course t) AS course,
      (SELECT string_agg(t::text, ' ' ORDER BY t) FROM post t) AS post,
      (SELECT string_agg(t::text, ' ' ORDER BY t) FROM "like" t) AS "like",
      (SELECT string_agg(t::text, ' ' ORDER BY t) FROM note t) AS note`
  )

/** What the single DELETE leaves. */
const expected = (session: Session) =>
  session
    .query("BEGIN; DELETE FROM course WHERE id = 1")
    .pipe(Effect.zipRight(contents(session)), Effect.tap(session.query("ROLLBACK")))

const largest = (session: Session) =>
  Effect.map(
    session.query<{ readonly rows: number }>(
      "SELECT count(*)::int AS rows FROM gone GROUP BY transaction ORDER BY 1 DESC LIMIT 1"
    ),
    ([row]) => row?.rows ?? 0
  )

describe("a purge", () => {
  it.scopedLive("deletes and sets null in transactions of no more rows than a batch, chains included", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      const wanted = yield* expected(session)
      const events: Array<Purge.Progress> = []
      const result = yield* Purge.run({
        from: { schema: "public", table: "course" },
        where: [{ column: "code", value: "c1" }],
        batch: 20,
        onProgress: (event) => Effect.sync(() => events.push(event))
      })
      assert.deepStrictEqual(yield* contents(session), wanted)
      assert.isAtMost(yield* largest(session), 20)
      assert.sameDeepMembers(
        [...result.rows],
        [
          { table: "public.course", rows: 1 },
          { table: "public.post", rows: 300 },
          { table: 'public."like"'.replaceAll('"', ""), rows: 900 }
        ]
      )
      assert.deepStrictEqual(result.updates, [{ constraint: "public.note.note_course", rows: 30 }])
      const last = events.findLast((event) => event._tag === "Deleted" && event.table === "public.post")
      assert.isTrue(last?._tag === "Deleted" && last.total === 300 && last.planned === 300)
      const again = yield* Purge.run(course)
      assert.deepStrictEqual(again.rows, [])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("counts in a dry run, and writes and locks nothing", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      const before = yield* contents(session)
      const writer = yield* application
      yield* writer.query("BEGIN; SELECT FROM course FOR UPDATE; SELECT FROM post FOR UPDATE")
      yield* writer.query('LOCK course, post, "like", note IN ROW EXCLUSIVE MODE')
      const plan = yield* Purge.plan(course)
      yield* writer.query("ROLLBACK")
      assert.deepStrictEqual(plan, {
        table: "public.course",
        rows: [
          { table: "public.course", rows: 1 },
          { table: "public.post", rows: 300 },
          { table: "public.like", rows: 900 }
        ],
        updates: [{ constraint: "public.note.note_course", action: "set-null", rows: 30 }],
        refused: [],
        warnings: []
      })
      assert.deepStrictEqual(yield* contents(session), before)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("deletes a row that goes before the one whose delete would give it a default", () =>
    Effect.gen(function* () {
      const session = yield* application
      // No row can get its default, because row 99 is not there. From the third on, each refers to
      // the one before.
      yield* session.query(`
        CREATE TABLE item (
          id int PRIMARY KEY,
          above int CONSTRAINT item_above REFERENCES item ON DELETE CASCADE,
          other int DEFAULT 99 CONSTRAINT item_other REFERENCES item ON DELETE SET DEFAULT
        );
        INSERT INTO item SELECT n, nullif(1, n), CASE WHEN n > 2 THEN n - 1 END FROM generate_series(1, 30) n`)
      const target = { from: { table: "item" }, where: [{ column: "id", value: "1" }] }
      assert.deepStrictEqual((yield* Purge.plan(target)).refused, [])
      const { rows, transactions } = yield* Purge.run({ ...target, batch: 4 })
      assert.deepStrictEqual(
        rows.map(({ rows }) => rows),
        [30]
      )
      assert.isAbove(transactions, 1)
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("finishes when it is run again after kill -9 at any moment", () =>
    Effect.gen(function* () {
      const { url } = yield* emptyDatabase
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(tables)
        const wanted = yield* expected(session)
        const left = Effect.map(
          session.query<{ readonly n: number }>('SELECT count(*)::int AS n FROM "like"'),
          ([row]) => row?.n ?? 0
        )
        for (const below of cases([1700, 1400, 1000], (below) => below === 1400)) {
          const process_ = yield* start(Redacted.value(url))
          yield* eventually(
            `${below} likes are left`,
            Effect.map(left, (n) => n < below)
          )
          process_.kill()
        }
        yield* Purge.run(course)
        assert.deepStrictEqual(yield* contents(session), wanted)
      }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
    })
  )

  it.scopedLive("lets writers of other rows go on, and gives way to those of its own", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(tables)
      const wanted = yield* expected(session)
      const writer = yield* application
      yield* writer.query("SET lock_timeout = '2s'")
      yield* writer.query("BEGIN; SELECT FROM post WHERE id = 302 FOR UPDATE")
      const waits: Array<string> = []
      const purge = yield* Effect.fork(
        Purge.run({
          ...course,
          batch: 20,
          lockTimeout: "50 millis",
          onProgress: (event) =>
            Effect.sync(() => {
              if (event._tag === "Waiting") waits.push(event.reason)
            })
        })
      )
      yield* eventually(
        "the purge waits",
        Effect.sync(() => waits.length > 2)
      )
      yield* writer.query("UPDATE post SET previous_id = previous_id WHERE course_id = 2")
      yield* writer.query("COMMIT")
      yield* Fiber.join(purge)
      assert.include(waits, "LockTimeout")
      assert.deepStrictEqual(yield* contents(session), wanted)
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive(
    "deletes rows that others insert meanwhile, and leaves those that are moved away",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(tables)
        const other = yield* application
        let next = 10_000
        let moved = false
        yield* Purge.run({
          ...course,
          batch: 50,
          onProgress: (event) =>
            event._tag !== "Deleted"
              ? Effect.void
              : Effect.gen(function* () {
                  if (next < 10_050) {
                    next += 1
                    yield* other.query(
                      `INSERT INTO post VALUES (${next}, 1, NULL); INSERT INTO "like" VALUES (${next}, 1)`
                    )
                  }
                  if (!moved) {
                    moved = true
                    yield* other.query(
                      "UPDATE post SET course_id = 2, previous_id = NULL WHERE id = (SELECT min(id) FROM post WHERE course_id = 1 AND id < 10000)"
                    )
                  }
                }).pipe(Effect.ignore)
        })
        assert.deepStrictEqual(
          yield* session.query("SELECT count(*)::int AS n FROM post WHERE course_id = 1 OR id > 10000"),
          [{ n: 0 }]
        )
        assert.deepStrictEqual(yield* session.query("SELECT count(*)::int AS n FROM course WHERE id = 1"), [
          { n: 0 }
        ])
        assert.deepStrictEqual(yield* session.query("SELECT count(*) > 300 AS moved FROM post"), [
          { moved: true }
        ])
      }).pipe(Effect.provide(database))
  )

  it.scopedLive("is refused before anything is deleted, with the reason and without values", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${tables};
        CREATE TABLE grade (id int PRIMARY KEY, post_id int CONSTRAINT grade_post REFERENCES post);
        CREATE INDEX ON grade (post_id);
        INSERT INTO grade SELECT n, 2 * n FROM generate_series(1, 7) AS n`)
      const before = yield* contents(session)
      const refusal = (options: Purge.Options) =>
        Effect.map(Effect.flip(Purge.run(options)), (error) => [error._tag, error.message] as const)
      const [tag, blocked] = yield* refusal(course)
      assert.strictEqual(tag, "Refused")
      assert.include(blocked, "7 rows refer by public.grade.grade_post (NO ACTION)")
      const [, notKey] = yield* refusal({
        from: { table: "post" },
        where: [{ column: "course_id", value: "4711" }]
      })
      assert.include(
        notKey,
        "course_id is no primary or unique key of public.post: give all columns of one (id)"
      )
      assert.notInclude(notKey, "4711")
      const [unknown] = yield* refusal({ from: { table: "nowhere" }, where: [{ column: "id", value: "1" }] })
      assert.strictEqual(unknown, "UnknownTarget")
      const [, value] = yield* refusal({
        from: { table: "course" },
        where: [{ column: "id", value: "secret" }]
      })
      assert.notInclude(value, "secret")
      assert.deepStrictEqual(yield* contents(session), before)
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("stops when a row that forbids the delete appears in the middle of it", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${tables};
        CREATE TABLE grade (id int PRIMARY KEY, post_id int CONSTRAINT grade_post REFERENCES post);
        CREATE INDEX ON grade (post_id)`)
      const other = yield* application
      const error = yield* Effect.flip(
        Purge.run({
          ...course,
          batch: 20,
          onProgress: (event) =>
            event._tag === "Deleted"
              ? Effect.ignore(
                  other.query("INSERT INTO grade SELECT 1, min(id) FROM post WHERE course_id = 1")
                )
              : Effect.void
        })
      )
      assert.strictEqual(error._tag, "Blocked")
      assert.include(error.message, "grade_post")
      assert.deepStrictEqual(yield* session.query("SELECT count(*)::int AS n FROM course"), [{ n: 3 }])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("needs the right to delete from every table, and to see every row", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      const role = `${name}_role`
      yield* admin.query(`${tables}; CREATE ROLE ${role} LOGIN PASSWORD 'x';
        GRANT SELECT, DELETE ON course, post TO ${role};
        GRANT SELECT ON "like" TO ${role}; GRANT SELECT, UPDATE ON note TO ${role};
        ALTER TABLE post ENABLE ROW LEVEL SECURITY`)
      yield* Effect.addFinalizer(() => Effect.orDie(admin.query(`DROP OWNED BY ${role}; DROP ROLE ${role}`)))
      const own = new URL(Redacted.value(url))
      own.username = role
      own.password = "x"
      const error = yield* Effect.flip(Purge.run(course)).pipe(
        Effect.provide(Database.layer({ url: own.toString(), minConnections: 0 }))
      )
      assert.isTrue(error._tag === "Refused")
      if (error._tag !== "Refused") return
      assert.deepStrictEqual(
        error.refusals.map(({ code }) => code),
        ["row-security", "privileges"]
      )
      assert.include(error.message, "lacks DELETE on public.like")
    })
  )

  it.scopedLive("says so when a trigger keeps rows, and warns of it and of a missing index before", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${tables};
        DROP INDEX like_post_id_idx;
        INSERT INTO "like" SELECT 2, n FROM generate_series(1, 100) AS n;
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER keep BEFORE DELETE ON "like" FOR EACH ROW EXECUTE FUNCTION keep()`)
      const { warnings } = yield* Purge.plan(course)
      assert.isTrue(
        warnings.some((warning) => warning.startsWith("no index on the columns of public.like.like_post"))
      )
      assert.isTrue(warnings.some((warning) => warning.startsWith("trigger keep of public.like")))
      const error = yield* Effect.flip(Purge.run({ ...course, batch: 2 }))
      assert.strictEqual(error._tag, "Stuck")
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive(
    "deletes rows that refer to each other in a circle at once, and what hangs below them in batches",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${tables};
        ALTER TABLE course ADD pinned_id int CONSTRAINT course_pinned REFERENCES post ON DELETE CASCADE;
        CREATE INDEX ON course (pinned_id);
        UPDATE course SET pinned_id = 599 WHERE id = 2`)
        yield* session.query("BEGIN; DELETE FROM course WHERE id = 2")
        const wanted = yield* contents(session)
        yield* session.query("ROLLBACK")
        yield* Purge.run({ ...course, where: [{ column: "id", value: "2" }], batch: 50 })
        assert.deepStrictEqual(yield* contents(session), wanted)
        const circle = yield* session.query<{ readonly rows: number }>(
          `SELECT count(*)::int AS rows FROM gone WHERE relation = 'like' GROUP BY transaction ORDER BY 1 DESC LIMIT 1`
        )
        assert.isAtMost(circle[0]?.rows ?? 0, 50)
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive(
    "follows keys of single partitions, of partitioned tables without a key of their own, across types and schemas",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${tables};
          CREATE SCHEMA "S 2";
          CREATE TABLE "S 2".event (post_id bigint, kind text, n int) PARTITION BY LIST (kind);
          CREATE TABLE "S 2".event_a PARTITION OF "S 2".event FOR VALUES IN ('a');
          CREATE TABLE "S 2".event_b PARTITION OF "S 2".event FOR VALUES IN ('b') PARTITION BY LIST (n);
          CREATE TABLE "S 2".event_b0 PARTITION OF "S 2".event_b DEFAULT;
          ALTER TABLE "S 2".event ADD FOREIGN KEY (post_id) REFERENCES post ON DELETE CASCADE;
          ALTER TABLE "S 2".event_b0 ADD CONSTRAINT leaf FOREIGN KEY (n) REFERENCES course ON DELETE CASCADE;
          CREATE INDEX ON "S 2".event (post_id); CREATE INDEX ON "S 2".event (n);
          INSERT INTO "S 2".event SELECT 1 + n % 600, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, 1 + n % 3 FROM generate_series(1, 400) AS n`)
        const events = Effect.map(
          session.query(`SELECT string_agg(e::text, ' ' ORDER BY e::text) AS all FROM "S 2".event e`),
          ([row]) => row
        )
        yield* session.query("BEGIN; DELETE FROM course WHERE id = 1")
        const wanted = [yield* contents(session), yield* events]
        yield* session.query("ROLLBACK")
        const plan = yield* Purge.plan(course)
        const { rows } = yield* Purge.run({ ...course, batch: 30 })
        assert.deepStrictEqual([yield* contents(session), yield* events], wanted)
        assert.sameDeepMembers([...rows], [...plan.rows])
      }).pipe(Effect.provide(database))
  )
})

/**
 * A key of `note` to `course`, what it does with the notes of course 1, and whether that is what is
 * planned as an update.
 */
const actions: ReadonlyArray<
  readonly [name: string, sql: string, updates: number, since?: number, warning?: string]
> = [
  [
    "SET DEFAULT",
    "ALTER TABLE note ALTER course_id SET DEFAULT 3, DROP CONSTRAINT note_course, ADD CONSTRAINT note_course FOREIGN KEY (course_id) REFERENCES course ON DELETE SET DEFAULT",
    30,
    130_000,
    "30 rows get their default by public.note.note_course"
  ],
  [
    "SET DEFAULT without one",
    "ALTER TABLE note DROP CONSTRAINT note_course, ADD CONSTRAINT note_course FOREIGN KEY (course_id) REFERENCES course ON DELETE SET DEFAULT",
    30
  ],
  [
    "SET NULL of one column of a composite key",
    `ALTER TABLE course ADD term int NOT NULL DEFAULT 7, ADD UNIQUE (id, term); ALTER TABLE note ADD term int NOT NULL DEFAULT 7, DROP CONSTRAINT note_course,
      ADD CONSTRAINT note_course FOREIGN KEY (course_id, term) REFERENCES course (id, term) ON DELETE SET NULL (course_id)`,
    30,
    150_000
  ],
  [
    "SET DEFAULT of one column of a composite key",
    `ALTER TABLE course ADD term int NOT NULL DEFAULT 7, ADD UNIQUE (id, term); ALTER TABLE note ADD term int NOT NULL DEFAULT 7, ALTER course_id SET DEFAULT 2, DROP CONSTRAINT note_course,
      ADD CONSTRAINT note_course FOREIGN KEY (course_id, term) REFERENCES course (id, term) ON DELETE SET DEFAULT (course_id)`,
    30,
    150_000
  ],
  [
    "SET NULL with MATCH FULL",
    `ALTER TABLE course ADD term int NOT NULL DEFAULT 7, ADD UNIQUE (id, term); ALTER TABLE note ADD term int DEFAULT 7, DROP CONSTRAINT note_course,
      ADD CONSTRAINT note_course FOREIGN KEY (course_id, term) REFERENCES course (id, term) MATCH FULL ON DELETE SET NULL`,
    30
  ],
  [
    "triggers that are disabled",
    disable("note_course"),
    0,
    130_000,
    "the triggers of public.note.note_course are disabled: rows that refer by it stay"
  ]
]

describe("a purge beside a key with", () => {
  for (const [name, sql, updates, since = 130_000, warning] of cases(
    actions,
    ([name]) => name.includes("composite"),
    ([name]) => name.startsWith("SET NULL of one column of a composite")
  )) {
    it.scopedLive(`${name} leaves what the single DELETE leaves, and counts it before`, () =>
      Effect.gen(function* () {
        const session = yield* application
        // An older server has no such key.
        if ((yield* Catalog.serverVersion(session)) < since) return
        yield* session.query(`${tables}; ${sql}; DELETE FROM post WHERE id > 30`)
        const wanted = yield* expected(session)
        const plan = yield* Purge.plan(course)
        assert.deepStrictEqual(
          [plan.refused, plan.updates.map(({ rows }) => rows)],
          [[], updates === 0 ? [] : [updates]]
        )
        if (warning !== undefined) assert.isTrue(plan.warnings.some((text) => text.startsWith(warning)))
        yield* Purge.run({ ...course, batch: 20 })
        assert.deepStrictEqual(yield* contents(session), wanted)
      }).pipe(Effect.provide(database))
    )
  }
})

/**
 * Ways to be refused, by code. Rights and row security have a test of their own: they need another
 * role.
 */
const refusals: ReadonlyArray<
  readonly [
    why: string,
    code: Exclude<Purge.Refusal["code"], "privileges" | "row-security">,
    sql: string,
    reason: RegExp,
    since?: number
  ]
> = [
  [
    "the columns are no key",
    "not-a-key",
    "ALTER TABLE post DROP CONSTRAINT post_course; ALTER TABLE course DROP CONSTRAINT course_pkey CASCADE",
    /^id is no primary or unique key of public\.course: .*\(code\)$/
  ],
  [
    "a key does something else than it says",
    "catalog-disagrees",
    "UPDATE pg_constraint SET confdeltype = 'n' WHERE conname = 'like_post'",
    /^what public\.like\.like_post does on a delete cannot be foreseen: /
  ],
  [
    "a MATCH FULL key would be null in part",
    "blocked",
    `ALTER TABLE course ADD term int NOT NULL DEFAULT 7, ADD UNIQUE (id, term); ALTER TABLE note ADD term int DEFAULT 7, DROP CONSTRAINT note_course,
      ADD CONSTRAINT note_course FOREIGN KEY (course_id, term) REFERENCES course (id, term) MATCH FULL ON DELETE SET NULL (course_id)`,
    /^30 rows refer by public\.note\.note_course \(SET NULL of some columns of a MATCH FULL key\)/,
    150_000
  ],
  [
    "rows would get a default that refers to a row that goes",
    "blocked",
    "ALTER TABLE note ALTER course_id SET DEFAULT 1, DROP CONSTRAINT note_course, ADD CONSTRAINT note_course FOREIGN KEY (course_id) REFERENCES course ON DELETE SET DEFAULT",
    /^30 rows refer by public\.note\.note_course \(SET DEFAULT\) to rows that would be deleted, and by default to /
  ],
  [
    "two keys act on the same column",
    "unclear-outcome",
    "ALTER TABLE note ADD CONSTRAINT also FOREIGN KEY (course_id) REFERENCES course ON DELETE CASCADE",
    /^public\.note\.note_course sets columns that public\.note\.also also uses: /
  ]
]

describe("a purge is refused as", () => {
  for (const [why, code, sql, reason, since = 130_000] of cases(
    refusals,
    ([, code]) => code === "blocked",
    ([why]) => why.includes("MATCH FULL")
  )) {
    it.scopedLive(`${code} where ${why}, by the plan and before anything is deleted`, () =>
      Effect.gen(function* () {
        const session = yield* application
        // An older server has no such key.
        if ((yield* Catalog.serverVersion(session)) < since) return
        yield* session.query(`${tables}; ${sql}`)
        const before = yield* contents(session)
        const { refused } = yield* Purge.plan(course)
        assert.deepStrictEqual(
          refused.map((refusal) => refusal.code),
          [code]
        )
        assert.match(refused[0]?.reason ?? "", reason)
        const error = yield* Effect.flip(Purge.run(course))
        assert.strictEqual(error._tag, "Refused")
        assert.deepStrictEqual(yield* contents(session), before)
      }).pipe(Effect.provide(database))
    )
  }
})

/** A process of its own that purges in batches so small that it takes a while. */
const start = (url: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const text = `
        import * as Effect from "effect/Effect"
        import * as Database from "./src/Database.ts"
        import * as Purge from "./src/Purge.ts"
        await Effect.runPromise(Purge.run({ ...${JSON.stringify(course)}, batch: 3 }).pipe(
          Effect.provide(Database.layer({ url: process.env.PURGE_URL, minConnections: 0 }))
        ))`
      const child = spawn(process.execPath, [bundled({ text })], {
        env: { ...process.env, PURGE_URL: url },
        stdio: "ignore"
      })
      return { kill: () => child.kill("SIGKILL") }
    }),
    (child) => Effect.sync(child.kill)
  )
