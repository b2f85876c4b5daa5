import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as DatabaseConfig from "../../src/DatabaseConfig.js"
import * as Session from "../../src/connection/session.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { safetyNet } from "./speed.js"

/**
 * The url of the server that the tests run on, with its superuser: the `globalSetup` of vitest sets
 * it.
 */
export const serverUrl = (): string => {
  const url = process.env["TEST_DATABASE_URL"]
  if (url === undefined)
    throw new Error("TEST_DATABASE_URL is not set: run the tests through vitest.config.ts")
  return url
}

/** The same server, another database. */
export const urlOf = (database: string): string => {
  const url = new URL(serverUrl())
  url.pathname = `/${encodeURIComponent(database)}`
  return url.toString()
}

/** A session as superuser, beside the code under test, without any limit. */
export const adminSession = (database?: string): Effect.Effect<Session.Session, never, Scope.Scope> =>
  Effect.gen(function* () {
    const config = yield* DatabaseConfig.resolve({
      url: database === undefined ? serverUrl() : urlOf(database)
    })
    return yield* Session.open({
      endpoint: config.directEndpoint,
      connectTimeout: safetyNet(config.connectTimeout),
      applicationName: "test-admin",
      timeouts: {
        statementTimeout: Duration.infinity,
        lockTimeout: Duration.infinity,
        idleInTransactionTimeout: Duration.infinity
      },
      prepare: false,
      reuseAfterCancel: true,
      echo: false
    })
  }).pipe(Effect.orDie)

/** An empty database of its own, gone with the scope unless KEEP_TEST_DATABASE says otherwise. */
export const emptyDatabase: Effect.Effect<
  { readonly name: string; readonly url: Redacted.Redacted },
  never,
  Scope.Scope
> = Effect.map(Effect.orDie(TestDatabase.make()), (url) => ({
  name: new URL(Redacted.value(url)).pathname.slice(1),
  url
}))

/**
 * The same, with another encoding than the server's databases have; always dropped with the scope.
 */
export const emptyDatabaseOf = (
  encoding: string
): Effect.Effect<{ readonly url: Redacted.Redacted }, never, Scope.Scope> =>
  Effect.gen(function* () {
    const name = `test_${Crypto.randomUUID().replaceAll("-", "")}`
    const run = <Row extends object>(sql: string) =>
      Effect.scoped(Effect.flatMap(adminSession(), (admin) => Effect.orDie(admin.query<Row>(sql))))
    // The provider of the server's own locale may know UTF-8 only; before 15 there is one provider.
    const [server] = yield* run<{ readonly provider: string }>(
      "SELECT CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'LOCALE_PROVIDER libc' ELSE '' END AS provider"
    )
    yield* Effect.acquireRelease(
      run(
        `CREATE DATABASE ${name} TEMPLATE template0 ENCODING '${encoding}' LC_COLLATE 'C' LC_CTYPE 'C' ${server?.provider ?? ""}`
      ),
      () => run(`DROP DATABASE ${name} WITH (FORCE)`)
    )
    return { url: Redacted.make(urlOf(name)) }
  })
