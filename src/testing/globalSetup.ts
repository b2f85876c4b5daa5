/**
 * The `globalSetup` of vitest: one server for all test files, whose url is in TEST_DATABASE_URL. It
 * is that of TEST_DATABASE_URL or DATABASE_URL, else an embedded one that ends with the run.
 * Without a server the run fails here, with the reason, before any test.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { adminSession, serverUrl } from "./server.js"

/** Starts what the tests need; gives what ends it. */
export default (): Promise<() => Promise<void>> =>
  Effect.runPromise(
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const url = yield* serverUrl.pipe(
        Effect.tap((url) => Effect.scoped(adminSession(url))),
        Effect.mapError((cause) => new NoTestServer({ cause })),
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      process.env["TEST_DATABASE_URL"] = url
      return () => Effect.runPromise(Scope.close(scope, Exit.void))
    })
  )

class NoTestServer extends Data.TaggedError("NoTestServer")<{
  readonly cause: { readonly message: string }
}> {
  override get message() {
    return `The tests need a PostgreSQL server. ${this.cause.message}`
  }
}
