import * as Reactivity from "@effect/experimental/Reactivity"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Mailbox from "effect/Mailbox"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import type { DatabaseConfig } from "../DatabaseConfig.js"
import type { DatabaseError } from "../DatabaseError.js"
import { autocommit, reserved } from "../pool/sqlConnection.js"
import type { AppliedErrorPolicy } from "../connection/errorPolicy.js"
import { invalid, invalidChannel, invalidPayload, type NotificationHub } from "./notificationHub.js"
import type { Pool } from "../pool/pool.js"
import { traced } from "./tracedStatement.js"
import type { Transactions } from "../transaction/manager.js"

/** The parts that a client is put together from. */
export interface ClientParts {
  readonly config: DatabaseConfig
  readonly pool: Pool
  /** What begins a transaction with the limits of the settings. */
  readonly begin: string
  readonly decisions: AppliedErrorPolicy
  readonly transactions: Transactions
  readonly notifications: NotificationHub
  readonly spanAttributes: Readonly<Record<string, unknown>>
}

/**
 * The `PgClient` of `@effect/sql-pg` over our pool and our transactions. It is put together here,
 * and not by `SqlClient.make`, because that one finds the open transaction under a tag that all
 * clients of a process share.
 */
export const makeClient = (
  parts: ClientParts
): Effect.Effect<PgClient.PgClient, never, Reactivity.Reactivity> =>
  Effect.gen(function* () {
    const { begin, config, decisions, notifications, pool, spanAttributes, transactions } = parts
    const reactivity = yield* Reactivity.Reactivity
    const outside = autocommit(pool, begin, decisions)
    const connectionIn = (context: Context.Context<never>) => transactions.connectionIn(context) ?? outside
    const acquirer = Effect.map(Effect.context<never>(), connectionIn)
    const statements = traced(Statement.make(acquirer, PgClient.makeCompiler(), [], undefined), {
      connectionIn,
      attributes: spanAttributes
    })

    const own: Omit<PgClient.PgClient, keyof Statement.Constructor> = {
      [SqlClient.TypeId]: SqlClient.TypeId,
      [PgClient.TypeId]: PgClient.TypeId,
      config: describeConfig(config),
      get safe() {
        return client
      },
      withoutTransforms: () => client,
      // Behind a transaction pooler the session is not the connection's.
      reserve: reserved(pool, { begin, decisions, resets: config.pooler !== "transaction" }),
      withTransaction: <A, E, R>(effect: Effect.Effect<A, E, R>) => transactions.transact(effect),
      reactive: reactivity.stream,
      reactiveMailbox: reactivity.query,
      json: (value: unknown) => pgJson(jsonText(value), undefined, undefined),
      listen: (channel: string) => listen(notifications, channel),
      notify: (channel: string, payload: string) =>
        Effect.suspend(() => {
          const problem = invalidChannel(channel) ?? invalidPayload(payload)
          return problem === undefined
            ? Effect.asVoid(statements`SELECT pg_catalog.pg_notify(${channel}, ${payload})`)
            : Effect.fail(invalid("notify", problem))
        })
    }
    const client: PgClient.PgClient = Object.defineProperties(
      statements,
      Object.getOwnPropertyDescriptors(own)
    ) as PgClient.PgClient
    return client
  })

/** The custom fragment that `PgClient.makeCompiler` knows as JSON. */
const pgJson = Statement.custom("PgJson")

/**
 * A value as the text of JSON: an array, a string or a number would be sent as what it is in SQL.
 * What JSON cannot express is left for the driver to refuse, and null is SQL's.
 */
const jsonText = (value: unknown): unknown => {
  if (value === null || value === undefined) return null
  try {
    return JSON.stringify(value) ?? null
  } catch {
    return value
  }
}

const describeConfig = ({ endpoint, ...config }: DatabaseConfig): PgClient.PgClientConfig => ({
  host: endpoint.host,
  port: endpoint.port,
  database: endpoint.database,
  username: endpoint.user,
  password: endpoint.password ?? Redacted.make(""),
  ssl: endpoint.ssl !== false,
  applicationName: config.applicationName,
  minConnections: config.minConnections,
  maxConnections: config.maxConnections,
  connectTimeout: config.connectTimeout,
  idleTimeout: config.idleTimeout,
  connectionTTL: config.connectionTTL
})

/**
 * The payloads of one channel. A stream of strings has no room for word of a gap:
 * `Notification.listen` tells of them.
 */
const listen = (hub: NotificationHub, channel: string): Stream.Stream<string, DatabaseError> =>
  Stream.unwrapScoped(Effect.map(hub.subscribe(channel), Mailbox.toStream)).pipe(
    Stream.filterMap((event) => (event._tag === "Notification" ? Option.some(event.payload) : Option.none()))
  )
