import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Pg from "pg"
import { DatabaseError, type Phase } from "../DatabaseError.js"
import { type BackendKey, cancel } from "./Cancel.js"
import type { Endpoint } from "./Endpoint.js"
import { connectError, statementError } from "./errors.js"
import { type Batch, Portal } from "./Portal.js"
import { StatementCache } from "./StatementCache.js"

/** What is asked of a server when a connection is opened. */
export interface DialOptions {
  readonly endpoint: Endpoint
  readonly connectTimeout: Duration.Duration
  readonly applicationName: string
  /** Server-side limits in the startup packet; `undefined` behind a pooler, which would refuse them. */
  readonly timeouts: SessionTimeouts | undefined
  readonly prepare: boolean
  /** Whether a backend may be used again after its statement was cancelled. Not behind a pooler. */
  readonly reuseAfterCancel: boolean
}

/** PostgreSQL's client connection defaults; infinity is 0, which switches a limit off. */
export interface SessionTimeouts {
  readonly statementTimeout: Duration.Duration
  readonly lockTimeout: Duration.Duration
  readonly idleInTransactionTimeout: Duration.Duration
}

/** A statement to run. */
export interface Request {
  readonly text: string
  readonly values?: ReadonlyArray<unknown>
  readonly rowMode?: "array"
  /** Whether it may be prepared on the server. */
  readonly prepare?: boolean
  /** What a lost connection means while it runs. */
  readonly phase?: Phase
}

/** What the server answered. A text of several statements has several results. */
export type Response = Pg.QueryResult | ReadonlyArray<Pg.QueryResult>

/** PostgreSQL's ReadyForQuery status: idle, in a transaction block, in a failed transaction block. */
export type TransactionStatus = "I" | "T" | "E"

/**
 * One open connection to one PostgreSQL backend: runs one statement at a time, knows whether it is idle, cancels what was
 * interrupted. It belongs to one user at a time; whoever shares it takes turns outside.
 */
export class Backend {
  readonly processId: number
  private open = true
  private running = false
  private settling: Fiber.RuntimeFiber<void> | undefined
  private portals = 0
  private readonly statements = new StatementCache()
  private readonly closeListeners: Array<(error: unknown) => void> = []
  /** Called with every error that a statement fails with. */
  onError: (error: DatabaseError) => void = ignore
  /** Whether the open transaction asked to be read only, so that 25006 says nothing about the server. */
  expectsReadOnly = false
  private readonly notificationListeners = new Set<(message: Pg.Notification) => void>()

  private constructor(
    private readonly client: Pg.Client & ClientInternals,
    readonly options: DialOptions,
    /** Clock time of the dial, in milliseconds. */
    readonly openedAt: number
  ) {
    this.processId = client.processID
    client.on("error", (error) => this.markClosed(error))
    client.on("end", () => this.markClosed(undefined))
    client.on("notification", (message) => {
      for (const listener of this.notificationListeners) listener(message)
    })
  }

  /** Opens a connection. An interruption closes the socket; nothing is left behind. */
  static dial(options: DialOptions): Effect.Effect<Backend, DatabaseError> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) =>
      Effect.async<Backend, DatabaseError>((resume) => {
        const client = new Pg.Client(clientConfig(options)) as Pg.Client & ClientInternals
        client.on("error", ignore)
        client.connect((error: Error | null) => {
          if (error === null || error === undefined) {
            resume(Effect.succeed(new Backend(client, options, now)))
          } else {
            client.connection.stream.destroy()
            resume(Effect.fail(connectError(error, options.endpoint)))
          }
        })
        return Effect.sync(() => {
          client.connection.stream.destroy()
        })
      })
    )
  }

  /** Whether the connection can take a statement. */
  get isOpen(): boolean {
    return this.open
  }

  /** Whether nothing runs on it and no cancellation is on its way to it. */
  get isQuiet(): boolean {
    return !this.running && this.settling === undefined
  }

  /** The transaction status that the server reported last. */
  get transactionStatus(): TransactionStatus {
    return (this.client.getTransactionStatus() as TransactionStatus | null) ?? "I"
  }

  /** Calls back once, when the connection is closed by either side. */
  onClose(listener: (error: unknown) => void): void {
    if (this.open) this.closeListeners.push(listener)
    else listener(undefined)
  }

  /** Calls back at each notification; gives the function that ends it. */
  onNotification(listener: (message: Pg.Notification) => void): () => void {
    this.notificationListeners.add(listener)
    return () => this.notificationListeners.delete(listener)
  }

  /**
   * Runs a statement. An interruption cancels it on the server; the caller goes on after 100 ms at the latest, and the
   * connection counts as quiet when the server has confirmed that nothing runs and no cancellation can still arrive.
   */
  run(request: Request): Effect.Effect<Response, DatabaseError> {
    return this.afterSettling(() => {
      const problem = invalidRequest(request)
      if (problem !== undefined) {
        return Effect.fail(
          new DatabaseError({ operation: "execute", reason: { _tag: "InvalidRequest", problem } })
        )
      }
      const name =
        this.options.prepare && request.prepare === true ? this.statements.use(request.text) : undefined
      const discarded = this.transactionStatus === "E" ? [] : this.statements.takeDiscarded()
      const run = this.exchange<Response>((callback) => {
        const values = request.values ?? []
        this.client.query(
          {
            text: request.text,
            ...(values.length > 0 ? { values: values as Array<unknown> } : {}),
            ...(name === undefined ? {} : { name }),
            ...(request.rowMode === undefined ? {} : { rowMode: request.rowMode })
          } as Pg.QueryConfig,
          callback as (error: Error, result: Pg.QueryResult) => void
        )
      }, request)
      return discarded.length === 0
        ? run
        : Effect.zipRight(
            Effect.ignore(this.run({ text: discarded.map((old) => `DEALLOCATE ${old}`).join(";") })),
            run
          )
    })
  }

  /** Resumes once the connection is quiet again. */
  readonly quiet: Effect.Effect<void> = Effect.suspend(() =>
    this.settling === undefined ? this.ended : Effect.asVoid(Fiber.await(this.settling))
  )

  /** Forgets a prepared statement whose plan no longer fits the tables. */
  forgetPrepared(text: string): void {
    this.statements.forget(text)
  }

  /** A portal over a statement; see {@link Portal}. Needs an open transaction block. */
  portal(text: string, values: ReadonlyArray<unknown>): PortalHandle {
    const request: Request = { text, values }
    const portal = new Portal(`p${++this.portals}`, text, values)
    const step = (make: (callback: (error: unknown, batch: Batch | undefined) => void) => Pg.Submittable) =>
      this.afterSettling(() =>
        this.exchange<Batch>((callback) => {
          this.client.query(make(callback))
        }, request)
      )
    const problem = invalidRequest(request)
    return {
      open: (rows) =>
        problem === undefined
          ? step(portal.open(rows))
          : Effect.fail(
              new DatabaseError({ operation: "stream", reason: { _tag: "InvalidRequest", problem } })
            ),
      fetch: (rows) => step(portal.fetch(rows)),
      close: Effect.asVoid(step(portal.close()))
    }
  }

  /** Says goodbye to the server and waits until it has closed the connection, at most a second. */
  readonly close: Effect.Effect<void> = Effect.async<void>((resume) => {
    this.open = false
    this.client.end(() => resume(Effect.void))
  }).pipe(Effect.timeoutOption("1 second"), Effect.ensuring(Effect.sync(() => this.destroy())), Effect.asVoid)

  /** Closes the socket at once. */
  destroy(): void {
    this.client.connection.stream.destroy()
    this.markClosed(undefined)
  }

  // ---------------------------------------------------------------------------

  private markClosed(error: unknown): void {
    this.open = false
    for (const listener of this.closeListeners.splice(0)) listener(error)
  }

  private afterSettling<A>(next: () => Effect.Effect<A, DatabaseError>): Effect.Effect<A, DatabaseError> {
    return Effect.suspend(() =>
      this.settling === undefined ? next() : Effect.zipRight(Fiber.await(this.settling), Effect.suspend(next))
    )
  }

  /** Sends something, and resumes when the server is ready for the next statement or the connection is lost. */
  private exchange<A>(
    send: (callback: (error: unknown, result: A | undefined) => void) => void,
    request: Request
  ): Effect.Effect<A, DatabaseError> {
    return Effect.async<A, DatabaseError>((resume) => {
      const phase = request.phase ?? "sent"
      if (!this.open) {
        resume(Effect.fail(statementError(undefined, "acquire")))
        return
      }
      this.running = true
      const finish = (exit: Effect.Effect<A, DatabaseError>) => {
        this.running = false
        resume(exit)
      }
      send((error, result) => {
        if (error === null || error === undefined) return finish(Effect.succeed(result as A))
        const failure = statementError(error, this.open ? undefined : phase)
        if (isBroken(failure)) this.destroy()
        this.onError(failure)
        // An error comes before the server is ready again: until then the connection is not idle.
        if (!this.open) return finish(Effect.fail(failure))
        const end = () => {
          this.client.off("drain", end)
          this.client.off("end", end)
          finish(Effect.fail(failure))
        }
        this.client.on("drain", end)
        this.client.on("end", end)
      })
      return this.interrupt
    })
  }

  /** Starts to settle what was interrupted and waits for it, but not for long. */
  private readonly interrupt: Effect.Effect<void> = Effect.suspend(() => {
    if (!this.running || !this.open) return Effect.void
    return Effect.flatMap(Effect.forkDaemon(Effect.interruptible(this.settle)), (fiber) => {
      this.settling = fiber
      return Effect.timeoutOption(Effect.interruptible(Fiber.await(fiber)), "100 millis")
    })
  })

  /**
   * Makes the connection quiet after an interruption: cancels, waits for the statement's end and for the server's word that
   * the cancellation was delivered, then runs an empty statement that takes a late cancellation upon itself. A connection
   * that is not quiet after two seconds is closed.
   */
  private readonly settle: Effect.Effect<void> = Effect.gen(this, function* () {
    const delivered = yield* cancel(this.options.endpoint, this.key)
    yield* this.ended
    if (!delivered || !this.options.reuseAfterCancel) return yield* Effect.sync(() => this.destroy())
    if (this.open) {
      yield* Effect.ignore(
        this.exchange<unknown>((callback) => this.client.query(barrier, callback), { text: barrier })
      )
    }
  }).pipe(
    Effect.timeoutOption("2 seconds"),
    Effect.flatMap((done) => (done._tag === "None" ? Effect.sync(() => this.destroy()) : Effect.void)),
    Effect.ensuring(
      Effect.sync(() => {
        this.settling = undefined
        this.running = false
      })
    )
  )

  /** Resumes when nothing runs any more. */
  private readonly ended: Effect.Effect<void> = Effect.async<void>((resume) => {
    if (!this.running || !this.open) return resume(Effect.void)
    const end = () => {
      this.client.off("drain", end)
      this.client.off("end", end)
      resume(Effect.void)
    }
    this.client.on("drain", end)
    this.client.on("end", end)
    return Effect.sync(end)
  })

  private get key(): BackendKey {
    return { processId: this.client.processID, secretKey: this.client.secretKey }
  }
}

/** A portal's steps; each is one round trip. */
export interface PortalHandle {
  readonly open: (rows: number) => Effect.Effect<Batch, DatabaseError>
  readonly fetch: (rows: number) => Effect.Effect<Batch, DatabaseError>
  readonly close: Effect.Effect<void, DatabaseError>
}

/** What `pg.Client` has and its types do not say. */
interface ClientInternals {
  readonly processID: number
  readonly secretKey: number
  readonly connection: { readonly stream: { readonly destroy: () => void } }
}

const ignore = () => {}

const barrier = "-- barrier"

/** Whether the connection cannot be used any more, whatever its owner thinks of it. */
const isBroken = ({ reason }: DatabaseError): boolean =>
  reason._tag === "ConnectionLost" ||
  reason._tag === "ProtocolViolation" ||
  ("severity" in reason && (reason.severity === "FATAL" || reason.severity === "PANIC"))

const clientConfig = ({
  applicationName,
  connectTimeout,
  endpoint,
  timeouts
}: DialOptions): Pg.ClientConfig => ({
  host: endpoint.host,
  port: endpoint.port,
  database: endpoint.database,
  user: endpoint.user,
  password: endpoint.password === undefined ? undefined : Redacted.value(endpoint.password),
  ssl: endpoint.ssl === false ? false : { ...Redacted.value(endpoint.ssl) },
  application_name: applicationName,
  connectionTimeoutMillis: Duration.toMillis(connectTimeout),
  keepAlive: true,
  keepAliveInitialDelayMillis: 10_000,
  ...(timeouts === undefined
    ? { options: endpoint.options }
    : {
        options: [endpoint.options, ...startupOptions(timeouts)]
          .filter((part) => part !== undefined)
          .join(" ")
      })
})

/** `pg` leaves a limit of 0 out of the startup packet, so limits go there as command-line options. */
const startupOptions = (timeouts: SessionTimeouts): ReadonlyArray<string> => [
  `-c statement_timeout=${serverMillis(timeouts.statementTimeout)}`,
  `-c lock_timeout=${serverMillis(timeouts.lockTimeout)}`,
  `-c idle_in_transaction_session_timeout=${serverMillis(timeouts.idleInTransactionTimeout)}`
]

/** A duration in the milliseconds that PostgreSQL's limits are given in; 0 is no limit. */
export const serverMillis = (duration: Duration.Duration): number =>
  Duration.isFinite(duration) ? Math.ceil(Duration.toMillis(duration)) : 0

/** The protocol counts parameters in 16 bits. */
const maxParameters = 65_535

/** A message's length is an `int32`, and the server refuses more than 1 GiB (PQ_LARGE_MESSAGE_LIMIT). */
const maxBytes = 2 ** 30 - 1

const invalidRequest = ({ text, values = [] }: Request): string | undefined => {
  if (text.includes("\0")) return "the statement contains a NUL byte, which PostgreSQL cannot take"
  if (values.length > maxParameters) {
    return `the statement has ${values.length} parameters; PostgreSQL takes ${maxParameters} at most: pass arrays and unnest them`
  }
  let bytes = 0
  for (const value of values) {
    if (typeof value === "string") bytes += value.length > 1_000_000 ? Buffer.byteLength(value) : value.length
    else if (ArrayBuffer.isView(value)) bytes += value.byteLength
  }
  return bytes > maxBytes
    ? `the parameters are ${bytes} bytes; PostgreSQL takes 1 GiB in one message: split them`
    : undefined
}
