/**
 * Inserting any number of rows: a batch of them in each round trip, or a stream of them by COPY.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Copy from "../Copy.js"
import type { Database } from "../Database.js"
import * as Transaction from "../Transaction.js"
import { InvalidInput } from "./Input.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** How rows are inserted in bulk. */
export interface Options {
  /**
   * Rows of one statement, at least 1; 1,000 when left out. A batch also ends once it is larger
   * than 8 MiB.
   */
  readonly batchRows?: number | undefined
  /**
   * What becomes of a row whose id or natural key is taken, by a stored row or by one before it:
   * `fail` (when left out) inserts nothing at all and fails, `skip` leaves that row out.
   */
  readonly onConflict?: "fail" | "skip" | undefined
}

/** What was inserted, in rows. */
export interface Result {
  readonly inserted: number
  /** Rows that were left out because their id or natural key was taken. */
  readonly skipped: number
}

// -----------------------------------------------------------------------------
// for repositories
// -----------------------------------------------------------------------------

/**
 * Takes rows from `input` as they are needed, so that there can be more of them than fit in memory.
 * What fits in one batch is one statement; more is a transaction of one statement for each batch.
 * Either way all rows are inserted or none.
 *
 * @internal
 */
export const insert = <I, A, E>(
  input: Iterable<I>,
  options: Options,
  parts: {
    /** Names the transaction in logs. */
    readonly name: string
    /** Makes a row; `prefix` says which it is in the messages of errors. */
    readonly make: (input: I, prefix: string) => Effect.Effect<A, InvalidInput>
    /** The size of a row in bytes, roughly. */
    readonly bytes: (row: A) => number
    /** Inserts a batch in one statement, and says how many rows were inserted. */
    readonly write: (rows: ReadonlyArray<A>) => Effect.Effect<number, E>
  }
): Effect.Effect<Result, E | InvalidInput | SqlError, Database> =>
  Effect.suspend(() => {
    const batchRows = options.batchRows ?? defaultBatchRows
    if (!(batchRows >= 1)) {
      const issues = [{ path: "batchRows", message: "must be at least 1" }]
      return Effect.fail(new InvalidInput({ model: "Bulk.Options", issues }))
    }
    const rows = input[Symbol.iterator]()
    let taken = 0
    let inserted = 0

    const batch = Effect.gen(function* () {
      const made: Array<A> = []
      let bytes = 0
      while (made.length < batchRows && bytes < batchBytes) {
        const next = rows.next()
        if (next.done === true) break
        const row = yield* parts.make(next.value, `${taken}.`)
        taken++
        made.push(row)
        bytes += parts.bytes(row)
      }
      return made
    })
    const write = (made: ReadonlyArray<A>) =>
      made.length === 0
        ? Effect.void
        : Effect.map(parts.write(made), (count) => {
            inserted += count
          })

    return Effect.gen(function* () {
      const first = yield* batch
      const second = yield* batch
      if (second.length === 0) {
        yield* write(first)
      } else {
        yield* Transaction.run(
          Effect.gen(function* () {
            yield* write(first)
            for (let made = second; made.length > 0; made = yield* batch) yield* write(made)
          }),
          { name: parts.name }
        )
      }
      return { inserted, skipped: taken - inserted }
    }).pipe(Effect.ensuring(Effect.sync(() => rows.return?.())))
  })

/**
 * Stores the rows of a stream by COPY, all or none, and gives their number. One statement.
 *
 * @internal
 */
export const copy = <I, A, E, R>(
  input: Stream.Stream<I, E, R>,
  target: Copy.Target,
  parts: {
    /** Makes a row; `prefix` says which it is in the messages of errors. */
    readonly make: (input: I, prefix: string) => Effect.Effect<A, InvalidInput>
    /** The values of a row, in the order of the target's columns. */
    readonly values: (row: A) => Copy.Row
  }
) =>
  Effect.suspend(() => {
    let taken = 0
    const rows = Stream.mapChunksEffect(input, (chunk) =>
      Effect.map(
        Effect.forEach(chunk, (element) => Effect.map(parts.make(element, `${taken++}.`), parts.values)),
        Chunk.unsafeFromArray
      )
    )
    return Copy.into(rows, target)
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const defaultBatchRows = 1000
const batchBytes = 8 * 2 ** 20
