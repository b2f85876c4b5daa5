/**
 * Pages of a list, by keyset: a cursor says after or before which row a page lies, so pages neither
 * overlap nor skip when rows come and go meanwhile, and the last page costs what the first one
 * does.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DatabaseError from "../DatabaseError.js"
import * as DomainError from "./DomainError.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** Some rows of a list, in its order. */
export interface Page<A> {
  readonly items: ReadonlyArray<A>
  /** Where the rows after these are; `undefined` when there are none. */
  readonly next: Cursor | undefined
  /** Where the rows before these are; `undefined` when these are the first. */
  readonly previous: Cursor | undefined
}

/** A place in a list. It is text to be handed back as it came: it can go into a URL. */
export const Cursor = Schema.NonEmptyString.pipe(Schema.brand("Cursor"))
export type Cursor = typeof Cursor.Type

/** Which page. */
export interface Request {
  /** `next` or `previous` of another page of the same list; the first page when left out. */
  readonly cursor?: string | undefined
  /** How many rows at most, from 1 to 1,000; 50 when left out. */
  readonly limit?: number | undefined
  /** By time of creation; `oldest-first` when left out. A cursor brings the order of its list. */
  readonly order?: Order | undefined
}

/** The order of a list. Rows that were created at the same time come in the order of their ids. */
export type Order = "oldest-first" | "newest-first"

// -----------------------------------------------------------------------------
// errors
// -----------------------------------------------------------------------------

/** A request for a page that makes no sense. Ask for the first page instead. */
export class InvalidPageRequest extends DomainError.TaggedError("InvalidPageRequest")<{
  readonly problem: "not a cursor" | "a cursor of another list" | "the limit is not from 1 to 1,000"
}> {
  override get message() {
    return `this page cannot be had: ${this.problem}`
  }
}

// -----------------------------------------------------------------------------
// for repositories
// -----------------------------------------------------------------------------

/**
 * What a row of a list must have besides its own columns.
 *
 * @internal
 */
export interface Positioned {
  /** `created_at` as PostgreSQL writes it: a `Date` has milliseconds, the column microseconds. */
  readonly position: string
}

/**
 * Reads one page. One statement.
 *
 * @internal
 */
export const read = <Row extends { readonly id: string }, A>(options: {
  readonly sql: SqlClient.SqlClient
  /** Names the list; a cursor of one list is refused by another. */
  readonly list: string
  /** Whose list it is. */
  readonly of: string
  readonly request: Request
  /**
   * Selects the rows of the list. `window` follows the WHERE clause: it continues the condition
   * over the columns `created_at` and `id`, and orders and limits.
   */
  readonly select: (window: Statement.Fragment) => Effect.Effect<ReadonlyArray<Row & Positioned>, SqlError>
  readonly item: (row: Row) => A
}): Effect.Effect<Page<A>, InvalidPageRequest | SqlError> =>
  Effect.gen(function* () {
    const { list, of, request, sql } = options
    const limit = request.limit ?? defaultLimit
    if (!Number.isInteger(limit) || limit < 1 || limit > maxLimit) {
      return yield* new InvalidPageRequest({ problem: "the limit is not from 1 to 1,000" })
    }
    const place = request.cursor === undefined ? undefined : yield* placeOf(request.cursor)
    if (place !== undefined && (place.list !== list || place.of !== of)) {
      return yield* new InvalidPageRequest({ problem: "a cursor of another list" })
    }
    const order = place?.order ?? request.order ?? "oldest-first"
    const forward = place === undefined || place.side === "after" || place.side === "at or after"
    const ascending = forward === (order === "oldest-first")
    const inclusive = place?.side === "at or after" || place?.side === "at or before"

    const beyond = sql.literal(`${ascending ? ">" : "<"}${inclusive ? "=" : ""}`)
    const direction = sql.literal(ascending ? "ASC" : "DESC")
    const rows = yield* options.select(sql`
      ${
        place === undefined
          ? sql.literal("")
          : sql`AND (created_at, id) ${beyond} (${place.position}::timestamptz, ${place.id}::uuid)`
      }
      ORDER BY created_at ${direction}, id ${direction}
      LIMIT ${limit + 1}
    `)

    const more = rows.length > limit
    const shown = forward ? rows.slice(0, limit) : rows.slice(0, limit).toReversed()
    const at = (side: Side, row: (Positioned & { readonly id: string }) | undefined) =>
      row === undefined ? undefined : cursorOf({ list, of, order, side, position: row.position, id: row.id })
    const [hasBefore, hasAfter] = forward ? [place !== undefined, more] : [more, true]
    return {
      items: shown.map(options.item),
      previous: hasBefore
        ? (at("before", shown[0]) ?? (forward ? at("at or before", place) : undefined))
        : undefined,
      next: hasAfter
        ? (at("after", shown.at(-1)) ?? (forward ? undefined : at("at or after", place)))
        : undefined
    }
  }).pipe(
    // A time that no calendar has, in a cursor that was not made here.
    DatabaseError.catchReason("DataException", (_, error) =>
      Effect.fail(
        options.request.cursor === undefined ? error : new InvalidPageRequest({ problem: "not a cursor" })
      )
    )
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const defaultLimit = 50
const maxLimit = 1000

const Side = Schema.Literal("after", "at or after", "before", "at or before")
type Side = typeof Side.Type

const Place = Schema.Struct({
  list: Schema.String,
  of: Schema.String,
  order: Schema.Literal("oldest-first", "newest-first"),
  side: Side,
  position: Schema.String.pipe(
    Schema.pattern(/^(-?infinity|\d{4,6}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?[+-]\d\d(:\d\d){0,2}( BC)?)$/)
  ),
  id: Schema.UUID
})
type Place = typeof Place.Type

const Token = Schema.compose(Schema.StringFromBase64Url, Schema.parseJson(Place))
const decodeToken = Schema.decodeUnknown(Token)
const encodeToken = Schema.encodeSync(Token)

const cursorOf = (place: Place): Cursor => Cursor.make(encodeToken(place))

const placeOf = (cursor: string): Effect.Effect<Place, InvalidPageRequest> =>
  Effect.mapError(decodeToken(cursor), () => new InvalidPageRequest({ problem: "not a cursor" }))
