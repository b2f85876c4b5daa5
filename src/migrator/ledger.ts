import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { MigratorError } from "./migratorError.js"

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
 * Which migrations a database has: the table of `@effect/sql`'s Migrator, so that a database
 * migrated by one is up to date for the other, and beside it a table of checksums of our own.
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

/**
 * The ledger under a table name; a name with a dot is schema and table. The schema of one without
 * is looked up here, once: a migration may change the search path that it follows from.
 */
export const make = (table: string): Effect.Effect<Ledger, MigratorError, SqlClient.SqlClient> =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const failed = (detail: string) => (cause: SqlError) =>
      new MigratorError({ reason: "Ledger", detail: `${detail} ${table}: ${cause.message}`, cause })
    if (!isName(table)) {
      return yield* new MigratorError({
        reason: "Ledger",
        detail: `"${table}" cannot be the name of the table: it must be TABLE or SCHEMA.TABLE, of at most ${maxName} bytes each`
      })
    }
    const [own = "", schema] = table.split(".").toReversed()
    const within =
      schema ?? (yield* Effect.mapError(schemaOf(sql, table), failed("cannot look for the table")))
    const [entriesName = "", checksumsName = ""] = tables(own).map((name) =>
      within === null ? quoted(name) : `${quoted(within)}.${quoted(name)}`
    )
    const entries = sql.literal(entriesName)
    const checksums = sql.literal(checksumsName)
    const exists = (quoted: string) =>
      Effect.map(
        sql<{ exists: boolean }>`SELECT pg_catalog.to_regclass(${quoted}) IS NOT NULL AS exists`,
        (rows) => rows[0]?.exists === true
      )
    /** `@effect/sql` makes a column of 32 bits. It reads, and goes on with, one of 64. */
    const widen = Effect.gen(function* () {
      const narrow = yield* sql<{ name: string }>`
        SELECT attrelid::pg_catalog.regclass::text AS name FROM pg_catalog.pg_attribute
        WHERE attrelid IN (pg_catalog.to_regclass(${entriesName}), pg_catalog.to_regclass(${checksumsName}))
          AND attname = 'migration_id' AND atttypid = 'pg_catalog.int4'::pg_catalog.regtype
      `
      yield* Effect.forEach(
        narrow,
        ({ name }) => sql`ALTER TABLE ${sql.literal(name)} ALTER COLUMN migration_id TYPE bigint`,
        { discard: true }
      )
    })
    return {
      create: sql
        .withTransaction(
          Effect.gen(function* () {
            if (!(yield* exists(entriesName))) {
              yield* sql`
                CREATE TABLE ${entries} (
                  migration_id integer PRIMARY KEY,
                  created_at timestamp with time zone NOT NULL DEFAULT now(),
                  name text NOT NULL
                )
              `
            }
            if (!(yield* exists(checksumsName))) {
              yield* sql`CREATE TABLE ${checksums} (migration_id integer PRIMARY KEY, checksum text NOT NULL)`
            }
          })
        )
        .pipe(Effect.mapError(failed("cannot create the table"))),
      read: Effect.gen(function* () {
        if (!(yield* exists(entriesName))) return []
        const withChecksums = yield* exists(checksumsName)
        const rows = yield* sql<{
          id: number | string
          name: string
          created_at: Date
          checksum: string | null
        }>`
          SELECT entry.migration_id AS id, entry.name, entry.created_at,
                 ${withChecksums ? sql.literal("digest.checksum") : sql.literal("NULL::text AS checksum")}
          FROM ${entries} AS entry
          ${withChecksums ? sql`LEFT JOIN ${checksums} AS digest ON digest.migration_id = entry.migration_id` : sql.literal("")}
          ORDER BY entry.migration_id
        `
        return rows.map((row): Applied => ({
          id: Number(row.id),
          name: row.name,
          appliedAt: row.created_at,
          checksum: row.checksum ?? undefined
        }))
      }).pipe(Effect.mapError(failed("cannot read the table"))),
      add: ({ checksum, id, name }) =>
        Effect.gen(function* () {
          if (id > maxInteger) yield* widen
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

/** The largest id that PostgreSQL's type integer holds. */
const maxInteger = 2 ** 31 - 1

/**
 * What is longer is cut off by PostgreSQL, and the table of checksums has a longer name than the
 * ledger.
 */
const maxName = 63 - "_checksums".length

const isName = (table: string): boolean => {
  const parts = table.split(".")
  return (
    parts.length <= 2 &&
    parts.every((part) => part !== "" && !part.includes("\0") && Buffer.byteLength(part) <= maxName)
  )
}

/**
 * Where the search path finds the table, or where CREATE TABLE would put it. Where neither is,
 * CREATE TABLE will say so.
 */
const schemaOf = (sql: SqlClient.SqlClient, table: string) =>
  Effect.map(
    sql<{ schema: string | null }>`
      SELECT coalesce(
        (SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid = pg_catalog.to_regclass(${quoted(table)})),
        pg_catalog.current_schema()
      )::text AS schema
    `,
    ([row]) => row?.schema ?? null
  )

const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`
