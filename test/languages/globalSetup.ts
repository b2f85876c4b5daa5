import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Cluster from "./Cluster.js"

/**
 * A server that speaks the language of TEST_LANGUAGE, or German: its url is in TEST_DATABASE_URL.
 */
export default (): Promise<() => Promise<void>> =>
  Effect.runPromise(
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      process.env["TEST_DATABASE_URL"] = yield* Cluster.make(
        process.env["TEST_LANGUAGE"] ?? "de_DE.UTF-8"
      ).pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      return () => Effect.runPromise(Scope.close(scope, Exit.void))
    })
  )
