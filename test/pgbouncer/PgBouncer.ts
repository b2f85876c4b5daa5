import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { eventually } from "../support/eventually.js"
import { freePort, listens } from "../support/port.js"

/** PgBouncer could not be started. */
export class PgBouncerError extends Data.TaggedError("PgBouncerError")<{ readonly message: string }> {}

/** A running PgBouncer in transaction mode. */
export interface PgBouncer {
  /** The same server and databases, through the pooler. */
  readonly url: string
  readonly version: string
}

/** Starts PgBouncer on loopback before a server; it stops with the scope. */
export const make = (
  server: string,
  settings: ReadonlyArray<string> = []
): Effect.Effect<PgBouncer, PgBouncerError, Scope.Scope> =>
  Effect.gen(function* () {
    const version = yield* installed
    const port = yield* freePort
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "pgbouncer-"))),
      (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
    )
    const file = Path.join(directory, "pgbouncer.ini")
    yield* Effect.sync(() => {
      Fs.chmodSync(directory, 0o755)
      Fs.writeFileSync(file, [...configuration(server, port), ...settings, ""].join("\n"))
    })
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        // PgBouncer refuses to run as root; any other account will do.
        const account = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {}
        return spawn("pgbouncer", ["-q", file], { ...account, stdio: "ignore" })
      }),
      stop
    )
    yield* eventually("PgBouncer listens", listens(port)).pipe(
      Effect.mapError(() => new PgBouncerError({ message: `PgBouncer did not listen on port ${port}` }))
    )
    const url = new URL(server)
    url.port = String(port)
    return { url: url.toString(), version }
  })

/**
 * Behind this pooler there is one server connection for every ten clients, so that they do change
 * between transactions.
 */
const configuration = (server: string, port: number): ReadonlyArray<string> => {
  const { hostname, password, port: serverPort, username } = new URL(server)
  const target = `host=${hostname} port=${serverPort} user=${decodeURIComponent(username)} password=${decodeURIComponent(password)}`
  return [
    "[databases]",
    `* = ${target}`,
    "[pgbouncer]",
    "listen_addr = 127.0.0.1",
    `listen_port = ${port}`,
    "unix_socket_dir =",
    "auth_type = any",
    "pool_mode = transaction",
    "default_pool_size = 4",
    "max_client_conn = 500",
    "server_lifetime = 60",
    "server_idle_timeout = 2"
  ]
}

const installed = Effect.try({
  try: () => execFileSync("pgbouncer", ["--version"], { encoding: "utf8" }).split("\n")[0] ?? "",
  catch: () =>
    new PgBouncerError({ message: "PgBouncer is not installed. On Debian: apt-get install pgbouncer" })
})

const stop = (child: ChildProcess): Effect.Effect<void> =>
  Effect.async((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    child.on("exit", () => resume(Effect.void))
    child.kill("SIGKILL")
  })
