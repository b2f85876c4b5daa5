import { PgClient } from "@effect/sql-pg/PgClient"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Tracer from "effect/Tracer"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Migrator from "../../src/Migrator.js"
import * as Class from "../../src/model/Class.js"
import * as Conversation from "../../src/model/Conversation.js"
import * as User from "../../src/model/User.js"
import { TestDatabase } from "../../src/testing/index.js"

export const loader = Migrator.fromDirectory(
  Path.resolve(Path.dirname(fileURLToPath(import.meta.url)), "../../migrations")
)

export const Repositories = Layer.mergeAll(User.layer, Class.layer, Conversation.layer)

/** The repositories on a database of their own, and that database. */
export const TestLayer = Layer.provideMerge(
  Repositories,
  TestDatabase.layer({ loader, settings: { maxConnections: 10 } })
)

/** The statements that an effect sends, and how many transactions and savepoints it opens. */
export const statements = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const tracer = yield* Effect.tracer
    const spans: Array<Tracer.Span> = []
    const recording = Tracer.make({
      span: (...args) => {
        const span = tracer.span(...args)
        spans.push(span)
        return span
      },
      context: (run, fiber) => tracer.context(run, fiber)
    })
    const result = yield* Effect.exit(Effect.withTracer(effect, recording))
    return {
      result,
      statements: spans.filter(({ attributes }) => attributes.has("db.query.text")).length,
      transactions: spans.filter(({ name }) => name === "sql.transaction").length
    }
  })

/** Takes effects out of the transaction that a test opens after this. */
export const outside = Effect.map(
  Effect.context<never>(),
  (context) =>
    <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
      Effect.mapInputContext(effect, (): Context.Context<R> => context as Context.Context<R>)
)

/**
 * Resumes when a statement waits for a lock in this database. Run it outside transactions: they see
 * one moment only.
 */
export const someoneWaits = Effect.gen(function* () {
  const sql = yield* PgClient
  yield* Effect.repeat(
    sql`
      SELECT FROM pg_catalog.pg_stat_activity
      WHERE datname = pg_catalog.current_database() AND wait_event_type = 'Lock'
    `,
    { until: (waiting) => waiting.length > 0 }
  )
})

let numbers = 0
/** Text that no other test uses. */
export const unique = (prefix: string) => `${prefix}${++numbers}`

export const newUser = (changes: Partial<User.NewUser> = {}): User.NewUser => ({
  email: `${unique("user")}@example.org`,
  displayName: "Somebody",
  ...changes
})

export const someUser = Effect.flatMap(User.UserRepository, (users) => users.create(newUser()))

export const someClass = Effect.gen(function* () {
  const owner = yield* someUser
  const classes = yield* Class.ClassRepository
  const klass = yield* classes.create({ name: "Class", ownerId: owner.id, inviteCode: unique("CODE") })
  return { owner, klass }
})

export const someConversation = Effect.gen(function* () {
  const { klass, owner } = yield* someClass
  const conversations = yield* Conversation.ConversationRepository
  const conversation = yield* conversations.create({ classId: klass.id, ownerId: owner.id, rawText: "Hello" })
  return { owner, klass, conversation }
})

/**
 * Characters of every kind that can be stored: with one, two and four bytes in UTF-8, combining,
 * emoji.
 */
const printable = FastCheck.oneof(
  FastCheck.constantFrom(...Array.from(" aZ0'\"\\{},;$1-%_\u00e9\u00df\u5b66\u202e\u0301\ufeff\ufffd🙂👩‍👩‍👧🇦🇺")),
  FastCheck.string({ unit: "binary", minLength: 1, maxLength: 1 }).filter(
    (character) => !/[\p{Cc}\p{Cs}]/u.test(character)
  )
)

/** One line with something on it, as it is stored. */
export const lineOf = (maxCharacters: number) =>
  FastCheck.array(printable, { minLength: 1, maxLength: maxCharacters })
    .map((characters) => characters.join("").trim().normalize("NFC"))
    .filter(
      (text) =>
        !/[\u2028-\u202e\u2066-\u2069]/.test(text) &&
        /[^\p{White_Space}\p{Default_Ignorable_Code_Point}]/u.test(text) &&
        Array.from(text).length <= maxCharacters
    )

/** A text of many lines. */
export const bodyText = FastCheck.array(
  FastCheck.oneof(printable, FastCheck.constantFrom("\n", "\r\n", "\t", "\n\n")),
  {
    maxLength: 200
  }
).map((characters) => characters.join(""))
