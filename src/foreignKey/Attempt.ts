/**
 * Taking the locks of a step and running it, without harm to anybody.
 *
 * One try is one transaction that asks for its locks for a short time only. What keeps applications safe (rules R1 to R4):
 * no lock is upgraded to one that conflicts with writes; one cap, below the server's deadlock_timeout, holds for the sum of the waits;
 * a second session cancels the try as soon as somebody waits for it in a circle; autovacuum is moved aside by a lock that no reader or writer notices.
 * A try that is lost costs others some milliseconds, so there can be many.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import * as Blocker from "./Blocker.js"
import * as Courtesy from "./Courtesy.js"
import type { Step, StepName } from "./Change.js"
import * as Fidelity from "./Fidelity.js"
import * as Lock from "./Lock.js"
import * as Try from "./Try.js"

/** The sessions and limits of one change. */
export interface Bench {
  /** Runs the statements. */
  readonly session: Session
  /** Watches while {@link session} waits. */
  readonly watcher: Session
  /** The longest that one try asks for locks, in milliseconds. */
  readonly cap: number
  /** Milliseconds that may still be spent on getting locks; validation does not count. */
  readonly budget: Ref.Ref<number>
  /** The longest time so far for which others had to wait for us, in milliseconds. */
  readonly longestLock: Ref.Ref<number>
  /** Fails if another process may have taken over. */
  readonly stillAlone: Effect.Effect<void, DatabaseError>
  /** Told, at most some times a second, while a step cannot get its locks. */
  readonly onWait: (wait: Wait) => Effect.Effect<void>
}

/** A step that has no locks yet. */
export interface Wait {
  readonly step: StepName
  /** Tries so far. */
  readonly tries: number
  readonly elapsedMillis: number
  readonly blockers: ReadonlyArray<Blocker.Blocker>
}

/** The time for locks is used up. Nothing is half done; whoever was in the way is named. */
export class LockBudgetExhausted extends Data.TaggedError("LockBudgetExhausted")<{
  readonly step: StepName
  readonly tries: number
  readonly blockers: ReadonlyArray<Blocker.Blocker>
}> {
  override get message() {
    const names = this.blockers.map(Blocker.describe)
    return `no locks for step ${this.step} within the budget, after ${this.tries} tries${
      names.length === 0 ? "" : `; in the way: ${names.join("; ")}`
    }. The original constraint still protects the data. Run it again to resume`
  }
}

/** So many tries were lost that another way is to be taken. */
export class TriesExhausted extends Data.TaggedError("TriesExhausted")<{ readonly step: StepName }> {}

/** The key is not as it was read: somebody else changed it. What to do follows from reading it again. */
export class ChangedMeanwhile extends Data.TaggedError("ChangedMeanwhile")<{ readonly step: StepName }> {
  override get message() {
    return `the foreign key was changed by somebody else before step ${this.step}`
  }
}

/** The constraint that was built differs from the original; the transaction was rolled back. */
export class Unfaithful extends Data.TaggedError("Unfaithful")<{
  readonly differences: ReadonlyArray<Fidelity.Difference>
}> {
  override get message() {
    return `the new constraint would differ from the original in ${this.differences
      .map((d) => `${d.field} (${JSON.stringify(d.expected)} would become ${JSON.stringify(d.actual)})`)
      .join(", ")}; rolled back`
  }
}

/** The ways in turn: each has a load under which it starves, so none is used alone. */
const ways: ReadonlyArray<Try.Way> = ["reversed", "as-listed", "spin"]

/** With all its locks, a step took longer than others can be made to wait; it was rolled back. */
export class StepTooSlow extends Data.TaggedError("StepTooSlow")<{
  readonly step: StepName
  readonly millis: number
}> {
  override get message() {
    return `step ${this.step} did not finish within ${bodyLimit} ms of getting its locks (so many partitions?) and was rolled back; the original still protects the data`
  }
}

/**
 * The longest that one try asks for locks, in milliseconds: never so long that PostgreSQL looks for a deadlock meanwhile, and may find the victim among the
 * applications.
 */
export const cap = (lockTimeout: Duration.DurationInput | undefined, deadlockTimeout: number): number =>
  Math.max(
    1,
    Math.floor(
      Math.min(Duration.toMillis(Duration.decode(lockTimeout ?? "250 millis")), 0.6 * deadlockTimeout)
    )
  )

/** How {@link run} goes about a step. */
export interface Options {
  /** Give up after so many lost tries. */
  readonly maxTries?: number
  /** The vector that the step proves, for the error that names the differences. */
  readonly expected?: Fidelity.Vector
}

/** Runs a step as soon as it can have its locks. */
export const run = (
  bench: Bench,
  step: Step,
  options: Options = {}
): Effect.Effect<
  void,
  DatabaseError | LockBudgetExhausted | TriesExhausted | ChangedMeanwhile | Unfaithful | StepTooSlow
> =>
  Effect.gen(function* () {
    yield* bench.stillAlone
    const courtesy = yield* Ref.make(Courtesy.none)
    yield* repeatedly(bench, step, options.maxTries, (tries) =>
      Effect.gen(function* () {
        const holders = yield* Blocker.holders(
          bench.watcher,
          step.locks,
          [bench.session.processId, bench.watcher.processId],
          2 * bench.cap
        )
        const seen = yield* Ref.updateAndGet(courtesy, (seen) => Courtesy.look(seen, holders))
        if (holders.length === 0)
          return yield* attempt(bench, step, tries, patience(bench.cap, tries), options)
        if (!(yield* Courtesy.queues(seen))) return { _tag: "Asked" as const, blockers: holders }
        yield* Ref.set(courtesy, { ...seen, queued: seen.queued + 1 })
        return yield* attempt(bench, step, tries, bench.cap, options)
      })
    )
  })

/**
 * Runs a step whose locks no reader or writer notices, also not while it waits for them, and that may take hours. The time it works does not
 * count against the budget, the time it waits does.
 */
export const runBesideWrites = (
  bench: Bench,
  step: Step
): Effect.Effect<void, DatabaseError | LockBudgetExhausted | TriesExhausted> =>
  Effect.gen(function* () {
    yield* bench.stillAlone
    const statements = Try.besideWrites(step)
    yield* repeatedly(bench, step, undefined, () =>
      Effect.gen(function* () {
        const blockers = yield* Ref.make<Seen>([])
        const look = watched(bench, blockers, "500 millis", bench.session.query(statements.join(";\n")))
        return yield* Effect.as(look, won).pipe(
          Effect.catchAll((error) =>
            Effect.zipRight(
              rollback(bench.session, error),
              isLostTry(error) ? lost(blockers) : Effect.fail(error)
            )
          )
        )
      })
    )
  })

/**
 * Runs a step whose statements cannot be in a transaction, of the kind of REINDEX CONCURRENTLY: no reader or writer notices its locks, and it waits, as long as they
 * take, for the transactions that were there before it, while nobody waits for it. A lost try is not repeated, because what it left behind has to be looked at first.
 */
export const runOutsideTransaction = (
  bench: Bench,
  step: Step
): Effect.Effect<void, DatabaseError | LockBudgetExhausted | TriesExhausted> =>
  Effect.zipRight(
    bench.stillAlone,
    repeatedly(bench, step, 1, () =>
      Effect.gen(function* () {
        const blockers = yield* Ref.make<Seen>([])
        const start = yield* Clock.currentTimeMillis
        const tell = Effect.gen(function* () {
          const seen = yield* Ref.getAndSet(blockers, [])
          const elapsedMillis = (yield* Clock.currentTimeMillis) - start
          if (seen.length > 0)
            yield* bench.onWait({ step: step.name, tries: 0, elapsedMillis, blockers: seen })
        })
        const statements = Effect.forEach(
          [...Try.outsideTransaction.before, ...step.statements],
          (statement) => watched(bench, blockers, "500 millis", bench.session.query(statement)),
          { discard: true }
        )
        return yield* Effect.raceFirst(
          Effect.as(statements, won),
          Effect.forever(Effect.zipRight(Effect.sleep("1 second"), tell))
        ).pipe(
          Effect.catchIf(isLostTry, () => lost(blockers)),
          Effect.ensuring(Effect.ignore(bench.session.query(Try.outsideTransaction.after.join("; "))))
        )
      })
    )
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

type Seen = ReadonlyArray<Blocker.Blocker>

/** What came of one try. */
type Result =
  | { readonly _tag: "Won" }
  /** The locks were not to be had in the time that a try takes. */
  | { readonly _tag: "Lost"; readonly blockers: Seen }
  /** No lock was asked for, because old transactions hold them. */
  | { readonly _tag: "Asked"; readonly blockers: Seen }

const won: Result = { _tag: "Won" }

const lost = (blockers: Ref.Ref<Seen>): Effect.Effect<Result> =>
  Effect.map(Ref.get(blockers), (seen) => ({ _tag: "Lost", blockers: seen }))

/** Tries until one wins, as often and as long as allowed, with random pauses that grow. */
const repeatedly = <E>(
  bench: Bench,
  step: Step,
  maxTries: number | undefined,
  attempt: (tries: number) => Effect.Effect<Result, E>
): Effect.Effect<void, E | LockBudgetExhausted | TriesExhausted> =>
  Effect.gen(function* () {
    const start = yield* Clock.currentTimeMillis
    let told = start
    let blockers: Seen = []
    for (let tries = 0; tries !== maxTries;) {
      const began = yield* Clock.currentTimeMillis
      const result = yield* attempt(tries)
      if (result._tag === "Won") return undefined
      if (result._tag === "Lost") tries += 1
      if (result.blockers.length > 0) blockers = result.blockers
      yield* Effect.sleep(Duration.millis(5 + (yield* Random.next) * Math.min(500, 15 * 1.15 ** tries)))
      const now = yield* Clock.currentTimeMillis
      const left = yield* Ref.updateAndGet(bench.budget, (budget) => budget - (now - began))
      if (left <= 0) return yield* new LockBudgetExhausted({ step: step.name, tries, blockers })
      if (now - told >= 200) {
        told = now
        yield* bench.onWait({ step: step.name, tries, elapsedMillis: now - start, blockers })
      }
    }
    return yield* new TriesExhausted({ step: step.name })
  })

/** Longer and longer up to the cap: under load short tries win, beside slower transactions longer ones do. */
const patience = (cap: number, tries: number) => Math.round(Math.min(cap, 30 * 2 ** Math.floor(tries / 6)))

const attempt = (
  bench: Bench,
  step: Step,
  tries: number,
  patience: number,
  { expected }: Options
): Effect.Effect<Result, DatabaseError | ChangedMeanwhile | Unfaithful | StepTooSlow> =>
  Effect.gen(function* () {
    const way =
      step.locks.length === 1 || isShared(step) || !step.locks.every(({ table }) => Lock.isLockable(table))
        ? "as-listed"
        : (ways[tries % ways.length] ?? "as-listed")
    const { body, prelude } = Try.transaction(step, way, { wait: patience, work: bodyLimit })
    const blockers = yield* Ref.make<Seen>([])
    const took = yield* Ref.make(0)
    const exit = yield* Effect.exit(
      Effect.zipRight(
        watched(bench, blockers, "5 millis", bench.session.query(prelude.join(";\n"))),
        timed(bench, took, watched(bench, blockers, "5 millis", bench.session.query(body.join(";\n"))))
      )
    )
    if (Exit.isSuccess(exit)) return won
    yield* Effect.catchAll(exit, (error) =>
      Effect.zipRight(rollback(bench.session, error), judge(step, error, expected))
    )
    // Asking for locks never takes so long: it was the statements, and trying again would stop everybody again.
    const millis = yield* Ref.get(took)
    return millis >= bodyLimit ? yield* new StepTooSlow({ step: step.name, millis }) : yield* lost(blockers)
  })

/** The longest that one statement may take while others wait for its locks, in milliseconds. */
export const bodyLimit = 2_000

/** Only a session that still lives can and need be rolled back. */
const rollback = (session: Session, error: DatabaseError) =>
  error.fate === "keep" ? session.query("ROLLBACK") : Effect.void

/** A step that does not ask for ACCESS EXCLUSIVE has one good order only: the referenced table first. */
const isShared = (step: Step) => step.locks.every((lock) => lock.mode !== "ACCESS EXCLUSIVE")

const timed = <A, E>(bench: Bench, took: Ref.Ref<number>, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    const start = yield* Clock.currentTimeNanos
    return yield* Effect.ensuring(
      effect,
      Effect.flatMap(Clock.currentTimeNanos, (end) => {
        const millis = Number(end - start) / 1e6
        return Effect.zipRight(
          Ref.set(took, millis),
          Ref.update(bench.longestLock, (longest) => Math.max(longest, millis))
        )
      })
    )
  })

/** How long the watcher's question may go unanswered. */
const answerLimit = "10 seconds"

/** The network swallows what is sent: the step's own connection, which may have nothing to say for hours, is as dead as the watcher's. */
const unanswered = new DatabaseError({
  operation: "execute",
  reason: { _tag: "ConnectionLost", phase: "sent", systemCode: undefined }
})

/**
 * Runs a statement under the eyes of the watcher. The watcher's last look is awaited before anything else is sent: its cancel could
 * hit the next statement otherwise. A watcher that gets no answer ends the statement too.
 */
const watched = <A, E>(
  bench: Bench,
  blockers: Ref.Ref<Seen>,
  interval: Duration.DurationInput,
  statement: Effect.Effect<A, E>
): Effect.Effect<A, E | DatabaseError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const over = yield* Deferred.make<void>()
      const look = Blocker.watch(bench.watcher, bench.session.processId).pipe(
        Effect.timeoutFail({ duration: answerLimit, onTimeout: () => unanswered }),
        Effect.flatMap((seen) => (seen.length === 0 ? Effect.void : Ref.set(blockers, seen)))
      )
      const watching = Effect.iterate(false, {
        while: (isOver) => !isOver,
        body: () =>
          Effect.raceFirst(
            Effect.as(Deferred.await(over), true),
            Effect.as(Effect.sleep(interval), false)
          ).pipe(Effect.tap((isOver) => (isOver ? Effect.void : look)))
      })
      const fiber = yield* Effect.fork(Effect.interruptible(watching).pipe(Effect.exit))
      const blind = Effect.flatMap(Fiber.join(fiber), (end) =>
        Exit.isFailure(end) ? Effect.failCause(end.cause) : Effect.never
      )
      const exit = yield* Effect.exit(restore(Effect.raceFirst(statement, blind)))
      yield* Deferred.succeed(over, undefined)
      const seen = yield* Fiber.join(fiber)
      return yield* Exit.zipLeft(exit, seen)
    })
  )

/** A lost try passes; whatever else went wrong does not. */
const judge = (
  step: Step,
  error: DatabaseError,
  expected: Fidelity.Vector | undefined
): Effect.Effect<void, DatabaseError | ChangedMeanwhile | Unfaithful> => {
  const { reason } = error
  if (isLostTry(error)) return Effect.void
  if (reason._tag === "ServerError" && reason.code === Fidelity.changedCode) {
    return new ChangedMeanwhile({ step: step.name })
  }
  if (reason._tag === "ServerError" && reason.code === Fidelity.unfaithfulCode && expected !== undefined) {
    const actual = Fidelity.parse(reason.detail === undefined ? null : Redacted.value(reason.detail))
    return new Unfaithful({
      differences:
        actual === undefined
          ? [{ field: "constraint", expected: "present", actual: "missing" }]
          : Fidelity.compare(expected, actual)
    })
  }
  return Effect.fail(error)
}

/** Lock timeout and NOWAIT (55P03), the cap or the watcher's cancel (57014), and a deadlock in which we are the victim (40P01). */
export const isLostTry = (error: DatabaseError): boolean =>
  error.reason._tag === "LockTimeout" ||
  error.reason._tag === "StatementTimeout" ||
  error.reason._tag === "StatementCancelled" ||
  error.reason._tag === "DeadlockDetected"
