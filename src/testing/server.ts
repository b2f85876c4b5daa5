/** The server that test databases are on. */
import * as Config from "effect/Config"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as DatabaseConfig from "../DatabaseConfig.js"
import * as EmbeddedPostgres from "../EmbeddedPostgres.js"
import { withDatabase } from "../connection/endpoint.js"
import * as Session from "../connection/session.js"

/** The prefix of the names of all test databases. */
export const prefix = "promptgrimoire_test"

/** Databases cannot be kept on a server that ends with the tests. */
export class CannotKeep extends Data.TaggedError("CannotKeep")<{}> {
  override get message() {
    return "KEEP_TEST_DATABASE keeps databases on a server that goes on after the tests, and the embedded one does not: set DATABASE_URL to such a server, or unset KEEP_TEST_DATABASE"
  }
}

/** Whether test databases are kept after their tests. */
export const isKept = Effect.map(
  Effect.option(Config.string("KEEP_TEST_DATABASE")),
  (value) => Option.isSome(value) && !["", "0", "false"].includes(value.value)
)

/**
 * The url of TEST_DATABASE_URL or DATABASE_URL, else of an embedded server that lives as long as
 * the scope.
 */
export const serverUrl = Effect.gen(function* () {
  const given = yield* Config.nonEmptyString("TEST_DATABASE_URL").pipe(
    Config.orElse(() => Config.nonEmptyString("DATABASE_URL")),
    Effect.option
  )
  if (Option.isSome(given)) return given.value
  if (yield* isKept) return yield* new CannotKeep()
  const server = yield* EmbeddedPostgres.make({ settings: { max_connections: "300" } })
  return Redacted.value(server.url)
})

/** The same server behind a transaction pooler, if there is one. */
const poolerUrl = Effect.option(Config.nonEmptyString("TEST_POOLER_URL"))

/** What leads the Layer to a database of the server: through the pooler, if there is one. */
export const reach = ({ name, url }: { readonly name: string; readonly url: Redacted.Redacted }) =>
  Effect.map(
    poolerUrl,
    Option.match({
      onNone: () => ({ url }),
      onSome: (through) => ({
        url: withDatabase(through, name),
        directUrl: url,
        pooler: "transaction" as const
      })
    })
  )

/**
 * A session that creates databases and waits for whoever makes the same template; it lives as long
 * as what it created.
 */
export const adminSession = Effect.fnUntraced(function* (server: string) {
  const config = yield* DatabaseConfig.resolve({
    url: server,
    applicationName: "promptgrimoire-db-test-admin"
  })
  const unlimited = Duration.infinity
  const session = yield* Session.open({
    endpoint: config.endpoint,
    connectTimeout: config.connectTimeout,
    applicationName: config.applicationName,
    timeouts: { statementTimeout: unlimited, lockTimeout: unlimited, idleInTransactionTimeout: unlimited },
    prepare: false,
    reuseAfterCancel: true,
    echo: false
  })
  return { session, endpoint: config.endpoint }
})
