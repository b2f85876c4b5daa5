import * as Effect from "effect/Effect"
import type { Pooler } from "../DatabaseConfig.js"
import * as Pool from "./pool.js"

/**
 * Whether something stands between the pool and PostgreSQL: a pooler makes up the process id that
 * it tells a client, so the backend's own is another one.
 */
export const isBehindPooler = (pool: Pool.Pool) =>
  Pool.use(pool, (connection) =>
    Effect.map(connection.run({ text: "SELECT pg_catalog.pg_backend_pid() AS pid" }), (response) => {
      const [row] = "rows" in response ? response.rows : []
      return row?.pid !== connection.processId
    })
  )

/** What the setting `pooler` costs, and what to set, where it does not fit what was found. */
export const disagreement = (setting: Pooler, isFound: boolean): string | undefined => {
  if (setting === "none" && isFound) {
    return 'There is a connection pooler between this program and PostgreSQL. If it pools transactions, set pooler to "transaction" and directUrl to the server: timeouts, LISTEN and advisory locks of a session do not work through it'
  }
  return setting === "transaction" && !isFound
    ? 'pooler is "transaction", but no connection pooler was found between this program and PostgreSQL. If there is none, set pooler to "none": statements outside transactions have no timeouts now, and a connection is closed after every interruption'
    : undefined
}
