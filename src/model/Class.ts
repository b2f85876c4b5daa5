/**
 * Classes: the rows of the table `class`. A class belongs to a user and is joined with its invite
 * code.
 *
 * {@link Class} is a row as it is read; {@link NewClass} is what goes in, and is checked.
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
export const table = "class"

/** The id of a class. */
export const ClassId = Text.uuid.pipe(Schema.brand("ClassId"))
export type ClassId = typeof ClassId.Type

/** A class as the database has it. Encoded it is JSON. */
export const Class = Schema.Struct({
  id: ClassId,
  /** At most 200 characters. */
  name: Text.stored(200),
  ownerId: User.UserId,
  /** At most 20 characters; upper and lower case are different codes. */
  inviteCode: Text.stored(20),
  createdAt: Schema.DateTimeUtc
})
export type Class = typeof Class.Type

/** What a class is made of; id and time are made up where they are left out. */
export const NewClass = Schema.Struct({
  id: Input.optional(ClassId),
  name: Text.line(200),
  ownerId: User.UserId,
  inviteCode: Text.line(20),
  createdAt: Input.optional(Schema.DateTimeUtcFromSelf)
})
export type NewClass = Input.Of<typeof NewClass.Encoded>

/** What can be changed of a class; what is left out stays as it is. */
export const ClassChanges = Schema.Struct({
  name: Input.optional(Text.line(200)),
  ownerId: Input.optional(User.UserId),
  inviteCode: Input.optional(Text.line(20))
})
export type ClassChanges = Input.Of<typeof ClassChanges.Encoded>

/** What would go with a class, in rows of each table. */
export interface DeletionImpact {
  readonly class: 1
  /** The conversations in it, whoever owns them. */
  readonly conversation: number
}

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/** There is no class with this id. */
export class ClassNotFound extends DomainError.TaggedError("ClassNotFound")<{
  /** Which; of rows that are inserted in bulk it is not known. */
  readonly classId: ClassId | undefined
}> {
  override get message() {
    return `there is no class with ${this.classId === undefined ? "one of the ids" : `the id ${this.classId}`}`
  }
}

/** Another class has this invite code. */
export class InviteCodeTaken extends DomainError.TaggedError("InviteCodeTaken") {
  override get message() {
    return "another class has this invite code"
  }
}

// -----------------------------------------------------------------------------
// tag
// -----------------------------------------------------------------------------

/**
 * The classes of a database.
 *
 * Every operation joins the transaction that is open. An error that the server reports aborts that
 * transaction, as always in PostgreSQL: to go on after `InviteCodeTaken`, run `create` in a
 * `Transaction.run` of its own, which is a savepoint then, or use `insertOrGet`.
 */
export class ClassRepository extends Context.Tag("promptgrimoire-db/ClassRepository")<
  ClassRepository,
  {
    /** Stores a new class. One statement. */
    readonly create: (
      input: NewClass
    ) => Effect.Effect<
      Class,
      Input.InvalidInput | InviteCodeTaken | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /** The class with an id. One statement. */
    readonly findById: (id: ClassId) => Effect.Effect<Option.Option<Class>, SqlError>

    /** The class with an invite code, white space around it aside. One statement. */
    readonly findByInviteCode: (inviteCode: string) => Effect.Effect<Option.Option<Class>, SqlError>

    /**
     * The classes with these ids, by id; one that is not there is left out. One statement for any
     * number of ids.
     */
    readonly findManyById: (
      ids: ReadonlyArray<ClassId>
    ) => Effect.Effect<ReadonlyMap<ClassId, Class>, SqlError>

    /**
     * The class with an id, without N+1: `Effect.forEach(ids, load, { batching: true })` is one
     * statement. Inside a transaction put the `forEach` there too. An interruption waits for the
     * statement; `findManyById` cancels it.
     */
    readonly load: (id: ClassId) => Effect.Effect<Option.Option<Class>, SqlError>

    /** Changes a class. One statement. */
    readonly update: (
      id: ClassId,
      changes: ClassChanges
    ) => Effect.Effect<
      Class,
      Input.InvalidInput | ClassNotFound | InviteCodeTaken | User.UserNotFound | SqlError
    >

    /**
     * Deletes a class, and with it what {@link DeletionImpact} counts (the foreign key of migration
     * 2 does). One statement.
     */
    readonly delete: (id: ClassId) => Effect.Effect<void, ClassNotFound | SqlError>

    /** What {@link delete} would delete at this moment. One statement. */
    readonly deletionImpact: (id: ClassId) => Effect.Effect<DeletionImpact, ClassNotFound | SqlError>

    /** The classes of a user, page by page. One statement for each page. */
    readonly listByOwner: (
      ownerId: User.UserId,
      page?: Page.Request
    ) => Effect.Effect<Page.Page<Class>, Page.InvalidPageRequest | SqlError>

    /**
     * Stores a class, or gives the one of the same owner that has the invite code already,
     * unchanged: of any number of callers at once, one makes the row and all get it.
     * `InviteCodeTaken` if the code is another owner's. One statement, and one more for each race
     * that was lost.
     */
    readonly insertOrGet: (
      input: NewClass
    ) => Effect.Effect<
      { readonly class: Class; readonly created: boolean },
      Input.InvalidInput | InviteCodeTaken | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /**
     * Stores a class, or gives the one of the same owner that has the invite code already the new
     * name. `InviteCodeTaken` if the code is another owner's. One statement, and one more for each
     * race that was lost.
     */
    readonly upsert: (
      input: NewClass
    ) => Effect.Effect<
      { readonly class: Class; readonly created: boolean },
      Input.InvalidInput | InviteCodeTaken | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /**
     * Stores any number of classes, or none if one of them cannot be. One statement for each batch;
     * see {@link Bulk.insert}.
     */
    readonly insertMany: (
      input: Iterable<NewClass>,
      options?: Bulk.Options
    ) => Effect.Effect<
      Bulk.Result,
      Input.InvalidInput | InviteCodeTaken | User.UserNotFound | DomainError.IdTaken | SqlError
    >

    /**
     * Stores all classes of a stream, or none if one of them cannot be, and gives their number: for
     * loads that are too large to hold. One statement that copies; see {@link "../Copy"}`.into` for
     * its limits.
     */
    readonly insertStream: <E, R>(
      input: Stream.Stream<NewClass, E, R>
    ) => Effect.Effect<
      number,
      E | Input.InvalidInput | InviteCodeTaken | User.UserNotFound | DomainError.IdTaken | SqlError,
      R
    >

    /**
     * All classes by id, read as they are consumed. One statement, which holds a connection until
     * the stream ends.
     */
    readonly stream: Stream.Stream<Class, SqlError>

    /** The classes of a user, the oldest first, as {@link stream} does. One statement. */
    readonly streamByOwner: (ownerId: User.UserId) => Stream.Stream<Class, SqlError>

    /** How many classes there are. One statement, which scans the table. */
    readonly count: Effect.Effect<number, SqlError>

    /** How many classes a user has. One statement. */
    readonly countByOwner: (ownerId: User.UserId) => Effect.Effect<number, SqlError>
  }
>() {}

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** A class that is not stored yet, with a random id (UUID version 4) and the current time. */
export const make = (input: NewClass): Effect.Effect<Class, Input.InvalidInput> => makeAt(input)

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/** The classes of the {@link Database.Database} that is provided. */
export const layer: Layer.Layer<ClassRepository, never, Database.Database | SqlClient.SqlClient> =
  Layer.effect(
    ClassRepository,
    Effect.suspend(() => repository)
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const decodeNew = Input.decode("Class", NewClass)

const makeAt = Effect.fnUntraced(function* (input: NewClass, prefix?: string) {
  const { createdAt, id, inviteCode, name, ownerId } = yield* decodeNew(input, prefix)
  const made: Class = {
    id: id ?? ClassId.make(Crypto.randomUUID()),
    name,
    ownerId,
    inviteCode,
    createdAt: createdAt ?? (yield* DateTime.now)
  }
  return made
})

const decodeChanges = Input.decode("Class", ClassChanges)

interface Row {
  readonly id: ClassId
  readonly name: string
  readonly ownerId: User.UserId
  readonly inviteCode: string
  readonly createdAt: Date
}

const toClass = ({ createdAt, id, inviteCode, name, ownerId }: Row): Class => ({
  id,
  name,
  ownerId,
  inviteCode,
  createdAt: DateTime.unsafeFromDate(createdAt)
})

const repository = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const database = yield* Database.Database
  const inDatabase = Effect.provideService(Database.Database, database)

  const rows = Rows.make<Row, ClassId, Class>(
    sql,
    table,
    `id, name, owner_id AS "ownerId", invite_code AS "inviteCode", created_at AS "createdAt"`,
    toClass
  )
  const { columns } = rows

  const conflicts = <A, E, R>(made: Partial<Class>, self: Effect.Effect<A, E, R>) =>
    self.pipe(
      DatabaseError.catchUniqueViolation("class_invite_code_key", () => new InviteCodeTaken()),
      DatabaseError.catchUniqueViolation(
        "class_pkey",
        () => new DomainError.IdTaken({ model: "Class", id: made.id })
      ),
      noOwner(made.ownerId)
    )
  const noOwner = (userId: User.UserId | undefined) =>
    DatabaseError.catchForeignKeyViolation("class_owner_id_fkey", () => new User.UserNotFound({ userId }))

  /**
   * Inserts a class, or gives the row that `stored` makes of the owner's one with the same code, or
   * says what is in the way.
   */
  const insertOr = Effect.fnUntraced(function* (made: Class, stored: Statement.Fragment) {
    const row = yield* settle(
      Effect.map(
        sql<Row & { readonly outcome: "stored" | "made" | "id" | "code" }>`
          WITH stored AS (${stored}),
          made AS (
            INSERT INTO class (id, name, owner_id, invite_code, created_at)
            SELECT ${made.id}::uuid, ${made.name}::text, ${made.ownerId}::uuid, ${made.inviteCode}::text,
                   ${DateTime.formatIso(made.createdAt)}::timestamptz
            WHERE NOT EXISTS (SELECT FROM stored)
            ON CONFLICT DO NOTHING
            RETURNING ${columns}
          )
          SELECT *, 'stored' AS outcome FROM stored
          UNION ALL
          SELECT *, 'made' FROM made
          UNION ALL
          SELECT ${columns}, CASE WHEN id = ${made.id}::uuid THEN 'id' ELSE 'code' END
          FROM class
          WHERE (
            id = ${made.id}::uuid
            OR invite_code = ${made.inviteCode}::text AND owner_id <> ${made.ownerId}::uuid
          ) AND NOT EXISTS (SELECT FROM stored)
        `,
        (rows) => Option.fromNullable(rows[0])
      )
    ).pipe(noOwner(made.ownerId))
    if (row.outcome === "id") return yield* new DomainError.IdTaken({ model: "Class", id: made.id })
    if (row.outcome === "code") return yield* new InviteCodeTaken()
    return { class: toClass(row), created: row.outcome === "made" }
  })

  return ClassRepository.of({
    create: Effect.fn("ClassRepository.create")(function* (input) {
      const made = yield* makeAt(input)
      yield* conflicts(
        made,
        sql`
          INSERT INTO class (id, name, owner_id, invite_code, created_at)
          VALUES (${made.id}, ${made.name}, ${made.ownerId}, ${made.inviteCode}, ${DateTime.formatIso(made.createdAt)})
        `
      )
      return made
    }),

    findById: Effect.fn("ClassRepository.findById")(rows.byId),

    findByInviteCode: Effect.fn("ClassRepository.findByInviteCode")((inviteCode) =>
      Text.isStorable(inviteCode)
        ? rows.one(sql<Row>`
            SELECT ${columns}
            FROM class
            WHERE invite_code IN (${Text.canonicalLine(inviteCode)}, ${inviteCode.trim()})
            ORDER BY invite_code = ${inviteCode.trim()} DESC
            LIMIT 1
          `)
        : Effect.succeedNone
    ),

    findManyById: Effect.fn("ClassRepository.findManyById")(rows.byIds),

    load: rows.load,

    update: Effect.fn("ClassRepository.update")(function* (id, input) {
      const { inviteCode, name, ownerId } = yield* decodeChanges(input)
      const changes = [
        ...(name === undefined ? [] : [sql`name = ${name}`]),
        ...(ownerId === undefined ? [] : [sql`owner_id = ${ownerId}`]),
        ...(inviteCode === undefined ? [] : [sql`invite_code = ${inviteCode}`])
      ]
      const updated = yield* rows.change(id, changes).pipe(
        DatabaseError.catchUniqueViolation("class_invite_code_key", () => new InviteCodeTaken()),
        noOwner(ownerId)
      )
      return yield* Effect.mapError(updated, () => new ClassNotFound({ classId: id }))
    }),

    delete: Effect.fn("ClassRepository.delete")(function* (id) {
      if (!(yield* rows.remove(id))) yield* new ClassNotFound({ classId: id })
    }),

    deletionImpact: Effect.fn("ClassRepository.deletionImpact")(function* (id) {
      const [impact] = yield* sql<Omit<DeletionImpact, "class">>`
        SELECT (SELECT count(*)::float8 FROM conversation WHERE class_id = class.id) AS conversation
        FROM class
        WHERE id = ${id}
      `
      if (impact === undefined) return yield* new ClassNotFound({ classId: id })
      return { class: 1, ...impact }
    }),

    listByOwner: Effect.fn("ClassRepository.listByOwner")((ownerId, request = {}) =>
      Page.read({
        sql,
        list: "classes by owner",
        of: ownerId,
        request,
        select: (window) => sql<Row & Page.Positioned>`
          SELECT ${columns}, created_at::text AS position FROM class WHERE owner_id = ${ownerId} ${window}
        `,
        item: toClass
      })
    ),

    insertOrGet: Effect.fn("ClassRepository.insertOrGet")(function* (input) {
      const made = yield* makeAt(input)
      return yield* insertOr(
        made,
        sql`SELECT ${columns} FROM class WHERE invite_code = ${made.inviteCode} AND owner_id = ${made.ownerId}`
      )
    }),

    upsert: Effect.fn("ClassRepository.upsert")(function* (input) {
      const made = yield* makeAt(input)
      return yield* insertOr(
        made,
        sql`
          UPDATE class SET name = ${made.name}
          WHERE invite_code = ${made.inviteCode} AND owner_id = ${made.ownerId}
          RETURNING ${columns}
        `
      )
    }),

    insertMany: Effect.fn("ClassRepository.insertMany")((input, options = {}) =>
      Bulk.insert(input, options, {
        name: "ClassRepository.insertMany",
        make: makeAt,
        bytes: () => 500,
        write: (classes) =>
          conflicts(
            {},
            Effect.map(
              sql`
                INSERT INTO class (id, name, owner_id, invite_code, created_at)
                SELECT * FROM unnest(
                  ${classes.map(({ id }) => id)}::uuid[],
                  ${classes.map(({ name }) => name)}::text[],
                  ${classes.map(({ ownerId }) => ownerId)}::uuid[],
                  ${classes.map(({ inviteCode }) => inviteCode)}::text[],
                  ${classes.map(({ createdAt }) => DateTime.formatIso(createdAt))}::timestamptz[]
                )
                ${sql.literal(options.onConflict === "skip" ? "ON CONFLICT DO NOTHING" : "")}
                RETURNING id
              `,
              (inserted) => inserted.length
            )
          )
      }).pipe(inDatabase)
    ),

    insertStream: Effect.fn("ClassRepository.insertStream")(<E, R>(input: Stream.Stream<NewClass, E, R>) =>
      conflicts(
        {},
        Bulk.copy(
          input,
          { table, columns: ["id", "name", "owner_id", "invite_code", "created_at"] },
          {
            make: makeAt,
            values: ({ createdAt, id, inviteCode, name, ownerId }) => [
              id,
              name,
              ownerId,
              inviteCode,
              DateTime.formatIso(createdAt)
            ]
          }
        )
      ).pipe(inDatabase)
    ),

    stream: rows.stream(sql`ORDER BY id`),

    streamByOwner: (ownerId) => rows.stream(sql`WHERE owner_id = ${ownerId} ORDER BY created_at, id`),

    count: rows.count(),

    countByOwner: Effect.fn("ClassRepository.countByOwner")((ownerId) =>
      rows.count(sql`WHERE owner_id = ${ownerId}`)
    )
  })
})
