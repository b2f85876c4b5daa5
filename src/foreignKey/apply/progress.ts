/** Signs of life of the steps that work for minutes or hours while nobody waits for them. */
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type { StepName } from "../steps/steps.js"
import type { Working } from "../types.js"

/**
 * Tells of a step again and again, until it ends, unless it waits for a lock: that is told
 * elsewhere.
 */
export const telling = <A, E>(
  {
    every,
    onWorking,
    session,
    watcher
  }: {
    readonly session: Session
    readonly watcher: Session
    readonly every: Duration.DurationInput
    readonly onWorking: (working: Working) => Effect.Effect<void>
  },
  step: StepName,
  effect: Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    if (!lasting.has(step)) return yield* effect
    const start = yield* Clock.currentTimeMillis
    const look = Effect.gen(function* () {
      const [found] = yield* progress(watcher, session.processId)
      if (found === undefined || found.waits) return
      const { done, phase, total } = found
      yield* onWorking({
        elapsedMs: (yield* Clock.currentTimeMillis) - start,
        phase,
        share: phase !== null && total !== null && total > 0 ? Math.min(1, (done ?? 0) / total) : null
      })
    })
    // A look that fails is no reason to stop: whoever watches the step finds out about a lost
    // connection.
    const fiber = yield* Effect.fork(
      Effect.forever(Effect.zipRight(Effect.sleep(every), Effect.ignore(look)))
    )
    return yield* Effect.ensuring(effect, Fiber.interruptFork(fiber))
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const lasting: ReadonlySet<StepName> = new Set(["index", "index-drop", "reindex", "validate"])

interface Progress {
  readonly waits: boolean
  readonly phase: string | null
  readonly done: number | null
  readonly total: number | null
}

/**
 * Blocks, tuples and transactions waited for are counted in columns of their own, which keep their
 * numbers when their phase is over.
 */
const progress = (session: Session, pid: number): Effect.Effect<ReadonlyArray<Progress>, DatabaseError> =>
  session.query<Progress>(
    `SELECT a.wait_event_type IS NOT DISTINCT FROM 'Lock' AS waits, p.phase,
      (CASE WHEN p.phase LIKE 'waiting%' THEN p.lockers_done WHEN p.tuples_total > 0 THEN p.tuples_done ELSE p.blocks_done END)::float8 AS done,
      (CASE WHEN p.phase LIKE 'waiting%' THEN p.lockers_total WHEN p.tuples_total > 0 THEN p.tuples_total ELSE p.blocks_total END)::float8 AS total
    FROM pg_catalog.pg_stat_activity a
    LEFT JOIN pg_catalog.pg_stat_progress_create_index p ON p.pid = a.pid
    WHERE a.pid = $1`,
    [pid],
    { answerMillis: 10_000 }
  )
