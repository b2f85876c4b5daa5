/**
 * Conversations: the rows of the table `conversation`. A conversation belongs to a class and to a user, and carries the text
 * that was pasted and the state of the document that grows from it (a Yjs document, to this library just bytes).
 *
 * {@link Conversation} is a row as it is read; {@link NewConversation} is what goes in, and is checked.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Crypto from "node:crypto"
import * as Class from "./Class.js"
import * as Input from "./Input.js"
import * as Text from "./Text.js"
import * as User from "./User.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** The name of the table. */
export const table = "conversation"

/** The id of a conversation. */
export const ConversationId = Schema.UUID.annotations({ message: () => "must be a UUID" }).pipe(
  Schema.brand("ConversationId")
)
export type ConversationId = typeof ConversationId.Type

/** A conversation as the database has it. Encoded it is JSON, with the state in Base64. */
export const Conversation = Schema.Struct({
  id: ConversationId,
  classId: Class.ClassId,
  ownerId: User.UserId,
  /** The text as it was pasted, of any length. */
  rawText: Schema.String,
  /** The state of the document; null before the first save. */
  crdtState: Schema.NullOr(Schema.Uint8ArrayFromBase64),
  createdAt: Schema.DateTimeUtc
})
export interface Conversation extends Schema.Schema.Type<typeof Conversation> {}

/** What a conversation is made of; id, state and time are made up where they are left out. */
export const NewConversation = Schema.Struct({
  id: Schema.optional(ConversationId),
  classId: Class.ClassId,
  ownerId: User.UserId,
  rawText: Text.body,
  crdtState: Schema.optional(Schema.NullOr(Schema.Uint8ArrayFromSelf)),
  createdAt: Schema.optional(Schema.DateTimeUtcFromSelf)
})
export type NewConversation = typeof NewConversation.Encoded

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** A conversation that is not stored yet, with a random id (UUID version 4), no state and the current time. */
export const make = (input: NewConversation): Effect.Effect<Conversation, Input.InvalidInput> => makeAt(input)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const decodeNew = Input.decode("Conversation", NewConversation)

const makeAt = Effect.fnUntraced(function* (input: NewConversation, prefix?: string) {
  const { classId, crdtState, createdAt, id, ownerId, rawText } = yield* decodeNew(input, prefix)
  const conversation: Conversation = {
    id: id ?? ConversationId.make(Crypto.randomUUID()),
    classId,
    ownerId,
    rawText,
    crdtState: crdtState ?? null,
    createdAt: createdAt ?? (yield* DateTime.now)
  }
  return conversation
})
