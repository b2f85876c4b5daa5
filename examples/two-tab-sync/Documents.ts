/**
 * The shared texts in the table `conversation`: `crdt_state` holds the Yjs state, and the row's lock is what makes two processes
 * that merge at the same time do it one after the other.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as SqlError from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Database from "../../src/Database.js"
import * as Transaction from "../../src/Transaction.js"
import { Announcements, edited } from "./Announcements.js"
import * as Document from "./Document.js"
import type { ConversationId } from "./Protocol.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** There is no conversation of that id. */
export class UnknownConversation extends Data.TaggedError("UnknownConversation")<{
  readonly conversation: ConversationId
}> {
  override get message() {
    return "There is no such conversation."
  }
}

/** The shared texts. */
export class Documents extends Context.Tag("two-tab-sync/Documents")<
  Documents,
  {
    /** The committed state of a text. */
    readonly read: (
      conversation: ConversationId
    ) => Effect.Effect<Uint8Array, UnknownConversation | SqlError.SqlError>
    /**
     * Merges an update into a text. It is committed when this succeeds, and announced to the other processes with the same
     * commit. It can be repeated: what is already part of the text changes nothing.
     */
    readonly save: (
      conversation: ConversationId,
      update: Uint8Array
    ) => Effect.Effect<
      void,
      UnknownConversation | Document.BadUpdate | Document.TextTooLong | SqlError.SqlError
    >
    /** Makes an empty text in the class of the demonstration. */
    readonly create: (conversation: ConversationId) => Effect.Effect<void, SqlError.SqlError>
  }
>() {}

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

const make = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const database = yield* Database.Database
  const announcements = yield* Announcements

  const stateIn = Effect.fnUntraced(function* (conversation: ConversationId, rows: ReadonlyArray<Row>) {
    const [row] = rows
    if (row === undefined) return yield* new UnknownConversation({ conversation })
    return row.crdt_state ?? Document.initial(row.raw_text)
  })

  const read = Effect.fn("Documents.read")(function* (conversation: ConversationId) {
    const rows = yield* sql<Row>`
      SELECT crdt_state, CASE WHEN crdt_state IS NULL THEN raw_text ELSE '' END AS raw_text
      FROM conversation
      WHERE id = ${conversation}
    `
    return yield* stateIn(conversation, rows)
  })

  const save = Effect.fn("Documents.save")(
    function* (conversation: ConversationId, update: Uint8Array) {
      // The row's lock, held until the commit: nobody merges into a state that is about to be replaced.
      const rows = yield* sql<Row>`
        SELECT crdt_state, CASE WHEN crdt_state IS NULL THEN raw_text ELSE '' END AS raw_text
        FROM conversation
        WHERE id = ${conversation}
        FOR UPDATE
      `
      const state = yield* stateIn(conversation, rows)
      const merged = yield* Document.merge(state, update)
      if (Buffer.compare(state, merged) === 0) return
      yield* sql`UPDATE conversation SET crdt_state = ${Buffer.from(merged)} WHERE id = ${conversation}`
      yield* announcements.announce([edited(conversation, update)])
    },
    (body) =>
      Transaction.run(body, { name: "save a change", expected: isRefusal }).pipe(
        Effect.provideService(Database.Database, database)
      )
  )

  const create = Effect.fn("Documents.create")(
    function* (conversation: ConversationId) {
      yield* sql`
        INSERT INTO "user" (id, email, display_name, created_at)
        VALUES (${demoId}, 'demo@two-tab-sync.invalid', 'Demonstration', now())
        ON CONFLICT (id) DO NOTHING
      `
      yield* sql`
        INSERT INTO class (id, name, owner_id, invite_code, created_at)
        VALUES (${demoId}, 'Two tabs in sync', ${demoId}, 'TWO-TAB-SYNC', now())
        ON CONFLICT (id) DO NOTHING
      `
      yield* sql`
        INSERT INTO conversation (id, class_id, owner_id, raw_text, created_at)
        VALUES (${conversation}, ${demoId}, ${demoId}, '', now())
        ON CONFLICT (id) DO NOTHING
      `
    },
    (body) =>
      Transaction.run(body, { name: "make a text" }).pipe(Effect.provideService(Database.Database, database))
  )

  return Documents.of({ read, save, create })
})

/** The texts of the program's database. */
export const layer = Layer.effect(Documents, make)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

interface Row {
  readonly crdt_state: Uint8Array | null
  readonly raw_text: string
}

/** The user and the class that the texts of this program belong to. */
const demoId = "00000000-0000-4000-8000-000000000001"

/** A change that is refused is no fault of the program: its rollback is logged at WARNING. */
const isRefusal = (error: unknown): boolean =>
  Predicate.isTagged(error, "UnknownConversation") ||
  Predicate.isTagged(error, "BadUpdate") ||
  Predicate.isTagged(error, "TextTooLong")
