import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { assert } from "./it.js"

/**
 * Fails unless an effect ends within so many milliseconds, and what this machine makes everything
 * wait then: twenty times the longest that `ping` takes, which is run before and beside it.
 */
export const within =
  <R2>(millis: number, ping: Effect.Effect<unknown, unknown, R2>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | R2> =>
    Effect.gen(function* () {
      let longest = 0
      const timed = Effect.suspend(() => {
        const sent = performance.now()
        return Effect.tap(Effect.orDie(ping), () => {
          longest = Math.max(longest, performance.now() - sent)
        })
      })
      yield* timed
      const pings = yield* Effect.fork(Effect.forever(timed))
      const start = performance.now()
      const value = yield* Effect.ensuring(effect, Fiber.interrupt(pings))
      const took = performance.now() - start
      assert.isBelow(took, millis + 20 * longest)
      return value
    })
