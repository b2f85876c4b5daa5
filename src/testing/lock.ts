/**
 * Advisory locks by the names of databases: whoever holds one uses that database. They are taken in
 * the database that a session is connected to, and looked for in all of them, because runs on one
 * server can be connected to different ones.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"

/** SQL for the key of a lock, for the name that an SQL expression gives. */
export const key = (name: string) => `pg_catalog.hashtextextended(${name}, 0)`

/** SQL that waits for the lock and takes it, for as long as the session lives. */
export const take = (name: string) => `pg_catalog.pg_advisory_lock(${key(name)})`

/**
 * SQL for whether any session of the server holds a lock. A key of 64 bits is shown in two halves
 * (documentation, view pg_locks).
 */
export const isHeld = (name: string) =>
  `EXISTS (
    SELECT FROM pg_catalog.pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
      AND l.classid::bigint = ((${key(name)} >> 32) & 4294967295) AND l.objid::bigint = (${key(name)} & 4294967295)
  )`

/** Runs an effect while the session holds a lock. */
export const whileHeld = <A, E, R>(
  session: Session,
  name: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | DatabaseError, R> =>
  Effect.acquireUseRelease(
    session.query(`SELECT ${take("$1")}`, [name]),
    () => effect,
    () => Effect.ignore(session.query(`SELECT pg_catalog.pg_advisory_unlock(${key("$1")})`, [name]))
  )
