/** The ledger of `@effect/sql`'s Migrator. */
export const defaultTable = "effect_sql_migrations"
