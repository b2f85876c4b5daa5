import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../DatabaseError.js"
import { PgConnection, type DialOptions, type Response } from "./connection.js"
import { endedError, statementError } from "./serverError.js"
import { Mutex } from "./mutex.js"

/**
 * A dedicated PostgreSQL session: one connection outside the pool that belongs to the scope it was
 * opened in and to nobody else. Advisory locks, LISTEN, `SET` and online schema changes need one.
 * It is opened over `directUrl`, so it never goes through a transaction pooler.
 */
export interface Session {
  /** The backend's process id, as in `pg_stat_activity.pid`. */
  readonly processId: number

  /**
   * Runs one statement and gives its rows as objects. Without parameters the text may hold several
   * statements separated by semicolons (the rows of the last one are given). An interruption
   * cancels the statement through PostgreSQL's cancel protocol; the next statement waits until the
   * backend is idle again. Statements of one session run one after the other.
   */
  readonly query: <Row extends object = Record<string, unknown>>(
    sql: string,
    params?: ReadonlyArray<unknown>,
    options?: QueryOptions
  ) => Effect.Effect<ReadonlyArray<Row>, DatabaseError>

  /**
   * Calls `listener` with each notification of the channels that the session listens to, until the
   * scope closes.
   */
  readonly onNotification: (
    listener: (notification: Notification) => void
  ) => Effect.Effect<void, never, Scope.Scope>

  /** Fails when the connection is lost; never succeeds. */
  readonly lost: Effect.Effect<never, DatabaseError>
}

/** How {@link Session.query} runs a statement. */
export interface QueryOptions {
  /**
   * Whether the server prepares the statement: when its text comes for the second time, or at once.
   * Only for texts whose columns never change: after an ALTER TABLE that changes them the statement
   * fails with 0A000. Default false.
   */
  readonly prepare?: boolean | "at once"
  /**
   * The connection is given up, and the statement fails with `ConnectionLost`, when the server has
   * not answered it within so many milliseconds. Default: as long as the session's limits allow.
   */
  readonly answerMillis?: number
}

/** A message of NOTIFY. */
export interface Notification {
  readonly channel: string
  /** Empty when NOTIFY had no payload. */
  readonly payload: string
  /** The backend that sent it. */
  readonly processId: number
}

/** Opens a session; it ends with the scope. */
export const open = (options: DialOptions): Effect.Effect<Session, DatabaseError, Scope.Scope> =>
  Effect.gen(function* () {
    const connection = yield* Effect.uninterruptibleMask((restore) =>
      Effect.tap(restore(PgConnection.dial(options)), (connection) =>
        Effect.addFinalizer(() => connection.close)
      )
    )
    const mutex = new Mutex()
    let ended = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        ended = true
      })
    )
    return {
      processId: connection.processId,
      query: <Row extends object>(
        text: string,
        values: ReadonlyArray<unknown> = [],
        { answerMillis, prepare = false }: QueryOptions = {}
      ) =>
        mutex.run(
          Effect.suspend(() =>
            ended
              ? Effect.fail(endedError)
              : Effect.map(
                  connection.run({ text, values, prepare, timeoutMillis: answerMillis }),
                  (response) => lastRows(response) as ReadonlyArray<Row>
                )
          )
        ),
      onNotification: (listener) =>
        Effect.asVoid(
          Effect.acquireRelease(
            Effect.sync(() =>
              connection.onNotification((message) =>
                listener({
                  channel: message.channel,
                  payload: message.payload ?? "",
                  processId: message.processId
                })
              )
            ),
            (stop) => Effect.sync(stop)
          )
        ),
      lost: Effect.async<never, DatabaseError>((resume) => {
        return Effect.sync(
          connection.onClose((error) => resume(Effect.fail(statementError(error, "acquire"))))
        )
      })
    }
  })

const lastRows = (response: Response): ReadonlyArray<unknown> => {
  const result = "rows" in response ? response : response.at(-1)
  return result?.rows ?? []
}
