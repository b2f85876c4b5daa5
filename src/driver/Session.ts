import type * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"

/**
 * A dedicated PostgreSQL session: one connection outside the pool that belongs to the scope it was opened in and to nobody
 * else. Advisory locks, LISTEN, `SET` and online schema changes need one. It is opened over `directUrl`, so it never goes
 * through a transaction pooler.
 */
export interface Session {
  /** The backend's process id, as in `pg_stat_activity.pid`. */
  readonly processId: number

  /**
   * Runs one statement and gives its rows as objects. Without parameters the text may hold several statements separated by
   * semicolons (the rows of the last one are given). An interruption cancels the statement through PostgreSQL's cancel
   * protocol and waits until the backend is idle again. Statements of one session run one after the other.
   */
  readonly query: <Row extends object = Record<string, unknown>>(
    sql: string,
    params?: ReadonlyArray<unknown>
  ) => Effect.Effect<ReadonlyArray<Row>, DatabaseError>
}
