/**
 * The settings of the data layer: names, defaults, environment variables, rules.
 *
 * Settings come from code ({@link resolve}) or from the environment ({@link fromEnvironment}).
 * Every problem of a bad configuration is reported in one {@link InvalidSettings} error, never with
 * a secret in it.
 */
import * as Config from "effect/Config"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Equal from "effect/Equal"
import * as Inspectable from "effect/Inspectable"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type { ErrorPolicy } from "./DatabaseError.js"
import { type Endpoint, parseUrl, type Url } from "./connection/endpoint.js"
import type { UrlSettings } from "./connection/urlParameters.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/**
 * A duration as `Duration` takes it, such as `"30 seconds"` or a `Duration`; `"off"` (or
 * `Duration.infinity`) where the setting may be switched off.
 */
export type DurationSetting = Duration.DurationInput | "off"

/** What a caller may set. Every setting but `url` has a default ({@link defaults}). */
export interface Settings {
  /**
   * Where the database is: `postgresql://user:password@host:5432/database`, or with a socket
   * directory `postgresql://user@/database?host=/var/run/postgresql`. `sslmode` is one of
   * `disable`, `require` (encrypted, not verified), `verify-ca` and `verify-full`; `sslrootcert`,
   * `sslcert` and `sslkey` name files. Every parameter is honoured, or refused by its name.
   */
  readonly url: Redacted.Redacted | string
  /**
   * The same database without a transaction pooler in between: for LISTEN, session advisory locks
   * and migrations. With `pooler: "transaction"` and without this, whatever needs a session fails
   * with `SessionUnavailable`.
   */
  readonly directUrl?: Redacted.Redacted | string | undefined
  /** Connections that are opened at start and kept. */
  readonly minConnections?: number | undefined
  /** The most connections that this Layer ever opens in its pool. */
  readonly maxConnections?: number | undefined
  /** How long a caller waits for a free connection before it fails with `AcquireTimeout`. */
  readonly acquireTimeout?: DurationSetting | undefined
  /** How long opening a connection may take, TLS and authentication included. */
  readonly connectTimeout?: DurationSetting | undefined
  /** A connection above the minimum that was idle for so long is closed. */
  readonly idleTimeout?: DurationSetting | undefined
  /** A connection this old is closed when it is not in use, less a random 0 to 15 percent. */
  readonly connectionTTL?: DurationSetting | undefined
  /**
   * A connection that was idle for so long is asked whether it is alive before it is checked out.
   * Zero asks every time.
   */
  readonly validateAfterIdle?: DurationSetting | undefined
  /** The server's `statement_timeout`. */
  readonly statementTimeout?: DurationSetting | undefined
  /** The server's `lock_timeout`. */
  readonly lockTimeout?: DurationSetting | undefined
  /** The server's `idle_in_transaction_session_timeout`. */
  readonly idleInTransactionTimeout?: DurationSetting | undefined
  /**
   * Whether statements that come again are prepared on the server. Off by default behind a
   * transaction pooler: PgBouncer follows prepared statements since 1.21, with
   * `max_prepared_statements`.
   */
  readonly prepare?: boolean | undefined
  /**
   * What stands between this Layer and the server: `transaction` for PgBouncer's transaction mode
   * and its like.
   */
  readonly pooler?: Pooler | undefined
  /** `application_name`, as `pg_stat_activity` shows it; 63 bytes of printable ASCII at most. */
  readonly applicationName?: string | undefined
  /** Logs each statement's text at DEBUG, without parameters. */
  readonly echo?: boolean | undefined
  /** More callers than this do not wait for a connection: they fail with `Overloaded`. */
  readonly maxWaiting?: number | undefined
  /** A connection that is held for longer is logged once, with the span that took it. */
  readonly leakWarning?: DurationSetting | undefined
  /** A statement that took longer is logged, without its parameters. */
  readonly slowStatement?: DurationSetting | undefined
  /**
   * Whether errors and log records show what the functions of the database RAISE: message, detail
   * and hint. Off for a database whose functions put values of rows into them.
   */
  readonly showRaised?: boolean | undefined
  /**
   * Decisions of the program's own about errors: what is retried, what becomes of the connection.
   * From code only.
   */
  readonly errorPolicy?: ErrorPolicy | undefined
}

/** The settings that the environment can hold. */
export type EnvironmentSetting = Exclude<keyof Settings, "errorPolicy">

/** What stands between the Layer and the server. */
export type Pooler = "none" | "transaction"

/**
 * Settings with every default filled in and every rule checked. A switched-off duration is
 * `Duration.infinity`.
 */
export interface DatabaseConfig {
  readonly endpoint: Endpoint
  readonly directEndpoint: Endpoint
  /** Whether there is a way past the pooler, if there is one. */
  readonly hasSessions: boolean
  readonly minConnections: number
  readonly maxConnections: number
  readonly acquireTimeout: Duration.Duration
  readonly connectTimeout: Duration.Duration
  readonly idleTimeout: Duration.Duration
  readonly connectionTTL: Duration.Duration
  readonly validateAfterIdle: Duration.Duration
  readonly statementTimeout: Duration.Duration
  readonly lockTimeout: Duration.Duration
  readonly idleInTransactionTimeout: Duration.Duration
  readonly prepare: boolean
  readonly pooler: Pooler
  readonly applicationName: string
  readonly echo: boolean
  readonly maxWaiting: number
  readonly leakWarning: Duration.Duration
  readonly slowStatement: Duration.Duration
  readonly showRaised: boolean
  readonly errorPolicy: ErrorPolicy | undefined
}

/** The defaults of every setting but `url`. */
export const defaults = {
  minConnections: 5,
  maxConnections: 15,
  acquireTimeout: "5 seconds",
  connectTimeout: "10 seconds",
  idleTimeout: "10 minutes",
  connectionTTL: "1 hour",
  validateAfterIdle: "1 second",
  statementTimeout: "30 seconds",
  lockTimeout: "5 seconds",
  idleInTransactionTimeout: "60 seconds",
  prepare: true,
  pooler: "none",
  applicationName: "promptgrimoire-db",
  echo: false,
  maxWaiting: 1000,
  leakWarning: "30 seconds",
  slowStatement: "1 second",
  showRaised: true
} as const satisfies Omit<Settings, "url" | "errorPolicy">

/** The environment variable of each setting. */
export const environmentVariables = {
  url: "DATABASE_URL",
  directUrl: "DATABASE_DIRECT_URL",
  minConnections: "DATABASE_MIN_CONNECTIONS",
  maxConnections: "DATABASE_MAX_CONNECTIONS",
  acquireTimeout: "DATABASE_ACQUIRE_TIMEOUT",
  connectTimeout: "DATABASE_CONNECT_TIMEOUT",
  idleTimeout: "DATABASE_IDLE_TIMEOUT",
  connectionTTL: "DATABASE_CONNECTION_TTL",
  validateAfterIdle: "DATABASE_VALIDATE_AFTER_IDLE",
  statementTimeout: "DATABASE_STATEMENT_TIMEOUT",
  lockTimeout: "DATABASE_LOCK_TIMEOUT",
  idleInTransactionTimeout: "DATABASE_IDLE_IN_TRANSACTION_TIMEOUT",
  prepare: "DATABASE_PREPARE",
  pooler: "DATABASE_POOLER",
  applicationName: "DATABASE_APPLICATION_NAME",
  echo: "DATABASE_ECHO",
  maxWaiting: "DATABASE_MAX_WAITING",
  leakWarning: "DATABASE_LEAK_WARNING",
  slowStatement: "DATABASE_SLOW_STATEMENT",
  showRaised: "DATABASE_SHOW_RAISED"
} as const satisfies Record<EnvironmentSetting, string>

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/** One thing that is wrong with the settings. */
export interface Problem {
  readonly setting: keyof Settings
  /** The value as given; `<redacted>` for a url. */
  readonly value: string
  /** The rule that it breaks. */
  readonly rule: string
}

/** The settings are wrong; `problems` lists everything that is. */
export class InvalidSettings extends Data.TaggedError("InvalidSettings")<{
  readonly problems: ReadonlyArray<Problem>
}> {
  override get message(): string {
    const lines = this.problems.map(
      ({ rule, setting, value }) =>
        `  ${setting}${setting === "errorPolicy" ? "" : ` (${environmentVariables[setting]})`} is ${value}: it must be ${rule}`
    )
    return `The database settings are wrong:\n${lines.join("\n")}`
  }
}

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** Fills in the defaults and checks every rule. */
export const resolve = (settings: Settings): Effect.Effect<DatabaseConfig, InvalidSettings> =>
  resolveRaw(settings)

/**
 * Reads every setting from the environment (through the `ConfigProvider`) and checks every rule.
 * What `settings` has stands before what the environment says.
 */
export const fromEnvironment = (
  settings: Partial<Settings> = {}
): Effect.Effect<DatabaseConfig, InvalidSettings> =>
  Effect.gen(function* () {
    const raw: { -readonly [Name in keyof Settings]?: unknown } = {}
    for (const [name, variable] of Object.entries(environmentVariables)) {
      const value = yield* Effect.option(Config.option(Config.nonEmptyString(variable)))
      Option.map(Option.flatten(value), (text) => {
        raw[name as EnvironmentSetting] = text
      })
    }
    // The url of the environment's direct way is that of the environment's database, not of another
    // one.
    if (settings.url !== undefined) delete raw.directUrl
    for (const [name, value] of Object.entries(settings)) {
      if (value !== undefined) raw[name as keyof Settings] = value
    }
    return yield* resolveRaw(raw)
  })

// -----------------------------------------------------------------------------
// rules
// -----------------------------------------------------------------------------

const durationRule = (off: boolean) =>
  `a duration such as "30 seconds" or "500 millis"${off ? ', or "off"' : ""}`

type Raw = { readonly [Name in keyof Settings]?: unknown }

type Reject = (setting: keyof Settings, value: unknown, rule: string) => void

/**
 * How the settings of each type are read. What is wrong is rejected, and something is read all the
 * same.
 */
const readers = (raw: Raw, reject: Reject) => {
  const given = (name: keyof typeof defaults): unknown => raw[name] ?? defaults[name]

  const integer = (name: "minConnections" | "maxConnections" | "maxWaiting", least: number): number => {
    const value = given(name)
    const number = typeof value === "string" && /^\d+$/.test(value) ? Number(value) : value
    if (typeof number === "number" && Number.isInteger(number) && number >= least && number <= 10_000) {
      return number
    }
    reject(name, value, `a whole number from ${least} to 10000`)
    return Number.NaN
  }
  const duration = (
    name: Extract<
      keyof typeof defaults,
      `${string}${"Timeout" | "TTL" | "Idle"}` | "leakWarning" | "slowStatement"
    >,
    rule: { readonly zero: boolean; readonly off: boolean }
  ): Duration.Duration => {
    const value = given(name)
    const decoded = value === "off" ? Duration.infinity : decodeDuration(value)
    if (decoded === undefined || (!Duration.isFinite(decoded) && !rule.off)) {
      reject(name, value, durationRule(rule.off))
      return refused
    }
    const millis = Duration.toMillis(decoded)
    if (millis < 1 && !(rule.zero && millis === 0)) {
      reject(name, value, "at least 1 millisecond")
      return refused
    }
    if (Duration.isFinite(decoded) && millis > maxMillis) reject(name, value, "at most 24 days")
    return decoded
  }
  const boolean = (name: "prepare" | "echo" | "showRaised"): boolean => {
    const value = given(name)
    if (typeof value === "boolean") return value
    if (value === "true" || value === "1") return true
    if (value !== "false" && value !== "0") reject(name, value, "true or false")
    return false
  }

  /** A default that a given setting limits is that limit: only what was said can be wrong. */
  const within = <A>(
    name: keyof typeof defaults,
    value: A,
    limit: A,
    exceeds: (value: A, limit: A) => boolean
  ): A => (raw[name] === undefined && exceeds(value, limit) ? limit : value)
  return { boolean, duration, given, integer, within }
}

const resolveRaw = (own: Raw): Effect.Effect<DatabaseConfig, InvalidSettings> =>
  Effect.suspend(() => {
    const problems: Array<Problem> = []
    const reject = (setting: keyof Settings, value: unknown, rule: string) =>
      void problems.push({ setting, value: show(setting, value), rule })
    const read = (name: "url" | "directUrl"): Url | undefined => {
      const value = own[name]
      const text = Redacted.isRedacted(value) ? Redacted.value(value) : value
      const parsed =
        typeof text === "string"
          ? parseUrl(text)
          : Either.left(["set, for example postgresql://user:password@localhost:5432/database"])
      return Either.getOrElse(parsed, (rules) => {
        for (const rule of rules) reject(name, value, rule)
        return undefined
      })
    }
    const url = read("url")
    const directUrl = own.directUrl === undefined ? url : read("directUrl")
    for (const name of foreignSettings(own, url, directUrl)) {
      reject(
        "directUrl",
        own.directUrl,
        `a url that does not set ${name}: it holds for both, and belongs into url or into the settings`
      )
    }
    // What the url says stands before a default, and behind a setting.
    const raw: Raw = { ...url?.settings, ...withoutUndefined(own) }
    const { boolean, duration, given, integer, within } = readers(raw, reject)

    const maxConnections = integer("maxConnections", 1)
    const minConnections = within(
      "minConnections",
      integer("minConnections", 0),
      maxConnections,
      (least, most) => least > most
    )
    const acquireTimeout = duration("acquireTimeout", { zero: false, off: false })
    const connectTimeout = duration("connectTimeout", { zero: false, off: false })
    const connectionTTL = duration("connectionTTL", { zero: false, off: true })
    const idleTimeout = within(
      "idleTimeout",
      duration("idleTimeout", { zero: false, off: true }),
      connectionTTL,
      Duration.greaterThan
    )
    const validateAfterIdle = duration("validateAfterIdle", { zero: true, off: true })
    const statementTimeout = duration("statementTimeout", { zero: false, off: true })
    const lockTimeout = within(
      "lockTimeout",
      duration("lockTimeout", { zero: false, off: true }),
      statementTimeout,
      Duration.greaterThan
    )
    const idleInTransactionTimeout = duration("idleInTransactionTimeout", { zero: false, off: true })
    const echo = boolean("echo")
    const maxWaiting = integer("maxWaiting", 0)
    const leakWarning = duration("leakWarning", { zero: false, off: true })
    const slowStatement = duration("slowStatement", { zero: true, off: true })
    const showRaised = boolean("showRaised")
    if (raw.errorPolicy !== undefined && typeof raw.errorPolicy !== "function") {
      reject("errorPolicy", raw.errorPolicy, "a function")
    }
    const pooler = given("pooler")
    if (pooler !== "none" && pooler !== "transaction") reject("pooler", pooler, '"none" or "transaction"')
    // A pooler before PgBouncer 1.21 hands the next transaction to a server that knows nothing of
    // what was prepared.
    const prepare = raw.prepare === undefined ? pooler !== "transaction" : boolean("prepare")
    const applicationName = given("applicationName")
    if (typeof applicationName !== "string" || !/^[\x20-\x7e]{1,63}$/.test(applicationName)) {
      reject("applicationName", applicationName, "1 to 63 characters of printable ASCII")
    }

    if (minConnections > maxConnections) {
      reject("minConnections", minConnections, `at most maxConnections, which is ${maxConnections}`)
    }
    if (Duration.isFinite(idleTimeout) && Duration.greaterThan(idleTimeout, connectionTTL)) {
      reject("idleTimeout", idleTimeout, `at most connectionTTL, which is ${Duration.format(connectionTTL)}`)
    }
    if (Duration.isFinite(lockTimeout) && Duration.greaterThan(lockTimeout, statementTimeout)) {
      reject(
        "lockTimeout",
        lockTimeout,
        `at most statementTimeout, which is ${Duration.format(statementTimeout)}`
      )
    }

    return problems.length > 0 || url === undefined || directUrl === undefined
      ? Effect.fail(new InvalidSettings({ problems }))
      : Effect.succeed<DatabaseConfig>({
          endpoint: url.endpoint,
          directEndpoint: directUrl.endpoint,
          hasSessions: pooler !== "transaction" || raw.directUrl !== undefined,
          minConnections,
          maxConnections,
          acquireTimeout,
          connectTimeout,
          idleTimeout,
          connectionTTL,
          validateAfterIdle,
          statementTimeout,
          lockTimeout,
          idleInTransactionTimeout,
          prepare,
          pooler: pooler as Pooler,
          applicationName: applicationName as string,
          echo,
          maxWaiting,
          leakWarning,
          slowStatement,
          showRaised,
          errorPolicy: raw.errorPolicy as ErrorPolicy | undefined
        })
  })

const withoutUndefined = (raw: Raw): Raw =>
  Object.fromEntries(Object.entries(raw).filter(([, value]) => value !== undefined))

/** The settings in the url of the direct way that neither the program nor the other url says. */
const foreignSettings = (
  own: Raw,
  url: Url | undefined,
  directUrl: Url | undefined
): ReadonlyArray<keyof UrlSettings> => {
  if (url === undefined || directUrl === undefined) return []
  const names = Object.keys(directUrl.settings) as ReadonlyArray<keyof UrlSettings>
  return names.filter(
    (name) => own[name] === undefined && !Equal.equals(directUrl.settings[name], url.settings[name])
  )
}

/**
 * The longest time that both Node's timers and PostgreSQL's timeouts (milliseconds in 31 bits) can
 * hold.
 */
const maxMillis = 2 ** 31 - 1

/**
 * Stands for a duration that was refused: rules that compare durations find nothing more to say.
 */
const refused = Duration.infinity

const decodeDuration = (value: unknown): Duration.Duration | undefined =>
  value === "0" ? Duration.zero : Option.getOrUndefined(Duration.decodeUnknown(value))

const show = (setting: keyof Settings, value: unknown): string => {
  if (value === undefined) return "not set"
  if (setting === "url" || setting === "directUrl") return "<redacted>"
  if (Duration.isDuration(value)) return Duration.format(value)
  // What JSON has no form for: symbols, big integers, NaN.
  return typeof value === "symbol" || typeof value === "bigint" || typeof value === "number"
    ? String(value)
    : Inspectable.stringifyCircular(value)
}
