import { PgClient } from "@effect/sql-pg/PgClient"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as ForeignKey from "../src/ForeignKey.js"
import * as Migrator from "../src/Migrator.js"

/**
 * Deleting a user deletes their classes and conversations, and deleting a class its conversations: what PromptGrimoire's
 * Alembic revision 995de44465b7 does under locks that last as long as a scan of the tables, done here without stopping
 * writers. See `ForeignKey` for the steps and their locks. Stopped at any point, it is resumed by running it again.
 */
export default Migrator.define({
  online: true,
  up: Effect.suspend(() => rebuild("cascade")),
  down: Effect.suspend(() => rebuild("no-action"))
})

const keys = [
  { table: "class", name: "class_owner_id_fkey" },
  { table: "conversation", name: "conversation_class_id_fkey" },
  { table: "conversation", name: "conversation_owner_id_fkey" }
]

/** Some of the keys were not changed. */
class ForeignKeysNotChanged extends Data.TaggedError("ForeignKeysNotChanged")<{
  readonly notChanged: ReadonlyArray<Pick<ForeignKey.Rejected, "constraint" | "reason">>
}> {
  override get message() {
    return this.notChanged.map(({ constraint, reason }) => `${constraint}: ${reason}`).join("; ")
  }
}

const rebuild = Effect.fnUntraced(function* (onDelete: ForeignKey.Action) {
  const sql = yield* PgClient
  const constraints = yield* Effect.forEach(
    keys,
    Effect.fnUntraced(function* ({ name, table }) {
      // Whichever schema the search path finds the table in, as migration 1 did when it created it.
      const [found] = yield* sql<{ schema: string }>`
        SELECT namespace.nspname AS schema
        FROM pg_catalog.pg_class AS class
        JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
        WHERE class.oid = ${table}::regclass
      `
      return { schema: found?.schema, table, name }
    })
  )
  const result = yield* ForeignKey.rebuild({ selectors: { constraints }, onDelete })
  const notChanged = [...result.refused, ...result.failed]
  if (notChanged.length > 0) return yield* new ForeignKeysNotChanged({ notChanged })
  const done = new Set([...result.rebuilt.map(({ constraint }) => constraint), ...result.unchanged])
  if (done.size !== keys.length) {
    return yield* new ForeignKeysNotChanged({
      notChanged: keys.map(({ name }) => ({
        constraint: name,
        reason: `there should be ${keys.length} foreign keys of these names, and there are ${done.size}: was the schema made by migration 1?`
      }))
    })
  }
})
