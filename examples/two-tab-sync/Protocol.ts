/**
 * What a tab and a server say to each other: JSON text frames over a WebSocket, Yjs updates in
 * base64.
 *
 * Every message can be sent again without harm: an update that is already part of the text changes
 * nothing.
 */
import * as Schema from "effect/Schema"
import { maxNameLength } from "./limits.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/**
 * Somebody who looks at a text: one of their tabs, by an id that it chose itself, and the name they
 * gave.
 */
export const Person = Schema.Struct({
  tab: Schema.UUID,
  name: Schema.Trim.pipe(Schema.minLength(1), Schema.maxLength(maxNameLength))
})
export type Person = typeof Person.Type

// -----------------------------------------------------------------------------
// messages
// -----------------------------------------------------------------------------

/** What a tab says. */
export const FromTab = Schema.Union(
  /**
   * I am here, and from now on I want to hear of every change. Again, with another name: I am
   * called that now.
   */
  Schema.TaggedStruct("Hello", { person: Person }),
  /** Tell me what I do not have yet; this state vector says what I have. Answered with `State`. */
  Schema.TaggedStruct("Sync", { stateVector: Schema.Uint8ArrayFromBase64 }),
  /** I changed the text. Answered with `Saved`, after the commit, or with `Refused`. */
  Schema.TaggedStruct("Update", { id: Schema.NonNegativeInt, update: Schema.Uint8ArrayFromBase64 }),
  /** I am still here; the answer to the server's `Alive`. */
  Schema.TaggedStruct("Alive", {})
)
export type FromTab = typeof FromTab.Type

/** Why a server refuses. */
export const Refusal = Schema.Literal(
  /** It is no message of this protocol. */
  "BadMessage",
  /** It is longer than `maxMessageLength`. */
  "MessageTooLong",
  /** It is no Yjs update, or one that would leave something else than plain text. */
  "BadUpdate",
  /** The text would be longer than `maxTextLength`. */
  "TextTooLong",
  /** There is no such conversation (any more). */
  "UnknownConversation",
  /** The database does not answer. Nothing was lost: send it again. */
  "Unavailable"
)
export type Refusal = typeof Refusal.Type

/** What a server says. */
export const FromServer = Schema.Union(
  /** All that the tab's state vector was lacking, and what the server has itself. */
  Schema.TaggedStruct("State", {
    update: Schema.Uint8ArrayFromBase64,
    stateVector: Schema.Uint8ArrayFromBase64
  }),
  /** Another tab changed the text, and it is committed. */
  Schema.TaggedStruct("Update", { update: Schema.Uint8ArrayFromBase64 }),
  /** The update of that id is committed. */
  Schema.TaggedStruct("Saved", { id: Schema.NonNegativeInt }),
  /** The update of that id, or whatever it was, is not. */
  Schema.TaggedStruct("Refused", {
    id: Schema.optional(Schema.NonNegativeInt),
    reason: Refusal,
    /** For people. */
    message: Schema.String
  }),
  /** Who is connected. */
  Schema.TaggedStruct("People", { people: Schema.Array(Person) }),
  /** There may be changes that this server cannot send on: ask with `Sync`. */
  Schema.TaggedStruct("Behind", {}),
  /** I am still here; answer me. */
  Schema.TaggedStruct("Alive", {})
)
export type FromServer = typeof FromServer.Type

/** Reads a frame of a tab. */
export const decode = Schema.decodeUnknown(Schema.parseJson(FromTab))

/** Writes a frame for a tab. */
export const encode = Schema.encodeSync(Schema.parseJson(FromServer))
