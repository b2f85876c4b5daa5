/** Who would be in the way of a change right now, in sentences. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Blocker from "../../catalog/lockHolders.js"
import type { Key } from "../../catalog/foreignKeys.js"
import * as TableLocks from "../../catalog/tableLocks.js"

/**
 * What a reader of the plan of a key should know about the transactions that hold its tables, of
 * whichever of these keys. Asks only, for the time of one query.
 */
export const warnings = (
  session: Session,
  keys: ReadonlyArray<Key>
): Effect.Effect<(key: Key) => ReadonlyArray<string>, DatabaseError> =>
  Effect.gen(function* () {
    const tables = new Map(
      keys.flatMap(({ referenced, referencing }) =>
        [referenced, referencing].map((table) => [table.oid, table] as const)
      )
    )
    const holders = yield* Blocker.holders(
      session,
      [...tables.values()].map((table) => ({ table, mode: "ACCESS EXCLUSIVE" })),
      [session.processId]
    )
    if (holders.length === 0) return () => []
    const [me] = yield* session.query<{ readonly role: string }>(
      "SELECT pg_catalog.quote_ident(current_user) AS role"
    )
    const remedy = `GRANT pg_read_all_stats TO ${me?.role}`
    const sentences = (holder: Blocker.Holder): ReadonlyArray<string> => {
      if (Blocker.isAutovacuum(holder)) return [autovacuum(holder, remedy)]
      if (holder.age === null) {
        return [
          `in the way right now, if its transaction takes long: ${Blocker.describe(holder)}. This role may not see since when (${remedy})`
        ]
      }
      return holder.age > long ? [`in the way right now: ${Blocker.describe(holder)}`] : []
    }
    return ({ referenced, referencing }: Key) => {
      const own = new Set([referenced, referencing].flatMap(TableLocks.withPartitions).map(({ oid }) => oid))
      return holders.filter(({ relations }) => relations.some((oid) => own.has(oid))).flatMap(sentences)
    }
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * The age from which a transaction is worth a warning, in milliseconds: shorter ones end before a
 * second try.
 */
const long = 500

const autovacuum = ({ autovacuum, pid }: Blocker.Holder, remedy: string) => {
  const task = autovacuum?.replace(/^autovacuum: /, "") ?? ""
  const what = `autovacuum (${pid}${task === "" ? "" : `, ${task}`}) works on its tables right now`
  if (task === "") {
    return `${what}: it will be moved aside, unless it is there to prevent wraparound, which this role may not see (${remedy}): then nothing but its end helps`
  }
  return task.includes("(to prevent wraparound)")
    ? `${what}: it gives way to nobody, so let it come to its end first`
    : `${what}: it will be moved aside, and begins again later`
}
