import * as Effect from "effect/Effect"
import { DatabaseError } from "../DatabaseError.js"
import type { Line, PortalHandle, Request, Response } from "../driver/Backend.js"
import type { Pool } from "../driver/Pool.js"

/** What goes wrong. */
export type Fault =
  /** The server refuses the statement with an SQLSTATE, such as `40001`; in a transaction that aborts it. */
  | { readonly _tag: "Fail"; readonly code: string }
  /** A defect. */
  | { readonly _tag: "Die"; readonly defect: unknown }
  /** The statement waits until this effect succeeds. */
  | { readonly _tag: "Delay"; readonly until: Effect.Effect<unknown> }
  /** The connection is lost before the statement is sent, or after it was carried out and before its answer came. */
  | { readonly _tag: "Cut"; readonly when: "before" | "after" }

/** Where it goes wrong. */
export interface FaultPoint {
  /** `BEGIN`, `COMMIT` or `ROLLBACK`; or text that a statement contains or matches. */
  readonly at: string | RegExp
  /** Which of the statements that match; 1, the first, when left out, and `every` for all of them. */
  readonly occurrence?: number | "every" | undefined
  readonly fault: Fault
}

/** A pool whose connections fail at chosen statements, on a real server: nothing is imitated. */
export const make = (pool: Pool, points: ReadonlyArray<FaultPoint>): Effect.Effect<Pool> =>
  Effect.sync(() => {
    const seen = new Map<FaultPoint, number>()
    const hit = ({ text }: { readonly text: string }): Fault | undefined => {
      for (const point of points) {
        if (!matches(point.at, text)) continue
        const count = (seen.get(point) ?? 0) + 1
        seen.set(point, count)
        const wanted = point.occurrence ?? 1
        if (wanted === "every" || wanted === count) return point.fault
      }
      return undefined
    }
    const lent = new WeakMap<Line, Line>()
    return {
      acquire: (restore) =>
        Effect.map(pool.acquire(restore), (backend) => {
          const line = failing(backend, hit)
          lent.set(line, backend)
          return line
        }),
      release: (line) => pool.release(lent.get(line) ?? line),
      state: pool.state,
      events: pool.events
    }
  })

const controls = new Set(["BEGIN", "COMMIT", "ROLLBACK"])

/** `ROLLBACK` is the end of a transaction and not a return to a savepoint. */
const matches = (at: string | RegExp, text: string): boolean => {
  if (typeof at !== "string") return at.test(text)
  return controls.has(at) ? new RegExp(`^${at}\\b(?!\\s+TO\\b)`, "i").test(text.trim()) : text.includes(at)
}

const failing = (backend: Line, hit: (request: Request) => Fault | undefined): Line => {
  const act = <A, E, R>(
    fault: Fault | undefined,
    request: Request,
    statement: Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | DatabaseError, R> => {
    switch (fault?._tag) {
      case undefined:
        return statement
      case "Fail":
        return Effect.zipRight(backend.run({ text: raise(fault.code) }), statement)
      case "Die":
        return Effect.die(fault.defect)
      case "Delay":
        return Effect.zipRight(fault.until, statement)
      case "Cut":
        return fault.when === "before"
          ? Effect.zipRight(cut(backend), statement)
          : Effect.zipRight(Effect.zipRight(statement, cut(backend)), Effect.fail(lost(request)))
    }
  }
  const run = (request: Request): Effect.Effect<Response, DatabaseError> =>
    Effect.suspend(() => act(hit(request), request, backend.run(request)))
  return {
    get processId() {
      return backend.processId
    },
    get isOpen() {
      return backend.isOpen
    },
    get isQuiet() {
      return backend.isQuiet
    },
    get quiet() {
      return backend.quiet
    },
    get abortedBy() {
      return backend.abortedBy
    },
    get transactionStatus() {
      return backend.transactionStatus
    },
    get expectsReadOnly() {
      return backend.expectsReadOnly
    },
    set expectsReadOnly(value) {
      backend.expectsReadOnly = value
    },
    destroy: (cause) => backend.destroy(cause),
    run,
    copyIn: (text, source) =>
      Effect.suspend(() => act(hit({ text }), { text }, backend.copyIn(text, source))),
    portal: (text: string, values: ReadonlyArray<unknown>): PortalHandle => {
      const portal = backend.portal(text, values)
      const fault = hit({ text })
      return fault?._tag === "Fail"
        ? {
            ...portal,
            open: (rows) => Effect.zipRight(backend.run({ text: raise(fault.code) }), portal.open(rows))
          }
        : portal
    }
  }
}

/** A real error of a real server, with the code that was asked for. */
const raise = (code: string) =>
  `DO $$ BEGIN RAISE EXCEPTION 'injected by the test' USING ERRCODE = '${code}'; END $$`

const lost = (request: Request) =>
  new DatabaseError({
    operation: "execute",
    reason: { _tag: "ConnectionLost", phase: request.phase ?? "sent", systemCode: undefined }
  })

/** The network goes: this side loses the connection at once, the server when it looks. */
const cut = (backend: Line): Effect.Effect<void> => Effect.sync(() => backend.destroy())
