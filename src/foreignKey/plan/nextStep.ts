/** What a change does next, read from the catalogs. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type * as Action from "../../catalog/action.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import * as Snapshot from "../snapshot/snapshot.js"
import * as Marker from "../snapshot/marker.js"
import * as Names from "../snapshot/names.js"
import * as Overlap from "../hazards/overlap.js"
import * as CompetingIndexes from "../hazards/competingIndexes.js"
import * as Observation from "../snapshot/observation.js"
import { label } from "../../sql/identifiers.js"
import * as Target from "../snapshot/target.js"
import * as Triggers from "../steps/triggers.js"

/**
 * The key was dropped or renamed while it was being changed. What the change had added is gone too.
 */
export class Disappeared extends Data.TaggedError("Disappeared")<{ readonly constraint: string }> {
  override get message() {
    return `${this.constraint} no longer exists under that name`
  }
}

/**
 * The original stepped aside, and the comment on the new key that recorded how it was is gone:
 * somebody removed it, or the table is a partition that was detached just then. Only for a
 * DEFERRABLE original, of which the mode cannot be told otherwise.
 */
export class RecordLost extends Data.TaggedError("RecordLost")<{
  readonly constraint: string
  readonly aside: string
}> {
  override get message() {
    return `the comment on ${this.constraint} that recorded the original is gone, so it cannot be proven equal. The new key is in force; compare it with ${this.aside} and drop that one`
  }
}

/**
 * The comment on a key that took the original's place is one of ours and cannot be read, so nobody
 * knows how the original was.
 */
export class RecordUnreadable extends Data.TaggedError("RecordUnreadable")<{ readonly constraint: string }> {
  override get message() {
    return `the comment on ${this.constraint} that recorded the original was edited and cannot be read. The new key is in force, perhaps INITIALLY DEFERRED: see to its mode (ALTER TABLE ... ALTER CONSTRAINT), give it a comment of your own, and run it again`
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

/** A key and what it is to become. */
export interface Aim {
  readonly key: Catalog.Key
  readonly target: Target.Target
  readonly version: number
  /** Whether the role is a superuser's. */
  readonly superuser: boolean
}

/** What to do next. `current` is the snapshot of the key that has the original's name now. */
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
  readonly change: Steps.Change
  readonly current: Snapshot.Snapshot
  /** What is left to do before the swap; what is first in it is done next. */
  readonly todo: Todo
}

/** What a change has to do before its swap, in this order. */
export interface Todo {
  /**
   * What a temporary key needs so that deletes and key updates follow the original; undefined if
   * they do.
   */
  readonly order: Disorder | undefined
  /** Constraints of ours that are not the right ones. */
  readonly drop: ReadonlyArray<Part>
  /** Statements of {@link Steps.reindex}. */
  readonly reindex: ReadonlyArray<string>
  readonly add: ReadonlyArray<Catalog.Relation>
  readonly validate: ReadonlyArray<Part>
  /** Whether the partitions' parts are to become one key. */
  readonly attach: boolean
}

/** A temporary key that does what the original would not do. */
export interface Disorder {
  readonly step: Steps.Step
  /** Which action deletes follow as long as the step is not done. */
  readonly live: Action.Action
}

/** A constraint to validate or to drop. */
export interface Part {
  readonly at: Catalog.Relation
  readonly name: string
}

/**
 * What to do next, read from the catalogs: undefined if the key is what it is to be. Locks nothing.
 * `remembered` is the original as this run has seen it, in case that somebody removes the comment
 * that records it. `seen` is what was read of the key just now, for all keys of a plan at once.
 */
export const decide = (
  session: Session,
  task: Aim,
  remembered?: Snapshot.Snapshot,
  seen?: Observation.Observation
): Effect.Effect<
  Next | undefined,
  DatabaseError | Disappeared | RecordLost | RecordUnreadable | OwnerNeeded
> =>
  Effect.gen(function* () {
    const { key: was, superuser, target, version } = task
    const { current, keys: found } = seen ?? (yield* Observation.read(session, was))
    const key = found.find(({ name }) => name === was.name)
    if (key === undefined || current === undefined) {
      return yield* new Disappeared({ constraint: Catalog.nameOf(was) })
    }
    const aside = found.find(({ name }) => name === Names.aside(key.name))
    const whole = found.find(({ name }) => name === Names.temporary(key.name))
    // Once it is attached a key that was built leafwise is one key.
    const leafwise = whole === undefined && Steps.isLeafwise({ key, version })
    const places = leafwise ? Steps.places({ key, version }) : [key.referencing]
    const keys = leafwise
      ? yield* Catalog.read(session, {
          tables: places.map(({ oid }) => oid),
          names: [Names.temporary(key.name)]
        })
      : found
    const temporaryAt = (place: Catalog.Relation) =>
      keys.find(
        ({ name, referencing }) => name === Names.temporary(key.name) && referencing.oid === place.oid
      )
    const temporaries = places.flatMap((place) => temporaryAt(place) ?? [])
    const recorded = Marker.decode((temporaries[0] ?? key).comment)?.original
    const next = (
      does: Next["does"],
      original: Snapshot.Snapshot,
      to: Target.Target,
      todo: Todo = nothing
    ): Next => ({ does, change: { key, target: to, original, version, superuser }, current, todo })

    const kept =
      remembered === undefined || remembered[0].oid === current[0].oid
        ? undefined
        : Snapshot.withComment(remembered, key.comment)
    const record = recorded ?? kept
    const isUnreadable = Marker.isOurs(key.comment) && Marker.decode(key.comment) === undefined
    if (aside === undefined && isUnreadable && kept === undefined) {
      return yield* new RecordUnreadable({ constraint: Catalog.nameOf(key) })
    }
    if (aside !== undefined) {
      if (recorded === undefined && !fits(key, aside)) {
        // Somebody dropped the new key and made one of that name: the original has no successor.
        const drop = [{ at: key.referencing, name: aside.name }]
        return next("drop-temporary", current, target, { ...nothing, drop })
      }
      return next("finish", yield* steppedAside(session, key, aside, current, record), Target.of(key))
    }
    if (temporaries.length === 0) {
      const unsettled = recorded ?? (key.initiallyDeferred ? kept : undefined)
      if (unsettled !== undefined && Steps.needsSettling(unsettled)) {
        return next("settle", Snapshot.withModeOf(unsettled, current), Target.of(key))
      }
      if (Target.equals(Target.of(key), target)) return undefined
    }
    // The names of the original's triggers may have been exchanged already; everything else it may
    // have gained since counts as it is now.
    const original = recorded === undefined ? current : Snapshot.withTriggerNames(current, recorded)
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
        .map((at) => ({ at, name: Names.temporary(key.name) }))
    ].filter(({ at }) => key.validated || isValidAt(current, at))
    const order =
      standing === undefined || isBeyond
        ? undefined
        : yield* disorder(session, next("order", original, target).change, places, standing, temporaries[0])
    const todo: Todo = {
      order,
      drop: wrong.map(({ name, referencing }) => ({ at: referencing, name })),
      reindex: add.length === 0 ? [] : yield* CompetingIndexes.statements(session, key),
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

/** Whether triggers of a role are on the referenced table. */
export const isOfReferenced = (role: Snapshot.Role) => role === "delete" || role === "update"

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const nothing: Todo = { order: undefined, drop: [], reindex: [], add: [], validate: [], attach: false }

/** The original that stepped aside, as it was before that. */
const steppedAside = (
  session: Session,
  key: Catalog.Key,
  aside: Catalog.Key,
  current: Snapshot.Snapshot,
  record: Snapshot.Snapshot | undefined
): Effect.Effect<Snapshot.Snapshot, DatabaseError | Disappeared | RecordLost | OwnerNeeded> =>
  Effect.gen(function* () {
    if (!key.referenced.owned) return yield* ownerNeeded(key)
    const stepped = yield* Snapshot.read(session, key.referencing.oid, aside.name)
    if (stepped === undefined) return yield* new Disappeared({ constraint: Catalog.nameOf(aside) })
    if (record !== undefined) return Snapshot.ofRecordedAside(stepped, record, current)
    // A partition that was detached has no record of its own.
    const before = Snapshot.ofAside(stepped, current)
    return before === undefined
      ? yield* new RecordLost({ constraint: Catalog.nameOf(key), aside: Catalog.nameOf(aside) })
      : Snapshot.reconcile(before, current)
  })

/** How the temporary key stands to the original. */
const look = (session: Session, key: Catalog.Key, isCut: boolean) =>
  session
    .query<{ readonly standing: string }>(
      `SELECT ${Triggers.standing(Steps.placeOf(key), Steps.temporaryOf(key, isCut))}::text AS standing`
    )
    .pipe(Effect.map(([row]) => JSON.parse(row?.standing ?? "null") as Triggers.Standing))

/**
 * Whether the fallback of the swap has begun, and the new key's triggers have the names of the
 * original's.
 */
const haveExchanged = (session: Session, original: Snapshot.Snapshot, temporary: Catalog.Key | undefined) =>
  temporary === undefined
    ? Effect.succeed(false)
    : Effect.map(
        Snapshot.read(session, temporary.referencing.oid, temporary.name),
        (snapshot) => snapshot !== undefined && Snapshot.haveExchanged(original, snapshot)
      )

const ownerNeeded = (key: Catalog.Key) =>
  new OwnerNeeded({
    constraint: Catalog.nameOf(key),
    table: label(key.referenced.schema, key.referenced.name)
  })

/**
 * What has to be done, on one table, so that the temporary key does nothing that the original would
 * not do.
 */
const disorder = (
  session: Session,
  change: Steps.Change,
  places: ReadonlyArray<Catalog.Relation>,
  { acts, late }: Triggers.Standing,
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
    const step = Steps.order(change, {
      table: table ?? key.referenced,
      successor:
        isCut && table !== undefined && table.oid !== key.referenced.oid
          ? { ...Steps.placeOf(key, temporary.name), table: table.oid }
          : Steps.temporaryOf(key, isCut),
      roles: Steps.roles
    })
    const live = Overlap.live(
      key,
      Target.of(temporary),
      late.some(({ role }) => role === "delete") ? "new" : "original"
    )
    return { step, live }
  })

/** Whether one partition of a NOT VALID key is valid all the same (18 and later). */
const isValidAt = (snapshot: Snapshot.Snapshot, at: Catalog.Relation) =>
  snapshot.some(
    ({ constraint }) => Number(constraint["conrelid"]) === at.oid && constraint["convalidated"] === true
  )

/** The partitions of a key's table that have rows. */
const leaves = ({ referencing }: Catalog.Key) => referencing.partitions.filter(({ kind }) => kind !== "p")

/** The parts of a key that are not valid yet, its partitions' first (18 and later). */
const unchecked = (session: Session, key: Catalog.Key): Effect.Effect<ReadonlyArray<Part>, DatabaseError> =>
  Effect.map(
    key.referencing.kind === "p"
      ? Snapshot.read(session, key.referencing.oid, key.name)
      : Effect.succeed(undefined),
    (snapshot) => [
      ...(snapshot ?? []).flatMap(({ constraint }): ReadonlyArray<Part> => {
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
