import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { Client } from "pg"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"

/**
 * One server for the whole run: that of DATABASE_URL, else a temporary one of the major version POSTGRES_VERSION. Its superuser url is in
 * TEST_DATABASE_URL. Without a server the run fails here, with the reason, before any test.
 */
export default (): Promise<() => Promise<void>> =>
  Effect.runPromise(
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const url = yield* serverUrl.pipe(
        Effect.tap(checkConnection),
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      process.env["TEST_DATABASE_URL"] = url
      return () => Effect.runPromise(Scope.close(scope, Exit.void))
    })
  )

const serverUrl = Effect.suspend(() => {
  const given = process.env["DATABASE_URL"]
  return given !== undefined && given !== ""
    ? Effect.succeed(given)
    : EmbeddedPostgres.make({ settings: { max_connections: "300" } }).pipe(
        Effect.map(({ url }) => Redacted.value(url))
      )
})

const checkConnection = (url: string) =>
  Effect.tryPromise({
    try: async () => {
      const client = new Client({ connectionString: url, connectionTimeoutMillis: 10_000 })
      await client.connect()
      await client.end()
    },
    catch: (cause) =>
      new NoTestServer({
        message: `The tests need a PostgreSQL server, and that of DATABASE_URL does not answer: ${String(cause)}`,
        cause
      })
  })

class NoTestServer extends Data.TaggedError("NoTestServer")<{
  readonly message: string
  readonly cause: unknown
}> {}
