/**
 * A database that fails at chosen statements, so that a program's handling of errors is tested on a
 * real server.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { DatabaseError } from "../DatabaseError.js"
import type { Connection, PortalHandle, Request, Response } from "../connection/connection.js"
import type { Source } from "../connection/copyIn.js"
import { CheckedOut, type Pool } from "../pool/pool.js"
import { WrappedConnection } from "./wrappedConnection.js"

/** What goes wrong. */
export type Fault =
  /**
   * The server refuses the statement with an SQLSTATE, such as `40001`; in a transaction that
   * aborts it.
   */
  | { readonly _tag: "Fail"; readonly code: string }
  /** A defect. */
  | { readonly _tag: "Die"; readonly defect: unknown }
  /** The statement waits until this effect succeeds. */
  | { readonly _tag: "Delay"; readonly until: Effect.Effect<unknown> }
  /**
   * The connection is lost before the statement is sent, or after it was carried out and before its
   * answer came.
   */
  | { readonly _tag: "Cut"; readonly when: "before" | "after" }

/** Where it goes wrong. */
export interface FaultPoint {
  /** `BEGIN`, `COMMIT` or `ROLLBACK`; or text that a statement contains or matches. */
  readonly at: string | RegExp
  /**
   * Which of the statements that match; 1, the first, when left out, and `every` for all of them.
   * Where several points mean one statement, the first of them in the list acts, and all of them
   * count it.
   */
  readonly occurrence?: number | "every" | undefined
  readonly fault: Fault
}

/**
 * Makes pools whose connections fail at chosen statements, counted over all of them, on a real
 * server: nothing is imitated.
 */
export const make = (points: ReadonlyArray<FaultPoint>): ((pool: Pool) => Pool) => {
  const counted = points.map((point) => ({ ...point, matches: matching(point.at), seen: 0 }))
  /** What goes wrong with a statement. Every point that it matches counts it. */
  const strike = (text: string): Fault | undefined => {
    const meant = counted.filter(({ matches }) => matches(text))
    for (const point of meant) point.seen++
    return meant.find(({ occurrence = 1, seen }) => occurrence === "every" || occurrence === seen)?.fault
  }
  return (pool) => {
    /** The pool's own connections, by what the program has instead of them. */
    const inners = new WeakMap<Connection, Connection>()
    const own = (connection: Connection) => inners.get(connection) ?? connection
    return {
      acquire: (restore) =>
        Effect.mapInputContext(pool.acquire(restore), (context: Context.Context<never>) =>
          Context.add(
            context,
            CheckedOut,
            Context.get(context, CheckedOut).map(({ connection, over }) => ({
              connection: own(connection),
              over
            }))
          )
        ).pipe(
          Effect.map((inner) => {
            const connection = new FailingConnection(inner, strike)
            inners.set(connection, inner)
            return connection
          })
        ),
      release: (connection) => pool.release(own(connection)),
      state: pool.state,
      events: pool.events
    }
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const controls = new Set(["BEGIN", "COMMIT", "ROLLBACK"])

/**
 * Whether a statement is meant. `ROLLBACK` is the end of a transaction and not a return to a
 * savepoint.
 */
const matching = (at: string | RegExp): ((text: string) => boolean) => {
  if (typeof at !== "string") {
    // A search looks at the whole text, whereas a test with the flag g or y goes on from where the
    // last one ended.
    return (text) => text.search(at) >= 0
  }
  if (!controls.has(at)) return (text) => text.includes(at)
  const control = new RegExp(`^${at}\\b(?!\\s+TO\\b)`, "i")
  return (text) => control.test(text.trim())
}

/** A connection on which chosen statements go wrong. */
class FailingConnection extends WrappedConnection {
  constructor(
    connection: Connection,
    private readonly strike: (text: string) => Fault | undefined
  ) {
    super(connection)
  }

  override run(request: Request): Effect.Effect<Response, DatabaseError> {
    return this.struck(request, super.run(request))
  }

  override copyIn<E, R>(text: string, source: Source<E, R>): Effect.Effect<number, E | DatabaseError, R> {
    return this.struck({ text }, super.copyIn(text, source))
  }

  /** A streamed statement goes wrong when it is sent, which is with its first rows. */
  override portal(text: string, values: ReadonlyArray<unknown>): PortalHandle {
    const portal = super.portal(text, values)
    return { ...portal, open: (rows) => this.struck({ text }, portal.open(rows)) }
  }

  private struck<A, E, R>(
    request: Pick<Request, "text" | "phase">,
    statement: Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | DatabaseError, R> {
    return Effect.suspend((): Effect.Effect<A, E | DatabaseError, R> => {
      const fault = this.strike(request.text)
      switch (fault?._tag) {
        case undefined:
          return statement
        case "Fail":
          return Effect.zipRight(this.inner.run({ text: raise(fault.code) }), statement)
        case "Die":
          return Effect.die(fault.defect)
        case "Delay":
          return Effect.zipRight(fault.until, statement)
        case "Cut":
          return fault.when === "before"
            ? Effect.zipRight(this.cut, statement)
            : Effect.zipRight(Effect.zipRight(statement, this.cut), Effect.fail(lost(request)))
      }
    })
  }

  /** The network goes: this side loses the connection at once, the server when it looks. */
  private readonly cut = Effect.sync(() => this.inner.destroy())
}

/** A real error of a real server, with the code that was asked for. */
const raise = (code: string) =>
  `DO $$ BEGIN RAISE EXCEPTION 'injected by the test' USING ERRCODE = '${code}'; END $$`

const lost = ({ phase }: Pick<Request, "phase">) =>
  new DatabaseError({
    operation: "execute",
    reason: { _tag: "ConnectionLost", phase: phase ?? "sent", systemCode: undefined }
  })
