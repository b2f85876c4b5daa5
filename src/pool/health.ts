import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { DatabaseError, PoolState } from "../DatabaseError.js"
import { PgConnection, type DialOptions } from "../connection/connection.js"
import * as Pool from "./pool.js"

/**
 * Whether a program can use its database.
 *
 * - `ready`: a connection was had and the server answered on it.
 * - `saturated`: the server answers, but every connection of the pool is in use. More traffic would
 *   only wait.
 * - `down`: the server does not answer.
 */
export type Health =
  | { readonly status: "ready"; readonly pool: PoolState }
  | { readonly status: "saturated"; readonly reason: string; readonly pool: PoolState }
  | { readonly status: "down"; readonly reason: string; readonly pool: PoolState }

/** A health check that takes longer is of no use to who asks. */
const patience = Duration.seconds(2)

/**
 * Asks on a pooled connection; when none is to be had, on one of its own, so that a full pool is
 * told from a dead server.
 */
export const check = (pool: Pool.Pool, dial: DialOptions): Effect.Effect<Health> =>
  Effect.gen(function* () {
    const before = yield* pool.state
    const pooled =
      before.busy >= before.max
        ? "no answer"
        : yield* answers(
            Pool.use(pool, (connection) =>
              connection.run({ text: "SELECT 1", timeoutMillis: Duration.toMillis(patience) })
            )
          )
    const after = yield* pool.state
    if (pooled === "answered") return { status: "ready", pool: after }
    const alone = yield* answers(
      Effect.acquireUseRelease(
        PgConnection.dial({ ...dial, connectTimeout: Duration.min(dial.connectTimeout, patience) }),
        () => Effect.void,
        (connection) => Effect.forkDaemon(Effect.interruptible(connection.close))
      )
    )
    if (alone === "answered") {
      return {
        status: "saturated",
        reason: `all ${after.max} connections are in use and ${after.waiting} callers wait`,
        pool: after
      }
    }
    return {
      status: "down",
      reason: alone === "no answer" ? `no answer within ${Duration.format(patience)}` : alone.message,
      pool: after
    }
  })

/** A server that has no connection left to give is there, and answers. */
const answers = (
  probe: Effect.Effect<unknown, DatabaseError>
): Effect.Effect<"answered" | "no answer" | DatabaseError> =>
  probe.pipe(
    Effect.as("answered" as const),
    Effect.catchAll((error) =>
      Effect.succeed(error.reason._tag === "TooManyConnections" ? ("answered" as const) : error)
    ),
    Effect.disconnect,
    Effect.timeoutTo({
      duration: patience,
      onTimeout: () => "no answer" as const,
      onSuccess: (answer) => answer
    })
  )
