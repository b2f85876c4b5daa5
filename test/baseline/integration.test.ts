import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, layer } from "../support/it.js"
import { deepStrictEqual } from "@effect/vitest/utils"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Database from "../../src/Database.js"
import * as Migrator from "../../src/Migrator.js"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as User from "../../src/model/User.js"
import { TestDatabase } from "../../src/testing/index.js"
import * as Transaction from "../../src/Transaction.js"

/**
 * The 6 tests that PromptGrimoire has of its database (tests/integration/test_db_async.py), each in
 * its Effect form: what was a session there is a transaction here, and the schema is what the
 * migrations make.
 */

const migrations = Path.resolve(Path.dirname(fileURLToPath(import.meta.url)), "../../migrations")

const Repositories = Layer.mergeAll(User.layer, Class.layer, Conversation.layer)

const TestLayer = Layer.provideMerge(
  Repositories,
  TestDatabase.layer({
    loader: Migrator.fromDirectory(migrations),
    settings: { minConnections: 5, connectionTTL: "1 hour" }
  })
)

/** A teacher with a class and a conversation in it. */
const teacher = Effect.fnUntraced(function* (name: string) {
  const users = yield* User.UserRepository
  const classes = yield* Class.ClassRepository
  const conversations = yield* Conversation.ConversationRepository
  const owner = yield* users.create({ email: `${name}@example.com`, displayName: name })
  const klass = yield* classes.create({ name: "Class", ownerId: owner.id, inviteCode: `JOIN-${name}` })
  const conversation = yield* conversations.create({
    classId: klass.id,
    ownerId: owner.id,
    rawText: "Human: Hello\n\nAssistant: Hi there!"
  })
  return { owner, klass, conversation }
})

layer(TestLayer, { excludeTestServices: true })("PromptGrimoire's database", (it) => {
  it.effect("gives an inserted user an id and a time", () =>
    Effect.gen(function* () {
      const users = yield* User.UserRepository
      const before = yield* DateTime.now
      const { id } = yield* Transaction.run(
        users.create({ email: "inserted@example.com", displayName: "Inserted" })
      )
      const sql = yield* PgClient
      const [row] = yield* sql<{
        id: string
        created_at: Date
      }>`SELECT id, created_at FROM "user" WHERE id = ${id}`
      assert.strictEqual(row?.id, id)
      assert.isAtLeast(row?.created_at.getTime() ?? 0, DateTime.toEpochMillis(before))
    })
  )

  it.effect("finds a user that was committed in another transaction by e-mail, with equal fields", () =>
    Effect.gen(function* () {
      const users = yield* User.UserRepository
      const created = yield* Transaction.run(
        users.create({ email: "shared@example.com", displayName: "Shared", stytchMemberId: "member-1" })
      )
      const found = yield* Transaction.run(users.findByEmail("shared@example.com"))
      deepStrictEqual(found, Option.some(created))
    })
  )

  it.effect("gives a class back with the owner it was given", () =>
    Effect.gen(function* () {
      const { klass, owner } = yield* teacher("owner")
      const classes = yield* Class.ClassRepository
      const found = yield* classes.findById(klass.id)
      deepStrictEqual(
        Option.map(found, ({ ownerId }) => ownerId),
        Option.some(owner.id)
      )
    })
  )

  it.effect("creates a conversation, reads it, sets its CRDT state, and reads that", () =>
    Effect.gen(function* () {
      const { conversation } = yield* Transaction.run(teacher("conversation"))
      const conversations = yield* Conversation.ConversationRepository
      const read = yield* Transaction.run(conversations.findById(conversation.id))
      deepStrictEqual(read, Option.some(conversation))

      const state = new Uint8Array([0, 1, 2, 3])
      yield* Transaction.run(
        conversations.saveCrdtState(conversation.id, {
          expected: Conversation.crdtVersion(conversation.crdtState),
          state
        })
      )
      const verified = yield* Transaction.run(conversations.findById(conversation.id))
      deepStrictEqual(verified, Option.some({ ...conversation, crdtState: state }))
    })
  )

  it.effect("keeps 5 connections, and replaces them after an hour", () =>
    Effect.gen(function* () {
      const { config, stats } = yield* Database.Database
      const { total } = yield* stats
      assert.isAtLeast(total, 5)
      assert.strictEqual(config.minConnections, 5)
      assert.strictEqual(Duration.toHours(config.connectionTTL), 1)
      const client = yield* PgClient
      assert.strictEqual(client.config.minConnections, 5)
      deepStrictEqual(Duration.decode(client.config.connectionTTL ?? 0), Duration.hours(1))
    })
  )

  it.effect("deletes the classes and conversations of a deleted user, and nothing of anybody else", () =>
    Effect.gen(function* () {
      const gone = yield* teacher("gone")
      const stays = yield* teacher("stays")
      const classes = yield* Class.ClassRepository
      const conversations = yield* Conversation.ConversationRepository
      const guests = yield* Effect.all({
        inTheClassThatGoes: conversations.create({
          classId: gone.klass.id,
          ownerId: stays.owner.id,
          rawText: ""
        }),
        ofTheUserThatGoes: conversations.create({
          classId: stays.klass.id,
          ownerId: gone.owner.id,
          rawText: ""
        })
      })
      const sql = yield* PgClient
      const everything = sql<{ id: string }>`
        SELECT id FROM "user" UNION ALL SELECT id FROM class UNION ALL SELECT id FROM conversation ORDER BY id
      `
      const before = yield* everything

      yield* sql`DELETE FROM "user" WHERE id = ${gone.owner.id}`

      deepStrictEqual(yield* classes.findById(gone.klass.id), Option.none())
      deepStrictEqual(yield* conversations.findById(gone.conversation.id), Option.none())
      const expected = new Set<string>([
        gone.owner.id,
        gone.klass.id,
        gone.conversation.id,
        guests.inTheClassThatGoes.id,
        guests.ofTheUserThatGoes.id
      ])
      deepStrictEqual(
        yield* everything,
        before.filter(({ id }) => !expected.has(id))
      )
      deepStrictEqual(yield* conversations.findById(stays.conversation.id), Option.some(stays.conversation))
    })
  )
})
