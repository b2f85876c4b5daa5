import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"

/**
 * Evaluates `condition` until it is true, waiting `every` between two evaluations. The result is
 * false when it did not become true within `atMost`.
 *
 * Time is always the machine's: the server is a real process, which goes on while a test's clock
 * stands still. The limit is a deadline and not `Effect.timeout`, because it also has to hold
 * inside finalizers, where nothing can be interrupted.
 */
export const until = <E>(
  condition: Effect.Effect<boolean, E>,
  options: { readonly every: Duration.DurationInput; readonly atMost: Duration.DurationInput }
): Effect.Effect<boolean, E> =>
  Effect.gen(function* () {
    const deadline = (yield* Clock.currentTimeMillis) + Duration.toMillis(options.atMost)
    while (!(yield* condition)) {
      if ((yield* Clock.currentTimeMillis) > deadline) return false
      yield* Effect.sleep(options.every)
    }
    return true
  }).pipe(Effect.withClock(Clock.make()))

/** Lets time pass before a further attempt, where there is no condition to wait for. */
export const pause = (duration: Duration.DurationInput): Effect.Effect<void> =>
  Effect.sleep(duration).pipe(Effect.withClock(Clock.make()))
