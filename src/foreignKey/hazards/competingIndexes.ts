/**
 * Which unique index of the referenced table a new key would be bound to. With a list of columns
 * PostgreSQL takes the one with the lowest OID of those that fit (transformFkeyCheckAttrs,
 * tablecmds.c), and a key that was bound to another one would not be the same. REINDEX CONCURRENTLY
 * gives an index a new OID, a higher one, and takes its constraint and the keys that are bound to
 * it along: so the rivals with lower OIDs step behind.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type { Key } from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import { label, qualified } from "../../sql/identifiers.js"

/** The indexes that a new key would be bound to instead of the one of this key. */
export const of = (key: Key): Key["candidateIndexes"] => {
  const bound = key.boundIndex
  return bound === null || Steps.bindsPrimaryKeyByDefault(key)
    ? []
    : key.candidateIndexes.filter(({ oid }) => oid < bound.oid)
}

/** Why a new key cannot be bound to the index of this one; undefined if it can. */
export const obstacle = (key: Key): string | undefined => {
  const { boundIndex } = key
  if (boundIndex === null || Steps.bindsPrimaryKeyByDefault(key)) return undefined
  const bound = `it is bound to the unique index ${label(boundIndex.name)}, and a new key would be bound to another one`
  if (key.candidateIndexes.every(({ oid }) => oid !== boundIndex.oid)) {
    return `${bound}: PostgreSQL takes that one for no new key`
  }
  const rivals = of(key)
  const names = rivals.map(({ name }) => label(key.referenced.schema, name)).join(", ")
  if (rivals.length > 0 && key.referenced.kind === "p") {
    return `${bound} (${names}), which REINDEX CONCURRENTLY would change for an ordinary table, but not for a partitioned one: drop what is not needed of these indexes`
  }
  const exclusion = rivals.find((rival) => rival.exclusion)
  return exclusion === undefined
    ? undefined
    : `${bound}, ${label(key.referenced.schema, exclusion.name)}, which REINDEX CONCURRENTLY does not support because it belongs to an exclusion constraint`
}

/**
 * The statements that let the rivals of a key step behind, none in a transaction, after those that
 * drop {@link leftovers}.
 */
export const statements = (session: Session, key: Key): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  Effect.gen(function* () {
    const { owned, schema } = key.referenced
    // Without rivals there is no need to drop what somebody else's REINDEX has left.
    if (key.boundIndex === null || Steps.bindsPrimaryKeyByDefault(key) || !owned) return []
    return [
      ...(yield* leftovers(session, key)),
      ...of(key).map(({ name }) => `REINDEX INDEX CONCURRENTLY ${qualified({ schema, name })}`)
    ]
  })

/**
 * The statements that drop what an interrupted REINDEX CONCURRENTLY of an index that fits has left
 * behind (PostgreSQL names it with `_ccnew` or `_ccold`): it is invalid, costs writes and serves
 * nobody.
 */
export const leftovers = (session: Session, key: Key): Effect.Effect<ReadonlyArray<string>, DatabaseError> =>
  Effect.gen(function* () {
    const found = yield* session.query<{ readonly name: string }>(
      interrupted,
      [
        key.referenced.oid,
        key.candidateIndexes.flatMap(({ name, oid }) => (oid === key.boundIndex?.oid ? [] : [name]))
      ],
      { prepare: true }
    )
    const { schema } = key.referenced
    return found.map(({ name }) => `DROP INDEX CONCURRENTLY ${qualified({ schema, name })}`)
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * The stem of the name is cut where the whole would be longer than 63 bytes, and a number added
 * where it is taken.
 */
const interrupted = `
SELECT c.relname::text AS name
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::int8::oid AND NOT i.indisvalid AND c.relkind = 'i'
  AND EXISTS (
    SELECT FROM unnest($2::text[]) AS candidate (name)
    CROSS JOIN LATERAL (SELECT regexp_replace(c.relname::text, '_cc(new|old)[0-9]*$', '') AS stem) s
    WHERE s.stem <> c.relname::text AND (s.stem = candidate.name OR (octet_length(c.relname::text) >= 60 AND starts_with(candidate.name, s.stem)))
  )
ORDER BY c.oid`
