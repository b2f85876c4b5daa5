import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type { ConnectionOptions } from "node:tls"
import * as PgConnectionString from "pg-connection-string"

/** Where a server is and who asks: what a `postgresql://` url says. */
export interface Endpoint {
  /** A host name, an address, or the directory of a Unix socket. */
  readonly host: string
  readonly port: number
  readonly database: string
  readonly user: string
  readonly password: Redacted.Redacted | undefined
  /** `false` for a plain connection; TLS options otherwise, redacted because they can hold the client's key. */
  readonly ssl: false | Redacted.Redacted<ConnectionOptions>
  /** The `options` parameter: command-line options for the backend, such as `-c search_path=app`. */
  readonly options: string | undefined
}

/** Host and port, or the socket's path: what a message may show. */
export const target = (endpoint: Endpoint): string =>
  endpoint.host.startsWith("/")
    ? `${endpoint.host}/.s.PGSQL.${endpoint.port}`
    : `${endpoint.host}:${endpoint.port}`

/**
 * Reads a url. The left side is the rule that it breaks. `sslmode` means what libpq says (documentation, chapter "SSL
 * Support"), but for `allow` and `prefer`, which fall back to plain text in silence and are refused.
 */
export const parseEndpoint = (url: string): Either.Either<Endpoint, string> => {
  if (!/^postgres(ql)?:\/\//.test(url)) {
    return Either.left("a url that begins with postgresql:// (without a driver name such as +asyncpg)")
  }
  if (misread.test(url)) return Either.left(unreadable)
  const parsed = Either.try(() => PgConnectionString.parse(url, { useLibpqCompat: true }))
  if (Either.isLeft(parsed)) {
    const error = parsed.left
    return Either.left(
      error instanceof Error && "path" in error && typeof error.path === "string"
        ? `a url whose certificate files can be read (${error.path} cannot)`
        : unreadable
    )
  }
  const { database, host, options, password, port, ssl, user } = parsed.right
  const sslmodes = [...url.matchAll(/[?&]sslmode=([^&]*)/g)].map(([, mode = ""]) => mode)
  const isMode = (mode: string) => ["disable", "require", "verify-ca", "verify-full"].includes(mode)
  if (sslmodes.length > 1 || !sslmodes.every(isMode)) {
    return Either.left("a url with sslmode disable, require, verify-ca or verify-full, once")
  }
  if (typeof ssl === "string") return Either.left("a url with sslmode instead of ssl")
  if (!host) return Either.left("a url with a host, or with ?host=/directory/of/the/socket")
  if (!user) return Either.left("a url with a user")
  const portNumber = port ? Number(port) : 5432
  if (!Number.isInteger(portNumber) || portNumber < 1 || portNumber > 65_535) {
    return Either.left("a url with a port from 1 to 65535")
  }
  return Either.right({
    // A url has brackets around an IPv6 address.
    host: host.replace(/^\[(.*)\]$/, "$1"),
    port: portNumber,
    database: pathOf(url) ?? (database || user),
    user,
    password: password ? Redacted.make(password) : undefined,
    ssl:
      ssl === undefined || ssl === false
        ? false
        : Redacted.make(ssl === true ? {} : (ssl as ConnectionOptions)),
    options: typeof options === "string" ? options : undefined
  })
}

/** A url with another database in it. Only for one that {@link parseEndpoint} can read. */
export const withDatabase = (url: string, database: string): Redacted.Redacted =>
  Redacted.make(
    url.replace(
      /^(\w+:\/\/[^/?]*)[^?]*/,
      (_, authority: string) => `${authority}/${encodeURIComponent(database)}`
    )
  )

/** The database's name, of which the parser leaves some characters encoded. */
const pathOf = (url: string): string | undefined => {
  const [, path = ""] = /^\w+:\/\/[^/?]*\/([^?]*)/.exec(url) ?? []
  return path === "" ? undefined : Option.getOrUndefined(Option.liftThrowable(decodeURIComponent)(path))
}

const unreadable = "a valid url; special characters of the password are written as %XX"

/**
 * A `#`, or an `@` after the `/` or `?` that ends the authority: the password holds them as they are, and what follows would
 * be taken for the host or the database, whose names are shown.
 */
const misread = /#|^\w+:\/\/(?:[^?]*\/[^?]*@|[^/?]*\?.*@)/s
