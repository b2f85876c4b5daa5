import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import * as Binaries from "./binaries.js"
import * as Cluster from "./cluster.js"
import { EmbeddedPostgresError, fileSystem } from "./embeddedPostgresError.js"
import * as ExitHook from "./exitHook.js"
import * as ProcessRegistry from "./processRegistry.js"
import * as Server from "./server.js"
import * as ServerAccount from "./serverAccount.js"

/** What the server depends on in its surroundings. Tests put other values in. */
export interface Environment {
  /** Directories in and above which packages and `.postgres` are looked for. */
  readonly searchFrom: ReadonlyArray<string>
  /** Accounts to run the server as when we are root, best first. */
  readonly serverAccounts: ReadonlyArray<string>
  /** Where a copy of the binaries goes when they cannot be used where they are. */
  readonly cacheDirectory: string
  /** Where clusters go whose own directory the server's account cannot enter. */
  readonly stateDirectory: string
  /** Directories for temporary clusters, best first. */
  readonly temporaryDirectories: ReadonlyArray<string>
}

/** The surroundings of this process. */
export const defaultEnvironment: Effect.Effect<Environment> = Effect.sync(() => ({
  searchFrom: [path.dirname(fileURLToPath(import.meta.url)), process.cwd()],
  serverAccounts: ["postgres", "nobody"],
  cacheDirectory: Binaries.defaultCacheDirectory(),
  stateDirectory: "/var/lib/promptgrimoire-db",
  temporaryDirectories: [...memory(), os.tmpdir(), "/tmp", "/var/tmp"]
}))

/**
 * A file system in memory, where a database is cloned some thirty times faster: CREATE DATABASE is
 * the making of a few hundred small files. Not if it is small, and not if TMPDIR says where
 * temporary files go.
 */
const memory = (): ReadonlyArray<string> => {
  if (process.env["TMPDIR"] !== undefined) return []
  try {
    const { bavail, bsize } = fs.statfsSync("/dev/shm")
    return bavail * bsize >= 4 * 2 ** 30 ? ["/dev/shm"] : []
  } catch {
    return []
  }
}

/** Options with their defaults applied. */
export interface Settings {
  readonly dataDirectory: Option.Option<string>
  readonly major: Option.Option<number>
  readonly database: string
  readonly settings: Readonly<Record<string, string>>
}

/** A server that runs, with this process registered as one of its users. */
export interface Handle {
  readonly binaries: Binaries.Binaries
  readonly dataDirectory: string
  readonly port: number
  readonly password: Redacted.Redacted
  readonly stop: (mode: Server.StopMode) => Effect.Effect<void, EmbeddedPostgresError>
  readonly start: Effect.Effect<void, EmbeddedPostgresError>
  readonly processId: Effect.Effect<number, EmbeddedPostgresError>
}

/**
 * Provides a running server until the scope closes. This process is registered as a user before
 * anything is started and until everything is stopped, so that of several processes exactly the
 * last one to leave stops the server.
 */
export const acquire = (
  options: Settings,
  environment: Environment
): Effect.Effect<Handle, EmbeddedPostgresError, Scope.Scope> =>
  Effect.gen(function* () {
    const found = yield* Binaries.locate({ major: options.major, searchFrom: environment.searchFrom })
    const candidate = yield* ServerAccount.find(environment.serverAccounts)
    const home = yield* Option.match(options.dataDirectory, {
      onNone: () => temporaryHome(environment, candidate),
      onSome: persistentHome
    })
    const directory = yield* place(home, environment, candidate)
    const account = fs.existsSync(path.join(directory, "data"))
      ? yield* ServerAccount.ownerOf(path.join(directory, "data"))
      : candidate
    const binaries = yield* Binaries.prepare(found, account, environment.cacheDirectory)
    const cluster: Cluster.Cluster = {
      directory,
      binaries,
      account,
      settings: options.settings,
      durable: Option.isSome(options.dataDirectory)
    }
    const locked = ProcessRegistry.withLock(path.join(home, "lock"))
    const users = path.join(home, "users")
    const token = ProcessRegistry.newToken()
    const log = path.join(home, "server.log")
    const stopMode = cluster.durable ? "fast" : "immediate"

    const run = (port: Option.Option<number>) =>
      Effect.gen(function* () {
        const running = yield* Server.settle(cluster)
        if (Option.isSome(running) && !Cluster.isDatabaseKnown(cluster, options.database)) {
          return yield* new EmbeddedPostgresError({
            reason: "InvalidOption",
            message: `EmbeddedPostgres can create the database ${options.database} only when it starts the server, and ${cluster.directory} is in use by another program already: create the database with SQL, or end that program`
          })
        }
        if (Option.isSome(running)) return running.value
        yield* Cluster.createDatabase(cluster, options.database)
        return yield* Server.start(cluster, log, port)
      })

    const leave = Effect.gen(function* () {
      yield* ProcessRegistry.unregister(users, token)
      const others = yield* fileSystem(`read ${users}`, () => ProcessRegistry.livingSync(users))
      if (others.length === 0) yield* Server.stopFirmly(cluster, stopMode)
    }).pipe(
      locked,
      Effect.catchAll((error) =>
        Effect.logWarning(`EmbeddedPostgres did not stop in order: ${error.message}`)
      )
    )

    yield* ExitHook.install(() => {
      fs.rmSync(path.join(users, token), { force: true })
      if (ProcessRegistry.livingSync(users).length > 0) return
      ExitHook.stopNow(Cluster.dataDirectory(cluster), stopMode)
      if (!cluster.durable) fs.rmSync(home, { recursive: true, force: true, maxRetries: 5 })
    })
    yield* Effect.acquireRelease(ProcessRegistry.register(users, token), () => leave)
    const postmaster = yield* locked(
      Effect.gen(function* () {
        if (!belongs(home, directory)) yield* discard(cluster)
        if (!Cluster.isCreated(cluster)) yield* Cluster.create(cluster, options.database)
        yield* noteLocation(home, directory)
        yield* Cluster.checkVersion(cluster)
        return yield* run(Option.none())
      })
    )

    return {
      binaries,
      dataDirectory: Cluster.dataDirectory(cluster),
      port: postmaster.port,
      password: yield* Cluster.readPassword(cluster),
      stop: (mode) => locked(Server.stop(cluster, mode)),
      start: Effect.asVoid(locked(run(Option.some(postmaster.port)))),
      processId: Effect.suspend(() =>
        Option.match(Server.findPostmaster(Cluster.dataDirectory(cluster)), {
          onNone: () =>
            new EmbeddedPostgresError({
              reason: "NotRunning",
              message: `EmbeddedPostgres: the server of ${directory} is not running`
            }),
          onSome: ({ pid }) => Effect.succeed(pid)
        })
      )
    } satisfies Handle
  })

// -----------------------------------------------------------------------------

/** The caller's directory: lock, users, log, and the cluster unless it has to be elsewhere. */
const persistentHome = (dataDirectory: string): Effect.Effect<string, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const home = yield* fileSystem(`create the data directory ${path.resolve(dataDirectory)}`, () => {
      makeHome(path.resolve(dataDirectory))
      return fs.realpathSync(dataDirectory)
    })
    if (fs.existsSync(path.join(home, "PG_VERSION"))) {
      return yield* new EmbeddedPostgresError({
        reason: "InvalidOption",
        message: `EmbeddedPostgres keeps a cluster of its own inside the data directory, and ${home} is a cluster itself: give another directory`
      })
    }
    return home
  })

/** A directory of our own, removed with the scope. Those of killed processes are removed now. */
const temporaryHome = (
  environment: Environment,
  account: Option.Option<ServerAccount.ServerAccount>
): Effect.Effect<string, EmbeddedPostgresError, Scope.Scope> =>
  Effect.gen(function* () {
    const usable = environment.temporaryDirectories
      .filter((directory) => fs.existsSync(directory))
      .map((directory) => fs.realpathSync(directory))
      .find((directory) =>
        Option.match(account, {
          onNone: () => true,
          onSome: (account) => ServerAccount.canEnter(directory, account)
        })
      )
    if (usable === undefined) {
      return yield* new EmbeddedPostgresError({
        reason: "FileSystem",
        message: `EmbeddedPostgres needs a temporary directory that the account of the server can enter, and none of ${environment.temporaryDirectories.join(", ")} is: set TMPDIR`
      })
    }
    yield* sweep(usable)
    const home = path.join(usable, `${temporaryPrefix}${ProcessRegistry.newToken()}`)
    return yield* Effect.acquireRelease(
      fileSystem(`create the directory ${home}`, () => {
        makeHome(home)
        return home
      }),
      () =>
        fileSystem(`remove the temporary cluster ${home}`, () => Cluster.removeDirectory(home)).pipe(
          Effect.catchAll((error) => Effect.logWarning(error.message))
        )
    )
  })

const temporaryPrefix = "promptgrimoire-db-"

const makeHome = (home: string): void => {
  // The mode is for the last one only: the server's account has to get through those above.
  fs.mkdirSync(path.dirname(home), { recursive: true })
  if (fs.mkdirSync(home, { recursive: true, mode: 0o700 }) === undefined) return
  // For root the server is another account, which has to get to the cluster inside.
  if (process.getuid?.() === 0) fs.chmodSync(home, 0o711)
}

const sweep = (directory: string): Effect.Effect<void> =>
  fileSystem(`remove the clusters of killed processes from ${directory}`, async () => {
    for (const name of fs.readdirSync(directory)) {
      const home = path.join(directory, name)
      if (
        !name.startsWith(temporaryPrefix) ||
        !ProcessRegistry.isKnownDead(name.slice(temporaryPrefix.length))
      )
        continue
      if (fs.lstatSync(home).uid !== process.getuid?.()) continue
      ExitHook.stopNow(path.join(home, "cluster", "data"), "immediate")
      await Cluster.removeDirectory(home)
    }
    // Another process may be removing the same.
  }).pipe(Effect.ignore)

/** Where the cluster of a home is, or is to be. */
const place = (
  home: string,
  environment: Environment,
  account: Option.Option<ServerAccount.ServerAccount>
): Effect.Effect<string, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const inside = path.join(home, "cluster")
    const noted = ProcessRegistry.readText(locationFile(home))
    if (Option.isSome(noted)) return noted.value.trim()
    if (fs.existsSync(inside) || Option.isNone(account) || ServerAccount.canEnter(home, account.value)) {
      return inside
    }
    yield* fileSystem(`create the directory ${environment.stateDirectory}`, () => {
      makeHome(environment.stateDirectory)
    })
    const key = createHash("sha256").update(home).digest("hex").slice(0, 16)
    return path.join(environment.stateDirectory, key)
  })

const locationFile = (home: string): string => path.join(home, "cluster-location")

/**
 * Whether a cluster outside its home is that of this home, and not that of an earlier one at the
 * same path, which was deleted.
 */
const belongs = (home: string, directory: string): boolean =>
  path.dirname(directory) === home || !fs.existsSync(directory) || fs.existsSync(locationFile(home))

const discard = (cluster: Cluster.Cluster): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.zipRight(
    Server.stopFirmly(cluster, "immediate"),
    fileSystem(`remove the cluster ${cluster.directory}, whose home was deleted`, () =>
      Cluster.removeDirectory(cluster.directory)
    )
  )

const noteLocation = (home: string, directory: string): Effect.Effect<void, EmbeddedPostgresError> =>
  fileSystem(`write ${locationFile(home)}`, () => {
    if (path.dirname(directory) === home || fs.existsSync(locationFile(home))) return
    fs.writeFileSync(`${locationFile(home)}.new`, `${directory}\n`)
    fs.renameSync(`${locationFile(home)}.new`, locationFile(home))
  })
