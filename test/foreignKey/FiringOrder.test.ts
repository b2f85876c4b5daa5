import { assert, describe, inMatrix, it } from "../support/it.js"
import { cases } from "../support/length.js"
import * as Effect from "effect/Effect"
import type { Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { application, database } from "./support.js"

const parent = "CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);"
const partitions = `
  CREATE TABLE parent_1 PARTITION OF parent FOR VALUES FROM (0) TO (1000);
  CREATE TABLE parent_2 PARTITION OF parent FOR VALUES FROM (1000) TO (2000);`
const keys = `
  CREATE TABLE one (id int, parent_id int CONSTRAINT one_parent REFERENCES parent);
  CREATE TABLE two (id int, parent_id int CONSTRAINT two_parent REFERENCES parent);`

/** For each event the keys of a table in the order in which they act. */
const order = (session: Session) =>
  session.query<{ readonly relation: string; readonly event: number; readonly keys: string }>(
    `SELECT g.tgrelid::regclass::text AS relation, g.tgtype::int AS event,
      string_agg(k.conrelid::regclass::text, ', ' ORDER BY g.tgname) AS keys
    FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
    WHERE g.tgrelid::regclass::text LIKE 'parent%'
    GROUP BY g.tgrelid, g.tgtype ORDER BY 1, 2`
  )

describe("on the partitions of a referenced table, while both keys are there", () => {
  it.scopedLive("the original acts first, also where only a partition's trigger would be late", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${parent}${partitions}
        CREATE TABLE one (id int, parent_id int CONSTRAINT one_parent REFERENCES parent);
        INSERT INTO parent VALUES (1), (1001); INSERT INTO one VALUES (1, 1), (2, 1001)`)
      // As in a database whose OIDs got another digit between the partitions: the one's trigger has
      // a name that sorts last.
      yield* session.query(`UPDATE pg_trigger g SET tgname = 'z_' || g.tgname
        FROM pg_constraint k WHERE k.oid = g.tgconstraint AND g.tgrelid = 'parent_2'::regclass`)
      const tried: Array<unknown> = []
      const { failed, rebuilt } = yield* ForeignKey.rebuild({
        selectors: {},
        onDelete: "cascade",
        allowRowMovement: true,
        onProgress: (event) =>
          event._tag === "Overlap"
            ? Effect.forEach(["parent_1", "parent_2"], (table) =>
                Effect.flip(session.query(`DELETE FROM ${table}`)).pipe(
                  Effect.map(({ reason }) => tried.push([event.live, reason._tag]))
                )
              ).pipe(Effect.orDie)
            : Effect.void
      })
      assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
      assert.deepStrictEqual(tried, [
        ["no-action", "ForeignKeyViolation"],
        ["no-action", "ForeignKeyViolation"]
      ])
    }).pipe(Effect.provide(database))
  )
})

describe("the order in which the keys of a partition act", () => {
  const made = [
    ["before the keys", parent + partitions + keys],
    ["after the keys", parent + keys + partitions]
  ] as const
  for (const [when, tables] of cases(made, ([when]) => when.startsWith("after"))) {
    for (const table of ["one", "two"]) {
      const run = table === "one" ? it : inMatrix(it)
      run.scopedLive(`is kept or foretold: partitions made ${when}, ${table} is changed`, () =>
        Effect.gen(function* () {
          const session = yield* application
          yield* session.query(tables)
          const choice = {
            selectors: { constraints: [{ table, name: `${table}_parent` }] },
            onDelete: "cascade",
            allowRowMovement: true
          } as const
          const before = yield* order(session)
          const { warnings } = yield* ForeignKey.plan(choice)
          yield* ForeignKey.rebuild(choice)
          const foretold = warnings.filter(({ warning }) => warning.startsWith("on partition"))
          const version = yield* Catalog.serverVersion(session)
          const moves = version >= 150_000 && when === "after the keys" && table === "two"
          const after = yield* order(session)
          if (moves) assert.notDeepEqual(after, before)
          else assert.deepStrictEqual(after, before)
          assert.deepStrictEqual(
            foretold.map(({ warning }) => warning),
            moves
              ? ["delete", "update"].map(
                  (event) =>
                    `on partition public.parent_1 and 1 more ${event}s will carry out public.two.two_parent before public.one.one_parent, and do it the other way round now`
                )
              : []
          )
        }).pipe(Effect.provide(database))
      )
    }
  }
})
