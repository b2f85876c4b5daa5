/**
 * Referencing rows without a referenced row: under a valid key they should not exist, and where
 * they do VALIDATE fails.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type { Key } from "../../catalog/foreignKeys.js"
import { identifier, rowsOf } from "../../sql/identifiers.js"

/** How many there are, and the keys of some. */
export interface Orphans {
  readonly count: number
  /** Values of the referencing columns, as text, of at most five distinct keys. */
  readonly sample: ReadonlyArray<ReadonlyArray<string | null>>
}

/**
 * Counts the orphans of each key with one read of both its tables, which locks them ACCESS
 * SHARE. By OID; a key is left out if that takes longer than `limit` milliseconds or the role
 * may not read all rows of its tables.
 */
export const count = (
  session: Session,
  wanted: ReadonlyArray<Key>,
  limit: number
): Effect.Effect<ReadonlyMap<number, Orphans>, DatabaseError> =>
  Effect.gen(function* () {
    const found = new Map<number, Orphans>()
    // Where row security hides referenced rows, all that refer to them would be counted.
    const keys = wanted.filter(
      ({ readable, referenced, referencing }) => readable && !referenced.filtered && !referencing.filtered
    )
    if (keys.length === 0) return found
    const comparisons = yield* session.query<Comparison>(readComparisons, [keys.map(({ oid }) => oid)])
    const ofKey = new Map<number, Array<Comparison>>()
    for (const comparison of comparisons) {
      const oid = Number(comparison.key)
      ofKey.set(oid, [...(ofKey.get(oid) ?? []), comparison])
    }
    yield* session.query(`SET statement_timeout = '${Math.max(1, Math.round(limit))}ms'`)
    for (const key of keys) {
      const rows = yield* session
        .query<{ readonly orphans: string }>(statement(key, ofKey.get(key.oid) ?? []))
        .pipe(
          Effect.catchIf(
            ({ reason }) => gaveUp.has(reason._tag),
            () => Effect.succeed([])
          )
        )
      const [row] = rows
      if (row !== undefined) found.set(key.oid, JSON.parse(row.orphans) as Orphans)
    }
    return found
  }).pipe(Effect.ensuring(Effect.ignore(session.query("SET statement_timeout = '30s'"))))

/** Orphans in one sentence. */
export const describe = ({ count, sample }: Orphans): string =>
  `${count} ${count === 1 ? "row has" : "rows have"} no referenced row, for example with ${sample
    .map((values) => `(${values.map((value) => value ?? "null").join(", ")})`)
    .join(", ")}`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const gaveUp: ReadonlySet<string> = new Set(["StatementTimeout", "LockTimeout", "PermissionDenied"])

/** How PostgreSQL compares one pair of columns; the parts are SQL. */
interface Comparison {
  /** The key's OID. */
  readonly key: string
  readonly referenced: string
  readonly referencing: string
  readonly operator: string
  readonly collation: string
}

/**
 * The key's own operators, which need not be the `=` that a plain query would find, with the types
 * that they are declared for and the referenced column's collation: what PostgreSQL checks a new
 * key with (RI_Initial_Check, ri_triggers.c).
 */
const readComparisons = `
SELECT k.oid::int8::text AS key,
  'p.' || quote_ident(pa.attname) || ${cast("pa", "o.oprleft")} AS referenced,
  'c.' || quote_ident(ca.attname) || ${cast("ca", "o.oprright")} AS referencing,
  'OPERATOR(' || quote_ident(n.nspname) || '.' || o.oprname || ')' AS operator,
  coalesce((
    SELECT ' COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(l.collname)
    FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace cn ON cn.oid = l.collnamespace
    WHERE l.oid = pa.attcollation
  ), '') AS collation
FROM unnest($1::int8[]) AS w (oid)
CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint k WHERE k.oid = w.oid::oid OFFSET 0) k
CROSS JOIN LATERAL unnest(k.conpfeqop, k.confkey, k.conkey) WITH ORDINALITY AS u (operator, referenced, referencing, position)
JOIN pg_catalog.pg_operator o ON o.oid = u.operator
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
JOIN pg_catalog.pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.referenced
JOIN pg_catalog.pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.referencing
ORDER BY k.oid, u.position`

/**
 * A cast to the type that the operator is declared for, where the column has another; an operator
 * for any array or enum takes all of them.
 */
function cast(column: string, type: string): string {
  return `coalesce((
    SELECT '::' || quote_ident(tn.nspname) || '.' || quote_ident(t.typname)
    FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
    WHERE t.oid = ${type} AND t.oid <> ${column}.atttypid AND t.typtype <> 'p'
  ), '')`
}

const statement = (key: Key, comparisons: ReadonlyArray<Comparison>) => {
  const columns = key.columns.map((column) => `c.${identifier(column)}`)
  const notNull = columns.map((column) => `${column} IS NOT NULL`)
  // MATCH FULL wants all columns null or none; a row with some is an orphan too.
  const concerned = key.match === "full" ? `(${notNull.join(" OR ")})` : notNull.join(" AND ")
  const equal = comparisons.map(
    ({ collation, operator, referenced, referencing }) =>
      `${referenced} ${operator} ${referencing}${collation}`
  )
  return `WITH orphan AS (
    SELECT ${columns.map((column, index) => `${column}::text AS k${index}`).join(", ")}
    FROM ${rowsOf(key.referencing)} c
    WHERE ${concerned} AND NOT EXISTS (
      SELECT FROM ${rowsOf(key.referenced)} p WHERE ${equal.join(" AND ")}
    )
  )
  SELECT jsonb_build_object(
    'count', (SELECT count(*) FROM orphan),
    'sample', (
      SELECT coalesce(jsonb_agg(jsonb_build_array(${columns.map((_, index) => `k${index}`).join(", ")})), '[]')
      FROM (SELECT DISTINCT * FROM orphan LIMIT 5) s
    )
  )::text AS orphans`
}
