import type { Connection } from "@effect/sql/SqlConnection"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { DatabaseError } from "../DatabaseError.js"
import {
  controlMillis,
  type Line,
  type PortalHandle,
  type Request,
  type Response
} from "../connection/connection.js"
import * as Commit from "../connection/commit.js"
import type { CopyIn } from "../connection/copyIn.js"
import type { AppliedErrorPolicy } from "../errors/errorPolicy.js"
import { endedError } from "../connection/serverError.js"
import * as Pool from "./pool.js"
import { Mutex } from "../connection/mutex.js"

type Run = (request: Request) => Effect.Effect<Response, DatabaseError>

/** Rows that a stream fetches in one round trip. */
const batchRows = 128

/** The `Connection` of `@effect/sql`, and COPY beside it. */
export interface CopyConnection extends Connection {
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
    (request) => Pool.use(pool, (backend) => runFresh(backend, request, Effect.void)),
    (text, values) =>
      scopedStream(
        Effect.flatMap(Pool.borrow(pool), (backend) =>
          pullInOwnTransaction(backend, { begin, decisions }, text, values)
        )
      ),
    (text, source) => Pool.use(pool, (backend) => backend.copyIn(text, Pool.holding(backend)(source)))
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
    const backend = yield* Pool.borrow(pool)
    if (resets) yield* Effect.addFinalizer(() => reset(backend))
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
      (request) => guarded(Effect.suspend(() => runAlone(backend, request))),
      (text, values) =>
        scopedStream(
          guarded(
            Effect.suspend(() =>
              backend.transactionStatus === "I"
                ? Effect.zipRight(
                    alone,
                    pullInOwnTransaction(backend, { begin, decisions }, text, values, isOver)
                  )
                : pullPortal(backend.portal(text, values), guarded)
            )
          )
        ),
      (text, source) => guarded(backend.copyIn(text, source))
    )
  })

/**
 * What the user of a reserved connection has set, created, locked or listened to is the session's,
 * and SELECT alone can do all of that: it is ended in any case before anybody else gets the
 * connection, or the connection is.
 */
const reset = (backend: Line): Effect.Effect<void> =>
  Effect.zipRight(
    backend.quiet,
    Effect.suspend(() =>
      backend.isOpen && backend.transactionStatus === "I"
        ? Effect.catchAll(backend.reset, () => Effect.sync(() => backend.destroy()))
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
  backend: Line,
  { begin, decisions }: { readonly begin: string; readonly decisions: AppliedErrorPolicy },
  text: string,
  values: ReadonlyArray<unknown>,
  isOver: () => boolean = () => false
): Effect.Effect<Pull, DatabaseError, Scope.Scope> =>
  Effect.gen(function* () {
    let done = false
    yield* Effect.addFinalizer((exit) =>
      done || isOver() ? Effect.void : Exit.isSuccess(exit) ? commitRest(backend) : rollbackRest(backend)
    )
    yield* backend.run({ text: begin, isControl: true })
    const own: Turn = (step) => Effect.suspend(() => (isOver() ? Effect.fail(endedError) : step))
    const pull = yield* pullPortal(backend.portal(text, values), own)
    const commit = own(Commit.commit(backend, { decisions })).pipe(
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
const commitRest = (backend: Line): Effect.Effect<void> =>
  isInTransaction(backend)
    ? Effect.catchAll(backend.run({ text: "COMMIT", timeoutMillis: controlMillis }), (error) =>
        Effect.logError("A stream that was left before its end could not be committed", error)
      )
    : Effect.void

const rollbackRest = (backend: Line): Effect.Effect<void> =>
  Effect.zipRight(
    backend.quiet,
    Effect.suspend(() =>
      isInTransaction(backend)
        ? Effect.ignore(backend.run({ text: "ROLLBACK", timeoutMillis: controlMillis }))
        : Effect.void
    )
  )

const isInTransaction = (backend: Line) => backend.isOpen && backend.transactionStatus !== "I"

/**
 * On a reserved connection: whatever a transaction that is open there did before is not ours to
 * repeat.
 */
const runAlone = (backend: Line, request: Request): Effect.Effect<Response, DatabaseError> =>
  backend.transactionStatus === "I" ? runFresh(backend, request, Effect.void) : backend.run(request)

/**
 * Runs a statement and, when only the way in which it had been prepared made it fail, runs it
 * again, once and unprepared. What the error has undone is made good by `restart`.
 */
export const runFresh = (
  backend: Line,
  request: Request,
  restart: Effect.Effect<void, DatabaseError>
): Effect.Effect<Response, DatabaseError> =>
  Effect.catchIf(
    backend.run(request),
    ({ reason }) => reason === backend.outdated,
    () =>
      Effect.zipRight(
        restart,
        Effect.suspend(() => backend.run({ ...request, prepare: false }))
      )
  )

const rowsOf = (response: Response) =>
  isMany(response) ? response.map((result) => result.rows) : response.rows

const isMany = (response: Response): response is Exclude<Response, { readonly rows: unknown }> =>
  Array.isArray(response)
