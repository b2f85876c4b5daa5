import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, layer } from "../support/it.js"
import { deepStrictEqual } from "@effect/vitest/utils"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as User from "../../src/model/User.js"
import { bodyText, lineOf, newUser, someClass, someUser, TestLayer, unique } from "./support.js"

const nobody = User.UserId.make("00000000-0000-4000-8000-000000000000")

layer(TestLayer, { excludeTestServices: true })("insertStream", (it) => {
  it.effect("stores what create stores, whatever the texts and bytes", () =>
    Effect.gen(function* () {
      const users = yield* User.UserRepository
      const conversations = yield* Conversation.ConversationRepository
      const { klass, owner } = yield* someClass
      const runPromise = Runtime.runPromise(yield* Effect.runtime())
      const property = FastCheck.asyncProperty(
        FastCheck.array(
          FastCheck.tuple(
            lineOf(60),
            FastCheck.option(lineOf(30)),
            bodyText,
            FastCheck.option(FastCheck.uint8Array())
          ),
          { maxLength: 5 }
        ),
        (generated) =>
          runPromise(
            Effect.gen(function* () {
              for (const [displayName, member, rawText, crdtState] of generated) {
                const user = () =>
                  newUser({ displayName, stytchMemberId: member === null ? "" : `${member}${unique("-")}` })
                const created = yield* users.create(user())
                const streamed = yield* User.make(user())
                assert.strictEqual(yield* users.insertStream(Stream.make(streamed)), 1)
                const stored = yield* Effect.flatten(users.findById(streamed.id))
                deepStrictEqual(stored, streamed)
                assert.strictEqual(stored.displayName, created.displayName)
                const text = yield* Conversation.make({
                  classId: klass.id,
                  ownerId: owner.id,
                  rawText,
                  crdtState
                })
                assert.strictEqual(yield* conversations.insertStream(Stream.make(text)), 1)
                deepStrictEqual(yield* Effect.flatten(conversations.findById(text.id)), text)
              }
            })
          )
      )
      yield* Effect.promise(() => FastCheck.assert(property, { numRuns: 40 }))
    })
  )

  it.effect("stores all of a stream or none, and says what was in the way", () =>
    Effect.gen(function* () {
      const users = yield* User.UserRepository
      const classes = yield* Class.ClassRepository
      const taken = yield* someUser
      const before = yield* users.count
      const fresh = Stream.take(Stream.repeatEffect(Effect.sync(() => newUser())), 3000)
      assert.strictEqual(yield* users.insertStream(fresh), 3000)
      assert.strictEqual(yield* users.count, before + 3000)
      const failing = <E>(end: Stream.Stream<User.NewUser, E>) =>
        Effect.flip(users.insertStream(Stream.concat(fresh, end)))
      const clash = yield* failing(Stream.make(newUser({ email: taken.email.toUpperCase() })))
      assert.strictEqual(clash._tag, "EmailTaken")
      const sameId = yield* failing(Stream.make(newUser({ id: taken.id })))
      assert.strictEqual(sameId._tag, "IdTaken")
      const malformed = yield* failing(Stream.make(newUser({ displayName: "\u0007" })))
      assert.strictEqual(
        malformed.message,
        "User: 3000.displayName must not contain control characters or broken surrogates, and has U+0007 at position 0"
      )
      assert.strictEqual(yield* failing(Stream.fail("mine" as const)), "mine")
      assert.strictEqual(yield* users.count, before + 3000)
      const orphan = { name: "Latin", ownerId: nobody, inviteCode: unique("CODE") }
      assert.strictEqual((yield* Effect.flip(classes.insertStream(Stream.make(orphan))))._tag, "UserNotFound")
    })
  )

  it.effect("finds an address taken that another program stored in mixed case", () =>
    Effect.gen(function* () {
      const users = yield* User.UserRepository
      const sql = yield* PgClient
      yield* sql`
        INSERT INTO "user" (id, email, display_name, created_at)
        VALUES (gen_random_uuid(), 'Streamed@Example.org', 'x', now())
      `
      const error = yield* Effect.flip(
        users.insertStream(Stream.make(newUser({ email: "streamed@example.ORG" })))
      )
      assert.strictEqual(error._tag, "EmailTaken")
    })
  )
})
