import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Names from "../../src/foreignKey/snapshot/names.js"
import { application, database } from "./support.js"

/** A key between two tables, and what is done to it. */
interface Damage {
  readonly referenced?: "partitioned"
  /** SQL in a search path with the tables `parent` and `child`. */
  readonly sql?: string
  readonly interrupted?: true
  /** What is found, by the names of constraints. */
  readonly found: Readonly<Record<string, ReadonlyArray<string>>>
}

const trigger = (change: string, name: string) => `
  UPDATE pg_trigger SET ${change} FROM pg_proc, pg_constraint
  WHERE pg_proc.oid = tgfoid AND proname = '${name}' AND pg_constraint.oid = tgconstraint
    AND conrelid = 'child'::regclass AND conname = 'fk'`

const lostTrigger = (name: string) => `
  DELETE FROM pg_trigger USING pg_proc, pg_constraint
  WHERE pg_proc.oid = tgfoid AND proname = '${name}' AND pg_constraint.oid = tgconstraint
    AND conrelid = 'child'::regclass AND conname = 'fk'`

const leftover = Names.temporary("gone")

const damages: Readonly<Record<string, Damage>> = {
  none: { found: {} },
  "none of a partitioned table": { referenced: "partitioned", found: {} },
  "another action in the constraint": {
    sql: "UPDATE pg_constraint SET confdeltype = 'n' WHERE conrelid = 'child'::regclass AND conname = 'fk'",
    found: {
      fk: ["ON DELETE trigger of the referenced table should be RI_FKey_setnull_del, is RI_FKey_cascade_del"]
    }
  },
  "another function on delete": {
    sql: trigger(`tgfoid = '"RI_FKey_setnull_del"'::regproc`, "RI_FKey_cascade_del"),
    found: {
      fk: ["ON DELETE trigger of the referenced table should be RI_FKey_cascade_del, is RI_FKey_setnull_del"]
    }
  },
  "another function on update": {
    sql: trigger(`tgfoid = '"RI_FKey_cascade_upd"'::regproc`, "RI_FKey_noaction_upd"),
    found: {
      fk: ["ON UPDATE trigger of the referenced table should be RI_FKey_noaction_upd, is RI_FKey_cascade_upd"]
    }
  },
  "a trigger that cannot be deferred": {
    sql: trigger("tgdeferrable = false", "RI_FKey_check_ins"),
    found: { fk: ["the constraint is DEFERRABLE, its trigger RI_FKey_check_ins is NOT DEFERRABLE"] }
  },
  "a trigger that is deferred": {
    sql: trigger("tginitdeferred = true", "RI_FKey_check_upd"),
    found: { fk: ["the constraint is DEFERRABLE, its trigger RI_FKey_check_upd is INITIALLY DEFERRED"] }
  },
  "no trigger on delete": {
    sql: lostTrigger("RI_FKey_cascade_del"),
    found: { fk: ["ON DELETE trigger of the referenced table should be RI_FKey_cascade_del, is missing"] }
  },
  "no trigger on update": {
    sql: lostTrigger("RI_FKey_noaction_upd"),
    found: { fk: ["ON UPDATE trigger of the referenced table should be RI_FKey_noaction_upd, is missing"] }
  },
  "one check trigger": {
    sql: lostTrigger("RI_FKey_check_ins"),
    found: { fk: ["the referencing table should have 2 check triggers, has 1"] }
  },
  "no row for a partition": {
    referenced: "partitioned",
    sql: `
      DELETE FROM pg_trigger USING pg_constraint k
      WHERE k.oid = tgconstraint AND k.conrelid = 'child'::regclass AND k.confrelid = 'low'::regclass;
      DELETE FROM pg_constraint WHERE conrelid = 'child'::regclass AND confrelid = 'low'::regclass`,
    found: { fk: ["the referenced table has 2 partitions, the key is enforced on 1"] }
  },
  "another function on a partition": {
    referenced: "partitioned",
    sql: `
      UPDATE pg_trigger SET tgfoid = '"RI_FKey_setnull_del"'::regproc FROM pg_proc
      WHERE pg_proc.oid = tgfoid AND proname = 'RI_FKey_cascade_del' AND tgrelid = 'low'::regclass`,
    found: {
      fk: ["ON DELETE trigger of the referenced table should be RI_FKey_cascade_del, is RI_FKey_setnull_del"]
    }
  },
  "disabled triggers": {
    sql: "ALTER TABLE child DISABLE TRIGGER ALL",
    found: {
      fk: [
        "its trigger RI_FKey_check_ins on child is disabled",
        "its trigger RI_FKey_check_upd on child is disabled"
      ]
    }
  },
  "a trigger for replicas": {
    sql: trigger("tgenabled = 'R'", "RI_FKey_cascade_del"),
    found: { fk: ["its trigger RI_FKey_cascade_del on parent fires on replicas only"] }
  },
  "a trigger that always fires": {
    sql: trigger("tgenabled = 'A'", "RI_FKey_check_ins"),
    found: { fk: ["its trigger RI_FKey_check_ins on child always fires"] }
  },
  "rows that were never checked": {
    sql: "ALTER TABLE child ADD CONSTRAINT late FOREIGN KEY (parent_id) REFERENCES parent NOT VALID",
    found: { late: ["it is not valid: rows from before it was added were never checked"] }
  },
  "a constraint that a change has left": {
    sql: `ALTER TABLE child ADD CONSTRAINT ${leftover} FOREIGN KEY (parent_id) REFERENCES parent`,
    found: { [leftover]: ["it is left over from a change of a constraint that is gone"] }
  },
  "a change that was interrupted": {
    interrupted: true,
    found: { fk: ["a change of it was interrupted: run it again to finish it"] }
  }
}

describe("a check", () => {
  it.scopedLive("finds every kind of damage, and nothing where there is none", () =>
    Effect.gen(function* () {
      const session = yield* application
      const version = yield* Catalog.serverVersion(session)
      const cases = Object.entries(damages)
      for (const [name, { interrupted, referenced, sql = "" }] of cases) {
        yield* session.query(`
          CREATE SCHEMA "${name}";
          SET search_path = "${name}";
          CREATE TABLE parent (id int PRIMARY KEY)${referenced === undefined ? "" : " PARTITION BY RANGE (id)"};
          ${
            referenced === undefined
              ? ""
              : `CREATE TABLE low PARTITION OF parent FOR VALUES FROM (MINVALUE) TO (10);
                CREATE TABLE high PARTITION OF parent FOR VALUES FROM (10) TO (MAXVALUE);`
          }
          CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent ON DELETE CASCADE DEFERRABLE);
          ${sql}`)
        if (interrupted === true) {
          const running = yield* Effect.fork(
            ForeignKey.rebuild({
              selectors: { constraints: [{ schema: name, table: "child", name: "fk" }] },
              onDelete: "restrict",
              onProgress: (event) =>
                event._tag === "StepDone" && event.step === "add" ? Effect.interrupt : Effect.void
            })
          )
          assert.strictEqual((yield* Fiber.await(running))._tag, "Failure")
        }
      }
      if (version >= 180_000) {
        yield* session.query(
          'SET search_path = "none"; ALTER TABLE child ADD CONSTRAINT loose FOREIGN KEY (parent_id) REFERENCES parent NOT ENFORCED'
        )
      }
      const all = yield* ForeignKey.check()
      // A key that is NOT ENFORCED has no triggers that could be wrong.
      assert.deepStrictEqual(
        all.filter(({ notes }) => notes.length > 0).map(({ constraint, problems }) => [constraint, problems]),
        version >= 180_000 ? [["none.child.loose", []]] : []
      )
      const checked = all.filter(({ problems }) => problems.length > 0)
      for (const [name, { found }] of cases) {
        const ours = checked.filter(({ constraint }) =>
          constraint.startsWith(name.includes(" ") ? `"${name}".` : `${name}.`)
        )
        assert.deepStrictEqual(
          Object.fromEntries(
            ours.map(({ constraint, problems }) => [
              constraint.replace(/^.*\./, ""),
              // Names of tables are written with their schema.
              problems.map((problem) =>
                problem.replaceAll(`"${name}".`, "").replace(/ \(partition .*\)$/, "")
              )
            ])
          ),
          found,
          name
        )
      }
      assert.strictEqual(
        checked.length,
        cases.filter(([, { found }]) => Object.keys(found).length > 0).length
      )
    }).pipe(Effect.provide(database))
  )
})
