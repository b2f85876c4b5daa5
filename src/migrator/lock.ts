import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import { Database } from "../Database.js"
import type { DatabaseError } from "../DatabaseError.js"
import { MigratorError } from "./migratorError.js"

/** The migrator's lock, for as long as its scope is open and its session lives. */
export interface MigratorLock {
  /**
   * Runs work that only one migrator may do: it is interrupted, and fails with the reason `Locked`,
   * when the session that has the lock is lost. From that moment on another migrator may have it.
   */
  readonly guard: <A, E, R>(work: Effect.Effect<A, E, R>) => Effect.Effect<A, E | MigratorError, R>
}

/**
 * Makes this process the only migrator of a ledger in its database until the scope closes: a
 * session advisory lock on a dedicated session. It is tried again and again, and never waited for,
 * because a session that waits inside a statement holds back CREATE INDEX CONCURRENTLY, also its
 * own. `onBusy` is run once, if another one has it.
 */
export const acquire = Effect.fn("Migrator.lock")(function* (
  table: string,
  wait: Duration.DurationInput,
  onBusy: Effect.Effect<void>
): Effect.fn.Return<MigratorLock, MigratorError | DatabaseError, Scope.Scope | Database> {
  const session = yield* (yield* Database).session
  const key = lockKey(table)
  // From 14 on the server may end sessions that have nothing to do, and this one has nothing to do
  // for as long as a migration runs.
  yield* session.query(
    "SELECT pg_catalog.set_config('idle_session_timeout', '0', false) WHERE pg_catalog.current_setting('idle_session_timeout', true) IS NOT NULL"
  )
  const attempt = Effect.flatMap(
    session.query<{ locked: boolean }>("SELECT pg_catalog.pg_try_advisory_lock($1) AS locked", [key]),
    ([row]) => (row?.locked === true ? Effect.void : Effect.fail("busy" as const))
  )
  const tell = yield* Effect.once(onBusy)
  yield* attempt.pipe(
    Effect.tapError((error) => (error === "busy" ? tell : Effect.void)),
    Effect.retry({
      while: (error) => error === "busy",
      schedule: Schedule.jittered(Schedule.exponential("20 millis", 1.5)).pipe(
        Schedule.either(Schedule.spaced("500 millis")),
        Schedule.upTo(wait)
      )
    }),
    Effect.catchAll((error) =>
      error === "busy"
        ? Effect.flatMap(
            session.query<{ pid: number; application_name: string }>(holders, [key]),
            (rows) =>
              new MigratorError({
                reason: "Locked",
                detail: `another migrator holds the lock for more than ${Duration.format(wait)} (${rows
                  .map(({ application_name, pid }) => `process ${pid}, ${application_name}`)
                  .join("; ")}); wait for it to finish, or look at it in pg_stat_activity`
              })
          )
        : Effect.fail(error)
    )
  )
  const lost = Effect.catchAll(
    session.lost,
    (cause) =>
      new MigratorError({
        reason: "Locked",
        detail: `the session that held the lock was lost, so the work was stopped before another migrator could meet it; run it again: ${cause.message}`,
        cause
      })
  )
  return { guard: (work) => Effect.raceFirst(work, lost) }
})

/** The sessions that hold the lock; a 64-bit key is split over two columns of pg_locks. */
const holders = `
  SELECT activity.pid, activity.application_name
  FROM pg_catalog.pg_locks AS held
  JOIN pg_catalog.pg_stat_activity AS activity ON activity.pid = held.pid
  WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
    AND held.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND ((held.classid::bigint << 32) | held.objid::bigint) = $1::bigint
`

/**
 * A 64-bit key that no other program is likely to use; advisory locks are one name space in each
 * database.
 */
const lockKey = (table: string): string =>
  Crypto.createHash("sha256")
    .update(`promptgrimoire-db/Migrator/${table}`)
    .digest()
    .readBigInt64BE(0)
    .toString()
