import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import { inspect } from "node:util"

/** Everything that a program can show to somebody, as texts. */
export interface Capture {
  readonly texts: Array<string>
  /** Log records of every level, spans and their attributes and events are kept, not printed. */
  readonly layer: Layer.Layer<never>
  /** Runs an effect and keeps every way to print how it ended; gives its exit. */
  readonly exit: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<Exit.Exit<A, E>, never, R>
  /** Keeps the metrics of the process. */
  readonly metrics: Effect.Effect<void>
}

/** Makes a {@link Capture}. */
export const make = (): Capture => {
  const texts: Array<string> = []
  const keep = (value: unknown) => void texts.push(...prints(value))
  const logger = Logger.make<unknown, void>((options) => {
    texts.push(
      Logger.stringLogger.log(options),
      Logger.jsonLogger.log(options),
      Logger.logfmtLogger.log(options),
      inspect(Logger.structuredLogger.log(options), { depth: 10 }),
      Cause.pretty(options.cause, { renderErrorCause: true })
    )
    keep(options.message)
  })
  const tracer = Tracer.make({
    span: (name, parent, context, links, startTime, kind) => {
      texts.push(name)
      const attributes = new Map<string, unknown>()
      const span: Tracer.Span = {
        _tag: "Span",
        name,
        spanId: name,
        traceId: "trace",
        parent,
        context,
        status: { _tag: "Started", startTime },
        attributes,
        links,
        sampled: true,
        kind,
        // What a span succeeds with is its caller's; nobody exports it.
        end: (_, exit) => (Exit.isFailure(exit) ? keep(exit) : undefined),
        attribute: (key, value) => {
          attributes.set(key, value)
          keep([key, value])
        },
        event: (event, _, more) => keep([event, more]),
        addLinks: (more) => keep(more.map((link) => link.attributes))
      }
      return span
    },
    context: (run) => run()
  })
  return {
    texts,
    layer: Layer.mergeAll(
      Logger.replace(Logger.defaultLogger, logger),
      Logger.minimumLogLevel(LogLevel.All),
      Layer.setTracer(tracer)
    ),
    exit: (effect) =>
      Effect.tap(Effect.exit(effect), (exit) =>
        Effect.sync(() => {
          if (Exit.isSuccess(exit)) return
          keep(exit.cause)
          texts.push(Cause.pretty(exit.cause), Cause.pretty(exit.cause, { renderErrorCause: true }))
          keep(Cause.squash(exit.cause))
          Option.map(Cause.failureOption(exit.cause), keep)
          for (const error of Cause.prettyErrors(exit.cause)) keep(error)
        })
      ),
    metrics: Effect.map(Metric.snapshot, (pairs) => {
      for (const { metricKey } of pairs) {
        texts.push(metricKey.name, inspect(metricKey.tags, { depth: 10 }), JSON.stringify(metricKey.tags))
      }
    })
  }
}

/** The ways in which a value gets printed, errors with their causes. */
export const prints = (value: unknown): ReadonlyArray<string> => {
  const texts = [String(value), inspect(value, { depth: 10 }), json(value)]
  if (value instanceof Error) texts.push(value.message, value.stack ?? "", ...prints(value.cause))
  return texts
}

const json = (value: unknown): string => {
  try {
    return JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? String(part) : part)) ?? ""
  } catch (error) {
    // Circular: inspected above.
    return String(error)
  }
}
