import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as Action from "../../src/catalog/action.js"
import * as Names from "../../src/foreignKey/snapshot/names.js"
import * as Overlap from "../../src/foreignKey/hazards/overlap.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { cases } from "../support/length.js"
import { application, database, withRole } from "./support.js"

const actions = ["no-action", "restrict", "cascade", "set-null", "set-default"] as const
const modes = ["NOT DEFERRABLE", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"] as const

/** Every original that a table of facts needs, each with tables of its own. */
const originals = actions.flatMap((onDelete) =>
  modes.map((mode) => ({
    onDelete,
    mode,
    suffix: `${onDelete}_${mode}`.replaceAll(/\W/g, "_").toLowerCase()
  }))
)

/**
 * Those that are changed by whole runs: SET NULL and SET DEFAULT are like CASCADE in everything but
 * the rows, and all of them are looked at below.
 */
const changed = originals.filter(
  ({ mode, onDelete }) =>
    mode === "DEFERRABLE INITIALLY DEFERRED" || !["set-null", "set-default"].includes(onDelete)
)

const tables = (schema: string, suffix: string) => `
  CREATE TABLE ${schema}.parent_${suffix} (id int PRIMARY KEY);
  CREATE TABLE ${schema}.child_${suffix} (parent_id int DEFAULT 2);
  INSERT INTO ${schema}.parent_${suffix} VALUES (1), (2);
  INSERT INTO ${schema}.child_${suffix} VALUES (1);`

const addKey = (schema: string, suffix: string, name: string, onDelete: ForeignKey.Action, mode: string) => `
  ALTER TABLE ${schema}.child_${suffix} ADD CONSTRAINT ${name} FOREIGN KEY (parent_id) REFERENCES ${schema}.parent_${suffix}
    ON DELETE ${Action.sql(onDelete)} ${mode};`

/**
 * What a delete did to a row that refers to the deleted one: the action that was carried out, or
 * whose error it was and when it came.
 */
const outcome = (session: Session, schema: string, suffix: string, before = "", putBack = false) =>
  Effect.gen(function* () {
    const run = (sql: string) =>
      session
        .query<{ readonly parent_id: number | null }>(sql)
        .pipe(
          Effect.catchAll((error) =>
            "constraint" in error.reason ? Effect.fail(String(error.reason.constraint)) : Effect.die(error)
          )
        )
    yield* run(`BEGIN; ${before}`)
    return yield* Effect.gen(function* () {
      const gone = `DELETE FROM ${schema}.parent_${suffix} WHERE id = 1`
      yield* run(
        putBack
          ? `WITH gone AS (${gone} RETURNING id) INSERT INTO ${schema}.parent_${suffix} SELECT id FROM gone`
          : gone
      )
      const [row] = yield* run(`SELECT parent_id FROM ${schema}.child_${suffix}`)
      if (row === undefined) return "cascade"
      if (row.parent_id === null) return "set-null"
      if (row.parent_id === 2) return "set-default"
      yield* run("SET CONSTRAINTS ALL IMMEDIATE")
      return "nothing"
    }).pipe(
      Effect.catchAll((constraint) => Effect.succeed(`error of ${constraint}`)),
      Effect.ensuring(Effect.orDie(session.query("ROLLBACK")))
    )
  })

describe("while a key and its successor are both there", () => {
  it.scopedLive("deletes do what the original does, except where plan and run say something else", () =>
    withRole(
      (role) => `GRANT CREATE ON DATABASE ${role.slice(1)} TO ${role}`,
      ({ limited }) =>
        Effect.gen(function* () {
          const session = yield* application
          const named: Array<string> = []
          for (const target of cases(
            ["no-action", "restrict", "cascade"] as const,
            (target) => target === "restrict"
          )) {
            const schema = `to_${target.replace("-", "_")}`
            yield* session.query(
              [
                `CREATE SCHEMA ${schema}`,
                ...changed.map(
                  ({ mode, onDelete, suffix }) =>
                    tables(schema, suffix) + addKey(schema, suffix, `fk_${suffix}`, onDelete, mode)
                )
              ].join(";\n")
            )
            const choice = { selectors: { schemas: [schema] }, onDelete: target, ledger: false } as const
            const { warnings } = yield* ForeignKey.plan(choice)
            const result = yield* ForeignKey.rebuild({
              ...choice,
              onProgress: (event) =>
                Effect.gen(function* () {
                  if (event._tag !== "Overlap") return
                  const original = changed.find(({ suffix }) => event.constraint.endsWith(`.fk_${suffix}`))
                  if (original === undefined) return assert.fail(event.constraint)
                  const { mode, onDelete, suffix } = original
                  const fk = `fk_${suffix}`
                  const temporary = Names.temporary(fk)
                  const what = `${onDelete} ${mode} to ${target}`
                  const foretold = warnings.filter(({ constraint }) => constraint === event.constraint)
                  const early = foretold.flatMap(({ code, warning }) =>
                    code === "acts-early" ? [warning] : []
                  )
                  assert.deepStrictEqual(event.except, early, what)
                  /** Who decides: the original, unless the plan warned that it is its successor. */
                  const expected = (byNew: boolean) => {
                    const [action, name] = byNew ? [target, temporary] : [onDelete, fk]
                    return { action, outcome: Action.raises(action) ? `error of ${name}` : action }
                  }
                  const says = (text: string) => early.some((warning) => warning.includes(text))
                  const plainly = expected(says("INITIALLY DEFERRED"))
                  assert.strictEqual(yield* outcome(session, schema, suffix), plainly.outcome, what)
                  assert.strictEqual(event.live, plainly.action, what)
                  if (onDelete === "no-action") {
                    // The key comes back, so the original lets the rows be.
                    const back = expected(says("puts a row with the same key back"))
                    assert.strictEqual(yield* outcome(session, schema, suffix, "", true), back.outcome, what)
                  }
                  for (const warning of early) if (warning.includes(temporary)) named.push(what)
                  if (mode === "NOT DEFERRABLE") {
                    assert.notInclude(
                      foretold.map(({ code }) => code),
                      "deferred",
                      what
                    )
                    return
                  }
                  const deferred = expected(says("INITIALLY DEFERRED") || says("transactions that defer it"))
                  const defer = `SET CONSTRAINTS ${schema}.${fk} DEFERRED`
                  assert.strictEqual(yield* outcome(session, schema, suffix, defer), deferred.outcome, what)
                }).pipe(Effect.orDie)
            })
            assert.deepStrictEqual([result.failed, result.refused, result.rebuilt.length], [[], [], 8])
          }
          assert.deepStrictEqual(
            [...new Set(named)],
            modes.map((mode) => `no-action ${mode} to restrict`)
          )
        }).pipe(Effect.provide(limited))
    )
  )

  inFull(it).scopedLive(
    "a change by a superuser has no exceptions, because the new key's triggers are disabled",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(
          changed
            .map(
              ({ mode, onDelete, suffix }) =>
                tables("public", suffix) + addKey("public", suffix, `fk_${suffix}`, onDelete, mode)
            )
            .join(";\n")
        )
        const here = yield* Database.Database
        const choice = { selectors: {}, onDelete: "set-default", ledger: false } as const
        const { warnings } = yield* ForeignKey.plan(choice)
        assert.notInclude(
          warnings.map(({ code }) => code),
          "acts-early"
        )
        const { failed, rebuilt } = yield* ForeignKey.rebuild({
          ...choice,
          onProgress: (event) =>
            Effect.gen(function* () {
              if (event._tag !== "Overlap") return
              const original = changed.find(({ suffix }) => event.constraint.endsWith(`.fk_${suffix}`))
              assert.deepStrictEqual([event.live, event.except], [original?.onDelete, []])
              const problems = yield* Effect.provideService(ForeignKey.check(), Database.Database, here)
              assert.deepStrictEqual(
                problems.flatMap(({ problems }) => problems),
                ["a change of it was interrupted: run it again to finish it"]
              )
            }).pipe(Effect.orDie)
        })
        assert.deepStrictEqual(
          [failed, rebuilt.length],
          [[], changed.filter(({ onDelete }) => onDelete !== "set-default").length]
        )
      }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive(
    "the one whose trigger has the smaller name decides, unless one of the two waits",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        for (const target of actions) {
          for (const first of ["original", "new"] as const) {
            const schema = `${first}_${target.replace("-", "_")}`
            // PostgreSQL names triggers by OID, so the key that was added first has the smaller
            // name; renamed, it has not.
            yield* session.query(
              [
                `CREATE SCHEMA ${schema}`,
                ...originals.map(
                  ({ mode, onDelete, suffix }) =>
                    tables(schema, suffix) +
                    addKey(schema, suffix, "original", onDelete, mode) +
                    addKey(
                      schema,
                      suffix,
                      "new",
                      target,
                      mode === "NOT DEFERRABLE" ? mode : "DEFERRABLE INITIALLY DEFERRED"
                    )
                ),
                `DO $$ DECLARE r record; BEGIN
                FOR r IN SELECT g.tgname, g.tgrelid::regclass AS relation, k.conname = '${first}' AS first
                  FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint WHERE k.connamespace = '${schema}'::regnamespace
                LOOP
                  EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation,
                    CASE WHEN r.first THEN 'a' ELSE 'b' END || r.tgname);
                END LOOP;
              END $$`
              ].join(";\n")
            )
            for (const { mode, onDelete, suffix } of originals) {
              const action = Overlap.live(
                {
                  onDelete,
                  deferrable: mode !== "NOT DEFERRABLE",
                  initiallyDeferred: mode === "DEFERRABLE INITIALLY DEFERRED"
                },
                { action: target, columns: [] },
                first
              )
              const seen = yield* outcome(session, schema, suffix)
              const what = `${onDelete} ${mode} beside ${target}, ${first} first`
              if (!Action.raises(action)) assert.strictEqual(seen, action, what)
              else if (onDelete === target) assert.match(seen, /^error of (original|new)$/, what)
              else assert.strictEqual(seen, action === target ? "error of new" : "error of original", what)
            }
          }
        }
      }).pipe(Effect.provide(database))
  )
})

describe("SET CONSTRAINTS before the swap", () => {
  inMatrix(it).scopedLive(
    "is the original's, as the plan says: a transaction that goes on afterwards meets the other mode",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        const early = yield* application
        const late = yield* application
        yield* session.query(
          ["deferred", "immediate"]
            .map(
              (suffix) =>
                tables("public", suffix) +
                addKey("public", suffix, `fk_${suffix}`, "no-action", `DEFERRABLE INITIALLY ${suffix}`)
            )
            .join("\n")
        )
        const choice = { selectors: {}, onDelete: "cascade", ledger: false } as const
        const { warnings } = yield* ForeignKey.plan(choice)
        assert.deepStrictEqual(
          warnings.flatMap(({ constraint, warning }) =>
            warning.includes("the setting is") ? [constraint] : []
          ),
          ["public.child_deferred.fk_deferred", "public.child_immediate.fk_immediate"]
        )
        yield* late.query("BEGIN; SET CONSTRAINTS fk_deferred IMMEDIATE")
        yield* early.query("BEGIN; SET CONSTRAINTS fk_immediate DEFERRED")
        const { rebuilt } = yield* ForeignKey.rebuild({ ...choice, settlePatience: "100 millis" })
        assert.strictEqual(rebuilt.length, 2)
        yield* late.query("INSERT INTO child_deferred VALUES (3)")
        const atCommit = yield* Effect.flip(late.query("COMMIT"))
        assert.deepInclude(atCommit.reason, { _tag: "ForeignKeyViolation", constraint: "fk_deferred" })
        const atStatement = yield* Effect.flip(early.query("INSERT INTO child_immediate VALUES (3)"))
        assert.deepInclude(atStatement.reason, { _tag: "ForeignKeyViolation", constraint: "fk_immediate" })
        yield* early.query("ROLLBACK")
      }).pipe(Effect.provide(database))
  )
})
