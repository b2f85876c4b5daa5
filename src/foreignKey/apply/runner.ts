/** Brings the chosen keys to their targets, one after the other, and says what became of each. */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import * as Random from "effect/Random"
import * as Ref from "effect/Ref"
import { DatabaseError, shownOf } from "../../DatabaseError.js"
import type * as Attempt from "./attempt.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import type { StepName } from "../steps/steps.js"
import * as Interrupted from "../snapshot/interrupted.js"
import * as Ledger from "../ledger/ledger.js"
import * as Converge from "./converge.js"
import type * as Rehearsal from "./rehearsal.js"
import * as Result from "../result.js"
import type { Effort, PlanOptions, Progress } from "../types.js"
import * as Observation from "../snapshot/observation.js"
import * as Selection from "../plan/selection.js"
import type * as Selectors from "../../catalog/selectors.js"
import * as Sessions from "./sessions.js"
import * as Target from "../snapshot/target.js"
import * as Limits from "../plan/limits.js"
import * as Warning from "../hazards/warning.js"
import * as StepProgress from "./progress.js"
import * as NextStep from "../plan/nextStep.js"
import * as BuildIndex from "./buildIndex.js"

/** What the keys of one run share. */
export interface Run {
  readonly sessions: Sessions.Sessions
  /** Reads the ledger, and chooses the keys; without selectors those of the run. */
  readonly choose: (
    selectors?: Selectors.Selectors
  ) => Effect.Effect<Chosen, DatabaseError | Selection.NoMatch>
  readonly effort: Effort & Pick<PlanOptions, "createIndexes">
  readonly rehearse: Rehearsal.Rehearse
}

/** The keys of a run, and the ledger as it was when they were chosen. */
export interface Chosen {
  readonly ledger: Ledger.Ledger | undefined
  readonly tasks: ReadonlyArray<Selection.Selected>
}

/** A key that was refused. */
export const rejection = ({
  key,
  refusals
}: Pick<Selection.Selected, "key" | "refusals">): Result.Rejected => ({
  constraint: Catalog.nameOf(key),
  code: refusals[0]?.code ?? "gone",
  reason: refusals.length === 0 ? "it no longer exists" : refusals.map(({ reason }) => reason).join("; ")
})

/** Changes the chosen keys, one after the other. */
export const all = (
  run: Run
): Effect.Effect<ReadonlyArray<Result.RebuildResult>, DatabaseError | Selection.NoMatch> =>
  Effect.gen(function* () {
    const { ledger, tasks } = yield* run.choose()
    const hasLedger = yield* Ref.make(ledger?.exists ?? false)
    const over = yield* Ref.make<Result.Rejected | undefined>(undefined)
    return yield* Effect.forEach(tasks, (task) => change(run, ledger, hasLedger, over, task))
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * Changes one key. `over` has why the run cannot go on: the keys that are left have that reason
 * too.
 */
const change = (
  run: Run,
  ledger: Ledger.Ledger | undefined,
  hasLedger: Ref.Ref<boolean>,
  over: Ref.Ref<Result.Rejected | undefined>,
  task: Selection.Selected
): Effect.Effect<Result.RebuildResult> =>
  Effect.gen(function* () {
    const { key, previous, refusals, target } = task
    // Where an interrupted change is taken back, the action before it is the one that it comes to
    // have again.
    const before = Target.equals(previous, target) ? Target.of(key) : previous
    const constraint = Catalog.nameOf(key)
    const unrehearsed = yield* Ref.make<ReadonlyArray<Warning.Warning>>([])
    const warnings = Effect.map(Ref.get(unrehearsed), (found) =>
      Warning.of(key, [...found, ...Warning.notEnforced(key)])
    )
    const unchanged = Effect.map(warnings, (warnings): Ended => [
      "unchanged",
      { ...Result.empty, unchanged: [constraint], warnings }
    ])
    const emit = (event: Progress) => run.effort.onProgress?.(event) ?? Effect.void
    const start = yield* Clock.currentTimeMillis
    yield* emit({ _tag: "Started", constraint, from: previous, to: target })
    const longestLock = yield* Ref.make(0)
    const budget = yield* Ref.make(Duration.toMillis(Duration.decode(run.effort.budget ?? "10 minutes")))
    const context = { longestLock, budget }
    const attempt = (ledger: Ledger.Ledger | undefined, task: Selection.Selected) =>
      Effect.gen(function* () {
        const { record } = task
        const verdict = yield* run.rehearse(task)
        yield* Ref.set(unrehearsed, verdict.warnings)
        if (verdict.refusals.length > 0) return yield* new Refused({ refusals: verdict.refusals })
        // An interruption would leave a transaction open on the session with the lock.
        const recorded = Effect.uninterruptible(
          Effect.gen(function* () {
            yield* begin(run, ledger, hasLedger, task)
            if (record?.after !== undefined && ledger !== undefined) {
              yield* emit({ _tag: "Recorded", constraint, ledger: Ledger.name(ledger) })
            }
          })
        )
        const changed = yield* run.sessions.working((workers) =>
          Effect.gen(function* () {
            // Two sessions, and what is read changes nothing.
            const seen = yield* Effect.zipRight(recorded, Observation.read(workers.session, task.key), {
              concurrent: true
            })
            return yield* converge(run, workers, task, context, emit, seen)
          })
        )
        yield* end(run, ledger, task, record?.after)
        return changed || record?.after === "changed"
      }).pipe(
        Effect.tapError((error) =>
          Sessions.isOutage(error) || error instanceof Refused
            ? Effect.void
            : Effect.ignore(takenBack(run, ledger, task))
        )
      )
    const work = Effect.gen(function* () {
      const before = yield* Ref.get(over)
      if (before !== undefined) {
        const message = `not begun, because ${before.constraint} failed: ${before.reason}`
        return yield* new Stopped({ code: before.code, message })
      }
      let changed: Either.Either<boolean, Converge.Failure | Stopped | Refused> = yield* Effect.either(
        attempt(ledger, task)
      )
      const limit = run.effort.reconnects ?? 5
      for (
        let losses = 1;
        losses <= limit && changed._tag === "Left" && Sessions.isOutage(changed.left);
        losses++
      ) {
        yield* emit({ _tag: "Reconnecting", constraint, losses, code: changed.left.reason._tag })
        yield* reconnect(run, budget, changed.left).pipe(
          Effect.tapError((error) => Ref.set(over, failure(constraint, error)))
        )
        changed = yield* Effect.either(again(run, hasLedger, task, attempt))
      }
      return yield* changed
    }).pipe(
      Effect.matchEffect({
        onFailure: (error): Effect.Effect<Ended> =>
          Effect.succeed(
            error instanceof Refused
              ? refused({ key, refusals: error.refusals })
              : ["failed", { ...Result.empty, failed: [failure(constraint, error)] }]
          ),
        onSuccess: (changed): Effect.Effect<Ended> =>
          changed && !Target.equals(before, target)
            ? Effect.gen(function* () {
                const rebuilt = {
                  constraint,
                  durationMs: (yield* Clock.currentTimeMillis) - start,
                  longestLockMs: Math.round(10 * (yield* Ref.get(longestLock))) / 10,
                  previous: before
                }
                return ["rebuilt", { ...Result.empty, rebuilt: [rebuilt], warnings: yield* warnings }]
              })
            : unchanged
      })
    )
    const [outcome, result] = Selection.isDone(task)
      ? yield* unchanged
      : refusals.length > 0
        ? refused(task)
        : yield* work
    yield* emit({
      _tag: "Finished",
      constraint,
      outcome,
      durationMs: (yield* Clock.currentTimeMillis) - start,
      result
    })
    return result
  })

/** What became of a key. */
type Ended = readonly [
  outcome: (Progress & { readonly _tag: "Finished" })["outcome"],
  result: Result.RebuildResult
]

const refused = (task: Pick<Selection.Selected, "key" | "refusals">): Ended => [
  "refused",
  { ...Result.empty, refused: [rejection(task)] }
]

/** The rehearsal found reasons not to change a key. */
class Refused extends Data.TaggedError("Refused")<{
  readonly refusals: Selection.Selected["refusals"]
}> {
  override get message() {
    return this.refusals.map(({ reason }) => reason).join("; ")
  }
}

/** A key that cannot be gone on with, for a reason that has a code of its own. */
class Stopped extends Data.TaggedError("Stopped")<{ readonly code: string; readonly message: string }> {}

const failure = (
  constraint: string,
  error: { readonly _tag: string; readonly message: string }
): Result.Rejected => {
  const { detail, hint } = shownOf(error)
  return {
    constraint,
    code: error instanceof Stopped ? error.code : DatabaseError.is(error) ? error.reason._tag : error._tag,
    reason: [error.message, detail, hint].filter((text) => text !== undefined).join("; ")
  }
}

/** Gets the sessions back, for as long as the budget lasts. */
const reconnect = ({ sessions }: Run, budget: Ref.Ref<number>, error: DatabaseError) =>
  Effect.gen(function* () {
    for (let tries = 0; ; tries++) {
      const began = yield* Clock.currentTimeMillis
      const restored = yield* Effect.either(sessions.restore(error))
      if (restored._tag === "Right") return
      if (!Sessions.isOutage(restored.left)) return yield* restored.left
      yield* Effect.sleep(
        Duration.millis((0.5 + 0.5 * (yield* Random.next)) * Math.min(5_000, 100 * 2 ** tries))
      )
      const spent = (yield* Clock.currentTimeMillis) - began
      if ((yield* Ref.updateAndGet(budget, (left) => left - spent)) <= 0) return yield* restored.left
    }
  })

/** Reads everything again, as a rerun of the command would, and goes on from there. */
const again = <E>(
  run: Run,
  hasLedger: Ref.Ref<boolean>,
  { key, previous, target }: Selection.Selected,
  attempt: (ledger: Ledger.Ledger | undefined, task: Selection.Selected) => Effect.Effect<boolean, E>
) =>
  Effect.gen(function* () {
    const gone = new NextStep.Disappeared({ constraint: Catalog.nameOf(key) })
    const { ledger, tasks } = yield* run
      .choose({
        constraints: [{ schema: key.referencing.schema, table: key.referencing.name, name: key.name }]
      })
      .pipe(Effect.catchTag("NoMatch", () => gone))
    yield* Ref.set(hasLedger, ledger?.exists ?? false)
    const task = tasks.find((other) => other.key.referencing.oid === key.referencing.oid)
    if (task === undefined) return yield* gone
    if (task.refusals.length > 0) {
      const { code, reason } = rejection(task)
      return yield* new Stopped({ code, message: `it cannot be gone on with: ${reason}` })
    }
    // All was done when the connection was lost, and only the answer did not arrive.
    if (Selection.isDone(task)) return !Target.equals(previous, target)
    return (yield* attempt(ledger, task)) || !Target.equals(previous, target)
  })

/** The change of one key. */
const converge = (
  { effort, sessions }: Run,
  { deadlockTimeout, patient, session, watcher }: Sessions.Workers,
  task: Selection.Selected,
  kept: Pick<Attempt.StepContext, "budget" | "longestLock">,
  emit: (event: Progress) => Effect.Effect<void>,
  seen: Observation.Observation
) =>
  Effect.gen(function* () {
    const { key } = task
    const constraint = Catalog.nameOf(key)
    const told = yield* Ref.make("")
    const context: Attempt.StepContext = {
      session,
      patient,
      watcher,
      limits: Limits.limits(effort.lockTimeout, deadlockTimeout),
      ...kept,
      // What runs beside it may fail first. The session with the lock is not cancelled for that.
      stillAlone: Effect.uninterruptible(sessions.confirm),
      onWait: (wait) =>
        emit({
          _tag: "Waiting",
          constraint,
          step: wait.step,
          tries: wait.tries,
          slow: wait.slow,
          lockTimeoutMs: context.limits.limit,
          elapsedMs: wait.elapsedMillis,
          blockers: wait.blockers
        })
    }
    const telling = {
      onStep: (step: StepName, run: "begins" | "done", durationMs: number) =>
        emit(
          run === "begins"
            ? { _tag: "StepStarted", constraint, step }
            : { _tag: "StepDone", constraint, step, durationMs }
        ),
      telling: <A, E>(step: StepName, effect: Effect.Effect<A, E>) =>
        StepProgress.telling(
          {
            session,
            watcher,
            every: effort.reportEvery ?? "10 seconds",
            onWorking: (working) => emit({ _tag: "Working", constraint, step, ...working })
          },
          step,
          effect
        )
    }
    if (effort.createIndexes === true) {
      yield* BuildIndex.build(context, key, telling, (index) =>
        emit({ _tag: "IndexBuilt", constraint, index })
      )
    }
    const change: Converge.Task = {
      ...task,
      swapTries: effort.swapTries ?? 60,
      settlePatience: Duration.toMillis(Duration.decode(effort.settlePatience ?? "1 minute")),
      ...telling,
      // Each part of a partitioned table's key says the same.
      onOverlap: (overlap) =>
        Effect.flatMap(Ref.getAndSet(told, JSON.stringify(overlap)), (before) =>
          before === JSON.stringify(overlap) ? Effect.void : emit({ _tag: "Overlap", constraint, ...overlap })
        )
    }
    // What was read does not know an index that was built just now.
    return yield* Converge.converge(context, change, effort.createIndexes === true ? undefined : seen)
  })

/**
 * Statements as one transaction of the session that holds the advisory lock: whoever writes the
 * ledger is alone.
 */
const transaction = ({ sessions }: Run, statements: ReadonlyArray<string>) =>
  Effect.flatMap(sessions.guard, (guard) =>
    guard
      .query(["BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", ...statements, "COMMIT"].join(";\n"))
      .pipe(
        Effect.tapError((error) =>
          error.disposition === "keep" ? Effect.ignore(guard.query("ROLLBACK")) : Effect.void
        ),
        Effect.asVoid
      )
  )

/** Writes down what is about to be changed, and what became of an interrupted change. */
const begin = (
  run: Run,
  ledger: Ledger.Ledger | undefined,
  hasLedger: Ref.Ref<boolean>,
  { record }: Selection.Selected
) =>
  Effect.gen(function* () {
    if (ledger === undefined || record === undefined || record.before.length === 0) return
    if (!(yield* Ref.get(hasLedger))) {
      yield* transaction(run, Ledger.create(ledger))
      yield* Ref.set(hasLedger, true)
    }
    yield* transaction(run, record.before)
  })

const end = (
  run: Run,
  ledger: Ledger.Ledger | undefined,
  { key }: Selection.Selected,
  outcome: Ledger.Outcome | undefined
) =>
  ledger === undefined || outcome === undefined
    ? Effect.void
    : transaction(run, [Ledger.close(ledger, key, outcome)])

/**
 * After a failure: closes the row of a key that the catalogs show as it was before. Any other is
 * closed by the run that resumes it.
 */
const takenBack = (run: Run, ledger: Ledger.Ledger | undefined, task: Selection.Selected) =>
  Effect.gen(function* () {
    if (task.record?.after === undefined) return
    const { referencing } = task.key
    const keys = yield* Catalog.read(yield* run.sessions.guard, {
      tables: [referencing, ...referencing.partitions].map(({ oid }) => oid)
    })
    const key = keys.find(
      ({ name, referencing }) => name === task.key.name && referencing.oid === task.key.referencing.oid
    )
    const asBefore =
      key === undefined ||
      (!Interrupted.isInterrupted(key, Interrupted.originals(keys)) &&
        Target.equals(Target.of(key), task.record.from))
    if (asBefore)
      yield* end(run, ledger, task, task.record.after === "changed" ? "taken back" : task.record.after)
  })
