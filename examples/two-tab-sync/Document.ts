/**
 * The shared text as Yjs keeps it: functions from bytes to bytes. A state and an update have the
 * same form, and merging them in any order gives the same text.
 */
import * as Effect from "effect/Effect"
import * as Y from "yjs"
import * as DomainError from "../../src/model/DomainError.js"
import { maxStateBytes, maxTextLength, textName } from "./limits.js"

/** An update that is none, or that does more than change a plain text. It holds no part of it. */
export class BadUpdate extends DomainError.TaggedError("BadUpdate")<{ readonly problem: string }> {
  override get message() {
    return `The change was refused: ${this.problem}.`
  }
}

/** A change that makes the text, or its history, longer than it may be. */
export class TextTooLong extends DomainError.TaggedError("TextTooLong")<{
  readonly of: "characters" | "bytes"
  readonly length: number
  readonly limit: number
}> {
  override get message() {
    return this.of === "characters"
      ? `The text is too long: ${this.length} characters of at most ${this.limit}. Shorten it, and it will be saved.`
      : `The text was changed too often: its history has ${this.length} bytes of at most ${this.limit}.`
  }
}

/**
 * The state of a conversation that may never have been edited. Its first text comes from
 * `raw_text`, as if the author of the id 0 had typed it: two servers that do this at the same time
 * make the same state.
 */
export const initial = (rawText: string): Uint8Array => {
  const doc = new Y.Doc()
  doc.clientID = 0
  doc.getText(textName).insert(0, rawText.replaceAll(/\r\n?/g, "\n"))
  return Y.encodeStateAsUpdate(doc)
}

/**
 * A state with an update. The content of what was deleted is dropped, so a state is about as large
 * as its text and does not grow with every keystroke, as it would with `Y.mergeUpdates`.
 */
export const merge = Effect.fnUntraced(function* (state: Uint8Array, update: Uint8Array) {
  const doc = new Y.Doc()
  const text = doc.getText(textName)
  // The state comes from a column that other programs can write to, too.
  yield* Effect.try({
    try: () => {
      Y.applyUpdate(doc, state)
      Y.applyUpdate(doc, update)
    },
    catch: () => new BadUpdate({ problem: "it, or what is stored, is not a Yjs update" })
  })
  if (text.length > maxTextLength) {
    return yield* new TextTooLong({ of: "characters", length: text.length, limit: maxTextLength })
  }
  const problem = besidesText(doc, text)
  if (problem !== undefined) return yield* new BadUpdate({ problem })
  const merged = Y.encodeStateAsUpdate(doc)
  if (merged.length > maxStateBytes) {
    return yield* new TextTooLong({ of: "bytes", length: merged.length, limit: maxStateBytes })
  }
  return merged
})

/** What a tab with this state vector lacks, and what the state has. */
export const missing = (state: Uint8Array, stateVector: Uint8Array) =>
  Effect.try({
    try: () => ({
      update: Y.diffUpdate(state, stateVector),
      stateVector: Y.encodeStateVectorFromUpdate(state)
    }),
    catch: () => new BadUpdate({ problem: "the state vector, or what is stored, is not of Yjs" })
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * What a document holds that no tab shows, and that would take up room in its state for ever. What
 * is deleted may have been anything: of that Yjs keeps no more than its length.
 */
const besidesText = (doc: Y.Doc, text: Y.Text): string | undefined => {
  // The names of other types, and of attributes, stay even when all that they held is deleted.
  if (doc.share.size > 1) return "it has another type besides the text"
  if (text._map.size > 0) return "it gives the text attributes"
  for (let item = text._start; item !== null; item = item.right) {
    if (!item.deleted && !(item.content instanceof Y.ContentString)) {
      return "it holds something that is not plain text"
    }
  }
  // What builds on changes that are not there waits for them, maybe for ever.
  if (doc.store.pendingStructs !== null || doc.store.pendingDs !== null) {
    return "it builds on changes that nobody has saved"
  }
  // A textarea has line feeds only: positions in it would no longer be positions in the text.
  return text.toJSON().includes("\r") ? "it holds a carriage return" : undefined
}
