/** list, plan, rebuild, undo, history and check over a way to open sessions. The public face is ForeignKey.ts. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import type * as Action from "./Action.js"
import type * as Blocker from "./Blocker.js"
import * as Catalog from "./Catalog.js"
import type { StepName } from "./Change.js"
import * as Consequence from "./Consequence.js"
import * as Detector from "./Detector.js"
import type * as Exclusive from "./Exclusive.js"
import * as Fidelity from "./Fidelity.js"
import * as FiringOrder from "./FiringOrder.js"
import * as Halfway from "./Halfway.js"
import * as Index from "./Index.js"
import * as Ledger from "./Ledger.js"
import * as Lock from "./Lock.js"
import * as Obstacle from "./Obstacle.js"
import * as Orphan from "./Orphan.js"
import * as Overlap from "./Overlap.js"
import * as Plan from "./Plan.js"
import * as Rebuild from "./Rebuild.js"
import * as Rehearsal from "./Rehearsal.js"
import * as Result from "./Result.js"
import * as Selection from "./Selection.js"
import * as Selectors from "./Selectors.js"
import * as Sessions from "./Sessions.js"
import * as Settings from "./Settings.js"
import { label } from "./Sql.js"
import * as Target from "./Target.js"
import * as Try from "./Try.js"
import * as Undo from "./Undo.js"
import * as Warning from "./Warning.js"
import * as Work from "./Work.js"
import type { Working } from "./Working.js"

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
  /** What is wrong with it, or keeps it from acting, in words. */
  readonly problems: ReadonlyArray<string>
}

/** Which keys a run is about. */
interface Common {
  readonly selectors: Selectors.Selectors
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
  /**
   * Runs the steps on empty copies of the tables first, in a transaction that is rolled back, and refuses what the server refuses there. Default true. What an event
   * trigger does outside of the transaction it does for the copies too.
   */
  readonly rehearse?: boolean | undefined
}

/** What to change, and to what. */
export interface PlanOptions extends Common {
  readonly onDelete: Action.Action
  /** Limits SET NULL or SET DEFAULT to these columns (PostgreSQL 15 and later). */
  readonly onDeleteColumns?: ReadonlyArray<string> | undefined
  /**
   * The table in which the changes are recorded for {@link undo}; it is created with the first one. Default: `promptgrimoire_db_foreign_key_changes` in the schema that
   * CREATE TABLE would use. False: nothing is recorded.
   */
  readonly ledger?: Selectors.TableSelector | false | undefined
  /** How long a plan may take to count rows without a referenced row, for each key. Default 5 seconds. */
  readonly orphanTimeout?: Duration.DurationInput | undefined
}

/** How hard to try. */
export interface Effort {
  /**
   * The longest that others wait because of one try of a step that stops them: for its locks and its work together, COMMIT aside. Of this, up to 0.8 is for the locks, and
   * never more than 0.6 of the server's deadlock_timeout. Default 250 ms.
   */
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
  /**
   * How often, for each key, to go on by itself after the connection was lost: the server restarted, the network failed. Trying to connect counts against the budget.
   * A session that was ended with pg_terminate_backend ends the run. Default 5; 0 means never.
   */
  readonly reconnects?: number | undefined
  /** How often to tell that a step still works which takes long, with `Working`. Default 10 seconds. */
  readonly reportEvery?: Duration.DurationInput | undefined
  readonly onProgress?: ((event: Progress) => Effect.Effect<void>) | undefined
}

/** How to change it. */
export interface RebuildOptions extends PlanOptions, Effort {}

/** What to undo, and how. */
export interface UndoOptions extends Common, Effort {
  /** The changes to undo, by their numbers in the ledger. Default: the last one of each key. */
  readonly changes?: ReadonlyArray<number> | undefined
  /** The table in which the changes are recorded. Default as in {@link PlanOptions}. */
  readonly ledger?: Selectors.TableSelector | undefined
}

/** Which changes of the ledger. */
export interface HistoryOptions {
  readonly selectors?: Selectors.Selectors | undefined
  /** The table in which the changes are recorded. Default as in {@link PlanOptions}. */
  readonly ledger?: Selectors.TableSelector | undefined
}

/** A key that does not do what its definition says, or never acts because its definition says so. */
export interface CheckedKey {
  /** schema.table.name */
  readonly constraint: string
  /** How it differs from its definition; empty if it does not. */
  readonly problems: ReadonlyArray<string>
  /** What its definition keeps it from doing: NOT ENFORCED (18 and later). */
  readonly notes: ReadonlyArray<string>
}

/** What {@link plan} found. */
export interface PlanResult {
  /** What the plan was made from; when it is run, the keys must still be so. */
  readonly madeFrom: {
    /** PostgreSQL's version, as `server_version` has it. */
    readonly version: string
    readonly database: string
    /** When the catalogs were read (ISO 8601, by the server's clock). */
    readonly at: string
  }
  readonly steps: ReadonlyArray<Plan.PlannedStep>
  readonly unchanged: ReadonlyArray<string>
  readonly refused: ReadonlyArray<Result.Rejected>
  readonly warnings: ReadonlyArray<Warning.Warned>
}

/** What happens during {@link rebuild}. Times in milliseconds. */
export type Progress =
  | {
      readonly _tag: "Started"
      readonly constraint: string
      readonly from: Target.Target
      readonly to: Target.Target
    }
  /** The change is written down, in this table. */
  | { readonly _tag: "Recorded"; readonly constraint: string; readonly ledger: string }
  | { readonly _tag: "StepStarted"; readonly constraint: string; readonly step: StepName }
  | {
      readonly _tag: "StepDone"
      readonly constraint: string
      readonly step: StepName
      readonly durationMs: number
    }
  /** The step goes on, and takes long: `validate`, or the build of an index. */
  | ({ readonly _tag: "Working"; readonly constraint: string; readonly step: StepName } & Working)
  /**
   * The step is not done yet. It has no locks, `blockers` hold them; or, if `slow` is not 0, so many tries had them and needed longer than `lockTimeoutMs`, and so were rolled back.
   */
  | {
      readonly _tag: "Waiting"
      readonly constraint: string
      readonly step: StepName
      readonly tries: number
      readonly slow: number
      readonly lockTimeoutMs: number
      readonly elapsedMs: number
      readonly blockers: ReadonlyArray<Blocker.Blocker>
    }
  /** The connection was lost, for the n-th time, for this reason; the change goes on when it is back. */
  | {
      readonly _tag: "Reconnecting"
      readonly constraint: string
      readonly losses: number
      readonly code: string
    }
  | { readonly _tag: "IndexBuilt"; readonly constraint: string; readonly index: string }
  /**
   * Both constraints are there; deletes follow this action until that step is done, but for the exceptions, which are sentences. It is the original's action, unless that is INITIALLY DEFERRED,
   * or an interrupted change left something else, which step `order` puts right.
   */
  | ({ readonly _tag: "Overlap"; readonly constraint: string } & Overlap.Overlap)
  | {
      readonly _tag: "Finished"
      readonly constraint: string
      readonly outcome: "rebuilt" | "unchanged" | "refused" | "failed"
      readonly durationMs: number
      /** The part of the run's result that is about this key. What a run that is interrupted has done is what it has told so. */
      readonly result: Result.RebuildResult
    }

/** Lists foreign keys. */
export const list = (
  open: Sessions.Open,
  selectors: Selectors.Selectors = {}
): Effect.Effect<ReadonlyArray<ForeignKeyInfo>, DatabaseError | Selection.NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* Settings.prepared(open, "list foreign keys")
      const { chosen, faultsOf } = yield* examined(session, selectors)
      const indexes = yield* Index.supporting(session, chosen)
      return chosen.map((key) => info(key, faultsOf(key), indexes.get(key.oid) ?? null))
    })
  )

/** What {@link rebuild} would do. Takes no lock above ACCESS SHARE. */
export const plan = (
  open: Sessions.Open,
  options: PlanOptions
): Effect.Effect<PlanResult, DatabaseError | Selection.NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* Settings.prepared(open, "plan foreign keys")
      const ledger = yield* ledgerOf(session, options)
      const rehearse =
        options.rehearse === false ? Rehearsal.none : yield* Rehearsal.make((use) => use(session))
      const { keys, selected } = yield* Selection.select(session, options, ledger, aimOf(options), {
        whole: true
      })
      const tasks = yield* Effect.forEach(selected, (task) =>
        Selection.isDone(task) || task.refusals.length > 0
          ? Effect.succeed(task)
          : Effect.map(rehearse(task), (verdict) => ({ ...task, ...verdict }))
      )
      const tables = yield* Consequence.facts(session, tablesOf(keys))
      const willing = tasks.filter((task) => !Selection.isDone(task) && task.refusals.length === 0)
      const changing = new Map(willing.map(({ key, target }) => [key.oid, target]))
      const after = keys.map((key): Catalog.Key => {
        const target = changing.get(key.oid)
        return target === undefined
          ? key
          : { ...key, onDelete: target.action, onDeleteColumns: target.columns }
      })
      const built = new Set(options.createIndexes === true ? changing.keys() : [])
      const madeFrom = yield* source(session)
      // What `rebuild` would ask for without options of its own.
      const limits = Try.limits(undefined, yield* Settings.deadlockTimeout(session))
      const changed = willing.map(({ key }) => key)
      const ofTable = Selection.grouped(keys, ({ referencing }) => referencing.oid)
      const vectors = yield* Fidelity.readAll(
        session,
        changed.map(({ oid }) => oid)
      )
      const indexes = yield* Index.supporting(session, keys)
      const consequences = Consequence.warnings(
        after,
        tables,
        ({ oid }) => indexes.has(oid) || built.has(oid)
      )
      const obstacles = yield* Obstacle.warnings(session, changed)
      const orphans = yield* Orphan.count(
        session,
        changed.filter(hasNoOrphans),
        Duration.toMillis(Duration.decode(options.orphanTimeout ?? "5 seconds"))
      )
      const steps: Array<Plan.PlannedStep> = []
      const unchanged: Array<string> = []
      const refused: Array<Result.Rejected> = []
      const warnings: Array<Warning.Warned> = []
      for (const task of tasks) {
        const { key, refusals, target } = task
        const constraint = Catalog.nameOf(key)
        if (Selection.isDone(task)) unchanged.push(constraint)
        else if (refusals.length > 0) refused.push(Work.rejection(task))
        else {
          const next = yield* Effect.either(
            Rebuild.decide(session, task, undefined, {
              keys: ofTable(key.referencing.oid),
              current: vectors.get(key.oid)
            })
          )
          if (next._tag === "Left") {
            if (next.left._tag === "SqlError") return yield* next.left
            refused.push({ constraint, code: next.left._tag, reason: next.left.message })
            continue
          }
          const missing = options.createIndexes === true ? yield* Index.missing(session, key) : []
          const recorded =
            ledger === undefined || task.record === undefined
              ? { before: [], after: [] }
              : Plan.recorded(key, ledger, task.record, steps)
          steps.push(
            ...recorded.before,
            ...Plan.indexSteps(key, missing, limits),
            ...(next.right === undefined ? [] : Plan.steps(next.right, limits)),
            ...recorded.after
          )
          const found = [
            ...Warning.coded("interrupted", interruption(task, next.right)),
            ...task.warnings,
            ...Warning.notEnforced(key),
            ...(next.right === undefined
              ? []
              : [
                  ...Warning.coded("acts-early", Overlap.exceptions(key, target, task.superuser)),
                  ...Warning.coded("deferred", Overlap.warnings(key))
                ]),
            ...consequences(key, target),
            ...Warning.coded("firing-order", yield* FiringOrder.warnings(session, key, task.version)),
            ...Warning.coded("in-the-way", obstacles(key)),
            ...(hasNoOrphans(key) ? orphanWarnings(key, orphans.get(key.oid)) : [])
          ]
          warnings.push(...Warning.of(key, found))
        }
      }
      return { madeFrom, steps, unchanged, refused, warnings }
    })
  )

/** What keeps keys from doing what their definition says, and those whose definition lets them do nothing. */
export const check = (
  open: Sessions.Open,
  selectors: Selectors.Selectors = {}
): Effect.Effect<ReadonlyArray<CheckedKey>, DatabaseError | Selection.NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* Settings.prepared(open, "check foreign keys")
      const { chosen, faultsOf } = yield* examined(session, selectors)
      return chosen
        .map((key) => ({
          constraint: Catalog.nameOf(key),
          problems: faultsOf(key),
          notes: Warning.notEnforced(key).map(({ warning }) => warning)
        }))
        .filter(({ notes, problems }) => problems.length > 0 || notes.length > 0)
    })
  )

/** Changes foreign keys. */
export const rebuild = (
  open: Sessions.Open,
  options: RebuildOptions
): Effect.Effect<Result.RebuildResult, DatabaseError | Selection.NoMatch | Exclusive.Busy> =>
  alone(open, options, options, (session) => ledgerOf(session, options), aimOf(options))

/** Gives foreign keys the action that they had before. */
export const undo = (
  open: Sessions.Open,
  options: UndoOptions
): Effect.Effect<Result.RebuildResult, DatabaseError | Selection.NoMatch | Exclusive.Busy> =>
  alone(open, options, options, (session) => Ledger.open(session, options.ledger), Undo.aim(options))

/** The changes that were recorded, the oldest first. */
export const history = (
  open: Sessions.Open,
  { ledger, selectors = {} }: HistoryOptions
): Effect.Effect<ReadonlyArray<Ledger.Entry>, DatabaseError | Ledger.LedgerUnreadable> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* Settings.prepared(open, "list changes of foreign keys")
      const entries = yield* Ledger.history(yield* Ledger.open(session, ledger))
      return entries.filter(({ name, referencedSchema, referencedTable, schema, table }) =>
        Selectors.matches(selectors, {
          name,
          referencing: { schema, name: table },
          referenced: { schema: referencedSchema, name: referencedTable }
        })
      )
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const ledgerOf = (session: Session, { ledger }: PlanOptions) =>
  ledger === false ? Effect.succeed(undefined) : Ledger.open(session, ledger)

const aimOf =
  ({ onDelete, onDeleteColumns }: PlanOptions) =>
  (): Selection.Aim => ({
    target: { action: onDelete, columns: [...new Set(onDeleteColumns)] },
    undoes: undefined
  })

const source = (session: Session): Effect.Effect<PlanResult["madeFrom"], DatabaseError> =>
  Effect.map(
    session.query<PlanResult["madeFrom"]>(
      `SELECT pg_catalog.current_setting('server_version') AS version, pg_catalog.current_database()::text AS database,
        pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS at`
    ),
    ([row]) => row ?? { version: "unknown", database: "unknown", at: "unknown" }
  )

/** With the advisory lock that keeps other changes of this database out. */
const alone = (
  open: Sessions.Open,
  choice: Selection.Choice,
  effort: Effort,
  openLedger: (session: Session) => Effect.Effect<Ledger.Ledger | undefined, DatabaseError>,
  aim: (candidate: Selection.Candidate) => Selection.Aim
): Effect.Effect<Result.RebuildResult, DatabaseError | Selection.NoMatch | Exclusive.Busy> =>
  Effect.scoped(
    Effect.gen(function* () {
      const sessions = yield* Sessions.make(open, Duration.decode(effort.patience ?? "10 seconds"))
      const results = yield* Work.all({
        sessions,
        effort,
        rehearse:
          choice.rehearse === false
            ? Rehearsal.none
            : yield* Rehearsal.make((use) => sessions.working(({ session }) => use(session))),
        choose: (selectors = choice.selectors) =>
          Effect.gen(function* () {
            const session = yield* sessions.guard
            const ledger = yield* openLedger(session)
            const { selected } = yield* Selection.select(session, { ...choice, selectors }, ledger, aim)
            return { ledger, tasks: selected }
          })
      })
      return Result.combine(results)
    })
  )

/** The keys that selectors mean, and what is wrong with them. */
const examined = (session: Session, selectors: Selectors.Selectors) =>
  Effect.gen(function* () {
    const keys = yield* Catalog.read(session)
    const problemsOf = Selection.grouped(yield* Detector.read(session), ({ constraint }) => constraint)
    const originals = Halfway.originals(keys)
    const chosen = yield* Selection.among(
      selectors,
      keys.filter((key) => Halfway.isOriginal(key, originals))
    )
    return { chosen, faultsOf: (key: Catalog.Key) => faults(key, originals, problemsOf(key.oid)) }
  })

/** Faults of the key itself; a missing index is none. */
const faults = (
  key: Catalog.Key,
  originals: Halfway.Originals,
  problems: ReadonlyArray<Detector.Problem>
) => [
  ...problems.map(({ problem }) => problem),
  ...(key.enforced && !key.validated
    ? ["it is not valid: rows from before it was added were never checked"]
    : []),
  ...(Halfway.isLeftover(key, originals)
    ? ["it is left over from a change of a constraint that is gone"]
    : []),
  ...(Halfway.isHalfway(key, originals) ? ["a change of it was interrupted: run it again to finish it"] : [])
]

const info = (key: Catalog.Key, faults: ReadonlyArray<string>, index: string | null): ForeignKeyInfo => ({
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
  index,
  problems: [
    ...faults,
    ...Warning.notEnforced(key).map(({ warning }) => warning),
    ...(key.enforced && index === null ? ["no index on the referencing columns"] : [])
  ]
})

const tablesOf = (keys: ReadonlyArray<Catalog.Key>) => [
  ...new Set(
    keys.flatMap(({ referenced, referencing }) =>
      [referenced, referencing].flatMap((table) => Lock.withPartitions(table).map(({ oid }) => oid))
    )
  )
]

/** What the steps of a key do not say, if a change of it was interrupted. */
const interruption = ({ resumed, target }: Selection.Selected, next: Rebuild.Next | undefined) =>
  next !== undefined &&
  (next.does === "finish" || next.does === "settle") &&
  !Target.equals(next.change.target, target)
    ? [
        `a change of it to ${Target.words(next.change.target)} was interrupted after the new key took its place: these steps finish that, and then ${Target.words(
          target
        )} takes all the steps of a change`
      ]
    : resumed
      ? ["a change of it was interrupted: these are the steps that are left"]
      : []

/** Whether all rows of a key should have a referenced row. */
const hasNoOrphans = ({ enforced, validated }: Catalog.Key) => validated && enforced

const orphanWarnings = (
  key: Catalog.Key,
  orphans: Orphan.Orphans | undefined
): ReadonlyArray<Warning.Warning> => {
  if (!key.readable) {
    const [one, other] = [key.referenced, key.referencing].map(({ name, schema }) => label(schema, name))
    return Warning.coded("row-by-row", [
      `the role may not read all rows of ${one}: rows of ${other} without one there were not counted, and step validate looks up each row of ${other} by itself, which takes longer`
    ])
  }
  if (orphans !== undefined && orphans.count === 0) return []
  const hiding = [key.referenced, key.referencing].find(({ filtered }) => filtered)
  if (hiding !== undefined) {
    const table = label(hiding.schema, hiding.name)
    return Warning.coded("orphans", [
      `row security hides rows of ${table} from this role: rows without a referenced row were not counted${
        hiding === key.referenced ? `, and validation fails for rows that refer to hidden ones` : ""
      }`
    ])
  }
  return Warning.coded("orphans", [
    orphans === undefined
      ? "rows without a referenced row were not counted in the time given; validation will find them"
      : Orphan.describe(orphans)
  ])
}
