/**
 * Changes one key. What to do next follows from the catalogs alone: there is no log that could
 * disagree with them, so a run that was killed anywhere is resumed by running it again.
 *
 * | in the catalogs                                     | next step                             |
 * |-----------------------------------------------------|---------------------------------------|
 * | the original only                                   | add the temporary key, or done        |
 * | the same, and an index it would be bound to instead | let that index step behind            |
 * | original and temporary key, not validated           | validate                              |
 * | original and all parts of a temporary key           | attach them (partitioned, up to 17)   |
 * | original and temporary key                          | swap; without its locks, switch       |
 * | original stepped aside                              | order the triggers, drop the original |
 * | the new key only, still INITIALLY DEFERRED          | wait for older transactions, settle   |
 * | a temporary key that is not the right one           | drop it                               |
 * | a temporary key that acts before the original       | let it act later, or not at all       |
 * | something of ours, and no key of that name          | drop it, and fail                     |
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { DatabaseError } from "../../DatabaseError.js"
import * as Action from "../../catalog/action.js"
import * as Attempt from "./attempt.js"
import * as Blocker from "../../catalog/lockHolders.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import * as Snapshot from "../snapshot/snapshot.js"
import * as GiveUp from "./giveUp.js"
import * as NextStep from "../plan/nextStep.js"
import * as Orphans from "../hazards/orphans.js"
import * as Overlap from "../hazards/overlap.js"
import * as CompetingIndexes from "../hazards/competingIndexes.js"
import type * as Observation from "../snapshot/observation.js"
import { label } from "../../sql/identifiers.js"

/**
 * Existing rows violate the key: VALIDATE failed. The temporary key was dropped, the original is as
 * it was.
 */
export class RowsViolate extends Data.TaggedError("RowsViolate")<{
  readonly constraint: string
  /** Undefined if they could not be counted within 30 seconds, or row security is in the way. */
  readonly orphans: Orphans.Orphans | undefined
  /**
   * The referenced table, if row security hides rows of it from its owner: VALIDATE then misses
   * rows that are there.
   */
  readonly hiding?: Catalog.Table | undefined
}> {
  override get message() {
    if (this.hiding !== undefined) {
      const table = label(this.hiding.schema, this.hiding.name)
      return `row security of ${table} is forced on its owner, and VALIDATE CONSTRAINT as this role did not find all rows of ${table} that ${this.constraint} refers to: run it again as a superuser or a role with BYPASSRLS; the original is as it was`
    }
    const which =
      this.orphans === undefined ? "some rows have no referenced row" : Orphans.describe(this.orphans)
    return `${which}, although ${this.constraint} should prevent that: they were written while its triggers were off. Repair them and run it again; the original is as it was`
  }
}

/** The key never stayed as it was read, because others kept changing it. */
export class Unstable extends Data.TaggedError("Unstable")<{ readonly constraint: string }> {
  override get message() {
    return `${this.constraint} is being changed by others; run it again later`
  }
}

/**
 * Triggers of the new key would fire before the original's, and cannot be given names that sort
 * after them. The new key was not added.
 */
export class OrderNotKept extends Data.TaggedError("OrderNotKept")<{
  readonly constraint: string
  /** The referenced table, if only its owner could rename triggers there. */
  readonly table: string | undefined
}> {
  override get message() {
    return this.table !== undefined
      ? `the new key would act before the original until the swap, and only the owner of ${this.table} can rename triggers there: run it as a role that owns both tables, or as a superuser. The original is as it was`
      : `triggers of ${this.constraint} have names after which nothing sorts, so that a new key would act before it; give them shorter ones (ALTER TRIGGER ... RENAME TO). The original is as it was`
  }
}

/** Why a key could not be changed. */
export type Failure =
  | DatabaseError
  | Attempt.LockBudgetExhausted
  | Attempt.Unfaithful
  | Attempt.StepTooSlow
  | OrderNotKept
  | NextStep.OwnerNeeded
  | Attempt.OutOfPlace
  | RowsViolate
  | NextStep.Disappeared
  | NextStep.RecordLost
  | NextStep.RecordUnreadable
  | Unstable

/** What changes a key besides the sessions. */
export interface Task extends NextStep.Aim {
  /** Tries for the swap before the steps that lock one table each are taken. */
  readonly swapTries: number
  /**
   * Milliseconds to wait for the transactions that may have deferred the original by name (see
   * {@link Steps.settle}).
   */
  readonly settlePatience: number
  readonly onStep: (
    step: Steps.StepName,
    run: "begins" | "done",
    elapsedMillis: number
  ) => Effect.Effect<void>
  /** Runs a step, and tells of it while it works. */
  readonly telling: <A, E>(step: Steps.StepName, effect: Effect.Effect<A, E>) => Effect.Effect<A, E>
  /** Told of what deletes follow from now on, while both keys are there. */
  readonly onOverlap: (overlap: Overlap.Overlap) => Effect.Effect<void>
}

/**
 * Brings a key to its target. True if anything was done. `first`: what was read of it just now,
 * for the first decision.
 */
export const converge = (
  context: Attempt.StepContext,
  task: Task,
  first?: Observation.Observation
): Effect.Effect<boolean, Failure> =>
  Effect.gen(function* () {
    let changed = false
    let remembered: Snapshot.Snapshot | undefined
    let missing: { readonly state: string; readonly error: DatabaseError } | undefined
    // Each round makes progress or finds that somebody else did; the limit only ends a quarrel with
    // another program.
    const rounds = 100 + 10 * task.key.referencing.partitions.length
    for (let round = 0; round < rounds; round++) {
      const next = yield* NextStep.decide(
        context.session,
        task,
        remembered,
        round === 0 ? first : undefined
      ).pipe(
        Effect.tapErrorTag("Disappeared", () =>
          Effect.ignore(GiveUp.gone(context.session, (step) => run(context, task, step), task, remembered))
        )
      )
      if (next === undefined) return changed
      const state = JSON.stringify(next)
      // Nobody changed the key, and still something was not there: running the same step again
      // would find the same.
      if (missing?.state === state) return yield* missing.error
      changed = true
      // Lost tries and a key that others changed both mean: read again, then decide again.
      const ended = yield* perform(context, task, next).pipe(
        Effect.catchTags({
          ChangedMeanwhile: (error) => Effect.succeed(error),
          TriesExhausted: (error) => Effect.succeed(error)
        })
      )
      if (ended === "proven") return true
      const lost = ended === "done" ? undefined : ended
      remembered = next.does === "settle" && lost === undefined ? undefined : next.change.original
      // Only the first of several steps in a row was decided from this state.
      const isFirst = next.does !== "add" || lost?.step === "add"
      missing =
        lost?._tag === "ChangedMeanwhile" && lost.cause !== undefined && isFirst
          ? { state, error: lost.cause }
          : undefined
    }
    return yield* new Unstable({ constraint: Catalog.nameOf(task.key) })
  })

type Lost = Attempt.TriesExhausted | Attempt.ChangedMeanwhile

/** Runs one step. */
type Run = (step: Steps.Step, options?: Attempt.Options) => ReturnType<typeof run>

const run = (context: Attempt.StepContext, task: Task, step: Steps.Step, options?: Attempt.Options) =>
  reported(task, step, Attempt.run(context, step, options))

/** How a step ended: `proven` if its transaction proved that the key is what it is to be. */
type Ended = "done" | "proven"

const perform = (
  context: Attempt.StepContext,
  task: Task,
  { change, current, does, todo }: NextStep.Next
): Effect.Effect<Ended, Failure | Lost> => {
  const expected = does === "settle" ? Steps.goal(change) : Steps.almost(change)
  const swapped: Ended = Steps.needsSettling(change.original) ? "done" : "proven"
  const proving: Run = (step, options) => run(context, task, step, { ...options, expected })
  /** All of what is left of one kind: each step sees for itself that the key is as it was read. */
  const each = <A>(parts: ReadonlyArray<A>, use: (part: A) => Effect.Effect<void, Failure | Lost>) =>
    Effect.forEach(parts, use, { discard: true })
  const validate = () =>
    each(todo.validate, ({ at, name }) => {
      const step = Steps.validate(change, at, name)
      return reported(task, step, Attempt.runBesideWrites(context, step))
    }).pipe(
      Effect.catchIf(isViolation, () =>
        Effect.zipRight(
          GiveUp.temporaries(context.session, proving, change),
          Effect.flatMap(
            Orphans.count(context.session, [change.key], 30_000),
            (orphans) =>
              new RowsViolate({
                constraint: Catalog.nameOf(change.key),
                orphans: orphans.get(change.key.oid),
                hiding: Catalog.isForced(change.key.referenced) ? change.key.referenced : undefined
              })
          )
        )
      )
    )
  /** Where the next try would end the same, rows would be checked twice until then. */
  const givingUp = <A>(effect: Effect.Effect<A, Failure | Lost>) =>
    Effect.tapError(effect, ({ _tag }) =>
      _tag === "Unfaithful" || _tag === "OutOfPlace" || _tag === "OrderNotKept"
        ? Effect.ignore(GiveUp.temporaries(context.session, proving, change))
        : Effect.void
    )
  const swap = () =>
    (Steps.canStepAside(change.key)
      ? proving(Steps.swap(change, current), { maxTries: task.swapTries }).pipe(
          Effect.as(swapped),
          Effect.catchTag("TriesExhausted", () =>
            Effect.as(stepAside(context, proving, change, current), "done" as const)
          )
        )
      : Effect.as(proving(Steps.swap(change, current)), swapped)
    ).pipe(givingUp)
  const ways: {
    readonly [Does in NextStep.Next["does"]]: () => Effect.Effect<Ended | void, Failure | Lost>
  } = {
    reindex: () => {
      const step = Steps.reindex(change, todo.reindex)
      return reported(task, step, Attempt.runOutsideTransaction(context, step)).pipe(
        Effect.tapErrorTag("LockBudgetExhausted", () =>
          CompetingIndexes.leftovers(context.session, change.key).pipe(
            Effect.flatMap((statements) => Attempt.tidy(context, statements)),
            Effect.ignore
          )
        )
      )
    },
    order: () => (todo.order === undefined ? Effect.void : putInOrder(task, proving, change, todo.order)),
    // What was added is as it should be: its transaction saw to that, so it is validated without
    // another look, and swapped, which proves the outcome. Only partitions can have come meanwhile.
    add: () =>
      each(todo.add, (at) =>
        Effect.zipRight(add(context, task, change, at).pipe(givingUp), overlap(task, change))
      ).pipe(
        Effect.zipRight(validate()),
        Effect.zipRight(Steps.placeOf(change.key).partitioned ? Effect.void : swap())
      ),
    validate,
    attach: () => Effect.zipRight(proving(Steps.attach(change)).pipe(givingUp), overlap(task, change)),
    swap,
    finish: () => finish(proving, change, current),
    settle: () => Effect.zipRight(oldTransactions(context, task), proving(Steps.settle(change, current))),
    "drop-temporary": () => each(todo.drop, ({ at, name }) => proving(Steps.dropTemporary(change, at, name)))
  }
  return Effect.map(ways[does](), (ended) => ended ?? "done")
}

/**
 * The way for tables so busy that both locks are never to be had together: each step locks one
 * table while it holds nothing else, so it cannot be part of a circle. An action that raises no
 * error goes live before the names are exchanged and one that does after them, so that errors keep
 * naming the original.
 */
const stepAside = (context: Attempt.StepContext, run: Run, change: Steps.Change, found: Snapshot.Snapshot) =>
  Effect.gen(function* () {
    const { key } = change
    yield* Effect.forEach(Steps.switchOn(change), (step) => run(step), { discard: true })
    const current = yield* Snapshot.read(context.session, key.referencing.oid, key.name)
    if (current === undefined || !isSame(current[0], found[0])) {
      return yield* new Attempt.ChangedMeanwhile({ step: "switch-names" })
    }
    // With the partitions that were attached since, whose rows are to keep their names too.
    const original = Snapshot.withTriggerNames(current, change.original)
    return yield* run(Steps.switchNames({ ...change, original }, current))
  })

/** Whether it is the same constraint, and nobody gave it another mode. */
const isSame = (one: Snapshot.Entry, other: Snapshot.Entry) =>
  one.oid === other.oid && JSON.stringify(one.constraint) === JSON.stringify(other.constraint)

/**
 * The original stepped aside: the new key's triggers come to fire first, then the original is
 * dropped.
 */
const finish = (run: Run, change: Steps.Change, current: Snapshot.Snapshot) =>
  Effect.gen(function* () {
    yield* run(Steps.switchTriggers(change, "delete"))
    yield* run(Steps.switchTriggers(change, "update"))
    yield* run(Steps.dropOriginal(change, current))
  })

/**
 * Waits, for a limited time, until every transaction has ended that was running when this was
 * called.
 */
const oldTransactions = (context: Attempt.StepContext, task: Task) =>
  Effect.gen(function* () {
    const ours = [context.session.processId, context.watcher.processId]
    const start = yield* Clock.currentTimeMillis
    let old = yield* Blocker.transactions(context.session, ours)
    for (let polls = 0; old.length > 0; polls++) {
      const elapsedMillis = (yield* Clock.currentTimeMillis) - start
      if (elapsedMillis >= task.settlePatience) return undefined
      if (elapsedMillis >= 200) {
        yield* context.onWait({ step: "settle", tries: 0, slow: 0, elapsedMillis, blockers: old })
      }
      yield* Effect.sleep(Duration.millis(Math.min(500, 5 * 1.3 ** polls)))
      const running = yield* Blocker.transactions(context.session, ours)
      old = old.filter((was) =>
        running.some(({ virtualTransaction }) => virtualTransaction === was.virtualTransaction)
      )
    }
    return undefined
  })

const isViolation = (error: { readonly _tag: string }): boolean =>
  DatabaseError.is(error) && error.reason._tag === "ForeignKeyViolation"

/**
 * Adds the temporary key where it does nothing that the original would not do, also if its triggers
 * have to get other names for that.
 */
const add = (context: Attempt.StepContext, task: Task, change: Steps.Change, at: Catalog.Relation) =>
  reported(
    task,
    { name: "add" },
    Effect.gen(function* () {
      let late: ReadonlySet<Snapshot.Role> = new Set()
      for (;;) {
        const found = yield* Attempt.run(context, Steps.add(change, at, [...late])).pipe(
          Effect.as([]),
          Effect.catchTag("ChangedMeanwhile", (error) =>
            error.late === undefined ? error : Effect.succeed(error.late)
          )
        )
        if (found.length === 0) return undefined
        const { owned, schema, name } = change.key.referenced
        const constraint = Catalog.nameOf(change.key)
        if (!owned && found.some(NextStep.isOfReferenced)) {
          return yield* new OrderNotKept({ constraint, table: label(schema, name) })
        }
        if (found.every((role) => late.has(role))) {
          return yield* new OrderNotKept({ constraint, table: undefined })
        }
        late = new Set([...late, ...found])
      }
    })
  )

/** Tells what deletes follow until the swap; a key that is not enforced has no triggers. */
const overlap = (task: Task, change: Steps.Change) =>
  change.key.enforced ? task.onOverlap(Overlap.of(change)) : Effect.void

/** Lets deletes and key updates follow the original again. */
const putInOrder = (task: Task, run: Run, change: Steps.Change, { live, step }: NextStep.Disorder) => {
  const { onDelete, referenced } = change.key
  const follows = `deletes in ${label(referenced.schema, referenced.name)} follow ON DELETE ${Action.sql(live)} until it is done`
  return Effect.zipRight(
    live === onDelete ? Effect.void : task.onOverlap({ live, until: "order", except: [] }),
    run(step, live === onDelete ? {} : { meanwhile: `${follows}, and not ON DELETE ${Action.sql(onDelete)}` })
  )
}

/** Runs a step, and tells when it begins, that it works, and when it is done. */
export const reported = <A, E>(
  task: Pick<Task, "onStep" | "telling">,
  step: Pick<Steps.Step, "name">,
  effect: Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    const start = yield* Clock.currentTimeMillis
    yield* task.onStep(step.name, "begins", 0)
    const result = yield* task.telling(step.name, effect)
    yield* task.onStep(step.name, "done", (yield* Clock.currentTimeMillis) - start)
    return result
  })
