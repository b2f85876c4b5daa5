/** One test in one transaction that is rolled back. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { DatabaseError, type PoolState } from "../DatabaseError.js"
import { endOfSession, type Connection, type Request, type Response } from "../connection/connection.js"
import type { Source } from "../connection/copyIn.js"
import * as Pool from "../pool/pool.js"
import { Mutex } from "../connection/mutex.js"
import * as LocalSettings from "./localSettings.js"
import { WrappedConnection } from "./wrappedConnection.js"

/**
 * A pool of one connection that stays inside one transaction, which is rolled back with the scope.
 * What the program above it takes for a transaction is a savepoint here: BEGIN, COMMIT and ROLLBACK
 * are translated, everything else passes. A statement outside any transaction gets a savepoint of
 * its own, as it would get a transaction.
 *
 * Deferred constraints are checked where the program commits, and what it set for its transaction
 * ends there. A caller that cannot have the connection within `acquireTimeout` fails, and one that
 * has it already fails at once.
 */
export const make = (
  pool: Pool.Pool,
  acquireTimeout: Duration.Duration
): Effect.Effect<Pool.Pool, DatabaseError, Scope.Scope> =>
  Effect.gen(function* () {
    const inner = yield* Pool.checkOut(pool)
    yield* inner.run({ text: "BEGIN" })
    const { answerMillis } = inner
    const turns = new Mutex()
    const connections = new WeakSet<Connection>()
    yield* Effect.addFinalizer(() => Effect.ignore(inner.run({ text: "ROLLBACK" })))
    const state = Effect.map(pool.state, (all) => ({ ...all, max: 1 }))
    return {
      acquire: (restore) =>
        Effect.contextWithEffect((context: Context.Context<never>) => {
          if (
            Context.get(context, Pool.CheckedOut).some(
              ({ connection, over }) => !over && connections.has(connection)
            )
          ) {
            return Effect.fail(secondConnection)
          }
          const turn = turns.take<DatabaseError>((wait) =>
            restore(
              Effect.timeoutOption(wait, acquireTimeout).pipe(
                Effect.flatMap((given) =>
                  given._tag === "Some"
                    ? Effect.succeed(given.value)
                    : Effect.flatMap(state, (now) => Effect.fail(tooLong(acquireTimeout, now)))
                )
              )
            )
          )
          return Effect.map(turn, () => {
            const connection = new SandboxConnection(inner)
            connections.add(connection)
            return connection
          })
        }),
      release: () =>
        Effect.zipRight(
          Effect.sync(() => {
            inner.answerMillis = answerMillis
            inner.expectsReadOnly = false
          }),
          turns.pass
        ),
      state,
      events: pool.events
    }
  })

/** A sandbox, whose only connection is put back as it was opened when the scope closes. */
export const isolated = (sandbox: Pool.Pool): Effect.Effect<Pool.Pool, never, Scope.Scope> =>
  Effect.as(
    Effect.addFinalizer(() => Effect.ignore(Pool.use(sandbox, (connection) => connection.reset))),
    sandbox
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const secondConnection = new DatabaseError({
  operation: "acquire",
  reason: {
    _tag: "InvalidRequest",
    problem:
      "the program asks for a second connection while it holds one, and a test under TestDatabase.rollback has one only: test it with TestDatabase.layer alone"
  }
})

const tooLong = (acquireTimeout: Duration.Duration, pool: PoolState) =>
  new DatabaseError({
    operation: "acquire",
    reason: {
      _tag: "AcquireTimeout",
      timeoutMillis: Duration.toMillis(acquireTimeout),
      pool,
      oldestHolder: undefined
    }
  })

/** The connection of a sandbox, while somebody has it. */
class SandboxConnection extends WrappedConnection {
  private inTransaction = false
  private settings: LocalSettings.Before = new Map()

  override get abortedBy() {
    return this.inTransaction ? super.abortedBy : undefined
  }

  override get transactionStatus() {
    return this.inTransaction ? super.transactionStatus : "I"
  }

  override get reset(): Effect.Effect<void, DatabaseError> {
    return Effect.asVoid(this.inner.run({ text: endOfSession }))
  }

  override copyIn<E, R>(text: string, source: Source<E, R>): Effect.Effect<number, E | DatabaseError, R> {
    const copy = super.copyIn(text, source)
    return this.inTransaction ? copy : this.alone(copy)
  }

  override run(request: Request): Effect.Effect<Response, DatabaseError> {
    return Effect.suspend(() => {
      const [command = ""] = request.text.trim().split(/[\s;]+/, 1)
      switch (command.toUpperCase()) {
        case "BEGIN":
          return this.begin(request)
        case "COMMIT":
          return this.commit()
        case "ROLLBACK":
          return /^ROLLBACK\s+TO\b/i.test(request.text) ? super.run(request) : this.rollback()
        default:
          return this.inTransaction ? this.inside(request) : this.alone(this.inside(request))
      }
    })
  }

  private inside(request: Request): Effect.Effect<Response, DatabaseError> {
    return Effect.suspend(() => {
      const statement = super.run(request)
      // Nothing can be asked in an aborted transaction, and nothing be set.
      return super.transactionStatus === "E"
        ? statement
        : Effect.zipRight(LocalSettings.note(this.inner, this.settings, request), statement)
    })
  }

  /**
   * What follows BEGIN in the same text are limits of the transaction; its modes belong to the
   * transaction around and are left out.
   */
  private begin(request: Request) {
    const [, ...rest] = request.text.split(";")
    this.settings = new Map()
    return Effect.tap(
      this.inside({ ...request, text: [`SAVEPOINT ${transaction}`, ...rest].join(";") }),
      () =>
        Effect.sync(() => {
          this.inTransaction = true
        })
    )
  }

  private commit(): Effect.Effect<Response, DatabaseError> {
    return Effect.suspend(() => {
      if (this.inner.transactionStatus === "E") return this.rollback()
      return checkDeferred(this.inner).pipe(
        Effect.zipRight(LocalSettings.restore(this.inner, this.settings)),
        Effect.tapError(() => this.rollback()),
        Effect.zipRight(this.inner.run({ text: `${deferAgain};RELEASE SAVEPOINT ${transaction}` })),
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
    return this.inner
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

const checkDeferred = (inner: Connection) =>
  inner.transactionStatus === "E" || !inner.isOpen
    ? Effect.void
    : Effect.asVoid(inner.run({ text: "SET CONSTRAINTS ALL IMMEDIATE" }))

/**
 * The check made them immediate for the rest of the transaction around; the next transaction of the
 * program finds them as they were declared. SET CONSTRAINTS means every constraint of a name in a
 * schema and fails if one of them is not deferrable, so those of such names stay immediate.
 */
const deferAgain = `DO $$ DECLARE
  names text := (
    SELECT string_agg(DISTINCT format('%I.%I', n.nspname, k.conname), ', ')
    FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace
    WHERE k.condeferred AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_constraint o
      WHERE o.connamespace = k.connamespace AND o.conname = k.conname AND NOT o.condeferrable
    )
  );
BEGIN
  IF names IS NOT NULL THEN EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED'; END IF;
END $$`
