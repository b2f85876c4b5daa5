import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as TestServices from "effect/TestServices"
import { safetyNet } from "./speed.js"

/** A condition that did not come about. */
export class NeverCame extends Data.TaggedError("NeverCame")<{ readonly message: string }> {}

/** Waits until a condition holds: asks every 10 ms of real time. */
export const eventually = <E, R>(
  what: string,
  condition: Effect.Effect<boolean, E, R>
): Effect.Effect<void, E | NeverCame, R> =>
  condition.pipe(
    Effect.filterOrFail(
      (holds) => holds,
      () => new NeverCame({ message: `never came: ${what}` })
    ),
    Effect.retry({
      while: (error) => error instanceof NeverCame,
      schedule: Schedule.spaced("10 millis").pipe(Schedule.upTo(safetyNet("1 minute")))
    }),
    Effect.asVoid,
    TestServices.provideLive
  )
