import { assert, describe, it } from "../support/it.js"
import * as FastCheck from "effect/FastCheck"
import { difference } from "../../examples/two-tab-sync/client/difference.js"

const applied = (before: string, after: string, caret: number) => {
  const { deleted, index, inserted } = difference(before, after, caret)
  return before.slice(0, index) + inserted + before.slice(index + deleted)
}

/** As Yjs will send it: half a character would come back as another. */
const isWhole = (text: string) => Buffer.from(text).toString() === text

describe("the difference of two texts", () => {
  it("is what was typed, where the caret is", () => {
    assert.deepStrictEqual(difference("aaa", "aaaa", 1), { index: 0, deleted: 0, inserted: "a" })
    assert.deepStrictEqual(difference("aaa", "aaaa", 3), { index: 2, deleted: 0, inserted: "a" })
    assert.deepStrictEqual(difference("aaa", "aa", 1), { index: 1, deleted: 1, inserted: "" })
    assert.deepStrictEqual(difference("one two", "one 2", 5), { index: 4, deleted: 3, inserted: "2" })
    assert.deepStrictEqual(difference("same", "same", 2), { index: 2, deleted: 0, inserted: "" })
  })

  it("is the smallest when the caret is elsewhere", () => {
    assert.deepStrictEqual(difference("long text", "a long text", 11), {
      index: 0,
      deleted: 0,
      inserted: "a "
    })
  })

  it("cuts through no character", () => {
    assert.deepStrictEqual(difference("🎉", "🎈", 2), { index: 0, deleted: 2, inserted: "🎈" })
  })

  it("makes one of the other, whatever they are", () => {
    const text = FastCheck.array(FastCheck.constantFrom("a", "b", "🎉", "🎈", "\n"), { maxLength: 12 }).map(
      (parts) => parts.join("")
    )
    FastCheck.assert(
      FastCheck.property(text, text, FastCheck.nat(24), (before, after, caret) => {
        const { inserted } = difference(before, after, Math.min(caret, after.length))
        assert.strictEqual(applied(before, after, Math.min(caret, after.length)), after)
        assert.isTrue(isWhole(inserted))
      }),
      { numRuns: 2000 }
    )
  })
})
