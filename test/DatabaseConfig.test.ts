import { assert, describe, it } from "./support/it.js"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as util from "node:util"
import * as Database from "../src/Database.js"
import * as DatabaseConfig from "../src/DatabaseConfig.js"

const url = "postgresql://grimoire:sesame@db.example.org:5433/grimoire"

const millis = (duration: Duration.Duration) => Duration.toMillis(duration)

const problemsOf = (settings: { readonly [Name in keyof DatabaseConfig.Settings]?: unknown }) =>
  Effect.map(
    Effect.flip(DatabaseConfig.resolve(settings as DatabaseConfig.Settings)),
    ({ problems }) => problems
  )

const settingsOf = (problems: ReadonlyArray<DatabaseConfig.Problem>) => problems.map(({ setting }) => setting)

const endpointOf = (text: string) =>
  Effect.map(DatabaseConfig.resolve({ url: text }), ({ endpoint }) => endpoint)

const fromEnvironment = (variables: Record<string, string>) =>
  Effect.withConfigProvider(
    DatabaseConfig.fromEnvironment(),
    ConfigProvider.fromMap(new Map(Object.entries(variables)))
  )

describe("The settings", () => {
  it.effect("have the documented defaults", () =>
    Effect.gen(function* () {
      const config = yield* DatabaseConfig.resolve({ url })
      assert.deepInclude(config, {
        minConnections: 5,
        maxConnections: 15,
        prepare: true,
        pooler: "none",
        applicationName: "promptgrimoire-db",
        echo: false
      })
      assert.deepStrictEqual(
        {
          acquireTimeout: millis(config.acquireTimeout),
          connectTimeout: millis(config.connectTimeout),
          idleTimeout: millis(config.idleTimeout),
          connectionTTL: millis(config.connectionTTL),
          validateAfterIdle: millis(config.validateAfterIdle),
          statementTimeout: millis(config.statementTimeout),
          lockTimeout: millis(config.lockTimeout),
          idleInTransactionTimeout: millis(config.idleInTransactionTimeout)
        },
        {
          acquireTimeout: 5000,
          connectTimeout: 10_000,
          idleTimeout: 600_000,
          connectionTTL: 3_600_000,
          validateAfterIdle: 1000,
          statementTimeout: 30_000,
          lockTimeout: 5000,
          idleInTransactionTimeout: 60_000
        }
      )
      assert.strictEqual(config.directEndpoint, config.endpoint)
    })
  )

  it.effect("come from the environment, each by its documented name", () =>
    Effect.gen(function* () {
      const config = yield* fromEnvironment({
        DATABASE_URL: url,
        DATABASE_DIRECT_URL: "postgres://grimoire@direct/grimoire",
        DATABASE_MIN_CONNECTIONS: "0",
        DATABASE_MAX_CONNECTIONS: "3",
        DATABASE_ACQUIRE_TIMEOUT: "1 second",
        DATABASE_CONNECT_TIMEOUT: "2 seconds",
        DATABASE_IDLE_TIMEOUT: "3 minutes",
        DATABASE_CONNECTION_TTL: "off",
        DATABASE_VALIDATE_AFTER_IDLE: "0",
        DATABASE_STATEMENT_TIMEOUT: "40 seconds",
        DATABASE_LOCK_TIMEOUT: "500 millis",
        DATABASE_IDLE_IN_TRANSACTION_TIMEOUT: "off",
        DATABASE_PREPARE: "false",
        DATABASE_POOLER: "transaction",
        DATABASE_APPLICATION_NAME: "from the environment",
        DATABASE_ECHO: "1"
      })
      assert.deepInclude(config, {
        minConnections: 0,
        maxConnections: 3,
        prepare: false,
        pooler: "transaction",
        applicationName: "from the environment",
        echo: true
      })
      assert.deepStrictEqual(
        [
          config.acquireTimeout,
          config.connectTimeout,
          config.idleTimeout,
          config.connectionTTL,
          config.validateAfterIdle,
          config.statementTimeout,
          config.lockTimeout,
          config.idleInTransactionTimeout
        ].map(millis),
        [1000, 2000, 180_000, Infinity, 0, 40_000, 500, Infinity]
      )
      assert.strictEqual(config.directEndpoint.host, "direct")
    })
  )

  it.effect("that are empty in the environment are left out", () =>
    Effect.gen(function* () {
      const config = yield* fromEnvironment({
        DATABASE_URL: url,
        DATABASE_MAX_CONNECTIONS: "",
        DATABASE_ECHO: ""
      })
      assert.deepInclude(config, { maxConnections: 15, echo: false })
    })
  )

  it.effect("report everything that is wrong in one error, at the build of the Layer", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        Effect.provide(
          Effect.asVoid(Database.Database),
          Database.layer({
            url: "mysql://root:sesame@localhost/grimoire",
            directUrl: "postgresql://root:sesame@localhost/grimoire?sslmode=prefer",
            minConnections: 20,
            maxConnections: 10,
            acquireTimeout: "0 seconds",
            connectTimeout: "soon" as never,
            idleTimeout: "2 hours",
            validateAfterIdle: Duration.days(100),
            lockTimeout: "31 seconds",
            pooler: "session" as never,
            applicationName: "naïve",
            echo: "yes" as never
          })
        )
      )
      assert.instanceOf(error, DatabaseConfig.InvalidSettings)
      if (error._tag !== "InvalidSettings") return
      assert.sameMembers(settingsOf(error.problems), [
        "url",
        "directUrl",
        "minConnections",
        "acquireTimeout",
        "connectTimeout",
        "idleTimeout",
        "validateAfterIdle",
        "lockTimeout",
        "pooler",
        "applicationName",
        "echo"
      ])
      assert.include(
        error.message,
        "minConnections (DATABASE_MIN_CONNECTIONS) is 20: it must be at most maxConnections, which is 10"
      )
      assert.include(
        error.message,
        "lockTimeout (DATABASE_LOCK_TIMEOUT) is 31s: it must be at most statementTimeout"
      )
      const printed = [error.message, JSON.stringify(error), util.inspect(error, { depth: 9 }), String(error)]
      assert.notInclude(printed.join("\n"), "sesame")
    })
  )

  it.effect("give way with their defaults to what was given, and to nothing that was not", () =>
    Effect.gen(function* () {
      const url = "postgresql://user@host/name"
      const few = yield* DatabaseConfig.resolve({ url, maxConnections: 3 })
      assert.strictEqual(few.minConnections, 3)
      const quick = yield* DatabaseConfig.resolve({ url, statementTimeout: "3 seconds" })
      assert.deepStrictEqual(quick.lockTimeout, Duration.seconds(3))
      const young = yield* DatabaseConfig.resolve({ url, connectionTTL: "5 minutes" })
      assert.deepStrictEqual(young.idleTimeout, Duration.minutes(5))
      const wrong = yield* Effect.flip(DatabaseConfig.resolve({ url, maxConnections: 3, minConnections: 4 }))
      assert.deepStrictEqual(settingsOf(wrong.problems), ["minConnections"])
    })
  )

  it.effect("take the environment's direct way to the environment's database only", () =>
    Effect.gen(function* () {
      const environment = {
        DATABASE_URL: "postgresql://user@pooler/theirs",
        DATABASE_DIRECT_URL: "postgresql://user@server/theirs"
      }
      const theirs = yield* fromEnvironment(environment)
      assert.strictEqual(theirs.directEndpoint.host, "server")
      const own = yield* DatabaseConfig.fromEnvironment({ url: "postgresql://user@mine/own" }).pipe(
        Effect.withConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(environment))))
      )
      assert.deepStrictEqual([own.directEndpoint.host, own.directEndpoint.database], ["mine", "own"])
    })
  )

  it.effect("read a url's database as it is written, and take no two words for what is encrypted", () =>
    Effect.gen(function* () {
      const read = (url: string) => DatabaseConfig.resolve({ url })
      for (const name of ["a@b", "a/b", "a?b#c", "100%", "a+b c", "ü"]) {
        const { endpoint } = yield* read(`postgresql://user@host/${encodeURIComponent(name)}?sslmode=disable`)
        assert.strictEqual(endpoint.database, name)
      }
      for (const query of [
        "ssl=false",
        "ssl=no-verify",
        "sslmode=verify-full&sslmode=require",
        "sslmode=prefer"
      ]) {
        const error = yield* Effect.flip(read(`postgresql://user@host/name?${query}`))
        assert.include(error.message, "sslmode", query)
      }
    })
  )

  it.effect("say that the url is missing, from code and from the environment", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(fromEnvironment({}))
      assert.deepStrictEqual(settingsOf(error.problems), ["url"])
      assert.match(error.message, /url \(DATABASE_URL\) is not set/)
      assert.deepStrictEqual(settingsOf(yield* problemsOf({})), ["url"])
    })
  )

  it.effect("take what the environment cannot hold from code, which stands before the environment", () =>
    Effect.gen(function* () {
      const errorPolicy = () => undefined
      const config = yield* Effect.withConfigProvider(
        DatabaseConfig.fromEnvironment({ errorPolicy, maxConnections: 7, echo: undefined }),
        ConfigProvider.fromMap(
          new Map([
            ["DATABASE_URL", url],
            ["DATABASE_MAX_CONNECTIONS", "9"],
            ["DATABASE_ECHO", "true"]
          ])
        )
      )
      assert.strictEqual(config.errorPolicy, errorPolicy)
      assert.strictEqual(config.maxConnections, 7)
      assert.isTrue(config.echo)
      const problems = yield* problemsOf({ url, errorPolicy: "retry" })
      assert.deepStrictEqual(problems, [{ setting: "errorPolicy", value: '"retry"', rule: "a function" }])
    })
  )

  it.effect("refuse values of any type with a problem, and never with a defect", () =>
    Effect.gen(function* () {
      for (const wrong of [Number.NaN, -1, 1.5, 10_001, "12x", "-1", 5n, null, [], {}, true, Symbol("x")]) {
        if (wrong === null) continue
        const problems = yield* problemsOf({ url, maxConnections: wrong })
        assert.include(settingsOf(problems), "maxConnections")
      }
      for (const wrong of [
        "30",
        "-5 seconds",
        "30 parsecs",
        "25 days",
        -1,
        Number.NaN,
        {},
        Symbol("x"),
        "Infinity x"
      ]) {
        assert.include(settingsOf(yield* problemsOf({ url, statementTimeout: wrong })), "statementTimeout")
      }
      for (const wrong of ["0", "0 seconds", "off", Duration.infinity]) {
        assert.include(settingsOf(yield* problemsOf({ url, acquireTimeout: wrong })), "acquireTimeout")
      }
    })
  )

  it.effect("take durations as text, numbers of milliseconds and Durations", () =>
    Effect.gen(function* () {
      for (const same of ["30 seconds", "30000 millis", 30_000, Duration.seconds(30), "0.5 minutes"]) {
        const config = yield* DatabaseConfig.resolve({
          url,
          statementTimeout: same as Duration.DurationInput
        })
        assert.strictEqual(millis(config.statementTimeout), 30_000)
      }
      const off = yield* DatabaseConfig.resolve({ url, statementTimeout: "off", lockTimeout: "1 hour" })
      assert.strictEqual(millis(off.statementTimeout), Infinity)
      assert.deepStrictEqual(
        settingsOf(yield* problemsOf({ url, connectionTTL: "1 minute", idleTimeout: "2 minutes" })),
        ["idleTimeout"]
      )
    })
  )
})

describe("The url", () => {
  it.effect("says host, port, database, user and password, with percent-encoding", () =>
    Effect.gen(function* () {
      const endpoint = yield* endpointOf(
        "postgresql://us%40er:p%40ss%2Fw%25rd%3A%3F%23@db.example.org:5433/my%20db"
      )
      assert.deepInclude(endpoint, {
        host: "db.example.org",
        port: 5433,
        database: "my db",
        user: "us@er",
        ssl: false
      })
      assert.strictEqual(endpoint.password && Redacted.value(endpoint.password), "p@ss/w%rd:?#")
      assert.notInclude(
        util.inspect(endpoint, { depth: 9, showHidden: true }) + JSON.stringify(endpoint),
        "p@ss"
      )
    })
  )

  it.effect("has defaults: port 5432, the database of the user's name, no password", () =>
    Effect.gen(function* () {
      const endpoint = yield* endpointOf("postgres://grimoire@localhost")
      assert.deepInclude(endpoint, { port: 5432, database: "grimoire", password: undefined })
    })
  )

  it.effect("can name a socket directory, an IPv6 address and options", () =>
    Effect.gen(function* () {
      const socket = yield* endpointOf("postgresql://grimoire@/grimoire?host=/var/run/postgresql&port=5433")
      assert.deepInclude(socket, { host: "/var/run/postgresql", port: 5433, database: "grimoire" })
      const six = yield* endpointOf("postgresql://grimoire@[::1]:5433/grimoire")
      assert.deepInclude(six, { host: "::1", port: 5433 })
      const options = yield* endpointOf("postgresql://u@h/d?options=-c%20search_path%3Dapp")
      assert.strictEqual(options.options, "-c search_path=app")
    })
  )

  it.effect("has an sslmode that means what libpq says", () =>
    Effect.gen(function* () {
      const directory = fs.mkdtempSync(path.join(os.tmpdir(), "config-"))
      const root = path.join(directory, "root.crt")
      fs.writeFileSync(root, "a certificate")
      const ssl = (query: string) =>
        Effect.map(endpointOf(`postgresql://u@h/d?${query}`), (endpoint) =>
          endpoint.ssl === false ? false : Redacted.value(endpoint.ssl)
        )
      assert.strictEqual(yield* ssl("sslmode=disable"), false)
      assert.deepInclude(yield* ssl("sslmode=require"), { rejectUnauthorized: false })
      const full = yield* ssl("sslmode=verify-full")
      assert.notStrictEqual(full, false)
      assert.notDeepInclude(full, { rejectUnauthorized: false })
      const ca = yield* ssl(`sslmode=verify-ca&sslrootcert=${root}`)
      assert.include((ca as { readonly ca: string }).ca, "a certificate")
      fs.rmSync(directory, { recursive: true })
    })
  )

  it.effect("is refused with a reason, and without its password", () =>
    Effect.gen(function* () {
      const refused: ReadonlyArray<readonly [string, RegExp]> = [
        ["postgresql+asyncpg://u:sesame@h/d", /\+asyncpg/],
        ["mysql://u:sesame@h/d", /postgresql:\/\//],
        ["", /postgresql:\/\//],
        ["postgresql://u:ses#ame@h/d", /%XX/],
        ["postgresql://u:sesame@h:0/d", /port/],
        ["postgresql://u:sesame@h:99999/d", /./],
        ["postgresql://:sesame@h/d", /user/],
        ["postgresql://u:sesame@/d", /host/],
        ["postgresql://u:sesame@h/d?sslmode=prefer", /sslmode/],
        ["postgresql://u:sesame@h/d?sslmode=allow", /sslmode/],
        ["postgresql://u:sesame@h/d?sslmode=verify-full&sslrootcert=/no/such.crt", /\/no\/such\.crt/]
      ]
      for (const [text, rule] of refused) {
        for (const given of [text, Redacted.make(text)]) {
          const error = yield* Effect.flip(DatabaseConfig.resolve({ url: given }))
          assert.deepStrictEqual(settingsOf(error.problems), ["url"], text)
          assert.match(error.problems[0]?.rule ?? "", rule)
          assert.notMatch(error.message + util.inspect(error, { depth: 9 }), /ses#?%?ame/)
        }
      }
    })
  )

  const rulesOf = (text: string) =>
    Effect.map(Effect.flip(DatabaseConfig.resolve({ url: text })), (error) => {
      assert.notInclude(error.message, "sesame")
      return error.problems.map(({ rule }) => rule).join("\n")
    })
  const base = "postgresql://u:sesame@h:5432/d"

  it.effect("is refused for what was seen in it, and for nothing that was not", () =>
    Effect.gen(function* () {
      const refused: ReadonlyArray<readonly [string, RegExp]> = [
        [`${base}\n`, /line break around it.*trim/],
        [`${base}\r\n`, /line break around it.*trim/],
        ["postgresql://u:sesame\n@h/d", /line breaks: there is one inside it/],
        [` ${base}`, /white space/],
        ["postgresql://u:sesame@h:abc/d", /a port that is a number/],
        ["postgresql://u:sesame@::1/d", /an IPv6 address stands in brackets/],
        ["postgresql://u:sesame@h/d?port=abc", /a port that is a number/],
        ["postgresql://u:sesame@h1,h2:5432/d", /one host/],
        ["postgresql://u:sesame@h1:1,h2:2/d", /one host/],
        ["postgresql://u:sesame@/d?host=h1,h2", /one host/],
        [`${base}?sslmode=verify-ca`, /sslrootcert/],
        [`${base}?sslmode=verify-full&sslrootcert=system`, /without sslrootcert/],
        ["postgresql://u:sesame%E0%A4@h/d", /%25/]
      ]
      for (const [text, rule] of refused) {
        const found = yield* rulesOf(text)
        assert.match(found, rule)
        assert.notMatch(found, /password/)
      }
    })
  )

  it.effect("has no parameter that is left out in silence", () =>
    Effect.gen(function* () {
      const refused: ReadonlyArray<readonly [string, RegExp]> = [
        ["channel_binding=require", /sslmode.*where channel_binding is require/],
        ["channel_binding=always", /channel_binding disable, prefer or require/],
        ["target_session_attrs=standby", /without target_session_attrs: .*one/],
        ["load_balance_hosts=random", /without load_balance_hosts/],
        ["hostaddr=127.0.0.1", /without hostaddr/],
        ["gssencmode=require", /without gssencmode/],
        ["sslnegotiation=direct", /without sslnegotiation/],
        ["requirepeer=postgres", /without requirepeer/],
        ["service=app", /without service/],
        ["schema=app", /without schema: write options=-c%20search_path%3D/],
        ["connection_limit=5", /maxConnections/],
        ["pool_timeout=5", /acquireTimeout/],
        ["pgbouncer=true", /pooler/],
        ["uselibpqcompat=false", /without uselibpqcompat/],
        ["sslmod=require", /the nearest is sslmode/],
        ["Application_Name=x", /the nearest is application_name/],
        ["work_mem=1", /options=-c%20NAME/],
        ["connect_timeout=0", /whole seconds/],
        ["statement_timeout=soon", /milliseconds/],
        ["options=-c%20lock_timeout%3Dsoon", /lock_timeout in milliseconds/],
        ["application_name=a&application_name=b", /application_name once/]
      ]
      for (const [query, rule] of refused) assert.match(yield* rulesOf(`${base}?${query}`), rule, query)
      assert.strictEqual((yield* rulesOf(`${base}?schema=a&connection_limit=1&x=y`)).split("\n").length, 3)
    })
  )

  it.effect("has settings that stand before a default, and behind what the program sets", () =>
    Effect.gen(function* () {
      const query =
        "?application_name=billing&connect_timeout=3&options=-c%20statement_timeout%3D1000%20--lock-timeout%3D1s%20-csearch_path%3Da%5C%20b"
      const config = yield* DatabaseConfig.resolve({ url: base + query })
      assert.strictEqual(config.applicationName, "billing")
      assert.deepStrictEqual(
        [config.connectTimeout, config.statementTimeout, config.lockTimeout].map(millis),
        [3000, 1000, 1000]
      )
      assert.strictEqual(config.endpoint.options, "-csearch_path=a\\ b")
      const own = yield* DatabaseConfig.resolve({
        url: `${base}?statement_timeout=0&application_name=billing`,
        statementTimeout: "9 seconds",
        applicationName: "own"
      })
      assert.deepStrictEqual([millis(own.statementTimeout), own.applicationName], [9000, "own"])
      const none = yield* DatabaseConfig.resolve({ url: `${base}?statement_timeout=0` })
      assert.strictEqual(millis(none.statementTimeout), Infinity)
      const short = yield* DatabaseConfig.resolve({ url: `${base}?statement_timeout=1s` })
      assert.strictEqual(millis(short.lockTimeout), 1000)
    })
  )

  it.effect("of the direct way sets nothing that the other does not", () =>
    Effect.gen(function* () {
      const url = `${base}?application_name=a`
      const same = yield* DatabaseConfig.resolve({ url, directUrl: url })
      assert.strictEqual(same.applicationName, "a")
      const directUrl = `${base}?application_name=b`
      const problems = yield* problemsOf({ url, directUrl })
      assert.deepStrictEqual(settingsOf(problems), ["directUrl"])
      assert.include(problems[0]?.rule ?? "", "applicationName")
      yield* DatabaseConfig.resolve({ url, directUrl, applicationName: "own" })
    })
  )

  it.effect("means by sslmode what libpq says, also where it says so itself", () =>
    Effect.gen(function* () {
      const endpoint = yield* endpointOf(
        `${base}?uselibpqcompat=true&sslmode=require&channel_binding=require&ssl_min_protocol_version=TLSv1.3`
      )
      assert.strictEqual(endpoint.channelBinding, "require")
      assert.deepStrictEqual(endpoint.ssl && { ...Redacted.value(endpoint.ssl) }, {
        rejectUnauthorized: false,
        minVersion: "TLSv1.3"
      })
    })
  )
})
