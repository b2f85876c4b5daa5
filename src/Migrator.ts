/**
 * Migrations: the files, the loaders and the ledger table of `@effect/sql`'s Migrator, under a
 * policy of our own.
 *
 * One migrator at a time (an advisory lock); each migration its own transaction together with its
 * ledger entry; locks waited for in short bounded tries; and nothing is ever skipped in silence:
 * what never ran below the latest, what was edited after it ran, what the files do not have, and
 * ids used twice are refused before anything is touched.
 */
import type * as SqlMigrator from "@effect/sql/Migrator"
import type { SqlError } from "@effect/sql/SqlError"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Database, type Provided } from "./Database.js"
import { type DatabaseError, reasonOf } from "./DatabaseError.js"
import * as ForeignKeyLedger from "./foreignKey/ledger/ledger.js"
import * as SchemaDrift from "./migrator/drift.js"
import { defaultTable } from "./migrator/defaultTable.js"
import * as Ledger from "./migrator/ledger.js"
import { differs } from "./migrator/loader.js"
import * as Migration from "./migrator/migration.js"
import { MigratorError } from "./migrator/migratorError.js"
import * as MigratorLock from "./migrator/lock.js"
import * as Scratch from "./migrator/scratch.js"
import * as DryRun from "./migrator/dryRun.js"
import * as Transaction from "./Transaction.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

export { fromDirectory, fromRecord } from "./migrator/loader.js"
export {
  define,
  type Definition,
  type Migration,
  type MigrationServices,
  type Step
} from "./migrator/migration.js"
export { isRefusal, MigratorError, type MigratorReason } from "./migrator/migratorError.js"
export type { Difference } from "./migrator/drift.js"
export type { Locked, Trial } from "./migrator/dryRun.js"
export { fromBabelGlob, fromGlob, type Loader } from "@effect/sql/Migrator"

/** How migrations run. */
export interface Options<R = never> {
  /**
   * Where the migrations come from: `fromDirectory`, or `@effect/sql`'s `fromRecord` and
   * `fromGlob`.
   */
  readonly loader: SqlMigrator.Loader<R>
  /** The ledger table; `effect_sql_migrations` when left out. */
  readonly table?: string | undefined
  /** `lock_timeout` of each try of a transactional migration; 2 seconds when left out. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /** How often a migration that could not get its locks is tried again; 10 times when left out. */
  readonly lockRetries?: number | undefined
  /** How long to wait for another migrator; one minute when left out. */
  readonly wait?: Duration.DurationInput | undefined
  /** Called as the work goes on. */
  readonly onProgress?: ((event: Progress) => Effect.Effect<void>) | undefined
}

/** What the migrator is doing. */
export type Progress =
  /** Another migrator is at work. */
  | { readonly _tag: "Waiting" }
  | {
      readonly _tag: "Started"
      readonly id: number
      readonly name: string
      readonly direction: "up" | "down"
    }
  | {
      readonly _tag: "Retrying"
      readonly id: number
      readonly name: string
      readonly attempt: number
      readonly reason: string
    }
  | { readonly _tag: "Finished"; readonly id: number; readonly name: string; readonly durationMs: number }

/** A migration that was run. */
export interface Ran {
  readonly id: number
  readonly name: string
  /** Milliseconds. */
  readonly durationMs: number
}

/** What a run did, and the latest migration that the database has now (0 for none). */
export interface Result {
  readonly applied: ReadonlyArray<Ran>
  readonly current: number
}

/** A migration as the files and the ledger know it. */
export interface MigrationStatus {
  readonly id: number
  readonly name: string
  /**
   * `edited`: it was applied, and is not what the files say now. `unknown`: the files do not have
   * it.
   */
  readonly state: "applied" | "pending" | "edited" | "unknown"
  readonly appliedAt: Date | null
}

/** The state of a database. */
export interface Status {
  readonly current: number
  readonly migrations: ReadonlyArray<MigrationStatus>
}

type Services<R> = R | Database | SqlClient.SqlClient | Migration.MigrationServices
type Failure = MigratorError | DatabaseError

// -----------------------------------------------------------------------------
// running
// -----------------------------------------------------------------------------

/** Applies what is pending, in the order of the ids. */
export const run = Effect.fn("Migrator.run")(function* <R = never>(
  options: Options<R>
): Effect.fn.Return<Result, Failure, Services<R>> {
  const all = yield* Migration.sources(options.loader)
  return yield* exclusively(
    options,
    Effect.fnUntraced(function* (ledger) {
      const pending = yield* pendingOf(all, yield* ledger.read)
      const loaded = yield* Effect.forEach(pending, (source) =>
        Effect.map(source.load, (definition) => ({ source, definition }))
      )
      const applied = yield* Effect.forEach(loaded, ({ definition, source }) =>
        apply(options, source, definition.online === true, "up", definition.up, ledger.add(source))
      )
      return { applied, current: yield* currentOf(ledger) }
    })
  )
})

/**
 * Undoes every migration above `to`, the latest first. Refused, before anything runs, if one of
 * them has no `down`.
 */
export const down = Effect.fn("Migrator.down")(function* <R = never>(
  options: Options<R> & { readonly to: number }
): Effect.fn.Return<Result, Failure, Services<R>> {
  const all = yield* Migration.sources(options.loader)
  yield* existing(all, options.to)
  return yield* exclusively(
    options,
    Effect.fnUntraced(function* (ledger) {
      const applied = yield* ledger.read
      yield* consistent(all, applied)
      const undo = applied.filter(({ id }) => id > options.to).toReversed()
      const steps = yield* Effect.forEach(
        undo,
        Effect.fnUntraced(function* ({ id, name }) {
          const source = yield* sourceOf(all, id, name)
          const { down: step, online } = yield* source.load
          if (step === undefined) {
            return yield* new MigratorError({
              reason: "Irreversible",
              id,
              name,
              detail: "it declares no `down`; restore a backup, or write a new migration that undoes it"
            })
          }
          return { source, step, online: online === true }
        })
      )
      const undone = yield* Effect.forEach(steps, ({ online, source, step }) =>
        apply(options, source, online, "down", step, ledger.remove(source.id))
      )
      return { applied: undone, current: yield* currentOf(ledger) }
    })
  )
})

/**
 * Writes into the ledger that every migration up to `id` was applied, and runs none: for a database
 * that has them.
 */
export const stamp = Effect.fn("Migrator.stamp")(function* <R = never>(
  options: Options<R> & { readonly id: number }
): Effect.fn.Return<Status, Failure, Services<R>> {
  const all = yield* Migration.sources(options.loader)
  yield* existing(all, options.id)
  return yield* exclusively(
    options,
    Effect.fnUntraced(function* (ledger) {
      const applied = yield* ledger.read
      yield* consistent(all, applied)
      const known = new Set(applied.map(({ id }) => id))
      yield* Transaction.run(
        Effect.forEach(
          all.filter(({ id }) => id <= options.id && !known.has(id)),
          (source) => ledger.add(source),
          { discard: true }
        ),
        { name: "migrate stamp" }
      ).pipe(Effect.mapError(ledgerFailure))
      return statusOf(all, yield* ledger.read)
    })
  )
})

/** What is applied and what is not. Takes no lock and changes nothing. */
export const status = Effect.fn("Migrator.status")(function* <R = never>(
  options: Options<R>
): Effect.fn.Return<Status, MigratorError, R | SqlClient.SqlClient> {
  const all = yield* Migration.sources(options.loader)
  const ledger = yield* Ledger.make(options.table ?? defaultTable)
  return statusOf(all, yield* ledger.read)
})

// -----------------------------------------------------------------------------
// trying
// -----------------------------------------------------------------------------

/** A migration that is pending, and what it would do. */
export interface PlannedMigration extends DryRun.Trial {
  readonly id: number
  readonly name: string
  /** Whether it manages its own transactions. */
  readonly online: boolean
}

/** What {@link run} would do. */
export interface Plan {
  readonly current: number
  readonly migrations: ReadonlyArray<PlannedMigration>
}

/** Where a schema is not what its migrations make. */
export interface Drift {
  readonly current: number
  readonly differences: ReadonlyArray<SchemaDrift.Difference>
}

/**
 * The statements and locks that {@link run} would take, without taking any above ACCESS SHARE: the
 * applied migrations and then the pending ones are run on a temporary database of the same server,
 * without rows. A migration whose statements follow from the rows that it finds shows less here.
 * Fails with `NoScratchDatabase` if the role may not create a database, and with `Failed` if a
 * migration does.
 */
export const plan = Effect.fn("Migrator.plan")(function* <R = never>(
  options: Options<R>
): Effect.fn.Return<Plan, Failure, R | Database | SqlClient.SqlClient> {
  const all = yield* Migration.sources(options.loader)
  const applied = yield* Effect.flatMap(Ledger.make(options.table ?? defaultTable), ({ read }) => read)
  const pending = yield* pendingOf(all, applied)
  const current = applied.at(-1)?.id ?? 0
  if (pending.length === 0) return { current, migrations: [] }
  const live = yield* Database
  const recorder = new DryRun.Recorder()
  const migrations = yield* onScratch(
    recorder.onStatement,
    Effect.gen(function* () {
      yield* repeat(all, applied)
      return yield* Effect.forEach(
        pending,
        Effect.fnUntraced(function* (source) {
          const { online = false, up } = yield* source.load
          let trial: DryRun.Trial | undefined
          const step = DryRun.recorded(recorder, live, up, online, (found) => {
            trial = found
          })
          yield* applyAgain(source, online, step)
          return { id: source.id, name: source.name, online, ...(trial ?? nothing) }
        })
      )
    })
  )
  return { current, migrations }
})

/**
 * Compares the schema with what its migrations make of an empty database, up to the last that is
 * applied: tables, columns, constraints, indexes, triggers, views, sequences, functions, types and
 * policies, in the schemas in which the migrations make something. Locks nothing; a temporary
 * database is created, as in {@link plan}.
 */
export const check = Effect.fn("Migrator.check")(function* <R = never>(
  options: Options<R>
): Effect.fn.Return<Drift, Failure, R | Database | SqlClient.SqlClient> {
  const table = options.table ?? defaultTable
  const all = yield* Migration.sources(options.loader)
  const applied = yield* Effect.flatMap(Ledger.make(table), ({ read }) => read)
  yield* pendingOf(all, applied)
  const objects = Effect.scoped(
    Effect.gen(function* () {
      const { session } = yield* Database
      return yield* SchemaDrift.read(yield* session, [
        ...[table, defaultTable].map((name) => name.split(".").at(-1) ?? name).flatMap(Ledger.tables),
        ForeignKeyLedger.defaultTable
      ])
    })
  )
  const expected = yield* onScratch(undefined, Effect.zipRight(repeat(all, applied), objects))
  return { current: applied.at(-1)?.id ?? 0, differences: SchemaDrift.compare(expected, yield* objects) }
})

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

/**
 * A Layer that applies what is pending when it is built: provide it where the program must find its
 * schema.
 */
export const layer = <R = never>(options: Options<R>): Layer.Layer<never, Failure, Services<R>> =>
  Layer.effectDiscard(run(options))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const exclusively = <A, E, R, R2>(
  options: Options<R2>,
  work: (ledger: Ledger.Ledger) => Effect.Effect<A, E, R>
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const table = options.table ?? defaultTable
      const ledger = yield* Ledger.make(table)
      const lock = yield* MigratorLock.acquire(
        table,
        options.wait ?? "1 minute",
        progress(options, { _tag: "Waiting" })
      )
      return yield* lock.guard(Effect.zipRight(ledger.create, work(ledger)))
    })
  )

const nothing: DryRun.Trial = { statements: [], locks: null, foreignKeys: [] }

/** Works on a temporary database instead of the live one. */
const onScratch = <A, E>(
  onStatement: ((text: string) => void) | undefined,
  work: Effect.Effect<A, E, Provided>
) =>
  Effect.scoped(
    Effect.flatMap(Scratch.make(onStatement), (layer) => Effect.provide(Effect.scoped(work), layer))
  )

/** Applies again, on a temporary database, what the live one has. */
const repeat = (all: ReadonlyArray<Migration.Source>, applied: ReadonlyArray<Ledger.Applied>) =>
  Effect.gen(function* () {
    yield* Effect.flatMap(Ledger.make(defaultTable), ({ create }) => create)
    yield* Effect.forEach(
      applied,
      Effect.fnUntraced(function* ({ id, name }) {
        const source = yield* sourceOf(all, id, name)
        const { online = false, up } = yield* source.load
        yield* applyAgain(source, online, up)
      }),
      { discard: true }
    )
  })

const applyAgain = (source: Migration.Source, online: boolean, step: Migration.Step) =>
  Effect.gen(function* () {
    const ledger = yield* Ledger.make(defaultTable)
    yield* apply({}, source, online, "up", step, ledger.add(source))
  }).pipe(
    Effect.mapError(
      (error) =>
        new MigratorError({
          reason: error.reason,
          id: source.id,
          name: source.name,
          detail: `tried on an empty temporary database: ${error.detail}`,
          cause: error.cause
        })
    )
  )

const progress = (options: Pick<Options, "onProgress">, event: Progress): Effect.Effect<void> =>
  options.onProgress?.(event) ?? Effect.void

/** How a migration is run. */
type Pacing = Pick<Options, "lockRetries" | "lockTimeout" | "onProgress">

/**
 * Runs one step of one migration, and its ledger entry with it, on a connection that is closed
 * afterwards: what a migration sets there is gone with it.
 */
const apply = Effect.fn("Migrator.apply")(function* (
  options: Pacing,
  { id, name }: Migration.Source,
  online: boolean,
  direction: "up" | "down",
  step: Migration.Step,
  entry: Effect.Effect<void, SqlError>
) {
  const started = yield* Clock.currentTimeMillis
  yield* progress(options, { _tag: "Started", id, name, direction })
  const transactional = (body: Effect.Effect<unknown, unknown, Migration.MigrationServices>) =>
    retryingLocks(
      options,
      { id, name },
      Transaction.run(body, {
        name: `migration ${id}_${name}, ${direction}`,
        statementTimeout: Duration.infinity,
        lockTimeout: options.lockTimeout ?? "2 seconds",
        expected: (error) => isLockProblem(reasonOf(error)?._tag)
      })
    )
  const { isolated } = yield* Database
  const alone = <A, E, R>(work: Effect.Effect<A, E, R>) =>
    Effect.scoped(Effect.flatMap(isolated, (own) => Effect.provide(work, own)))
  yield* (
    online
      ? Effect.zipRight(alone(step), transactional(entry))
      : alone(transactional(Effect.zipRight(step, Effect.zipRight(ownRole, entry))))
  ).pipe(
    Effect.catchAllCause((cause) =>
      Cause.isInterruptedOnly(cause)
        ? Effect.failCause(cause as Cause.Cause<never>)
        : new MigratorError({
            reason: "Failed",
            id,
            name,
            detail: `${direction} failed, ${advice(cause, online)}: ${explain(cause)}`,
            cause: Cause.squash(cause)
          })
    )
  )
  const durationMs = (yield* Clock.currentTimeMillis) - started
  yield* progress(options, { _tag: "Finished", id, name, durationMs })
  return { id, name, durationMs } satisfies Ran
})

/** The ledger is written by who runs the migrator, whatever role the migration has taken. */
const ownRole = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  sql.unsafe("RESET SESSION AUTHORIZATION; RESET ROLE")
)

/** A try that could not get a lock gives way to the others, and comes back after a while. */
const retryingLocks = <A, E, R>(
  options: Pacing,
  { id, name }: { readonly id: number; readonly name: string },
  effect: Effect.Effect<A, E, R>
) =>
  Effect.suspend(() => {
    let attempt = 0
    return effect.pipe(
      Effect.tapError((error) => {
        const reason = reasonOf(error)
        return reason !== undefined && isLockProblem(reason._tag)
          ? progress(options, { _tag: "Retrying", id, name, attempt: ++attempt, reason: reason._tag })
          : Effect.void
      }),
      Effect.retry({
        while: (error) => isLockProblem(reasonOf(error)?._tag),
        times: options.lockRetries ?? 10,
        schedule: Schedule.jittered(Schedule.exponential("100 millis"))
      })
    )
  })

const isLockProblem = (tag: string | undefined) => tag === "LockTimeout" || tag === "DeadlockDetected"

const advice = (cause: Cause.Cause<unknown>, online: boolean): string =>
  reasonOf(Cause.squash(cause))?._tag === "CommitOutcomeUnknown"
    ? "and it may have been applied: see what `migrate status` says"
    : online
      ? "run it again to resume"
      : "and nothing of it was kept"

const explain = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.squash(cause)
  return error instanceof Error ? error.message : String(error)
}

const ledgerFailure = (cause: SqlError) =>
  new MigratorError({ reason: "Ledger", detail: `cannot write the ledger: ${cause.message}`, cause })

const currentOf = (ledger: Ledger.Ledger) => Effect.map(ledger.read, (applied) => applied.at(-1)?.id ?? 0)

const statusOf = (all: ReadonlyArray<Migration.Source>, applied: ReadonlyArray<Ledger.Applied>): Status => {
  const byId = new Map(applied.map((entry) => [entry.id, entry]))
  const declared = all.map(({ checksum, id, name }): MigrationStatus => {
    const entry = byId.get(id)
    byId.delete(id)
    if (entry === undefined) return { id, name, state: "pending", appliedAt: null }
    const edited =
      entry.name !== name ||
      (entry.checksum !== undefined && checksum !== undefined && differs(entry.checksum, checksum))
    return { id, name, state: edited ? "edited" : "applied", appliedAt: entry.appliedAt }
  })
  const unknown = [...byId.values()].map(({ appliedAt, id, name }): MigrationStatus => ({
    id,
    name,
    state: "unknown",
    appliedAt
  }))
  return {
    current: applied.at(-1)?.id ?? 0,
    migrations: [...declared, ...unknown].sort((left, right) => left.id - right.id)
  }
}

/** Refuses what was applied and is not in the files, or not as it was. */
const consistent = Effect.fnUntraced(function* (
  all: ReadonlyArray<Migration.Source>,
  applied: ReadonlyArray<Ledger.Applied>
) {
  for (const { id, name, state } of statusOf(all, applied).migrations) {
    const refusal =
      state === "edited"
        ? ({
            reason: "Edited",
            detail: `it is not what was applied (as "${
              applied.find((entry) => entry.id === id)?.name ?? name
            }"); put it back as it was, and write a new migration for the change`
          } as const)
        : state === "unknown"
          ? ({
              reason: "Unknown",
              detail:
                "the database has it and the files do not; use the files that it came from, or a newer version of the program"
            } as const)
          : undefined
    if (refusal !== undefined) return yield* new MigratorError({ ...refusal, id, name })
  }
})

/** The migrations to run, or why the files and the ledger do not fit together. */
const pendingOf = Effect.fnUntraced(function* (
  all: ReadonlyArray<Migration.Source>,
  applied: ReadonlyArray<Ledger.Applied>
) {
  yield* consistent(all, applied)
  const { current, migrations } = statusOf(all, applied)
  const late = migrations.find(({ id, state }) => state === "pending" && id < current)
  if (late !== undefined) {
    return yield* new MigratorError({
      reason: "OutOfOrder",
      id: late.id,
      name: late.name,
      detail: `it never ran, and ${current} already has; give it an id above ${current}, or stamp it if its changes are there (stamp ${late.id})`
    })
  }
  return all.filter(({ id }) => id > current)
})

const existing = (all: ReadonlyArray<Migration.Source>, id: number) =>
  id === 0 || all.some((source) => source.id === id)
    ? Effect.void
    : new MigratorError({
        reason: "NoSuchMigration",
        id,
        detail: `there is none with this id; there are ${all.map((source) => source.id).join(", ") || "none at all"}`
      })

const sourceOf = (all: ReadonlyArray<Migration.Source>, id: number, name: string) =>
  Effect.fromNullable(all.find((source) => source.id === id)).pipe(
    Effect.mapError(
      () => new MigratorError({ reason: "Unknown", id, name, detail: "the files do not have this migration" })
    )
  )
