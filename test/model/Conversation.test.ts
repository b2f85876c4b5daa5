import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "../support/it.js"
import { deepStrictEqual } from "@effect/vitest/utils"
import * as Context from "effect/Context"
import * as Either from "effect/Either"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as DomainError from "../../src/model/DomainError.js"
import * as User from "../../src/model/User.js"
import { TestDatabase } from "../../src/testing/index.js"
import * as Transaction from "../../src/Transaction.js"
import {
  bodyText,
  loader,
  Repositories,
  someClass,
  someConversation,
  statements,
  TestLayer
} from "./support.js"

const nothing = Conversation.ConversationId.make("00000000-0000-4000-8000-000000000000")

const bytes = (...values: ReadonlyArray<number>) => new Uint8Array(values)

/** A state that only ever grows, like that of a document: a merge keeps what both have. */
const union = (stored: Uint8Array | null, update: Uint8Array) =>
  Uint8Array.from(new Set([...(stored ?? []), ...update])).sort()

/**
 * What an application does with full states: read, merge, save, and again if somebody was faster.
 */
const saveUntilSaved = (
  conversations: typeof Conversation.ConversationRepository.Service,
  id: Conversation.ConversationId,
  update: Uint8Array
) =>
  Effect.gen(function* () {
    const { state, version } = yield* conversations.crdtState(id)
    return yield* conversations.saveCrdtState(id, { expected: version, state: union(state, update) })
  }).pipe(Effect.retry({ while: (error) => error._tag === "StaleCrdtState" }))

layer(TestLayer, { excludeTestServices: true })("Conversation", (it) => {
  it.effect("comes back as it was: any text to the character, any bytes", () =>
    Effect.gen(function* () {
      const conversations = yield* Conversation.ConversationRepository
      const { klass, owner } = yield* someClass
      const runPromise = Runtime.runPromise(yield* Effect.runtime())
      const property = FastCheck.asyncProperty(
        bodyText,
        FastCheck.option(FastCheck.uint8Array({ maxLength: 300 })),
        (rawText, crdtState) =>
          runPromise(
            Effect.gen(function* () {
              const input = { classId: klass.id, ownerId: owner.id, rawText, crdtState }
              const made = yield* conversations.create(input)
              deepStrictEqual([made.rawText, made.crdtState], [rawText, crdtState])
              deepStrictEqual(yield* conversations.findById(made.id), Option.some(made))
              const { conversation } = yield* conversations.insertOrGet({ ...input, id: made.id })
              deepStrictEqual(conversation, made)
            })
          )
      )
      yield* Effect.promise(() => FastCheck.assert(property, { numRuns: 150 }))
      const all = yield* Stream.runCollect(conversations.streamByClass(klass.id))
      const many = Array.from(all, ({ classId, crdtState, ownerId, rawText }) => ({
        classId,
        crdtState,
        ownerId,
        rawText
      }))
      yield* conversations.insertMany(many)
      const again = yield* Stream.runCollect(conversations.streamByClass(klass.id))
      const texts = (list: Iterable<Conversation.Conversation>) =>
        Array.from(list, ({ crdtState, rawText }) => JSON.stringify([rawText, crdtState])).sort()
      deepStrictEqual(texts(again), [...texts(all), ...texts(all)].sort())
    })
  )

  it.effect(
    "keeps line ends, tabs and blank lines, and refuses NUL, other controls and half characters",
    () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const rawText = "\n\n  Human:\tHi\r\n\r\n\nAssistant: 🙂 \n\n"
        const changed = yield* conversations.update(conversation.id, { rawText })
        assert.strictEqual(changed.rawText, rawText)
        for (const [text, code] of [
          ["a\u0000", "U+0000"],
          ["a\u0008", "U+0008"],
          ["a\u001b[0m", "U+001B"],
          ["a\u007f", "U+007F"],
          ["a\u0085", "U+0085"],
          ["a\ud83d", "U+D83D"]
        ] as const) {
          const error = yield* Effect.flip(conversations.update(conversation.id, { rawText: text }))
          assert.strictEqual(
            error.message,
            `Conversation: rawText must not contain control characters or broken surrogates, and has ${code} at position 1`
          )
        }
      })
  )

  it.effect("says what is in the way", () =>
    Effect.gen(function* () {
      const conversations = yield* Conversation.ConversationRepository
      const { conversation, klass, owner } = yield* someConversation
      const other = yield* someClass
      const input = { classId: klass.id, ownerId: owner.id, rawText: "" }
      const noClass = { ...input, classId: nothing }
      const noOwner = { ...input, ownerId: nothing }
      const save = { state: bytes(1), expected: Conversation.crdtVersion(null) }
      const errors = yield* Effect.all([
        Effect.flip(conversations.create(noClass)),
        Effect.flip(conversations.create(noOwner)),
        Effect.flip(conversations.create({ ...input, id: conversation.id })),
        Effect.flip(conversations.insertOrGet({ ...noClass, id: nothing })),
        Effect.flip(conversations.insertOrGet({ ...input, classId: other.klass.id, id: conversation.id })),
        Effect.flip(conversations.upsert({ ...input, ownerId: other.owner.id, id: conversation.id })),
        Effect.flip(conversations.insertMany([input, noOwner])),
        Effect.flip(conversations.update(nothing, { rawText: "" })),
        Effect.flip(conversations.delete(nothing)),
        Effect.flip(conversations.crdtState(nothing)),
        Effect.flip(conversations.saveCrdtState(nothing, save)),
        Effect.flip(conversations.mergeCrdtState(nothing, () => Effect.succeed(bytes(1))))
      ])
      deepStrictEqual(
        errors.map(({ _tag }) => _tag),
        [
          "ClassNotFound",
          "UserNotFound",
          "IdTaken",
          "ClassNotFound",
          "IdTaken",
          "IdTaken",
          "UserNotFound",
          ...Array.from({ length: 5 }, () => "ConversationNotFound" as const)
        ]
      )
      for (const error of errors) assert.isTrue(DomainError.isDomainError(error))
    })
  )

  it.effect("is made once by a double click under one id, and its text replaced by an upsert", () =>
    Effect.gen(function* () {
      const conversations = yield* Conversation.ConversationRepository
      const { klass, owner } = yield* someClass
      const { id } = yield* Conversation.make({ classId: klass.id, ownerId: owner.id, rawText: "" })
      const input = { id, classId: klass.id, ownerId: owner.id, rawText: "First", crdtState: bytes(1) }
      const results = yield* Effect.replicateEffect(Transaction.run(conversations.insertOrGet(input)), 20, {
        concurrency: "unbounded"
      })
      assert.strictEqual(results.filter(({ created }) => created).length, 1)
      const { conversation, created } = yield* conversations.upsert({
        ...input,
        rawText: "Second",
        crdtState: null
      })
      deepStrictEqual([created, conversation.rawText, conversation.crdtState], [false, "Second", bytes(1)])
      assert.strictEqual(yield* conversations.countByOwner(owner.id), 1)
    })
  )

  it.effect("is listed by owner and by class, with the beginning of its text", () =>
    Effect.gen(function* () {
      const conversations = yield* Conversation.ConversationRepository
      const { klass, owner } = yield* someClass
      const other = yield* someClass
      const rawText = "🙂".repeat(1000)
      yield* conversations.insertMany([
        ...Array.from({ length: 5 }, () => ({ classId: klass.id, ownerId: owner.id, rawText })),
        { classId: klass.id, ownerId: other.owner.id, rawText }
      ])
      const own = yield* conversations.listByOwner(owner.id, { limit: 3 })
      const rest = yield* conversations.listByOwner(owner.id, { limit: 3, cursor: own.next })
      assert.strictEqual(new Set([...own.items, ...rest.items].map(({ id }) => id)).size, 5)
      deepStrictEqual([rest.items.length, rest.next], [2, undefined])
      const { items } = yield* conversations.listByClass(klass.id, { order: "newest-first" })
      assert.strictEqual(items.length, 6)
      for (const item of items) {
        assert.strictEqual(item.excerpt, "🙂".repeat(200))
        assert.notProperty(item, "crdtState")
      }
      const error = yield* Effect.flip(conversations.listByClass(klass.id, { cursor: own.next }))
      assert.strictEqual(error._tag, "InvalidPageRequest")
    })
  )

  describe("a save of the whole state", () => {
    it.effect("is refused when another one came first, and changes nothing then", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const none = Conversation.crdtVersion(null)
        const first = yield* conversations.saveCrdtState(conversation.id, { expected: none, state: bytes(1) })
        assert.strictEqual(first, Conversation.crdtVersion(bytes(1)))
        const error = yield* Effect.flip(
          conversations.saveCrdtState(conversation.id, { expected: none, state: bytes(2) })
        )
        deepStrictEqual(
          error._tag === "StaleCrdtState" ? [error.conversationId, error.expected, error.stored] : error,
          [conversation.id, none, first]
        )
        deepStrictEqual(yield* conversations.crdtState(conversation.id), {
          state: bytes(1),
          version: first
        })
        const empty = yield* conversations.saveCrdtState(conversation.id, { expected: first, state: bytes() })
        assert.notStrictEqual(empty, none)
      })
    )

    it.effect("can be sent again when its answer was lost", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const save = { expected: Conversation.crdtVersion(null), state: bytes(1, 2, 3) }
        const first = yield* conversations.saveCrdtState(conversation.id, save)
        assert.strictEqual(yield* conversations.saveCrdtState(conversation.id, save), first)
      })
    )

    it.effect("notices what a program stored that knows nothing of versions", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const sql = yield* PgClient
        const { conversation } = yield* someConversation
        const { version } = yield* conversations.crdtState(conversation.id)
        yield* sql`UPDATE conversation SET crdt_state = ${bytes(9)} WHERE id = ${conversation.id}`
        const error = yield* Effect.flip(
          conversations.saveCrdtState(conversation.id, { expected: version, state: bytes(1) })
        )
        assert.strictEqual(error._tag, "StaleCrdtState")
      })
    )

    it.effect("is not disturbed by changes of the text", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const { version } = yield* conversations.crdtState(conversation.id)
        yield* conversations.update(conversation.id, { rawText: "Changed" })
        yield* conversations.saveCrdtState(conversation.id, { expected: version, state: bytes(1) })
        const stored = yield* Effect.flatten(conversations.findById(conversation.id))
        deepStrictEqual([stored.rawText, stored.crdtState], ["Changed", bytes(1)])
      })
    )

    it.effect("of 20 at once is one save and 19 conflicts", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const { version } = yield* conversations.crdtState(conversation.id)
        const exits = yield* Effect.forEach(
          Array.from({ length: 20 }, (_, n) => bytes(n)),
          (state) =>
            Effect.either(conversations.saveCrdtState(conversation.id, { expected: version, state })),
          { concurrency: "unbounded" }
        )
        const stale = exits.filter((exit) => exit._tag === "Left" && exit.left._tag === "StaleCrdtState")
        assert.strictEqual(stale.length, 19)
        const { version: stored } = yield* conversations.crdtState(conversation.id)
        const saved = exits.find(Either.isRight)
        assert.strictEqual(saved?.right, stored)
      }).pipe(Effect.repeatN(4))
    )
  })

  describe("a merge into the stored state", () => {
    it.effect("writes nothing when there is nothing new", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const merge = statements(
          conversations.mergeCrdtState(conversation.id, (stored) => Effect.succeed(union(stored, bytes(1))))
        )
        const first = yield* merge
        const second = yield* merge
        deepStrictEqual([first.statements, first.transactions], [2, 1])
        deepStrictEqual([second.statements, second.transactions], [1, 1])
        const { changed, ...saved } = yield* first.result
        assert.isTrue(changed)
        deepStrictEqual(yield* second.result, { ...saved, changed: false })
      })
    )

    it.effect("begins with the text where there is no state", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const seen: Array<unknown> = []
        const merge = conversations.mergeCrdtState(conversation.id, (...stored) => {
          seen.push(stored)
          return Effect.succeed(bytes(1))
        })
        yield* merge
        yield* merge
        deepStrictEqual(seen, [
          [null, conversation.rawText],
          [bytes(1), null]
        ])
      })
    )

    it.effect("that fails stores nothing, and is logged as what it is", () =>
      Effect.gen(function* () {
        const conversations = yield* Conversation.ConversationRepository
        const { conversation } = yield* someConversation
        const log: Array<string> = []
        const logger = Logger.replace(
          Logger.defaultLogger,
          Logger.make(({ logLevel }) => log.push(logLevel.label))
        )
        const failing = <E>(error: E) =>
          Effect.flip(conversations.mergeCrdtState(conversation.id, () => Effect.fail(error))).pipe(
            Effect.provide(logger)
          )
        const expected = new Class.InviteCodeTaken()
        assert.strictEqual((yield* failing(expected))._tag, "InviteCodeTaken")
        assert.strictEqual(yield* failing("broken document"), "broken document")
        deepStrictEqual(log, ["WARN", "ERROR"])
        const { state } = yield* conversations.crdtState(conversation.id)
        assert.isNull(state)
      })
    )
  })

  it.effect("loses no save of two processes that merge and overwrite at the same time", () =>
    Effect.gen(function* () {
      const url = yield* TestDatabase.make({ loader })
      const process = Layer.provideMerge(
        Repositories,
        Database.layer({ url, minConnections: 1, maxConnections: 5 })
      )
      const one = yield* Layer.build(Layer.fresh(process))
      const other = yield* Layer.build(Layer.fresh(process))
      const { conversation } = yield* Effect.provide(someConversation, one)
      const updates = Array.from({ length: 60 }, (_, n) => bytes(n))
      yield* Effect.forEach(
        updates,
        (update, n) => {
          const conversations = Context.get(n % 2 === 0 ? one : other, Conversation.ConversationRepository)
          return n % 3 === 0
            ? Effect.asVoid(saveUntilSaved(conversations, conversation.id, update))
            : Effect.asVoid(
                conversations.mergeCrdtState(conversation.id, (stored) =>
                  Effect.succeed(union(stored, update))
                )
              )
        },
        { concurrency: "unbounded", discard: true }
      )
      const conversations = Context.get(one, Conversation.ConversationRepository)
      const { state } = yield* conversations.crdtState(conversation.id)
      deepStrictEqual(state, bytes(...updates.keys()))
    }).pipe(Effect.scoped)
  )

  it.effect("keeps its query budget", () =>
    Effect.gen(function* () {
      const conversations = yield* Conversation.ConversationRepository
      const { conversation, klass, owner } = yield* someConversation
      const doomed = yield* conversations.create({ classId: klass.id, ownerId: owner.id, rawText: "" })
      const { id } = conversation
      const input = { classId: klass.id, ownerId: owner.id, rawText: "" }
      const fresh = Effect.map(Conversation.make(input), (made) => made.id)
      const save = { expected: Conversation.crdtVersion(null), state: bytes(1) }
      const one = [1, 0] as const
      const budget: ReadonlyArray<
        readonly [string, Effect.Effect<unknown, unknown>, readonly [number, number]]
      > = [
        ["create", conversations.create(input), one],
        ["findById", conversations.findById(id), one],
        ["findManyById", conversations.findManyById([id, nothing]), one],
        ["load", Effect.forEach([id, nothing], conversations.load, { batching: true }), one],
        ["update", conversations.update(id, { rawText: "x" }), one],
        ["delete", conversations.delete(doomed.id), one],
        ["crdtState", conversations.crdtState(id), one],
        ["saveCrdtState", conversations.saveCrdtState(id, save), one],
        ["saveCrdtState of what was saved", conversations.saveCrdtState(id, save), [2, 0]],
        ["mergeCrdtState", conversations.mergeCrdtState(id, () => Effect.succeed(bytes(2))), [2, 1]],
        ["listByOwner", conversations.listByOwner(owner.id), one],
        ["listByClass", conversations.listByClass(klass.id), one],
        ["insertOrGet of a new one", conversations.insertOrGet({ ...input, id: yield* fresh }), one],
        ["insertOrGet of a stored one", conversations.insertOrGet({ ...input, id }), one],
        ["upsert of a new one", conversations.upsert({ ...input, id: yield* fresh }), one],
        ["upsert of a stored one", conversations.upsert({ ...input, id }), one],
        ["insertMany", conversations.insertMany([input, input]), one],
        ["insertStream", conversations.insertStream(Stream.make(input, input)), one],
        ["stream", Stream.runDrain(conversations.stream), one],
        ["streamByOwner", Stream.runDrain(conversations.streamByOwner(owner.id)), one],
        ["streamByClass", Stream.runDrain(conversations.streamByClass(klass.id)), one],
        ["count", conversations.count, one],
        ["countByOwner", conversations.countByOwner(owner.id), one],
        ["countByClass", conversations.countByClass(klass.id), one]
      ]
      for (const [operation, effect, allowed] of budget) {
        const sent = yield* statements(effect)
        assert.isTrue(Exit.isSuccess(sent.result), operation)
        deepStrictEqual([operation, sent.statements, sent.transactions], [operation, ...allowed])
      }
      assert.strictEqual(
        yield* Effect.flatMap(User.UserRepository, (users) => Effect.isSuccess(users.delete(owner.id))),
        true
      )
    })
  )
})
