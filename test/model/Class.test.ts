import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "../support/it.js"
import { deepStrictEqual } from "@effect/vitest/utils"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Encoding from "effect/Encoding"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import * as Class from "../../src/model/Class.js"
import type * as Page from "../../src/model/Page.js"
import * as User from "../../src/model/User.js"
import * as Transaction from "../../src/Transaction.js"
import { lineOf, someClass, someConversation, someUser, statements, TestLayer, unique } from "./support.js"

const nothing = Class.ClassId.make("00000000-0000-4000-8000-000000000000")
const nobody = User.UserId.make(nothing)

const newClass = (ownerId: User.UserId, changes: Partial<Class.NewClass> = {}): Class.NewClass => ({
  name: "Class",
  ownerId,
  inviteCode: unique("C"),
  ...changes
})

/** Every page from `request` on, as long as there is another one that way. */
const pages = (ownerId: User.UserId, way: "next" | "previous", request: Page.Request) =>
  Effect.gen(function* () {
    const classes = yield* Class.ClassRepository
    const all: Array<Page.Page<Class.Class>> = []
    let cursor = request.cursor
    do {
      const page: Page.Page<Class.Class> = yield* classes.listByOwner(ownerId, { ...request, cursor })
      all.push(page)
      cursor = page[way]
    } while (cursor !== undefined)
    return all
  })

const codes = (list: ReadonlyArray<Page.Page<Class.Class>>) =>
  list.flatMap(({ items }) => items.map(({ inviteCode }) => inviteCode))

layer(TestLayer, { excludeTestServices: true })("Class", (it) => {
  it.effect("comes back as it was, by id and by invite code", () =>
    Effect.gen(function* () {
      const classes = yield* Class.ClassRepository
      const owner = yield* someUser
      const runPromise = Runtime.runPromise(yield* Effect.runtime())
      const property = FastCheck.asyncProperty(lineOf(200), lineOf(12), (name, code) =>
        runPromise(
          Effect.gen(function* () {
            const made = yield* classes.create(
              newClass(owner.id, { name, inviteCode: `${unique("")}${code}` })
            )
            assert.strictEqual(made.name, name)
            deepStrictEqual(yield* classes.findById(made.id), Option.some(made))
            deepStrictEqual(yield* classes.findByInviteCode(` ${made.inviteCode} `), Option.some(made))
          })
        )
      )
      yield* Effect.promise(() => FastCheck.assert(property, { numRuns: 100 }))
    })
  )

  it.effect(
    "has one invite code, whether its letters are composed or not, and none that cannot be stored",
    () =>
      Effect.gen(function* () {
        const classes = yield* Class.ClassRepository
        const { id: ownerId } = yield* someUser
        const code = unique("ECOLE\u0301")
        const made = yield* classes.create(newClass(ownerId, { inviteCode: code }))
        assert.strictEqual(made.inviteCode, code.normalize("NFC"))
        deepStrictEqual(yield* classes.findByInviteCode(code), Option.some(made))
        const error = yield* Effect.flip(classes.create(newClass(ownerId, { inviteCode: made.inviteCode })))
        assert.strictEqual(error._tag, "InviteCodeTaken")
        // Another program has stored it as it was typed.
        const sql = yield* PgClient
        yield* sql`UPDATE class SET invite_code = ${code} WHERE id = ${made.id}`
        assert.isTrue(Option.isSome(yield* classes.findByInviteCode(code)))
        deepStrictEqual(yield* classes.findByInviteCode(`${code}\0`), Option.none())
      })
  )

  it.effect("says what is in the way", () =>
    Effect.gen(function* () {
      const classes = yield* Class.ClassRepository
      const { klass, owner } = yield* someClass
      const other = yield* someClass
      const { inviteCode } = klass
      const errors = yield* Effect.all([
        Effect.flip(classes.create(newClass(owner.id, { inviteCode }))),
        Effect.flip(classes.create(newClass(nobody))),
        Effect.flip(classes.create(newClass(owner.id, { id: klass.id }))),
        Effect.flip(classes.create(newClass(owner.id, { inviteCode: "x".repeat(21) }))),
        Effect.flip(classes.update(other.klass.id, { inviteCode })),
        Effect.flip(classes.update(klass.id, { ownerId: nobody })),
        Effect.flip(classes.update(nothing, { name: "x" })),
        Effect.flip(classes.delete(nothing)),
        Effect.flip(classes.deletionImpact(nothing)),
        Effect.flip(classes.insertOrGet(newClass(other.owner.id, { inviteCode }))),
        Effect.flip(classes.upsert(newClass(other.owner.id, { inviteCode }))),
        Effect.flip(classes.insertOrGet(newClass(owner.id, { id: klass.id }))),
        Effect.flip(classes.insertOrGet(newClass(nobody))),
        Effect.flip(classes.insertMany([newClass(owner.id), newClass(nobody)])),
        Effect.flip(classes.insertMany([newClass(owner.id, { inviteCode })]))
      ])
      deepStrictEqual(
        errors.map(({ _tag }) => _tag),
        [
          "InviteCodeTaken",
          "UserNotFound",
          "IdTaken",
          "InvalidInput",
          "InviteCodeTaken",
          "UserNotFound",
          "ClassNotFound",
          "ClassNotFound",
          "ClassNotFound",
          "InviteCodeTaken",
          "InviteCodeTaken",
          "IdTaken",
          "UserNotFound",
          "UserNotFound",
          "InviteCodeTaken"
        ]
      )
    })
  )

  it.effect("changes what is given, and goes with its conversations", () =>
    Effect.gen(function* () {
      const classes = yield* Class.ClassRepository
      const { klass } = yield* someConversation
      const heir = yield* someUser
      const changed = yield* classes.update(klass.id, {
        name: " New ",
        ownerId: heir.id,
        inviteCode: unique("N")
      })
      deepStrictEqual([changed.name, changed.ownerId], ["New", heir.id])
      deepStrictEqual(yield* classes.findById(klass.id), Option.some(changed))
      deepStrictEqual(yield* classes.deletionImpact(klass.id), { class: 1, conversation: 1 })
      yield* classes.delete(klass.id)
      deepStrictEqual(yield* classes.findById(klass.id), Option.none())
    })
  )

  it.effect("is made once by a double click, in transactions that go on", () =>
    Effect.gen(function* () {
      const classes = yield* Class.ClassRepository
      const owner = yield* someUser
      const input = newClass(owner.id)
      const results = yield* Effect.replicateEffect(
        Transaction.run(
          Effect.zipLeft(
            classes.insertOrGet(input),
            Effect.suspend(() => classes.create(newClass(owner.id)))
          )
        ),
        20,
        { concurrency: "unbounded" }
      )
      assert.strictEqual(results.filter(({ created }) => created).length, 1)
      assert.strictEqual(new Set(results.map((result) => result.class.id)).size, 1)
      assert.strictEqual(yield* classes.countByOwner(owner.id), 21)
    }).pipe(Effect.repeatN(4))
  )

  it.effect("is renamed by an upsert, or made", () =>
    Effect.gen(function* () {
      const classes = yield* Class.ClassRepository
      const owner = yield* someUser
      const input = newClass(owner.id)
      const results = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, n) => `Name ${n}`),
        (name) => classes.upsert({ ...input, name }),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(results.filter(({ created }) => created).length, 1)
      const last = yield* classes.upsert({ ...input, name: "Last" })
      deepStrictEqual([last.created, last.class.name], [false, "Last"])
    })
  )

  describe("pages", () => {
    it.effect("are the sorted list in pieces, in both orders and both ways, whatever the times", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const classes = yield* Class.ClassRepository
        const sql = yield* PgClient
        const context = yield* Effect.runtime<Class.ClassRepository>()
        const runPromise = Runtime.runPromise(context)
        const property = FastCheck.asyncProperty(
          // Microseconds, of which a Date knows nothing, and few different ones, so that ids
          // decide.
          FastCheck.array(FastCheck.integer({ min: 0, max: 12 }), { maxLength: 25 }),
          FastCheck.integer({ min: 1, max: 8 }),
          FastCheck.constantFrom("oldest-first" as const, "newest-first" as const),
          (micros, limit, order) =>
            runPromise(
              Effect.gen(function* () {
                const owner = yield* users.create({ email: `${unique("page")}@x`, displayName: "Pages" })
                yield* classes.insertMany(micros.map(() => newClass(owner.id)))
                const rows = yield* sql<{ code: string }>`
                  WITH times AS (SELECT * FROM unnest(${micros}::int[]) WITH ORDINALITY AS times (micros, n)),
                  numbered AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM class WHERE owner_id = ${owner.id}),
                  timed AS (
                    UPDATE class SET created_at = '2026-01-21 00:00:00+00'::timestamptz + micros * interval '1 microsecond'
                    FROM numbered JOIN times USING (n)
                    WHERE class.id = numbered.id
                    RETURNING class.id, class.invite_code, class.created_at
                  )
                  SELECT invite_code AS code FROM timed ORDER BY created_at, id
                `
                const sorted = rows.map(({ code }) => code)
                const expected = order === "oldest-first" ? sorted : sorted.toReversed()

                const forward = yield* pages(owner.id, "next", { limit, order })
                deepStrictEqual(codes(forward), expected)
                assert.isUndefined(forward[0]?.previous)
                assert.strictEqual(forward.length, Math.max(1, Math.ceil(expected.length / limit)))

                const last = forward.at(-1)
                if (last?.previous !== undefined) {
                  const backward = yield* pages(owner.id, "previous", { limit, cursor: last.previous })
                  deepStrictEqual(codes([...backward.toReversed(), last]), expected)
                  const again = yield* pages(owner.id, "next", { limit, cursor: backward.at(-1)?.next })
                  deepStrictEqual(codes([...backward.slice(-1), ...again]), expected)
                }
                deepStrictEqual(
                  Array.from(
                    yield* Stream.runCollect(classes.streamByOwner(owner.id)),
                    ({ inviteCode }) => inviteCode
                  ),
                  sorted
                )
              })
            )
        )
        yield* Effect.promise(() => FastCheck.assert(property, { numRuns: 60 }))
      })
    )

    it.effect("neither repeat nor skip when rows come and go between them", () =>
      Effect.gen(function* () {
        const classes = yield* Class.ClassRepository
        const owner = yield* someUser
        const at = (second: number) => DateTime.unsafeMake(second * 1000)
        const make = (second: number) =>
          classes.create(newClass(owner.id, { name: `Class ${second}`, createdAt: at(second) }))
        const made = yield* Effect.forEach([10, 20, 30, 40, 50], make)
        const first = yield* classes.listByOwner(owner.id, { limit: 2 })
        yield* make(5)
        yield* make(35)
        const [, twenty] = made
        yield* classes.delete(twenty?.id ?? nothing)
        const rest = yield* pages(owner.id, "next", { limit: 2, cursor: first.next })
        deepStrictEqual(
          rest.flatMap(({ items }) => items.map(({ name }) => name)),
          ["Class 30", "Class 35", "Class 40", "Class 50"]
        )
      })
    )

    it.effect("lead back from where everything was deleted", () =>
      Effect.gen(function* () {
        const classes = yield* Class.ClassRepository
        const owner = yield* someUser
        const made = yield* Effect.replicateEffect(
          Effect.suspend(() => classes.create(newClass(owner.id))),
          4
        )
        const first = yield* classes.listByOwner(owner.id, { limit: 2 })
        const kept = new Set(first.items.map(({ id }) => id))
        yield* Effect.forEach(
          made.filter(({ id }) => !kept.has(id)),
          ({ id }) => classes.delete(id)
        )
        const empty = yield* classes.listByOwner(owner.id, { limit: 2, cursor: first.next })
        deepStrictEqual([empty.items, empty.next], [[], undefined])
        const back = yield* classes.listByOwner(owner.id, { limit: 2, cursor: empty.previous })
        deepStrictEqual(back.items, first.items)
      })
    )

    it.effect(
      "are refused for a cursor that is none, or another list's, or a limit that makes no sense",
      () =>
        Effect.gen(function* () {
          const classes = yield* Class.ClassRepository
          const owner = yield* someUser
          const other = yield* someUser
          yield* classes.insertMany([newClass(owner.id), newClass(owner.id)])
          const { next } = yield* classes.listByOwner(owner.id, { limit: 1 })
          const forged = (position: string) =>
            Encoding.encodeBase64Url(
              JSON.stringify({
                list: "classes by owner",
                of: owner.id,
                order: "oldest-first",
                side: "after",
                position,
                id: nothing
              })
            )
          const problemOf = (ownerId: User.UserId, request: Page.Request) =>
            Effect.map(Effect.flip(classes.listByOwner(ownerId, request)), (error) =>
              error._tag === "InvalidPageRequest" ? error.problem : error
            )
          for (const cursor of [
            "",
            "x",
            "%",
            "bnVsbA",
            forged("now"),
            forged("2026-02-31 00:00:00+00"),
            `${next}x`
          ]) {
            assert.strictEqual(yield* problemOf(owner.id, { cursor }), "not a cursor", cursor)
          }
          assert.strictEqual(yield* problemOf(other.id, { cursor: next }), "a cursor of another list")
          for (const limit of [0, -1, 1.5, Number.NaN, 1001]) {
            assert.strictEqual(yield* problemOf(owner.id, { limit }), "the limit is not from 1 to 1,000")
          }
          const injected = yield* classes.listByOwner(owner.id, { cursor: forged("2026-01-01 00:00:00+00") })
          assert.strictEqual(injected.items.length, 2)
        })
    )
  })

  it.effect("keeps its query budget", () =>
    Effect.gen(function* () {
      const classes = yield* Class.ClassRepository
      const { klass, owner } = yield* someClass
      const { next } = yield* Effect.zipRight(
        classes.create(newClass(owner.id)),
        classes.listByOwner(owner.id, { limit: 1 })
      )
      const doomed = yield* classes.create(newClass(owner.id))
      const { inviteCode } = klass
      const budget: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown>, number]> = [
        ["create", classes.create(newClass(owner.id)), 1],
        ["findById", classes.findById(klass.id), 1],
        ["findByInviteCode", classes.findByInviteCode(inviteCode), 1],
        ["findManyById", classes.findManyById([klass.id, nothing]), 1],
        ["load", Effect.forEach([klass.id, nothing], classes.load, { batching: true }), 1],
        ["update", classes.update(klass.id, { name: "x" }), 1],
        ["deletionImpact", classes.deletionImpact(klass.id), 1],
        ["delete", classes.delete(doomed.id), 1],
        ["listByOwner", classes.listByOwner(owner.id), 1],
        ["the next page", classes.listByOwner(owner.id, { cursor: next }), 1],
        ["insertOrGet of a new one", classes.insertOrGet(newClass(owner.id)), 1],
        ["insertOrGet of a stored one", classes.insertOrGet(newClass(owner.id, { inviteCode })), 1],
        ["upsert of a new one", classes.upsert(newClass(owner.id)), 1],
        ["upsert of a stored one", classes.upsert(newClass(owner.id, { inviteCode })), 1],
        ["insertMany", classes.insertMany([newClass(owner.id), newClass(owner.id)]), 1],
        ["insertStream", classes.insertStream(Stream.make(newClass(owner.id), newClass(owner.id))), 1],
        ["stream", Stream.runDrain(classes.stream), 1],
        ["streamByOwner", Stream.runDrain(classes.streamByOwner(owner.id)), 1],
        ["count", classes.count, 1],
        ["countByOwner", classes.countByOwner(owner.id), 1]
      ]
      for (const [operation, effect, allowed] of budget) {
        const sent = yield* statements(effect)
        assert.isTrue(Exit.isSuccess(sent.result), operation)
        deepStrictEqual([operation, sent.statements, sent.transactions], [operation, allowed, 0])
      }
    })
  )
})
