import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import type { Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { cases, next } from "../support/length.js"
import { application, database } from "./support.js"

const parts = `PARTITION BY RANGE (id);
  CREATE TABLE parent_low PARTITION OF parent FOR VALUES FROM (MINVALUE) TO (0);
  CREATE TABLE parent_high PARTITION OF parent FOR VALUES FROM (0) TO (1000)`

const tables = (parent = parts) => `
  DROP TABLE IF EXISTS child, child_low, child_new, parent, parent_low, parent_new CASCADE;
  CREATE TABLE parent (id int PRIMARY KEY) ${parent};
  CREATE TABLE parent_new (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT child_parent REFERENCES parent) PARTITION BY RANGE (id);
  CREATE TABLE child_low PARTITION OF child FOR VALUES FROM (MINVALUE) TO (0);
  CREATE TABLE child_high PARTITION OF child FOR VALUES FROM (0) TO (1000);
  CREATE TABLE child_new (id int PRIMARY KEY, parent_id int);
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id, abs(id) FROM generate_series(-100, 100) AS id WHERE id <> 0;
  INSERT INTO child_new VALUES (1001, 1)`

/** What happens to the partitions, and the tables that belong to the key then. */
const events = (side: "child" | "parent") =>
  [
    ["created", `CREATE TABLE ${side}_newer PARTITION OF ${side} FOR VALUES FROM (2000) TO (3000)`],
    ["attached", `ALTER TABLE ${side} ATTACH PARTITION ${side}_new FOR VALUES FROM (1000) TO (2000)`],
    ["detached", `ALTER TABLE ${side} DETACH PARTITION ${side}_low`]
  ] as const

const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

/** Rows without a referenced row are refused by each table that has the key. */
const isProtected = (session: Session) =>
  Effect.gen(function* () {
    const constrained = yield* session.query<{ readonly relation: string; readonly id: number }>(
      `SELECT c.oid::regclass::text AS relation, CASE c.relname
          WHEN 'child' THEN 500 WHEN 'child_low' THEN -500 WHEN 'child_high' THEN 501 WHEN 'child_new' THEN 1500 ELSE 2500 END AS id
      FROM pg_class c
      WHERE c.relname ~ '^child' AND c.relkind IN ('r', 'p')
        AND EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f')`
    )
    assert.isAbove(constrained.length, 2)
    for (const { id, relation } of constrained) {
      const refused = yield* Effect.flip(session.query(`INSERT INTO ${relation} VALUES (${id}, 999)`))
      assert.strictEqual(refused.reason._tag, "ForeignKeyViolation")
    }
  })

/** Constraints and triggers of ours. */
const leftovers = `
  SELECT conrelid::regclass::text AS relation, conname AS name FROM pg_constraint WHERE contype = 'f' AND conname LIKE 'promptgrimoire_fk%'
  UNION ALL SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname LIKE 'promptgrimoire_fk%'
  UNION ALL SELECT conrelid::regclass::text, obj_description(oid, 'pg_constraint') FROM pg_constraint
    WHERE obj_description(oid, 'pg_constraint') IS NOT NULL`

/** What `npm test` looks at. */
const telling = new Set(["parent attached in one transaction"])

describe("partitions that come and go during a change", () => {
  for (const side of ["child", "parent"] as const) {
    for (const [event, statement] of events(side)) {
      for (const [way, swapTries] of cases(ways, ([way]) => telling.has(`${side} ${event} ${way}`))) {
        it.scopedLive(
          `of the ${side === "child" ? "referencing" : "referenced"} table, ${event}, ${way}`,
          () =>
            Effect.gen(function* () {
              const session = yield* application
              const version = yield* Catalog.serverVersion(session)
              // PostgreSQL 13 and 14 themselves drop the key of a partition that is detached if the
              // referenced table is partitioned too.
              const drops = version < 150_000 && side === "child" && event === "detached"
              for (let at = 1; ; at = next(at)) {
                yield* session.query(tables(drops ? "" : parts))
                const seen = yield* Ref.make(0)
                const run = (onProgress?: ForeignKey.RebuildOptions["onProgress"]) =>
                  ForeignKey.rebuild({
                    selectors: {},
                    onDelete: "cascade",
                    swapTries,
                    allowRowMovement: true,
                    onProgress
                  })
                const first = yield* run((progress) =>
                  Effect.gen(function* () {
                    if (progress._tag !== "StepStarted" && progress._tag !== "StepDone") return
                    if ((yield* Ref.updateAndGet(seen, (n) => n + 1)) === at) yield* session.query(statement)
                    yield* isProtected(session)
                  }).pipe(Effect.orDie)
                )
                const where = `at ${at}: ${JSON.stringify(first)}`
                const second = yield* run()
                assert.deepStrictEqual([second.refused, second.failed], [[], []], where)
                assert.deepStrictEqual(yield* session.query(leftovers), [], where)
                assert.deepStrictEqual(yield* ForeignKey.check(), [], where)
                assert.deepStrictEqual(
                  yield* session.query(
                    "SELECT conrelid::regclass::text AS relation, conname FROM pg_constraint WHERE contype = 'f' AND confdeltype <> 'c'"
                  ),
                  [],
                  where
                )
                yield* isProtected(session)
                if ((yield* Ref.get(seen)) < at) break
              }
            }).pipe(Effect.provide(database))
        )
      }
    }
  }
})

/**
 * What somebody does to the part of the key that one partition has, and a question whose answer is
 * true from then on.
 */
const touches = [
  [
    "comment",
    "COMMENT ON CONSTRAINT child_parent ON child_low IS 'by somebody else'",
    "SELECT obj_description(oid, 'pg_constraint') IS NOT DISTINCT FROM 'by somebody else' AS kept FROM pg_constraint WHERE conrelid = 'child_low'::regclass AND conname = 'child_parent'"
  ],
  [
    "trigger state",
    "ALTER TABLE child_low DISABLE TRIGGER ALL",
    "SELECT bool_and(tgenabled = 'D') AS kept FROM pg_trigger WHERE tgrelid = 'child_low'::regclass"
  ]
] as const

describe("what somebody gives one partition's part of the key between any two steps", () => {
  for (const [what, statement, question] of cases(touches, ([what]) => what === "comment")) {
    it.scopedLive(`is kept: a ${what}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        for (let at = 1; ; at++) {
          yield* session.query(tables(""))
          const seen = yield* Ref.make(0)
          const result = yield* ForeignKey.rebuild({
            selectors: {},
            onDelete: "cascade",
            onProgress: (progress) =>
              Effect.gen(function* () {
                if (progress._tag !== "StepStarted") return
                if ((yield* Ref.updateAndGet(seen, (n) => n + 1)) === at) yield* session.query(statement)
              }).pipe(Effect.orDie)
          })
          const happened = (yield* Ref.get(seen)) >= at
          assert.deepStrictEqual(
            [result.refused, result.failed, result.rebuilt.length, yield* session.query(question)],
            [[], [], 1, [{ kept: happened }]],
            `at ${at}`
          )
          if (!happened) break
        }
      }).pipe(Effect.provide(database))
    )
  }
})
