/**
 * LISTEN and NOTIFY that survive a restart of the server.
 *
 * All listeners of a database share one dedicated session over `directUrl`. When it is lost it is
 * opened again, and a {@link Event} `Gap` tells every listener that it may have missed
 * notifications: PostgreSQL does not keep them for who is not connected.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Mailbox from "effect/Mailbox"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Database } from "./Database.js"
import type { DatabaseError } from "./DatabaseError.js"
import type { NotificationEvent } from "./client/notificationHub.js"

/** A notification, or word that some may be missing. */
export type Event = NotificationEvent

/**
 * Events of a channel. The stream begins once the server has acknowledged the LISTEN, and ends with
 * its scope only; it fails if the first connection cannot be opened, or the channel's name is
 * longer than 63 bytes.
 */
export const listen = (channel: string): Stream.Stream<Event, DatabaseError, Database> =>
  Stream.unwrapScoped(Effect.map(subscribe(channel), Mailbox.toStream))

/**
 * Listens to a channel until the scope closes. What is sent after this effect has succeeded is in
 * the mailbox, so a program that subscribes first and reads its state then misses nothing. A
 * listener that falls 10,000 events behind gets a `Gap` in place of all that come until it has
 * taken that one.
 */
export const subscribe = (
  channel: string
): Effect.Effect<Mailbox.ReadonlyMailbox<Event>, DatabaseError, Database | Scope.Scope> =>
  Effect.flatMap(Database, ({ notifications }) => notifications.subscribe(channel))

/**
 * Sends a notification. Inside a transaction it is part of it: it is delivered when the transaction
 * commits, and never if it does not (documentation, NOTIFY). A payload has 7,999 bytes at most.
 */
export const notify = (channel: string, payload = ""): Effect.Effect<void, SqlError, PgClient.PgClient> =>
  Effect.flatMap(PgClient.PgClient, (client) => client.notify(channel, payload))
