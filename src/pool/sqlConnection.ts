import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { DatabaseError } from "../DatabaseError.js"
import {
  controlMillis,
  type Connection,
  type PortalHandle,
  type Request,
  type Response
} from "../connection/connection.js"
import * as Commit from "../connection/commit.js"
import type { CopyIn } from "../connection/copyIn.js"
import type { AppliedErrorPolicy } from "../connection/errorPolicy.js"
import { endedError } from "../connection/serverError.js"
import * as Pool from "./pool.js"
import { Mutex } from "../connection/mutex.js"

type Run = (request: Request) => Effect.Effect<Response, DatabaseError>

/** Rows that a stream fetches in one round trip. */
const batchRows = 128

/** The `Connection` of `@effect/sql`, and COPY beside it. */
export interface CopyConnection extends SqlConnection {
  readonly copyIn: CopyIn
}

/** The `Connection` of `@effect/sql` over anything that runs statements. */
export const makeConnection = (
  run: Run,
  stream: (text: string, values: ReadonlyArray<unknown>) => Stream.Stream<object, DatabaseError>,
  copyIn: CopyIn
): CopyConnection => ({
  copyIn,
  execute: (text, values, transformRows) => {
    const rows = Effect.map(run({ text, values, prepare: true }), rowsOf)
    return transformRows === undefined ? rows : Effect.map(rows, transformRows)
  },
  executeRaw: (text, values) => run({ text, values, prepare: true }),
  executeValues: (text, values) => Effect.map(run({ text, values, prepare: true, rowMode: "array" }), rowsOf),
  executeUnprepared: (text, values, transformRows) => {
    const rows = Effect.map(run({ text, values }), rowsOf)
    return transformRows === undefined ? rows : Effect.map(rows, transformRows)
  },
  executeStream: (text, values, transformRows) => {
    const rows = stream(text, values)
    return transformRows === undefined
      ? rows
      : Stream.mapChunks(rows, (chunk) => {
          const batch: ReadonlyArray<object> = Chunk.toReadonlyArray(chunk)
          return Chunk.unsafeFromArray(transformRows(batch))
        })
  }
})

/**
 * Statements outside any transaction: each borrows a connection for itself. `begin` begins the
 * transaction that a stream needs.
 */
export const autocommit = (pool: Pool.Pool, begin: string, decisions: AppliedErrorPolicy): CopyConnection =>
  makeConnection(
    (request) => Pool.use(pool, (connection) => runFresh(connection, request, Effect.void)),
    (text, values) =>
      scopedStream(
        Effect.flatMap(Pool.checkOut(pool), (connection) =>
          pullInOwnTransaction(connection, { begin, decisions }, text, values)
        )
      ),
    (text, source) =>
      Pool.use(pool, (connection) => connection.copyIn(text, Pool.holding(connection)(source)))
  )

/**
 * A connection of one's own, outside any transaction block that we know of. A stream needs one:
 * while it is read nothing else runs, unless the user of the connection has begun a transaction, in
 * which streams and statements mix.
 */
export const reserved = (
  pool: Pool.Pool,
  {
    begin,
    decisions,
    resets
  }: { readonly begin: string; readonly decisions: AppliedErrorPolicy; readonly resets: boolean }
) =>
  Effect.gen(function* () {
    const connection = yield* Pool.checkOut(pool)
    if (resets) yield* Effect.addFinalizer(() => reset(connection))
    const mutex = new Mutex()
    let refused: DatabaseError | undefined
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        refused = endedError
      })
    )
    const guarded = <A, E, R>(step: Effect.Effect<A, E | DatabaseError, R>) =>
      mutex.run(Effect.suspend(() => (refused === undefined ? step : Effect.fail(refused))))
    const alone = Effect.acquireRelease(
      Effect.sync(() => {
        refused = streamingError
      }),
      () =>
        Effect.sync(() => {
          if (refused === streamingError) refused = undefined
        })
    )
    const isOver = () => refused === endedError
    return makeConnection(
      (request) => guarded(Effect.suspend(() => runAlone(connection, request))),
      (text, values) =>
        scopedStream(
          guarded(
            Effect.suspend(() =>
              connection.transactionStatus === "I"
                ? Effect.zipRight(
                    alone,
                    pullInOwnTransaction(connection, { begin, decisions }, text, values, isOver)
                  )
                : pullPortal(connection.portal(text, values), guarded)
            )
          )
        ),
      (text, source) => guarded(connection.copyIn(text, source))
    )
  })

/**
 * What the user of a reserved connection has set, created, locked or listened to is the session's,
 * and SELECT alone can do all of that: it is ended in any case before anybody else gets the
 * connection, or the connection is.
 */
const reset = (connection: Connection): Effect.Effect<void> =>
  Effect.zipRight(
    connection.quiet,
    Effect.suspend(() =>
      connection.isOpen && connection.transactionStatus === "I"
        ? Effect.catchAll(connection.reset, () => Effect.sync(() => connection.destroy()))
        : Effect.void
    )
  )

const streamingError = new DatabaseError({
  operation: "execute",
  reason: {
    _tag: "InvalidRequest",
    problem:
      "a stream is being read on this reserved connection, in a transaction of its own that nothing else may get into: read it to its end, or begin a transaction on the connection before"
  }
})

/** The next rows; fails with `None` at the end. */
type Pull = Effect.Effect<Chunk.Chunk<object>, Option.Option<DatabaseError>>

type Turn = <A>(step: Effect.Effect<A, DatabaseError>) => Effect.Effect<A, DatabaseError>

/** Rows of a portal, batch by batch; each step takes its turn on the connection. */
export const streamPortal = (portal: PortalHandle, turn: Turn): Stream.Stream<object, DatabaseError> =>
  scopedStream(pullPortal(portal, turn))

/**
 * A stream in one scope for all that it takes. Streams inside streams have a scope each, and when
 * they fail the outer one is closed first: the connection would be back in the pool before its
 * transaction is rolled back.
 */
const scopedStream = (
  open: Effect.Effect<Pull, DatabaseError, Scope.Scope>
): Stream.Stream<object, DatabaseError> =>
  Stream.unwrapScoped(Effect.map(open, Stream.repeatEffectChunkOption))

const pullPortal = (portal: PortalHandle, turn: Turn): Effect.Effect<Pull, never, Scope.Scope> =>
  Effect.suspend(() => {
    let opened = false
    let done = false
    const pull: Pull = Effect.suspend(() => {
      if (done) return Effect.fail(Option.none())
      const step = opened ? portal.fetch(batchRows) : portal.open(batchRows)
      opened = true
      return turn(step).pipe(
        Effect.map((batch) => {
          done = batch.done
          return Chunk.unsafeFromArray(batch.rows)
        }),
        Effect.mapError(Option.some)
      )
    })
    const close = Effect.suspend(() => (opened && !done ? Effect.ignore(turn(portal.close)) : Effect.void))
    return Effect.as(
      Effect.addFinalizer(() => close),
      pull
    )
  })

/**
 * A portal needs a transaction block: one of its own, committed when the stream ends and rolled
 * back when it fails. Nothing is sent any more once `isOver`: the connection is another's then.
 */
const pullInOwnTransaction = (
  connection: Connection,
  { begin, decisions }: { readonly begin: string; readonly decisions: AppliedErrorPolicy },
  text: string,
  values: ReadonlyArray<unknown>,
  isOver: () => boolean = () => false
): Effect.Effect<Pull, DatabaseError, Scope.Scope> =>
  Effect.gen(function* () {
    let done = false
    yield* Effect.addFinalizer((exit) =>
      done || isOver()
        ? Effect.void
        : Exit.isSuccess(exit)
          ? commitRest(connection)
          : rollbackRest(connection)
    )
    yield* connection.run({ text: begin, isControl: true })
    const own: Turn = (step) => Effect.suspend(() => (isOver() ? Effect.fail(endedError) : step))
    const pull = yield* pullPortal(connection.portal(text, values), own)
    const commit = own(Commit.commit(connection, { decisions })).pipe(
      Effect.mapBoth({
        onFailure: Option.some,
        onSuccess: () => {
          done = true
        }
      })
    )
    return Effect.catchAll(pull, (end) =>
      Option.isSome(end) ? Effect.fail(end) : Effect.zipRight(commit, Effect.fail(end))
    )
  })

/** Ends the transaction of a stream that nobody read to its end. */
const commitRest = (connection: Connection): Effect.Effect<void> =>
  isInTransaction(connection)
    ? Effect.catchAll(connection.run({ text: "COMMIT", timeoutMillis: controlMillis }), (error) =>
        Effect.logError("A stream that was left before its end could not be committed", error)
      )
    : Effect.void

const rollbackRest = (connection: Connection): Effect.Effect<void> =>
  Effect.zipRight(
    connection.quiet,
    Effect.suspend(() =>
      isInTransaction(connection)
        ? Effect.ignore(connection.run({ text: "ROLLBACK", timeoutMillis: controlMillis }))
        : Effect.void
    )
  )

const isInTransaction = (connection: Connection) => connection.isOpen && connection.transactionStatus !== "I"

/**
 * On a reserved connection: whatever a transaction that is open there did before is not ours to
 * repeat.
 */
const runAlone = (connection: Connection, request: Request): Effect.Effect<Response, DatabaseError> =>
  connection.transactionStatus === "I" ? runFresh(connection, request, Effect.void) : connection.run(request)

/**
 * Runs a statement and, when only the way in which it had been prepared made it fail, runs it
 * again, once and unprepared. What the error has undone is made good by `restart`.
 */
export const runFresh = (
  connection: Connection,
  request: Request,
  restart: Effect.Effect<void, DatabaseError>
): Effect.Effect<Response, DatabaseError> =>
  Effect.catchIf(
    connection.run(request),
    ({ reason }) => reason === connection.outdated,
    () =>
      Effect.zipRight(
        restart,
        Effect.suspend(() => connection.run({ ...request, prepare: false }))
      )
  )

const rowsOf = (response: Response) =>
  isMany(response) ? response.map((result) => result.rows) : response.rows

const isMany = (response: Response): response is Exclude<Response, { readonly rows: unknown }> =>
  Array.isArray(response)
