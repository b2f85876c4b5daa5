import * as Reactivity from "@effect/experimental/Reactivity"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Mailbox from "effect/Mailbox"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { DatabaseConfig } from "../DatabaseConfig.js"
import type { DatabaseError } from "../DatabaseError.js"
import { autocommit, reserved } from "./connections.js"
import type { Pool } from "./Pool.js"
import type { Session } from "./Session.js"
import type { Transactions } from "./Transact.js"

/** The parts that a client is put together from. */
export interface ClientParts {
  readonly config: DatabaseConfig
  readonly pool: Pool
  readonly transactions: Transactions
  readonly session: Effect.Effect<Session, DatabaseError, Scope.Scope>
  readonly spanAttributes: ReadonlyArray<readonly [string, unknown]>
}

/**
 * The `PgClient` of `@effect/sql-pg` over our pool and our transactions. It is put together here, and not by
 * `SqlClient.make`, because that one finds the open transaction under a tag that all clients of a process share.
 */
export const makeClient = (
  parts: ClientParts
): Effect.Effect<PgClient.PgClient, never, Reactivity.Reactivity> =>
  Effect.gen(function* () {
    const { config, pool, session, spanAttributes, transactions } = parts
    const reactivity = yield* Reactivity.Reactivity
    const outside = autocommit(pool)
    const acquirer = Effect.map(
      transactions.current,
      Option.getOrElse(() => outside)
    )
    const statements = Statement.make(acquirer, PgClient.makeCompiler(), spanAttributes, undefined)

    const client: PgClient.PgClient = Object.assign(statements, {
      [SqlClient.TypeId]: SqlClient.TypeId as SqlClient.TypeId,
      [PgClient.TypeId]: PgClient.TypeId as PgClient.TypeId,
      config: describeConfig(config),
      safe: undefined as never,
      withoutTransforms: () => client,
      reserve: reserved(pool),
      withTransaction: <A, E, R>(effect: Effect.Effect<A, E, R>) => transactions.transact(effect),
      reactive: reactivity.stream,
      reactiveMailbox: reactivity.query,
      json: (value: unknown) => pgJson(value, undefined, undefined),
      listen: (channel: string) => listen(session, channel),
      notify: (channel: string, payload: string) =>
        Effect.asVoid(statements`SELECT pg_catalog.pg_notify(${channel}, ${payload})`)
    })
    return Object.assign(client, { safe: client })
  })

/** The custom fragment that `PgClient.makeCompiler` knows as JSON. */
const pgJson = Statement.custom("PgJson")

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

/** Notifications of one channel, on a session of its own, from the moment that LISTEN was acknowledged. */
const listen = (
  open: Effect.Effect<Session, DatabaseError, Scope.Scope>,
  channel: string
): Stream.Stream<string, DatabaseError> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const session = yield* open
      const mailbox = yield* Mailbox.make<string, DatabaseError>()
      yield* session.onNotification((message) => {
        if (message.channel === channel) mailbox.unsafeOffer(message.payload)
      })
      yield* Effect.forkScoped(Effect.interruptible(Mailbox.into(session.lost, mailbox)))
      yield* session.query(`LISTEN ${Statement.defaultEscape('"')(channel)}`)
      return Mailbox.toStream(mailbox)
    })
  )
