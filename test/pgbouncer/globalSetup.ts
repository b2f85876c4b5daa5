import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import startServer from "../../src/testing/globalSetup.js"
import * as PgBouncer from "./PgBouncer.js"

/**
 * The server of the ordinary suite, and PgBouncer before it: its url is in TEST_POOLER_URL, which
 * the test Layers go through.
 */
export default async (): Promise<() => Promise<void>> => {
  const stopServer = await startServer()
  return Effect.runPromise(
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const pooler = yield* PgBouncer.make(process.env["TEST_DATABASE_URL"] ?? "").pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      process.env["TEST_POOLER_URL"] = pooler.url
      return () => Effect.runPromise(Scope.close(scope, Exit.void)).then(stopServer)
    })
  )
}
