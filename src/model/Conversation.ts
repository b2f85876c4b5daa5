/**
 * Conversations: the rows of the table `conversation`. A conversation belongs to a class and to a
 * user, and carries the text that was pasted and the state of the document that grows from it (a
 * Yjs document, to this library just bytes).
 *
 * {@link Conversation} is a row as it is read; {@link NewConversation} is what goes in, and is
 * checked.
 *
 * No save of the state is ever lost. `saveCrdtState` stores a whole state only where the stored one
 * is still the one that the new one was made from; `mergeCrdtState` holds the row while it merges.
 * What tells states apart is {@link CrdtVersion}, a digest of the bytes: it needs no column, so the
 * table stays the application's, it notices saves of programs that know nothing of it, as a counter
 * would not, and sending a save again whose answer was lost does no harm.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Stream from "effect/Stream"
import * as Crypto from "node:crypto"
import * as Database from "../Database.js"
import * as DatabaseError from "../DatabaseError.js"
import * as Bulk from "./Bulk.js"
import * as Class from "./Class.js"
import * as DomainError from "./DomainError.js"
import * as Input from "./Input.js"
import * as Page from "./Page.js"
import * as Rows from "./rows.js"
import { settle } from "./settle.js"
import * as Text from "./text.js"
import * as User from "./User.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** The name of the table. */
export const table = "conversation"

/** The id of a conversation. */
export const ConversationId = Text.uuid.pipe(Schema.brand("ConversationId"))
export type ConversationId = typeof ConversationId.Type

/** A conversation as the database has it. Encoded it is JSON, with the state in Base64. */
export const Conversation = Schema.Struct({
  id: ConversationId,
  classId: Class.ClassId,
  ownerId: User.UserId,
  /** The text as it was pasted, of any length. */
  rawText: Schema.String,
  /** The state of the document; null before the first save. */
  crdtState: Schema.NullOr(Schema.Uint8ArrayFromBase64),
  createdAt: Schema.DateTimeUtc
})
export type Conversation = typeof Conversation.Type

/** What a conversation is made of; id, state and time are made up where they are left out. */
export const NewConversation = Schema.Struct({
  id: Input.optional(ConversationId),
  classId: Class.ClassId,
  ownerId: User.UserId,
  rawText: Text.body,
  crdtState: Input.optional(Schema.NullOr(Schema.Uint8ArrayFromSelf)),
  createdAt: Input.optional(Schema.DateTimeUtcFromSelf)
})
export type NewConversation = Input.Of<typeof NewConversation.Encoded>

/** A conversation in a list: without its state, and with the beginning of its text. */
export interface ConversationSummary extends Omit<Conversation, "rawText" | "crdtState"> {
  /** The first 200 characters of the text. */
  readonly excerpt: string
}

/** What can be changed of a conversation; what is left out stays as it is. */
export const ConversationChanges = Schema.Struct({ rawText: Input.optional(Text.body) })
export type ConversationChanges = Input.Of<typeof ConversationChanges.Encoded>

/**
 * Tells one state from another: the SHA-256 of its bytes in hexadecimal, or `none` where there is
 * no state.
 */
export const CrdtVersion = Schema.String.pipe(
  Schema.pattern(/^(none|[0-9a-f]{64})$/),
  Schema.brand("CrdtVersion")
)
export type CrdtVersion = typeof CrdtVersion.Type

/** A state and its version. */
export interface CrdtState {
  readonly state: Uint8Array | null
  readonly version: CrdtVersion
}

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/** There is no conversation with this id. */
export class ConversationNotFound extends DomainError.TaggedError("ConversationNotFound")<{
  readonly conversationId: ConversationId
}> {
  override get message() {
    return `there is no conversation with the id ${this.conversationId}`
  }
}

/**
 * The state was not saved: it was made from another one than is stored. Read the stored one, merge,
 * and save again.
 */
export class StaleCrdtState extends DomainError.TaggedError("StaleCrdtState")<{
  readonly conversationId: ConversationId
  /** What the state was made from. */
  readonly expected: CrdtVersion
  /** What is stored. */
  readonly stored: CrdtVersion
}> {
  override get message() {
    return `the state of conversation ${this.conversationId} was not saved, because it has changed meanwhile`
  }
}

// -----------------------------------------------------------------------------
// tag
// -----------------------------------------------------------------------------

/**
 * The conversations of a database.
 *
 * Every operation joins the transaction that is open. An error that the server reports aborts that
 * transaction, as always in PostgreSQL: to go on after `ClassNotFound`, run `create` in a
 * `Transaction.run` of its own, which is a savepoint then.
 */
export class ConversationRepository extends Context.Tag("promptgrimoire-db/ConversationRepository")<
  ConversationRepository,
  {
    /** Stores a new conversation. One statement. */
    readonly create: (
      input: NewConversation
    ) => Effect.Effect<
      Conversation,
      Input.InvalidInput | Class.ClassNotFound | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /** The conversation with an id, with text and state. One statement. */
    readonly findById: (id: ConversationId) => Effect.Effect<Option.Option<Conversation>, SqlError>

    /**
     * The conversations with these ids, by id; one that is not there is left out. One statement for
     * any number of ids.
     */
    readonly findManyById: (
      ids: ReadonlyArray<ConversationId>
    ) => Effect.Effect<ReadonlyMap<ConversationId, Conversation>, SqlError>

    /**
     * The conversation with an id, without N+1: `Effect.forEach(ids, load, { batching: true })` is
     * one statement. Inside a transaction put the `forEach` there too. An interruption waits for
     * the statement; `findManyById` cancels it.
     */
    readonly load: (id: ConversationId) => Effect.Effect<Option.Option<Conversation>, SqlError>

    /** Changes a conversation, except for its state. One statement. */
    readonly update: (
      id: ConversationId,
      changes: ConversationChanges
    ) => Effect.Effect<Conversation, Input.InvalidInput | ConversationNotFound | SqlError>

    /** Deletes a conversation. One statement. */
    readonly delete: (id: ConversationId) => Effect.Effect<void, ConversationNotFound | SqlError>

    /** The state of a conversation, without its text. One statement. */
    readonly crdtState: (id: ConversationId) => Effect.Effect<CrdtState, ConversationNotFound | SqlError>

    /**
     * Stores a whole state that was made from the one of the version `expected`, and gives its
     * version. If another one is stored by now, nothing is changed and the failure is
     * `StaleCrdtState`, unless it is this very state: then it was saved already. One statement; two
     * where the state was not stored by this call.
     */
    readonly saveCrdtState: (
      id: ConversationId,
      save: { readonly state: Uint8Array; readonly expected: CrdtVersion }
    ) => Effect.Effect<CrdtVersion, ConversationNotFound | StaleCrdtState | SqlError>

    /**
     * Stores what `merge` makes of the stored state, such as `Y.mergeUpdates` of it and a new
     * update. It gets the text, for the first state to begin with, where there is no state yet, and
     * null where there is one. Meanwhile the row is locked (FOR NO KEY UPDATE): other saves wait,
     * in this process and in all others, readers do not. So `merge` should do nothing but merge.
     * Two statements, or one if `merge` gives the stored state back, in a transaction.
     */
    readonly mergeCrdtState: <E, R>(
      id: ConversationId,
      merge: (stored: Uint8Array | null, rawText: string | null) => Effect.Effect<Uint8Array, E, R>
    ) => Effect.Effect<
      {
        readonly state: Uint8Array
        readonly version: CrdtVersion
        /** Whether it is another state than was stored. */
        readonly changed: boolean
      },
      E | ConversationNotFound | SqlError,
      R
    >

    /** The conversations that a user owns, page by page. One statement for each page. */
    readonly listByOwner: (
      ownerId: User.UserId,
      page?: Page.Request
    ) => Effect.Effect<Page.Page<ConversationSummary>, Page.InvalidPageRequest | SqlError>

    /** The conversations in a class, page by page. One statement for each page. */
    readonly listByClass: (
      classId: Class.ClassId,
      page?: Page.Request
    ) => Effect.Effect<Page.Page<ConversationSummary>, Page.InvalidPageRequest | SqlError>

    /**
     * Stores a conversation under an id that the caller made up, or gives the one that is stored
     * under it already, unchanged: of any number of callers at once, one makes the row and all get
     * it. `IdTaken` if that one is of another owner or class. One statement, and one more for each
     * race that was lost.
     */
    readonly insertOrGet: (
      input: NewConversation & { readonly id: string }
    ) => Effect.Effect<
      { readonly conversation: Conversation; readonly created: boolean },
      Input.InvalidInput | Class.ClassNotFound | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /**
     * Stores a conversation under an id that the caller made up, or gives the one that is stored
     * under it already the new text; its state stays as it is. `IdTaken` if that one is of another
     * owner or class. One statement, and one more for each race that was lost.
     */
    readonly upsert: (
      input: NewConversation & { readonly id: string }
    ) => Effect.Effect<
      { readonly conversation: Conversation; readonly created: boolean },
      Input.InvalidInput | Class.ClassNotFound | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /**
     * Stores any number of conversations, or none if one of them cannot be. One statement for each
     * batch; see {@link Bulk.insert}.
     */
    readonly insertMany: (
      input: Iterable<NewConversation>,
      options?: Bulk.Options
    ) => Effect.Effect<
      Bulk.Result,
      Input.InvalidInput | Class.ClassNotFound | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /**
     * Stores all conversations of a stream, or none if one of them cannot be, and gives their
     * number: for loads that are too large to hold. One statement that copies; see {@link
     * "../Copy"}`.into` for its limits.
     */
    readonly insertStream: <E, R>(
      input: Stream.Stream<NewConversation, E, R>
    ) => Effect.Effect<
      number,
      E | Input.InvalidInput | Class.ClassNotFound | User.UserNotFound | DomainError.IdTaken | SqlError,
      R
    >

    /**
     * All conversations by id, read as they are consumed. One statement, which holds a connection
     * until the stream ends.
     */
    readonly stream: Stream.Stream<Conversation, SqlError>

    /**
     * The conversations that a user owns, the oldest first, as {@link stream} does. One statement.
     */
    readonly streamByOwner: (ownerId: User.UserId) => Stream.Stream<Conversation, SqlError>

    /** The conversations in a class, the oldest first, as {@link stream} does. One statement. */
    readonly streamByClass: (classId: Class.ClassId) => Stream.Stream<Conversation, SqlError>

    /** How many conversations there are. One statement, which scans the table. */
    readonly count: Effect.Effect<number, SqlError>

    /** How many conversations a user owns. One statement. */
    readonly countByOwner: (ownerId: User.UserId) => Effect.Effect<number, SqlError>

    /** How many conversations there are in a class. One statement. */
    readonly countByClass: (classId: Class.ClassId) => Effect.Effect<number, SqlError>
  }
>() {}

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/**
 * A conversation that is not stored yet, with a random id (UUID version 4), no state and the
 * current time.
 */
export const make = (input: NewConversation): Effect.Effect<Conversation, Input.InvalidInput> => makeAt(input)

/** The version of a state. */
export const crdtVersion = (state: Uint8Array | null): CrdtVersion =>
  CrdtVersion.make(state === null ? "none" : Crypto.createHash("sha256").update(state).digest("hex"))

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/** The conversations of the {@link Database.Database} that is provided. */
export const layer: Layer.Layer<ConversationRepository, never, Database.Database | SqlClient.SqlClient> =
  Layer.effect(
    ConversationRepository,
    Effect.suspend(() => repository)
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const decodeNew = Input.decode("Conversation", NewConversation)

const makeAt = Effect.fnUntraced(function* (input: NewConversation, prefix?: string) {
  const { classId, crdtState, createdAt, id, ownerId, rawText } = yield* decodeNew(input, prefix)
  const conversation: Conversation = {
    id: id ?? ConversationId.make(Crypto.randomUUID()),
    classId,
    ownerId,
    rawText,
    crdtState: crdtState ?? null,
    createdAt: createdAt ?? (yield* DateTime.now)
  }
  return conversation
})

const decodeChanges = Input.decode("Conversation", ConversationChanges)

interface SummaryRow {
  readonly id: ConversationId
  readonly classId: Class.ClassId
  readonly ownerId: User.UserId
  readonly excerpt: string
  readonly createdAt: Date
}

interface Row extends Omit<SummaryRow, "excerpt"> {
  readonly rawText: string
  readonly crdtState: Uint8Array | null
}

const toSummary = ({ classId, createdAt, excerpt, id, ownerId }: SummaryRow): ConversationSummary => ({
  id,
  classId,
  ownerId,
  excerpt,
  createdAt: DateTime.unsafeFromDate(createdAt)
})

const toConversation = ({ classId, crdtState, createdAt, id, ownerId, rawText }: Row): Conversation => ({
  id,
  classId,
  ownerId,
  rawText,
  crdtState: bytesOf(crdtState),
  createdAt: DateTime.unsafeFromDate(createdAt)
})

/** A copy of what the driver gives: a part of a larger buffer, of a class of Node's own. */
const bytesOf = (state: Uint8Array | null): Uint8Array | null =>
  state === null ? null : Uint8Array.from(state)

const repository = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const database = yield* Database.Database
  const inDatabase = Effect.provideService(Database.Database, database)

  const key = `id, class_id AS "classId", owner_id AS "ownerId", created_at AS "createdAt"`
  const rows = Rows.make<Row, ConversationId, Conversation>(
    sql,
    table,
    `${key}, raw_text AS "rawText", crdt_state AS "crdtState"`,
    toConversation
  )
  const { columns } = rows
  const summary = sql.literal(`${key}, left(raw_text, 200) AS excerpt`)
  const version = sql.literal("coalesce(encode(sha256(crdt_state), 'hex'), 'none')")

  const noParent =
    ({ classId, ownerId }: Partial<Conversation>) =>
    <A, E, R>(self: Effect.Effect<A, E, R>) =>
      self.pipe(
        DatabaseError.catchForeignKeyViolation(
          "conversation_class_id_fkey",
          () => new Class.ClassNotFound({ classId })
        ),
        DatabaseError.catchForeignKeyViolation(
          "conversation_owner_id_fkey",
          () => new User.UserNotFound({ userId: ownerId })
        )
      )
  const conflicts = <A, E, R>(made: Partial<Conversation>, self: Effect.Effect<A, E, R>) =>
    self.pipe(
      DatabaseError.catchUniqueViolation(
        "conversation_pkey",
        () => new DomainError.IdTaken({ model: "Conversation", id: made.id })
      ),
      noParent(made)
    )

  /**
   * Inserts a conversation, or gives the row that `stored` makes of the one with the same id, if it
   * is the same one.
   */
  const insertOr = Effect.fnUntraced(function* (made: Conversation, stored: Statement.Fragment) {
    const row = yield* settle(
      Effect.map(
        sql<Row & { readonly outcome: "stored" | "made" | "id" }>`
          WITH stored AS (${stored}),
          made AS (
            INSERT INTO conversation (id, class_id, owner_id, raw_text, crdt_state, created_at)
            SELECT ${made.id}::uuid, ${made.classId}::uuid, ${made.ownerId}::uuid, ${made.rawText}::text,
                   ${made.crdtState}::bytea, ${DateTime.formatIso(made.createdAt)}::timestamptz
            WHERE NOT EXISTS (SELECT FROM stored)
            ON CONFLICT DO NOTHING
            RETURNING ${columns}
          )
          SELECT *, 'stored' AS outcome FROM stored
          UNION ALL
          SELECT *, 'made' FROM made
          UNION ALL
          SELECT ${columns}, 'id'
          FROM conversation
          WHERE id = ${made.id}::uuid
            AND (class_id <> ${made.classId}::uuid OR owner_id <> ${made.ownerId}::uuid)
            AND NOT EXISTS (SELECT FROM stored)
        `,
        (rows) => Option.fromNullable(rows[0])
      )
    ).pipe(noParent(made))
    if (row.outcome === "id") return yield* new DomainError.IdTaken({ model: "Conversation", id: made.id })
    return { conversation: toConversation(row), created: row.outcome === "made" }
  })

  const same = ({ classId, id, ownerId }: Conversation) =>
    sql`id = ${id} AND class_id = ${classId} AND owner_id = ${ownerId}`

  return ConversationRepository.of({
    create: Effect.fn("ConversationRepository.create")(function* (input) {
      const made = yield* makeAt(input)
      yield* conflicts(
        made,
        sql`
          INSERT INTO conversation (id, class_id, owner_id, raw_text, crdt_state, created_at)
          VALUES (${made.id}, ${made.classId}, ${made.ownerId}, ${made.rawText}, ${made.crdtState},
                  ${DateTime.formatIso(made.createdAt)})
        `
      )
      return made
    }),

    findById: Effect.fn("ConversationRepository.findById")(rows.byId),

    findManyById: Effect.fn("ConversationRepository.findManyById")(rows.byIds),

    load: rows.load,

    update: Effect.fn("ConversationRepository.update")(function* (id, input) {
      const { rawText } = yield* decodeChanges(input)
      const changes = rawText === undefined ? [] : [sql`raw_text = ${rawText}`]
      const updated = yield* rows.change(id, changes)
      return yield* Effect.mapError(updated, () => new ConversationNotFound({ conversationId: id }))
    }),

    delete: Effect.fn("ConversationRepository.delete")(function* (id) {
      if (!(yield* rows.remove(id))) yield* new ConversationNotFound({ conversationId: id })
    }),

    crdtState: Effect.fn("ConversationRepository.crdtState")(function* (id) {
      const [row] = yield* sql<Pick<Row, "crdtState">>`
        SELECT crdt_state AS "crdtState" FROM conversation WHERE id = ${id}
      `
      if (row === undefined) return yield* new ConversationNotFound({ conversationId: id })
      return { state: bytesOf(row.crdtState), version: crdtVersion(row.crdtState) }
    }),

    saveCrdtState: Effect.fn("ConversationRepository.saveCrdtState")(function* (id, { expected, state }) {
      const saved = crdtVersion(state)
      // A save that waited for another one checks the version again on the row that the other one
      // left.
      const updated = yield* sql`
        UPDATE conversation SET crdt_state = ${state} WHERE id = ${id} AND ${version} = ${expected} RETURNING id
      `
      if (updated.length > 0) return saved
      const [row] = yield* sql<{ readonly stored: CrdtVersion }>`
        SELECT ${version} AS stored FROM conversation WHERE id = ${id}
      `
      if (row === undefined) return yield* new ConversationNotFound({ conversationId: id })
      if (row.stored === saved) return saved
      return yield* new StaleCrdtState({ conversationId: id, expected, stored: row.stored })
    }),

    mergeCrdtState: Effect.fn("ConversationRepository.mergeCrdtState")((id, merge) =>
      database.transact(
        Effect.gen(function* () {
          const [row] = yield* sql<Pick<Row, "crdtState"> & { readonly rawText: string | null }>`
            SELECT crdt_state AS "crdtState", CASE WHEN crdt_state IS NULL THEN raw_text END AS "rawText"
            FROM conversation
            WHERE id = ${id}
            FOR NO KEY UPDATE
          `
          if (row === undefined) return yield* new ConversationNotFound({ conversationId: id })
          const stored = bytesOf(row.crdtState)
          const state = yield* merge(stored, row.rawText)
          const version = crdtVersion(state)
          const changed = version !== crdtVersion(stored)
          if (changed) yield* sql`UPDATE conversation SET crdt_state = ${state} WHERE id = ${id}`
          return { state, version, changed }
        }),
        { name: "ConversationRepository.mergeCrdtState" }
      )
    ),

    listByOwner: Effect.fn("ConversationRepository.listByOwner")((ownerId, request = {}) =>
      Page.read({
        sql,
        list: "conversations by owner",
        of: ownerId,
        request,
        select: (window) => sql<SummaryRow & Page.Positioned>`
          SELECT ${summary}, created_at::text AS position FROM conversation WHERE owner_id = ${ownerId} ${window}
        `,
        item: toSummary
      })
    ),

    listByClass: Effect.fn("ConversationRepository.listByClass")((classId, request = {}) =>
      Page.read({
        sql,
        list: "conversations by class",
        of: classId,
        request,
        select: (window) => sql<SummaryRow & Page.Positioned>`
          SELECT ${summary}, created_at::text AS position FROM conversation WHERE class_id = ${classId} ${window}
        `,
        item: toSummary
      })
    ),

    insertOrGet: Effect.fn("ConversationRepository.insertOrGet")(function* (input) {
      const made = yield* makeAt(input)
      return yield* insertOr(made, sql`SELECT ${columns} FROM conversation WHERE ${same(made)}`)
    }),

    upsert: Effect.fn("ConversationRepository.upsert")(function* (input) {
      const made = yield* makeAt(input)
      return yield* insertOr(
        made,
        sql`UPDATE conversation SET raw_text = ${made.rawText} WHERE ${same(made)} RETURNING ${columns}`
      )
    }),

    insertMany: Effect.fn("ConversationRepository.insertMany")((input, options = {}) =>
      Bulk.insert(input, options, {
        name: "ConversationRepository.insertMany",
        make: makeAt,
        bytes: ({ crdtState, rawText }) => 200 + rawText.length + 2 * (crdtState?.byteLength ?? 0),
        write: (made) =>
          conflicts(
            {},
            Effect.map(
              sql`
                INSERT INTO conversation (id, class_id, owner_id, raw_text, crdt_state, created_at)
                SELECT * FROM unnest(
                  ${made.map(({ id }) => id)}::uuid[],
                  ${made.map(({ classId }) => classId)}::uuid[],
                  ${made.map(({ ownerId }) => ownerId)}::uuid[],
                  ${made.map(({ rawText }) => rawText)}::text[],
                  ${made.map(({ crdtState }) => crdtState)}::bytea[],
                  ${made.map(({ createdAt }) => DateTime.formatIso(createdAt))}::timestamptz[]
                )
                ${sql.literal(options.onConflict === "skip" ? "ON CONFLICT DO NOTHING" : "")}
                RETURNING id
              `,
              (inserted) => inserted.length
            )
          )
      }).pipe(inDatabase)
    ),

    insertStream: Effect.fn("ConversationRepository.insertStream")(
      <E, R>(input: Stream.Stream<NewConversation, E, R>) =>
        conflicts(
          {},
          Bulk.copy(
            input,
            { table, columns: ["id", "class_id", "owner_id", "raw_text", "crdt_state", "created_at"] },
            {
              make: makeAt,
              values: ({ classId, crdtState, createdAt, id, ownerId, rawText }) => [
                id,
                classId,
                ownerId,
                rawText,
                crdtState,
                DateTime.formatIso(createdAt)
              ]
            }
          )
        ).pipe(inDatabase)
    ),

    stream: rows.stream(sql`ORDER BY id`),

    streamByOwner: (ownerId) => rows.stream(sql`WHERE owner_id = ${ownerId} ORDER BY created_at, id`),

    streamByClass: (classId) => rows.stream(sql`WHERE class_id = ${classId} ORDER BY created_at, id`),

    count: rows.count(),

    countByOwner: Effect.fn("ConversationRepository.countByOwner")((ownerId) =>
      rows.count(sql`WHERE owner_id = ${ownerId}`)
    ),

    countByClass: Effect.fn("ConversationRepository.countByClass")((classId) =>
      rows.count(sql`WHERE class_id = ${classId}`)
    )
  })
})
