import { millisPerUnit } from "./statementLimit.js"
import * as Duration from "effect/Duration"

/** What a url says beside the way to the server; a setting of the program's own overrides it. */
export interface UrlSettings {
  readonly applicationName?: string
  readonly connectTimeout?: Duration.Duration
  readonly statementTimeout?: Duration.Duration
  readonly lockTimeout?: Duration.Duration
  readonly idleInTransactionTimeout?: Duration.Duration
}

/**
 * The parameters of a url, those of libpq among them (PostgreSQL 18, chapter "Parameter Key
 * Words"), or the rules that they break.
 */
export interface UrlParameters {
  readonly rules: ReadonlyArray<string>
  /** Those that say where the server is, and how to reach it. */
  readonly connection: URLSearchParams
  readonly database: string | undefined
  readonly channelBinding: ChannelBinding
  readonly minVersion: string | undefined
  readonly maxVersion: string | undefined
  /** Command-line options for the backend, without what became a setting. */
  readonly options: string | undefined
  readonly settings: UrlSettings
}

/** libpq's `channel_binding`: whether SCRAM is bound to the TLS connection that it runs in. */
export type ChannelBinding = "disable" | "prefer" | "require"

/**
 * Reads what follows the `?` of a url. No parameter is left out in silence: it is honoured, or
 * refused by its name.
 */
export const read = (query: string): UrlParameters => {
  const rules: Array<string> = []
  const connection = new URLSearchParams()
  const known = new Map<string, string>()
  for (const [name, value] of new URLSearchParams(query)) {
    const values = accepted[name]
    const instead = refused[name]
    if (known.has(name)) rules.push(`a url with ${shown(name)} once`)
    else if (instead !== undefined) rules.push(`a url without ${name}: ${instead}`)
    else if (values === undefined) rules.push(unknown(name))
    else if (values !== true && !values.includes(value)) rules.push(oneOf(name, values))
    else known.set(name, value)
    if (forParser.has(name)) connection.append(name, value)
  }
  const settings: { -readonly [Name in keyof UrlSettings]?: UrlSettings[Name] } = {}
  const limit = (name: string, value: string): boolean => {
    const setting = limits[name]
    if (setting === undefined) return false
    const duration = serverDuration(value)
    if (duration === undefined) {
      rules.push(`a url with ${name} in milliseconds, or with one of the units us, ms, s, min, h and d`)
    } else settings[setting] = duration
    return true
  }
  const fallback = known.get("fallback_application_name")
  if (fallback !== undefined && fallback !== "") settings.applicationName = fallback
  const rest: Array<string> = []
  for (const { name, text, value } of optionsOf(known.get("options") ?? "")) {
    if (name === "application_name") settings.applicationName = value
    else if (!limit(name, value)) rest.push(text)
  }
  for (const name of Object.keys(limits)) {
    const value = known.get(name)
    if (value !== undefined) limit(name, value)
  }
  const applicationName = known.get("application_name")
  if (applicationName !== undefined && applicationName !== "") settings.applicationName = applicationName
  const seconds = known.get("connect_timeout")
  if (seconds !== undefined) {
    if (/^[1-9]\d{0,6}$/.test(seconds)) settings.connectTimeout = Duration.seconds(Number(seconds))
    else rules.push("a url with connect_timeout in whole seconds, at least 1")
  }
  return {
    rules,
    connection,
    database: known.get("dbname"),
    channelBinding: (known.get("channel_binding") as ChannelBinding | undefined) ?? "disable",
    minVersion: known.get("ssl_min_protocol_version"),
    maxVersion: known.get("ssl_max_protocol_version"),
    options: rest.length === 0 ? undefined : rest.join(" "),
    settings
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** What the parser of `pg` reads. */
const forParser = new Set([
  "host",
  "port",
  "user",
  "password",
  "ssl",
  "sslmode",
  "sslrootcert",
  "sslcert",
  "sslkey"
])

const protocols = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]

/**
 * The parameters that are honoured, and the values of those that have no other: what this library
 * does anyway among them.
 */
const accepted: Readonly<Record<string, true | ReadonlyArray<string>>> = {
  host: true,
  port: true,
  dbname: true,
  user: true,
  password: true,
  options: true,
  application_name: true,
  fallback_application_name: true,
  connect_timeout: true,
  sslmode: ["disable", "require", "verify-ca", "verify-full"],
  sslrootcert: true,
  sslcert: true,
  sslkey: true,
  ssl_min_protocol_version: protocols,
  ssl_max_protocol_version: protocols,
  channel_binding: ["disable", "prefer", "require"],
  statement_timeout: true,
  lock_timeout: true,
  idle_in_transaction_session_timeout: true,
  ssl: ["true", "1"],
  uselibpqcompat: ["true"],
  client_encoding: ["UTF8", "utf8", "UTF-8", "utf-8", "auto"],
  target_session_attrs: ["any"],
  load_balance_hosts: ["disable"],
  gssencmode: ["disable", "prefer"],
  sslnegotiation: ["postgres"],
  sslsni: ["1"],
  sslcompression: ["0"],
  keepalives: ["1"],
  replication: ["false", "off", "no", "0"]
}

const oneHost = "one server is connected to; name that one"
const gss = "GSSAPI is not supported"
const keepalive = "TCP keepalives are on, and begin after 10 seconds"
const notSupported = "it is not supported"
const searchPath = "write options=-c%20search_path%3DNAME"

/** The other parameters of libpq, and words of other clients: what to do instead. */
const refused: Readonly<Record<string, string>> = {
  hostaddr: "write the address as the host",
  passfile: "write the password into the url, or set PGPASSWORD",
  require_auth: notSupported,
  sslpassword: "give a key without a password",
  sslcertmode: notSupported,
  sslcrl: notSupported,
  sslcrldir: notSupported,
  sslkeylogfile: notSupported,
  requiressl: "write sslmode=require",
  requirepeer: notSupported,
  krbsrvname: gss,
  gsslib: gss,
  gssdelegation: gss,
  min_protocol_version: notSupported,
  max_protocol_version: notSupported,
  scram_client_key: "write the password",
  scram_server_key: "write the password",
  service: "service files are not read; write what it stands for",
  servicefile: "service files are not read; write what the service stands for",
  keepalives_idle: keepalive,
  keepalives_interval: keepalive,
  keepalives_count: keepalive,
  tcp_user_timeout: "set statementTimeout and validateAfterIdle, which find a dead connection",
  oauth_issuer: notSupported,
  oauth_client_id: notSupported,
  oauth_client_secret: notSupported,
  oauth_scope: notSupported,
  schema: searchPath,
  search_path: searchPath,
  currentSchema: searchPath,
  connection_limit: "set maxConnections (DATABASE_MAX_CONNECTIONS)",
  pool_max_conns: "set maxConnections (DATABASE_MAX_CONNECTIONS)",
  pool_size: "set maxConnections (DATABASE_MAX_CONNECTIONS)",
  pool_timeout: "set acquireTimeout (DATABASE_ACQUIRE_TIMEOUT)",
  socket_timeout: "set statementTimeout (DATABASE_STATEMENT_TIMEOUT)",
  query_timeout: "set statementTimeout (DATABASE_STATEMENT_TIMEOUT)",
  max_idle_connection_lifetime: "set idleTimeout (DATABASE_IDLE_TIMEOUT)",
  max_connection_lifetime: "set connectionTTL (DATABASE_CONNECTION_TTL)",
  pgbouncer: 'set pooler to "transaction" (DATABASE_POOLER=transaction)',
  workaround: 'set pooler to "transaction" (DATABASE_POOLER=transaction)',
  statement_cache_size: "set prepare (DATABASE_PREPARE)",
  prepareThreshold: "set prepare (DATABASE_PREPARE)",
  sslaccept: "write sslmode=verify-full, or sslmode=require where nothing is to be verified",
  sslidentity: "write sslcert and sslkey",
  encoding: "the encoding is UTF8"
}

const oneOf = (name: string, values: ReadonlyArray<string>): string => {
  switch (name) {
    case "sslmode":
      return "a url with sslmode disable, require, verify-ca or verify-full, once"
    case "ssl":
      return "a url with sslmode instead of ssl"
    case "uselibpqcompat":
      return "a url without uselibpqcompat: sslmode means what libpq says"
    case "target_session_attrs":
    case "load_balance_hosts":
      return `a url without ${name}: ${oneHost}`
    case "gssencmode":
      return `a url without gssencmode: ${gss}`
    case "keepalives":
      return `a url without keepalives: ${keepalive}`
    case "client_encoding":
      return "a url without client_encoding: it is UTF8"
    case "replication":
    case "sslnegotiation":
    case "sslsni":
    case "sslcompression":
      return `a url without ${name}: ${notSupported}`
    default:
      return `a url with ${name} ${values.slice(0, -1).join(", ")} or ${values.at(-1)}`
  }
}

/** Something that is written where names stand can be a part of a password. */
const shown = (name: string): string =>
  /^\w{1,64}$/.test(name) && name in accepted ? name : "each parameter"

const unknown = (name: string): string => {
  if (!/^[A-Za-z_][\w.-]{0,62}$/.test(name)) return "a url whose parameters have names"
  const [nearest] = [...Object.keys(accepted), ...Object.keys(refused)]
    .map((other) => ({ other, distance: distance(name.toLowerCase(), other.toLowerCase()) }))
    .filter((found) => found.distance <= 2 && found.distance < name.length / 2)
    .toSorted((left, right) => left.distance - right.distance)
  return nearest === undefined
    ? `a url without ${name}, which is no parameter: a setting of the server is written as options=-c%20NAME%3DVALUE`
    : `a url without ${name}, which is no parameter: the nearest is ${nearest.other}`
}

/** How many letters must be added, left out or changed (Levenshtein). */
const distance = (from: string, to: string): number => {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (let i = 1; i <= from.length; i++) {
    const next = [i]
    for (let j = 1; j <= to.length; j++) {
      const same = from[i - 1] === to[j - 1] ? 0 : 1
      next.push(Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + same))
    }
    row = next
  }
  return row.at(-1) ?? 0
}

const limits: Readonly<Record<string, "statementTimeout" | "lockTimeout" | "idleInTransactionTimeout">> = {
  statement_timeout: "statementTimeout",
  lock_timeout: "lockTimeout",
  idle_in_transaction_session_timeout: "idleInTransactionTimeout"
}

/** A limit as PostgreSQL reads it; 0 is none (chapter "Parameter Names and Values"). */
const serverDuration = (value: string): Duration.Duration | undefined => {
  const [, number = "", unit = "ms"] = /^\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?\s*$/.exec(value) ?? []
  if (number === "") return undefined
  const millis = Math.round(Number(number) * (millisPerUnit[unit] ?? 1))
  return millis === 0 ? Duration.infinity : Duration.millis(millis)
}

interface ServerOption {
  /** As it was given, `-c` included. */
  readonly text: string
  readonly name: string
  readonly value: string
}

/**
 * The backend's options: white space divides them, unless a backslash stands before it (chapter
 * "postgres").
 */
const optionsOf = (options: string): ReadonlyArray<ServerOption> => {
  const words = options.match(/(?:\\.|[^\s\\])+/gs) ?? []
  const found: Array<ServerOption> = []
  for (let index = 0; index < words.length; index++) {
    const word = words[index] ?? ""
    const divided = word === "-c" ? words[++index] : undefined
    const text = divided === undefined ? word : `${word} ${divided}`
    const setting = (divided ?? word.replace(/^(?:-c|--)/, "")).replaceAll(/\\(.)/gs, "$1")
    const [, name = "", value = ""] = /^([^=]*)=(.*)$/s.exec(setting) ?? []
    found.push({ text, name: name.toLowerCase().replaceAll("-", "_"), value })
  }
  return found
}
