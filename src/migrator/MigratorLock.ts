import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import { Database } from "../Database.js"
import type { DatabaseError } from "../DatabaseError.js"
import { MigratorError } from "./MigratorError.js"

/**
 * Makes this process the only migrator of a ledger in its database until the scope closes: a session advisory lock on a
 * dedicated session. It is tried again and again, and never waited for, because a session that waits inside a statement
 * holds back CREATE INDEX CONCURRENTLY, also its own.
 */
export const acquire = Effect.fn("Migrator.lock")(function* (
  table: string,
  wait: Duration.DurationInput
): Effect.fn.Return<void, MigratorError | DatabaseError, Scope.Scope | Database> {
  const session = yield* (yield* Database).session
  const key = lockKey(table)
  const attempt = Effect.flatMap(
    session.query<{ locked: boolean }>("SELECT pg_catalog.pg_try_advisory_lock($1) AS locked", [key]),
    ([row]) => (row?.locked === true ? Effect.void : Effect.fail("busy" as const))
  )
  yield* attempt.pipe(
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

/** A 64-bit key that no other program is likely to use; advisory locks are one name space in each database. */
const lockKey = (table: string): string =>
  Crypto.createHash("sha256")
    .update(`promptgrimoire-db/Migrator/${table}`)
    .digest()
    .readBigInt64BE(0)
    .toString()
