/** Whether others notice anything of a change before the new key takes the original's place. */
import { assert } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import type { Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import { identifier, qualified } from "../../src/sql/identifiers.js"
import type * as ForeignKey from "../../src/ForeignKey.js"

/** With these steps the new action comes into force. */
const switches: ReadonlySet<string> = new Set(["swap", "switch-enable", "switch-delete", "switch-names"])

/**
 * Looks, at every boundary of a step, whether a delete and a key update come out as with the
 * original alone. They are rolled back.
 */
export const watch = (session: Session, keys: ReadonlyArray<Catalog.Key>) =>
  Effect.map(Ref.make<ReadonlyArray<string> | undefined>(undefined), (before) => {
    const look = (key: Catalog.Key) => {
      const [parent, child] = [qualified(key.referenced), qualified(key.referencing)]
      const [column = ""] = key.referencedColumns.map(identifier)
      return Effect.forEach([`DELETE FROM ${parent}`, `UPDATE ${parent} SET ${column} = 2`], (statement) =>
        Effect.gen(function* () {
          yield* session.query("BEGIN")
          const outcome = yield* Effect.gen(function* () {
            yield* session.query(statement)
            const rows = yield* session.query(`SELECT to_jsonb(c)::text FROM ${child} c ORDER BY 1`)
            yield* session.query("SET CONSTRAINTS ALL IMMEDIATE")
            return JSON.stringify(rows)
          }).pipe(
            Effect.catchAll(({ reason }) =>
              Effect.succeed([reason._tag, "constraint" in reason ? reason.constraint : ""].join(" "))
            )
          )
          yield* session.query("ROLLBACK")
          return `${statement}: ${outcome}`
        })
      )
    }
    return (event: ForeignKey.Progress) =>
      Effect.gen(function* () {
        const key = keys.find((key) => Catalog.nameOf(key) === event.constraint)
        if (key === undefined) return
        if (event._tag === "Started") yield* Ref.set(before, yield* look(key))
        if (event._tag !== "StepStarted" && event._tag !== "StepDone") return
        const expected = yield* Ref.get(before)
        if (expected === undefined) return
        if (event._tag === "StepDone" && switches.has(event.step)) yield* Ref.set(before, undefined)
        else assert.deepStrictEqual(yield* look(key), expected, `${event._tag} ${event.step}`)
      }).pipe(Effect.orDie)
  })
