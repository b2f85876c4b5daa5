import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Runtime from "effect/Runtime"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Tarn from "tarn"
import { DatabaseError, type PoolState } from "../DatabaseError.js"
import { Backend, type DialOptions } from "./Backend.js"

/** How a pool behaves. */
export interface PoolOptions {
  readonly dial: DialOptions
  readonly min: number
  readonly max: number
  readonly acquireTimeout: Duration.Duration
  readonly idleTimeout: Duration.Duration
  readonly connectionTTL: Duration.Duration
  readonly validateAfterIdle: Duration.Duration
}

/**
 * A pool of backends. `tarn` does the pooling: it keeps minimum and maximum, hands a free connection to whoever waits
 * longest, gives up a wait that is aborted, closes what is idle for too long. What is added here is the discipline around
 * it: a connection is lent only if it is open, young enough, outside any transaction and, after a pause, proven alive; and a
 * caller's wait is not tied to the one dial that it caused.
 */
export interface Pool {
  /** Lends a backend until `release`. The wait can be interrupted. */
  readonly acquire: Effect.Effect<Backend, DatabaseError>
  /** Takes a backend back. One that is not idle and clean is closed, never lent again. */
  readonly release: (backend: Backend) => Effect.Effect<void>
  readonly state: Effect.Effect<PoolState>
}

/** Opens the pool and its minimum of connections; the first failure to connect is the error. */
export const make = Effect.fn("Pool.make")(function* (
  options: PoolOptions
): Effect.fn.Return<Pool, DatabaseError, Scope.Scope> {
  const runtime = yield* Effect.runtime()
  const runPromise = Runtime.runPromise(runtime)
  const runFork = Runtime.runFork(runtime)
  const clock = yield* Effect.clock
  const unsafeNow = () => clock.unsafeCurrentTimeMillis()

  const live = new Map<Backend, Lease>()
  const dialPermits = yield* Effect.makeSemaphore(concurrentDials)
  let closing = false
  let invalidBefore = 0

  const state = (): PoolState => {
    let busy = 0
    for (const [backend, lease] of live) if (lease.lent || !backend.isQuiet) busy++
    return {
      total: live.size,
      busy,
      idle: live.size - busy,
      waiting: pool.numPendingAcquires(),
      max: options.max
    }
  }

  const condemn = (backend: Backend, error: DatabaseError) => {
    const lease = live.get(backend)
    if (lease === undefined || error.fate === "keep") return
    if (error.reason._tag === "ReadOnlyTransaction" && backend.expectsReadOnly) return
    lease.condemned = true
    if (error.fate !== "invalidate") return
    invalidBefore = unsafeNow()
    for (const [other, { lent }] of live) {
      if (!lent && other !== backend && other.openedAt < invalidBefore) runFork(other.close)
    }
  }

  const dial = Effect.gen(function* () {
    const backend = yield* Backend.dial(options.dial)
    const ttl = Duration.toMillis(options.connectionTTL)
    const jitter = yield* Random.nextRange(0, 0.1)
    const lease: Lease = {
      lent: false,
      condemned: false,
      idleSince: backend.openedAt,
      expiresAt: backend.openedAt + ttl * (1 - jitter)
    }
    live.set(backend, lease)
    backend.onError = (error) => condemn(backend, error)
    backend.onClose(() => live.delete(backend))
    return backend
  }).pipe(
    Effect.retry({
      while: (error) => error.reason._tag === "ServerStarting" || error.reason._tag === "TooManyConnections",
      schedule: Schedule.jittered(Schedule.exponential("50 millis")).pipe(
        Schedule.upTo(options.dial.connectTimeout)
      )
    })
  )

  /** Dials in turn, and not at all once nobody waits any more. */
  const create = dialPermits.withPermits(1)(
    Effect.suspend(() => (pool.numPendingAcquires() === 0 ? Effect.fail(noLongerWanted) : dial))
  )

  const isAlive = (backend: Backend): Effect.Effect<boolean> =>
    backend
      .run({ text: "-- ping" })
      .pipe(
        Effect.isSuccess,
        Effect.timeoutTo({ duration: pingTimeout, onTimeout: () => false, onSuccess: (alive) => alive })
      )

  const validate = (backend: Backend): boolean | Promise<boolean> => {
    const lease = live.get(backend)
    const now = unsafeNow()
    if (
      lease === undefined ||
      lease.condemned ||
      !backend.isOpen ||
      backend.transactionStatus !== "I" ||
      backend.openedAt < invalidBefore ||
      now >= lease.expiresAt
    ) {
      return false
    }
    return now - lease.idleSince < Duration.toMillis(options.validateAfterIdle)
      ? true
      : runPromise(isAlive(backend))
  }

  const pool = new Tarn.Pool<Backend>({
    create: () => runPromise(create),
    validate: validate as (backend: Backend) => boolean,
    destroy: (backend) => runPromise(backend.close),
    min: options.min,
    max: options.max,
    acquireTimeoutMillis: Duration.toMillis(options.acquireTimeout),
    createTimeoutMillis: maxTimer,
    destroyTimeoutMillis: 5000,
    idleTimeoutMillis: Math.min(Duration.toMillis(options.idleTimeout), maxTimer),
    reapIntervalMillis: housekeepingMillis,
    createRetryIntervalMillis: 50,
    propagateCreateError: true
  })

  const acquireError = (error: unknown): DatabaseError =>
    DatabaseError.is(error)
      ? error
      : new DatabaseError({
          operation: "acquire",
          reason:
            closing || !(error instanceof Tarn.TimeoutError)
              ? { _tag: "PoolClosed" }
              : {
                  _tag: "AcquireTimeout",
                  timeoutMillis: Duration.toMillis(options.acquireTimeout),
                  pool: state()
                }
        })

  const acquireOnce = Effect.async<Backend, DatabaseError>((resume) => {
    if (closing) {
      resume(Effect.fail(acquireError(undefined)))
      return
    }
    const pending = pool.acquire()
    let lent: Backend | undefined
    let interrupted = false
    pending.promise.then(
      (backend) => {
        const lease = live.get(backend)
        if (lease !== undefined) lease.lent = true
        if (interrupted) return giveBack(backend)
        lent = backend
        resume(Effect.succeed(backend))
      },
      (error: unknown) => resume(Effect.fail(acquireError(error)))
    )
    // The interruption can come after the connection was handed over and before the fiber took it.
    return Effect.sync(() => {
      interrupted = true
      if (lent === undefined) pending.abort()
      else giveBack(lent)
    })
  })

  /** A wait that began while an abandoned dial was given up is not to blame for it. */
  const acquire: Effect.Effect<Backend, DatabaseError> = Effect.catchAll(acquireOnce, (error) =>
    error === noLongerWanted ? acquire : Effect.fail(error)
  )

  const giveBack = (backend: Backend) => {
    const lease = live.get(backend)
    if (lease !== undefined) {
      lease.lent = false
      lease.idleSince = unsafeNow()
    }
    backend.expectsReadOnly = false
    pool.release(backend)
  }

  const release = (backend: Backend): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (backend.isQuiet)
        return Effect.zipRight(
          leaveClean(backend),
          Effect.sync(() => giveBack(backend))
        )
      return Effect.asVoid(
        Effect.forkDaemon(
          Effect.zipRight(
            backend.quiet,
            Effect.suspend(() => release(backend))
          )
        )
      )
    })

  const leaveClean = (backend: Backend): Effect.Effect<void> => {
    if (!backend.isOpen) return Effect.void
    if (backend.transactionStatus !== "I") {
      return Effect.zipRight(
        Effect.logWarning("A connection was given back inside an open transaction; it is closed"),
        backend.close
      )
    }
    return live.get(backend)?.condemned === true ? backend.close : Effect.void
  }

  const pooling: Pool = { acquire, release, state: Effect.sync(state) }

  /** Closes idle connections past their lifetime, and opens new ones up to the minimum. */
  const housekeeping = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    for (const [backend, lease] of live) {
      if (!lease.lent && now >= lease.expiresAt) yield* backend.close
    }
    if (live.size < options.min && pool.numPendingAcquires() === 0) yield* Effect.ignore(warm)
  })

  /** Borrows the whole minimum at once, which makes `tarn` open what is missing, and gives it back. */
  const warm: Effect.Effect<void, DatabaseError> = Effect.suspend(() => {
    const wanted = Math.max(pool.numFree(), options.min - pool.numUsed())
    return Effect.scoped(
      Effect.forEach(
        Array.from({ length: Math.min(wanted, options.max - pool.numUsed()) }),
        () => borrow(pooling),
        { concurrency: "unbounded", discard: true }
      )
    )
  })

  yield* Effect.addFinalizer(() =>
    Effect.gen(function* () {
      closing = true
      yield* Effect.promise(() => pool.destroy())
      yield* Effect.forEach([...live.keys()], (backend) => backend.close, {
        concurrency: "unbounded",
        discard: true
      })
    })
  )

  yield* options.min > 0 ? warm : Effect.scoped(borrow(pooling))
  yield* housekeeping.pipe(
    Effect.repeat(Schedule.spaced(Duration.millis(housekeepingMillis))),
    Effect.forkScoped
  )

  return pooling
})

/** Lends a backend until the scope closes. The wait can be interrupted; nothing is lost then. */
export const borrow = (pool: Pool): Effect.Effect<Backend, DatabaseError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.tap(restore(pool.acquire), (backend) => Effect.addFinalizer(() => pool.release(backend)))
  )

/** Lends a backend while `use` runs. */
export const use = <A, E, R>(
  pool: Pool,
  use: (backend: Backend) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | DatabaseError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(restore(pool.acquire), (backend) =>
      Effect.ensuring(restore(use(backend)), pool.release(backend))
    )
  )

/** What the pool knows of a backend. */
interface Lease {
  lent: boolean
  /** An error said that it must not be lent again. */
  condemned: boolean
  idleSince: number
  readonly expiresAt: number
}

/** More dials at once would open connections for callers that an idle one serves sooner. */
const concurrentDials = 4

const pingTimeout = Duration.seconds(1)

const housekeepingMillis = 1000

/** The longest time that Node's timers can hold. */
const maxTimer = 2 ** 31 - 1

const noLongerWanted = new DatabaseError({ operation: "connect", reason: { _tag: "PoolClosed" } })
