/** Brings one chosen key to its target, and says what became of it. */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import type * as Attempt from "./Attempt.js"
import * as Catalog from "./Catalog.js"
import * as Exclusive from "./Exclusive.js"
import * as Halfway from "./Halfway.js"
import * as Index from "./Index.js"
import * as Ledger from "./Ledger.js"
import * as Rebuild from "./Rebuild.js"
import type { Effort, Progress, RebuildResult, Rejected } from "./Run.js"
import * as Selection from "./Selection.js"
import * as Settings from "./Settings.js"
import * as Target from "./Target.js"

/** How a session of its own is opened. */
export type Open = Effect.Effect<Session, DatabaseError, Scope.Scope>

/** What the keys of one run share. */
export interface Run {
  readonly open: Open
  /** Holds the advisory lock, and writes the ledger. */
  readonly guard: Session
  readonly ledger: Ledger.Ledger | undefined
  readonly hasLedger: Ref.Ref<boolean>
  readonly effort: Effort
}

/** What became of a key. */
export type Outcome =
  | { readonly _tag: "rebuilt"; readonly value: RebuildResult["rebuilt"][number] }
  | { readonly _tag: "unchanged"; readonly value: string }
  | { readonly _tag: "refused" | "failed"; readonly value: Rejected }

/** A key that was refused. */
export const rejection = ({ key, refusals }: Selection.Selected): Rejected => ({
  constraint: Catalog.nameOf(key),
  code: refusals[0]?.code ?? "gone",
  reason: refusals.length === 0 ? "it no longer exists" : refusals.map(({ reason }) => reason).join("; ")
})

/** Changes one key. */
export const change = (run: Run, task: Selection.Selected): Effect.Effect<Outcome> =>
  Effect.gen(function* () {
    const { key, previous, record, refusals, target } = task
    const constraint = Catalog.nameOf(key)
    const emit = (event: Progress) => run.effort.onProgress?.(event) ?? Effect.void
    const start = yield* Clock.currentTimeMillis
    yield* emit({ _tag: "Started", constraint, from: previous, to: target })
    const longestLock = yield* Ref.make(0)
    const work = Effect.gen(function* () {
      yield* begin(run, task)
      if (record?.after !== undefined && run.ledger !== undefined) {
        yield* emit({ _tag: "Recorded", constraint, ledger: Ledger.name(run.ledger) })
      }
      const changed = yield* Effect.scoped(converge(run, task, longestLock, emit))
      yield* end(run, task, record?.after)
      return changed || record?.after === "changed"
    }).pipe(
      Effect.tapError(() => Effect.ignore(takenBack(run, task))),
      Effect.matchEffect({
        onFailure: (error): Effect.Effect<Outcome> =>
          Effect.succeed({
            _tag: "failed",
            value: {
              constraint,
              code: error._tag === "SqlError" ? error.reason._tag : error._tag,
              reason: error.message
            }
          }),
        onSuccess: (changed): Effect.Effect<Outcome> =>
          changed && !Target.equals(previous, target)
            ? Effect.gen(function* () {
                return {
                  _tag: "rebuilt",
                  value: {
                    constraint,
                    durationMs: (yield* Clock.currentTimeMillis) - start,
                    longestLockMs: Math.round(10 * (yield* Ref.get(longestLock))) / 10,
                    previous
                  }
                }
              })
            : Effect.succeed({ _tag: "unchanged", value: constraint })
      })
    )
    const outcome: Outcome = Selection.isDone(task)
      ? { _tag: "unchanged", value: constraint }
      : refusals.length > 0
        ? { _tag: "refused", value: rejection(task) }
        : yield* work
    yield* emit({
      _tag: "Finished",
      constraint,
      outcome: outcome._tag,
      durationMs: (yield* Clock.currentTimeMillis) - start
    })
    return outcome
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The sessions of one change, and the change. */
const converge = (
  { effort, guard, open }: Run,
  task: Selection.Selected,
  longestLock: Ref.Ref<number>,
  emit: (event: Progress) => Effect.Effect<void>
) =>
  Effect.gen(function* () {
    const { key } = task
    const constraint = Catalog.nameOf(key)
    const session = yield* Settings.prepared(open, "change foreign keys")
    const watcher = yield* Settings.prepared(open, "change foreign keys (watcher)")
    const deadlockTimeout = yield* Settings.deadlockTimeout(session)
    const lockTimeout = Duration.toMillis(Duration.decode(effort.lockTimeout ?? "250 millis"))
    const bench: Attempt.Bench = {
      session,
      watcher,
      cap: Math.max(1, Math.floor(Math.min(lockTimeout, 0.6 * deadlockTimeout))),
      budget: yield* Ref.make(Duration.toMillis(Duration.decode(effort.budget ?? "10 minutes"))),
      longestLock,
      stillAlone: Exclusive.confirm(guard),
      onWait: (wait) =>
        emit({
          _tag: "Waiting",
          constraint,
          step: wait.step,
          tries: wait.tries,
          elapsedMs: wait.elapsedMillis,
          blockers: wait.blockers
        })
    }
    if (effort.createIndexes === true && key.supportingIndex === null) {
      for (const index of yield* Index.build(session, key))
        yield* emit({ _tag: "IndexBuilt", constraint, index })
    }
    return yield* Rebuild.converge(bench, {
      ...task,
      swapTries: effort.swapTries ?? 60,
      settlePatience: Duration.toMillis(Duration.decode(effort.settlePatience ?? "1 minute")),
      onStep: (step, run, durationMs) =>
        emit(
          run === "begins"
            ? { _tag: "StepStarted", constraint, step }
            : { _tag: "StepDone", constraint, step, durationMs }
        ),
      onOverlap: (live) => emit({ _tag: "Overlap", constraint, live })
    })
  })

/** Statements as one transaction of the session that holds the advisory lock: whoever writes the ledger is alone. */
const transaction = (guard: Session, statements: ReadonlyArray<string>) =>
  guard.query(["BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", ...statements, "COMMIT"].join(";\n")).pipe(
    Effect.tapError((error) =>
      error.fate === "keep" ? Effect.ignore(guard.query("ROLLBACK")) : Effect.void
    ),
    Effect.asVoid
  )

/** Writes down what is about to be changed, and what became of an interrupted change. */
const begin = ({ guard, hasLedger, ledger }: Run, { record }: Selection.Selected) =>
  Effect.gen(function* () {
    if (ledger === undefined || record === undefined || record.before.length === 0) return
    if (!(yield* Ref.get(hasLedger))) {
      yield* transaction(guard, Ledger.create(ledger))
      yield* Ref.set(hasLedger, true)
    }
    yield* transaction(guard, record.before)
  })

const end = ({ guard, ledger }: Run, { key }: Selection.Selected, outcome: Ledger.Outcome | undefined) =>
  ledger === undefined || outcome === undefined
    ? Effect.void
    : transaction(guard, [Ledger.close(ledger, key, outcome)])

/** After a failure: closes the row of a key that the catalogs show as it was before. Any other is closed by the run that resumes it. */
const takenBack = (run: Run, task: Selection.Selected) =>
  Effect.gen(function* () {
    if (task.record?.after === undefined) return
    const keys = yield* Catalog.read(run.guard)
    const key = keys.find(
      ({ name, referencing }) => name === task.key.name && referencing.oid === task.key.referencing.oid
    )
    const asBefore =
      key === undefined || (!Halfway.isHalfway(key, keys) && Target.equals(Target.of(key), task.record.from))
    if (asBefore) yield* end(run, task, task.record.after === "changed" ? "taken back" : task.record.after)
  })
