/** Whether the database answers, for those who watch over the program. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Database } from "../../src/Database.js"
import type { PoolState } from "../../src/DatabaseError.js"
import { reasonOf } from "../../src/DatabaseError.js"

/** `saturated`: the database may be well, but every connection of this process is busy. */
export interface Report {
  readonly database: "ready" | "saturated" | "down"
  readonly reason?: string
  readonly pool: PoolState
}

/** Whether the database answers. */
export class Health extends Context.Tag("two-tab-sync/Health")<
  Health,
  {
    /** Never fails, and takes two seconds at most. */
    readonly report: Effect.Effect<Report>
  }
>() {}

/** The health of the program's database. */
export const layer = Layer.effect(
  Health,
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const database = yield* Database
    const ask = sql`SELECT 1`.pipe(
      Effect.as({ answered: true, reason: "" }),
      // A database that hangs may also hang when it is asked to stop: nobody waits for that here.
      Effect.disconnect,
      Effect.timeout(patience),
      Effect.catchTags({
        TimeoutException: () =>
          Effect.succeed({ answered: false, reason: `no answer within ${Duration.format(patience)}` }),
        SqlError: (error) => Effect.succeed({ answered: false, reason: reasonOf(error)?._tag ?? "unknown" })
      })
    )
    return Health.of({
      report: Effect.gen(function* () {
        const { answered, reason } = yield* ask
        const pool = yield* database.stats
        if (answered) return { database: "ready", pool }
        return { database: pool.busy >= pool.max ? "saturated" : "down", reason, pool }
      })
    })
  })
)

const patience = Duration.seconds(2)
