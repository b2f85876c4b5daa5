/**
 * The database as a service: a Layer that takes settings and provides {@link Database}, `PgClient`
 * and `SqlClient`.
 *
 * Every statement goes through one pool of PostgreSQL connections with limits, recycling and
 * server-side timeouts; `sql.withTransaction` is {@link "./Transaction"}`.run`. There is no module
 * state: two Layers are two databases.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Config from "effect/Config"
import type { ConfigError } from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import * as Crypto from "node:crypto"
import * as DatabaseConfig from "./DatabaseConfig.js"
import type { DatabaseError, PoolState } from "./DatabaseError.js"
import { answerMillis, type DialOptions, serverMillis } from "./connection/connection.js"
import { AppliedErrorPolicy } from "./connection/errorPolicy.js"
import { target } from "./connection/endpoint.js"
import { makeClient } from "./client/client.js"
import { autocommit } from "./pool/sqlConnection.js"
import type { CopyIn } from "./connection/copyIn.js"
import * as Health from "./pool/health.js"
import * as Notice from "./connection/notice.js"
import * as NotificationHub from "./client/notificationHub.js"
import * as Pool from "./pool/pool.js"
import * as Pooler from "./pool/poolerCheck.js"
import { traceAs } from "./client/tracedStatement.js"
import * as Session from "./connection/session.js"
import { operationOf } from "./client/summaries.js"
import * as Telemetry from "./telemetry/metrics.js"
import * as Transact from "./transaction/manager.js"

// -----------------------------------------------------------------------------
// tag
// -----------------------------------------------------------------------------

/** The database of a program. */
export class Database extends Context.Tag("promptgrimoire-db/Database")<
  Database,
  {
    /** The settings in effect; url and password are not among what is printed of them. */
    readonly config: DatabaseConfig.DatabaseConfig
    /** How many connections there are and what they do. */
    readonly stats: Effect.Effect<PoolState>
    /**
     * What happens to the connections: opened, closed, refused, leaked. From now on; who is too
     * slow loses the oldest events.
     */
    readonly events: Stream.Stream<Pool.PoolEvent>
    /**
     * Whether the database can be used; answers in little more than four seconds at most, also when
     * the pool is exhausted or the server is gone.
     */
    readonly health: Effect.Effect<Health.Health>
    /** Whether a connection pooler, such as PgBouncer, stands between the pool and PostgreSQL. */
    readonly isBehindPooler: Effect.Effect<boolean, DatabaseError>
    /**
     * Opens a dedicated session, outside the pool and past any pooler, that ends with the scope.
     * `SessionUnavailable` where `pooler` is `transaction` and there is no `directUrl`.
     */
    readonly session: Effect.Effect<Session.Session, DatabaseError, Scope.Scope>
    /** The listeners of {@link "./Notification"}. */
    readonly notifications: NotificationHub.NotificationHub
    /** What {@link "./Transaction"}`.run` calls. */
    readonly transact: Transact.Transact
    /** What {@link "./Transaction"}`.afterCommit` and `.afterRollback` call. */
    readonly after: Transact.Transactions["after"]
    /** What {@link "./Copy"}`.into` calls. */
    readonly copyIn: CopyIn
    /**
     * The same database over connections of its own, opened past any pooler and closed with the
     * scope: what is left on them reaches nobody. A transaction that is open here is open there
     * too.
     */
    readonly isolated: Effect.Effect<Context.Context<Provided>, DatabaseError, Scope.Scope>
    /**
     * The same database over a changed pool; what the Layers of `promptgrimoire-db/testing` are
     * made with. `isolate` opens the pool of {@link isolated}, from the changed pool and from how
     * it is opened otherwise.
     */
    readonly derive: <E, R>(
      wrap: (pool: Pool.Pool) => Effect.Effect<Pool.Pool, E, R>,
      isolate: (changed: Pool.Pool, open: OpenPool) => OpenPool
    ) => Effect.Effect<Context.Context<Provided>, E, R | Reactivity.Reactivity>
  }
>() {}

/** Opens a pool that is closed with the scope. */
export type OpenPool = Effect.Effect<Pool.Pool, DatabaseError, Scope.Scope>

export type { Health } from "./pool/health.js"
export { type Notice, type NoticeSeverity, withNotices } from "./connection/notice.js"
export type { PoolEvent } from "./pool/pool.js"
export type { Notification, Session } from "./connection/session.js"

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/** What the Layers of this module provide. */
export type Provided = Database | PgClient.PgClient | SqlClient.SqlClient

/** A database with settings from code. */
export const layer = (
  settings: DatabaseConfig.Settings
): Layer.Layer<Provided, DatabaseConfig.InvalidSettings | DatabaseError> =>
  layerFrom(DatabaseConfig.resolve(settings))

/**
 * A database with settings that `Config` reads, as `PgClient.layerConfig` takes them.
 *
 * ```ts
 * Database.layerConfig({
 *   url: Config.redacted("PRIMARY_URL"),
 *   maxConnections: Config.integer("POOL_SIZE")
 * })
 * ```
 */
export const layerConfig = (
  config: Config.Config.Wrap<DatabaseConfig.Settings>
): Layer.Layer<Provided, ConfigError | DatabaseConfig.InvalidSettings | DatabaseError> =>
  layerFrom(Effect.flatMap(Config.unwrap(config), DatabaseConfig.resolve))

/**
 * A database with settings from the environment: `DATABASE_URL` and the others of `DatabaseConfig`.
 */
export const layerEnv: Layer.Layer<Provided, DatabaseConfig.InvalidSettings | DatabaseError> = Layer.suspend(
  () => layerEnvWith({})
)

/** The same, with settings from code that stand before those of the environment. */
export const layerEnvWith = (
  settings: Partial<DatabaseConfig.Settings>
): Layer.Layer<Provided, DatabaseConfig.InvalidSettings | DatabaseError> =>
  layerFrom(DatabaseConfig.fromEnvironment(settings))

/**
 * The same settings on another database of the server, reached as `directUrl` reaches this one.
 * `onStatement` is told the text of each statement that the pool has had an answer to, those that
 * control transactions left out.
 */
export const layerElsewhere = (
  config: DatabaseConfig.DatabaseConfig,
  database: string,
  onStatement?: (text: string) => void
): Layer.Layer<Provided, DatabaseError> => {
  const endpoint = { ...config.directEndpoint, database }
  return layerFrom(
    Effect.succeed({
      ...config,
      endpoint,
      directEndpoint: endpoint,
      hasSessions: true,
      pooler: "none" as const,
      minConnections: 0
    }),
    onStatement
  )
}

/**
 * Fails when it is built where no session can be opened: behind a transaction pooler without
 * `directUrl`, or where `directUrl` leads nowhere. For a program that listens, or takes advisory
 * locks, later on. `Migrator.layer` needs no other word: it opens its own.
 */
export const layerSession: Layer.Layer<never, DatabaseError, Database> = Layer.effectDiscard(
  Effect.flatMap(Database, ({ session }) => Effect.scoped(session))
)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const layerFrom = <E>(
  config: Effect.Effect<DatabaseConfig.DatabaseConfig, E>,
  onStatement?: (text: string) => void
) =>
  Layer.scopedContext(Effect.flatMap(config, (config) => make(config, onStatement))).pipe(
    Layer.provide(Reactivity.layer)
  )

const make = Effect.fn("Database.make")(function* (
  config: DatabaseConfig.DatabaseConfig,
  onStatement: ((text: string) => void) | undefined
): Effect.fn.Return<Context.Context<Provided>, DatabaseError, Scope.Scope | Reactivity.Reactivity> {
  const pooled = config.pooler === "transaction"
  const timeouts = limitsOf(config)
  const runtime = yield* Effect.runtime()
  const decisions = new AppliedErrorPolicy(
    config.errorPolicy,
    (cause) => {
      Runtime.runFork(runtime)(Effect.logError("errorPolicy threw; the standard decision holds", cause))
    },
    config.showRaised
  )
  const direct: DialOptions = {
    endpoint: config.directEndpoint,
    connectTimeout: config.connectTimeout,
    applicationName: config.applicationName,
    timeouts,
    prepare: false,
    reuseAfterCancel: true,
    echo: config.echo,
    onNotice: Notice.teller(runtime, config.showRaised),
    decisions
  }
  const telemetry = Telemetry.make(
    `${target(config.endpoint)}/${config.endpoint.database}`,
    {
      "db.system.name": "postgresql",
      "db.namespace": config.endpoint.database,
      "server.address": config.endpoint.host,
      "server.port": String(config.endpoint.port)
    },
    config.maxConnections,
    config.minConnections
  )
  const dial: DialOptions = {
    ...direct,
    observe: observer(telemetry, config.slowStatement, onStatement),
    endpoint: config.endpoint,
    timeouts: pooled ? undefined : timeouts,
    prepare: config.prepare,
    reuseAfterCancel: !pooled,
    // Behind a transaction pooler the server enforces limits in transactions only; those set their
    // own.
    answerMillis: pooled ? undefined : answerMillis(config.statementTimeout)
  }
  const options: Pool.PoolOptions = {
    dial,
    min: config.minConnections,
    max: config.maxConnections,
    acquireTimeout: config.acquireTimeout,
    idleTimeout: config.idleTimeout,
    connectionTTL: config.connectionTTL,
    validateAfterIdle: config.validateAfterIdle,
    maxWaiting: config.maxWaiting,
    leakWarning: config.leakWarning,
    telemetry
  }
  const pool = yield* Pool.make(options)
  const openIsolated = Pool.make({
    ...options,
    dial: { ...direct, observe: dial.observe, answerMillis: answerMillis(config.statementTimeout) },
    min: 0,
    // What one statement sets holds for the next: the connection is the same one until the end.
    idleTimeout: Duration.infinity,
    connectionTTL: Duration.infinity,
    telemetry: { ...telemetry, connections: () => {} }
  })
  const problem = Pooler.disagreement(config.pooler, yield* Pooler.isBehindPooler(pool))
  if (problem !== undefined) yield* Effect.logWarning(problem)
  const session = config.hasSessions
    ? // Past the pooler, what speaks against prepared statements behind it does not hold.
      Session.open({ ...direct, prepare: pooled || config.prepare })
    : Effect.fail(decisions.error({ operation: "session", reason: { _tag: "SessionUnavailable" } }))
  const notifications = yield* NotificationHub.make(session)
  return yield* assemble({
    config,
    id: Crypto.randomUUID(),
    pool,
    openIsolated,
    dial,
    session,
    notifications,
    telemetry,
    decisions
  })
})

/** What a database is made of. */
interface Parts {
  readonly config: DatabaseConfig.DatabaseConfig
  /** Databases of one id share their transactions. */
  readonly id: string
  readonly pool: Pool.Pool
  readonly openIsolated: OpenPool
  /** How a connection of the pool is opened. */
  readonly dial: DialOptions
  /** Opens a session past any pooler. */
  readonly session: Effect.Effect<Session.Session, DatabaseError, Scope.Scope>
  readonly notifications: NotificationHub.NotificationHub
  readonly telemetry: Telemetry.Telemetry
  readonly decisions: AppliedErrorPolicy
}

/** Measures each statement, and reports the slow ones: their text, never their parameters. */
const observer = (
  telemetry: Telemetry.Telemetry,
  slowStatement: Duration.Duration,
  onStatement: ((text: string) => void) | undefined
): DialOptions["observe"] => {
  const limit = Duration.toMillis(slowStatement)
  return ({ isControl, text }, millis, failure) => {
    if (isControl !== true) onStatement?.(text)
    telemetry.operation(millis, operationOf(text), failure)
    return millis < limit
      ? undefined
      : Effect.annotateLogs(Effect.logWarning("Slow statement"), {
          statement: text,
          millis: Math.round(millis)
        })
  }
}

const assemble = Effect.fnUntraced(function* (
  parts: Parts
): Effect.fn.Return<Context.Context<Provided>, never, Reactivity.Reactivity> {
  const { config, decisions, dial, notifications, pool, session, telemetry } = parts
  const reactivity = yield* Effect.context<Reactivity.Reactivity>()
  const spanAttributes = {
    "db.system.name": "postgresql",
    "db.namespace": config.endpoint.database,
    "server.address": config.endpoint.host,
    "server.port": config.endpoint.port
  }
  const timeouts = limitsOf(config)
  const limits = config.pooler === "transaction" ? sessionLimits(timeouts) : []
  const begin = ["BEGIN", ...limits].join(";")
  const transactions = Transact.make(pool, parts.id, {
    spanAttributes,
    limits: timeouts,
    session: limits,
    telemetry,
    decisions
  })
  const outside = autocommit(pool, begin, decisions)
  const traced = traceAs(spanAttributes)
  const client = yield* makeClient({
    begin,
    config,
    decisions,
    pool,
    transactions,
    notifications,
    spanAttributes
  })
  return Context.make(Database, {
    config,
    stats: pool.state,
    events: pool.events,
    health: Health.check(pool, dial),
    isBehindPooler: Pooler.isBehindPooler(pool),
    session,
    notifications,
    transact: transactions.transact,
    after: transactions.after,
    copyIn: (text, source) =>
      traced(
        text,
        Effect.contextWithEffect((context: Context.Context<never>) =>
          (transactions.connectionIn(context) ?? outside).copyIn(text, source)
        )
      ),
    isolated: Effect.flatMap(parts.openIsolated, (pool) =>
      Effect.provide(assemble({ ...parts, pool }), reactivity)
    ),
    derive: (wrap, isolate) =>
      Effect.flatMap(wrap(pool), (changed) =>
        assemble({
          ...parts,
          id: Crypto.randomUUID(),
          pool: changed,
          openIsolated: isolate(changed, parts.openIsolated)
        })
      )
  }).pipe(Context.add(PgClient.PgClient, client), Context.add(SqlClient.SqlClient, client))
})

/** Behind a transaction pooler a limit can be set for one transaction only. */
const sessionLimits = (timeouts: { readonly [Name in keyof Limits]: Duration.Duration }) => [
  `SET LOCAL statement_timeout = ${serverMillis(timeouts.statementTimeout)}`,
  `SET LOCAL lock_timeout = ${serverMillis(timeouts.lockTimeout)}`,
  `SET LOCAL idle_in_transaction_session_timeout = ${serverMillis(timeouts.idleInTransactionTimeout)}`
]

const limitsOf = ({
  idleInTransactionTimeout,
  lockTimeout,
  statementTimeout
}: DatabaseConfig.DatabaseConfig) => ({
  statementTimeout,
  lockTimeout,
  idleInTransactionTimeout
})

type Limits = Pick<
  DatabaseConfig.DatabaseConfig,
  "statementTimeout" | "lockTimeout" | "idleInTransactionTimeout"
>
