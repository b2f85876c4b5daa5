import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Shape from "./Shape.js"
import { application, comparable, database, heldBy, vectors } from "./support.js"

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
  reindexed: false,
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

  for (const [what, shape] of shapes) {
    it.scopedLive(
      `of an interrupted change has the steps that are left, and they finish it, on ${what}`,
      () =>
        Effect.gen(function* () {
          const session = yield* application
          for (const statement of Shape.create(Shape.numbered({ ...plain, ...shape }, 1))) {
            yield* session.query(statement)
          }
          yield* session.query("SET search_path = pg_catalog")
          const options = { selectors: {}, onDelete: "cascade", allowRowMovement: true } as const
          yield* ForeignKey.rebuild(options)
          const reference = comparable(yield* vectors(session))
          const always = (plan: ForeignKey.PlanResult) =>
            plan.steps.flatMap(({ step, when }) => (when === "always" ? [step] : []))
          for (let stop = 1; ; stop++) {
            yield* ForeignKey.rebuild({ ...options, onDelete: "no-action" })
            const whole = always(yield* ForeignKey.plan(options)).filter((step) => !step.startsWith("record"))
            const done = yield* Ref.make(0)
            const running = yield* Effect.fork(
              ForeignKey.rebuild({
                ...options,
                onProgress: (event) =>
                  event._tag === "StepDone" && event.step !== "order"
                    ? Effect.flatMap(
                        Ref.updateAndGet(done, (n) => n + 1),
                        (n) => (n === stop ? Effect.interrupt : Effect.void)
                      )
                    : Effect.void
              })
            )
            if ((yield* Fiber.await(running))._tag === "Success") {
              assert.strictEqual(stop, whole.length + 1)
              break
            }
            const left = yield* ForeignKey.plan(options)
            assert.deepStrictEqual(always(left), [...whole.slice(stop), "record-end"])
            for (const { sql, when } of left.steps) {
              if (when === "always") yield* session.query(sql.join(";\n"))
            }
            assert.deepStrictEqual(comparable(yield* vectors(session)), reference)
            assert.deepStrictEqual((yield* ForeignKey.plan(options)).steps, [])
            assert.deepStrictEqual(
              (yield* ForeignKey.history()).filter(({ finishedAt }) => finishedAt === null),
              []
            )
          }
        }).pipe(Effect.provide(database))
    )
  }

  it.scopedLive("of an interrupted change that is taken back drops what it added", () =>
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Shape.create(Shape.numbered(plain, 1))) yield* session.query(statement)
      const running = yield* Effect.fork(
        ForeignKey.rebuild({
          selectors: {},
          onDelete: "cascade",
          onProgress: (event) =>
            event._tag === "StepDone" && event.step === "validate" ? Effect.interrupt : Effect.void
        })
      )
      yield* Fiber.await(running)
      const { steps, unchanged } = yield* ForeignKey.plan({ selectors: {}, onDelete: "no-action" })
      assert.deepStrictEqual(
        [unchanged, steps.map(({ step }) => step)],
        [[], ["drop-temporary", "record-end"]]
      )
    }).pipe(Effect.provide(database))
  )

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
})
