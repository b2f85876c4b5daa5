import { assert, describe, it } from "@effect/vitest"
import * as Array from "effect/Array"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Order from "effect/Order"
import * as Record from "effect/Record"
import * as Runtime from "effect/Runtime"
import * as Catalog from "../../src/foreignKey/Catalog.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Shape from "./Shape.js"
import { application, database, definitions, vectors, withNamedIndexes } from "./support.js"

/** How many keys are generated, in databases of up to so many each. */
const keys = Number(process.env["FK_PROPERTY_KEYS"] ?? 500)
const largest = 24

/** `PROPERTY_SEED` makes the keys the same in every run, as where a change is to be judged and not the luck of the draw. */
const seed = process.env["PROPERTY_SEED"]
const seeded = seed === undefined ? {} : { seed: Number(seed) }

const other: { readonly [From in ForeignKey.Action]: ForeignKey.Action } = {
  "no-action": "cascade",
  cascade: "restrict",
  restrict: "set-null",
  "set-null": "set-default",
  "set-default": "no-action"
}

const check = (shapes: ReadonlyArray<Shape.Shape>, swapTries: number) =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* application
      for (const shape of shapes) {
        for (const statement of Shape.create(shape)) yield* session.query(statement)
      }
      const contents = Effect.flatMap(vectors(session), (all) => withNamedIndexes(session, all))
      const before = yield* contents
      const written = yield* definitions(session)
      const faults = Effect.map(
        ForeignKey.check(),
        Array.sortBy(Order.mapInput(Order.string, ({ constraint }: ForeignKey.CheckedKey) => constraint))
      )
      const checked = yield* faults
      // What is generated as unusual is all that there is to find.
      const found = checked.flatMap(({ problems }) => problems)
      assert.deepStrictEqual(
        found.filter(
          (problem) =>
            !/ is disabled$| on replicas only$| always fires$|^it is not valid/.test(
              problem.replace(/ \(partition .*\)$/s, "")
            )
        ),
        []
      )
      if (shapes.every(({ state, triggers }) => state !== "not valid" && triggers === "origin")) {
        assert.deepStrictEqual(found, [])
      }
      const originals = yield* Catalog.read(session)
      const groups = Array.groupBy(originals, (key) => other[key.onDelete])
      for (const onDelete of ForeignKey.actions) {
        const members = groups[onDelete] ?? []
        if (members.length === 0) continue
        const result = yield* ForeignKey.rebuild({
          selectors: {
            constraints: members.map(({ name, referencing }) => ({
              schema: referencing.schema,
              table: referencing.name,
              name
            }))
          },
          onDelete,
          swapTries,
          allowRowMovement: true
        })
        const { failed, refused, unchanged } = result
        const wrong = JSON.stringify([unchanged, refused, failed])
        if (wrong !== "[[],[],[]]") assert.fail(wrong)
        assert.strictEqual(result.rebuilt.length, members.length)
      }
      const changed = yield* Catalog.read(session)
      for (const key of originals) {
        const now = changed.find(({ name }) => name === key.name)
        assert.strictEqual(now?.onDelete, other[key.onDelete])
      }
      const undone = yield* ForeignKey.undo({ selectors: {}, swapTries, allowRowMovement: true })
      assert.deepStrictEqual([undone.unchanged, undone.refused, undone.failed], [[], [], []])
      assert.strictEqual(undone.rebuilt.length, originals.length)
      assert.deepStrictEqual(yield* contents, before)
      assert.deepStrictEqual(yield* definitions(session), written)
      assert.deepStrictEqual(yield* faults, checked)
    }).pipe(Effect.provide(database))
  )

/** The fields and values of some shapes that a list of shapes has not. */
const unseen = (of: ReturnType<typeof Shape.choices>, shapes: ReadonlyArray<Shape.Shape>) =>
  Record.toEntries(of).flatMap(([field, values]) => {
    const seen = new Set(shapes.map((shape) => JSON.stringify(shape[field])))
    return values.filter((value) => !seen.has(JSON.stringify(value))).map((value) => [field, value])
  })

describe("any foreign key", () => {
  it.scopedLive(
    "is the same again after its action was changed there and back, in one transaction or table by table",
    () =>
      Effect.gen(function* () {
        const version = yield* Effect.provide(Effect.flatMap(application, Catalog.serverVersion), database)
        const runtime = yield* Effect.runtime()
        const done: globalThis.Array<Shape.Shape> = []
        const ways = { "in one transaction": 0, "table by table": 0 }
        let failing = false
        yield* Effect.promise(() =>
          FastCheck.assert(
            FastCheck.asyncProperty(
              FastCheck.array(Shape.arbitrary(version), { minLength: 1, maxLength: largest, size: "max" }),
              FastCheck.constantFrom("in one transaction" as const, "table by table" as const),
              async (generated, way) => {
                if (done.length >= keys && !failing) return
                const shapes = Shape.together(generated, version)
                failing = true
                await Runtime.runPromise(runtime)(check(shapes, way === "table by table" ? 0 : 60))
                failing = false
                done.push(...shapes)
                ways[way] += shapes.length
              }
            ),
            {
              ...seeded,
              // More than are needed: those that come after the last key are not looked at.
              numRuns: keys,
              endOnFailure: process.env["FK_PROPERTY_SHRINK"] === "off",
              interruptAfterTimeLimit: 1_140_000,
              markInterruptAsFailure: true
            }
          )
        )
        assert.isAtLeast(done.length, keys)
        assert.isAbove(Math.min(...Object.values(ways)), 0)
        if (keys >= 150) assert.deepStrictEqual(unseen(Shape.choices(version), done), [])
      }),
    { timeout: 1_200_000 }
  )
})
