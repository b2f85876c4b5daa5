/**
 * The shared texts in the table `conversation`: `crdt_state` holds the Yjs state. The repository
 * holds the row while a change is merged into it, so two processes that merge at the same time do
 * it one after the other.
 */
import type * as SqlError from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Database from "../../src/Database.js"
import * as Class from "../../src/model/Class.js"
import {
  type ConversationId,
  ConversationNotFound,
  ConversationRepository
} from "../../src/model/Conversation.js"
import * as User from "../../src/model/User.js"
import * as Transaction from "../../src/Transaction.js"
import { Announcements, edited } from "./Announcements.js"
import * as Document from "./Document.js"

// -----------------------------------------------------------------------------
// tag
// -----------------------------------------------------------------------------

/** The shared texts. */
export class Documents extends Context.Tag("two-tab-sync/Documents")<
  Documents,
  {
    /** The committed state of a text. */
    readonly read: (
      conversation: ConversationId
    ) => Effect.Effect<Uint8Array, ConversationNotFound | SqlError.SqlError>
    /**
     * Merges an update into a text. It is committed when this succeeds, and announced to the other
     * processes with the same commit. It can be repeated: what is already part of the text changes
     * nothing.
     */
    readonly save: (
      conversation: ConversationId,
      update: Uint8Array
    ) => Effect.Effect<
      void,
      ConversationNotFound | Document.BadUpdate | Document.TextTooLong | SqlError.SqlError
    >
    /** Makes an empty text in the class of the demonstration; one that is there stays as it is. */
    readonly create: (conversation: ConversationId) => Effect.Effect<void, SqlError.SqlError>
  }
>() {}

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

const make = Effect.gen(function* () {
  const users = yield* User.UserRepository
  const classes = yield* Class.ClassRepository
  const conversations = yield* ConversationRepository
  const database = yield* Database.Database
  const announcements = yield* Announcements

  const read = Effect.fn("Documents.read")(function* (id: ConversationId) {
    const { crdtState, rawText } = yield* Effect.mapError(
      Effect.flatten(conversations.findById(id)),
      (error) => (error._tag === "SqlError" ? error : new ConversationNotFound({ conversationId: id }))
    )
    return crdtState ?? Document.initial(rawText)
  })

  const save = Effect.fn("Documents.save")(
    function* (id: ConversationId, update: Uint8Array) {
      const { changed } = yield* conversations.mergeCrdtState(id, (state, rawText) =>
        Document.merge(state ?? Document.initial(rawText ?? ""), update)
      )
      if (changed) yield* announcements.announce([edited(id, update)])
    },
    (body) =>
      Transaction.run(body, { name: "save a change" }).pipe(
        Effect.provideService(Database.Database, database)
      )
  )

  const create = Effect.fn("Documents.create")(
    function* (id: ConversationId) {
      const { user } = yield* users.insertOrGet({
        id: demoId,
        email: "demo@two-tab-sync.invalid",
        displayName: "Demonstration"
      })
      const made = yield* classes.insertOrGet({
        id: demoId,
        name: "Two tabs in sync",
        ownerId: user.id,
        inviteCode: "TWO-TAB-SYNC"
      })
      yield* conversations.insertOrGet({ id, classId: made.class.id, ownerId: user.id, rawText: "" })
    },
    // Where the rows of the demonstration belong to somebody else, there is nothing that the
    // program could do.
    Effect.catchAll((error) => (error._tag === "SqlError" ? Effect.fail(error) : Effect.die(error)))
  )

  return Documents.of({ read, save, create })
})

/** The texts of the program's database. */
export const layer = Layer.effect(Documents, make)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The id of the user, and that of the class, that the texts of this program belong to. */
const demoId = "00000000-0000-4000-8000-000000000001"
