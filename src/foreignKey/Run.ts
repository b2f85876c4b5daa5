/** list, plan, rebuild and check over a way to open sessions. The public face is ForeignKey.ts. */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import type * as Action from "./Action.js"
import type * as Attempt from "./Attempt.js"
import * as Blocker from "./Blocker.js"
import * as Catalog from "./Catalog.js"
import type { StepName } from "./Change.js"
import * as Consequence from "./Consequence.js"
import * as Detector from "./Detector.js"
import * as Exclusive from "./Exclusive.js"
import * as Fidelity from "./Fidelity.js"
import * as Index from "./Index.js"
import * as Lock from "./Lock.js"
import * as Marker from "./Marker.js"
import * as Name from "./Name.js"
import * as Orphan from "./Orphan.js"
import * as Plan from "./Plan.js"
import * as Rebuild from "./Rebuild.js"
import * as Refusal from "./Refusal.js"
import * as Selectors from "./Selectors.js"
import * as Settings from "./Settings.js"
import * as Target from "./Target.js"

/** How a session of its own is opened. */
export type Open = Effect.Effect<Session, DatabaseError, Scope.Scope>

/** A foreign key, as `fk list` prints it. */
export interface ForeignKeyInfo {
  readonly schema: string
  readonly table: string
  readonly name: string
  readonly columns: ReadonlyArray<string>
  readonly referencedSchema: string
  readonly referencedTable: string
  readonly referencedColumns: ReadonlyArray<string>
  readonly onDelete: Action.Action
  /** The columns that SET NULL or SET DEFAULT is limited to; empty means all. */
  readonly onDeleteColumns: ReadonlyArray<string>
  readonly onUpdate: Action.Action
  readonly match: "simple" | "full" | "partial"
  readonly deferrable: boolean
  readonly initiallyDeferred: boolean
  readonly validated: boolean
  readonly enforced: boolean
  /** An index on the referencing columns, which a delete or key update of a referenced row needs; null if there is none. */
  readonly index: string | null
  /** What is wrong with it, in words. */
  readonly problems: ReadonlyArray<string>
}

/** What to change, and to what. */
export interface PlanOptions {
  readonly selectors: Selectors.Selectors
  readonly onDelete: Action.Action
  /** Limits SET NULL or SET DEFAULT to these columns (PostgreSQL 15 and later). */
  readonly onDeleteColumns?: ReadonlyArray<string> | undefined
  /**
   * PostgreSQL 13 and 14 carry out ON DELETE when an UPDATE moves a referenced row to another partition, so keys to partitioned tables are refused
   * there, unless this says that no UPDATE does that.
   */
  readonly allowRowMovement?: boolean | undefined
  /**
   * Builds an index on the referencing columns first where none is, CONCURRENTLY; for a partitioned table a partitioned index, which its partitions of later
   * inherit. Default false.
   */
  readonly createIndexes?: boolean | undefined
  /** How long a plan may take to count rows without a referenced row, for each key. Default 5 seconds. */
  readonly orphanTimeout?: Duration.DurationInput | undefined
}

/** How to change it. */
export interface RebuildOptions extends PlanOptions {
  /** The longest that one try asks for locks. Default 250 ms; never more than 0.6 of the server's deadlock_timeout. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /** How long to go on trying to get locks, for each key; validation does not count. Default 10 minutes. */
  readonly budget?: Duration.DurationInput | undefined
  /** Tries to swap with both tables locked, before the steps that lock one table each. Default 60. */
  readonly swapTries?: number | undefined
  /**
   * How long to wait, for a DEFERRABLE INITIALLY IMMEDIATE key, until the transactions have ended that may have deferred the original by name. Its
   * checks run at commit until then. Default 1 minute.
   */
  readonly settlePatience?: Duration.DurationInput | undefined
  /** How long to wait for another process that changes keys of this database. Default 10 seconds. */
  readonly patience?: Duration.DurationInput | undefined
  readonly onProgress?: ((event: Progress) => Effect.Effect<void>) | undefined
}

/** A key that was refused or has failed, and why. */
export interface Rejected {
  /** schema.table.name */
  readonly constraint: string
  readonly code: string
  readonly reason: string
}

/** A key that does not do what its definition says. */
export interface CheckedKey {
  /** schema.table.name */
  readonly constraint: string
  readonly problems: ReadonlyArray<string>
}

/** What {@link rebuild} did. */
export interface RebuildResult {
  readonly rebuilt: ReadonlyArray<{
    readonly constraint: string
    readonly durationMs: number
    /** The longest time for which other sessions may have had to wait for this change. */
    readonly longestLockMs: number
    /** The action that it had before, to go back to. */
    readonly previous: Target.Target
  }>
  /** Keys that had the action already. */
  readonly unchanged: ReadonlyArray<string>
  readonly refused: ReadonlyArray<Rejected>
  /** Keys that could not be changed; the reason says what remains. Run it again to resume. */
  readonly failed: ReadonlyArray<Rejected>
}

/** What {@link plan} found. */
export interface PlanResult {
  readonly steps: ReadonlyArray<Plan.PlannedStep>
  readonly unchanged: ReadonlyArray<string>
  readonly refused: ReadonlyArray<Rejected>
  readonly warnings: ReadonlyArray<{ readonly constraint: string; readonly warning: string }>
}

/** What happens during {@link rebuild}. Times in milliseconds. */
export type Progress =
  | {
      readonly _tag: "Started"
      readonly constraint: string
      readonly from: Target.Target
      readonly to: Target.Target
    }
  | { readonly _tag: "StepStarted"; readonly constraint: string; readonly step: StepName }
  | {
      readonly _tag: "StepDone"
      readonly constraint: string
      readonly step: StepName
      readonly durationMs: number
    }
  /** The step has no locks yet; `blockers` hold them. */
  | {
      readonly _tag: "Waiting"
      readonly constraint: string
      readonly step: StepName
      readonly tries: number
      readonly elapsedMs: number
      readonly blockers: ReadonlyArray<Blocker.Blocker>
    }
  | { readonly _tag: "IndexBuilt"; readonly constraint: string; readonly index: string }
  /** Both constraints are there until the swap; deletes follow this action meanwhile. */
  | { readonly _tag: "Overlap"; readonly constraint: string; readonly live: Action.Action }
  | {
      readonly _tag: "Finished"
      readonly constraint: string
      readonly outcome: "rebuilt" | "unchanged" | "refused" | "failed"
      readonly durationMs: number
    }

/** Selectors, or some of them, fit no foreign key. Nothing was done. */
export class NoMatch extends Data.TaggedError("NoMatch")<{
  /** The selectors that fit no key; empty if each fits some key, but none fits all of them. */
  readonly unmatched: ReadonlyArray<string>
}> {
  override get message() {
    return this.unmatched.length === 0
      ? "no foreign key fits all selectors together"
      : `no foreign key fits ${this.unmatched.join(", ")}`
  }
}

/** Lists foreign keys. */
export const list = (
  open: Open,
  selectors: Selectors.Selectors = {}
): Effect.Effect<ReadonlyArray<ForeignKeyInfo>, DatabaseError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* prepared(open, "list foreign keys")
      const keys = yield* Catalog.read(session)
      const problems = yield* Detector.read(session)
      return keys
        .filter((key) => isOriginal(key, keys) && Selectors.matches(selectors, key))
        .map((key) => info(key, keys, problems))
    })
  )

/** What {@link rebuild} would do. Takes no lock above ACCESS SHARE. */
export const plan = (open: Open, options: PlanOptions): Effect.Effect<PlanResult, DatabaseError | NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* prepared(open, "plan foreign keys")
      const tasks = yield* select(session, options)
      const keys = yield* Catalog.read(session)
      const tables = yield* Consequence.facts(session, tablesOf(keys))
      const steps: Array<Plan.PlannedStep> = []
      const unchanged: Array<string> = []
      const refused: Array<Rejected> = []
      const warnings: Array<{ constraint: string; warning: string }> = []
      for (const task of tasks) {
        const { key, refusals, target, version } = task
        const constraint = Catalog.nameOf(key)
        const original = yield* Fidelity.read(session, key.referencing.oid, key.name)
        if (isDone(key, target)) unchanged.push(constraint)
        else if (refusals.length > 0 || original === undefined) refused.push(rejection(key, refusals))
        else {
          const missing = options.createIndexes === true ? yield* Index.missing(session, key) : []
          steps.push(...Plan.indexSteps(key, missing), ...Plan.steps({ key, target, original, version }))
          const found = [
            ...(task.interrupted
              ? [
                  "a change of it was interrupted: these are all its steps, those that are done already are left out when it is resumed"
                ]
              : []),
            ...Consequence.warnings(key, target, keys, tables, options.createIndexes),
            ...(yield* presentObstacles(session, key)),
            ...(yield* orphanWarnings(session, key, options.orphanTimeout))
          ]
          warnings.push(...found.map((warning) => ({ constraint, warning })))
        }
      }
      return { steps, unchanged, refused, warnings }
    })
  )

/** What keeps keys from doing what their definition says. */
export const check = (
  open: Open,
  selectors: Selectors.Selectors = {}
): Effect.Effect<ReadonlyArray<CheckedKey>, DatabaseError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* prepared(open, "check foreign keys")
      const keys = yield* Catalog.read(session)
      const problems = yield* Detector.read(session)
      return keys
        .filter((key) => Selectors.matches(selectors, key))
        .map((key) => ({ constraint: Catalog.nameOf(key), problems: faults(key, keys, problems) }))
        .filter((checked) => checked.problems.length > 0)
    })
  )

/** Changes foreign keys. */
export const rebuild = (
  open: Open,
  options: RebuildOptions
): Effect.Effect<RebuildResult, DatabaseError | NoMatch | Exclusive.Busy> =>
  Effect.scoped(
    Effect.gen(function* () {
      const guard = yield* prepared(open, "change foreign keys (advisory lock)")
      yield* Exclusive.acquire(guard, Duration.decode(options.patience ?? "10 seconds"))
      const tasks = yield* select(guard, options)
      const outcomes: Array<Outcome> = []
      for (const task of tasks) {
        outcomes.push(yield* change(open, guard, task, options))
      }
      return {
        rebuilt: outcomes.flatMap((outcome) => (outcome._tag === "rebuilt" ? [outcome.value] : [])),
        unchanged: outcomes.flatMap((outcome) => (outcome._tag === "unchanged" ? [outcome.value] : [])),
        refused: outcomes.flatMap((outcome) => (outcome._tag === "refused" ? [outcome.value] : [])),
        failed: outcomes.flatMap((outcome) => (outcome._tag === "failed" ? [outcome.value] : []))
      }
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const prepared = (open: Open, purpose: string) =>
  Effect.tap(open, (session) => Settings.prepare(session, purpose))

/** Constraints that exist during a change only are not listed and cannot be chosen, unless their original is gone. */
const isOriginal = (key: Catalog.Key, keys: ReadonlyArray<Catalog.Key>) =>
  !Name.isOurs(key.name) || originalOf(key, keys) === undefined

const originalOf = (ours: Catalog.Key, keys: ReadonlyArray<Catalog.Key>) =>
  keys.find(
    (key) =>
      (key.referencing.oid === ours.referencing.oid ||
        key.referencing.partitions.some(({ oid }) => oid === ours.referencing.oid)) &&
      (Name.temporary(key.name) === ours.name || Name.aside(key.name) === ours.name)
  )

const leftoversOf = (key: Catalog.Key, keys: ReadonlyArray<Catalog.Key>) =>
  keys.filter((other) => Name.isOurs(other.name) && originalOf(other, keys)?.oid === key.oid)

/** Whether a change of this key was begun and not finished. */
const isInterrupted = (key: Catalog.Key, keys: ReadonlyArray<Catalog.Key>) =>
  leftoversOf(key, keys).length > 0 || Marker.decode(key.comment) !== undefined

/** Faults of the key itself; a missing index is none. */
const faults = (
  key: Catalog.Key,
  keys: ReadonlyArray<Catalog.Key>,
  problems: ReadonlyArray<Detector.Problem>
) => [
  ...problems.filter((problem) => problem.constraint === key.oid).map(({ problem }) => problem),
  ...(key.enforced && !key.validated
    ? ["it is not valid: rows from before it was added were never checked"]
    : []),
  ...(Name.isOurs(key.name) && originalOf(key, keys) === undefined
    ? ["it is left over from a change of a constraint that is gone"]
    : []),
  ...(isInterrupted(key, keys) ? ["a change of it was interrupted: run it again to finish it"] : [])
]

const info = (
  key: Catalog.Key,
  keys: ReadonlyArray<Catalog.Key>,
  problems: ReadonlyArray<Detector.Problem>
): ForeignKeyInfo => ({
  schema: key.referencing.schema,
  table: key.referencing.name,
  name: key.name,
  columns: key.columns,
  referencedSchema: key.referenced.schema,
  referencedTable: key.referenced.name,
  referencedColumns: key.referencedColumns,
  onDelete: key.onDelete,
  onDeleteColumns: key.onDeleteColumns,
  onUpdate: key.onUpdate,
  match: key.match,
  deferrable: key.deferrable,
  initiallyDeferred: key.initiallyDeferred,
  validated: key.validated,
  enforced: key.enforced,
  index: key.supportingIndex,
  problems: [
    ...faults(key, keys, problems),
    ...(key.supportingIndex === null ? ["no index on the referencing columns"] : [])
  ]
})

interface Selected extends Omit<Rebuild.Task, "onStep" | "onOverlap" | "swapTries" | "settlePatience"> {
  readonly refusals: ReadonlyArray<Refusal.Refusal>
  /** Whether a change of it was interrupted. */
  readonly interrupted: boolean
  /** The action before the change, also if the change was interrupted after the new key took the name. */
  readonly previous: Target.Target
}

const select = (
  session: Session,
  options: PlanOptions
): Effect.Effect<ReadonlyArray<Selected>, DatabaseError | NoMatch> =>
  Effect.gen(function* () {
    const version = yield* Catalog.serverVersion(session)
    const keys = yield* Catalog.read(session)
    const problems = yield* Detector.read(session)
    const rights = yield* Refusal.rights(session)
    const target: Target.Target = { action: options.onDelete, columns: options.onDeleteColumns ?? [] }
    const originals = keys.filter((key) => isOriginal(key, keys))
    const chosen = originals.filter((key) => Selectors.matches(options.selectors, key))
    const unmatched = Selectors.unmatched(options.selectors, originals)
    if (unmatched.length > 0 || (chosen.length === 0 && !Selectors.isAll(options.selectors))) {
      return yield* new NoMatch({ unmatched })
    }
    return yield* Effect.forEach(chosen, (key) =>
      Effect.map(Refusal.missingPrivileges(session, key), (missing) => ({
        key,
        target,
        version,
        interrupted: isInterrupted(key, keys),
        previous: Marker.decode(key.comment)?.from ?? Target.of(key),
        refusals: Refusal.all({
          key,
          target,
          version,
          rights,
          missing,
          allowRowMovement: options.allowRowMovement ?? false,
          problems: problems.filter((problem) => problem.constraint === key.oid),
          leftovers: keys.filter(
            (other) =>
              other.referencing.oid === key.referencing.oid &&
              Name.isOurs(other.name) &&
              originalOf(other, keys) === undefined
          )
        })
      }))
    )
  })

const tablesOf = (keys: ReadonlyArray<Catalog.Key>) => [
  ...new Set(
    keys.flatMap(({ referenced, referencing }) =>
      [referenced, referencing].flatMap((table) => Lock.withPartitions(table).map(({ oid }) => oid))
    )
  )
]

/** Who would be in the way right now. */
const presentObstacles = (session: Session, key: Catalog.Key) =>
  Effect.map(
    Blocker.holders(
      session,
      [key.referenced, key.referencing].map((table) => ({ table, mode: "ACCESS EXCLUSIVE" })),
      [session.processId],
      500
    ),
    (holders) => holders.map((holder) => `in the way right now: ${Blocker.describe(holder)}`)
  )

const orphanWarnings = (session: Session, key: Catalog.Key, timeout: Duration.DurationInput = "5 seconds") =>
  Effect.map(
    key.validated && key.enforced
      ? Orphan.count(session, key, Duration.toMillis(Duration.decode(timeout)))
      : Effect.succeed({ count: 0, sample: [] }),
    (orphans) =>
      orphans === undefined
        ? ["rows without a referenced row were not counted in the time given; validation will find them"]
        : orphans.count > 0
          ? [Orphan.describe(orphans)]
          : []
  )

const isDone = (key: Catalog.Key, target: Target.Target) => Target.equals(Target.of(key), target)

const rejection = (key: Catalog.Key, refusals: ReadonlyArray<Refusal.Refusal>): Rejected => ({
  constraint: Catalog.nameOf(key),
  code: refusals[0]?.code ?? "gone",
  reason: refusals.length === 0 ? "it no longer exists" : refusals.map(({ reason }) => reason).join("; ")
})

type Outcome =
  | { readonly _tag: "rebuilt"; readonly value: RebuildResult["rebuilt"][number] }
  | { readonly _tag: "unchanged"; readonly value: string }
  | { readonly _tag: "refused" | "failed"; readonly value: Rejected }

const change = (
  open: Open,
  guard: Session,
  task: Selected,
  options: RebuildOptions
): Effect.Effect<Outcome> =>
  Effect.gen(function* () {
    const { key, previous, refusals, target } = task
    const constraint = Catalog.nameOf(key)
    const emit = (event: Progress) => options.onProgress?.(event) ?? Effect.void
    const start = yield* Clock.currentTimeMillis
    yield* emit({ _tag: "Started", constraint, from: previous, to: target })
    const longestLock = yield* Ref.make(0)
    const work = Effect.gen(function* () {
      const session = yield* prepared(open, "change foreign keys")
      const watcher = yield* prepared(open, "change foreign keys (watcher)")
      const deadlockTimeout = yield* Settings.deadlockTimeout(session)
      const lockTimeout = Duration.toMillis(Duration.decode(options.lockTimeout ?? "250 millis"))
      const bench: Attempt.Bench = {
        session,
        watcher,
        cap: Math.max(1, Math.floor(Math.min(lockTimeout, 0.6 * deadlockTimeout))),
        budget: yield* Ref.make(Duration.toMillis(Duration.decode(options.budget ?? "10 minutes"))),
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
      if (options.createIndexes === true) {
        yield* Index.build(bench, key, (index) => emit({ _tag: "IndexBuilt", constraint, index }))
      }
      return yield* Rebuild.converge(bench, {
        ...task,
        swapTries: options.swapTries ?? 60,
        settlePatience: Duration.toMillis(Duration.decode(options.settlePatience ?? "1 minute")),
        onStep: (step, run, durationMs) =>
          emit(
            run === "begins"
              ? { _tag: "StepStarted", constraint, step }
              : { _tag: "StepDone", constraint, step, durationMs }
          ),
        onOverlap: (live) => emit({ _tag: "Overlap", constraint, live })
      })
    }).pipe(
      Effect.scoped,
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
    const outcome: Outcome =
      isDone(key, target) && !task.interrupted
        ? { _tag: "unchanged", value: constraint }
        : refusals.length > 0
          ? { _tag: "refused", value: rejection(key, refusals) }
          : yield* work
    yield* emit({
      _tag: "Finished",
      constraint,
      outcome: outcome._tag,
      durationMs: (yield* Clock.currentTimeMillis) - start
    })
    return outcome
  })
