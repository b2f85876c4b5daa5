/**
 * The databases that test databases are cloned from: one for each set of migrations, which were
 * applied to it once.
 */
import type * as Migrator from "@effect/sql/Migrator"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Crypto from "node:crypto"
import * as Database from "../Database.js"
import type { DatabaseError } from "../DatabaseError.js"
import { withDatabase } from "../connection/endpoint.js"
import type { Session } from "../connection/session.js"
import * as Migration from "../migrator/migration.js"
import * as MigratorModule from "../Migrator.js"
import * as Lock from "./lock.js"
import { prefix } from "./server.js"

/** The database that others are cloned from. */
export interface Template {
  /** Holds a digest of the migrations. */
  readonly name: string
  readonly loader: Migrator.Loader
}

/** None where nothing would tell that a migration was edited: then no database may outlive it. */
export const of = Effect.fnUntraced(function* (loader: Migrator.Loader) {
  const sources = yield* Migration.sources(loader)
  const digest = Crypto.createHash("sha256")
  for (const { checksum, id, name, version } of sources) {
    const content = checksum ?? version
    if (content === undefined) return Option.none<Template>()
    digest.update(`${id}\0${name}\0${content}\0`)
  }
  return Option.some<Template>({
    name: `${prefix}_template_${digest.digest("hex").slice(0, 16)}`,
    loader
  })
})

/** SQL for whether a template is there: a database gets the name once all migrations ran. */
export const isReady = (name: string) =>
  `EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = ${name} AND datistemplate)`

/**
 * Makes the template on first use. An advisory lock keeps parallel test processes from making it
 * twice; those that connect to another database of the server do not see it, so the template is
 * made under a name of its own and takes its place in one transaction.
 */
export const make = Effect.fn("TestDatabase.makeTemplate")(function* (
  server: string,
  admin: Session,
  { loader, name }: Template
) {
  const draft = `${prefix}_${Crypto.randomUUID().replaceAll("-", "")}`
  const create = Effect.gen(function* () {
    const [state] = yield* admin.query<{ isReady: boolean }>(`SELECT ${isReady("$1")} AS "isReady"`, [name])
    if (state?.isReady === true) return
    yield* admin.query(`CREATE DATABASE ${draft} TEMPLATE template0`)
    yield* migrate(server, draft, loader)
    yield* admin
      .query(
        `BEGIN;
        ALTER DATABASE ${draft} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false;
        ALTER DATABASE ${draft} RENAME TO ${name};
        COMMIT`
      )
      .pipe(
        Effect.tapError(() => Effect.ignore(admin.query("ROLLBACK"))),
        // Somebody else's was ready first, and is the same.
        Effect.catchIf(isTaken, () => Effect.void)
      )
  }).pipe(Effect.ensuring(Effect.ignore(admin.query(`DROP DATABASE IF EXISTS ${draft} WITH (FORCE)`))))
  yield* Lock.whileHeld(admin, name, Lock.whileHeld(admin, draft, create))
})

/** Applies migrations to a database. */
export const migrate = (server: string, name: string, loader: Migrator.Loader) =>
  MigratorModule.run({ loader }).pipe(
    Effect.provide(Database.layer({ url: withDatabase(server, name), minConnections: 0, maxConnections: 3 })),
    Effect.scoped
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** 42P04, duplicate_database. */
const isTaken = (error: DatabaseError) => "code" in error.reason && error.reason.code === "42P04"
