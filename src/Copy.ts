/**
 * Large loads: the rows of a stream into a table by `COPY ... FROM STDIN`, the fastest way in that
 * PostgreSQL has.
 */
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Database } from "./Database.js"
import { DatabaseError } from "./DatabaseError.js"
import type { Source } from "./connection/copyIn.js"
import { encodeRow } from "./client/copyText.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** Where the rows go. */
export interface Target {
  readonly table: string
  /** The first one of the search path that has the table, when left out. */
  readonly schema?: string | undefined
  /** The columns that a row gives, in its order; the others get their defaults. */
  readonly columns: ReadonlyArray<string>
}

/**
 * A value for each column, of the JavaScript types that a statement's parameters may have; `null`
 * is NULL.
 */
export type Row = ReadonlyArray<unknown>

// -----------------------------------------------------------------------------
// loading
// -----------------------------------------------------------------------------

/**
 * Stores the rows of a stream, all or none, and gives their number. One statement, in the
 * transaction that is open if there is one; rows are taken from the stream as the server reads
 * them, so there can be more of them than fit in memory.
 *
 * A stream that fails, or an interruption, stores nothing and leaves the connection fit for use. A
 * row that breaks a constraint fails as it would in INSERT, with the constraint's name; what INSERT
 * can do about it (ON CONFLICT, RETURNING) COPY cannot, and it runs triggers but no rules.
 * `statement_timeout` is the limit of the whole load, the stream's own time included: give a long
 * load more in `Transaction.run`.
 *
 * The stream may use the database, on another connection; inside a transaction it cannot use that
 * one, which is busy, and fails with `InvalidRequest` if it tries.
 */
export const into: {
  (
    target: Target
  ): <E, R>(rows: Stream.Stream<Row, E, R>) => Effect.Effect<number, E | DatabaseError, R | Database>
  <E, R>(
    rows: Stream.Stream<Row, E, R>,
    target: Target
  ): Effect.Effect<number, E | DatabaseError, R | Database>
} = dual(
  2,
  <E, R>(
    rows: Stream.Stream<Row, E, R>,
    target: Target
  ): Effect.Effect<number, E | DatabaseError, R | Database> =>
    Effect.scoped(
      Effect.gen(function* () {
        const { copyIn } = yield* Database
        const pull = yield* Stream.toPull(rows)
        return yield* copyIn(statement(target), encoded(pull, target))
      })
    )
)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** COPY takes a ROW EXCLUSIVE lock on the table, as INSERT does. */
const statement = ({ columns, schema, table }: Target): string => {
  const name = [schema, table].flatMap((part) => (part === undefined ? [] : [quoted(part)])).join(".")
  return `COPY ${name} (${columns.map(quoted).join(", ")}) FROM STDIN`
}

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Rows in the format of COPY, in pieces of some 64 KiB. */
const encoded = <E, R>(
  pull: Effect.Effect<Chunk.Chunk<Row>, Option.Option<E>, R>,
  { columns }: Target
): Source<E | DatabaseError, R> => {
  let pending: IterableIterator<Row> = [][Symbol.iterator]()
  let taken = 0
  let ended = false
  let lines: Array<string> = []
  let size = 0

  /** Takes rows until a piece is full or there are no more at hand; says what is wrong with one. */
  const take = (): string | undefined => {
    while (size < pieceSize) {
      const next = pending.next()
      if (next.done === true) return undefined
      const connection = encodeRow(next.value, columns)
      if ("problem" in connection) return `row ${taken} of the COPY (counted from 0) ${connection.problem}`
      taken++
      lines.push(connection.text)
      size += connection.text.length
    }
    return undefined
  }
  const piece = (): Buffer => {
    const data = Buffer.from(lines.join(""), "utf8")
    lines = []
    size = 0
    return data
  }

  const next: Source<E | DatabaseError, R> = Effect.suspend(() => {
    const problem = take()
    if (problem !== undefined) return Effect.fail(Option.some(invalid(problem)))
    if (size >= pieceSize || (ended && size > 0)) return Effect.succeed(piece())
    if (ended) return Effect.fail(Option.none())
    return Effect.matchEffect(pull, {
      onSuccess: (rows) => {
        pending = Chunk.toReadonlyArray(rows)[Symbol.iterator]() as IterableIterator<Row>
        return next
      },
      onFailure: (end) => {
        if (Option.isSome(end)) return Effect.fail(end)
        ended = true
        return next
      }
    })
  })
  return next
}

/** Roughly, in characters. */
const pieceSize = 2 ** 16

const invalid = (problem: string): DatabaseError =>
  new DatabaseError({ operation: "copy", reason: { _tag: "InvalidRequest", problem } })
