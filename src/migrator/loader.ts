import * as Migrator from "@effect/sql/Migrator"
import * as Effect from "effect/Effect"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs/promises"
import * as Path from "node:path"
import { pathToFileURL } from "node:url"
import { ChecksumTypeId, maxId, type Step, VersionTypeId } from "./migration.js"
import { MigratorError } from "./migratorError.js"

/** `0001_create_table`: an id and a name. */
const namePattern = /^(\d+)_([^.]+)$/

/** A name, and a kind of file that Node may be able to import. */
const filePattern = /^(?<name>.+)\.(?<kind>[cm]?[jt]s)$/

/**
 * Loads migrations from a directory: files named `<id>_<name>.ts` or `.js`, whose default export is
 * an Effect or a `Migrator.define`. Each is imported when it is needed only. A file that begins
 * with a number and has another form is refused rather than left out; every other file is left
 * alone. A directory without any is refused (`NoMigrations`), because a program that was packed
 * without its migrations would find nothing to do; `allowEmpty` allows it.
 */
export const fromDirectory = (
  directory: string,
  options: { readonly allowEmpty?: boolean | undefined } = {}
): Migrator.Loader =>
  Effect.gen(function* () {
    const files = yield* Effect.tryPromise({
      try: () => Fs.readdir(directory),
      catch: (cause) => importError(`the directory of migrations ${directory} cannot be read`, cause)
    })
    const candidates = files.filter((file) => /^\d/.test(file) && !/\.(d\.[cm]?ts|map)$/.test(file))
    if (candidates.length === 0 && options.allowEmpty !== true) {
      const detail = `there is no migration in ${directory}, files named <id>_<name>.js or .ts: name the directory that has them, or allow it to be empty`
      return yield* importError(detail, new MigratorError({ reason: "NoMigrations", detail }))
    }
    return yield* Effect.forEach(
      candidates,
      Effect.fnUntraced(function* (file) {
        const full = Path.resolve(directory, file)
        const { kind = "", name = file } = filePattern.exec(file)?.groups ?? {}
        const source = yield* Effect.tryPromise({
          try: () => Fs.readFile(full, "utf8"),
          catch: (cause) => importError(`the migration ${full} cannot be read`, cause)
        })
        const migration = yield* named(
          name,
          Effect.promise(() => import(pathToFileURL(full).href))
        )
        return Object.assign(migration, { [ChecksumTypeId]: checksum(kind, source) })
      })
    )
  })

/**
 * Loads migrations that the program imports itself, by names such as `0001_create_table`; for
 * programs that are bundled.
 *
 * `version` is another one whenever a migration is: it lets `TestDatabase` keep a migrated template
 * from run to run. What a ledger says of a migration does not depend on it.
 */
export const fromRecord = (
  migrations: Readonly<Record<string, Step>>,
  options: { readonly version?: string | undefined } = {}
): Migrator.Loader =>
  Effect.forEach(Object.entries(migrations), ([name, migration]) =>
    Effect.map(named(name, Effect.succeed(migration)), (resolved) =>
      Object.assign(resolved, { [VersionTypeId]: options.version })
    )
  )

/** Whether two checksums say that a file was edited. */
export const differs = (applied: string, current: string): boolean =>
  applied.split(":")[0] === current.split(":")[0] && applied !== current

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const named = (
  name: string,
  load: Effect.Effect<unknown>
): Effect.Effect<Migrator.ResolvedMigration, Migrator.MigrationError> => {
  const match = namePattern.exec(name)
  const id = Number(match?.[1])
  return match?.[2] !== undefined && id >= 1 && id <= maxId
    ? Effect.succeed([id, match[2], load])
    : Effect.fail(
        importError(
          `"${name}" is not named like a migration, <id>_<name> with an id from 1 to ${maxId} (and .ts or .js for a file): rename or move it`
        )
      )
}

const importError = (message: string, cause?: unknown) =>
  new Migrator.MigrationError({ reason: "import-error", message, cause })

/**
 * Line ends do not count. TypeScript and what it was compiled to cannot be compared, so the kind of
 * file is part of it.
 */
const checksum = (kind: string, source: string): string =>
  `${kind}:sha256:${Crypto.createHash("sha256").update(source.replaceAll("\r\n", "\n")).digest("hex")}`
