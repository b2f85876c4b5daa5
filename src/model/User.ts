/**
 * Users: the rows of the table `"user"`.
 *
 * {@link User} is a row as it is read, with whatever other programs have put there. {@link NewUser}
 * is what goes in, and is checked: text is trimmed and not empty, `''` becomes null, lengths are
 * the columns', control characters are refused.
 *
 * E-mail addresses are one whatever the case of their letters. They are stored in lower case and in
 * NFC, so that `ix_user_email` keeps them unique. Rows of other programs whose addresses are not in
 * lower case are found all the same, as PostgreSQL's own `lower()` sees them. An address that is
 * not there is therefore looked for twice, the second time by a scan of the table, unless there is
 * an index on `lower(email)`:
 *
 * ```sql
 * CREATE INDEX CONCURRENTLY ix_user_lower_email ON "user" (lower(email));
 * ANALYZE "user";
 * ```
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
import * as Rows from "./rows.js"
import { settle } from "./settle.js"
import * as Text from "./text.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** The name of the table; a reserved word of SQL, so it is always quoted. */
export const table = "user"

/** The id of a user. */
export const UserId = Text.uuid.pipe(Schema.brand("UserId"))
export type UserId = typeof UserId.Type

/** A user as the database has them. Encoded it is JSON. */
export const User = Schema.Struct({
  id: UserId,
  /** At most 255 characters. */
  email: Text.stored(255),
  /** At most 100 characters. */
  displayName: Text.stored(100),
  /** The member's id at the login service, or null for one who never logged in. */
  stytchMemberId: Schema.NullOr(Schema.String),
  createdAt: Schema.DateTimeUtc
})
export type User = typeof User.Type

/**
 * What a user is made of: the e-mail address is stored in lower case; id and time are made up where
 * they are left out.
 */
export const NewUser = Schema.Struct({
  id: Input.optional(UserId),
  email: Text.email(255),
  displayName: Text.line(100),
  stytchMemberId: Input.optional(Text.optionalLine),
  createdAt: Input.optional(Schema.DateTimeUtcFromSelf)
})
export type NewUser = Input.Of<typeof NewUser.Encoded>

/** What can be changed of a user; what is left out stays as it is. */
export const UserChanges = Schema.Struct({
  email: Input.optional(Text.email(255)),
  displayName: Input.optional(Text.line(100)),
  stytchMemberId: Input.optional(Text.optionalLine)
})
export type UserChanges = Input.Of<typeof UserChanges.Encoded>

/** What would go with a user, in rows of each table. */
export interface DeletionImpact {
  readonly user: 1
  /** The classes they own. */
  readonly class: number
  /** The conversations they own, and those of anybody in their classes. */
  readonly conversation: number
}

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/** There is no user with this id. */
export class UserNotFound extends DomainError.TaggedError("UserNotFound")<{
  /** Which; of rows that are inserted in bulk it is not known. */
  readonly userId: UserId | undefined
}> {
  override get message() {
    return `there is no user with ${this.userId === undefined ? "one of the ids" : `the id ${this.userId}`}`
  }
}

/** Another user has this e-mail address, in upper or in lower case. */
export class EmailTaken extends DomainError.TaggedError("EmailTaken") {
  override get message() {
    return "another user has this e-mail address"
  }
}

/** Another user has this Stytch member id. */
export class StytchMemberTaken extends DomainError.TaggedError("StytchMemberTaken") {
  override get message() {
    return "another user has this Stytch member id"
  }
}

// -----------------------------------------------------------------------------
// tag
// -----------------------------------------------------------------------------

/**
 * The users of a database.
 *
 * Every operation joins the transaction that is open. An error that the server reports aborts that
 * transaction, as always in PostgreSQL: to go on after `EmailTaken`, run `create` in a
 * `Transaction.run` of its own, which is a savepoint then, or use `insertOrGet`.
 */
export class UserRepository extends Context.Tag("promptgrimoire-db/UserRepository")<
  UserRepository,
  {
    /** Stores a new user. One statement. */
    readonly create: (
      input: NewUser
    ) => Effect.Effect<
      User,
      Input.InvalidInput | EmailTaken | StytchMemberTaken | DomainError.IdTaken | SqlError
    >

    /** The user with an id. One statement. */
    readonly findById: (id: UserId) => Effect.Effect<Option.Option<User>, SqlError>

    /** The user with an e-mail address, whatever the case of its letters. One statement. */
    readonly findByEmail: (email: string) => Effect.Effect<Option.Option<User>, SqlError>

    /**
     * The users with these ids, by id; one that is not there is left out. One statement for any
     * number of ids.
     */
    readonly findManyById: (ids: ReadonlyArray<UserId>) => Effect.Effect<ReadonlyMap<UserId, User>, SqlError>

    /**
     * The user with an id, without N+1: `Effect.forEach(ids, load, { batching: true })` is one
     * statement. Inside a transaction put the `forEach` there too. An interruption waits for the
     * statement; `findManyById` cancels it.
     */
    readonly load: (id: UserId) => Effect.Effect<Option.Option<User>, SqlError>

    /** Changes a user. One statement. */
    readonly update: (
      id: UserId,
      changes: UserChanges
    ) => Effect.Effect<User, Input.InvalidInput | UserNotFound | EmailTaken | StytchMemberTaken | SqlError>

    /**
     * Deletes a user, and with them what {@link DeletionImpact} counts (the foreign keys of
     * migration 2 do). One statement.
     */
    readonly delete: (id: UserId) => Effect.Effect<void, UserNotFound | SqlError>

    /** What {@link delete} would delete at this moment. One statement. */
    readonly deletionImpact: (id: UserId) => Effect.Effect<DeletionImpact, UserNotFound | SqlError>

    /**
     * Stores a user, or gives the one who has the e-mail address already, unchanged: of any number
     * of callers at once, one makes the row and all get it. Never aborts a transaction. One
     * statement, and one more for each race that was lost.
     */
    readonly insertOrGet: (
      input: NewUser
    ) => Effect.Effect<
      { readonly user: User; readonly created: boolean },
      Input.InvalidInput | StytchMemberTaken | DomainError.IdTaken | SqlError
    >

    /**
     * Stores a user, or gives the one who has the e-mail address already the new display name, and
     * the new Stytch member id if there is one. One statement, and one more for each race that was
     * lost.
     */
    readonly upsert: (
      input: NewUser
    ) => Effect.Effect<
      { readonly user: User; readonly created: boolean },
      Input.InvalidInput | StytchMemberTaken | DomainError.IdTaken | SqlError
    >

    /**
     * Stores any number of users, or none if one of them cannot be. One statement for each batch;
     * see {@link Bulk.insert}.
     */
    readonly insertMany: (
      input: Iterable<NewUser>,
      options?: Bulk.Options
    ) => Effect.Effect<
      Bulk.Result,
      Input.InvalidInput | EmailTaken | StytchMemberTaken | DomainError.IdTaken | SqlError
    >

    /**
     * Stores all users of a stream, or none if one of them cannot be, and gives their number: for
     * loads that are too large to hold. Two statements, one that reads the addresses of other
     * programs and one that copies; see {@link "../Copy"}`.into` for its limits.
     */
    readonly insertStream: <E, R>(
      input: Stream.Stream<NewUser, E, R>
    ) => Effect.Effect<
      number,
      E | Input.InvalidInput | EmailTaken | StytchMemberTaken | DomainError.IdTaken | SqlError,
      R
    >

    /**
     * All users by id, read as they are consumed. One statement, which holds a connection until the
     * stream ends.
     */
    readonly stream: Stream.Stream<User, SqlError>

    /** How many users there are. One statement, which scans the table. */
    readonly count: Effect.Effect<number, SqlError>
  }
>() {}

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** A user that is not stored yet, with a random id (UUID version 4) and the current time. */
export const make = (input: NewUser): Effect.Effect<User, Input.InvalidInput> => makeAt(input)

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/** The users of the {@link Database.Database} that is provided. */
export const layer: Layer.Layer<UserRepository, never, Database.Database | SqlClient.SqlClient> =
  Layer.effect(
    UserRepository,
    Effect.suspend(() => repository)
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const decodeNew = Input.decode("User", NewUser)

const makeAt = Effect.fnUntraced(function* (input: NewUser, prefix?: string) {
  const { createdAt, displayName, email, id, stytchMemberId } = yield* decodeNew(input, prefix)
  const user: User = {
    id: id ?? UserId.make(Crypto.randomUUID()),
    email,
    displayName,
    stytchMemberId: stytchMemberId ?? null,
    createdAt: createdAt ?? (yield* DateTime.now)
  }
  return user
})

const decodeChanges = Input.decode("User", UserChanges)

interface Row {
  readonly id: UserId
  readonly email: string
  readonly displayName: string
  readonly stytchMemberId: string | null
  readonly createdAt: Date
}

const toUser = ({ createdAt, displayName, email, id, stytchMemberId }: Row): User => ({
  id,
  email,
  displayName,
  stytchMemberId,
  createdAt: DateTime.unsafeFromDate(createdAt)
})

const repository = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const database = yield* Database.Database
  const inDatabase = Effect.provideService(Database.Database, database)

  const rows = Rows.make<Row, UserId, User>(
    sql,
    table,
    `id, email, display_name AS "displayName", stytch_member_id AS "stytchMemberId", created_at AS "createdAt"`,
    toUser
  )
  const { columns } = rows

  /**
   * The spelling that an address has where it is stored, except by a user who gets it now; else
   * that of ours. `typed` is looked for too: PostgreSQL puts some letters into another lower case
   * than JavaScript, and none but ASCII in the locale C.
   */
  const spelling = (typed: string, except: UserId | null = null) => {
    const email = Text.canonicalEmail(typed)
    return sql`
      coalesce(
        (
          SELECT email FROM "user"
          WHERE email IN (${email}::text, lower(${typed.trim()}::text)) AND id IS DISTINCT FROM ${except}::uuid
          ORDER BY email = ${email}::text DESC LIMIT 1
        ),
        (
          SELECT email FROM "user"
          WHERE lower(email) IN (lower(${email}::text), lower(${typed.trim()}::text))
            AND id IS DISTINCT FROM ${except}::uuid
          ORDER BY created_at, id LIMIT 1
        ),
        ${email}::text
      )
    `
  }

  const conflicts = <A, E, R>(id: UserId | undefined, self: Effect.Effect<A, E, R>) =>
    self.pipe(
      DatabaseError.catchUniqueViolation("ix_user_email", () => new EmailTaken()),
      DatabaseError.catchUniqueViolation("ix_user_stytch_member_id", () => new StytchMemberTaken()),
      DatabaseError.catchUniqueViolation("user_pkey", () => new DomainError.IdTaken({ model: "User", id }))
    )

  /**
   * Inserts a user, or gives the row that `stored` makes of the one with the same address, or says
   * what is in the way.
   */
  const insertOr = Effect.fnUntraced(function* (user: User, stored: Statement.Fragment) {
    const row = yield* settle(
      Effect.map(
        sql<Row & { readonly outcome: "stored" | "made" | "id" | "member" }>`
          WITH stored AS (${stored}),
          made AS (
            INSERT INTO "user" (id, email, display_name, stytch_member_id, created_at)
            SELECT ${user.id}::uuid, ${user.email}::text, ${user.displayName}::text, ${user.stytchMemberId}::text,
                   ${DateTime.formatIso(user.createdAt)}::timestamptz
            WHERE NOT EXISTS (SELECT FROM stored)
            ON CONFLICT DO NOTHING
            RETURNING ${columns}
          )
          SELECT *, 'stored' AS outcome FROM stored
          UNION ALL
          SELECT *, 'made' FROM made
          UNION ALL
          SELECT ${columns}, CASE WHEN id = ${user.id}::uuid THEN 'id' ELSE 'member' END
          FROM "user"
          WHERE (id = ${user.id}::uuid OR stytch_member_id = ${user.stytchMemberId}::text)
            AND NOT EXISTS (SELECT FROM stored)
        `,
        (rows) => Option.fromNullable(rows[0])
      )
    )
    if (row.outcome === "id") return yield* new DomainError.IdTaken({ model: "User", id: user.id })
    if (row.outcome === "member") return yield* new StytchMemberTaken()
    return { user: toUser(row), created: row.outcome === "made" }
  })

  return UserRepository.of({
    create: Effect.fn("UserRepository.create")(function* (input) {
      const user = yield* makeAt(input)
      yield* conflicts(
        user.id,
        sql`
          INSERT INTO "user" (id, email, display_name, stytch_member_id, created_at)
          VALUES (${user.id}, ${spelling(input.email)}, ${user.displayName}, ${user.stytchMemberId},
                  ${DateTime.formatIso(user.createdAt)})
        `
      )
      return user
    }),

    findById: Effect.fn("UserRepository.findById")(rows.byId),

    findByEmail: Effect.fn("UserRepository.findByEmail")((email) =>
      Text.isStorable(email)
        ? rows.one(sql<Row>`SELECT ${columns} FROM "user" WHERE email = ${spelling(email)}`)
        : Effect.succeedNone
    ),

    findManyById: Effect.fn("UserRepository.findManyById")(rows.byIds),

    load: rows.load,

    update: Effect.fn("UserRepository.update")(function* (id, input) {
      const { displayName, stytchMemberId } = yield* decodeChanges(input)
      const changes = [
        ...(input.email === undefined ? [] : [sql`email = ${spelling(input.email, id)}`]),
        ...(displayName === undefined ? [] : [sql`display_name = ${displayName}`]),
        ...(stytchMemberId === undefined ? [] : [sql`stytch_member_id = ${stytchMemberId}`])
      ]
      return yield* Effect.flatMap(
        rows.change(id, changes).pipe(
          DatabaseError.catchUniqueViolation("ix_user_email", () => new EmailTaken()),
          DatabaseError.catchUniqueViolation("ix_user_stytch_member_id", () => new StytchMemberTaken())
        ),
        Effect.mapError(() => new UserNotFound({ userId: id }))
      )
    }),

    delete: Effect.fn("UserRepository.delete")(function* (id) {
      if (!(yield* rows.remove(id))) yield* new UserNotFound({ userId: id })
    }),

    deletionImpact: Effect.fn("UserRepository.deletionImpact")(function* (id) {
      const [impact] = yield* sql<Omit<DeletionImpact, "user">>`
        SELECT (SELECT count(*)::float8 FROM class WHERE owner_id = "user".id) AS class,
               (
                 SELECT count(*)::float8
                 FROM (
                   SELECT id FROM conversation WHERE owner_id = "user".id
                   UNION
                   SELECT id FROM conversation WHERE class_id IN (SELECT id FROM class WHERE owner_id = "user".id)
                 ) AS doomed
               ) AS conversation
        FROM "user"
        WHERE id = ${id}
      `
      if (impact === undefined) return yield* new UserNotFound({ userId: id })
      return { user: 1, ...impact }
    }),

    insertOrGet: Effect.fn("UserRepository.insertOrGet")(function* (input) {
      const user = yield* makeAt(input)
      return yield* insertOr(user, sql`SELECT ${columns} FROM "user" WHERE email = ${spelling(input.email)}`)
    }),

    upsert: Effect.fn("UserRepository.upsert")(function* (input) {
      const user = yield* makeAt(input)
      return yield* insertOr(
        user,
        sql`
          UPDATE "user"
          SET display_name = ${user.displayName}, stytch_member_id = coalesce(${user.stytchMemberId}, stytch_member_id)
          WHERE email = ${spelling(input.email)}
          RETURNING ${columns}
        `
      ).pipe(DatabaseError.catchUniqueViolation("ix_user_stytch_member_id", () => new StytchMemberTaken()))
    }),

    insertMany: Effect.fn("UserRepository.insertMany")((input, options = {}) =>
      Bulk.insert(input, options, {
        name: "UserRepository.insertMany",
        make: (input, prefix) =>
          Effect.map(makeAt(input, prefix), (user) => ({ ...user, typed: input.email.trim() })),
        bytes: () => 500,
        write: (users) =>
          conflicts(
            undefined,
            Effect.map(
              sql`
                WITH new AS (
                  SELECT *
                  FROM unnest(
                    ${users.map(({ id }) => id)}::uuid[],
                    ${users.map(({ email }) => email)}::text[],
                    ${users.map(({ typed }) => typed)}::text[],
                    ${users.map(({ displayName }) => displayName)}::text[],
                    ${users.map(({ stytchMemberId }) => stytchMemberId)}::text[],
                    ${users.map(({ createdAt }) => DateTime.formatIso(createdAt))}::timestamptz[]
                  ) AS new (id, email, typed, display_name, stytch_member_id, created_at)
                ),
                other AS (
                  SELECT DISTINCT ON (asked.folded) asked.folded, "user".email
                  FROM (SELECT lower(email) FROM new UNION SELECT lower(typed) FROM new) AS asked (folded)
                  JOIN "user" ON lower("user".email) = asked.folded
                  ORDER BY asked.folded, "user".created_at, "user".id
                )
                INSERT INTO "user" (id, email, display_name, stytch_member_id, created_at)
                SELECT new.id, coalesce(same.email, likewise.email, new.email), new.display_name,
                       new.stytch_member_id, new.created_at
                FROM new
                LEFT JOIN other AS same ON same.folded = lower(new.email)
                LEFT JOIN other AS likewise ON likewise.folded = lower(new.typed)
                ${sql.literal(options.onConflict === "skip" ? "ON CONFLICT DO NOTHING" : "")}
                RETURNING id
              `,
              (inserted) => inserted.length
            )
          )
      }).pipe(inDatabase)
    ),

    insertStream: Effect.fn("UserRepository.insertStream")(function* <E, R>(
      input: Stream.Stream<NewUser, E, R>
    ) {
      const others = yield* sql<{ readonly folded: string; readonly email: string }>`
        SELECT lower(email) AS folded, email FROM "user" WHERE email <> lower(email)
      `
      const spellings = new Map(
        others.flatMap(({ email, folded }) => [[folded, email] as const, [email, email] as const])
      )
      return yield* conflicts(
        undefined,
        Bulk.copy(
          input,
          { table, columns: ["id", "email", "display_name", "stytch_member_id", "created_at"] },
          {
            make: (input, prefix) =>
              Effect.map(makeAt(input, prefix), (user) => ({
                ...user,
                email: spellings.get(user.email) ?? spellings.get(input.email.trim()) ?? user.email
              })),
            values: ({ createdAt, displayName, email, id, stytchMemberId }) => [
              id,
              email,
              displayName,
              stytchMemberId,
              DateTime.formatIso(createdAt)
            ]
          }
        )
      ).pipe(inDatabase)
    }),

    stream: rows.stream(sql`ORDER BY id`),

    count: rows.count()
  })
})
