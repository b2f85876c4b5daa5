/** What the next step of a change is decided from. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Snapshot from "./snapshot.js"
import * as Names from "./names.js"

/** The keys of a key's table, and its snapshot; undefined if it is gone. */
export interface Observation {
  readonly keys: ReadonlyArray<Catalog.Key>
  readonly current: Snapshot.Snapshot | undefined
}

/**
 * Reads a key and what a change of it added to its table, by one statement: as they were at one
 * time.
 */
export const read = (
  session: Session,
  { name, referencing }: Catalog.Named
): Effect.Effect<Observation, DatabaseError> =>
  session
    .query<{ readonly keys: string | null; readonly snapshot: string | null }>(
      `SELECT (${Catalog.selectOfTables}) AS keys,
        (${Snapshot.expression("$4::int8::oid", "$5::name")})::text AS snapshot`,
      [false, [referencing.oid], [name, Names.temporary(name), Names.aside(name)], referencing.oid, name],
      { prepare: "at once" }
    )
    .pipe(
      Effect.map(([row]) => ({
        keys: Catalog.parse(row?.keys ?? null),
        current: Snapshot.parse(row?.snapshot ?? null)
      }))
    )
