/**
 * What the server processes on one database tell each other, through NOTIFY and LISTEN (PostgreSQL
 * documentation, "NOTIFY").
 *
 * A notification that is sent in a transaction arrives if and when that transaction commits. It
 * arrives at those who listen at that time: a process that loses its connection misses some, and is
 * told so by `Missed` once it listens again.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as SqlError from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Encoding from "effect/Encoding"
import * as Layer from "effect/Layer"
import * as Mailbox from "effect/Mailbox"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Crypto from "node:crypto"
import { ConversationId } from "../../src/model/Conversation.js"
import * as Notification from "../../src/Notification.js"
import { Person } from "./Protocol.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** What one process says to the others. */
const Announcement = Schema.Union(
  /** A text changed. The update is there if it is small; who needs it can also read the table. */
  Schema.TaggedStruct("Edited", {
    conversation: ConversationId,
    update: Schema.optionalWith(Schema.Uint8ArrayFromBase64, { as: "Option" })
  }),
  /** These tabs are connected to me. Said when one comes, and again with every heartbeat. */
  Schema.TaggedStruct("Present", {
    people: Schema.Array(Schema.Struct({ conversation: ConversationId, ...Person.fields }))
  }),
  /** This tab is no longer connected to me. */
  Schema.TaggedStruct("Gone", { conversation: ConversationId, tab: Schema.UUID }),
  /** Say who is connected to you. */
  Schema.TaggedStruct("WhoIsThere", { conversation: ConversationId })
)
export type Announcement = typeof Announcement.Type

/** What a process hears. */
export type Heard =
  | { readonly _tag: "Heard"; readonly from: string; readonly announcement: Announcement }
  /** Something that was said may have been missed. */
  | { readonly _tag: "Missed" }

/** What the server processes tell each other. */
export class Announcements extends Context.Tag("two-tab-sync/Announcements")<
  Announcements,
  {
    /**
     * Tells the other processes, and no tab of this one: with the commit of the transaction that is
     * open, else at once.
     */
    readonly announce: (announcements: Iterable<Announcement>) => Effect.Effect<void, SqlError.SqlError>
    /** What the others say from when the Layer is there. It can be read once. */
    readonly heard: Stream.Stream<Heard>
  }
>() {}

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

const make = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const me = Crypto.randomUUID()

  const announce = Effect.fn("Announcements.announce")(function* (announcements: Iterable<Announcement>) {
    const payloads = Array.from(announcements, (announcement) => encode({ from: me, announcement }))
    if (payloads.length === 0) return
    yield* sql`
      SELECT pg_catalog.pg_notify(${channel}, payload)
      FROM pg_catalog.unnest(${payloads}::text[]) AS payload
    `
  })

  const heard = Mailbox.toStream(yield* Notification.subscribe(channel)).pipe(
    Stream.mapEffect((event) =>
      event._tag === "Gap" ? Effect.succeedSome<Heard>({ _tag: "Missed" }) : decode(event.payload)
    ),
    Stream.filterMap((heard) => heard),
    Stream.filter((heard) => heard._tag === "Missed" || heard.from !== me)
  )
  return Announcements.of({ announce, heard })
})

/** Announcements over the program's database. */
export const layer = Layer.scoped(Announcements, make)

/** An announcement of an edit, with the update if that fits into a notification. */
export const edited = (conversation: ConversationId, update: Uint8Array): Announcement => ({
  _tag: "Edited",
  conversation,
  update: Encoding.encodeBase64(update).length <= maxInlineLength ? Option.some(update) : Option.none()
})

/** How many people one `Present` may name, so that it fits into a notification. */
export const peoplePerAnnouncement = 16

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const channel = "two_tab_sync"

/** A payload must be shorter than 8000 bytes; the rest of the announcement takes less than 1000. */
const maxInlineLength = 7000

const Envelope = Schema.parseJson(Schema.Struct({ from: Schema.UUID, announcement: Announcement }))
const encode = Schema.encodeSync(Envelope)

/**
 * Anybody who is connected to the database can notify: what is not ours is none of our business.
 */
const decode = (payload: string): Effect.Effect<Option.Option<Heard>> =>
  Schema.decode(Envelope)(payload).pipe(
    Effect.map((envelope): Heard => ({ _tag: "Heard", ...envelope })),
    Effect.option
  )
