/**
 * A temporary database beside the one that is migrated, on which migrations are tried: it has no
 * rows, and its locks concern nobody.
 */
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import { Database, layerElsewhere, type Provided } from "../Database.js"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import { MigratorError } from "./migratorError.js"

/**
 * Creates the database, with the search path, the schemas in that path and the extensions of the
 * one it stands for, and drops it with the scope. What a killed run has left behind is dropped by
 * the next one. `onStatement` as in `Database.layerElsewhere`.
 */
export const make = (
  onStatement?: (text: string) => void
): Effect.Effect<
  Layer.Layer<Provided, DatabaseError>,
  DatabaseError | MigratorError,
  Database | Scope.Scope
> =>
  Effect.gen(function* () {
    const { config, session } = yield* Database
    const admin = yield* session
    const model = yield* describe(admin)
    if (!model.mayCreate) return yield* notAllowed(model.role)
    yield* admin.query("SET statement_timeout = 0; SET lock_timeout = 0")
    const name = `${prefix}${model.oid}_${Crypto.randomUUID().replaceAll("-", "")}`
    // Held for as long as the database is in use, so that others can tell it from a leftover.
    yield* admin.query(`SELECT pg_catalog.pg_advisory_lock(${lockOf("$1")})`, [name])
    yield* Effect.acquireRelease(
      admin
        .query(
          // Sorting by bytes goes with every encoding, and no definition depends on it.
          `CREATE DATABASE ${name} TEMPLATE template0 ENCODING '${model.encoding}' LC_COLLATE 'C' LC_CTYPE 'C'`
        )
        .pipe(
          Effect.catchIf(
            (error) => error.reason._tag === "PermissionDenied",
            () => notAllowed(model.role)
          )
        ),
      () => Effect.ignore(admin.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`))
    )
    yield* dropLeftovers(admin, model.oid, name)
    yield* admin.query(
      `ALTER DATABASE ${name} SET search_path = ${model.searchPath === "" ? "''" : model.searchPath}`
    )
    const layer = layerElsewhere(config, name, onStatement)
    yield* furnish(model).pipe(Effect.provide(layer), Effect.scoped)
    return layer
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const prefix = "promptgrimoire_scratch_"

interface Model {
  readonly oid: string
  readonly role: string
  readonly mayCreate: boolean
  readonly encoding: string
  /** As SET takes it. */
  readonly searchPath: string
  /** Statements that create what migrations may find there. */
  readonly schemas: ReadonlyArray<string>
  readonly extensions: ReadonlyArray<string>
}

const describe = (admin: Session) =>
  Effect.flatMap(
    admin.query<Model>(`
      SELECT d.oid::text AS oid, r.rolname::text AS role, r.rolcreatedb OR r.rolsuper AS "mayCreate",
        pg_catalog.pg_encoding_to_char(d.encoding)::text AS encoding, pg_catalog.current_setting('search_path') AS "searchPath",
        ARRAY(
          SELECT pg_catalog.format('CREATE SCHEMA IF NOT EXISTS %I', s) FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS s
        ) AS schemas,
        ARRAY(
          SELECT pg_catalog.format('CREATE EXTENSION IF NOT EXISTS %I SCHEMA %I', e.extname, n.nspname)
          FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql'
        ) AS extensions
      FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
      WHERE d.datname = pg_catalog.current_database() AND r.rolname = current_user
    `),
    ([model]) => (model === undefined ? Effect.dieMessage("no such database or role") : Effect.succeed(model))
  )

const notAllowed = (role: string) =>
  new MigratorError({
    reason: "NoScratchDatabase",
    detail: `migrations are tried on a temporary database of the same server, and the role ${role} may not create one: ALTER ROLE ... CREATEDB, or use another role, or a copy of the database on a server of your own`
  })

/** An extension that this role cannot create is left out: a migration that needs it will say so. */
const furnish = ({ extensions, schemas }: Model) =>
  Effect.gen(function* () {
    const { session } = yield* Database
    const { query } = yield* session
    for (const statement of schemas) yield* query(statement)
    for (const statement of extensions) yield* Effect.ignore(query(statement))
  })

/** Databases of runs on this database that were killed: nobody holds their lock any more. */
const dropLeftovers = (admin: Session, oid: string, mine: string) =>
  Effect.gen(function* () {
    const leftovers = yield* admin.query<{ name: string }>(
      `SELECT datname::text AS name FROM pg_catalog.pg_database
      WHERE datname ~ $1 AND datname <> $2 AND pg_catalog.pg_try_advisory_lock(${lockOf("datname::text")})`,
      [`^${prefix}${oid}_[0-9a-f]{32}$`, mine]
    )
    for (const { name } of leftovers) {
      yield* Effect.ignore(admin.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`))
      yield* admin.query(`SELECT pg_catalog.pg_advisory_unlock(${lockOf("$1")})`, [name])
    }
  })

const lockOf = (name: string) => `pg_catalog.hashtextextended(${name}, 0)`
