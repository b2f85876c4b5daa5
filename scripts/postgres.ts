/**
 * Runs a PostgreSQL server on the cluster in `.data` until it is interrupted, for tests whose
 * databases are kept, and for psql: `npm run postgres`.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"

EmbeddedPostgres.make({ dataDirectory: ".data", settings: { max_connections: "300" } }).pipe(
  Effect.tap(({ url }) => Console.log(`DATABASE_URL=${Redacted.value(url)}`)),
  Effect.zipRight(Effect.never),
  Effect.scoped,
  NodeRuntime.runMain
)
