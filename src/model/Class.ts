/**
 * Classes: the rows of the table `class`. A class belongs to a user and is joined with its invite code.
 *
 * {@link Class} is a row as it is read; {@link NewClass} is what goes in, and is checked.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Crypto from "node:crypto"
import * as Input from "./Input.js"
import * as Text from "./Text.js"
import * as User from "./User.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** The name of the table. */
export const table = "class"

/** The id of a class. */
export const ClassId = Schema.UUID.annotations({ message: () => "must be a UUID" }).pipe(
  Schema.brand("ClassId")
)
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
export interface Class extends Schema.Schema.Type<typeof Class> {}

/** What a class is made of; id and time are made up where they are left out. */
export const NewClass = Schema.Struct({
  id: Schema.optional(ClassId),
  name: Text.line(200),
  ownerId: User.UserId,
  inviteCode: Text.line(20),
  createdAt: Schema.optional(Schema.DateTimeUtcFromSelf)
})
export type NewClass = typeof NewClass.Encoded

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** A class that is not stored yet, with a random id (UUID version 4) and the current time. */
export const make = (input: NewClass): Effect.Effect<Class, Input.InvalidInput> => makeAt(input)

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
