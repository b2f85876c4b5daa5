import { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "../support/it.js"
import { deepStrictEqual } from "@effect/vitest/utils"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as DomainError from "../../src/model/DomainError.js"
import * as User from "../../src/model/User.js"
import * as Transaction from "../../src/Transaction.js"
import {
  lineOf,
  newUser,
  outside,
  someConversation,
  someoneWaits,
  someUser,
  statements,
  TestLayer,
  unique
} from "./support.js"

const nobody = User.UserId.make("00000000-0000-4000-8000-000000000000")

/** A user that another program stored, in its own spelling. */
const legacyUser = Effect.fnUntraced(function* (email: string, member: string | null = "") {
  const sql = yield* PgClient
  const { id } = yield* User.make(newUser())
  yield* sql`
    INSERT INTO "user" (id, email, display_name, stytch_member_id, created_at)
    VALUES (${id}, ${email}, ' ', ${member}, '2026-01-21 00:00:00.123456+00')
  `
  return id
})

layer(TestLayer, { excludeTestServices: true })("User", (it) => {
  describe("what goes in", () => {
    it.effect("comes back as it was: any text of any script", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const runPromise = Runtime.runPromise(yield* Effect.runtime())
        const property = FastCheck.asyncProperty(
          lineOf(100),
          FastCheck.option(lineOf(60)),
          (displayName, member) =>
            runPromise(
              Effect.gen(function* () {
                const stytchMemberId = member === null ? null : `${member}${unique("-")}`
                const user = yield* users.create(newUser({ displayName, stytchMemberId }))
                deepStrictEqual(yield* users.findById(user.id), Option.some(user))
                assert.strictEqual(user.displayName, displayName)
                assert.strictEqual(user.stytchMemberId, stytchMemberId)
              })
            )
        )
        yield* Effect.promise(() => FastCheck.assert(property, { numRuns: 150 }))
      })
    )

    it.effect("is trimmed, and an empty member id is none", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const one = yield* users.create(newUser({ displayName: "  Ada \n", stytchMemberId: "" }))
        const other = yield* users.create(newUser({ stytchMemberId: "  " }))
        assert.strictEqual(one.displayName, "Ada")
        deepStrictEqual([one.stytchMemberId, other.stytchMemberId], [null, null])
        const changed = yield* users.update(one.id, { stytchMemberId: "" })
        assert.isNull(changed.stytchMemberId)
      })
    )

    it.effect("is measured in characters, as the columns are", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const longest = "🙂".repeat(100)
        const user = yield* users.create(newUser({ displayName: longest }))
        deepStrictEqual(
          Option.map(yield* users.findById(user.id), ({ displayName }) => displayName),
          Option.some(longest)
        )
        const error = yield* Effect.flip(users.create(newUser({ displayName: `${longest}🙂` })))
        assert.strictEqual(
          error.message,
          "User: displayName must be at most 100 characters long, and has 101"
        )
      })
    )

    it.effect("is refused with all that is wrong, without a statement and without its values", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const bad = {
          id: "secret",
          email: `secret\u0008@${"x".repeat(300)}`,
          displayName: "sec\u0000ret",
          stytchMemberId: "secret\ud800"
        }
        const { result, statements: sent } = yield* statements(Effect.flip(users.create(bad)))
        assert.strictEqual(sent, 0)
        const error = yield* result
        assert.isTrue(DomainError.isDomainError(error))
        deepStrictEqual(error._tag === "InvalidInput" ? error.issues : undefined, [
          { path: "id", message: "must be a UUID in lower case" },
          { path: "email", message: "must be at most 255 characters long, and has 308" },
          {
            path: "displayName",
            message: "must not contain control characters or broken surrogates, and has U+0000 at position 3"
          },
          {
            path: "stytchMemberId",
            message: "must not contain control characters or broken surrogates, and has U+D800 at position 6"
          }
        ])
        assert.notInclude(`${String(error)} ${JSON.stringify(error)}`, "secret")
      })
    )

    it.effect("is one line that says something, with its letters composed", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        for (const displayName of [
          "\u200b",
          " \u2060\ufe0f ",
          "two\u2028lines",
          "evil\u202egnp.exe",
          "a\u2066b"
        ]) {
          const error = yield* Effect.flip(users.create(newUser({ displayName })))
          assert.strictEqual(error._tag, "InvalidInput", JSON.stringify(displayName))
        }
        const family = yield* users.create(
          newUser({ displayName: "Jose\u0301 👩‍👩‍👧", stytchMemberId: "\u200b" })
        )
        assert.strictEqual(family.displayName, "Jos\u00e9 👩‍👩‍👧")
        assert.isNull(family.stytchMemberId)
        const stytchMemberId = unique("e\u0301")
        assert.strictEqual((yield* users.create(newUser({ stytchMemberId }))).stytchMemberId, stytchMemberId)
      })
    )

    for (const email of [
      "",
      "   ",
      "nobody",
      "a b@c",
      "@",
      "a@",
      "@b",
      "\u200b@c",
      "a@\u200b",
      "a\u2028@c"
    ]) {
      it.effect(`is no e-mail address: ${JSON.stringify(email)}`, () =>
        Effect.gen(function* () {
          const users = yield* User.UserRepository
          const error = yield* Effect.flip(users.create(newUser({ email })))
          assert.strictEqual(error._tag, "InvalidInput")
        })
      )
    }
  })

  describe("e-mail addresses", () => {
    it.effect("are one in whatever case", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const user = yield* users.create(newUser({ email: " Ünï.Code@Example.ORG " }))
        assert.strictEqual(user.email, "ünï.code@example.org")
        deepStrictEqual(yield* users.findByEmail("ÜNÏ.CODE@EXAMPLE.ORG"), Option.some(user))
        const error = yield* Effect.flip(users.create(newUser({ email: "ünï.CODE@example.org" })))
        assert.strictEqual(error._tag, "EmailTaken")
      })
    )

    it.effect("are one whether their letters are composed or not, and none with what cannot be stored", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const user = yield* users.create(newUser({ email: "Rene\u0301@example.org" }))
        assert.strictEqual(user.email, "ren\u00e9@example.org")
        deepStrictEqual(yield* users.findByEmail("ren\u00e9@example.org"), Option.some(user))
        deepStrictEqual(yield* users.findByEmail("rene\u0301@example.org"), Option.some(user))
        for (const email of ["ren\u00e9@example.org\0", "\ud800@example.org"]) {
          deepStrictEqual(yield* Transaction.run(users.findByEmail(email)), Option.none())
        }
      })
    )

    it.effect("that PostgreSQL puts into another lower case are found by their own spelling", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        for (const email of ["ΝΙΚΟΣ@example.org", "İlker@example.org", "Jose\u0301@example.org"]) {
          const id = yield* legacyUser(email, null)
          assert.strictEqual((yield* Effect.flatten(users.findByEmail(email))).id, id)
          assert.strictEqual((yield* Effect.flip(users.create(newUser({ email }))))._tag, "EmailTaken")
          assert.strictEqual((yield* users.insertOrGet(newUser({ email }))).user.id, id)
          assert.strictEqual((yield* users.upsert(newUser({ email }))).user.id, id)
          const { inserted } = yield* users.insertMany([newUser({ email })], { onConflict: "skip" })
          assert.strictEqual(inserted, 0)
          const error = yield* Effect.flip(users.insertStream(Stream.make(newUser({ email }))))
          assert.strictEqual(error._tag, "EmailTaken")
        }
      })
    )

    // In a database of its own: where rows were updated before, an index may not be used by
    // transactions of that time.
    it.effect("are looked up without a scan of the table where there is an index for it", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const sql = yield* PgClient
        /** How often an effect, in a transaction of its own, reads the whole table. */
        const scans = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
          Transaction.run(
            Effect.gen(function* () {
              // The server also counts what this connection did before and has not reported yet.
              const count = sql<{ readonly scans: number }>`
                SELECT seq_scan::int AS scans FROM pg_stat_xact_user_tables WHERE relname = 'user'
              `
              const [before] = yield* count
              yield* effect
              const [after] = yield* count
              return (after?.scans ?? 0) - (before?.scans ?? 0)
            })
          )
        const nobody = "nobody@example.com"
        const operations: ReadonlyArray<() => Effect.Effect<unknown, unknown, User.UserRepository>> = [
          () => users.findByEmail(nobody),
          () => users.create(newUser()),
          () => users.insertOrGet(newUser()),
          () => users.upsert(newUser()),
          () => Effect.flatMap(someUser, ({ id }) => users.update(id, { email: unique("NEW@") })),
          () => users.insertMany([newUser(), newUser()])
        ]
        yield* sql`
          INSERT INTO "user" (id, email, display_name, created_at)
          SELECT gen_random_uuid(), CASE WHEN n % 100 = 0 THEN 'U' ELSE 'u' END || 'ser' || n || '@example.net', 'U', now()
          FROM generate_series(1, 5000) AS n
        `
        yield* sql`ANALYZE "user"`
        for (const operation of operations) assert.isAbove(yield* scans(operation()), 0)
        yield* sql`CREATE INDEX ix_user_lower_email ON "user" (lower(email))`
        yield* sql`ANALYZE "user"`
        for (const [index, operation] of operations.entries()) {
          assert.strictEqual(yield* scans(operation()), 0, `operation ${index}`)
        }
      }).pipe(Effect.provide(TestLayer))
    )

    it.effect("that another program stored in mixed case are found, kept, and not used twice", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const id = yield* legacyUser("Legacy@Example.org")
        const found = yield* Effect.flatten(users.findByEmail("legacy@example.org"))
        deepStrictEqual([found.id, found.email, found.displayName], [id, "Legacy@Example.org", " "])

        const other = yield* someUser
        const email = "LEGACY@example.org"
        const errors = yield* Effect.all([
          Effect.flip(users.create(newUser({ email }))),
          Effect.flip(users.update(other.id, { email })),
          Effect.flip(users.insertMany([newUser({ email })]))
        ])
        deepStrictEqual(
          errors.map(({ _tag }) => _tag),
          ["EmailTaken", "EmailTaken", "EmailTaken"]
        )
        deepStrictEqual(yield* users.insertMany([newUser({ email })], { onConflict: "skip" }), {
          inserted: 0,
          skipped: 1
        })
        const got = yield* users.insertOrGet(newUser({ email }))
        deepStrictEqual([got.user.id, got.created], [id, false])
        const put = yield* users.upsert(newUser({ email, displayName: "Now trimmed" }))
        deepStrictEqual([put.user.id, put.user.displayName, put.created], [id, "Now trimmed", false])
        const own = yield* users.update(id, { email })
        assert.strictEqual(own.email, "legacy@example.org")
      })
    )
  })

  describe("changing and deleting", () => {
    it.effect("changes what is given and nothing else", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const user = yield* someUser
        deepStrictEqual(yield* users.update(user.id, {}), user)
        const renamed = yield* users.update(user.id, { displayName: "Renamed" })
        deepStrictEqual(renamed, { ...user, displayName: "Renamed" })
        deepStrictEqual(yield* users.findById(user.id), Option.some(renamed))
      })
    )

    it.effect("says who is not there", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const errors = yield* Effect.all([
          Effect.flip(users.update(nobody, { displayName: "x" })),
          Effect.flip(users.update(nobody, {})),
          Effect.flip(users.delete(nobody)),
          Effect.flip(users.deletionImpact(nobody))
        ])
        for (const error of errors) {
          assert.strictEqual(error._tag, "UserNotFound")
          assert.strictEqual(error.message, `there is no user with the id ${nobody}`)
        }
        deepStrictEqual(yield* users.findById(nobody), Option.none())
      })
    )

    it.effect("tells beforehand what a deletion takes along", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const classes = yield* Class.ClassRepository
        const conversations = yield* Conversation.ConversationRepository
        const gone = yield* someConversation
        const stays = yield* someConversation
        yield* conversations.create({ classId: gone.klass.id, ownerId: stays.owner.id, rawText: "" })
        yield* conversations.create({ classId: stays.klass.id, ownerId: gone.owner.id, rawText: "" })
        const counts = Effect.all({
          user: users.count,
          class: classes.count,
          conversation: conversations.count
        })

        const impact = yield* users.deletionImpact(gone.owner.id)
        deepStrictEqual(impact, { user: 1, class: 1, conversation: 3 })
        const before = yield* counts
        yield* users.delete(gone.owner.id)
        const after = yield* counts
        deepStrictEqual(after, {
          user: before.user - impact.user,
          class: before.class - impact.class,
          conversation: before.conversation - impact.conversation
        })
        deepStrictEqual(yield* conversations.findById(stays.conversation.id), Option.some(stays.conversation))
      })
    )
  })

  describe("conflicts", () => {
    it.effect("are told apart by the name of the constraint, not by the text of the error", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const email = "ix_user_stytch_member_id.user_pkey@example.org"
        const user = yield* users.create(newUser({ email, stytchMemberId: "ix_user_email" }))
        const errors = yield* Effect.all([
          Effect.flip(users.create(newUser({ email }))),
          Effect.flip(users.create(newUser({ stytchMemberId: "ix_user_email" }))),
          Effect.flip(users.create(newUser({ id: user.id }))),
          Effect.flip(users.insertOrGet(newUser({ stytchMemberId: "ix_user_email" }))),
          Effect.flip(users.insertOrGet(newUser({ id: user.id }))),
          Effect.flip(users.insertMany([newUser({ id: user.id })]))
        ])
        deepStrictEqual(
          errors.map(({ _tag }) => _tag),
          ["EmailTaken", "StytchMemberTaken", "IdTaken", "StytchMemberTaken", "IdTaken", "IdTaken"]
        )
        for (const error of errors) assert.notInclude(JSON.stringify(error), "ix_user")
      })
    )

    it.effect("of five at once leave one user and four errors, and nothing in the log", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const { email } = newUser()
        const log: Array<string> = []
        const exits = yield* Effect.forEach(
          [1, 2, 3, 4, 5],
          () => Effect.exit(users.create(newUser({ email }))),
          { concurrency: "unbounded" }
        ).pipe(
          Effect.provide(
            Logger.replace(
              Logger.defaultLogger,
              Logger.make(({ message }) => log.push(String(message)))
            )
          )
        )
        assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
        deepStrictEqual(log, [])
      })
    )

    it.effect("end a transaction with a warning, whoever called it, and faults with an error", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const { email } = yield* someUser
        const log: Array<string> = []
        const logger = Logger.replace(
          Logger.defaultLogger,
          Logger.make(({ logLevel }) => log.push(logLevel.label))
        )
        const clash = users.create(newUser({ email }))
        const levelOf = <E>(error: Effect.Effect<unknown, E>, options?: Transaction.TransactionOptions<E>) =>
          Effect.map(Effect.exit(Transaction.run(error, options ?? {})).pipe(Effect.provide(logger)), () =>
            log.splice(0).join()
          )
        assert.strictEqual(yield* levelOf(clash), "WARN")
        class NotInvited extends DomainError.TaggedError("NotInvited") {}
        assert.strictEqual(yield* levelOf(new NotInvited()), "WARN")
        const none = { expected: () => false }
        assert.strictEqual(yield* levelOf(new NotInvited(), none), "WARN")
        const fault = Effect.fail("a fault")
        assert.strictEqual(yield* levelOf(fault), "ERROR")
        assert.strictEqual(yield* levelOf(fault, none), "ERROR")
        assert.strictEqual(yield* levelOf(fault, { expected: (error) => error === "a fault" }), "WARN")
        // One that is expected does not hide another that is not.
        const both = Effect.failCause(Cause.parallel(Cause.fail(new NotInvited()), Cause.fail("a fault")))
        assert.strictEqual(yield* levelOf(both), "ERROR")
        assert.strictEqual(
          yield* levelOf(Effect.zipRight(Effect.ignore(clash), Effect.die("a bug"))),
          "ERROR"
        )
      })
    )

    it.effect("are survived by the transaction around a savepoint", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const { email } = yield* someUser
        const kept = yield* Transaction.run(
          Effect.gen(function* () {
            const error = yield* Effect.flip(Transaction.run(users.create(newUser({ email }))))
            assert.strictEqual(error._tag, "EmailTaken")
            return yield* someUser
          })
        )
        deepStrictEqual(yield* users.findById(kept.id), Option.some(kept))
      })
    )
  })

  describe("a double click", () => {
    it.effect("makes one user, whom all get", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const input = newUser({ stytchMemberId: unique("member") })
        const results = yield* Effect.replicateEffect(users.insertOrGet(input), 20, {
          concurrency: "unbounded"
        })
        assert.strictEqual(results.filter(({ created }) => created).length, 1)
        assert.strictEqual(new Set(results.map(({ user }) => user.id)).size, 1)
      }).pipe(Effect.repeatN(9))
    )

    it.effect("makes one user out of transactions that go on afterwards", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const input = newUser({ stytchMemberId: unique("member") })
        const results = yield* Effect.replicateEffect(
          Transaction.run(
            Effect.gen(function* () {
              const before = yield* users.insertOrGet(input)
              const other = yield* someUser
              const again = yield* users.insertOrGet({ ...input, displayName: "Again" })
              deepStrictEqual(again, { user: before.user, created: false })
              return { ...before, other }
            })
          ),
          20,
          { concurrency: "unbounded" }
        )
        assert.strictEqual(results.filter(({ created }) => created).length, 1)
        assert.strictEqual(new Set(results.map(({ user }) => user.id)).size, 1)
        for (const { other } of results) deepStrictEqual(yield* users.findById(other.id), Option.some(other))
      }).pipe(Effect.repeatN(4))
    )

    it.effect("waits for a rival that has not committed, and gets the rival's user", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const sql = yield* PgClient
        const input = newUser()
        const apart = yield* outside
        const { fiber, rival } = yield* Transaction.run(
          Effect.gen(function* () {
            const rival = yield* users.insertOrGet(input)
            const fiber = yield* Effect.forkDaemon(
              apart(statements(Transaction.run(Effect.zipRight(sql`SELECT 1`, users.insertOrGet(input)))))
            )
            yield* apart(someoneWaits)
            return { rival, fiber }
          })
        )
        const late = yield* Fiber.join(fiber)
        deepStrictEqual(yield* late.result, { user: rival.user, created: false })
        assert.strictEqual(late.statements, 3)
      })
    )

    it.effect("of an upsert keeps one of the names", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const input = newUser({ stytchMemberId: unique("member") })
        const results = yield* Effect.forEach(
          Array.from({ length: 20 }, (_, n) => `Name ${n}`),
          (displayName) =>
            users.upsert({
              ...input,
              displayName,
              stytchMemberId: displayName === "Name 7" ? null : input.stytchMemberId
            }),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(results.filter(({ created }) => created).length, 1)
        const [first] = results
        const stored = yield* Effect.flatten(users.findById(first?.user.id ?? nobody))
        assert.strictEqual(stored.stytchMemberId, input.stytchMemberId)
        assert.include(
          results.map(({ user }) => user.displayName),
          stored.displayName
        )
      })
    )
  })

  describe("load", () => {
    it.effect("answers many lookups with one statement, each with its own", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const stored = yield* Effect.replicateEffect(someUser, 30)
        const ids = [...stored.map(({ id }) => id), nobody, ...stored.map(({ id }) => id)]
        const sent = yield* statements(
          Effect.forEach(ids, (id) => Effect.withSpan(users.load(id), "somewhere"), {
            batching: true,
            concurrency: "unbounded"
          })
        )
        assert.strictEqual(sent.statements, 1)
        deepStrictEqual(yield* sent.result, [
          ...stored.map((user) => Option.some(user)),
          Option.none(),
          ...stored.map((user) => Option.some(user))
        ])
      })
    )

    it.effect("belongs to the transaction that is open", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const apart = yield* outside
        yield* Transaction.run(
          Effect.gen(function* () {
            const uncommitted = yield* Effect.replicateEffect(someUser, 3)
            const ids = uncommitted.map(({ id }) => id)
            const expected = uncommitted.map((user) => Option.some(user))
            const inside = yield* statements(Effect.forEach(ids, users.load, { batching: true }))
            deepStrictEqual(yield* inside.result, expected)
            assert.strictEqual(inside.statements, 1)
            const nested = yield* statements(
              Transaction.run(Effect.forEach(ids, users.load, { batching: true }))
            )
            deepStrictEqual(yield* nested.result, expected)
            assert.strictEqual(nested.statements, 1)
            const elsewhere = yield* apart(Effect.forEach(ids, users.load, { batching: true }))
            deepStrictEqual(elsewhere, [Option.none(), Option.none(), Option.none()])
          })
        )
      })
    )

    it.effect("answers each of a batch in the transaction that it was made in", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const stored = yield* someUser
        const ofItsOwn = Transaction.run(
          Effect.gen(function* () {
            const uncommitted = yield* someUser
            const [own, other] = yield* Effect.forEach([uncommitted.id, stored.id], users.load, {
              batching: true
            })
            deepStrictEqual([own, other], [Option.some(uncommitted), Option.some(stored)])
            const [one] = yield* Effect.all([users.load(uncommitted.id)])
            deepStrictEqual(one, Option.some(uncommitted))
            return yield* Effect.fail("rolled back" as const)
          })
        )
        const outcomes = yield* Effect.all(
          [Effect.flip(ofItsOwn), users.load(stored.id), Effect.flip(ofItsOwn), users.load(stored.id)],
          { batching: true, concurrency: "unbounded" }
        )
        deepStrictEqual(outcomes, ["rolled back", Option.some(stored), "rolled back", Option.some(stored)])
      })
    )

    it.effect("gives a failure to all who asked", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const wrong = "no uuid" as User.UserId
        const error = yield* Effect.flip(Effect.forEach([nobody, wrong], users.load, { batching: true }))
        assert.strictEqual(error._tag, "SqlError")
      })
    )
  })

  describe("findManyById", () => {
    it.effect("finds whom there are, with one statement that an interruption cancels", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const sql = yield* PgClient
        const user = yield* someUser
        deepStrictEqual(yield* users.findManyById([nobody, user.id]), new Map([[user.id, user]]))
        deepStrictEqual(yield* users.findManyById([]), new Map())
        const apart = yield* outside
        yield* Transaction.run(
          Effect.gen(function* () {
            yield* sql`LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE`
            const fiber = yield* Effect.forkDaemon(apart(users.findManyById([nobody])))
            yield* apart(someoneWaits)
            assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(fiber)))
          })
        )
      })
    )
  })

  describe("insertMany", () => {
    it.effect("inserts a batch with one statement, and more in one transaction", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const before = yield* users.count
        const many = function* (count: number) {
          for (let n = 0; n < count; n++) yield newUser()
        }
        const none = yield* statements(users.insertMany([]))
        deepStrictEqual([none.statements, none.transactions], [0, 0])
        const one = yield* statements(users.insertMany(many(1000)))
        deepStrictEqual([one.statements, one.transactions], [1, 0])
        const more = yield* statements(users.insertMany(many(2500)))
        deepStrictEqual([more.statements, more.transactions], [3, 1])
        deepStrictEqual(yield* more.result, { inserted: 2500, skipped: 0 })
        assert.strictEqual(yield* users.count, before + 3500)
      })
    )

    it.effect("refuses batches that hold nothing", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        for (const batchRows of [0, -1, Number.NaN]) {
          const error = yield* Effect.flip(users.insertMany([newUser()], { batchRows }))
          assert.include(String(error), "batchRows must be at least 1")
        }
      })
    )

    it.effect("inserts none when one cannot be, and says which is malformed", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const before = yield* users.count
        const taken = yield* someUser
        const fresh = () => Array.from({ length: 30 }, () => newUser())
        const clash = yield* Effect.flip(
          users.insertMany([...fresh(), newUser({ email: taken.email })], { batchRows: 10 })
        )
        assert.strictEqual(clash._tag, "EmailTaken")
        const malformed = yield* Effect.flip(
          users.insertMany([...fresh(), newUser({ displayName: "\u0007" })], { batchRows: 10 })
        )
        assert.strictEqual(
          malformed.message,
          "User: 30.displayName must not contain control characters or broken surrogates, and has U+0007 at position 0"
        )
        assert.strictEqual(yield* users.count, before + 1)
      })
    )

    it.effect("leaves out what is there already, and what comes twice", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        const taken = yield* someUser
        const twice = newUser()
        const result = yield* users.insertMany([newUser({ email: taken.email }), twice, newUser(), twice], {
          onConflict: "skip",
          batchRows: 3
        })
        deepStrictEqual(result, { inserted: 2, skipped: 2 })
        deepStrictEqual(yield* users.findById(taken.id), Option.some(taken))
      })
    )
  })

  describe("stream", () => {
    it.effect("gives every user, and its connection back when it is left early", () =>
      Effect.gen(function* () {
        const users = yield* User.UserRepository
        yield* users.insertMany(Array.from({ length: 300 }, () => newUser()))
        const all = yield* Stream.runCollect(users.stream)
        assert.strictEqual(all.length, yield* users.count)
        const { stats } = yield* Database.Database
        for (let n = 0; n < 20; n++) yield* Stream.runDrain(Stream.take(users.stream, 1))
        assert.strictEqual((yield* stats).busy, 0)
      })
    )
  })

  it.effect("keeps its query budget", () =>
    Effect.gen(function* () {
      const users = yield* User.UserRepository
      const user = yield* someUser
      const doomed = yield* someUser
      const budget: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown>, number]> = [
        ["create", users.create(newUser()), 1],
        ["findById", users.findById(user.id), 1],
        ["findByEmail", users.findByEmail(user.email), 1],
        ["findManyById", users.findManyById([user.id, nobody]), 1],
        ["load", users.load(user.id), 1],
        ["update", users.update(user.id, { displayName: "x", email: newUser().email }), 1],
        ["deletionImpact", users.deletionImpact(user.id), 1],
        ["delete", users.delete(doomed.id), 1],
        ["insertOrGet of a new one", users.insertOrGet(newUser()), 1],
        ["insertOrGet of a stored one", users.insertOrGet(newUser({ email: user.email })), 1],
        ["upsert of a new one", users.upsert(newUser()), 1],
        ["upsert of a stored one", users.upsert(newUser({ email: user.email })), 1],
        ["insertMany", users.insertMany([newUser(), newUser()]), 1],
        ["insertStream", users.insertStream(Stream.make(newUser(), newUser())), 2],
        ["stream", Stream.runDrain(users.stream), 1],
        ["count", users.count, 1]
      ]
      for (const [operation, effect, allowed] of budget) {
        const sent = yield* statements(effect)
        assert.isTrue(Exit.isSuccess(sent.result), operation)
        deepStrictEqual([operation, sent.statements, sent.transactions], [operation, allowed, 0])
      }
    })
  )
})
