/** Which keys a run is about, what each of them is to become, and what speaks against it. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Integrity from "../../catalog/integrity.js"
import * as Encoding from "../../catalog/encoding.js"
import * as Snapshot from "../snapshot/snapshot.js"
import * as FiringOrder from "../hazards/firingOrder.js"
import * as Interrupted from "../snapshot/interrupted.js"
import * as Ledger from "../ledger/ledger.js"
import * as Marker from "../snapshot/marker.js"
import * as Names from "../snapshot/names.js"
import * as Privileges from "../hazards/privileges.js"
import * as Refusals from "../hazards/refusals.js"
import * as Selectors from "../../catalog/selectors.js"
import * as TableKinds from "../hazards/tableKinds.js"
import * as Target from "../snapshot/target.js"
import type { Warning } from "../hazards/warning.js"
import * as IndexSteps from "../steps/indexSteps.js"

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

/** A key that was chosen. */
export interface Selected {
  readonly key: Catalog.Key
  readonly target: Target.Target
  /** `server_version_num`. */
  readonly version: number
  /** Whether the role is a superuser's. */
  readonly superuser: boolean
  readonly refusals: ReadonlyArray<Refusals.Refusal>
  readonly kind: TableKinds.Kind
  /** What its rehearsal has to say. */
  readonly warnings: ReadonlyArray<Warning>
  /** Whether it is known what the key is to become. */
  readonly hasAim: boolean
  /** Whether a change of it was begun and not finished, as the catalogs show it. */
  readonly interrupted: boolean
  /** Whether a change of it was begun and not finished, as the catalogs or the ledger show it. */
  readonly resumed: boolean
  /**
   * The action before the change, also if the change was interrupted after the new key took the
   * name.
   */
  readonly previous: Target.Target
  /** What the ledger is to be told; undefined to go without. */
  readonly record: Ledger.Record | undefined
}

/** What a key is to become, or why that cannot be said. */
export type Aim =
  | { readonly target: Target.Target; readonly undoes: number | undefined }
  | { readonly refusal: Refusals.Refusal }

/** What is known of a key when its aim is chosen. */
export interface Candidate {
  readonly key: Catalog.Key
  readonly interrupted: boolean
  /** The action before the change that the catalogs show; that of the key if they show none. */
  readonly recorded: Target.Target
  readonly ledger: Ledger.Ledger | undefined
  /** Its changes in the ledger, the latest last. */
  readonly entries: ReadonlyArray<Ledger.Entry>
}

/** How keys are chosen. */
export interface Choice {
  readonly selectors: Selectors.Selectors
  /** The keys of these changes of the ledger only. */
  readonly changes?: ReadonlyArray<number> | undefined
  readonly allowRowMovement?: boolean | undefined
  /** Whether indexes are built where they are missing. */
  readonly createIndexes?: boolean | undefined
  /** Whether changes are rehearsed; they are unless this is false. */
  readonly rehearse?: boolean | undefined
}

/** Those of the keys that selectors mean. */
export const among = (
  selectors: Selectors.Selectors,
  keys: ReadonlyArray<Catalog.Key>
): Effect.Effect<ReadonlyArray<Catalog.Key>, NoMatch> =>
  Effect.suspend(() => {
    const chosen = keys.filter((key) => Selectors.matches(selectors, key))
    const unmatched = Selectors.unmatched(selectors, keys)
    return unmatched.length > 0 || (chosen.length === 0 && !Selectors.isAll(selectors))
      ? new NoMatch({ unmatched })
      : Effect.succeed(chosen)
  })

/** The keys that were chosen, and those that were read for that. */
export interface Selection {
  readonly selected: ReadonlyArray<Selected>
  readonly keys: ReadonlyArray<Catalog.Key>
}

/**
 * The keys that are meant, each with its aim. What is asked of the server is asked for all of them
 * at once, and of the other keys of the database nothing but their names, unless a change of one of
 * them was interrupted. `whole`: all keys of the database are read.
 */
export const select = (
  session: Session,
  choice: Choice,
  ledger: Ledger.Ledger | undefined,
  aim: (candidate: Candidate) => Aim,
  { whole = false }: { readonly whole?: boolean } = {}
): Effect.Effect<Selection, DatabaseError | NoMatch> =>
  Effect.gen(function* () {
    const { allowRowMovement, changes, createIndexes, selectors } = choice
    const version = yield* Catalog.serverVersion(session)
    const rights = yield* Refusals.rights(session)
    const entriesOf = (key: Catalog.Named) => (ledger === undefined ? [] : Ledger.of(ledger, key))
    const has = (change: number) => (key: Catalog.Named) => entriesOf(key).some(({ id }) => id === change)
    const isChosen = (key: Catalog.Named) =>
      Selectors.matches(selectors, key) &&
      (changes === undefined || changes.some((change) => has(change)(key)))
    const all = Selectors.isAll(selectors) && changes === undefined
    const narrow = whole || all ? undefined : yield* readChosen(session, isChosen)
    const keys = narrow?.keys ?? (yield* Catalog.read(session))
    const originalOf = Interrupted.originals(keys)
    const originals = keys.filter((key) => Interrupted.isOriginal(key, originalOf))
    const chosen = originals.filter(isChosen)
    const choices = narrow?.named ?? originals
    const unmatched = [
      ...Selectors.unmatched(selectors, choices),
      ...(changes ?? []).filter((change) => !choices.some(has(change))).map((change) => `change ${change}`)
    ]
    if (unmatched.length > 0 || (chosen.length === 0 && !all)) return yield* new NoMatch({ unmatched })
    const problems = yield* Integrity.read(
      session,
      chosen.map(({ oid }) => oid)
    )
    const kinds = yield* TableKinds.read(
      session,
      chosen.map(({ oid }) => oid)
    )
    const wanted = yield* Effect.forEach(chosen, (key) =>
      Effect.map(
        createIndexes === true ? IndexSteps.schemas(session, key) : Effect.succeed([]),
        (indexSchemas) => ({ key, indexSchemas })
      )
    )
    const missing = yield* Privileges.missing(session, wanted, version)
    const unreadable = (yield* Encoding.isUnknown(session))
      ? yield* unreadableNames(session, chosen, createIndexes === true)
      : undefined
    const misplaced = yield* FiringOrder.obstacles(session, chosen)
    const ofTable = grouped(keys, ({ referencing }) => referencing.oid)
    const problemsOf = grouped(problems, ({ constraint }) => constraint)
    const leftovers = grouped(
      keys.filter((key) => Interrupted.isLeftover(key, originalOf)),
      ({ referencing }) => referencing.oid
    )
    const selected = chosen.map((key): Selected => {
      const interrupted = Interrupted.isInterrupted(key, originalOf)
      const recorded = Marker.decode(key.comment)?.from ?? Target.of(key)
      const entries = entriesOf(key)
      // A key that went meanwhile has a likeness of its own.
      const kind = kinds.get(key.oid) ?? { typed: null, generated: [], likeness: String(key.oid) }
      const aimed = aim({ key, interrupted, recorded, ledger, entries })
      const target = "target" in aimed ? aimed.target : Target.of(key)
      const record =
        ledger === undefined || !("target" in aimed)
          ? undefined
          : Ledger.record(ledger, {
              key,
              target,
              undoes: aimed.undoes,
              interrupted,
              recorded,
              unfinished: Ledger.unfinished(ledger, key)
            })
      return {
        key,
        target,
        hasAim: "target" in aimed,
        version,
        superuser: rights.superuser,
        interrupted,
        resumed: interrupted || entries.some(({ finishedAt }) => finishedAt === null),
        record,
        previous: record?.from ?? recorded,
        warnings: [],
        kind,
        refusals: [
          ...("refusal" in aimed && ledger?.readable !== false ? [aimed.refusal] : []),
          ...Refusals.all({
            key,
            target,
            version,
            rights,
            missing: missing.get(key.oid) ?? [],
            unreadable: unreadable?.get(key.oid) ?? [],
            misplaced: interrupted ? undefined : misplaced.get(key.oid),
            kind,
            allowRowMovement: allowRowMovement ?? false,
            ledgerProblem: ledger?.problem,
            problems: problemsOf(key.oid),
            equals: Refusals.equalsOf(key, target, ofTable),
            leftovers: leftovers(key.referencing.oid)
          })
        ]
      }
    })
    return { selected, keys }
  })

/**
 * The names of all keys, and the keys of those tables and their partitions that have a chosen one.
 * Undefined where a change of some key was interrupted, whose original may be on another table,
 * and where names changed between the two readings.
 */
const readChosen = (session: Session, isChosen: (key: Catalog.Named) => boolean) =>
  Effect.gen(function* () {
    const named = yield* Catalog.names(session)
    if (named.some(({ name }) => Names.isOurs(name))) return undefined
    const chosen = named.filter(isChosen)
    const tables = chosen.map(({ referencing }) => referencing.oid)
    const keys = yield* Catalog.read(session, { tables: yield* Catalog.withPartitions(session, tables) })
    const identity = ({ name, referencing }: Catalog.Named) => `${referencing.oid} ${name}`
    const found = new Set(keys.filter(isChosen).map(identity))
    return found.size === chosen.length && chosen.every((key) => found.has(identity(key)))
      ? { named, keys }
      : undefined
  })

/** The names in everything that a change of a key names, as far as they cannot be read. */
const unreadableNames = (session: Session, keys: ReadonlyArray<Catalog.Key>, createIndexes: boolean) =>
  Effect.gen(function* () {
    const snapshots = yield* Snapshot.readAll(
      session,
      keys.map(({ oid }) => oid)
    )
    const named = yield* Effect.forEach(keys, (key) =>
      Effect.map(
        createIndexes ? IndexSteps.missing(session, key) : Effect.succeed([]),
        (steps) => [key.oid, Encoding.unreadable([key, snapshots.get(key.oid), steps])] as const
      )
    )
    return new Map(named)
  })

/** Looks things up by an OID. */
export const grouped = <A>(
  all: ReadonlyArray<A>,
  oidOf: (one: A) => number
): ((oid: number) => ReadonlyArray<A>) => {
  const groups = new Map<number, Array<A>>()
  for (const one of all) {
    const group = groups.get(oidOf(one))
    if (group === undefined) groups.set(oidOf(one), [one])
    else group.push(one)
  }
  return (oid) => groups.get(oid) ?? []
}

/** Whether there is nothing to do. */
export const isDone = ({ interrupted, hasAim, key, record, target }: Selected): boolean =>
  hasAim &&
  !interrupted &&
  Target.equals(Target.of(key), target) &&
  (record === undefined || (record.before.length === 0 && record.after === undefined))
