import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../DatabaseError.js"
import type { Line, PortalHandle, Request, Response } from "../driver/Backend.js"
import type { Source } from "../driver/Copy.js"
import * as Pool from "../driver/Pool.js"
import { Turns } from "../driver/Turns.js"

/**
 * A pool of one connection that stays inside one transaction, which is rolled back with the scope. What the program above it takes for a transaction is a
 * savepoint here: BEGIN, COMMIT and ROLLBACK are translated, everything else passes. A statement outside any transaction gets a savepoint of its own, as it
 * would get a transaction.
 *
 * Deferred constraints are checked where the program commits.
 */
export const make = (pool: Pool.Pool): Effect.Effect<Pool.Pool, DatabaseError, Scope.Scope> =>
  Effect.gen(function* () {
    const backend = yield* Pool.borrow(pool)
    yield* backend.run({ text: "BEGIN" })
    const deferred = yield* initiallyDeferred(backend)
    const turns = new Turns()
    yield* Effect.addFinalizer(() => Effect.ignore(backend.run({ text: "ROLLBACK" })))
    return {
      acquire: (restore) =>
        Effect.as(turns.take(restore), new SandboxLine(backend, deferred) satisfies Line as Line),
      release: () => turns.pass,
      state: Effect.map(pool.state, (state) => ({ ...state, max: 1 })),
      events: pool.events
    }
  })

/** The connection of a sandbox, while it is lent to somebody. */
class SandboxLine implements Line {
  expectsReadOnly = false
  private inTransaction = false

  constructor(
    private readonly backend: Line,
    private readonly deferred: ReadonlyArray<string>
  ) {}

  get processId() {
    return this.backend.processId
  }

  get isOpen() {
    return this.backend.isOpen
  }

  get isQuiet() {
    return this.backend.isQuiet
  }

  get quiet() {
    return this.backend.quiet
  }

  get abortedBy() {
    return this.inTransaction ? this.backend.abortedBy : undefined
  }

  get transactionStatus() {
    return this.inTransaction ? this.backend.transactionStatus : "I"
  }

  destroy(cause?: Error): void {
    this.backend.destroy(cause)
  }

  portal(text: string, values: ReadonlyArray<unknown>): PortalHandle {
    return this.backend.portal(text, values)
  }

  copyIn<E, R>(text: string, source: Source<E, R>): Effect.Effect<number, E | DatabaseError, R> {
    const copy = this.backend.copyIn(text, source)
    return this.inTransaction ? copy : this.alone(copy)
  }

  run(request: Request): Effect.Effect<Response, DatabaseError> {
    const [command = ""] = request.text.trim().split(/[\s;]+/, 1)
    switch (command.toUpperCase()) {
      case "BEGIN":
        return this.begin(request)
      case "COMMIT":
        return this.commit()
      case "ROLLBACK":
        return /^ROLLBACK\s+TO\b/i.test(request.text) ? this.backend.run(request) : this.rollback()
      default:
        return this.inTransaction ? this.backend.run(request) : this.alone(this.backend.run(request))
    }
  }

  /** What follows BEGIN in the same text are limits of the transaction, and stay; its modes belong to the transaction around and are left out. */
  private begin(request: Request) {
    const [, ...rest] = request.text.split(";")
    return Effect.tap(
      this.backend.run({ ...request, text: [`SAVEPOINT ${transaction}`, ...rest].join(";") }),
      () =>
        Effect.sync(() => {
          this.inTransaction = true
        })
    )
  }

  private commit(): Effect.Effect<Response, DatabaseError> {
    return Effect.suspend(() => {
      if (this.backend.transactionStatus === "E") return this.rollback()
      return checkDeferred(this.backend).pipe(
        Effect.tapError(() => this.rollback()),
        Effect.zipRight(
          this.backend.run({
            text: [...deferAgain(this.deferred), `RELEASE SAVEPOINT ${transaction}`].join(";")
          })
        ),
        Effect.as(answered("COMMIT")),
        Effect.tap(() =>
          Effect.sync(() => {
            this.inTransaction = false
          })
        )
      )
    })
  }

  private rollback(): Effect.Effect<Response, DatabaseError> {
    return this.backend
      .run({ text: `ROLLBACK TO SAVEPOINT ${transaction};RELEASE SAVEPOINT ${transaction}` })
      .pipe(
        Effect.as(answered("ROLLBACK")),
        Effect.ensuring(
          Effect.sync(() => {
            this.inTransaction = false
          })
        )
      )
  }

  /** What is a transaction of its own. */
  private alone<A, E, R>(statement: Effect.Effect<A, E, R>): Effect.Effect<A, E | DatabaseError, R> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.zipRight(
        this.begin({ text: "BEGIN" }),
        Effect.matchCauseEffect(restore(statement), {
          onFailure: (cause) => Effect.zipRight(Effect.ignore(this.rollback()), Effect.failCause(cause)),
          onSuccess: (result) => Effect.as(this.commit(), result)
        })
      )
    )
  }
}

/** The savepoint that stands for a transaction; savepoints of the program are called otherwise. */
const transaction = "sandbox_transaction"

/** An answer as `pg` gives it to a statement without rows. */
const answered = (command: string): Response => ({ command, rowCount: null, oid: 0, fields: [], rows: [] })

const checkDeferred = (backend: Line) =>
  backend.transactionStatus === "E" || !backend.isOpen
    ? Effect.void
    : Effect.asVoid(backend.run({ text: "SET CONSTRAINTS ALL IMMEDIATE" }))

/** The check made them immediate for the rest of the transaction around; the next transaction of the program finds them as they were declared. */
const deferAgain = (names: ReadonlyArray<string>) =>
  names.length === 0 ? [] : [`SET CONSTRAINTS ${names.join(", ")} DEFERRED`]

const initiallyDeferred = (backend: Line): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  Effect.map(
    backend.run({
      text: `
        SELECT DISTINCT format('%I.%I', namespace.nspname, k.conname) AS name
        FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = k.connamespace
        WHERE k.condeferred ORDER BY 1
      `
    }),
    (response) => ("rows" in response ? response.rows.map((row: { readonly name: string }) => row.name) : [])
  )
