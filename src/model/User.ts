/**
 * Users: the rows of the table `"user"`.
 *
 * {@link User} is a row as it is read, with whatever other programs have put there. {@link NewUser} is what goes in, and is
 * checked: text is trimmed and not empty, `''` becomes null, lengths are the columns', control characters are refused.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Crypto from "node:crypto"
import * as Input from "./Input.js"
import * as Text from "./Text.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** The name of the table; a reserved word of SQL, so it is always quoted. */
export const table = "user"

/** The id of a user. */
export const UserId = Schema.UUID.annotations({ message: () => "must be a UUID" }).pipe(
  Schema.brand("UserId")
)
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
export interface User extends Schema.Schema.Type<typeof User> {}

/** What a user is made of: the e-mail address is stored in lower case; id and time are made up where they are left out. */
export const NewUser = Schema.Struct({
  id: Schema.optional(UserId),
  email: Text.email(255),
  displayName: Text.line(100),
  stytchMemberId: Schema.optional(Text.optionalLine),
  createdAt: Schema.optional(Schema.DateTimeUtcFromSelf)
})
export type NewUser = typeof NewUser.Encoded

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** A user that is not stored yet, with a random id (UUID version 4) and the current time. */
export const make = (input: NewUser): Effect.Effect<User, Input.InvalidInput> => makeAt(input)

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
