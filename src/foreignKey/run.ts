/**
 * list, plan, rebuild, undo, history and check over a way to open sessions. The public face is
 * ForeignKey.ts.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import * as Catalog from "../catalog/foreignKeys.js"
import * as Consequences from "./hazards/consequences.js"
import * as Integrity from "../catalog/integrity.js"
import type * as AdvisoryLock from "../catalog/advisoryLock.js"
import * as Snapshot from "./snapshot/snapshot.js"
import * as FiringOrder from "./hazards/firingOrder.js"
import * as Interrupted from "./snapshot/interrupted.js"
import * as Ledger from "./ledger/ledger.js"
import * as TableLocks from "../catalog/tableLocks.js"
import * as OldTransactions from "./hazards/oldTransactions.js"
import * as Orphans from "./hazards/orphans.js"
import * as Overlap from "./hazards/overlap.js"
import * as Plan from "./plan/plan.js"
import * as Rehearsal from "./apply/rehearsal.js"
import * as Result from "./result.js"
import * as Selection from "./plan/selection.js"
import * as Selectors from "../catalog/selectors.js"
import * as Sessions from "./apply/sessions.js"
import * as SessionSettings from "../catalog/sessionSettings.js"
import { label } from "../sql/identifiers.js"
import * as Target from "./snapshot/target.js"
import type * as Types from "./types.js"
import * as Limits from "./plan/limits.js"
import * as Undo from "./plan/undo.js"
import * as Warning from "./hazards/warning.js"
import * as Runner from "./apply/runner.js"
import * as NextStep from "./plan/nextStep.js"
import * as IndexSteps from "./steps/indexSteps.js"
import * as SupportingIndexes from "../catalog/supportingIndexes.js"

/** Lists foreign keys. */
export const list = (
  open: Sessions.Open,
  selectors: Selectors.Selectors = {}
): Effect.Effect<ReadonlyArray<Types.ForeignKeyInfo>, DatabaseError | Selection.NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* SessionSettings.prepared(open, "list foreign keys")
      const { chosen, faultsOf } = yield* examined(session, selectors)
      const indexes = yield* SupportingIndexes.read(session, chosen)
      return chosen.map((key) => info(key, faultsOf(key), indexes.get(key.oid) ?? null))
    })
  )

/** What {@link rebuild} would do. Takes no lock above ACCESS SHARE. */
export const plan = (
  open: Sessions.Open,
  options: Types.PlanOptions
): Effect.Effect<Types.PlanResult, DatabaseError | Selection.NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* SessionSettings.prepared(open, "plan foreign keys")
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
      const tables = yield* Consequences.facts(session, tablesOf(keys))
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
      const limits = Limits.limits(undefined, yield* SessionSettings.deadlockTimeout(session))
      const changed = willing.map(({ key }) => key)
      const ofTable = Selection.grouped(keys, ({ referencing }) => referencing.oid)
      const snapshots = yield* Snapshot.readAll(
        session,
        changed.map(({ oid }) => oid)
      )
      const indexes = yield* SupportingIndexes.read(session, keys)
      const consequences = Consequences.warnings(
        after,
        tables,
        ({ oid }) => indexes.has(oid) || built.has(oid)
      )
      const obstacles = yield* OldTransactions.warnings(session, changed)
      const orphans = yield* Orphans.count(
        session,
        changed.filter(hasNoOrphans),
        Duration.toMillis(Duration.decode(options.orphanTimeout ?? "5 seconds"))
      )
      const steps: Array<Types.PlannedStep> = []
      const unchanged: Array<string> = []
      const refused: Array<Result.Rejected> = []
      const warnings: Array<Warning.Warned> = []
      for (const task of tasks) {
        const { key, refusals, target } = task
        const constraint = Catalog.nameOf(key)
        if (Selection.isDone(task)) unchanged.push(constraint)
        else if (refusals.length > 0) refused.push(Runner.rejection(task))
        else {
          const next = yield* Effect.either(
            NextStep.decide(session, task, undefined, {
              keys: ofTable(key.referencing.oid),
              current: snapshots.get(key.oid)
            })
          )
          if (next._tag === "Left") {
            if (next.left._tag === "SqlError") return yield* next.left
            refused.push({ constraint, code: next.left._tag, reason: next.left.message })
            continue
          }
          const missing = options.createIndexes === true ? yield* IndexSteps.missing(session, key) : []
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

/**
 * What keeps keys from doing what their definition says, and those whose definition lets them do
 * nothing.
 */
export const check = (
  open: Sessions.Open,
  selectors: Selectors.Selectors = {}
): Effect.Effect<ReadonlyArray<Types.CheckedKey>, DatabaseError | Selection.NoMatch> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* SessionSettings.prepared(open, "check foreign keys")
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
  options: Types.RebuildOptions
): Effect.Effect<Result.RebuildResult, DatabaseError | Selection.NoMatch | AdvisoryLock.Busy> =>
  alone(open, options, options, (session) => ledgerOf(session, options), aimOf(options))

/** Gives foreign keys the action that they had before. */
export const undo = (
  open: Sessions.Open,
  options: Types.UndoOptions
): Effect.Effect<Result.RebuildResult, DatabaseError | Selection.NoMatch | AdvisoryLock.Busy> =>
  alone(open, options, options, (session) => Ledger.open(session, options.ledger), Undo.aim(options))

/** The changes that were recorded, the oldest first. */
export const history = (
  open: Sessions.Open,
  { ledger, selectors = {} }: Types.HistoryOptions
): Effect.Effect<ReadonlyArray<Ledger.Entry>, DatabaseError | Ledger.LedgerUnreadable> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* SessionSettings.prepared(open, "list changes of foreign keys")
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

const ledgerOf = (session: Session, { ledger }: Types.PlanOptions) =>
  ledger === false ? Effect.succeed(undefined) : Ledger.open(session, ledger)

const aimOf =
  ({ onDelete, onDeleteColumns }: Types.PlanOptions) =>
  (): Selection.Aim => ({
    target: { action: onDelete, columns: [...new Set(onDeleteColumns)] },
    undoes: undefined
  })

const source = (session: Session): Effect.Effect<Types.PlanResult["madeFrom"], DatabaseError> =>
  Effect.map(
    session.query<Types.PlanResult["madeFrom"]>(
      `SELECT pg_catalog.current_setting('server_version') AS version, pg_catalog.current_database()::text AS database,
        pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS at`
    ),
    ([row]) => row ?? { version: "unknown", database: "unknown", at: "unknown" }
  )

/** With the advisory lock that keeps other changes of this database out. */
const alone = (
  open: Sessions.Open,
  choice: Selection.Choice,
  effort: Types.Effort,
  openLedger: (session: Session) => Effect.Effect<Ledger.Ledger | undefined, DatabaseError>,
  aim: (candidate: Selection.Candidate) => Selection.Aim
): Effect.Effect<Result.RebuildResult, DatabaseError | Selection.NoMatch | AdvisoryLock.Busy> =>
  Effect.scoped(
    Effect.gen(function* () {
      const sessions = yield* Sessions.make(open, Duration.decode(effort.patience ?? "10 seconds"))
      const results = yield* Runner.all({
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
    const problemsOf = Selection.grouped(yield* Integrity.read(session), ({ constraint }) => constraint)
    const originals = Interrupted.originals(keys)
    const chosen = yield* Selection.among(
      selectors,
      keys.filter((key) => Interrupted.isOriginal(key, originals))
    )
    return { chosen, faultsOf: (key: Catalog.Key) => faults(key, originals, problemsOf(key.oid)) }
  })

/** Faults of the key itself; a missing index is none. */
const faults = (
  key: Catalog.Key,
  originals: Interrupted.Originals,
  problems: ReadonlyArray<Integrity.Problem>
) => [
  ...problems.map(({ problem }) => problem),
  ...(key.enforced && !key.validated
    ? ["it is not valid: rows from before it was added were never checked"]
    : []),
  ...(Interrupted.isLeftover(key, originals)
    ? ["it is left over from a change of a constraint that is gone"]
    : []),
  ...(Interrupted.isInterrupted(key, originals)
    ? ["a change of it was interrupted: run it again to finish it"]
    : [])
]

const info = (
  key: Catalog.Key,
  faults: ReadonlyArray<string>,
  index: string | null
): Types.ForeignKeyInfo => ({
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
      [referenced, referencing].flatMap((table) => TableLocks.withPartitions(table).map(({ oid }) => oid))
    )
  )
]

/** What the steps of a key do not say, if a change of it was interrupted. */
const interruption = ({ resumed, target }: Selection.Selected, next: NextStep.Next | undefined) =>
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
  orphans: Orphans.Orphans | undefined
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
      : Orphans.describe(orphans)
  ])
}
