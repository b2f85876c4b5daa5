import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Record from "effect/Record"
import * as Catalog from "../../src/foreignKey/Catalog.js"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/driver/Session.js"
import * as Fidelity from "../../src/foreignKey/Fidelity.js"
import { emptyDatabase } from "../support/server.js"

/** A database of its own for each test, which ends with the test's scope. */
export const database = Layer.unwrapScoped(
  Effect.map(emptyDatabase, ({ url }) => Database.layer({ url, minConnections: 1 }))
)

/** A session of an application, beside the code under test. */
export const application = Effect.flatMap(Database.Database, ({ session }) => session)

/** The vectors of all keys of the database, constraints of partitions under their topmost one, by name. */
export const vectors = (session: Session) =>
  Effect.gen(function* () {
    const keys = yield* Catalog.read(session)
    const all: Record<string, Fidelity.Vector> = {}
    for (const key of keys) {
      const vector = yield* Fidelity.read(session, key.referencing.oid, key.name)
      if (vector !== undefined) all[Catalog.nameOf(key)] = vector
    }
    return all
  })

/** Vectors without the OIDs of constraints, which a rebuild changes. */
export const comparable = (all: Record<string, Fidelity.Vector>) => Record.map(all, Fidelity.withoutOids)

/** What PostgreSQL itself says about every foreign key. */
export const definitions = (session: Session) =>
  session.query<{ readonly table: string; readonly name: string; readonly definition: string }>(
    `SELECT conrelid::regclass::text AS table, conname AS name, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE contype = 'f' ORDER BY conrelid::regclass::text, conname`
  )
