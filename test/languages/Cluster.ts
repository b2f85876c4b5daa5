import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execFileSync, spawn } from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { eventually } from "../support/eventually.js"
import { freePort, listens } from "../support/port.js"

/** The server could not be started. */
export class ClusterError extends Data.TaggedError("ClusterError")<{ readonly message: string }> {}

/**
 * A server of the system's PostgreSQL whose messages are in another language; it ends with the
 * scope. The embedded one has no catalogs of messages. `locale` is one that the system has, such as
 * `de_DE.UTF-8`.
 */
export const make = (locale: string): Effect.Effect<string, ClusterError, Scope.Scope> =>
  Effect.gen(function* () {
    const programs = yield* binaries
    // PostgreSQL refuses to run as root; any other account of /etc/passwd will do.
    const account = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {}
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const path = Fs.mkdtempSync(Path.join(Os.tmpdir(), "postgres-language-"))
        if (account.uid !== undefined) Fs.chownSync(path, account.uid, account.gid)
        return path
      }),
      (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
    )
    const password = Crypto.randomUUID()
    const passwordFile = Path.join(directory, "password")
    yield* Effect.sync(() => Fs.writeFileSync(passwordFile, password))
    const data = Path.join(directory, "data")
    const env = { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" }
    yield* Effect.try({
      try: () =>
        execFileSync(
          Path.join(programs, "initdb"),
          [
            "-D",
            data,
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--auth=scram-sha-256",
            `--pwfile=${passwordFile}`
          ],
          { ...account, cwd: "/", env, stdio: "ignore" }
        ),
      catch: () => new ClusterError({ message: `initdb of ${programs} failed` })
    })
    const port = yield* freePort
    const settings = {
      lc_messages: locale,
      listen_addresses: "127.0.0.1",
      port: String(port),
      unix_socket_directories: "",
      max_connections: "300",
      max_prepared_transactions: "10",
      fsync: "off",
      wal_level: "logical"
    }
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(
          Path.join(programs, "postgres"),
          ["-D", data, ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])],
          { ...account, cwd: "/", env, stdio: "ignore" }
        )
      ),
      (server) =>
        Effect.async<void>((resume) => {
          if (server.exitCode !== null) return resume(Effect.void)
          server.once("exit", () => resume(Effect.void))
          // Fast shutdown.
          server.kill("SIGINT")
        })
    )
    yield* eventually("PostgreSQL listens", listens(port)).pipe(
      Effect.mapError(
        () =>
          new ClusterError({
            message: `PostgreSQL with lc_messages ${locale} did not start. On Debian: apt-get install locales, and localedef -i ${locale.split(".")[0]} -f UTF-8 ${locale}`
          })
      )
    )
    return `postgresql://postgres:${password}@127.0.0.1:${port}/postgres`
  })

/** The newest PostgreSQL of the system. */
const binaries = Effect.try({
  try: () => {
    const root = "/usr/lib/postgresql"
    const [newest] = Fs.readdirSync(root).sort((a, b) => Number(b) - Number(a))
    return Path.join(root, String(newest), "bin")
  },
  catch: () =>
    new ClusterError({
      message: "PostgreSQL is not installed. On Debian: apt-get install postgresql locales"
    })
})
