import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as DefaultServices from "effect/DefaultServices"
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type * as Fiber from "effect/Fiber"
import { identity } from "effect/Function"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { errorAttributes } from "../telemetry/metrics.js"
import { Summaries } from "./summaries.js"

/** What the statements of one client share. */
export interface Tracing {
  /** The connection of the transaction that a context is in, or one that borrows. */
  readonly connectionIn: (context: Context.Context<never>) => SqlConnection
  /** The attributes of every span. */
  readonly attributes: Readonly<Record<string, unknown>>
}

/**
 * Statements that find their connection by the context they run in, with the spans of
 * OpenTelemetry's semantic conventions for PostgreSQL. Those that `@effect/sql` makes have the
 * method's name for an operation, no error's code, and a name that all statements share.
 */
export const traced = (statements: Statement.Constructor, tracing: Tracing): Statement.Constructor => {
  const shared: Shared = {
    ...tracing,
    summaries: new Summaries(),
    constructor: () => constructor
  }
  const constructor: Statement.Constructor = Object.defineProperties(
    ((strings: TemplateStringsArray | string, ...args: ReadonlyArray<never>) => {
      const made: unknown = typeof strings === "string" ? statements(strings) : statements(strings, ...args)
      return typeof strings === "string" ? made : new Traced(made as Statement.Statement<object>, shared)
    }) as Statement.Constructor,
    {
      ...Object.getOwnPropertyDescriptors(
        statements as unknown as Record<Exclude<keyof Statement.Constructor, never>, unknown>
      ),
      unsafe: {
        value: (text: string, params?: ReadonlyArray<unknown>) =>
          new Traced(statements.unsafe(text, params), shared)
      }
    }
  )
  return constructor
}

/** Runs what sends a statement without being one of `@effect/sql`'s in the span that those have. */
export const traceAs = (
  attributes: Tracing["attributes"]
): (<A, E, R>(sql: string, effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) => {
  const named: Named = { attributes, summaries: new Summaries() }
  return (sql, effect) => {
    const { name, options } = spanOf(sql, named)
    return Effect.useSpan(name, options, (span) =>
      Effect.withParentSpan(
        Effect.tapError(effect, (error) => annotate(span, error)),
        span
      )
    )
  }
}

// -----------------------------------------------------------------------------

interface Named {
  readonly attributes: Tracing["attributes"]
  readonly summaries: Summaries
}

interface Shared extends Tracing, Named {
  readonly constructor: () => Statement.Constructor
}

type Call<X> = (connection: SqlConnection, sql: string, params: ReadonlyArray<unknown>) => X

class Traced<A extends object>
  extends Effectable.Class<ReadonlyArray<A>, SqlError>
  implements Statement.Statement<A>
{
  constructor(
    private readonly plain: Statement.Statement<A>,
    private readonly shared: Shared
  ) {
    super()
  }

  get [Statement.FragmentId]() {
    return identity
  }

  get segments() {
    return this.plain.segments
  }

  compile(withoutTransform?: boolean) {
    return this.plain.compile(withoutTransform)
  }

  /** The text alone: parameters are not for logs. */
  toJSON() {
    return { _id: "@effect/sql/Statement", sql: this.compile()[0] }
  }

  override commit() {
    return this.send((connection, sql, params) =>
      connection.execute(sql, params, undefined)
    ) as Effect.Effect<ReadonlyArray<A>, SqlError>
  }

  get withoutTransform() {
    return this.commit()
  }

  get raw() {
    return this.send((connection, sql, params) => connection.executeRaw(sql, params))
  }

  get values() {
    return this.send((connection, sql, params) => connection.executeValues(sql, params))
  }

  get unprepared() {
    return this.send((connection, sql, params) =>
      connection.executeUnprepared(sql, params, undefined)
    ) as Effect.Effect<ReadonlyArray<A>, SqlError>
  }

  get stream(): Stream.Stream<A, SqlError> {
    const open: Call<Stream.Stream<A, SqlError>> = (connection, sql, params) =>
      connection.executeStream(sql, params, undefined) as Stream.Stream<A, SqlError>
    return Stream.unwrapScoped(
      Effect.withFiberRuntime((fiber) => {
        const connection = this.shared.connectionIn(fiber.currentContext)
        if (!isObserved(fiber)) return Effect.sync(() => open(connection, ...this.compile()))
        const { name, options } = spanOf(this.compile()[0], this.shared)
        return Effect.flatMap(Effect.makeSpanScoped(name, options), (span) =>
          Effect.map(this.transformed(fiber, span), (statement) =>
            Stream.provideService(
              Stream.tapError(open(connection, ...statement.compile()), (error) => annotate(span, error)),
              Tracer.ParentSpan,
              span
            )
          )
        )
      })
    )
  }

  private send<X>(call: Call<Effect.Effect<X, SqlError>>): Effect.Effect<X, SqlError> {
    return Effect.withFiberRuntime((fiber) => {
      const connection = this.shared.connectionIn(fiber.currentContext)
      if (!isObserved(fiber)) return call(connection, ...this.compile())
      const { name, options } = spanOf(this.compile()[0], this.shared)
      return Effect.useSpan(name, options, (span) =>
        Effect.tapError(
          Effect.flatMap(this.transformed(fiber, span), (statement) =>
            Effect.withParentSpan(call(connection, ...statement.compile()), span)
          ),
          (error) => annotate(span, error)
        )
      )
    })
  }

  /** What a `Statement.withTransformer` around it makes of this statement. */
  private transformed(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    span: Tracer.Span
  ): Effect.Effect<Statement.Statement<unknown>, SqlError> {
    const transformer = fiber.getFiberRef(Statement.currentTransformer)
    return transformer._tag === "None"
      ? Effect.succeed(this)
      : Effect.tap(
          transformer.value(this, this.shared.constructor(), fiber.getFiberRefs(), span),
          (statement) => Effect.sync(() => span.attribute("db.query.text", statement.compile()[0]))
        )
  }
}

const spanOf = (
  sql: string,
  { attributes, summaries }: Named
): { readonly name: string; readonly options: Tracer.SpanOptions } => {
  const { operation, table, text } = summaries.of(sql)
  return {
    name: text,
    options: {
      kind: "client",
      captureStackTrace: false,
      attributes: {
        ...attributes,
        "db.query.text": sql,
        "db.query.summary": text,
        ...(operation === undefined ? {} : { "db.operation.name": operation }),
        ...(table === undefined ? {} : { "db.collection.name": table })
      }
    }
  }
}

/** Whether anybody can see a statement's span: Effect's own tracer keeps none. */
const isObserved = (fiber: Fiber.RuntimeFiber<unknown, unknown>): boolean =>
  fiber.currentTracer !== nativeTracer || fiber.getFiberRef(Statement.currentTransformer)._tag === "Some"

const nativeTracer = Context.get(DefaultServices.liveServices, Tracer.Tracer)

const annotate = (span: Tracer.Span, error: unknown): Effect.Effect<void> =>
  Effect.sync(() => {
    for (const [key, value] of errorAttributes(error)) span.attribute(key, value)
  })
