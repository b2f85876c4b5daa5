import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { MigratorError } from "./MigratorError.js"

/** The table of `@effect/sql`'s Migrator. */
export const defaultTable = "effect_sql_migrations"

/** The tables of a ledger, by the name of its first. */
export const tables = (table: string): ReadonlyArray<string> => [table, `${table}_checksums`]

/** A migration that the database says was applied. */
export interface Applied {
  readonly id: number
  readonly name: string
  readonly appliedAt: Date
  readonly checksum: string | undefined
}

/**
 * Which migrations a database has: the table of `@effect/sql`'s Migrator, so that a database migrated by one is up to date
 * for the other, and beside it a table of checksums of our own.
 */
export interface Ledger {
  /** Creates the tables if they are not there. Needs the migrator's lock. */
  readonly create: Effect.Effect<void, MigratorError>
  /** What was applied, by id. Reads only; a database without the table has nothing applied. */
  readonly read: Effect.Effect<ReadonlyArray<Applied>, MigratorError>
  /** Adds an entry; belongs in the migration's own transaction. */
  readonly add: (migration: {
    readonly id: number
    readonly name: string
    readonly checksum: string | undefined
  }) => Effect.Effect<void, SqlError>
  /** Removes an entry; belongs in the transaction of the migration's `down`. */
  readonly remove: (id: number) => Effect.Effect<void, SqlError>
}

/** The ledger under a table name; a name with a dot is schema and table. */
export const make = (table: string): Effect.Effect<Ledger, never, SqlClient.SqlClient> =>
  Effect.map(SqlClient.SqlClient, (sql) => {
    const entries = sql(table)
    const checksums = sql(`${table}_checksums`)
    const failed = (detail: string) => (cause: SqlError) =>
      new MigratorError({ reason: "Ledger", detail: `${detail} ${table}: ${cause.message}`, cause })
    const exists = (name: string) =>
      Effect.map(
        sql<{ exists: boolean }>`SELECT pg_catalog.to_regclass(${quoted(name)}) IS NOT NULL AS exists`,
        (rows) => rows[0]?.exists === true
      )
    return {
      create: sql
        .withTransaction(
          Effect.gen(function* () {
            if (!(yield* exists(table))) {
              yield* sql`
                CREATE TABLE ${entries} (
                  migration_id integer PRIMARY KEY,
                  created_at timestamp with time zone NOT NULL DEFAULT now(),
                  name text NOT NULL
                )
              `
            }
            if (!(yield* exists(`${table}_checksums`))) {
              yield* sql`CREATE TABLE ${checksums} (migration_id integer PRIMARY KEY, checksum text NOT NULL)`
            }
          })
        )
        .pipe(Effect.mapError(failed("cannot create the table"))),
      read: Effect.gen(function* () {
        if (!(yield* exists(table))) return []
        const withChecksums = yield* exists(`${table}_checksums`)
        const rows = yield* sql<{ id: number; name: string; created_at: Date; checksum: string | null }>`
          SELECT entry.migration_id AS id, entry.name, entry.created_at,
                 ${withChecksums ? sql.literal("digest.checksum") : sql.literal("NULL::text AS checksum")}
          FROM ${entries} AS entry
          ${withChecksums ? sql`LEFT JOIN ${checksums} AS digest ON digest.migration_id = entry.migration_id` : sql.literal("")}
          ORDER BY entry.migration_id
        `
        return rows.map((row): Applied => ({
          id: row.id,
          name: row.name,
          appliedAt: row.created_at,
          checksum: row.checksum ?? undefined
        }))
      }).pipe(Effect.mapError(failed("cannot read the table"))),
      add: ({ checksum, id, name }) =>
        Effect.gen(function* () {
          yield* sql`INSERT INTO ${entries} ${sql.insert({ migration_id: id, name })}`
          if (checksum !== undefined) {
            yield* sql`
              INSERT INTO ${checksums} ${sql.insert({ migration_id: id, checksum })}
              ON CONFLICT (migration_id) DO UPDATE SET checksum = excluded.checksum
            `
          }
        }),
      remove: (id) =>
        Effect.gen(function* () {
          yield* sql`DELETE FROM ${entries} WHERE migration_id = ${id}`
          yield* sql`DELETE FROM ${checksums} WHERE migration_id = ${id}`
        })
    }
  })

/** A name as `to_regclass` reads it, with the quoting of the statements. */
const quoted = (name: string) =>
  name
    .split(".")
    .map((part) => `"${part.replaceAll('"', '""')}"`)
    .join(".")
