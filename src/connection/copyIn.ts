import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Submittable } from "pg"
import type { DatabaseError } from "../DatabaseError.js"

/**
 * The data of a COPY, piece by piece; fails with `None` at the end. A piece may end anywhere in a
 * row.
 */
export type Source<E, R> = Effect.Effect<Buffer, Option.Option<E>, R>

/** Runs COPY ... FROM STDIN with the data of a source, and gives the number of rows. */
export type CopyIn = <E, R>(text: string, source: Source<E, R>) => Effect.Effect<number, E | DatabaseError, R>

/** What a COPY needs of the connection that it runs on. */
export interface CopyChannel {
  /**
   * Submits a query and resumes when the server is ready again; an interruption cancels the
   * statement.
   */
  readonly exchange: (
    make: (callback: (error: unknown, rows: number | undefined) => void) => Submittable
  ) => Effect.Effect<number, DatabaseError>
  /** Gives the connection up when what is waited for, by the server, does not come. */
  readonly watched: <A, E, R>(wait: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

/**
 * A COPY is one statement: all its rows are stored, or none. When the source fails or is
 * interrupted, the server is told so (CopyFail) and ends the statement with an error; the
 * connection can be used again when it has.
 *
 * An interruption also cancels the statement, because the server may wait for a lock and read
 * nothing: and it tells of it first, because a server that waits for data looks for no
 * cancellation.
 */
export const run = <E, R>(
  text: string,
  source: Source<E, R>,
  { exchange, watched }: CopyChannel
): Effect.Effect<number, E | DatabaseError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const opened = yield* Deferred.make<void>()
      const copy = new Copying(text, () => Deferred.unsafeDone(opened, Exit.void))
      const answer = yield* Effect.forkDaemon(
        Effect.interruptible(exchange((callback) => copy.endingWith(callback)))
      )
      const feed = source.pipe(
        Effect.flatMap((data) => watched(copy.send(data))),
        Effect.forever,
        Effect.catchAll(
          Option.match({
            onNone: () => Effect.sync(() => copy.done()),
            onSome: (error) => Effect.fail(error)
          })
        )
      )
      // The server may answer, with an error, before it has been given everything.
      const fed = yield* Effect.exit(
        restore(
          Effect.raceFirst(
            Effect.zipRight(watched(Deferred.await(opened)), feed),
            Effect.asVoid(Fiber.await(answer))
          )
        )
      )
      if (Exit.isFailure(fed)) copy.giveUp()
      const answered = yield* Effect.onInterrupt(restore(watched(Fiber.await(answer))), () =>
        Fiber.interrupt(answer)
      )
      return Exit.isFailure(fed) ? yield* Effect.failCause(fed.cause) : yield* answered
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * The part of `pg`'s connection that speaks COPY (documentation, chapter "Message Flow", "COPY
 * Operations").
 */
interface Wire {
  readonly stream: {
    readonly writableNeedDrain: boolean
    once(event: "drain", listener: () => void): unknown
    off(event: "drain", listener: () => void): unknown
  }
  query(text: string): void
  sendCopyFromChunk(data: Buffer): void
  endCopyFrom(): void
  sendCopyFail(message: string): void
}

/** The exchange with the server: `pg` calls the handlers as the answers come in. */
class Copying implements Submittable {
  callback: (error: unknown, rows: number | undefined) => void = ignore
  private wire: Wire | undefined
  private state: "asked" | "reading" | "given up" | "over" = "asked"
  private rows = 0

  constructor(
    private readonly text: string,
    private readonly onOpen: () => void
  ) {}

  endingWith(callback: Copying["callback"]): this {
    this.callback = callback
    return this
  }

  /**
   * Sends data, and resumes when the socket takes more. What the server does not read any more is
   * not sent.
   */
  send(data: Buffer): Effect.Effect<void> {
    return Effect.async<void>((resume) => {
      const { wire } = this
      let turn: NodeJS.Immediate | undefined
      // A socket that takes everything at once drains within this turn of the event loop, so that
      // nothing would be read while rows are there to be sent: not even that the server has refused
      // one.
      const drained = () => {
        turn = setImmediate(() => resume(Effect.void))
      }
      if (this.state === "reading") wire?.sendCopyFromChunk(data)
      if (wire?.stream.writableNeedDrain === true) wire.stream.once("drain", drained)
      else drained()
      return Effect.sync(() => {
        wire?.stream.off("drain", drained)
        clearImmediate(turn)
      })
    })
  }

  /** That was all. */
  done(): void {
    if (this.state === "reading") this.wire?.endCopyFrom()
    this.state = "over"
  }

  /** Nothing more comes, and nothing of it is to be kept. */
  giveUp(): void {
    if (this.state === "reading") this.fail()
    else if (this.state === "asked") this.state = "given up"
  }

  submit(connection: unknown): void {
    this.wire = connection as Wire
    this.wire.query(this.text)
  }

  handleCopyInResponse(): void {
    if (this.state === "given up") return this.fail()
    this.state = "reading"
    this.onOpen()
  }

  handleCommandComplete({ text }: { readonly text: string }): void {
    this.rows = Number(/^COPY (\d+)$/.exec(text)?.[1] ?? 0)
  }

  handleReadyForQuery(): void {
    this.callback(null, this.rows)
  }

  handleError(error: unknown): void {
    this.state = "over"
    this.callback(error, undefined)
  }

  private fail(): void {
    this.state = "over"
    this.wire?.sendCopyFail("the rows ended before they were complete")
  }
}

const ignore = () => {}
