/** What the next step of a change is decided from. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Fidelity from "./snapshot.js"
import * as Name from "./names.js"

/** The keys of a key's table, and its vector; undefined if it is gone. */
export interface Seen {
  readonly keys: ReadonlyArray<Catalog.Key>
  readonly current: Fidelity.Vector | undefined
}

/**
 * Reads a key and what a change of it added to its table, by one statement: as they were at one
 * time.
 */
export const read = (
  session: Session,
  { name, referencing }: Catalog.Named
): Effect.Effect<Seen, DatabaseError> =>
  session
    .query<{ readonly keys: string | null; readonly vector: string | null }>(
      `SELECT (${Catalog.selectOfTables}) AS keys,
        (${Fidelity.expression("$4::int8::oid", "$5::name")})::text AS vector`,
      [false, [referencing.oid], [name, Name.temporary(name), Name.aside(name)], referencing.oid, name],
      { prepare: "at once" }
    )
    .pipe(
      Effect.map(([row]) => ({
        keys: Catalog.parse(row?.keys ?? null),
        current: Fidelity.parse(row?.vector ?? null)
      }))
    )
