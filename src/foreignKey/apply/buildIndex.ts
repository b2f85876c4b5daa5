/** Builds the index that a key should have on its referencing columns. */
import * as Effect from "effect/Effect"
import * as Attempt from "./attempt.js"
import { type Key, nameOf } from "../../catalog/foreignKeys.js"
import { missing, unknown } from "../steps/indexSteps.js"
import { reported, Unstable } from "./converge.js"

/**
 * Builds the index where it is missing. `onBuilt` is told the name of each index that was built.
 */
export const build = (
  context: Attempt.StepContext,
  key: Key,
  task: Parameters<typeof reported>[0],
  onBuilt: (index: string) => Effect.Effect<void>
) =>
  Effect.gen(function* () {
    // As in a change: each round makes progress or finds that somebody else did.
    const rounds = 100 + 10 * key.referencing.partitions.length
    for (let round = 0; round < rounds; round++) {
      const steps = yield* missing(context.session, key)
      if (steps.length === 0) return undefined
      const end = steps.findIndex(({ locks }) => locks.some(({ table }) => table.oid === unknown))
      yield* Effect.forEach(
        end === -1 ? steps : steps.slice(0, end),
        (step) =>
          Effect.zipRight(
            reported(
              task,
              step,
              step.outsideTransaction === true
                ? Attempt.runOutsideTransaction(context, step).pipe(
                    Effect.tapErrorTag("LockBudgetExhausted", () => tidy(context, key))
                  )
                : Attempt.run(context, step)
            ),
            step.name === "index" || step.name === "index-whole" ? onBuilt(step.index) : Effect.void
          ),
        { discard: true }
      ).pipe(Effect.catchTags({ ChangedMeanwhile: () => Effect.void, TriesExhausted: () => Effect.void }))
    }
    return yield* new Unstable({ constraint: nameOf(key) })
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** Drops what a build that did not come to its end has left, as far as that can be done at once. */
const tidy = (context: Attempt.StepContext, key: Key) =>
  Effect.flatMap(missing(context.session, key), (steps) =>
    Attempt.tidy(
      context,
      steps.flatMap(({ name, statements }) => (name === "index-drop" ? statements : []))
    )
  ).pipe(Effect.ignore)
