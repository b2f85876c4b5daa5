/**
 * When to queue for a lock that old transactions hold, and when only to ask whether they have
 * ended. Whoever comes after us waits behind our lock request, and nobody behind a question; but
 * where long transactions relieve one another there is no moment without one, and only a queued
 * request comes in between.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type { Blocker } from "../../catalog/lockHolders.js"

/** What was seen of old transactions so far. */
export interface Observation {
  /** Those that were there when somebody looked last and found any. */
  readonly present: ReadonlySet<string>
  /**
   * Whether one of them has ended and others were there afterwards: they do end, so to queue may
   * help.
   */
  readonly relieved: boolean
  /** How often we queued behind old transactions. */
  readonly queued: number
}

/** Nothing was seen. */
export const none: Observation = { present: new Set(), relieved: false, queued: 0 }

/** Takes note of the old transactions that hold a lock now. */
export const look = (seen: Observation, holders: ReadonlyArray<Blocker>): Observation => {
  if (holders.length === 0) return seen
  const present = new Set(holders.map(identity))
  return { ...seen, present, relieved: seen.relieved || [...seen.present].some((id) => !present.has(id)) }
}

/**
 * How likely we should queue now. Rarely behind transactions that show no sign of an end; half of
 * the time behind one that relieved another, less behind several, which would have to end together,
 * and less with every time that it was in vain.
 */
export const chance = ({ present, queued, relieved }: Observation): number =>
  relieved ? Math.max(least, 0.5 ** present.size * 0.9 ** queued) : least

/** Decides whether to queue although old transactions hold a lock. */
export const queues = (seen: Observation): Effect.Effect<boolean> =>
  Effect.map(Random.next, (random) => random < chance(seen))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const least = 0.05

/** A transaction: the session and when it began, or the prepared transaction. */
const identity = ({ pid, preparedTransaction, transactionStart }: Blocker) =>
  JSON.stringify([pid, preparedTransaction, transactionStart])
