/**
 * Taking the locks of a step and running it, without harm to anybody.
 *
 * One try is one transaction that asks for its locks for a short time only, and that ends, with its
 * work, by one deadline. What keeps applications safe (rules R1 to R4): no lock is upgraded to one
 * that conflicts with writes; one cap, below the server's deadlock_timeout, holds for the sum of
 * the waits; a second session cancels the try as soon as somebody waits for it in a circle;
 * autovacuum is moved aside by a lock that no reader or writer notices. A try that is lost costs
 * others some milliseconds, so there can be many.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Blocker from "../../catalog/lockHolders.js"
import * as QueuePolicy from "./queuePolicy.js"
import type { Step, StepName } from "../steps/steps.js"
import * as Snapshot from "../snapshot/snapshot.js"
import * as TableLocks from "../../catalog/tableLocks.js"
import * as Triggers from "../steps/triggers.js"
import * as Limits from "../plan/limits.js"

/** The sessions and limits of one change. */
export interface StepContext {
  /** Runs the statements. */
  readonly session: Session
  /** The same session without a limit of ours, for a statement that is watched. */
  readonly patient: Session
  /** Watches while {@link session} waits. */
  readonly watcher: Session
  readonly limits: Limits.Limits
  /** Milliseconds that may still be spent on getting locks; validation does not count. */
  readonly budget: Ref.Ref<number>
  /** The longest time so far for which others had to wait for us, in milliseconds. */
  readonly longestLock: Ref.Ref<number>
  /** Fails if another process may have taken over. */
  readonly stillAlone: Effect.Effect<void, DatabaseError>
  /**
   * The tables are copies that the session's transaction made: nobody else sees them, and nothing
   * is committed.
   */
  readonly onCopies?: true
  /** Told, at most some times a second, while a step cannot get its locks. */
  readonly onWait: (wait: Wait) => Effect.Effect<void>
}

/** A step that is not done yet. */
export interface Wait {
  readonly step: StepName
  /** Tries so far. */
  readonly tries: number
  /**
   * How many tries had their locks and needed longer than others may be made to wait; 0 if the last
   * one had no locks.
   */
  readonly slow: number
  readonly elapsedMillis: number
  readonly blockers: ReadonlyArray<Blocker.Blocker>
}

/** The time for locks is used up. Nothing is half done; whoever was in the way is named. */
export class LockBudgetExhausted extends Data.TaggedError("LockBudgetExhausted")<{
  readonly step: StepName
  readonly tries: number
  readonly blockers: ReadonlyArray<Blocker.Blocker>
  /** What holds as long as the step is not done, where that is not {@link inForce}. */
  readonly meanwhile?: string | undefined
}> {
  override get message() {
    const names = this.blockers.map(Blocker.describe)
    return `no locks for step ${this.step} within the budget, after ${this.tries} tries${
      names.length === 0 ? "" : `; in the way: ${names.join("; ")}`
    }. ${this.meanwhile ?? inForce(this.step)}. Run it again to resume`
  }
}

/** So many tries were lost that another way is to be taken. */
export class TriesExhausted extends Data.TaggedError("TriesExhausted")<{ readonly step: StepName }> {}

/**
 * The key is not as it was read: somebody else changed it. What to do follows from reading it
 * again.
 */
export class ChangedMeanwhile extends Data.TaggedError("ChangedMeanwhile")<{
  readonly step: StepName
  /** The server's word that something which the step names is not there. */
  readonly cause?: DatabaseError
  /**
   * The roles in which triggers of the new key would have fired before the original's, if that is
   * why: nobody saw it.
   */
  readonly late?: ReadonlyArray<Snapshot.Role>
}> {
  override get message() {
    return `the foreign key was changed by somebody else before step ${this.step}`
  }
}

/** The constraint that was built differs from the original; the transaction was rolled back. */
export class Unfaithful extends Data.TaggedError("Unfaithful")<{
  readonly differences: ReadonlyArray<Snapshot.Difference>
}> {
  override get message() {
    return `the new constraint would differ from the original in ${this.differences
      .map((d) => `${d.field} (${JSON.stringify(d.expected)} would become ${JSON.stringify(d.actual)})`)
      .join(", ")}; rolled back`
  }
}

/**
 * A trigger of the referenced table would fire between those of the original and of the new key,
 * and the role may not rename triggers there. Rolled back.
 */
export class OutOfPlace extends Data.TaggedError("OutOfPlace")<{
  readonly step: StepName
  readonly table: string
  readonly trigger: string
  /** The key that the trigger belongs to, if it does. */
  readonly key: string | null
}> {
  override get message() {
    return `the new key would act on the other side of ${
      this.key === null ? `trigger ${this.trigger} on it` : `key ${this.key}`
    }, which acts on the same deletes or key updates, and only the owner of ${this.table} can rename triggers there: run it as a role that owns both tables, or as a superuser. Step ${this.step} was rolled back, the original still protects the data`
  }
}

/** The ways in turn: each has a load under which it starves, so none is used alone. */
const ways: ReadonlyArray<Limits.Way> = ["reversed", "as-listed", "spin"]

/**
 * The budget is used up by tries that had their locks and took longer than others may be made to
 * wait; each was rolled back.
 */
export class StepTooSlow extends Data.TaggedError("StepTooSlow")<{
  readonly step: StepName
  /** The time that each try had, in milliseconds. */
  readonly limit: number
  /** The tries that had their locks. */
  readonly slow: number
  readonly meanwhile?: string | undefined
}> {
  override get message() {
    return `step ${this.step} was not done within the budget: ${this.slow} ${
      this.slow === 1 ? "try" : "tries"
    } had the locks, needed longer than ${this.limit} ms (the lock timeout) and were rolled back. ${
      this.meanwhile ?? inForce(this.step)
    }. Run it again to resume, with a longer lock timeout or when the server has less to do`
  }
}

/** Which key is in force as long as a step is not done. */
const inForce = (step: StepName): string => {
  switch (step) {
    case "settle":
      return "The new key protects the data; its checks come when a transaction ends"
    case "switch-names":
    case "switch-delete":
    case "switch-update":
    case "drop-original":
      return "Both the original and the new key protect the data"
    default:
      return "The original constraint still protects the data"
  }
}

/** How {@link run} goes about a step. */
export interface Options {
  /** Give up after so many lost tries. */
  readonly maxTries?: number
  /** The snapshot that the step proves, for the error that names the differences. */
  readonly expected?: Snapshot.Snapshot
  /**
   * What holds as long as the step is not done, for the errors that end it; by default that the
   * original, or both keys, protect the data.
   */
  readonly meanwhile?: string
}

/** Runs a step as soon as it can have its locks. */
export const run = (
  context: StepContext,
  step: Step,
  options: Options = {}
): Effect.Effect<
  void,
  | DatabaseError
  | LockBudgetExhausted
  | TriesExhausted
  | ChangedMeanwhile
  | Unfaithful
  | OutOfPlace
  | StepTooSlow
> =>
  Effect.gen(function* () {
    if (context.onCopies === true) return yield* rehearse(context, step, options)
    const queuePolicy = yield* Ref.make(QueuePolicy.none)
    const sightings = yield* Ref.make<Blocker.Sightings>(new Map())
    const look = Blocker.holders(context.watcher, step.locks, [
      context.session.processId,
      context.watcher.processId
    ])
    yield* repeatedly(context, step, options, (tries, slow) =>
      Effect.gen(function* () {
        // Two sessions, which need not wait for each other.
        const present =
          tries === 0 ? yield* Effect.zipRight(context.stillAlone, look, { concurrent: true }) : yield* look
        const holders = yield* Blocker.old(present, 2 * context.limits.wait, sightings)
        const seen = yield* Ref.updateAndGet(queuePolicy, (seen) => QueuePolicy.look(seen, holders))
        if (holders.length === 0)
          return yield* attempt(context, step, tries, patience(context, tries, slow), options)
        if (!(yield* QueuePolicy.queues(seen))) return { _tag: "Asked" as const, blockers: holders }
        yield* Ref.set(queuePolicy, { ...seen, queued: seen.queued + 1 })
        const result = yield* attempt(context, step, tries, patience(context, Infinity, slow), options)
        // Whoever was seen in the way last can be somebody who was there for a moment only.
        return result._tag === "Won" ? result : { ...result, blockers: together(holders, result.blockers) }
      })
    )
  })

/**
 * Runs a step whose locks no reader or writer notices, also not while it waits for them, and that
 * may take hours. The time it works does not count against the budget, the time it waits does.
 */
export const runBesideWrites = (
  context: StepContext,
  step: Step
): Effect.Effect<
  void,
  DatabaseError | LockBudgetExhausted | TriesExhausted | ChangedMeanwhile | StepTooSlow
> =>
  Effect.gen(function* () {
    if (context.onCopies === true)
      return yield* Effect.asVoid(context.session.query(step.statements.join(";\n")))
    const statements = Limits.besideWrites(step, context.limits)
    const checked = repeatedly(context, step, {}, () =>
      Effect.gen(function* () {
        const blockers = yield* Ref.make<Observation>([])
        const look = watched(context, blockers, "500 millis", context.patient.query(statements.join(";\n")))
        return yield* Effect.as(look, won).pipe(
          Effect.catchAll((error) =>
            Effect.zipRight(
              rollback(context.session, error),
              isLostTry(error) ? lost(blockers) : otherwise(step, error)
            )
          )
        )
      })
    )
    // On two sessions. To check rows harms nobody, also if another process has taken over.
    yield* Effect.zipRight(context.stillAlone, checked, { concurrent: true })
  })

/**
 * Runs a step whose statements cannot be in a transaction, of the kind of REINDEX CONCURRENTLY: no
 * reader or writer notices its locks, and it waits for the transactions that were there before it,
 * while nobody waits for it. The time it waits counts against the budget, which ends it; the time
 * it builds does not. A lost try is not repeated, because what it left behind has to be looked at
 * first.
 */
export const runOutsideTransaction = (
  context: StepContext,
  step: Step
): Effect.Effect<void, DatabaseError | LockBudgetExhausted | TriesExhausted | ChangedMeanwhile> =>
  Effect.gen(function* () {
    yield* context.stillAlone
    const blockers = yield* Ref.make<Observation>([])
    const named = yield* Ref.make<Observation>([])
    const exhausted = yield* Ref.make<LockBudgetExhausted | undefined>(undefined)
    const start = yield* Clock.currentTimeMillis
    const second = Effect.gen(function* () {
      const began = yield* Clock.currentTimeMillis
      yield* Effect.sleep("1 second")
      const seen = yield* Ref.getAndSet(blockers, [])
      if (seen.length === 0) return undefined
      yield* Ref.set(named, seen)
      const now = yield* Clock.currentTimeMillis
      yield* context.onWait({
        step: step.name,
        tries: 0,
        slow: 0,
        elapsedMillis: now - start,
        blockers: seen
      })
      const left = yield* Ref.updateAndGet(context.budget, (budget) => budget - (now - began))
      if (left > 0) return undefined
      yield* Ref.set(exhausted, new LockBudgetExhausted({ step: step.name, tries: 1, blockers: seen }))
      yield* Effect.uninterruptible(Blocker.cancel(context.watcher, context.session.processId))
      return yield* Effect.never
    })
    // The server's own limit is for when nobody is there any more to count, so it is the later one.
    const wait = Math.max(1, Math.ceil(yield* Ref.get(context.budget))) + 2000
    const statements = Effect.forEach(
      [...Limits.outsideTransaction.before(wait), ...step.statements],
      (statement) => watched(context, blockers, "500 millis", context.patient.query(statement)),
      { discard: true }
    )
    const ended = (error: DatabaseError) =>
      Effect.gen(function* () {
        const outOfBudget = yield* Ref.get(exhausted)
        if (outOfBudget !== undefined) return yield* outOfBudget
        if (error.reason._tag !== "LockTimeout") return yield* new TriesExhausted({ step: step.name })
        const seen = yield* Ref.get(blockers)
        return yield* new LockBudgetExhausted({
          step: step.name,
          tries: 1,
          blockers: seen.length > 0 ? seen : yield* Ref.get(named)
        })
      })
    yield* Effect.raceFirst(statements, Effect.forever(second)).pipe(
      Effect.catchAll(
        (
          error
        ): Effect.Effect<never, DatabaseError | LockBudgetExhausted | TriesExhausted | ChangedMeanwhile> =>
          isLostTry(error) ? ended(error) : otherwise(step, error)
      ),
      Effect.ensuring(Effect.ignore(context.session.query(Limits.outsideTransaction.after.join("; "))))
    )
  })

/**
 * Runs statements of a step that clean up after {@link runOutsideTransaction}, each for a short
 * time only: DROP INDEX CONCURRENTLY may have to wait for the very transactions that were in the
 * way. What is left then is found by the next run.
 */
export const tidy = ({ session }: StepContext, statements: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.forEach(
    ["SET statement_timeout = '30s'", "SET lock_timeout = '1s'", ...statements, "SET lock_timeout = '5s'"],
    (statement) => Effect.ignore(session.query(statement)),
    { discard: true }
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * Runs the statements alone. A swap that has another way is undone again, so that this way is
 * rehearsed too, and so is a step whose triggers would be out of order.
 */
const rehearse = (
  { session }: StepContext,
  step: Step,
  { expected, maxTries }: Options
): Effect.Effect<void, DatabaseError | TriesExhausted | ChangedMeanwhile | Unfaithful> =>
  Effect.gen(function* () {
    const isOneOfTwo = step.name === "swap" && maxTries !== undefined
    yield* session
      .query(["SAVEPOINT rehearsal", ...(step.guards ?? []), ...step.statements].join(";\n"))
      .pipe(
        Effect.catchAll((error): Effect.Effect<never, DatabaseError | ChangedMeanwhile | Unfaithful> => {
          const late = outOfOrder(step, error)
          return late === undefined
            ? (proof(error, expected) ?? Effect.fail(error))
            : Effect.zipRight(session.query("ROLLBACK TO SAVEPOINT rehearsal"), late)
        })
      )
    if (!isOneOfTwo) return undefined
    yield* session.query("ROLLBACK TO SAVEPOINT rehearsal")
    return yield* new TriesExhausted({ step: step.name })
  })

type Observation = ReadonlyArray<Blocker.Blocker>

/** What came of one try. */
type Result =
  | { readonly _tag: "Won" }
  /** The locks were not to be had in the time that a try takes. */
  | { readonly _tag: "Lost"; readonly blockers: Observation }
  /** It had the locks, and its work was not done by the deadline. */
  | { readonly _tag: "Slow"; readonly blockers: Observation }
  /** No lock was asked for, because old transactions hold them. */
  | { readonly _tag: "Asked"; readonly blockers: Observation }

const won: Result = { _tag: "Won" }

const lost = (blockers: Ref.Ref<Observation>): Effect.Effect<Result> =>
  Effect.map(Ref.get(blockers), (seen) => ({ _tag: "Lost", blockers: seen }))

/** All of them, each once. */
const together = (some: Observation, others: Observation): Observation => [
  ...some,
  ...others.filter(({ pid, preparedTransaction }) =>
    some.every((one) =>
      // A prepared transaction that has just ended has no name any more.
      pid === null && preparedTransaction === null
        ? one.pid !== null
        : one.pid !== pid || one.preparedTransaction !== preparedTransaction
    )
  )
]

/** Tries until one wins, as often and as long as allowed, with random pauses that grow. */
const repeatedly = <E>(
  context: StepContext,
  step: Step,
  { maxTries, meanwhile }: Options,
  attempt: (tries: number, slow: number) => Effect.Effect<Result, E>
): Effect.Effect<void, E | LockBudgetExhausted | TriesExhausted | StepTooSlow> =>
  Effect.gen(function* () {
    const { limit } = context.limits
    const start = yield* Clock.currentTimeMillis
    let told = start
    let blockers: Observation = []
    let slow = 0
    let isSlow = false
    for (let tries = 0; tries !== maxTries;) {
      const began = yield* Clock.currentTimeMillis
      const result = yield* attempt(tries, slow)
      if (result._tag === "Won") return undefined
      if (result._tag !== "Asked") tries += 1
      isSlow = result._tag === "Slow"
      if (isSlow) slow += 1
      if (result.blockers.length > 0) blockers = result.blockers
      const longest = Math.min(pause(tries, isSlow ? slow : 0, limit), yield* Ref.get(context.budget))
      yield* Effect.sleep(Duration.millis(5 + (yield* Random.next) * Math.max(0, longest)))
      const now = yield* Clock.currentTimeMillis
      const left = yield* Ref.updateAndGet(context.budget, (budget) => budget - (now - began))
      if (left <= 0) {
        return yield* isSlow
          ? new StepTooSlow({ step: step.name, limit, slow, meanwhile })
          : new LockBudgetExhausted({ step: step.name, tries, blockers, meanwhile })
      }
      if (now - told >= 200) {
        told = now
        yield* context.onWait({
          step: step.name,
          tries,
          slow: isSlow ? slow : 0,
          elapsedMillis: now - start,
          blockers: isSlow ? [] : blockers
        })
      }
    }
    return yield* new TriesExhausted({ step: step.name })
  })

/**
 * The longest pause before the next try, in milliseconds. A try that had its locks made others wait
 * for all of its time, and what slows the server down does not pass at once, so the pauses grow
 * faster then.
 */
const pause = (tries: number, slow: number, limit: number) =>
  slow > 0 ? Math.min(30_000, limit * 1.5 ** slow) : Math.min(500, 15 * 1.15 ** tries)

/**
 * How long to ask for locks. Longer and longer up to the cap: under load short tries win, beside
 * slower transactions longer ones do. A step whose work was too slow gets more of its time for
 * that.
 */
const patience = ({ limits: { limit, wait } }: StepContext, tries: number, slow: number) =>
  Math.max(1, Math.round(Math.min(wait, 30 * 2 ** Math.floor(tries / 6), slow > 0 ? limit / 4 : Infinity)))

const attempt = (
  context: StepContext,
  step: Step,
  tries: number,
  patience: number,
  { expected }: Options
): Effect.Effect<Result, DatabaseError | ChangedMeanwhile | Unfaithful | OutOfPlace> =>
  Effect.gen(function* () {
    const way =
      step.locks.length === 1 ||
      isShared(step) ||
      Limits.isImplicit(step) ||
      !step.locks.every(({ table }) => TableLocks.isLockable(table))
        ? "as-listed"
        : (ways[tries % ways.length] ?? "as-listed")
    const isLocked = Limits.tablesOf(step).length > 0
    const { body, prelude } = Limits.transaction(step, way, { ...context.limits, wait: patience })
    const blockers = yield* Ref.make<Observation>([])
    const ask = watched(context, blockers, "5 millis", context.patient.query(prelude.join(";\n")))
    const work = Effect.gen(function* () {
      const start = yield* Clock.currentTimeNanos
      return yield* timed(
        context,
        watched(context, blockers, "5 millis", context.patient.query(body.join(";\n")))
      ).pipe(
        Effect.as(won),
        // The locks have an error of their own, so it was the statements, unless somebody cancelled
        // one before its time.
        Effect.catchIf(
          ({ reason }) => "code" in reason && reason.code === "57014" && isLocked,
          (error) =>
            Effect.flatMap(Clock.currentTimeNanos, (end) =>
              Number(end - start) / 1e6 < context.limits.limit - 1
                ? Effect.fail(error)
                : Effect.as(rollback(context.session, error), { _tag: "Slow" as const, blockers: [] })
            )
        )
      )
    })
    return yield* Effect.zipRight(ask, work).pipe(
      Effect.catchAll((error) =>
        Effect.zipRight(rollback(context.session, error), judge(step, error, expected))
      ),
      Effect.flatMap((result) => (result === undefined ? lost(blockers) : Effect.succeed(result)))
    )
  })

/** Only a session that still lives can and need be rolled back. */
const rollback = (session: Session, error: DatabaseError) =>
  error.disposition === "keep" ? session.query("ROLLBACK") : Effect.void

/**
 * A step that does not ask for ACCESS EXCLUSIVE has one good order only: the referenced table
 * first.
 */
const isShared = (step: Step) => step.locks.every((lock) => lock.mode !== "ACCESS EXCLUSIVE")

const timed = <A, E>(context: StepContext, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    const start = yield* Clock.currentTimeNanos
    return yield* Effect.ensuring(
      effect,
      Effect.flatMap(Clock.currentTimeNanos, (end) => {
        const millis = Number(end - start) / 1e6
        return Ref.update(context.longestLock, (longest) => Math.max(longest, millis))
      })
    )
  })

/**
 * Runs a statement under the eyes of the watcher. The watcher's last look is awaited before
 * anything else is sent: its cancel could hit the next statement otherwise. A watcher that gets no
 * answer ends the statement too.
 */
const watched = <A, E>(
  context: StepContext,
  blockers: Ref.Ref<Observation>,
  interval: Duration.DurationInput,
  statement: Effect.Effect<A, E>
): Effect.Effect<A, E | DatabaseError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const look = Effect.flatMap(Blocker.watch(context.watcher, context.session.processId), (seen) =>
        seen.length === 0 ? Effect.void : Ref.set(blockers, seen)
      )
      const watching = Effect.forever(Effect.zipRight(Effect.interruptible(Effect.sleep(interval)), look))
      const watcher = yield* Effect.fork(watching)
      const exit = yield* Effect.exit(restore(Effect.raceFirst(statement, Fiber.join(watcher))))
      const end = yield* Fiber.interrupt(watcher)
      return yield* Exit.isInterrupted(end) ? exit : Exit.zipLeft(exit, end)
    })
  )

/** A lost try passes; whatever else went wrong does not. */
const judge = (
  step: Step,
  error: DatabaseError,
  expected: Snapshot.Snapshot | undefined
): Effect.Effect<void, DatabaseError | ChangedMeanwhile | Unfaithful | OutOfPlace> => {
  const { reason } = error
  if (isLostTry(error)) return Effect.void
  if (reason._tag === "ServerError" && reason.code === Snapshot.changedCode) {
    return new ChangedMeanwhile({ step: step.name })
  }
  if (
    reason._tag === "ServerError" &&
    reason.code === Triggers.outOfPlaceCode &&
    reason.detail !== undefined
  ) {
    const found = JSON.parse(Redacted.value(reason.detail)) as Triggers.Between
    return new OutOfPlace({ step: step.name, ...found })
  }
  return outOfOrder(step, error) ?? proof(error, expected) ?? otherwise(step, error)
}

/** The error of a step that found its triggers out of order; undefined for any other error. */
const outOfOrder = ({ name }: Step, { reason }: DatabaseError): ChangedMeanwhile | undefined =>
  reason._tag === "ServerError" && reason.code === Triggers.outOfOrderCode && reason.detail !== undefined
    ? new ChangedMeanwhile({
        step: name,
        late: JSON.parse(Redacted.value(reason.detail)) as ReadonlyArray<Snapshot.Role>
      })
    : undefined

/** The error of a step that proved the key to be another one; undefined for any other error. */
const proof = (
  { reason }: DatabaseError,
  expected: Snapshot.Snapshot | undefined
): Unfaithful | undefined => {
  if (reason._tag !== "ServerError" || reason.code !== Snapshot.unfaithfulCode || expected === undefined) {
    return undefined
  }
  const actual = Snapshot.parse(reason.detail === undefined ? null : Redacted.value(reason.detail))
  return new Unfaithful({
    differences:
      actual === undefined
        ? [{ field: "constraint", expected: "present", actual: "missing" }]
        : Snapshot.compare(expected, actual)
  })
}

/**
 * An error of a step that is no lost try. A step names only what was there a moment ago: if that is
 * gone or has another name, somebody else was at it.
 */
const otherwise = (
  step: Step,
  error: DatabaseError
): Effect.Effect<never, DatabaseError | ChangedMeanwhile> =>
  error.reason._tag === "UndefinedObject"
    ? new ChangedMeanwhile({ step: step.name, cause: error })
    : Effect.fail(error)

/**
 * No locks in time (by {@link Limits.noLocksCode}), lock timeout and NOWAIT (55P03), the cap or the
 * watcher's cancel (57014), and a deadlock in which we are the victim (40P01).
 */
export const isLostTry = (error: DatabaseError): boolean =>
  (error.reason._tag === "ServerError" && error.reason.code === Limits.noLocksCode) ||
  error.reason._tag === "LockTimeout" ||
  error.reason._tag === "StatementTimeout" ||
  error.reason._tag === "StatementCancelled" ||
  error.reason._tag === "DeadlockDetected"
