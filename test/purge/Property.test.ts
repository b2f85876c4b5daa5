import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Runtime from "effect/Runtime"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Purge from "../../src/Purge.js"
import { adminSession } from "../support/server.js"
import * as Graphs from "./Graphs.js"
import { application, database } from "../foreignKey/support.js"
import { isFull, isQuick } from "../support/length.js"

const databases = Number(process.env["PURGE_PROPERTY_RUNS"] ?? (isFull ? 60 : isQuick ? 4 : 8))

const batch = 5

/** The single DELETE is rolled back, so that both are done on the same rows. */
const check = (graph: Graphs.Generated, seen: Set<string>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Graphs.create(graph)) yield* session.query(statement)
      const contents = Effect.map(session.query(Graphs.contents(graph)), (rows) => rows[0])
      const before = yield* contents
      yield* session.query("BEGIN")
      const single = yield* session
        .query(`DELETE FROM ${Graphs.table(0)} WHERE a = 0 AND b = 0; SET CONSTRAINTS ALL IMMEDIATE`)
        .pipe(Effect.zipRight(contents), Effect.either)
      yield* session.query("ROLLBACK")
      const target = {
        from: { schema: "s0", table: "T 0" },
        where: [
          { column: "a", value: "0" },
          { column: "b", value: "0" }
        ]
      }
      const plan = yield* Purge.plan(target)
      assert.deepStrictEqual(yield* contents, before)
      const purged = yield* Effect.either(Purge.run({ ...target, batch }))
      const after = yield* contents
      if (single._tag === "Right") {
        assert.isTrue(purged._tag === "Right", String(purged._tag === "Left" && purged.left))
        assert.deepStrictEqual(after, single.right)
        if (purged._tag === "Right") {
          const counted = plan.rows.filter(({ rows }) => rows > 0)
          const byName = (rows: ReadonlyArray<{ readonly table: string }>) =>
            [...rows].sort((left, right) => left.table.localeCompare(right.table))
          assert.deepStrictEqual(byName(purged.right.rows), byName(counted))
          seen.add("deleted")
          if (purged.right.transactions > 3) seen.add("in batches")
        }
      } else if (purged._tag === "Left") {
        assert.strictEqual(purged.left._tag, "Refused", purged.left.message)
        assert.deepStrictEqual(after, before)
        seen.add("refused")
      } else {
        // The single DELETE failed because of the order in which triggers fire only: that is said
        // beforehand.
        const constraint = "constraint" in single.left.reason ? single.left.reason.constraint : undefined
        const names = yield* session.query<{ name: string }>(constraintsAbove, [constraint])
        assert.isTrue(
          plan.warnings.some((warning) => names.some(({ name }) => warning.includes(`.${name}`))),
          `${constraint} is in no warning`
        )
        seen.add("order")
      }
    }).pipe(Effect.provide(database))
  )

/**
 * `PROPERTY_SEED` makes the graphs the same in every run, as where a change is to be judged and not
 * the luck of the draw.
 */
const seed = process.env["PROPERTY_SEED"]
const seeded = seed === undefined ? {} : { seed: Number(seed) }

/**
 * For a partitioned referenced table the server names the key's row for one partition: that one,
 * and those above it.
 */
const constraintsAbove = `
  WITH RECURSIVE up AS (
    SELECT k.oid, k.conname, k.conparentid FROM pg_constraint AS k WHERE k.conname = $1
    UNION ALL
    SELECT k.oid, k.conname, k.conparentid FROM pg_constraint AS k JOIN up ON k.oid = up.conparentid
  )
  SELECT conname::text AS name FROM up
`

describe("a purge", () => {
  it.scopedLive(
    "leaves what the single DELETE leaves, and is refused where that fails, whatever the keys are",
    () =>
      Effect.gen(function* () {
        const seen = new Set<string>()
        const runtime = yield* Effect.runtime()
        const version = yield* Effect.scoped(Effect.flatMap(adminSession(), Catalog.serverVersion))
        yield* Effect.promise(() =>
          FastCheck.assert(
            FastCheck.asyncProperty(Graphs.arbitrary(version), (graph) =>
              Runtime.runPromise(runtime)(check(graph, seen))
            ),
            {
              ...seeded,
              numRuns: databases,
              interruptAfterTimeLimit: 540_000,
              markInterruptAsFailure: true
            }
          )
        )
        assert.includeMembers([...seen], isFull ? ["deleted", "in batches", "refused"] : [])
      })
  )
})
