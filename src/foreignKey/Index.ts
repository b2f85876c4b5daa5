/** The index that a key should have on its referencing columns: without one, every delete of a referenced row reads the whole referencing table. */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import type { Key, Relation } from "./Catalog.js"
import { identifier, identifiers, qualified } from "./Sql.js"

/** The tables whose rows the index is for: the table itself or, if it is partitioned, its partitions. */
export const places = (key: Key): ReadonlyArray<Relation> =>
  key.referencing.kind === "p"
    ? key.referencing.partitions.filter(({ kind }) => kind === "r")
    : [key.referencing]

/** The statement that builds the index. SHARE UPDATE EXCLUSIVE: reads and writes go on. It cannot run in a transaction. */
export const statement = (key: Key, place: Relation): string =>
  `CREATE INDEX CONCURRENTLY ${identifier(nameFor(key, place))} ON ${qualified(place)} (${identifiers(key.columns)})`

/**
 * Builds the index where it is missing. An index that an interrupted build left behind is invalid: it costs writes and serves nobody, so it is dropped
 * first. The names of what was built.
 */
export const build = (session: Session, key: Key): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  Effect.gen(function* () {
    // The build waits for every transaction that was running when it began, without anybody waiting for it.
    yield* session.query("SET statement_timeout = 0; SET lock_timeout = 0")
    const built: Array<string> = []
    for (const place of places(key)) {
      const name = nameFor(key, place)
      const state = yield* read(session, key, place, name)
      if (state.supported) continue
      if (state.leftover) {
        yield* session.query(`DROP INDEX CONCURRENTLY ${qualified({ schema: place.schema, name })}`)
      }
      yield* session.query(statement(key, place))
      built.push(name)
    }
    return built
  }).pipe(
    Effect.ensuring(Effect.ignore(session.query("SET statement_timeout = '30s'; SET lock_timeout = '5s'")))
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** As PostgreSQL would name it, with a digest that keeps it apart from other indexes; 63 bytes at most. */
const nameFor = (key: Key, place: Relation) => {
  const digest = createHash("sha256")
    .update(JSON.stringify([place.schema, place.name, key.columns]))
    .digest("hex")
    .slice(0, 8)
  let stem = `${place.name}_${key.columns.join("_")}`
  while (Buffer.byteLength(stem) > 50) stem = Array.from(stem).slice(0, -1).join("")
  return `${stem}_${digest}_idx`
}

const read = (session: Session, key: Key, place: Relation, name: string) =>
  session
    .query<{ readonly supported: boolean; readonly leftover: boolean }>(
      `SELECT
        EXISTS (
          SELECT FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_am m ON m.oid = c.relam
          WHERE i.indrelid = $1::int8::oid AND i.indisvalid AND i.indisready AND i.indpred IS NULL AND m.amname = 'btree'
            AND i.indnkeyatts >= cardinality($2::text[])
            AND (
              SELECT array_agg(a.attname::text ORDER BY a.attname::text)
              FROM unnest((i.indkey::int2[])[0:cardinality($2::text[]) - 1]) AS u
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u
            ) = (SELECT array_agg(x ORDER BY x) FROM unnest($2::text[]) AS x)
        ) AS supported,
        EXISTS (
          SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          WHERE i.indrelid = $1::int8::oid AND c.relname = $3 AND NOT i.indisvalid
        ) AS leftover`,
      [place.oid, key.columns, name]
    )
    .pipe(Effect.map((rows) => rows[0] ?? { supported: false, leftover: false }))
