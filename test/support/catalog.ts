import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"

/** Tables that belong to a migration tool and not to the schema. */
const ledgers = [
  "alembic_version",
  "effect_sql_migrations",
  "effect_sql_migrations_checksums",
  "promptgrimoire_db_foreign_key_changes"
]

/**
 * Everything that PostgreSQL knows about the tables of the schema `public`: columns, indexes,
 * constraints, triggers of foreign keys. Two databases with equal snapshots behave alike.
 */
export const snapshot = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const columns = yield* sql`
    SELECT class.relname AS table, attribute.attname AS column, attribute.attnum AS position,
           format_type(attribute.atttypid, attribute.atttypmod) AS type, attribute.attnotnull AS not_null,
           pg_get_expr(expression.adbin, expression.adrelid) AS default, attribute.attcollation::regcollation::text AS collation
    FROM pg_attribute AS attribute
    JOIN pg_class AS class ON class.oid = attribute.attrelid AND class.relkind = 'r'
    LEFT JOIN pg_attrdef AS expression ON expression.adrelid = class.oid AND expression.adnum = attribute.attnum
    WHERE class.relnamespace = 'public'::regnamespace AND attribute.attnum > 0 AND NOT attribute.attisdropped
      AND NOT ${sql.in("class.relname", ledgers)}
    ORDER BY 1, 3
  `
  const indexes = yield* sql`
    SELECT tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND NOT ${sql.in("tablename", ledgers)} ORDER BY 1, 2
  `
  const constraints = yield* sql`
    SELECT class.relname AS table, k.conname AS name, k.contype AS type, pg_get_constraintdef(k.oid) AS definition,
           k.convalidated AS validated, k.condeferrable AS deferrable, k.condeferred AS deferred,
           obj_description(k.oid, 'pg_constraint') AS comment
    FROM pg_constraint AS k JOIN pg_class AS class ON class.oid = k.conrelid
    WHERE k.connamespace = 'public'::regnamespace AND k.contype <> 'n' AND NOT ${sql.in("class.relname", ledgers)}
    ORDER BY 1, 2
  `
  const triggers = yield* sql`
    SELECT class.relname AS table, k.conname AS constraint, p.proname AS function, t.tgenabled AS enabled,
           t.tgdeferrable AS deferrable, t.tginitdeferred AS deferred
    FROM pg_trigger AS t JOIN pg_class AS class ON class.oid = t.tgrelid
    JOIN pg_constraint AS k ON k.oid = t.tgconstraint JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE class.relnamespace = 'public'::regnamespace ORDER BY 1, 2, 3
  `
  return { columns, indexes, constraints, triggers }
})
