/**
 * One change at a time: a session-level advisory lock, held by a session that does nothing else.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import { block } from "../sql/identifiers.js"

/** Another process is changing foreign keys of this database. */
export class Busy extends Data.TaggedError("Busy")<{
  /** The other process's backend, as in `pg_stat_activity`. */
  readonly holder: { readonly pid: number; readonly applicationName: string } | undefined
}> {
  override get message() {
    return `foreign keys of this database are being changed by another process${
      this.holder === undefined ? "" : ` (backend ${this.holder.pid}, ${this.holder.applicationName})`
    }`
  }
}

/** Two words of our own: "pgdb" and "fkey". Advisory locks belong to one database. */
const key = "1885824098, 1718314361"

/** A statement that takes the lock for the session it runs in, or fails at once. */
export const takeOrFail = (): string =>
  block(`BEGIN
  IF NOT pg_catalog.pg_try_advisory_lock(${key}) THEN
    RAISE EXCEPTION 'foreign keys of this database are being changed by another process';
  END IF;
END`)

/**
 * Takes the lock, asking again at random intervals for up to `patience`. Never by a waiting
 * request: a transaction that waits holds a snapshot, which CREATE INDEX CONCURRENTLY waits for in
 * turn. The lock ends with its session.
 */
export const acquire = (
  session: Session,
  patience: Duration.Duration
): Effect.Effect<void, DatabaseError | Busy> =>
  Effect.gen(function* () {
    const deadline = (yield* Clock.currentTimeMillis) + Duration.toMillis(patience)
    for (;;) {
      const rows = yield* session.query<{ readonly taken: boolean }>(
        `SELECT pg_catalog.pg_try_advisory_lock(${key}) AS taken`
      )
      if (rows[0]?.taken === true) return undefined
      if ((yield* Clock.currentTimeMillis) >= deadline) {
        const holders = yield* session.query<{ readonly pid: number; readonly applicationName: string }>(
          `SELECT l.pid, coalesce(a.application_name, '') AS "applicationName"
          FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
          WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
            AND (l.classid, l.objid) = (${key})
            AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())`
        )
        return yield* new Busy({ holder: holders[0] })
      }
      yield* Effect.sleep(Duration.millis(25 + (yield* Random.next) * 475))
    }
  })
