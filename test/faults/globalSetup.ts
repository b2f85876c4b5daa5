import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"

/**
 * One server of the major version POSTGRES_VERSION for the whole run, never that of DATABASE_URL:
 * the checks kill sessions and fill it up. Its superuser url is in TEST_DATABASE_URL. Where its
 * binaries are missing the run fails here, and says how to install them.
 */
export default (): Promise<() => Promise<void>> =>
  Effect.runPromise(
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const server = yield* EmbeddedPostgres.make({ settings: { max_connections: "200" } }).pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      process.env["TEST_DATABASE_URL"] = Redacted.value(server.url)
      return () => Effect.runPromise(Scope.close(scope, Exit.void))
    })
  )
