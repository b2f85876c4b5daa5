/** Referencing rows without a referenced row: under a valid key they should not exist, and where they do VALIDATE fails. */
import * as Effect from "effect/Effect"
import { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import type { Key } from "./Catalog.js"
import * as Lock from "./Lock.js"
import { identifier } from "./Sql.js"

/** How many there are, and the keys of some. */
export interface Orphans {
  readonly count: number
  /** Values of the referencing columns, as text, of at most five distinct keys. */
  readonly sample: ReadonlyArray<ReadonlyArray<string | null>>
}

/**
 * Counts orphans with one read of both tables, which locks them ACCESS SHARE. Undefined if that takes longer than `limit` milliseconds or the role may not
 * read the tables.
 */
export const count = (
  session: Session,
  key: Key,
  limit: number
): Effect.Effect<Orphans | undefined, DatabaseError> =>
  Effect.gen(function* () {
    yield* session.query(`SET statement_timeout = '${Math.max(1, Math.round(limit))}ms'`)
    const rows = yield* session.query<{ readonly orphans: string }>(statement(key))
    return JSON.parse(rows[0]?.orphans ?? "null") as Orphans
  }).pipe(
    Effect.catchIf(
      (error) => DatabaseError.is(error) && gaveUp.has(error.reason._tag),
      () => Effect.succeed(undefined)
    ),
    Effect.ensuring(Effect.ignore(session.query("SET statement_timeout = '30s'")))
  )

/** Orphans in one sentence. */
export const describe = ({ count, sample }: Orphans): string =>
  `${count} ${count === 1 ? "row has" : "rows have"} no referenced row, for example with ${sample
    .map((values) => `(${values.map((value) => value ?? "null").join(", ")})`)
    .join(", ")}`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const gaveUp: ReadonlySet<string> = new Set(["StatementTimeout", "LockTimeout", "PermissionDenied"])

const statement = (key: Key) => {
  const pairs = key.columns.map((column, index) => ({
    referencing: `c.${identifier(column)}`,
    referenced: `p.${identifier(key.referencedColumns[index] ?? "")}`
  }))
  const notNull = pairs.map(({ referencing }) => `${referencing} IS NOT NULL`)
  // MATCH FULL wants all columns null or none; a row with some is an orphan too.
  const concerned = key.match === "full" ? `(${notNull.join(" OR ")})` : notNull.join(" AND ")
  return `WITH orphan AS (
    SELECT ${pairs.map(({ referencing }, index) => `${referencing}::text AS k${index}`).join(", ")}
    FROM ${Lock.target(key.referencing)} c
    WHERE ${concerned} AND NOT EXISTS (
      SELECT FROM ${Lock.target(key.referenced)} p
      WHERE ${pairs.map(({ referenced, referencing }) => `${referenced} = ${referencing}`).join(" AND ")}
    )
  )
  SELECT jsonb_build_object(
    'count', (SELECT count(*) FROM orphan),
    'sample', (
      SELECT coalesce(jsonb_agg(jsonb_build_array(${pairs.map((_, index) => `k${index}`).join(", ")})), '[]')
      FROM (SELECT DISTINCT * FROM orphan LIMIT 5) s
    )
  )::text AS orphans`
}
