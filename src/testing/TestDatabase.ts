/**
 * The Layers that tests swap in: a program that needs `Database`, `PgClient` or `SqlClient` runs on
 * a database of its own, cloned from a template that the migrations were applied to once.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import type * as Migrator from "@effect/sql/Migrator"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as Database from "../Database.js"
import type * as DatabaseConfig from "../DatabaseConfig.js"
import type { DatabaseError } from "../DatabaseError.js"
import { type Endpoint, withDatabase } from "../connection/endpoint.js"
import type { Pool } from "../pool/pool.js"
import type { Session } from "../connection/session.js"
import type * as EmbeddedPostgres from "../EmbeddedPostgres.js"
import type { MigratorError } from "../Migrator.js"
import * as Failing from "./failing.js"
import * as Lock from "./lock.js"
import * as Sandbox from "./sandbox.js"
import { adminSession, CannotKeep, isKept, prefix, reach, serverUrl } from "./server.js"
import * as Template from "./template.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

export type { Fault, FaultPoint } from "./failing.js"
export { CannotKeep }

/** How a test database is made. */
export interface Options {
  /** The migrations that the database has been through; none when left out. */
  readonly loader?: Migrator.Loader | undefined
  /** Settings of the Layer besides its url. */
  readonly settings?: Omit<DatabaseConfig.Settings, "url" | "directUrl"> | undefined
}

/**
 * The effects that waited for a commit (`Transaction.afterCommit`) under {@link rollback}: there is
 * no commit, so they are kept instead of being run.
 */
export class AfterCommit extends Context.Tag("promptgrimoire-db/testing/AfterCommit")<
  AfterCommit,
  {
    /** What would have run by now, in that order: of transactions that the program committed. */
    readonly captured: Effect.Effect<ReadonlyArray<Effect.Effect<unknown, unknown>>>
    /**
     * Runs them in order and forgets them; fails with the first one that does. Gives how many there
     * were.
     */
    readonly run: Effect.Effect<number, unknown>
  }
>() {}

type Failure =
  | DatabaseConfig.InvalidSettings
  | DatabaseError
  | MigratorError
  | EmbeddedPostgres.EmbeddedPostgresError
  | CannotKeep

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/**
 * A fresh database, dropped with the Layer. It is on the server of `TEST_DATABASE_URL` or
 * `DATABASE_URL`, whose role must be allowed to create databases; without either on an embedded
 * server that is started for it. Provide it once to a suite (`layer(TestDatabase.layer(...))` of
 * `@effect/vitest`). With `TEST_POOLER_URL`, the same server behind a transaction pooler, the Layer
 * goes through that. With `KEEP_TEST_DATABASE=1` it is kept, and the log says how to connect. What
 * killed runs left behind is dropped by the next one.
 */
export const layer = (options: Options = {}): Layer.Layer<Database.Provided, Failure> =>
  Layer.unwrapScoped(
    Effect.map(Effect.flatMap(clone(options), reach), (reached) =>
      Database.layer({
        minConnections: 1,
        applicationName: "promptgrimoire-db-test",
        ...options.settings,
        ...reached
      })
    )
  )

/**
 * One test in a transaction that is rolled back: the program of the test runs its own transactions
 * as savepoints in it, with the same log records, typed failures and retries, and leaves nothing
 * behind. Provide it to each test, over a database that the suite shares:
 *
 * @example
 * ```ts
 * layer(TestDatabase.layer({ loader }))("my suite", (it) => {
 *   it.effect("leaves nothing behind", () => program.pipe(Effect.provide(TestDatabase.rollback)))
 * })
 * ```
 *
 * Deferred constraints are checked where the program commits. Effects that wait for a commit are
 * captured there and not run: {@link AfterCommit} tells them, and runs them when a test wants that.
 * What a single transaction cannot do: isolation levels and READ ONLY have no effect, notifications
 * are never delivered, `Database.session` does not see what the test wrote, and two transactions of
 * the program never run at the same time.
 */
export const rollback: Layer.Layer<Database.Provided | AfterCommit, DatabaseError, Database.Database> =
  Layer.flatMap(
    derived(
      (pool, { acquireTimeout }) => Sandbox.make(pool, acquireTimeout),
      (sandbox) => Sandbox.isolated(sandbox)
    ),
    (context) => Layer.effectContext(Effect.sync(() => capturing(context)))
  )

/**
 * The database of a suite, failing at chosen statements, so that a program's handling of errors is
 * tested on a real server: refused by the server, a defect, a delay, or a connection that is cut.
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
): Layer.Layer<Database.Provided, never, Database.Database> =>
  Layer.suspend(() => {
    const failing = Failing.make(points)
    return derived(
      (pool) => Effect.sync(() => failing(pool)),
      (_, open) => Effect.map(open, failing)
    )
  })

/**
 * The url of a fresh database, for programs that are started from outside. Closing the scope drops
 * it, and does not wait until that is done.
 */
export const make = (options: Options = {}): Effect.Effect<Redacted.Redacted, Failure, Scope.Scope> =>
  Effect.map(clone(options), ({ url }) => url)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const clone = Effect.fn("TestDatabase.make")(function* (
  options: Options
): Effect.fn.Return<{ readonly name: string; readonly url: Redacted.Redacted }, Failure, Scope.Scope> {
  const server = yield* serverUrl
  const id = Crypto.randomUUID().replaceAll("-", "")
  const name = `${prefix}_${id}`
  // Until the drop is done the lock keeps others from it, and what a killed process does not get to
  // is a leftover like any other.
  const life = yield* Effect.acquireRelease(Scope.make(), (scope) =>
    Effect.flatMap(isKept, (kept) => {
      const end = Scope.close(scope, Exit.void)
      return kept ? end : Effect.forkDaemon(end)
    })
  )
  return yield* Effect.gen(function* () {
    const { loader } = options
    const [{ endpoint, session: admin }, source] = yield* Effect.all(
      [adminSession(server), loader === undefined ? Effect.succeedNone : Template.of(loader)],
      { concurrency: "unbounded" }
    )
    const from = Option.match(source, { onNone: () => "template0", onSome: (template) => template.name })
    // Held by this session for as long as the database is in use, so that others can tell it from a
    // leftover.
    const [state] = yield* admin.query<{ isReady: boolean; strategy: string }>(
      `SELECT ${Lock.take("$1")}, ${Template.isReady("$2")} AS "isReady", ${strategy} AS strategy`,
      [name, from]
    )
    if (Option.isSome(source) && state?.isReady !== true) yield* Template.make(server, admin, source.value)
    yield* Effect.acquireRelease(
      admin.query(`CREATE DATABASE ${name} TEMPLATE ${from} ${state?.strategy ?? ""}`),
      () =>
        Effect.ignore(
          Effect.flatMap(isKept, (kept) => (kept ? keep(admin, endpoint, name, id) : drop(admin, name)))
        )
    )
    if (loader !== undefined && Option.isNone(source)) yield* Template.migrate(server, name, loader)
    yield* Effect.forkScoped(Effect.uninterruptible(Effect.ignore(dropLeftovers(admin))))
    return { name, url: withDatabase(server, name) }
  }).pipe(Scope.extend(life))
})

function derived<E>(
  wrap: (pool: Pool, config: DatabaseConfig.DatabaseConfig) => Effect.Effect<Pool, E, Scope.Scope>,
  isolate: (changed: Pool, open: Database.OpenPool) => Database.OpenPool
) {
  return Layer.scopedContext(
    Effect.flatMap(Database.Database, ({ config, derive }) => derive((pool) => wrap(pool, config), isolate))
  ).pipe(Layer.provide(Reactivity.layer))
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

/**
 * How a database is copied fastest. FILE_COPY (CREATE DATABASE, PostgreSQL 15) writes no log of the
 * pages and brings the template's cache of catalogs along; the checkpoints that it waits for are
 * cheap only on a server that does not wait for its disk.
 */
const strategy = `
  CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 150000 AND NOT pg_catalog.current_setting('fsync')::bool
       THEN 'STRATEGY file_copy' ELSE '' END
`

const drop = (admin: Session, name: string) => admin.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)

/** Puts a database where nobody cleans up, and says how to look into it. */
const keep = (admin: Session, { host, port, user }: Endpoint, name: string, id: string) =>
  Effect.gen(function* () {
    const kept = `promptgrimoire_kept_${id}`
    yield* admin.query(
      "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = $1",
      [name]
    )
    yield* admin.query(`ALTER DATABASE ${name} RENAME TO ${kept}`)
    yield* Effect.logInfo(
      `The test database is kept: psql -h ${host} -p ${port} -U ${user} ${kept} (the password is that of the test server). Drop it with: DROP DATABASE ${kept}`
    )
  })

/** Databases of runs that were killed: nobody holds their lock or is connected to them any more. */
const dropLeftovers = Effect.fnUntraced(function* (admin: Session) {
  const leftovers = yield* admin.query<{ name: string }>(
    `SELECT d.datname AS name FROM pg_catalog.pg_database d
    WHERE d.datname ~ $1 AND NOT ${Lock.isHeld("d.datname::text")}
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.datname = d.datname)`,
    [`^${prefix}_[0-9a-f]{32}$`]
  )
  // Without FORCE: who is there now connected since, and uses it.
  yield* Effect.forEach(
    leftovers,
    ({ name }) => Effect.ignore(admin.query(`DROP DATABASE IF EXISTS ${name}`)),
    {
      discard: true
    }
  )
})
