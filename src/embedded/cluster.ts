import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import type { Binaries } from "./binaries.js"
import { EmbeddedPostgresError, fileSystem } from "./embeddedPostgresError.js"
import * as ProcessRegistry from "./processRegistry.js"
import * as Program from "./program.js"
import type { ServerAccount } from "./serverAccount.js"

/**
 * A cluster on disk. Its directory holds `data` (the server's), `password` (ours alone),
 * `settings.conf` (read by the server) and `port` (that of the last start).
 */
export interface Cluster {
  readonly directory: string
  readonly binaries: Binaries
  readonly account: Option.Option<ServerAccount>
  readonly settings: Readonly<Record<string, string>>
  /** Whether the data has to survive a crash of the machine. */
  readonly durable: boolean
}

/** The superuser of every cluster. */
export const superuser = "postgres"

/** The server's data directory. */
export const dataDirectory = (cluster: Cluster): string => path.join(cluster.directory, "data")

/** Whether the cluster is there, complete. */
export const isCreated = (cluster: Cluster): boolean =>
  fs.existsSync(path.join(dataDirectory(cluster), "PG_VERSION"))

/**
 * Creates the cluster: beside its place first, then moved there in one step, so that it is either
 * complete or not there, whenever this process is killed. What a killed one left is removed.
 * Requires the lock.
 */
export const create = (cluster: Cluster, database: string): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const building = { ...cluster, directory: `${cluster.directory}.init-${ProcessRegistry.newToken()}` }
    yield* removeUnfinished(cluster)
    yield* fileSystem(`create the directory ${building.directory}`, () => {
      makeDirectories(building)
    })
    const fill = Effect.gen(function* () {
      yield* initdb(building)
      const password = randomBytes(32).toString("hex")
      yield* fileSystem(`write the password file in ${building.directory}`, () => {
        fs.writeFileSync(path.join(building.directory, "password"), `${password}\n`, {
          flag: "wx",
          mode: 0o600
        })
        writeAccessRules(building)
      })
      yield* writeSettings(building, 1)
      // As a verifier: nobody who sees what the program reads or logs can learn the password from
      // it.
      yield* execute(building, [
        `ALTER ROLE ${superuser} PASSWORD '${verifierOf(password)}'`,
        createDatabaseStatement(database)
      ])
      yield* noteDatabase(building, database)
      yield* fileSystem(`put the new cluster at ${cluster.directory}`, () => {
        fs.renameSync(building.directory, cluster.directory)
        syncDirectory(path.dirname(cluster.directory))
      })
    })
    yield* fill.pipe(Effect.onError(() => Effect.ignore(removeUnfinished(cluster))))
  })

/** Removes clusters that were not finished, of processes that died. Requires the lock. */
const removeUnfinished = (cluster: Cluster): Effect.Effect<void, EmbeddedPostgresError> => {
  const parent = path.dirname(cluster.directory)
  const prefix = `${path.basename(cluster.directory)}.init-`
  return fileSystem(`remove what is left of an earlier start in ${parent}`, async () => {
    for (const name of fs.readdirSync(parent)) {
      if (name.startsWith(prefix)) await removeDirectory(path.join(parent, name))
    }
  })
}

/** Removes a directory, even one that a dying program still writes to. */
export const removeDirectory = (directory: string): Promise<void> =>
  fs.promises.rm(directory, { recursive: true, force: true, maxRetries: 10, retryDelay: 20 })

/** Fails when the cluster was created by another major version. */
export const checkVersion = (cluster: Cluster): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const file = path.join(dataDirectory(cluster), "PG_VERSION")
    const major = yield* fileSystem(`read ${file}`, () => fs.readFileSync(file, "utf8").trim())
    if (major !== String(cluster.binaries.major)) {
      yield* new EmbeddedPostgresError({
        reason: "VersionMismatch",
        message: `EmbeddedPostgres has PostgreSQL ${cluster.binaries.version}, and the cluster in ${cluster.directory} was created by PostgreSQL ${major}: use major ${major} (POSTGRES_VERSION=${major}), or another data directory`
      })
    }
  })

/**
 * Creates the database unless it is known to exist. The server must not be running, and the lock is
 * required: this is PostgreSQL's single-user mode.
 */
export const createDatabase = (
  cluster: Cluster,
  database: string
): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    if (isDatabaseKnown(cluster, database)) return
    yield* execute(cluster, [createDatabaseStatement(database)], "already exists")
    yield* noteDatabase(cluster, database)
  })

/** Whether the database was created by `createDatabase`. */
export const isDatabaseKnown = (cluster: Cluster, database: string): boolean =>
  Option.match(ProcessRegistry.readText(databasesFile(cluster)), {
    onNone: () => false,
    onSome: (known) => known.split("\n").includes(JSON.stringify(database))
  })

/** The superuser's password. */
export const readPassword = (cluster: Cluster): Effect.Effect<Redacted.Redacted, EmbeddedPostgresError> => {
  const file = path.join(cluster.directory, "password")
  return Effect.map(
    fileSystem(`read the password file ${file}`, () => fs.readFileSync(file, "utf8").trim()),
    Redacted.make
  )
}

/** The port of the last start. */
export const readPort = (cluster: Cluster): Option.Option<number> =>
  ProcessRegistry.readText(path.join(cluster.directory, "port")).pipe(
    Option.map(Number),
    Option.filter((port) => Number.isInteger(port) && port > 0 && port < 65_536)
  )

/** Writes the settings that the server reads at its start, the port among them. */
export const writeSettings = (cluster: Cluster, port: number): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const settings = {
      ...commonSettings,
      ...(cluster.durable ? {} : unsafeSettings),
      ...cluster.settings,
      ...fixedSettings,
      port: String(port)
    }
    const unusable = Object.entries(settings).find(
      ([name, value]) => !/^[a-z_][a-z0-9_.]*$/i.test(name) || /[\n\r\0]/.test(value)
    )
    if (unusable !== undefined) {
      yield* new EmbeddedPostgresError({
        reason: "InvalidOption",
        message: `EmbeddedPostgres got the setting ${JSON.stringify(unusable[0])}, which has no valid name or holds a line break`
      })
    }
    const lines = Object.entries(settings).map(([name, value]) => `${name} = '${quote(value)}'\n`)
    const file = path.join(cluster.directory, "settings.conf")
    yield* fileSystem(`write ${file}`, () => {
      // Values may be secrets, so the file is for the server's account only; replaced in one step,
      // as somebody may reload the server.
      fs.writeFileSync(`${file}.new`, lines.join(""), { mode: 0o640 })
      shareWithServer(cluster, `${file}.new`, 0o640)
      fs.renameSync(`${file}.new`, file)
    })
  })

/** Writes down the port, for the next start. */
export const writePort = (cluster: Cluster, port: number): Effect.Effect<void, EmbeddedPostgresError> =>
  fileSystem(`write the port file in ${cluster.directory}`, () =>
    fs.writeFileSync(path.join(cluster.directory, "port"), `${port}\n`)
  )

// -----------------------------------------------------------------------------

const databasesFile = (cluster: Cluster): string => path.join(cluster.directory, "databases")

const createDatabaseStatement = (database: string): string =>
  `CREATE DATABASE "${database.replaceAll(`"`, `""`)}"`

const noteDatabase = (cluster: Cluster, database: string): Effect.Effect<void, EmbeddedPostgresError> =>
  fileSystem(`note the database in ${cluster.directory}`, () =>
    fs.appendFileSync(databasesFile(cluster), `${JSON.stringify(database)}\n`, { mode: 0o600 })
  )

const commonSettings = {
  shared_buffers: "64MB",
  timezone: "UTC",
  log_timezone: "UTC",
  log_line_prefix: "%m [%p] "
}

// For clusters that nobody needs after a crash of the machine (PostgreSQL 18, chapter 28,
// reliability). A crash of the server alone must lose nothing, or fault tests would see commits
// disappear: so synchronous_commit stays on, and without fsync it costs little.
const unsafeSettings = {
  fsync: "off",
  full_page_writes: "off",
  max_wal_size: "1GB",
  checkpoint_timeout: "30min"
}

const fixedSettings = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  // The default from 14 on.
  password_encryption: "scram-sha-256"
}

const quote = (value: string): string => value.replaceAll("\\", "\\\\").replaceAll("'", "''")

const makeDirectories = (cluster: Cluster): void => {
  fs.mkdirSync(cluster.directory, { mode: 0o700 })
  shareWithServer(cluster, cluster.directory, 0o710)
  fs.mkdirSync(dataDirectory(cluster), { mode: 0o700 })
  if (Option.isSome(cluster.account)) {
    fs.chownSync(dataDirectory(cluster), cluster.account.value.uid, cluster.account.value.gid)
  }
}

/** Lets the server's account, when it is not ours, at a file or directory of ours. */
const shareWithServer = (cluster: Cluster, file: string, mode: number): void => {
  if (Option.isNone(cluster.account)) return
  fs.chownSync(file, 0, cluster.account.value.gid)
  fs.chmodSync(file, mode)
}

const initdb = (cluster: Cluster): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const { code, output } = yield* Program.run(
      cluster.binaries,
      cluster.account,
      "initdb",
      [
        `--pgdata=${dataDirectory(cluster)}`,
        `--username=${superuser}`,
        // Nobody gets in until the password is set and the real rules are written.
        "--auth=reject",
        "--encoding=UTF8",
        ...localeOptions(cluster.binaries.major),
        ...(cluster.durable ? [] : ["--no-sync"])
      ],
      ""
    )
    if (code !== 0) yield* initFailed(cluster, "initdb", output)
  })

// Sorting by code point, the same on every machine. PostgreSQL brings such a locale itself from 17
// on (chapter 23.1.4, locale providers).
const localeOptions = (major: number): ReadonlyArray<string> =>
  major >= 17
    ? ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    : process.platform === "linux"
      ? ["--locale=C.UTF-8"]
      : ["--locale=C"]

const writeAccessRules = (cluster: Cluster): void => {
  const data = dataDirectory(cluster)
  fs.writeFileSync(
    path.join(data, "pg_hba.conf"),
    [
      "host all all 127.0.0.1/32 scram-sha-256\n",
      "host all all ::1/128 scram-sha-256\n",
      "host replication all 127.0.0.1/32 scram-sha-256\n"
    ].join("")
  )
  fs.appendFileSync(path.join(data, "postgresql.conf"), "\ninclude '../settings.conf'\n")
}

/** Runs statements, one line each, in single-user mode. */
const execute = (
  cluster: Cluster,
  statements: ReadonlyArray<string>,
  expectedError?: string
): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const { code, output } = yield* Program.run(
      cluster.binaries,
      cluster.account,
      "postgres",
      ["--single", "-D", dataDirectory(cluster), "postgres"],
      statements.map((statement) => `${statement}\n`).join("")
    )
    // The exit code says nothing about single statements.
    const error = output.split("\n").find((line) => /(ERROR|FATAL|PANIC):/.test(line))
    const isExpected = expectedError !== undefined && error?.includes(expectedError) === true
    if (code !== 0 || (error !== undefined && !isExpected)) {
      yield* initFailed(cluster, "postgres --single", output)
    }
  })

const initFailed = (cluster: Cluster, program: string, output: string): EmbeddedPostgresError => {
  const advice = output.includes("could not look up effective user")
    ? "\nPostgreSQL runs only as a user that has an entry in /etc/passwd: add one, run as another user, or set DATABASE_URL"
    : ""
  return new EmbeddedPostgresError({
    reason: "InitFailed",
    message: `EmbeddedPostgres could not create the cluster ${cluster.directory}: ${program} of PostgreSQL ${cluster.binaries.version} failed with\n${output.trim().split("\n").slice(-10).join("\n")}${advice}`
  })
}

/**
 * A SCRAM-SHA-256 verifier as PostgreSQL keeps it (RFC 5803). The password is ASCII, so that it
 * needs no normalisation.
 */
const verifierOf = (password: string): string => {
  const iterations = 4096
  const salt = randomBytes(16)
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256")
  const keyOf = (name: string) => createHmac("sha256", salted).update(name).digest()
  const storedKey = createHash("sha256").update(keyOf("Client Key")).digest("base64")
  return `SCRAM-SHA-256$${iterations}:${salt.toString("base64")}$${storedKey}:${keyOf("Server Key").toString("base64")}`
}

const syncDirectory = (directory: string): void => {
  const descriptor = fs.openSync(directory, "r")
  fs.fsyncSync(descriptor)
  fs.closeSync(descriptor)
}
