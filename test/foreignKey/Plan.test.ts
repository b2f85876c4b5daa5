import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Catalog from "../../src/foreignKey/Catalog.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Shape from "./Shape.js"
import { application, database, heldBy } from "./support.js"

const plain: Shape.Shape = {
  name: "key",
  referencing: "child",
  referenced: "parent",
  columns: [["parent_id", "id"]],
  reversedKey: false,
  selfReference: false,
  schemas: ["public", "public"],
  onDelete: "no-action",
  onUpdate: "cascade",
  someColumns: 0,
  matchFull: false,
  mode: "initially immediate",
  state: "valid",
  comment: "kept",
  parentKey: "primary",
  triggers: "origin",
  inheritance: false,
  generatedName: false,
  referencingParts: "none",
  referencedParts: "none"
}

const shapes: ReadonlyArray<readonly [string, Partial<Shape.Shape>]> = [
  ["ordinary tables", {}],
  ["a self-reference", { selfReference: true }],
  ["a table that others inherit from", { inheritance: true }],
  ["a partitioned referencing table", { referencingParts: "two levels" }],
  ["a partitioned referenced table", { referencedParts: "two levels" }],
  ["two partitioned tables", { referencingParts: "partitioned", referencedParts: "partitioned" }]
]

describe("a plan", () => {
  for (const [what, shape] of shapes) {
    for (const when of ["always", "contended"] as const) {
      it.scopedLive(`names exactly the locks that its steps take on ${what}, ${when}`, () =>
        Effect.gen(function* () {
          const session = yield* application
          const observer = yield* application
          for (const statement of Shape.create(Shape.numbered({ ...plain, ...shape }, 1))) {
            yield* session.query(statement)
          }
          const options = { selectors: {}, onDelete: "cascade", allowRowMovement: true } as const
          const { refused, steps } = yield* ForeignKey.plan(options)
          assert.deepStrictEqual(refused, [])
          const hasContended = steps.some((step) => step.when === "contended")
          const taken =
            when === "contended" && hasContended
              ? steps.filter(({ step }) => step !== "swap")
              : steps.filter((step) => step.when === "always")
          yield* session.query("SET search_path = pg_catalog")
          for (const { locks, sql, step } of taken) {
            const statements = sql.filter((statement) => statement !== "COMMIT")
            for (const statement of statements) yield* session.query(statement)
            assert.deepStrictEqual(
              yield* heldBy(observer, session.processId),
              Object.fromEntries(
                locks.map(({ mode, relation }) => [relation.replace(/^public\./, ""), mode])
              ),
              step
            )
            yield* session.query("COMMIT")
          }
          const after = yield* ForeignKey.list()
          assert.deepStrictEqual(
            after.map(({ onDelete, problems }) => [
              onDelete,
              problems.filter((p) => !p.startsWith("no index"))
            ]),
            [["cascade", []]]
          )
        }).pipe(Effect.provide(database))
      )
    }
  }

  it.scopedLive("takes no lock above ACCESS SHARE itself, and works beside ACCESS EXCLUSIVE", () =>
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Shape.create(Shape.numbered(plain, 1))) yield* session.query(statement)
      yield* session.query(
        "BEGIN; LOCK TABLE parent_1, child_1 IN ROW EXCLUSIVE MODE".replace("parent_1", '"pparent_1"')
      )
      const { steps } = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
      assert.isAbove(steps.length, 0)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("makes a script that does the whole change", () =>
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Shape.create(Shape.numbered(plain, 1))) yield* session.query(statement)
      const script = ForeignKey.planScript(yield* ForeignKey.plan({ selectors: {}, onDelete: "set-null" }))
      // Everything but psql's own commands.
      yield* session.query(script.replaceAll(/^\\.*$/gm, ""))
      const [key] = yield* Catalog.read(session)
      assert.deepInclude(key, {
        onDelete: "set-null",
        deferrable: true,
        initiallyDeferred: false,
        validated: true,
        comment: "kept"
      })
    }).pipe(Effect.provide(database))
  )
})
