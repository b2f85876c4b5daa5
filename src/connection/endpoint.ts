import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type { ConnectionOptions, SecureVersion } from "node:tls"
import * as PgConnectionString from "pg-connection-string"
import * as UrlParameters from "./urlParameters.js"
import type { ChannelBinding, UrlSettings } from "./urlParameters.js"

/** Where a server is and who asks: what a `postgresql://` url says. */
export interface Endpoint {
  /** A host name, an address, or the directory of a Unix socket. */
  readonly host: string
  readonly port: number
  readonly database: string
  readonly user: string
  readonly password: Redacted.Redacted | undefined
  /**
   * `false` for a plain connection; TLS options otherwise, redacted because they can hold the
   * client's key.
   */
  readonly ssl: false | Redacted.Redacted<ConnectionOptions>
  /** Whether SCRAM is bound to the TLS connection; `require` refuses to log in otherwise. */
  readonly channelBinding: ChannelBinding
  /**
   * The `options` parameter: command-line options for the backend, such as `-c search_path=app`;
   * without those that are settings of ours.
   */
  readonly options: string | undefined
}

/** Host and port, or the socket's path: what a message may show. */
export const target = (endpoint: Endpoint): string =>
  endpoint.host.startsWith("/")
    ? `${endpoint.host}/.s.PGSQL.${endpoint.port}`
    : `${endpoint.host}:${endpoint.port}`

/**
 * What a url says: where the server is, and settings that hold where the program has none of its
 * own.
 */
export interface Url {
  readonly endpoint: Endpoint
  readonly settings: UrlSettings
}

/**
 * Reads a url. The left side has the rules that it breaks. `sslmode` means what libpq says
 * (documentation, chapter "SSL Support"), but for `allow` and `prefer`, which fall back to plain
 * text in silence and are refused.
 */
export const parseUrl = (url: string): Either.Either<Url, ReadonlyArray<string>> => {
  const malformed = malformation(url)
  if (malformed !== undefined) return Either.left([malformed])
  const [, authority = "", path = "", query = ""] = /^\w+:\/\/([^/?]*)([^?]*)\??(.*)$/.exec(url) ?? []
  const { channelBinding, connection, maxVersion, minVersion, rules, settings, ...parameters } =
    UrlParameters.read(query)
  const broken = [...rules, ...addressRules(authority, connection)]
  if (connection.get("sslmode") === "verify-ca" && !connection.get("sslrootcert")) {
    broken.push("a url with sslrootcert, a file, where sslmode is verify-ca")
  }
  if (connection.get("sslrootcert") === "system") {
    broken.push("a url with sslmode=verify-full and without sslrootcert, where the roots are Node's own")
    connection.delete("sslrootcert")
  }
  if (broken.length > 0) return Either.left(broken)
  const given = connection.toString()
  const parsed = Either.try(() =>
    PgConnectionString.parse(url.slice(0, url.length - query.length) + given, { useLibpqCompat: true })
  )
  if (Either.isLeft(parsed)) return Either.left([unreadable(parsed.left)])
  const { database, host, password, port, ssl, user } = parsed.right
  if (!host) broken.push("a url with a host, or with ?host=/directory/of/the/socket")
  if (!user) broken.push("a url with a user")
  if (channelBinding === "require" && !ssl) {
    broken.push("a url with sslmode require, verify-ca or verify-full where channel_binding is require")
  }
  if (!host || !user || broken.length > 0) return Either.left(broken)
  return Either.right({
    endpoint: {
      // A url has brackets around an IPv6 address.
      host: host.replace(/^\[(.*)\]$/, "$1"),
      port: port ? Number(port) : 5432,
      database: pathOf(path) ?? (parameters.database || database || user),
      user,
      password: password ? Redacted.make(password) : undefined,
      ssl:
        ssl === undefined || ssl === false
          ? false
          : Redacted.make({
              ...(ssl === true ? {} : (ssl as ConnectionOptions)),
              ...(minVersion === undefined ? {} : { minVersion: minVersion as SecureVersion }),
              ...(maxVersion === undefined ? {} : { maxVersion: maxVersion as SecureVersion })
            }),
      channelBinding,
      options: parameters.options
    },
    settings
  })
}

/** A url with another database in it. Only for one that {@link parseUrl} can read. */
export const withDatabase = (url: string, database: string): Redacted.Redacted =>
  Redacted.make(
    url.replace(
      /^(\w+:\/\/[^/?]*)[^?]*/,
      (_, authority: string) => `${authority}/${encodeURIComponent(database)}`
    )
  )

/**
 * What is wrong with the text as a whole. What is named was seen: a message must not guess at a
 * password.
 */
const malformation = (url: string): string | undefined => {
  if (/[\r\n]/.test(url)) {
    return /[\r\n]/.test(url.trim())
      ? "a url without line breaks: there is one inside it, such as a secret brings along that is read from a file; trim the secret"
      : "a url without a line break around it, such as a secret brings along that is read from a file; trim the secret"
  }
  if (url !== url.trim()) return "a url without white space around it; trim it"
  if (!/^postgres(ql)?:\/\//.test(url)) {
    return "a url that begins with postgresql:// (without a driver name such as +asyncpg)"
  }
  return misread.test(url)
    ? "a valid url; special characters of user and password are written as %XX (there is a # or an @ where none can be)"
    : undefined
}

/** What is wrong with host and port. */
const addressRules = (authority: string, parameters: URLSearchParams): ReadonlyArray<string> => {
  const address = authority.slice(authority.lastIndexOf("@") + 1)
  const hosts = [address, parameters.get("host") ?? "", parameters.get("port") ?? ""]
  if (hosts.some((host) => host.includes(","))) {
    return [
      "a url with one host and one port: several are not supported; name the primary, or an address that leads to it"
    ]
  }
  const [, ofAddress] = /^(?:\[[^\]]*\]|[^:]*):(.*)$/.exec(address) ?? []
  return [ofAddress, parameters.get("port")].every(isPort)
    ? []
    : ["a url with a port that is a number from 1 to 65535 (an IPv6 address stands in brackets)"]
}

const isPort = (port: string | null | undefined) =>
  !port || (/^\d{1,5}$/.test(port) && Number(port) >= 1 && Number(port) <= 65_535)

/** Why the parser gave up; its own words can hold the url. */
const unreadable = (error: unknown): string => {
  if (error instanceof Error && "path" in error && typeof error.path === "string") {
    return `a url whose certificate files can be read (${error.path} cannot)`
  }
  return error instanceof URIError
    ? "a url whose %XX are UTF-8; a percent sign itself is written as %25"
    : "a url whose host is a name or an address"
}

/** The database's name, of which the parser leaves some characters encoded. */
const pathOf = (path: string): string | undefined =>
  path.length <= 1
    ? undefined
    : Option.getOrUndefined(Option.liftThrowable(decodeURIComponent)(path.slice(1)))

/**
 * A `#`, or an `@` after the `/` or `?` that ends the authority: the password holds them as they
 * are, and what follows would be taken for the host or the database, whose names are shown.
 */
const misread = /#|^\w+:\/\/(?:[^?]*\/[^?]*@|[^/?]*\?.*@)/s
