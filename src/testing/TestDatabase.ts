/**
 * The Layers that tests swap in: a program that needs `Database`, `PgClient` or `SqlClient` runs on a database of its own,
 * cloned from a template that the migrations were applied to once.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import type * as Migrator from "@effect/sql/Migrator"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as Database from "../Database.js"
import * as DatabaseConfig from "../DatabaseConfig.js"
import type { DatabaseError } from "../DatabaseError.js"
import * as EmbeddedPostgres from "../EmbeddedPostgres.js"
import type { Pool } from "../driver/Pool.js"
import * as Session from "../driver/Session.js"
import * as Migration from "../migrator/Migration.js"
import * as MigratorModule from "../Migrator.js"
import * as Failing from "./Failing.js"
import * as Sandbox from "./Sandbox.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

export type { Fault, FaultPoint } from "./Failing.js"

/** How a test database is made. */
export interface Options {
  /** The migrations that the database has been through; none when left out. */
  readonly loader?: Migrator.Loader | undefined
  /** Settings of the Layer besides its url. */
  readonly settings?: Omit<DatabaseConfig.Settings, "url" | "directUrl"> | undefined
}

/**
 * The effects that waited for a commit (`Transaction.afterCommit`) under {@link rollback}: there is no commit, so they are kept
 * instead of being run.
 */
export class AfterCommit extends Context.Tag("promptgrimoire-db/testing/AfterCommit")<
  AfterCommit,
  {
    /** What would have run by now, in that order: of transactions that the program committed. */
    readonly captured: Effect.Effect<ReadonlyArray<Effect.Effect<unknown, unknown>>>
    /** Runs them in order and forgets them; fails with the first one that does. Gives how many there were. */
    readonly run: Effect.Effect<number, unknown>
  }
>() {}

type Failure =
  | DatabaseConfig.InvalidSettings
  | DatabaseError
  | MigratorModule.MigratorError
  | EmbeddedPostgres.EmbeddedPostgresError

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/**
 * A fresh database, dropped with the Layer. It is on the server of `TEST_DATABASE_URL` or `DATABASE_URL`, whose role must be
 * allowed to create databases; without either on an embedded server that is started for it. Provide it once to a suite
 * (`layer(TestDatabase.layer(...))` of `@effect/vitest`). With `TEST_POOLER_URL`, the same server behind a transaction pooler, the Layer goes through that. With `KEEP_TEST_DATABASE=1` it is kept, and the log says how to connect. What killed runs left
 * behind is dropped by the next one.
 */
export const layer = (options: Options = {}): Layer.Layer<Database.Provided, Failure> =>
  Layer.unwrapScoped(
    Effect.map(Effect.zip(make(options), poolerUrl), ([url, pooler]) =>
      Database.layer({
        minConnections: 1,
        applicationName: "promptgrimoire-db-test",
        ...options.settings,
        ...Option.match(pooler, {
          onNone: () => ({ url }),
          onSome: (through) => ({
            url: withDatabase(through, databaseOf(url)),
            directUrl: url,
            pooler: "transaction" as const
          })
        })
      })
    )
  )

/**
 * One test in a transaction that is rolled back: the program of the test runs its own transactions as savepoints in it, with the same log records, typed
 * failures and retries, and leaves nothing behind. Provide it to each test, over a database that the suite shares:
 *
 * @example
 * ```ts
 * layer(TestDatabase.layer({ loader }))("my suite", (it) => {
 *   it.effect("leaves nothing behind", () => program.pipe(Effect.provide(TestDatabase.rollback)))
 * })
 * ```
 *
 * Deferred constraints are checked where the program commits. Effects that wait for a commit are captured there and not run:
 * {@link AfterCommit} tells them, and runs them when a test wants that. What a single transaction cannot do: isolation levels and READ ONLY have no effect, notifications are never delivered, `Database.session` does not see what the
 * test wrote, and two transactions of the program never run at the same time.
 */
export const rollback: Layer.Layer<Database.Provided | AfterCommit, DatabaseError, Database.Database> =
  Layer.flatMap(derived(Sandbox.make), (context) =>
    Layer.effectContext(Effect.sync(() => capturing(context)))
  )

/**
 * The database of a suite, failing at chosen statements, so that a program's handling of errors is tested on a real server: refused by the server, a defect,
 * a delay, or a connection that is cut.
 *
 * @example
 * ```ts
 * program.pipe(
 *   Effect.provide(TestDatabase.failing([{ at: "COMMIT", fault: { _tag: "Cut", when: "after" } }]))
 * )
 * ```
 */
export const failing = (
  points: ReadonlyArray<Failing.FaultPoint>
): Layer.Layer<Database.Provided, never, Database.Database> => derived((pool) => Failing.make(pool, points))

/**
 * The url of a fresh database, for programs that are started from outside. Closing the scope drops it, and does not wait until
 * that is done.
 */
export const make = Effect.fn("TestDatabase.make")(function* (
  options: Options = {}
): Effect.fn.Return<Redacted.Redacted, Failure, Scope.Scope> {
  const server = yield* serverUrl
  const id = Crypto.randomUUID().replaceAll("-", "")
  const name = `${prefix}_${id}`
  // Until the drop is done the lock keeps others from it, and what a killed process does not get to is a leftover like any other.
  const life = yield* Effect.acquireRelease(Scope.make(), (scope) =>
    Effect.flatMap(isKept, (kept) => {
      const end = Scope.close(scope, Exit.void)
      return kept ? end : Effect.forkDaemon(end)
    })
  )
  return yield* Effect.gen(function* () {
    const { loader } = options
    const [admin, source] = yield* Effect.all(
      [adminSession(server), loader === undefined ? Effect.succeedNone : templateOf(loader)],
      { concurrency: "unbounded" }
    )
    const from = Option.match(source, { onNone: () => "template0", onSome: (template) => template.name })
    // Held by this session for as long as the database is in use, so that others can tell it from a leftover.
    const [state] = yield* admin.query<{ isReady: boolean; strategy: string }>(
      `SELECT pg_catalog.pg_advisory_lock(${lockOf("$1")}), ${isReady("$2")} AS "isReady", ${strategy} AS strategy`,
      [name, from]
    )
    if (Option.isSome(source) && state?.isReady !== true) yield* makeTemplate(server, admin, source.value)
    yield* Effect.acquireRelease(
      admin.query(`CREATE DATABASE ${name} TEMPLATE ${from} ${state?.strategy ?? ""}`),
      () =>
        Effect.ignore(
          Effect.flatMap(isKept, (kept) => (kept ? keep(admin, server, name, id) : drop(admin, name)))
        )
    )
    if (loader !== undefined && Option.isNone(source)) yield* migrate(server, name, loader)
    yield* Effect.forkScoped(Effect.uninterruptible(Effect.ignore(dropLeftovers(admin, name))))
    return withDatabase(server, name)
  }).pipe(Scope.extend(life))
})

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

function derived<E>(wrap: (pool: Pool) => Effect.Effect<Pool, E, Scope.Scope>) {
  return Layer.scopedContext(Effect.flatMap(Database.Database, ({ derive }) => derive(wrap))).pipe(
    Layer.provide(Reactivity.layer)
  )
}

/** Keeps what the program wants to be run after a commit. */
const capturing = (
  context: Context.Context<Database.Provided>
): Context.Context<Database.Provided | AfterCommit> => {
  const database = Context.get(context, Database.Database)
  let waiting: Array<Effect.Effect<unknown, unknown>> = []
  const capture = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.contextWith((surroundings: Context.Context<R>) => {
      waiting.push(Effect.provide(effect, surroundings))
    })
  return Context.add(context, Database.Database, {
    ...database,
    after: (when, effect) => database.after(when, when === "committed" ? capture(effect) : effect)
  }).pipe(
    Context.add(AfterCommit, {
      captured: Effect.sync(() => [...waiting]),
      run: Effect.suspend(() => {
        const taken = waiting
        waiting = []
        return Effect.as(Effect.all(taken, { discard: true }), taken.length)
      })
    })
  )
}

const prefix = "promptgrimoire_test"

const serverUrl = Effect.gen(function* () {
  const given = yield* Config.nonEmptyString("TEST_DATABASE_URL").pipe(
    Config.orElse(() => Config.nonEmptyString("DATABASE_URL")),
    Effect.option
  )
  if (Option.isSome(given)) return given.value
  const server = yield* EmbeddedPostgres.make({ settings: { max_connections: "300" } })
  return Redacted.value(server.url)
})

const drop = (admin: Session.Session, name: string) =>
  admin.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)

const isKept = Effect.map(
  Effect.option(Config.string("KEEP_TEST_DATABASE")),
  (value) => Option.isSome(value) && !["", "0", "false"].includes(value.value)
)

/**
 * How a database is copied fastest. FILE_COPY (CREATE DATABASE, PostgreSQL 15) writes no log of the pages and brings the template's
 * cache of catalogs along; the checkpoints that it waits for are cheap only on a server that does not wait for its disk.
 */
const strategy = `
  CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 150000 AND NOT pg_catalog.current_setting('fsync')::bool
       THEN 'STRATEGY file_copy' ELSE '' END
`

/** Puts a database where nobody cleans up, and says how to look into it. */
const keep = (admin: Session.Session, server: string, name: string, id: string) =>
  Effect.gen(function* () {
    const kept = `promptgrimoire_kept_${id}`
    yield* admin.query(
      "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = $1",
      [name]
    )
    yield* admin.query(`ALTER DATABASE ${name} RENAME TO ${kept}`)
    const { hostname, port, username } = new URL(server)
    yield* Effect.logInfo(
      `The test database is kept: psql -h ${hostname} -p ${port || 5432} -U ${username} ${kept} (the password is that of the test server). Drop it with: DROP DATABASE ${kept}`
    )
  })

/** Databases of runs that were killed: nobody holds their lock any more. The one of this session has its lock, and could take it twice. */
const dropLeftovers = Effect.fnUntraced(function* (admin: Session.Session, mine: string) {
  const leftovers = yield* admin.query<{ name: string }>(
    `SELECT datname AS name FROM pg_catalog.pg_database
     WHERE datname ~ $1 AND datname <> $2 AND pg_catalog.pg_try_advisory_lock(${lockOf("datname::text")})`,
    [`^${prefix}_[0-9a-f]{32}$`, mine]
  )
  for (const { name } of leftovers) {
    yield* Effect.ignore(drop(admin, name))
    yield* admin.query(`SELECT pg_catalog.pg_advisory_unlock(${lockOf("$1")})`, [name])
  }
})

const lockOf = (name: string) => `pg_catalog.hashtextextended(${name}, 0)`

/** A session that creates databases and waits for whoever makes the same template; it lives as long as what it created. */
const adminSession = Effect.fnUntraced(function* (server: string) {
  const config = yield* DatabaseConfig.resolve({
    url: server,
    applicationName: "promptgrimoire-db-test-admin"
  })
  const unlimited = Duration.infinity
  return yield* Session.open({
    endpoint: config.endpoint,
    connectTimeout: config.connectTimeout,
    applicationName: config.applicationName,
    timeouts: { statementTimeout: unlimited, lockTimeout: unlimited, idleInTransactionTimeout: unlimited },
    prepare: false,
    reuseAfterCancel: true,
    echo: false
  })
})

const poolerUrl = Effect.option(Config.nonEmptyString("TEST_POOLER_URL"))

const databaseOf = (url: Redacted.Redacted): string => new URL(Redacted.value(url)).pathname.slice(1)

const withDatabase = (server: string, name: string): Redacted.Redacted => {
  const url = new URL(server)
  url.pathname = `/${name}`
  return Redacted.make(url.toString())
}

/** The database that others are cloned from. */
interface Template {
  /** Holds a digest of the migrations. */
  readonly name: string
  readonly loader: Migrator.Loader
}

/** None where nothing would tell that a migration was edited: then no database may outlive it. */
const templateOf = Effect.fnUntraced(function* (loader: Migrator.Loader) {
  const sources = yield* Migration.sources(loader)
  const digest = Crypto.createHash("sha256")
  for (const { checksum, id, name, version } of sources) {
    const content = checksum ?? version
    if (content === undefined) return Option.none<Template>()
    digest.update(`${id}\0${name}\0${content}\0`)
  }
  return Option.some<Template>({
    name: `${prefix}_template_${digest.digest("hex").slice(0, 16)}`,
    loader
  })
})

const migrate = (server: string, name: string, loader: Migrator.Loader) =>
  MigratorModule.run({ loader }).pipe(
    Effect.provide(Database.layer({ url: withDatabase(server, name), minConnections: 0, maxConnections: 3 })),
    Effect.scoped
  )

/** It becomes a template under its name only once all migrations ran. */
const isReady = (name: string) =>
  `EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = ${name} AND datistemplate)`

/** Makes the template on first use; an advisory lock keeps parallel test processes from making it twice. */
const makeTemplate = Effect.fn("TestDatabase.makeTemplate")(function* (
  server: string,
  admin: Session.Session,
  { loader, name }: Template
) {
  const create = Effect.gen(function* () {
    const [state] = yield* admin.query<{ isReady: boolean }>(`SELECT ${isReady("$1")} AS "isReady"`, [name])
    if (state?.isReady === true) return
    yield* admin.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)
    yield* admin.query(`CREATE DATABASE ${name} TEMPLATE template0`)
    yield* migrate(server, name, loader)
    yield* admin.query(`ALTER DATABASE ${name} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false`)
  })
  yield* Effect.acquireUseRelease(
    admin.query(`SELECT pg_catalog.pg_advisory_lock(${lockOf("$1")})`, [name]),
    () => create,
    () => Effect.ignore(admin.query(`SELECT pg_catalog.pg_advisory_unlock(${lockOf("$1")})`, [name]))
  )
})
