import { assert, describe, it } from "../support/it.js"
import { deepStrictEqual } from "@effect/vitest/utils"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as User from "../../src/model/User.js"

/**
 * The 20 tests that PromptGrimoire has of its models (tests/unit/test_db_models.py), each in its
 * Effect form.
 */

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

const user = User.make({ email: "test@example.com", displayName: "Test User" })
const owner = "5b0f6c1e-6a51-4f0e-9d49-0f4b2d0c9b11"
const klass = Class.make({ name: "Test Class", ownerId: owner, inviteCode: "ABC123" })
const classId = "b2f1e8de-3b21-4a60-8c31-7d6a2f6e4a10"
const conversation = Conversation.make({
  classId,
  ownerId: owner,
  rawText: "Human: Hello\n\nAssistant: Hi there!"
})

describe.each([
  { model: "User", make: user, isId: Schema.is(User.UserId) },
  { model: "Class", make: klass, isId: Schema.is(Class.ClassId) },
  { model: "Conversation", make: conversation, isId: Schema.is(Conversation.ConversationId) }
])("$model", ({ isId, make }) => {
  it.effect("has a UUID of its own as its default id", () =>
    Effect.gen(function* () {
      const [one, other] = [yield* make, yield* make]
      assert.match(one.id, uuid)
      assert.isTrue(isId(one.id))
      assert.notStrictEqual(one.id, other.id)
    })
  )

  it.live("was created now by default", () =>
    Effect.gen(function* () {
      const before = yield* DateTime.now
      const { createdAt } = yield* make
      assert.isTrue(DateTime.between(createdAt, { minimum: before, maximum: yield* DateTime.now }))
    })
  )

  it.effect("keeps its time in UTC", () =>
    Effect.gen(function* () {
      const { createdAt } = yield* make
      assert.isTrue(DateTime.isUtc(createdAt))
      assert.strictEqual(DateTime.formatIso(createdAt), "1970-01-01T00:00:00.000Z")
    })
  )
})

describe("User", () => {
  it.effect("has no Stytch member id by default", () =>
    Effect.map(user, ({ stytchMemberId }) => assert.isNull(stytchMemberId))
  )

  it.effect("keeps the e-mail address", () =>
    Effect.map(user, ({ email }) => assert.strictEqual(email, "test@example.com"))
  )

  it.effect("keeps the display name", () =>
    Effect.map(user, ({ displayName }) => assert.strictEqual(displayName, "Test User"))
  )
})

describe("Class", () => {
  it.effect("keeps the name", () => Effect.map(klass, ({ name }) => assert.strictEqual(name, "Test Class")))

  it.effect("keeps the owner's id", () =>
    Effect.map(klass, ({ ownerId }) => assert.strictEqual(ownerId, User.UserId.make(owner)))
  )

  it("is stored in the table class", () => assert.strictEqual(Class.table, "class"))
})

describe("Conversation", () => {
  it.effect("keeps the raw text with its blank lines", () =>
    Effect.map(conversation, ({ rawText }) =>
      assert.strictEqual(rawText, "Human: Hello\n\nAssistant: Hi there!")
    )
  )

  it.effect("has no CRDT state by default", () =>
    Effect.map(conversation, ({ crdtState }) => assert.isNull(crdtState))
  )

  it.effect("accepts bytes as its CRDT state", () =>
    Effect.gen(function* () {
      const crdtState = new Uint8Array([0, 1, 2, 3])
      const made = yield* Conversation.make({ classId, ownerId: owner, rawText: "", crdtState })
      deepStrictEqual(made.crdtState, crdtState)
    })
  )

  it.effect("keeps the id of its class", () =>
    Effect.map(conversation, (made) => assert.strictEqual(made.classId, Class.ClassId.make(classId)))
  )

  it.effect("keeps the id of its owner", () =>
    Effect.map(conversation, (made) => assert.strictEqual(made.ownerId, User.UserId.make(owner)))
  )
})
