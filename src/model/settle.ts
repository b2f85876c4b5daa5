import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

/**
 * Runs a statement that inserts a row or finds the one that is in its way, until it has done
 * either.
 *
 * In READ COMMITTED a statement sees what was committed before it began. One that waited for a
 * rival's insert therefore neither inserts nor sees the rival's row; run again, it does.
 * (PostgreSQL, chapter "Read Committed Isolation Level". In the stricter levels the server answers
 * with a serialization failure instead.)
 */
export const settle = <A, E, R>(attempt: Effect.Effect<Option.Option<A>, E, R>): Effect.Effect<A, E, R> =>
  Effect.repeat(attempt, { until: Option.isSome, times: maxAttempts }).pipe(
    Effect.flatMap(
      Option.match({
        onSome: Effect.succeed,
        onNone: () =>
          Effect.dieMessage(
            `a row was neither inserted nor found in ${maxAttempts + 1} attempts: is there a trigger or a row-level security policy in the way?`
          )
      })
    )
  )

/** Each attempt that comes to nothing means that a rival's row was committed and is gone again. */
const maxAttempts = 99
