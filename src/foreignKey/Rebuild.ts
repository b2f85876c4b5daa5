/**
 * Changes one key. What to do next follows from the catalogs alone: there is no log that could disagree with them, so a run that was
 * killed anywhere is resumed by running it again.
 *
 * | in the catalogs                           | next step                                            |
 * |-------------------------------------------|------------------------------------------------------|
 * | the original only                         | add the temporary key, or done if the action is right |
 * |   and a unique index that it would be bound to instead | let that index step behind                |
 * | original and temporary key, not validated | validate                                             |
 * | original and all parts of a temporary key | attach them (partitioned tables up to 17)            |
 * | original and temporary key                | swap; if its locks cannot be had, switch             |
 * | original stepped aside                    | order the triggers, drop the original                |
 * | the new key only, still INITIALLY DEFERRED | wait for the transactions of before, then settle it   |
 * | a temporary key that is not the right one | drop it                                              |
 * | a temporary key that acts before the original | let it act after the original, or not at all, first of all |
 * | something of ours, and no key of that name | drop it, and fail                                    |
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import * as Action from "./Action.js"
import * as Attempt from "./Attempt.js"
import * as Blocker from "./Blocker.js"
import * as Catalog from "./Catalog.js"
import * as Change from "./Change.js"
import * as Fidelity from "./Fidelity.js"
import * as GiveUp from "./GiveUp.js"
import * as Marker from "./Marker.js"
import * as Name from "./Name.js"
import * as Orphan from "./Orphan.js"
import * as Overlap from "./Overlap.js"
import * as Rival from "./Rival.js"
import * as Seen from "./Seen.js"
import { label } from "./Sql.js"
import * as Target from "./Target.js"
import * as Tree from "./Tree.js"

/** Existing rows violate the key: VALIDATE failed. The temporary key was dropped, the original is as it was. */
export class RowsViolate extends Data.TaggedError("RowsViolate")<{
  readonly constraint: string
  /** Undefined if they could not be counted within 30 seconds, or row security is in the way. */
  readonly orphans: Orphan.Orphans | undefined
  /** The referenced table, if row security hides rows of it from its owner: VALIDATE then misses rows that are there. */
  readonly hiding?: Catalog.Table | undefined
}> {
  override get message() {
    if (this.hiding !== undefined) {
      const table = label(this.hiding.schema, this.hiding.name)
      return `row security of ${table} is forced on its owner, and VALIDATE CONSTRAINT as this role did not find all rows of ${table} that ${this.constraint} refers to: run it again as a superuser or a role with BYPASSRLS; the original is as it was`
    }
    const which =
      this.orphans === undefined ? "some rows have no referenced row" : Orphan.describe(this.orphans)
    return `${which}, although ${this.constraint} should prevent that: they were written while its triggers were off. Repair them and run it again; the original is as it was`
  }
}

/** The key was dropped or renamed while it was being changed. What the change had added is gone too. */
export class Disappeared extends Data.TaggedError("Disappeared")<{ readonly constraint: string }> {
  override get message() {
    return `${this.constraint} no longer exists under that name`
  }
}

/** The key never stayed as it was read, because others kept changing it. */
export class Unstable extends Data.TaggedError("Unstable")<{ readonly constraint: string }> {
  override get message() {
    return `${this.constraint} is being changed by others; run it again later`
  }
}

/**
 * The original stepped aside, and the comment on the new key that recorded how it was is gone: somebody removed it, or the table is a partition that was
 * detached just then. Only for a DEFERRABLE original, of which the mode cannot be told otherwise.
 */
export class RecordLost extends Data.TaggedError("RecordLost")<{
  readonly constraint: string
  readonly aside: string
}> {
  override get message() {
    return `the comment on ${this.constraint} that recorded the original is gone, so it cannot be proven equal. The new key is in force; compare it with ${this.aside} and drop that one`
  }
}

/** The comment on a key that took the original's place is one of ours and cannot be read, so nobody knows how the original was. */
export class RecordUnreadable extends Data.TaggedError("RecordUnreadable")<{ readonly constraint: string }> {
  override get message() {
    return `the comment on ${this.constraint} that recorded the original was edited and cannot be read. The new key is in force, perhaps INITIALLY DEFERRED: see to its mode (ALTER TABLE ... ALTER CONSTRAINT), give it a comment of your own, and run it again`
  }
}

/**
 * Triggers of the new key would fire before the original's, and cannot be given names that sort after them. The new key was not added.
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

/**
 * A change was interrupted while triggers of the two keys exchanged their names or one of them
 * stepped aside, and this role may not rename triggers of the referenced table.
 */
export class OwnerNeeded extends Data.TaggedError("OwnerNeeded")<{
  readonly constraint: string
  /** The referenced table. */
  readonly table: string
}> {
  override get message() {
    return `a change of ${this.constraint} was interrupted while triggers were renamed, and only the owner of ${this.table} can finish that: run it as a role that owns both tables, or as a superuser. Both the original and the new key protect the data`
  }
}

/** Why a key could not be changed. */
export type Failure =
  | DatabaseError
  | Attempt.LockBudgetExhausted
  | Attempt.Unfaithful
  | Attempt.StepTooSlow
  | OrderNotKept
  | OwnerNeeded
  | Attempt.OutOfPlace
  | RowsViolate
  | Disappeared
  | RecordLost
  | RecordUnreadable
  | Unstable

/** A key and what it is to become. */
export interface Aim {
  readonly key: Catalog.Key
  readonly target: Target.Target
  readonly version: number
  /** Whether the role is a superuser's. */
  readonly superuser: boolean
}

/** What changes a key besides the sessions. */
export interface Task extends Aim {
  /** Tries for the swap before the steps that lock one table each are taken. */
  readonly swapTries: number
  /** Milliseconds to wait for the transactions that may have deferred the original by name (see {@link Change.settle}). */
  readonly settlePatience: number
  readonly onStep: (
    step: Change.StepName,
    run: "begins" | "done",
    elapsedMillis: number
  ) => Effect.Effect<void>
  /** Runs a step, and tells of it while it works. */
  readonly telling: <A, E>(step: Change.StepName, effect: Effect.Effect<A, E>) => Effect.Effect<A, E>
  /** Told of what deletes follow from now on, while both keys are there. */
  readonly onOverlap: (overlap: Overlap.Overlap) => Effect.Effect<void>
}

/**
 * Brings a key to its target. True if anything was done. `first`: what was read of it just now,
 * for the first decision.
 */
export const converge = (
  bench: Attempt.Bench,
  task: Task,
  first?: Seen.Seen
): Effect.Effect<boolean, Failure> =>
  Effect.gen(function* () {
    let changed = false
    let remembered: Fidelity.Vector | undefined
    let missing: { readonly state: string; readonly error: DatabaseError } | undefined
    // Each round makes progress or finds that somebody else did; the limit only ends a quarrel with another program.
    const rounds = 100 + 10 * task.key.referencing.partitions.length
    for (let round = 0; round < rounds; round++) {
      const next = yield* decide(bench.session, task, remembered, round === 0 ? first : undefined).pipe(
        Effect.tapErrorTag("Disappeared", () =>
          Effect.ignore(GiveUp.gone(bench.session, (step) => run(bench, task, step), task, remembered))
        )
      )
      if (next === undefined) return changed
      const state = JSON.stringify(next)
      // Nobody changed the key, and still something was not there: running the same step again would find the same.
      if (missing?.state === state) return yield* missing.error
      changed = true
      // Lost tries and a key that others changed both mean: read again, then decide again.
      const ended = yield* perform(bench, task, next).pipe(
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

/** What to do next. `current` is the vector of the key that has the original's name now. */
export interface Next {
  readonly does:
    | "order"
    | "reindex"
    | "add"
    | "validate"
    | "attach"
    | "swap"
    | "finish"
    | "settle"
    | "drop-temporary"
  readonly change: Change.Change
  readonly current: Fidelity.Vector
  /** What is left to do before the swap; what is first in it is done next. */
  readonly todo: Todo
}

/** What a change has to do before its swap, in this order. */
export interface Todo {
  /** What a temporary key needs so that deletes and key updates follow the original; undefined if they do. */
  readonly order: Disorder | undefined
  /** Constraints of ours that are not the right ones. */
  readonly drop: ReadonlyArray<Part>
  /** Statements of {@link Change.reindex}. */
  readonly reindex: ReadonlyArray<string>
  readonly add: ReadonlyArray<Catalog.Relation>
  readonly validate: ReadonlyArray<Part>
  /** Whether the partitions' parts are to become one key. */
  readonly attach: boolean
}

/** A temporary key that does what the original would not do. */
export interface Disorder {
  readonly step: Change.Step
  /** Which action deletes follow as long as the step is not done. */
  readonly live: Action.Action
}

/** A constraint to validate or to drop. */
export interface Part {
  readonly at: Catalog.Relation
  readonly name: string
}

/**
 * What to do next, read from the catalogs: undefined if the key is what it is to be. Locks nothing. `remembered` is the original as this run has seen it, in case
 * that somebody removes the comment that records it. `seen` is what was read of the key just now, for all keys of a plan at once.
 */
export const decide = (
  session: Session,
  task: Aim,
  remembered?: Fidelity.Vector,
  seen?: Seen.Seen
): Effect.Effect<
  Next | undefined,
  DatabaseError | Disappeared | RecordLost | RecordUnreadable | OwnerNeeded
> =>
  Effect.gen(function* () {
    const { key: was, superuser, target, version } = task
    const { current, keys: found } = seen ?? (yield* Seen.read(session, was))
    const key = found.find(({ name }) => name === was.name)
    if (key === undefined || current === undefined) {
      return yield* new Disappeared({ constraint: Catalog.nameOf(was) })
    }
    const aside = found.find(({ name }) => name === Name.aside(key.name))
    const whole = found.find(({ name }) => name === Name.temporary(key.name))
    // Once it is attached a key that was built leafwise is one key.
    const leafwise = whole === undefined && Change.isLeafwise({ key, version })
    const places = leafwise ? Change.places({ key, version }) : [key.referencing]
    const keys = leafwise
      ? yield* Catalog.read(session, {
          tables: places.map(({ oid }) => oid),
          names: [Name.temporary(key.name)]
        })
      : found
    const temporaryAt = (place: Catalog.Relation) =>
      keys.find(({ name, referencing }) => name === Name.temporary(key.name) && referencing.oid === place.oid)
    const temporaries = places.flatMap((place) => temporaryAt(place) ?? [])
    const recorded = Marker.decode((temporaries[0] ?? key).comment)?.original
    const next = (
      does: Next["does"],
      original: Fidelity.Vector,
      to: Target.Target,
      todo: Todo = nothing
    ): Next => ({ does, change: { key, target: to, original, version, superuser }, current, todo })

    const kept =
      remembered === undefined || remembered[0].oid === current[0].oid
        ? undefined
        : Fidelity.withComment(remembered, key.comment)
    const record = recorded ?? kept
    const isUnreadable = Marker.isOurs(key.comment) && Marker.decode(key.comment) === undefined
    if (aside === undefined && isUnreadable && kept === undefined) {
      return yield* new RecordUnreadable({ constraint: Catalog.nameOf(key) })
    }
    if (aside !== undefined) {
      if (recorded === undefined && !fits(key, aside)) {
        // Somebody dropped the new key and made one of that name: the original has no successor any more.
        const drop = [{ at: key.referencing, name: aside.name }]
        return next("drop-temporary", current, target, { ...nothing, drop })
      }
      if (!key.referenced.owned) return yield* ownerNeeded(key)
      const stepped = yield* Fidelity.read(session, key.referencing.oid, aside.name)
      if (stepped === undefined) return yield* new Disappeared({ constraint: Catalog.nameOf(aside) })
      if (record !== undefined) {
        return next("finish", Fidelity.ofRecordedAside(stepped, record, current), Target.of(key))
      }
      // A partition that was detached has no record of its own.
      const before = Fidelity.ofAside(stepped, current)
      return before === undefined
        ? yield* new RecordLost({ constraint: Catalog.nameOf(key), aside: Catalog.nameOf(aside) })
        : next("finish", Fidelity.reconcile(before, current), Target.of(key))
    }
    if (temporaries.length === 0) {
      const unsettled = recorded ?? (key.initiallyDeferred ? kept : undefined)
      if (unsettled !== undefined && Change.needsSettling(unsettled)) {
        return next("settle", Fidelity.withModeOf(unsettled, current), Target.of(key))
      }
      if (Target.equals(Target.of(key), target)) return undefined
    }
    // The names of the original's triggers may have been exchanged already; everything else it may have gained since counts as it is now.
    const original = recorded === undefined ? current : Fidelity.withTriggerNames(current, recorded)
    const isDone = Target.equals(Target.of(key), target)
    const standing = temporaries.length === 0 ? undefined : yield* look(session, key, leafwise)
    const isLate = !key.referenced.owned && standing?.late.some(({ role }) => isOfReferenced(role)) === true
    if (isLate && (yield* haveExchanged(session, original, temporaries[0]))) return yield* ownerNeeded(key)
    // Only a superuser can enable the triggers that a superuser disabled. Only the owner of their
    // table can rename those that are late.
    const isBeyond = (standing?.muted === true && !superuser) || isLate
    const wrong = temporaries.filter(
      (temporary) =>
        isDone || isBeyond || !Target.equals(Target.of(temporary), target) || !fits(key, temporary)
    )
    const right = temporaries.filter((temporary) => !wrong.includes(temporary))
    const add = isDone
      ? []
      : places.filter((place) => right.every(({ referencing }) => referencing.oid !== place.oid))
    const validate = [
      ...(yield* Effect.forEach(
        right.filter(({ validated }) => !validated),
        (temporary) => unchecked(session, temporary)
      )).flat(),
      ...add
        .flatMap((place) => (place.oid === key.referencing.oid ? [...leaves(key), place] : [place]))
        .map((at) => ({ at, name: Name.temporary(key.name) }))
    ].filter(({ at }) => key.validated || isValidAt(current, at))
    const order =
      standing === undefined || isBeyond
        ? undefined
        : yield* disorder(session, next("order", original, target).change, places, standing, temporaries[0])
    const todo: Todo = {
      order,
      drop: wrong.map(({ name, referencing }) => ({ at: referencing, name })),
      reindex: add.length === 0 ? [] : yield* Rival.statements(session, key),
      add,
      validate,
      attach: leafwise && !isDone
    }
    const does =
      todo.order !== undefined
        ? "order"
        : todo.drop.length > 0
          ? "drop-temporary"
          : todo.reindex.length > 0
            ? "reindex"
            : todo.add.length > 0
              ? "add"
              : todo.validate.length > 0
                ? "validate"
                : todo.attach
                  ? "attach"
                  : "swap"
    return next(does, original, target, todo)
  })

const nothing: Todo = { order: undefined, drop: [], reindex: [], add: [], validate: [], attach: false }

/** How the temporary key stands to the original. */
const look = (session: Session, key: Catalog.Key, isCut: boolean) =>
  session
    .query<{ readonly standing: string }>(
      `SELECT ${Tree.standing(Change.placeOf(key), Change.temporaryOf(key, isCut))}::text AS standing`
    )
    .pipe(Effect.map(([row]) => JSON.parse(row?.standing ?? "null") as Tree.Standing))

/** Whether triggers of a role are on the referenced table. */
const isOfReferenced = (role: Fidelity.Role) => role === "delete" || role === "update"

/**
 * Whether the fallback of the swap has begun, and the new key's triggers have the names of the
 * original's.
 */
const haveExchanged = (session: Session, original: Fidelity.Vector, temporary: Catalog.Key | undefined) =>
  temporary === undefined
    ? Effect.succeed(false)
    : Effect.map(
        Fidelity.read(session, temporary.referencing.oid, temporary.name),
        (vector) => vector !== undefined && Fidelity.haveExchanged(original, vector)
      )

const ownerNeeded = (key: Catalog.Key) =>
  new OwnerNeeded({
    constraint: Catalog.nameOf(key),
    table: label(key.referenced.schema, key.referenced.name)
  })

/** What has to be done, on one table, so that the temporary key does nothing that the original would not do. */
const disorder = (
  session: Session,
  change: Change.Change,
  places: ReadonlyArray<Catalog.Relation>,
  { acts, late }: Tree.Standing,
  temporary: Catalog.Key | undefined
): Effect.Effect<Disorder | undefined, DatabaseError> =>
  Effect.gen(function* () {
    const { key, original, superuser } = change
    if (temporary === undefined || (late.length === 0 && !(superuser && acts))) return undefined
    const isCut = places.every(({ oid }) => oid !== key.referencing.oid)
    const onReferenced = late.find(({ role }) => isOfReferenced(role))
    // The fallback of the swap has begun: the new action is meant to come first.
    if (!isCut && onReferenced !== undefined && (yield* haveExchanged(session, original, temporary))) {
      return undefined
    }
    const [first] = late
    const table =
      onReferenced !== undefined
        ? key.referenced
        : isCut
          ? places.find(({ oid }) => oid === first?.table)
          : key.referencing
    const step = Change.order(change, {
      table: table ?? key.referenced,
      successor:
        isCut && table !== undefined && table.oid !== key.referenced.oid
          ? { ...Change.placeOf(key, temporary.name), table: table.oid }
          : Change.temporaryOf(key, isCut),
      roles: Change.roles
    })
    const live = Overlap.live(
      key,
      Target.of(temporary),
      late.some(({ role }) => role === "delete") ? "new" : "original"
    )
    return { step, live }
  })

/** Whether one partition of a NOT VALID key is valid all the same (18 and later). */
const isValidAt = (vector: Fidelity.Vector, at: Catalog.Relation) =>
  vector.some(
    ({ constraint }) => Number(constraint["conrelid"]) === at.oid && constraint["convalidated"] === true
  )

/** The partitions of a key's table that have rows. */
const leaves = ({ referencing }: Catalog.Key) => referencing.partitions.filter(({ kind }) => kind !== "p")

/** The parts of a key that are not valid yet, its partitions' first (18 and later). */
const unchecked = (session: Session, key: Catalog.Key): Effect.Effect<ReadonlyArray<Part>, DatabaseError> =>
  Effect.map(
    key.referencing.kind === "p"
      ? Fidelity.read(session, key.referencing.oid, key.name)
      : Effect.succeed(undefined),
    (vector) => [
      ...(vector ?? []).flatMap(({ constraint }): ReadonlyArray<Part> => {
        const at = leaves(key).find(({ oid }) => oid === Number(constraint["conrelid"]))
        return at !== undefined && constraint["convalidated"] === false
          ? [{ at, name: String(constraint["conname"]) }]
          : []
      }),
      { at: key.referencing, name: key.name }
    ]
  )

/** Whether a temporary key found in the catalogs is still the one that this original needs. */
const fits = (key: Catalog.Key, temporary: Catalog.Key) =>
  key.referenced.oid === temporary.referenced.oid &&
  JSON.stringify([key.columns, key.referencedColumns]) ===
    JSON.stringify([temporary.columns, temporary.referencedColumns]) &&
  key.onUpdate === temporary.onUpdate &&
  key.match === temporary.match &&
  key.deferrable === temporary.deferrable &&
  key.enforced === temporary.enforced &&
  key.boundIndex?.oid === temporary.boundIndex?.oid

type Lost = Attempt.TriesExhausted | Attempt.ChangedMeanwhile

/** Runs one step. */
type Run = (step: Change.Step, options?: Attempt.Options) => ReturnType<typeof run>

const run = (bench: Attempt.Bench, task: Task, step: Change.Step, options?: Attempt.Options) =>
  reported(task, step, Attempt.run(bench, step, options))

/** How a step ended: `proven` if its transaction proved that the key is what it is to be. */
type Ended = "done" | "proven"

const perform = (
  bench: Attempt.Bench,
  task: Task,
  { change, current, does, todo }: Next
): Effect.Effect<Ended, Failure | Lost> => {
  const expected = does === "settle" ? Change.goal(change) : Change.almost(change)
  const swapped: Ended = Change.needsSettling(change.original) ? "done" : "proven"
  const proving: Run = (step, options) => run(bench, task, step, { ...options, expected })
  /** All of what is left of one kind: each step sees for itself that the key is as it was read. */
  const each = <A>(parts: ReadonlyArray<A>, use: (part: A) => Effect.Effect<void, Failure | Lost>) =>
    Effect.forEach(parts, use, { discard: true })
  const validate = () =>
    each(todo.validate, ({ at, name }) => {
      const step = Change.validate(change, at, name)
      return reported(task, step, Attempt.runBesideWrites(bench, step))
    }).pipe(
      Effect.catchIf(isViolation, () =>
        Effect.zipRight(
          GiveUp.temporaries(bench.session, proving, change),
          Effect.flatMap(
            Orphan.count(bench.session, [change.key], 30_000),
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
        ? Effect.ignore(GiveUp.temporaries(bench.session, proving, change))
        : Effect.void
    )
  const swap = () =>
    (Change.canStepAside(change.key)
      ? proving(Change.swap(change, current), { maxTries: task.swapTries }).pipe(
          Effect.as(swapped),
          Effect.catchTag("TriesExhausted", () =>
            Effect.as(stepAside(bench, proving, change, current), "done" as const)
          )
        )
      : Effect.as(proving(Change.swap(change, current)), swapped)
    ).pipe(givingUp)
  const ways: { readonly [Does in Next["does"]]: () => Effect.Effect<Ended | void, Failure | Lost> } = {
    reindex: () => {
      const step = Change.reindex(change, todo.reindex)
      return reported(task, step, Attempt.runOutsideTransaction(bench, step)).pipe(
        Effect.tapErrorTag("LockBudgetExhausted", () =>
          Rival.leftovers(bench.session, change.key).pipe(
            Effect.flatMap((statements) => Attempt.tidy(bench, statements)),
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
        Effect.zipRight(add(bench, task, change, at).pipe(givingUp), overlap(task, change))
      ).pipe(
        Effect.zipRight(validate()),
        Effect.zipRight(Change.placeOf(change.key).partitioned ? Effect.void : swap())
      ),
    validate,
    attach: () => Effect.zipRight(proving(Change.attach(change)).pipe(givingUp), overlap(task, change)),
    swap,
    finish: () => finish(proving, change, current),
    settle: () => Effect.zipRight(oldTransactions(bench, task), proving(Change.settle(change, current))),
    "drop-temporary": () => each(todo.drop, ({ at, name }) => proving(Change.dropTemporary(change, at, name)))
  }
  return Effect.map(ways[does](), (ended) => ended ?? "done")
}

/**
 * The way for tables so busy that both locks are never to be had together: each step locks one table while it holds nothing else, so it
 * cannot be part of a circle. An action that raises no error goes live before the names are exchanged and one that does after them, so that errors keep naming
 * the original.
 */
const stepAside = (bench: Attempt.Bench, run: Run, change: Change.Change, found: Fidelity.Vector) =>
  Effect.gen(function* () {
    const { key } = change
    yield* Effect.forEach(Change.switchOn(change), (step) => run(step), { discard: true })
    const current = yield* Fidelity.read(bench.session, key.referencing.oid, key.name)
    if (current === undefined || !isSame(current[0], found[0])) {
      return yield* new Attempt.ChangedMeanwhile({ step: "switch-names" })
    }
    // With the partitions that were attached since, whose rows are to keep their names too.
    const original = Fidelity.withTriggerNames(current, change.original)
    return yield* run(Change.switchNames({ ...change, original }, current))
  })

/** Whether it is the same constraint, and nobody gave it another mode. */
const isSame = (one: Fidelity.Entry, other: Fidelity.Entry) =>
  one.oid === other.oid && JSON.stringify(one.constraint) === JSON.stringify(other.constraint)

/** The original stepped aside: the new key's triggers come to fire first, then the original is dropped. */
const finish = (run: Run, change: Change.Change, current: Fidelity.Vector) =>
  Effect.gen(function* () {
    yield* run(Change.switchTriggers(change, "delete"))
    yield* run(Change.switchTriggers(change, "update"))
    yield* run(Change.dropOriginal(change, current))
  })

/** Waits, for a limited time, until every transaction has ended that was running when this was called. */
const oldTransactions = (bench: Attempt.Bench, task: Task) =>
  Effect.gen(function* () {
    const ours = [bench.session.processId, bench.watcher.processId]
    const start = yield* Clock.currentTimeMillis
    let old = yield* Blocker.transactions(bench.session, ours)
    for (let polls = 0; old.length > 0; polls++) {
      const elapsedMillis = (yield* Clock.currentTimeMillis) - start
      if (elapsedMillis >= task.settlePatience) return undefined
      if (elapsedMillis >= 200) {
        yield* bench.onWait({ step: "settle", tries: 0, slow: 0, elapsedMillis, blockers: old })
      }
      yield* Effect.sleep(Duration.millis(Math.min(500, 5 * 1.3 ** polls)))
      const running = yield* Blocker.transactions(bench.session, ours)
      old = old.filter((was) =>
        running.some(({ virtualTransaction }) => virtualTransaction === was.virtualTransaction)
      )
    }
    return undefined
  })

const isViolation = (error: { readonly _tag: string }): boolean =>
  DatabaseError.is(error) && error.reason._tag === "ForeignKeyViolation"

/** Adds the temporary key where it does nothing that the original would not do, also if its triggers have to get other names for that. */
const add = (bench: Attempt.Bench, task: Task, change: Change.Change, at: Catalog.Relation) =>
  reported(
    task,
    { name: "add" },
    Effect.gen(function* () {
      let late: ReadonlySet<Fidelity.Role> = new Set()
      for (;;) {
        const found = yield* Attempt.run(bench, Change.add(change, at, [...late])).pipe(
          Effect.as([]),
          Effect.catchTag("ChangedMeanwhile", (error) =>
            error.late === undefined ? error : Effect.succeed(error.late)
          )
        )
        if (found.length === 0) return undefined
        const { owned, schema, name } = change.key.referenced
        const constraint = Catalog.nameOf(change.key)
        if (!owned && found.some(isOfReferenced)) {
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
const overlap = (task: Task, change: Change.Change) =>
  change.key.enforced ? task.onOverlap(Overlap.of(change)) : Effect.void

/** Lets deletes and key updates follow the original again. */
const putInOrder = (task: Task, run: Run, change: Change.Change, { live, step }: Disorder) => {
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
  step: Pick<Change.Step, "name">,
  effect: Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    const start = yield* Clock.currentTimeMillis
    yield* task.onStep(step.name, "begins", 0)
    const result = yield* task.telling(step.name, effect)
    yield* task.onStep(step.name, "done", (yield* Clock.currentTimeMillis) - start)
    return result
  })
