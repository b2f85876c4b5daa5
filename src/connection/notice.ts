import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import { dual } from "effect/Function"
import { globalValue } from "effect/GlobalValue"
import * as LogLevel from "effect/LogLevel"
import * as Runtime from "effect/Runtime"
import { type Shown } from "../DatabaseError.js"
import { classify, type ServerErrorLike, withoutRaised } from "../errors/classify.js"

/** What the server says beside an answer: PostgreSQL's NoticeResponse. */
export interface Notice extends Shown {
  readonly severity: NoticeSeverity
  /** The SQLSTATE, five characters. */
  readonly code: string
  /** The function of PostgreSQL's source that reported it. */
  readonly routine: string | undefined
  /** Whether the author of a function of the database wrote it. */
  readonly isRaised: boolean
}

/**
 * The severities that a server sends to clients, besides those of errors. DEBUG1 to DEBUG5 are one
 * here.
 */
export type NoticeSeverity = "DEBUG" | "LOG" | "INFO" | "NOTICE" | "WARNING"

/**
 * The statement that runs while the server says something, and the fiber that waits for its answer.
 */
export interface Asked {
  readonly text: string
  readonly fiber: Fiber.RuntimeFiber<unknown, unknown>
}

/** Takes what `pg` reads of a notice; between two statements nothing was asked. */
export type OnNotice = (message: NoticeLike, asked: Asked | undefined) => void

type NoticeLike = Omit<ServerErrorLike, "code"> & { readonly code?: string | undefined }

/** Logs a notice: WARNING at WARNING, INFO at INFO, NOTICE and LOG at DEBUG, DEBUG at TRACE. */
const log = (notice: Notice): Effect.Effect<void> => {
  const { code, detail, hint, message, routine, severity } = notice
  return Effect.logWithLevel(
    levels[severity],
    message ?? "the server sent a notice whose text can hold values"
  ).pipe(
    Effect.annotateLogs({
      code,
      severity,
      ...(message === undefined && routine !== undefined ? { routine } : {}),
      ...(detail === undefined ? {} : { detail }),
      ...(hint === undefined ? {} : { hint })
    })
  )
}

/** What a fiber does with the notices of its statements. */
const handler = globalValue("promptgrimoire-db/Notice/handler", () =>
  FiberRef.unsafeMake<(notice: Notice) => Effect.Effect<unknown>>(log)
)

/**
 * Gives the notices of the statements of an effect to `handle`, in the moment of each, and logs
 * none of them.
 */
export const withNotices: {
  (
    handle: (notice: Notice) => Effect.Effect<unknown>
  ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    handle: (notice: Notice) => Effect.Effect<unknown>
  ): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    handle: (notice: Notice) => Effect.Effect<unknown>
  ): Effect.Effect<A, E, R> => Effect.locally(effect, handler, handle)
)

/**
 * Tells the fiber that waits for the statement; what comes between two statements is told in the
 * given runtime.
 */
export const teller =
  (runtime: Runtime.Runtime<never>, showRaised: boolean): OnNotice =>
  (message, asked) => {
    const notice = read(message, asked?.text, showRaised)
    const where =
      asked === undefined
        ? runtime
        : Runtime.make({
            context: asked.fiber.currentContext,
            fiberRefs: asked.fiber.getFiberRefs(),
            runtimeFlags: runtime.runtimeFlags
          })
    Runtime.runFork(where)(
      // A handler that throws must not change what the server answers.
      Effect.ignore(Effect.sandbox(Effect.flatMap(FiberRef.get(handler), (handle) => handle(notice))))
    )
  }

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const levels: { readonly [Severity in NoticeSeverity]: LogLevel.LogLevel } = {
  DEBUG: LogLevel.Trace,
  LOG: LogLevel.Debug,
  INFO: LogLevel.Info,
  NOTICE: LogLevel.Debug,
  WARNING: LogLevel.Warning
}

const read = (message: NoticeLike, statement: string | undefined, showRaised: boolean): Notice => {
  const { code = "00000", detail, hint, message: text, routine } = message
  const classified = classify({ ...message, code }, statement)
  const reason = showRaised ? classified : withoutRaised(classified)
  const isRaised = "isRaised" in reason && reason.isRaised
  // Between two statements there is no parameter and no row that a text could be about.
  const shown =
    statement === undefined || !("shown" in reason) ? { message: text, detail, hint } : reason.shown
  return { severity: severityOf(message.severity, code, isRaised), code, routine, isRaised, ...shown }
}

/**
 * The severity is in the server's language. In another one than English the code tells a warning
 * from the rest.
 */
const severityOf = (severity: string | undefined, code: string, isRaised: boolean): NoticeSeverity => {
  const [word] = /^(?:DEBUG|LOG|INFO|NOTICE|WARNING)/.exec(severity ?? "") ?? []
  if (word !== undefined) return word as NoticeSeverity
  return code.startsWith("01") || (isRaised && code !== "00000") ? "WARNING" : "NOTICE"
}
