/**
 * Plan.test.ts shows that planned statements take the planned locks. Here the engine's own sessions
 * are looked at, in every step that there is.
 */
import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Session } from "../../src/connection/session.js"
import type { StepName } from "../../src/foreignKey/steps/steps.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Observed from "./Observed.js"
import * as Shape from "./Shape.js"
import { application, database, withRole } from "./support.js"
import { cases } from "../support/length.js"

type Steps = ReadonlyArray<ForeignKey.PlannedStep>

/** The steps that are taken when the swap gets its locks. */
const swapped = (steps: Steps) => steps.filter(({ when }) => when === "always")

/** Those that are taken when it gets no try. */
const contended = (steps: Steps) =>
  steps.some(({ when }) => when === "contended")
    ? steps.filter(({ step, when }) => when !== "if out of order" && step !== "swap")
    : swapped(steps)

/** Those that are taken when the new key's triggers would fire before the original's. */
const reordered = (steps: Steps) =>
  steps.filter(({ when }, index) => when !== "contended" && steps[index + 1]?.when !== "if out of order")

/** Plans and carries out a change of all keys. */
const change = (
  onDelete: ForeignKey.Action,
  taken: (steps: Steps) => Steps,
  more: Partial<ForeignKey.RebuildOptions> = {}
) =>
  Effect.gen(function* () {
    const options = { selectors: {}, allowRowMovement: true, onDelete, ...more }
    const { refused, steps } = yield* ForeignKey.plan(options)
    assert.deepStrictEqual(refused, [])
    const { result, seen } = yield* Observed.transactions(ForeignKey.rebuild(options))
    assert.deepStrictEqual([result.failed, result.refused], [[], []])
    Observed.areThose(seen, taken(steps), `${onDelete}, ${taken.name}`)
    return steps.map(({ step }) => step)
  })

/** A change that was interrupted after the first such step; false if it has none. */
const interrupted = (onDelete: ForeignKey.Action, after: StepName) =>
  Effect.gen(function* () {
    const running = yield* Effect.fork(
      ForeignKey.rebuild({
        selectors: {},
        allowRowMovement: true,
        onDelete,
        onProgress: (event) =>
          event._tag === "StepDone" && event.step === after ? Effect.interrupt : Effect.void
      })
    )
    return (yield* Fiber.await(running))._tag === "Failure"
  })

/**
 * As if the database's OIDs had got another digit since the keys were made: "..._99" sorts after
 * "..._100000".
 */
const lateTriggers = (session: Session) =>
  session.query(`
    DO $$ DECLARE r record; BEGIN
      FOR r IN SELECT tgname, tgrelid::regclass AS relation FROM pg_trigger
        WHERE tgisinternal AND tgparentid = 0
      LOOP
        EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, 'RI_ConstraintTrigger_zz' || r.tgname);
      END LOOP;
    END $$`)

describe("a change takes the planned steps with the planned locks, and no others,", () => {
  for (const [what, shape] of cases(Shape.kinds, ([what]) => what === "ordinary tables")) {
    it.scopedLive(`on ${what}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        for (const statement of Shape.create(Shape.numbered({ ...Shape.plain, ...shape }, 1))) {
          yield* session.query(statement)
        }
        yield* change("cascade", swapped)
        yield* change("restrict", contended, { swapTries: 0 })
        yield* change("set-null", contended, { swapTries: 0 })
        for (const after of ["validate", "attach"] as const) {
          if (yield* interrupted("no-action", after)) {
            assert.include(yield* change("set-null", swapped), "drop-temporary")
          } else assert.strictEqual(after, "attach")
        }
      }).pipe(Effect.provide(database))
    )

    inFull(it).scopedLive(
      `on ${what}, by a role that is no superuser, also where the new triggers would fire first`,
      () =>
        withRole(
          (role) =>
            `GRANT ALL ON SCHEMA public TO ${role}; GRANT CREATE ON DATABASE ${role.slice(1)} TO ${role}`,
          ({ limited }) =>
            Effect.gen(function* () {
              const session = yield* application
              for (const statement of Shape.create(Shape.numbered({ ...Shape.plain, ...shape }, 1))) {
                yield* session.query(statement)
              }
              yield* change("cascade", swapped)
              yield* change("restrict", contended, { swapTries: 0 })
              yield* lateTriggers(session)
              yield* change("set-null", reordered)
            }).pipe(Effect.provide(limited))
        )
    )
  }

  inFull(it).scopedLive(
    "on several keys between the same tables, two of them on the same columns, and one back",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        for (const shape of Shape.circle) {
          for (const statement of Shape.create(shape)) yield* session.query(statement)
        }
        yield* change("cascade", swapped)
        yield* change("restrict", contended, { swapTries: 0 })
        assert.strictEqual((yield* ForeignKey.list({})).length, Shape.circle.length)
      }).pipe(Effect.provide(database))
  )

  for (const referencingParts of cases(["none", "two levels"] as const, (parts) => parts === "two levels")) {
    inMatrix(it).scopedLive(
      `while it changes indexes, the referencing table's partitions being: ${referencingParts}`,
      () =>
        Effect.gen(function* () {
          const session = yield* application
          const shape = {
            ...Shape.plain,
            parentKey: "unique, then unique",
            reindexed: true,
            referencingParts
          } as const
          for (const statement of Shape.create(Shape.numbered(shape, 1))) yield* session.query(statement)
          const steps = yield* change("cascade", swapped, { createIndexes: true })
          assert.includeMembers(
            [...steps],
            ["index", "reindex", ...(referencingParts === "none" ? [] : ["index-whole", "index-attach"])]
          )
          if (referencingParts === "none") {
            // As a build leaves it that was ended in its middle.
            yield* session.query(
              "UPDATE pg_index SET indisvalid = false FROM pg_class WHERE oid = indexrelid AND relname LIKE 'child%\\_idx'"
            )
            assert.include(yield* change("restrict", swapped, { createIndexes: true }), "index-drop")
          }
        }).pipe(Effect.provide(database))
    )
  }
})
