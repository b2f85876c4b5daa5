import { assert, describe, it } from "@effect/vitest"
import * as Array from "effect/Array"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Runtime from "effect/Runtime"
import * as Catalog from "../../src/foreignKey/Catalog.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Shape from "./Shape.js"
import { application, comparable, database, definitions, vectors } from "./support.js"

/** How many keys one generated database has, and how many databases there are. */
const keys = 12
const databases = Number(process.env["FK_PROPERTY_RUNS"] ?? 21)

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
      const before = yield* vectors(session)
      const written = yield* definitions(session)
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
      assert.deepStrictEqual(comparable(yield* vectors(session)), comparable(before))
      assert.deepStrictEqual(yield* definitions(session), written)
    }).pipe(Effect.provide(database))
  )

describe("any foreign key", () => {
  for (const [way, swapTries] of [
    ["in one transaction", 60],
    ["table by table", 0]
  ] as const) {
    it.scopedLive(
      `is the same again after its action was changed there and back, ${way}`,
      () =>
        Effect.gen(function* () {
          const version = yield* Effect.provide(Effect.flatMap(application, Catalog.serverVersion), database)
          const runtime = yield* Effect.runtime()
          yield* Effect.promise(() =>
            FastCheck.assert(
              FastCheck.asyncProperty(
                FastCheck.array(Shape.arbitrary(version), { minLength: keys, maxLength: keys }).map(
                  (shapes) => shapes.map(Shape.numbered)
                ),
                (shapes) => Runtime.runPromise(runtime)(check(shapes, swapTries))
              ),
              {
                numRuns: databases,
                endOnFailure: process.env["FK_PROPERTY_SHRINK"] === "off",
                interruptAfterTimeLimit: 540_000,
                markInterruptAsFailure: true
              }
            )
          )
        }),
      { timeout: 600_000 }
    )
  }
})
