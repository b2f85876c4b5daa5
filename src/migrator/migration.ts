import type * as Migrator from "@effect/sql/Migrator"
import type { PgClient } from "@effect/sql-pg/PgClient"
import type { SqlClient } from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type { Database } from "../Database.js"
import { MigratorError } from "./migratorError.js"

/** What a migration may use. */
export type MigrationServices = Database | PgClient | SqlClient

/** A step of a migration. */
export type Step = Effect.Effect<unknown, unknown, MigrationServices>

/** What a migration declares. */
export interface Definition {
  /** Brings the database forward. */
  readonly up: Step
  /** Takes it back again. Without it the migration cannot be undone. */
  readonly down?: Step | undefined
  /**
   * Whether the migration manages its own transactions, as an online schema change or CREATE INDEX
   * CONCURRENTLY must. It has to be safe to run again from the start after it was stopped at any
   * point. Otherwise up and down each run in one transaction together with their ledger entry.
   */
  readonly online?: boolean | undefined
}

const DefinitionTypeId: unique symbol = Symbol.for("promptgrimoire-db/Migrator/Definition")

/**
 * A definition as the default export of a file: still an Effect, so that `@effect/sql`'s Migrator
 * can read the file.
 */
export interface Migration extends Effect.Effect<unknown, unknown, MigrationServices> {
  readonly [DefinitionTypeId]: Definition
}

/**
 * Declares a migration that has a `down`, or that is online. One that has neither is simply an
 * Effect.
 */
export const define = (definition: Definition): Migration =>
  Object.assign(
    Effect.suspend(() => definition.up),
    { [DefinitionTypeId]: definition }
  )

/** A migration of the loader, before its module is imported. */
export interface Source {
  readonly id: number
  readonly name: string
  /** A digest of the file it came from, if it came from one; see `Loader.fromDirectory`. */
  readonly checksum: string | undefined
  /** What `Loader.fromRecord` was told. */
  readonly version: string | undefined
  readonly load: Effect.Effect<Definition, MigratorError>
}

/**
 * Carries the checksum of a file next to the loader's tuple, which `@effect/sql` fixes at three
 * elements.
 */
export const ChecksumTypeId: unique symbol = Symbol.for("promptgrimoire-db/Migrator/Checksum")

/** Carries the version of a record of migrations in the same way. */
export const VersionTypeId: unique symbol = Symbol.for("promptgrimoire-db/Migrator/Version")

/**
 * JavaScript's numbers hold whole ones exactly up to here: enough for a time stamp such as
 * 20240612093000.
 */
export const maxId = Number.MAX_SAFE_INTEGER

/**
 * Reads what a loader gave, refusing ids that occur twice, and those that a number does not hold.
 */
export const sources = Effect.fn("Migrator.sources")(function* <R>(loader: Migrator.Loader<R>) {
  const resolved = yield* Effect.mapError(loader, (cause) =>
    cause.cause instanceof MigratorError
      ? cause.cause
      : new MigratorError({ reason: "ImportFailed", detail: cause.message, cause })
  )
  const long = resolved.find(([id]) => !Number.isSafeInteger(id))
  if (long !== undefined) {
    return yield* new MigratorError({
      reason: "ImportFailed",
      id: long[0],
      name: long[1],
      detail: `its id is no whole number up to ${maxId}; give it another one`
    })
  }
  const all = resolved.map((migration): Source => ({
    id: migration[0],
    name: migration[1],
    checksum: carried(migration, ChecksumTypeId),
    version: carried(migration, VersionTypeId),
    load: load(migration)
  }))
  all.sort((left, right) => left.id - right.id)
  for (const [index, migration] of all.entries()) {
    const next = all[index + 1]
    if (next?.id === migration.id) {
      return yield* new MigratorError({
        reason: "Duplicate",
        id: migration.id,
        name: next.name,
        detail: `id ${migration.id} is used by "${migration.name}" and by "${next.name}"; give one of them a new id`
      })
    }
  }
  return all
})

const carried = (migration: object, key: symbol): string | undefined => {
  const value = Predicate.hasProperty(migration, key) ? migration[key] : undefined
  return typeof value === "string" ? value : undefined
}

const load = ([id, name, module]: Migrator.ResolvedMigration): Effect.Effect<Definition, MigratorError> => {
  const fail = (detail: string, cause?: unknown) =>
    new MigratorError({ reason: "ImportFailed", id, name, detail, cause })
  return (module as Effect.Effect<unknown>).pipe(
    Effect.catchAllDefect((cause) =>
      fail(
        `the file cannot be imported: ${cause instanceof Error ? cause.message : String(cause)}. ` +
          "Node itself runs JavaScript; for TypeScript start the program through a loader such as tsx",
        cause
      )
    ),
    Effect.flatMap((loaded) => {
      const migration = defaultExport(loaded)
      return Effect.isEffect(migration)
        ? Effect.succeed(definitionOf(migration as Step))
        : fail("its default export is not an Effect; export one, or Migrator.define({ up, down })")
    })
  )
}

const definitionOf = (migration: Step): Definition =>
  DefinitionTypeId in migration ? (migration as Migration)[DefinitionTypeId] : { up: migration }

/** A default export can be wrapped once more by a CommonJS interop. */
const defaultExport = (module: unknown): unknown => {
  if (Effect.isEffect(module) || !Predicate.hasProperty(module, "default")) return module
  return Effect.isEffect(module.default) ? module.default : defaultExport(module.default)
}
