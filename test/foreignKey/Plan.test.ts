import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import { qualified } from "../../src/sql/identifiers.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Shape from "./Shape.js"
import { application, comparable, database, heldBy, snapshots } from "./support.js"
import { cases, isFull, next } from "../support/length.js"

/** In `npm test` the plainest tables are changed, and those that take the most steps. */
const isTelling = ([what]: readonly [string, unknown]) =>
  what === "ordinary tables" || what === "two partitioned tables"

describe("a plan", () => {
  for (const [what, shape] of cases(Shape.kinds, isTelling)) {
    for (const when of ["always", "contended"] as const) {
      const run = when === "always" ? it : inMatrix(it)
      run.scopedLive(`names exactly the locks that its steps take on ${what}, ${when}`, () =>
        Effect.gen(function* () {
          const session = yield* application
          const observer = yield* application
          for (const statement of Shape.create(Shape.numbered({ ...Shape.plain, ...shape }, 1))) {
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

  for (const [what, shape] of Shape.kinds) {
    inFull(it).scopedLive(
      `of an interrupted change has the steps that are left, and they finish it, on ${what}`,
      () =>
        Effect.gen(function* () {
          const session = yield* application
          for (const statement of Shape.create(Shape.numbered({ ...Shape.plain, ...shape }, 1))) {
            yield* session.query(statement)
          }
          yield* session.query("SET search_path = pg_catalog")
          const options = { selectors: {}, onDelete: "cascade", allowRowMovement: true } as const
          yield* ForeignKey.rebuild(options)
          const reference = comparable(yield* snapshots(session))
          const always = (plan: ForeignKey.PlanResult) =>
            plan.steps.flatMap(({ step, when }) => (when === "always" ? [step] : []))
          for (let stop = 1; ; stop = next(stop)) {
            yield* ForeignKey.rebuild({ ...options, onDelete: "no-action" })
            const whole = always(yield* ForeignKey.plan(options)).filter((step) => !step.startsWith("record"))
            const done = yield* Ref.make(0)
            const running = yield* Effect.fork(
              ForeignKey.rebuild({
                ...options,
                onProgress: (event) =>
                  event._tag === "StepDone"
                    ? Effect.flatMap(
                        Ref.updateAndGet(done, (n) => n + 1),
                        (n) => (n === stop ? Effect.interrupt : Effect.void)
                      )
                    : Effect.void
              })
            )
            if ((yield* Fiber.await(running))._tag === "Success") {
              assert.isAbove(stop, whole.length)
              if (isFull) assert.strictEqual(stop, whole.length + 1)
              break
            }
            const left = yield* ForeignKey.plan(options)
            assert.deepStrictEqual(always(left), [...whole.slice(stop), "record-end"])
            for (const { sql, when } of left.steps) {
              if (when === "always") yield* session.query(sql.join(";\n"))
            }
            assert.deepStrictEqual(comparable(yield* snapshots(session)), reference)
            assert.deepStrictEqual((yield* ForeignKey.plan(options)).steps, [])
            assert.deepStrictEqual(
              (yield* ForeignKey.history()).filter(({ finishedAt }) => finishedAt === null),
              []
            )
          }
        }).pipe(Effect.provide(database))
    )
  }

  inMatrix(it).scopedLive("of an interrupted change that is taken back drops what it added", () =>
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Shape.create(Shape.numbered(Shape.plain, 1))) yield* session.query(statement)
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

  it.scopedLive("takes no lock above ACCESS SHARE", () =>
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Shape.create(Shape.numbered(Shape.plain, 1))) yield* session.query(statement)
      // So that the ledger is there too.
      yield* ForeignKey.rebuild({ selectors: {}, onDelete: "set-null" })
      const [ledger] = yield* session.query<{ readonly name: string }>(
        "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relname LIKE 'promptgrimoire%'"
      )
      const tables = ["pparent_1", "child_1", ledger?.name ?? ""].map((name) =>
        qualified({ schema: "public", name })
      )
      // EXCLUSIVE conflicts with every mode but ACCESS SHARE.
      yield* session.query(`BEGIN; LOCK TABLE ${tables.join(", ")} IN EXCLUSIVE MODE`)
      const { steps, warnings } = yield* ForeignKey.plan({
        selectors: {},
        onDelete: "cascade",
        createIndexes: true
      })
      assert.includeMembers(
        steps.map(({ step }) => step),
        ["index", "record", "add", "swap"]
      )
      // The count of rows without a referenced row had its locks too.
      assert.deepStrictEqual(
        warnings.filter(({ warning }) => warning.includes("not counted")),
        []
      )
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive(
    "does without the rows of tables that somebody has locked in ACCESS EXCLUSIVE mode",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        for (const statement of Shape.create(Shape.numbered(Shape.plain, 1))) yield* session.query(statement)
        yield* session.query('BEGIN; LOCK TABLE "pparent_1", child_1 IN ACCESS EXCLUSIVE MODE')
        const { steps, warnings } = yield* ForeignKey.plan({
          selectors: {},
          onDelete: "cascade",
          orphanTimeout: "50 millis"
        })
        assert.includeMembers(
          steps.map(({ step }) => step),
          ["add", "swap"]
        )
        assert.include(
          warnings.map(({ warning }) => warning),
          "rows without a referenced row were not counted in the time given; validation will find them"
        )
      }).pipe(Effect.provide(database))
  )

  it.scopedLive("makes a script that does the whole change", () =>
    Effect.gen(function* () {
      const session = yield* application
      for (const statement of Shape.create(Shape.numbered(Shape.plain, 1))) yield* session.query(statement)
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
