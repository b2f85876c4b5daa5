import type { EventEmitter } from "node:events"
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Pg from "pg"
import { prepareValue } from "pg/lib/utils.js"
import { DatabaseError, type Phase, type Reason } from "../DatabaseError.js"
import { isChangedResult, isServerError, type ServerErrorLike } from "../errors/classify.js"
import { type Peer, cancel } from "./cancel.js"
import * as Copy from "./copyIn.js"
import { type AppliedErrorPolicy, isBroken, standard } from "./errorPolicy.js"
import type { Endpoint } from "./endpoint.js"
import { connectError, dialError, isOtherRefusal, statementError } from "./serverError.js"
import { type HandshakeStream, watchAuthentication, watchHandshake } from "./handshake.js"
import type { Asked, OnNotice } from "./notice.js"
import { type Batch, CloseStatements, Portal } from "./portal.js"
import { readSeverities, type SeveritySource } from "./severities.js"
import { type Generation, StatementCache } from "./statementCache.js"
import { StatementLimit } from "./statementLimit.js"

/** What is asked of a server when a connection is opened. */
export interface DialOptions {
  readonly endpoint: Endpoint
  readonly connectTimeout: Duration.Duration
  readonly applicationName: string
  /**
   * Server-side limits in the startup packet; `undefined` behind a pooler, which would refuse them.
   */
  readonly timeouts: SessionTimeouts | undefined
  readonly prepare: boolean
  /**
   * Whether a connection may be used again after its statement was cancelled. Not behind a pooler.
   */
  readonly reuseAfterCancel: boolean
  /** Logs the text of every statement at DEBUG, never its parameters. */
  readonly echo: boolean
  /**
   * Called when the server has answered a statement, or was lost; what it gives is run before the
   * caller goes on.
   */
  readonly observe?:
    | ((
        request: Request,
        millis: number,
        failure: DatabaseError | undefined
      ) => Effect.Effect<void> | undefined)
    | undefined
  /** See {@link PgConnection.answerMillis}; no limit when left out. */
  readonly answerMillis?: number | undefined
  /** Called with what the server says beside its answers. */
  readonly onNotice?: OnNotice | undefined
  /** What is decided about errors; the standard when left out. */
  readonly decisions?: AppliedErrorPolicy | undefined
  /** What the connections of a pool share about their prepared statements. */
  readonly generation?: Generation | undefined
}

/** PostgreSQL's client connection defaults; infinity is 0, which switches a limit off. */
export interface SessionTimeouts {
  readonly statementTimeout: Duration.Duration
  readonly lockTimeout: Duration.Duration
  readonly idleInTransactionTimeout: Duration.Duration
}

/**
 * How many milliseconds a statement of our own may take that no interruption reaches: a server that
 * does not answer must not hold a connection for good.
 */
export const controlMillis = 5000

/**
 * What DISCARD ALL does, but for prepared statements, and allowed in a transaction: DISCARD ALL
 * leaves a role that is set in the startup packet, or by ALTER ROLE, for the role that logged in.
 */
export const endOfSession = [
  "CLOSE ALL",
  "RESET SESSION AUTHORIZATION",
  "RESET ROLE",
  "RESET ALL",
  "UNLISTEN *",
  "SELECT pg_catalog.pg_advisory_unlock_all()",
  "DISCARD TEMP",
  "DISCARD SEQUENCES"
].join(";")

/** A statement to run. */
export interface Request {
  readonly text: string
  readonly values?: ReadonlyArray<unknown>
  readonly rowMode?: "array"
  /** Whether it may be prepared on the server: when it comes again, or at once. */
  readonly prepare?: boolean | "at once"
  /** What a lost connection means while it runs. */
  readonly phase?: Phase
  /**
   * The connection is closed when the server has not answered within so many milliseconds; infinity
   * is no limit.
   */
  readonly timeoutMillis?: number | undefined
  /** Our own text, which changes no limit that is not known. */
  readonly isControl?: boolean
  /** Whether there are rows for a COPY ... FROM STDIN. */
  readonly isCopyIn?: boolean
}

/** What the server answered. A text of several statements has several results. */
export type Response = Pg.QueryResult | ReadonlyArray<Pg.QueryResult>

/**
 * PostgreSQL's ReadyForQuery status: idle, in a transaction block, in a failed transaction block.
 */
export type TransactionStatus = "I" | "T" | "E"

/**
 * One open connection to a PostgreSQL server: runs one statement at a time, knows whether it is
 * idle, cancels what was interrupted. It belongs to one user at a time; whoever shares it takes
 * turns outside.
 */
export class PgConnection {
  readonly processId: number
  private open = true
  private running = false
  private settling: Fiber.RuntimeFiber<void> | undefined
  private portals = 0
  private lostBecause: unknown
  private firstError: Reason | undefined
  private readonly peer: Peer
  private readonly statements: StatementCache
  private readonly closeListeners = new Set<(error: unknown) => void>()
  /** Called with every error that a statement fails with. */
  onError: (error: DatabaseError) => void = ignore
  /**
   * Why the last statement failed that did so only because of how it had been prepared: nothing of
   * it ran.
   */
  outdated: Reason | undefined
  /**
   * Whether the open transaction asked to be read only, so that 25006 says nothing about the
   * server.
   */
  expectsReadOnly = false
  /**
   * The connection is given up when the server has not answered a statement within so many
   * milliseconds: it enforces its `statement_timeout` itself, so that it is gone, or hangs, when it
   * is silent for much longer. Not any more once a program has set another limit on it; one that a
   * function of the database sets is not seen.
   */
  answerMillis: number | undefined
  private knowsLimit = true
  private readonly limit: StatementLimit
  private asker: Fiber.RuntimeFiber<unknown, unknown> | undefined
  private askedText = ""
  /** What the statement that runs wants of the client that no statement can have. */
  private wanted: "copy in" | "copy out" | undefined
  private readonly notificationListeners = new Set<(message: Pg.Notification) => void>()

  private constructor(
    private readonly client: Pg.Client & ClientInternals,
    readonly options: DialOptions,
    /** When it was dialed, in milliseconds of a clock that nobody sets. */
    readonly openedAt: number
  ) {
    this.processId = client.processID
    this.answerMillis = options.answerMillis
    this.statements = new StatementCache(options.generation)
    this.limit = new StatementLimit(
      options.timeouts === undefined || /statement_timeout/i.test(options.endpoint.options ?? "")
        ? undefined
        : serverMillis(options.timeouts.statementTimeout)
    )
    this.peer = {
      host: client.connection.stream.remoteAddress ?? options.endpoint.host,
      port: options.endpoint.port
    }
    client.on("error", (error) => this.markClosed(error))
    client.on("end", () => this.markClosed(undefined))
    client.on("notification", (message) => {
      for (const listener of this.notificationListeners) listener(message)
    })
    client.connection.on("copyInResponse", () => {
      this.wanted = "copy in"
    })
    client.connection.on("copyOutResponse", () => {
      this.wanted = "copy out"
    })
  }

  /** Opens a connection. An interruption closes the socket; nothing is left behind. */
  static dial(options: DialOptions): Effect.Effect<PgConnection, DatabaseError> {
    return Effect.flatMap(Effect.clock, (clock) =>
      Effect.async<PgConnection, DatabaseError>((resume) => {
        const client = new Pg.Client(clientConfig(options)) as Pg.Client & ClientInternals
        const fail = (error: DatabaseError) => {
          client.connection.stream.destroy()
          resume(Effect.fail(error))
        }
        client.on("error", ignore)
        const decisions = options.decisions ?? standard
        const asks = watchAuthentication(client.connection, () => {
          if (options.endpoint.channelBinding === "require") {
            fail(dialError(options.endpoint, decisions, "no channel binding"))
          }
        })
        readSeverities(client.connection, options.endpoint.ssl !== false)
        let opened: PgConnection | undefined
        const { onNotice } = options
        if (onNotice !== undefined) client.on("notice", (message) => onNotice(message, opened?.asked))
        client.connect((error: Error | null) => {
          if (error === null || error === undefined) {
            opened = new PgConnection(client, options, passedMillis(clock))
            resume(Effect.succeed(opened))
          } else {
            const isAsked = asks()
            fail(
              isAsked && !client.password && !isOtherRefusal(error)
                ? dialError(options.endpoint, decisions, "no password given")
                : connectError(error, options.endpoint, decisions, isAsked)
            )
          }
        })
        watchHandshake(client.connection.stream, options.endpoint.ssl !== false, () =>
          fail(dialError(options.endpoint, decisions, "not a PostgreSQL server"))
        )
        return Effect.sync(() => client.connection.stream.destroy())
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

  /** What runs, and who waits for it. */
  private get asked(): Asked | undefined {
    return this.asker === undefined ? undefined : { fiber: this.asker, text: this.askedText }
  }

  /** The transaction status that the server reported last. */
  get transactionStatus(): TransactionStatus {
    return this.client.getTransactionStatus() ?? "I"
  }

  /** The error that aborted the open transaction, while it is aborted. */
  get abortedBy(): Reason | undefined {
    return this.transactionStatus === "E" ? this.firstError : undefined
  }

  /**
   * Calls back once, when the connection is closed by either side; gives the function that ends it.
   */
  onClose(listener: (error: unknown) => void): () => void {
    if (this.open) this.closeListeners.add(listener)
    else listener(this.lostBecause)
    return () => this.closeListeners.delete(listener)
  }

  /** Calls back at each notification; gives the function that ends it. */
  onNotification(listener: (message: Pg.Notification) => void): () => void {
    this.notificationListeners.add(listener)
    return () => this.notificationListeners.delete(listener)
  }

  /**
   * Runs a statement. An interruption cancels it on the server; the caller goes on after 100 ms at
   * the latest, and the connection counts as quiet when the server has confirmed that nothing runs
   * and no cancellation can still arrive.
   */
  run(request: Request): Effect.Effect<Response, DatabaseError> {
    return this.afterSettling(() => {
      const values = wireValues(request)
      if (typeof values === "string") return invalidRequest("execute", values)
      this.watchLimit(request)
      const name =
        this.options.prepare && (request.prepare ?? false) !== false && isPreparable(request)
          ? this.statements.use(request.text, request.prepare === "at once")
          : undefined
      const wasPrepared = name !== undefined && this.client.connection.parsedStatements[name] !== undefined
      const run = this.exchange<Response>(
        (callback) => {
          this.client.query(query(request, values, name, callback))
        },
        request,
        name === undefined ? undefined : (error) => this.giveUpPlan(error, request.text, wasPrepared)
      )
      const discarded = this.statements.takeDiscarded()
      return this.echoed(
        request.text,
        discarded.length === 0 ? run : Effect.zipRight(this.closeStatements(discarded), run)
      )
    })
  }

  /** Resumes once the connection is quiet again. */
  readonly quiet: Effect.Effect<void> = Effect.suspend(() =>
    this.settling === undefined ? this.ended : Effect.asVoid(Fiber.await(this.settling))
  )

  /** A portal over a statement; see {@link Portal}. Needs an open transaction block. */
  portal(text: string, values: ReadonlyArray<unknown>): PortalHandle {
    const request: Request = { text, values }
    this.watchLimit(request)
    const step = (
      make: (callback: (error: unknown, batch: Batch | undefined) => void) => Pg.Submittable,
      timeoutMillis?: number
    ) =>
      this.afterSettling(() =>
        this.exchange<Batch>(
          (callback) => {
            this.client.query(make(callback))
          },
          { ...request, timeoutMillis }
        )
      )
    const wired = wireValues(request)
    const portal = new Portal(`p${++this.portals}`, text, typeof wired === "string" ? [] : wired)
    return {
      open: (rows) =>
        typeof wired === "string"
          ? invalidRequest("stream", wired)
          : this.echoed(text, step(portal.open(rows))),
      fetch: (rows) => step(portal.fetch(rows)),
      close: Effect.asVoid(step(portal.close(), controlMillis))
    }
  }

  /** Runs COPY ... FROM STDIN; see {@link Copy.run}. */
  copyIn<E, R>(text: string, source: Copy.Source<E, R>): Effect.Effect<number, E | DatabaseError, R> {
    return this.afterSettling(() =>
      this.echoed(
        text,
        Copy.run(text, source, {
          // The server is silent for as long as it is given no data: what it is waited for has a
          // limit of its own.
          exchange: (make) =>
            this.exchange<number>((callback) => void this.client.query(make(callback)), {
              text,
              timeoutMillis: Number.POSITIVE_INFINITY,
              isCopyIn: true
            }),
          watched: (wait) => this.watched(wait)
        })
      )
    )
  }

  /**
   * Ends what a user of the session has left in it: settings, role, temporary tables, advisory
   * locks, LISTEN, prepared statements.
   */
  readonly reset: Effect.Effect<void, DatabaseError> = Effect.suspend(() => {
    this.statements.prepareAnew()
    this.statements.takeDiscarded()
    this.client.connection.parsedStatements = {}
    this.knowsLimit = true
    return Effect.asVoid(this.sendText(`${endOfSession};DEALLOCATE ALL;DISCARD PLANS`, controlMillis))
  })

  /** Asks the server for a sign of life. */
  ping(timeoutMillis: number): Effect.Effect<boolean> {
    return Effect.isSuccess(this.sendText("-- ping", timeoutMillis))
  }

  /** Says goodbye to the server and waits until it has closed the connection, at most a second. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.open = false
    return Effect.async<void>((resume) => this.client.end(() => resume(Effect.void)))
  }).pipe(
    Effect.interruptible,
    Effect.timeoutOption("1 second"),
    Effect.ensuring(Effect.sync(() => this.destroy())),
    Effect.asVoid
  )

  /**
   * Cancels what runs, if anything does, and closes the socket without waiting for the end of it.
   */
  readonly terminate: Effect.Effect<void> = Effect.suspend(() =>
    this.running && this.open
      ? Effect.timeoutOption(Effect.interruptible(this.cancelRunning), "1 second")
      : Effect.void
  ).pipe(Effect.ensuring(Effect.sync(() => this.destroy())), Effect.asVoid)

  /** Closes the socket at once. What runs fails as lost, because of `cause`. */
  destroy(cause?: Error): void {
    this.client.connection.stream.destroy(cause)
    this.markClosed(cause)
  }

  // ---------------------------------------------------------------------------

  private markClosed(error: unknown): void {
    this.open = false
    this.lostBecause ??= error
    const listeners = [...this.closeListeners]
    this.closeListeners.clear()
    for (const listener of listeners) listener(this.lostBecause)
  }

  /**
   * A program that sets the limit itself, in a text or by parameter, has another one than we know,
   * on this connection.
   */
  private watchLimit({ isControl, text, values = [] }: Request): void {
    this.limit.note(text, values, this.transactionStatus === "T")
    if (isControl === true || !this.knowsLimit) return
    const named = /statement_timeout/i
    this.knowsLimit = !(
      named.test(text) ||
      (/set_config/i.test(text) && values.some((value) => typeof value === "string" && named.test(value)))
    )
  }

  private afterSettling<A, E, R>(next: () => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.suspend(() =>
      this.settling === undefined ? next() : Effect.zipRight(Fiber.await(this.settling), Effect.suspend(next))
    )
  }

  private echoed<A, E, R>(text: string, run: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return this.options.echo ? Effect.zipRight(Effect.logDebug(text), run) : run
  }

  /** A statement of our own, without parameters and results. */
  private sendText(text: string, timeoutMillis?: number): Effect.Effect<unknown, DatabaseError> {
    return this.exchange<unknown>((callback) => this.client.query(text, callback), {
      text,
      timeoutMillis,
      isControl: true
    })
  }

  /** Unlike DEALLOCATE, the protocol's Close never fails, so that it cannot abort a transaction. */
  private closeStatements(names: ReadonlyArray<string>): Effect.Effect<void> {
    const close = this.exchange<undefined>(
      (callback) => this.client.query(new CloseStatements(names, (error) => callback(error, undefined))),
      { text: "" }
    )
    return Effect.zipRight(
      Effect.sync(() => {
        for (const name of names) delete this.client.connection.parsedStatements[name]
      }),
      Effect.ignore(close)
    )
  }

  /**
   * Gives up what a named statement's error shows to be outdated; says whether that alone was the
   * error's reason. A plan whose result changed concerns every connection. PostgreSQL also keeps
   * the types of a prepared statement's parameters after ALTER TYPE: errors of analysis (class 42,
   * with a position in the text) and of values (class 22) of a statement that was prepared before
   * can come from that, and no field says so.
   */
  private giveUpPlan(error: unknown, text: string, wasPrepared: boolean): boolean {
    if (!isServerError(error)) return false
    if (isChangedResult(error)) {
      this.statements.outdate()
      return true
    }
    if (isMissingStatement(error)) {
      this.statements.prepareAnew()
      return true
    }
    if (!wasPrepared || !/^(?:22|42)/.test(error.code)) return false
    this.statements.discard(text)
    return error.code.startsWith("42") && error.position !== undefined
  }

  /**
   * Sends something, and resumes when the server is ready for the next statement or the connection
   * is lost.
   */
  private exchange<A>(
    send: (callback: (error: unknown, result: A | undefined) => void) => void,
    request: Request,
    /** Whether an error comes from how the statement was prepared. */
    isOutdated?: (error: unknown) => boolean
  ): Effect.Effect<A, DatabaseError> {
    return Effect.async<A, DatabaseError>((resume) => {
      if (!this.open) {
        resume(Effect.fail(statementError(this.lostBecause, "acquire", this.options.decisions)))
        return undefined
      }
      const before = this.transactionStatus
      const timer = this.limitAnswer(request.timeoutMillis)
      this.running = true
      this.asker = Option.getOrUndefined(Fiber.getCurrentFiber())
      this.askedText = request.text
      this.wanted = undefined
      const started = performance.now()
      const finish = (exit: Effect.Effect<A, DatabaseError>, failure?: DatabaseError) => {
        this.running = false
        this.asker = undefined
        timer?.()
        if (this.transactionStatus === "I") this.limit.endTransaction()
        const note = this.options.observe?.(request, performance.now() - started, failure)
        // A logger that throws must not change what the server answered.
        resume(
          note === undefined
            ? exit
            : Effect.zipRight(
                Effect.catchAllDefect(note, () => Effect.void),
                exit
              )
        )
      }
      send((error, result) => {
        const undelivered = this.undelivered(error, request)
        if (undelivered === undefined && (error === null || error === undefined)) {
          return finish(Effect.succeed(result as A))
        }
        const lost = this.open ? undefined : (request.phase ?? "sent")
        const failure =
          undelivered ??
          statementError(
            error,
            lost,
            this.options.decisions,
            request.text,
            isEndOfStatement(error) ? this.limit.isOverdue(performance.now() - started) : undefined
          )
        this.onError(failure)
        if (isOutdated?.(error) === true) this.outdated = failure.reason
        if (isBroken(failure.reason)) {
          // The statements that follow fail for the same reason.
          this.lostBecause ??= error
          this.destroy()
        }
        if (!this.open || error === null || error === undefined) return finish(Effect.fail(failure), failure)
        // An error comes before the server is ready again: until then the connection is not idle.
        const end = () => {
          this.client.off("drain", end)
          this.client.off("end", end)
          if (before !== "E" && this.transactionStatus === "E") this.firstError = failure.reason
          finish(Effect.fail(failure), failure)
        }
        this.client.on("drain", end)
        this.client.on("end", end)
      })
      return this.interrupt
    })
  }

  /**
   * The error of a COPY that was sent as a statement: the rows that it sends or asks for have no
   * place there.
   */
  private undelivered(error: unknown, { isCopyIn }: Request): DatabaseError | undefined {
    if (this.wanted === undefined || isCopyIn === true) return undefined
    const succeeded = error === null || error === undefined
    if (this.wanted === "copy out" && !succeeded) return undefined
    // The error of a COPY that was told that there are no rows; any other one has come before.
    if (this.wanted === "copy in" && !(isServerError(error) && error.code === "57014")) return undefined
    const problem = copyProblems[this.wanted]
    return new DatabaseError({ operation: "execute", reason: { _tag: "InvalidRequest", problem } })
  }

  /**
   * Closes the connection after so many milliseconds, unless the function that this gives is called
   * before.
   */
  private limitAnswer(
    millis: number | undefined = this.knowsLimit ? this.answerMillis : undefined
  ): (() => void) | undefined {
    return millis === undefined || millis === Number.POSITIVE_INFINITY
      ? undefined
      : alarm(millis, () => this.destroy(timeoutError()))
  }

  /** Waits for the server, but not for longer than it may take to answer. */
  private watched<A, E, R>(wait: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.suspend(() => {
      const timer = this.limitAnswer()
      return timer === undefined ? wait : Effect.ensuring(wait, Effect.sync(timer))
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
   * Makes the connection quiet after an interruption: cancels, waits for the statement's end and
   * for the server's word that the cancellation was delivered, then runs an empty statement that
   * takes a late cancellation upon itself. A connection that is not quiet after two seconds is
   * closed.
   */
  private readonly settle: Effect.Effect<void> = Effect.suspend(() => this.cancelRunning).pipe(
    Effect.zipLeft(Effect.suspend(() => this.ended)),
    Effect.flatMap((delivered) => {
      if (!this.open) return Effect.void
      return delivered && this.options.reuseAfterCancel
        ? Effect.ignore(this.sendText("-- barrier"))
        : Effect.sync(() => this.destroy())
    }),
    Effect.timeoutOption("2 seconds"),
    Effect.flatMap((done) => (done._tag === "None" ? Effect.sync(() => this.destroy()) : Effect.void)),
    Effect.ensuring(
      Effect.sync(() => {
        this.settling = undefined
        this.running = false
      })
    )
  )

  private readonly cancelRunning: Effect.Effect<boolean> = Effect.suspend(() =>
    cancel(this.options.endpoint, this.peer, {
      processId: this.client.processID,
      secretKey: this.client.secretKey
    })
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
}

/**
 * A connection as its user sees it. Test Layers put their own between a program and the server: one
 * that turns transactions into savepoints, one that fails.
 */
export type Connection = Pick<
  PgConnection,
  | "abortedBy"
  | "answerMillis"
  | "copyIn"
  | "destroy"
  | "expectsReadOnly"
  | "isOpen"
  | "isQuiet"
  | "onClose"
  | "outdated"
  | "portal"
  | "processId"
  | "quiet"
  | "reset"
  | "run"
  | "transactionStatus"
>

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
  /** From the url, the environment or a password file. */
  readonly password: string | null
  readonly connection: EventEmitter &
    SeveritySource & {
      readonly stream: HandshakeStream & {
        readonly remoteAddress?: string
        readonly destroy: (error?: Error) => void
      }
      parsedStatements: Record<string, string>
    }
}

const copyProblems = {
  "copy in": "a COPY ... FROM STDIN has no rows as a statement: give them to Copy.into",
  "copy out":
    "the rows of a COPY ... TO STDOUT cannot be delivered as a statement's: read them with SELECT, or use psql"
} as const

const ignore = () => {}

/**
 * The server does not know the name that a statement was prepared under (after DISCARD ALL,
 * DEALLOCATE ALL, or behind a pooler), or knows another one by it. Errors of a pooler have no
 * routine.
 */
const isMissingStatement = ({ code, routine }: ServerErrorLike): boolean =>
  (code === "26000" && (routine === undefined || routine === "FetchPreparedStatement")) ||
  (code === "42P05" && (routine === undefined || routine === "StorePreparedStatement"))

/** Whether the server ended a statement for a timeout or for a request to cancel. */
const isEndOfStatement = (error: unknown): boolean =>
  isServerError(error) && error.code === "57014" && error.routine === "ProcessInterrupts"

/** Milliseconds since some moment: unlike the time of day they never jump. */
export const passedMillis = (clock: Clock.Clock): number => Number(clock.unsafeCurrentTimeNanos()) / 1e6

/**
 * Calls back after so many milliseconds, and gives the function that calls it off. A timer that
 * comes much too late says that this process stood still, not that the server was silent: what it
 * answered meanwhile is yet to be read. Then there is more time, once. The wait is divided, because
 * a pause that ends just when the wait does would not make its end late.
 */
export const alarm = (millis: number, ring: () => void): (() => void) => {
  const more = Math.min(millis, 1000)
  let end = performance.now() + millis
  let mayExtend = true
  let timer: NodeJS.Timeout
  const wait = (now: number) => {
    const due = Math.min(end, now + partMillis)
    timer = setTimeout(() => {
      const then = performance.now()
      if (mayExtend && then - due >= lateMillis && then + more > end) {
        mayExtend = false
        end = then + more
      }
      if (then >= end) ring()
      else wait(then)
    }, due - now)
  }
  wait(performance.now())
  return () => clearTimeout(timer)
}

const partMillis = 500

const lateMillis = 250

const timeoutError = () => Object.assign(new Error("the server did not answer"), { code: "ETIMEDOUT" })

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
  enableChannelBinding: endpoint.ssl !== false && endpoint.channelBinding !== "disable",
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

/**
 * `pg` leaves a limit of 0 out of the startup packet, so limits go there as command-line options.
 */
const startupOptions = (timeouts: SessionTimeouts): ReadonlyArray<string> => [
  `-c statement_timeout=${serverMillis(timeouts.statementTimeout)}`,
  `-c lock_timeout=${serverMillis(timeouts.lockTimeout)}`,
  `-c idle_in_transaction_session_timeout=${serverMillis(timeouts.idleInTransactionTimeout)}`
]

/** A duration in the milliseconds that PostgreSQL's limits are given in; 0 is no limit. */
export const serverMillis = (duration: Duration.Duration): number =>
  Duration.isFinite(duration) ? Math.ceil(Duration.toMillis(duration)) : 0

/**
 * How long a server that is under a `statement_timeout` may take to answer, in milliseconds; no
 * limit where there is none (0, too, means that) or it is longer than Node's timers can hold.
 */
export const answerMillis = (statementTimeout: Duration.Duration): number | undefined => {
  const millis = Duration.toMillis(statementTimeout)
  return millis > 0 && millis + 5000 < 2 ** 31 ? millis + 5000 : undefined
}

/** The protocol counts parameters in 16 bits. */
const maxParameters = 65_535

/**
 * A message's length is an `int32`, and the server refuses more than 1 GiB
 * (PQ_LARGE_MESSAGE_LIMIT).
 */
const maxBytes = 2 ** 30 - 1

/**
 * Parameters as they go over the wire, or why they cannot. Converted before anything is sent: `pg`
 * does it half-way through.
 */
const wireValues = ({ text, values = [] }: Request): Array<string | Buffer | null> | string => {
  if (text.includes("\0")) return "the statement contains a NUL byte, which PostgreSQL cannot take"
  if (values.length > maxParameters) {
    return `the statement has ${values.length} parameters; PostgreSQL takes ${maxParameters} at most: pass arrays and unnest them`
  }
  const wired: Array<string | Buffer | null> = []
  let bytes = 0
  for (const value of values) {
    const converted = wireValue(value)
    if (converted === undefined) {
      return `parameter $${wired.length + 1} of the statement cannot be turned into a PostgreSQL value`
    }
    wired.push(converted)
    if (converted !== null)
      bytes += converted.length > 1_000_000 ? Buffer.byteLength(converted) : converted.length
  }
  return bytes > maxBytes
    ? `the parameters are ${bytes} bytes; PostgreSQL takes 1 GiB in one message: split them`
    : wired
}

const wireValue = (value: unknown): string | Buffer | null | undefined => {
  if (typeof value === "string") return value
  try {
    return prepareValue(value)
  } catch {
    return undefined
  }
}

type Callback = (error: unknown, result: Response | undefined) => void

/**
 * The query of `pg` for a request. It is given its name afterwards: settings in an object would be
 * copied, descriptor by descriptor.
 */
const query = (
  { rowMode, text }: Request,
  values: Array<string | Buffer | null>,
  name: string | undefined,
  callback: Callback
): Pg.Submittable => {
  const made = new Pg.Query(
    (rowMode === undefined ? text : { text, rowMode }) as string,
    values.length > 0 ? values : undefined,
    callback as (error: Error | undefined, result: Pg.ResultBuilder) => void
  ) as Pg.Query & { name?: string }
  if (name !== undefined) made.name = name
  return made
}

const invalidRequest = (operation: string, problem: string): Effect.Effect<never, DatabaseError> =>
  Effect.fail(new DatabaseError({ operation, reason: { _tag: "InvalidRequest", problem } }))

/**
 * Whether a text can be a prepared statement, as PREPARE defines it (a COPY would hang in the
 * extended protocol). A text without parameters may hold several statements, which cannot.
 */
export const isPreparable = ({ text, values }: Request): boolean =>
  preparable.test(text) && ((values !== undefined && values.length > 0) || !text.includes(";"))

const preparable = /^\s*(select|insert|update|delete|merge|with|values)\b/i
