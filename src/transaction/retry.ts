import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"

/** How often a transaction may be run again, and how long it pauses before. */
export interface RetryOptions {
  /** Tries after the first one. Default 3. */
  readonly times?: number | undefined
  /**
   * The longest pause before the second try; it doubles with every try. Default 10 milliseconds.
   */
  readonly base?: Duration.DurationInput | undefined
  /** No pause is longer. Default 1 second. */
  readonly max?: Duration.DurationInput | undefined
}

/** Which try of a transaction this is. */
export interface Attempt {
  /** From 1. */
  readonly number: number
  /** Whether there may be another one. */
  readonly mayRetry: boolean
  /** Set when the transaction failed in a way that another try may mend. */
  again: boolean
}

/** A transaction that is run once. */
export const once = (): Attempt => ({ number: 1, mayRetry: false, again: false })

/**
 * Runs tries until one does not ask for another, or the options allow no more. The pause before a
 * try is random between zero and a limit that doubles ("full jitter"): transactions that collided
 * must not meet again.
 */
export const run = <A, E, R>(
  { base = Duration.millis(10), max = Duration.seconds(1), times = 3 }: RetryOptions,
  one: (attempt: Attempt) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> => {
  const from = (number: number): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      const attempt: Attempt = { number, mayRetry: number <= times, again: false }
      const limit = Math.min(Duration.toMillis(max), Duration.toMillis(base) * 2 ** (number - 1))
      const next = Random.nextRange(0, limit).pipe(
        Effect.flatMap((millis) => Effect.sleep(Duration.millis(millis))),
        Effect.zipRight(from(number + 1))
      )
      return Effect.catchAllCause(one(attempt), (cause) => (attempt.again ? next : Effect.failCause(cause)))
    })
  return from(1)
}
