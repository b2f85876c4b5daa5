import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Record from "effect/Record"
import * as Redacted from "effect/Redacted"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as Snapshot from "../../src/foreignKey/snapshot/snapshot.js"
import { emptyDatabase } from "../support/server.js"

/** A database of its own for each test, which ends with the test's scope. */
export const database = Layer.unwrapScoped(
  Effect.map(emptyDatabase, ({ url }) => Database.layer({ url, minConnections: 1 }))
)

/** A session of an application, beside the code under test. */
export const application = Effect.flatMap(Database.Database, ({ session }) => session)

/**
 * A database with a role of its own that is no superuser: `limited` connects as that role,
 * `session` as the superuser who made the tables.
 */
export const withRole = <E, R>(
  setup: (role: string) => string,
  use: (given: {
    readonly limited: ReturnType<typeof Database.layer>
    readonly role: string
    readonly session: Session
  }) => Effect.Effect<void, E, R>
) =>
  Effect.gen(function* () {
    const { name, url } = yield* emptyDatabase
    const role = `r${name}`
    const limited = new URL(Redacted.value(url))
    limited.username = role
    limited.password = "x"
    yield* Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`CREATE ROLE ${role} LOGIN PASSWORD 'x'`)
      yield* Effect.addFinalizer(() =>
        Effect.ignore(session.query(`ROLLBACK; DROP OWNED BY ${role}; DROP ROLE ${role}`))
      )
      yield* session.query(setup(role))
      yield* use({ limited: Database.layer({ url: limited.toString(), minConnections: 1 }), role, session })
    }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
  })

/**
 * The snapshots of all keys of the database, constraints of partitions under their topmost one, by
 * name.
 */
export const snapshots = (session: Session) =>
  Effect.gen(function* () {
    const keys = yield* Catalog.read(session)
    const all: Record<string, Snapshot.Snapshot> = {}
    for (const key of keys) {
      const snapshot = yield* Snapshot.read(session, key.referencing.oid, key.name)
      if (snapshot !== undefined) all[Catalog.nameOf(key)] = snapshot
    }
    return all
  })

/** Vectors without the OIDs of constraints, which a rebuild changes. */
export const comparable = (all: Record<string, Snapshot.Snapshot>) => Record.map(all, Snapshot.withoutOids)

/**
 * Vectors without the OIDs of constraints, and with the names of indexes, whose OIDs change when an
 * index that others are bound to has to step behind (REINDEX CONCURRENTLY).
 */
export const withNamedIndexes = (session: Session, all: Record<string, Snapshot.Snapshot>) =>
  Effect.map(
    session.query<{ readonly oid: number; readonly name: string }>(
      "SELECT oid::int8::int AS oid, relname::text AS name FROM pg_class WHERE relkind IN ('i', 'I')"
    ),
    (rows) => {
      const names = new Map(rows.map(({ name, oid }) => [oid, name]))
      const named = (oid: unknown) => names.get(Number(oid)) ?? oid
      return Record.map(all, (snapshot) =>
        snapshot.map(({ constraint, dependencies, triggers, ...entry }) => ({
          ...entry,
          oid: 0,
          constraint: { ...constraint, conindid: named(constraint["conindid"]) },
          dependencies: (dependencies as ReadonlyArray<ReadonlyArray<unknown>>)
            .map(([catalog, object, ...rest]) => JSON.stringify([catalog, named(object), ...rest]))
            .toSorted(),
          triggers: triggers.map((trigger) => ({ ...trigger, index: named(trigger["index"]) }))
        }))
      )
    }
  )

/**
 * What PostgreSQL itself says about every foreign key. Left out are the rows that a key to a
 * partitioned table has for its partitions: VALIDATE leaves those of a key that was added NOT VALID
 * as they are (13 to 17), and they appear in no dump.
 */
export const definitions = (session: Session) =>
  session.query<{ readonly table: string; readonly name: string; readonly definition: string }>(
    `SELECT k.conrelid::regclass::text AS table, k.conname AS name, pg_get_constraintdef(k.oid) AS definition
    FROM pg_constraint k
    WHERE k.contype = 'f'
      AND NOT EXISTS (SELECT FROM pg_constraint q WHERE q.oid = k.conparentid AND q.conrelid = k.conrelid)
    ORDER BY k.conrelid::regclass::text, k.conname`
  )

/**
 * The strongest lock above ACCESS SHARE that a backend holds on each table, or relation of other
 * kinds, as the plan writes them.
 */
export const heldBy = (observer: Session, pid: number, kinds: ReadonlyArray<string> = ["r", "p"]) =>
  Effect.map(
    observer.query<{ readonly relation: string; readonly mode: string }>(
      `SELECT DISTINCT ON (1) c.relname::text AS relation, m.mode
      FROM pg_locks l JOIN pg_class c ON c.oid = l.relation AND c.relkind::text = ANY ($2::text[])
        AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
      JOIN (VALUES ('RowShareLock', 'ROW SHARE', 1), ('RowExclusiveLock', 'ROW EXCLUSIVE', 2),
        ('ShareUpdateExclusiveLock', 'SHARE UPDATE EXCLUSIVE', 3), ('ShareLock', 'SHARE', 4),
        ('ShareRowExclusiveLock', 'SHARE ROW EXCLUSIVE', 5), ('ExclusiveLock', 'EXCLUSIVE', 6),
        ('AccessExclusiveLock', 'ACCESS EXCLUSIVE', 7)) AS m (name, mode, strength) ON m.name = l.mode
      WHERE l.pid = $1 AND l.granted
      ORDER BY 1, m.strength DESC`,
      [pid, kinds]
    ),
    (rows) => Object.fromEntries(rows.map(({ mode, relation }) => [relation, mode]))
  )

/** What only a change leaves behind: constraints, triggers and comments of ours. */
export const leftovers = (session: Session) =>
  session.query(`
    SELECT conname AS name FROM pg_constraint WHERE conname LIKE 'promptgrimoire_fk%'
    UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'promptgrimoire_fk%'
    UNION ALL SELECT conname FROM pg_constraint WHERE obj_description(oid, 'pg_constraint') LIKE 'promptgrimoire-db%'`)
