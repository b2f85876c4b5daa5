import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import type { ChildProcess } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import * as Cluster from "./cluster.js"
import { EmbeddedPostgresError, fileSystem } from "./embeddedPostgresError.js"
import * as Polling from "./polling.js"
import * as ProcessRegistry from "./processRegistry.js"
import * as Program from "./program.js"
import { isPostmaster, isStranger } from "./serverProcess.js"

/** A running server, as its `postmaster.pid` describes it (PostgreSQL 13 to 18, `miscadmin.h`). */
export interface Postmaster {
  readonly pid: number
  readonly port: number
  readonly status: "starting" | "ready" | "stopping"
}

/**
 * `smart` waits for every session to end, `fast` ends them, `immediate` does not shut down: the
 * next start recovers.
 */
export type StopMode = "smart" | "fast" | "immediate"

/** The signal for each mode (PostgreSQL, chapter 18.5, shutting down the server). */
export const stopSignals = { smart: "SIGTERM", fast: "SIGINT", immediate: "SIGQUIT" } as const

/**
 * The server that runs on this data directory; none when there is none. The process in
 * `postmaster.pid` counts only when it really is a server on this directory: the file outlives a
 * killed server, and its process id is given to others. Synchronous, for exit handlers.
 */
export const findPostmaster = (data: string): Option.Option<Postmaster> =>
  ProcessRegistry.readText(path.join(data, "postmaster.pid")).pipe(
    Option.flatMap((text) => {
      const [pid, , , port, , , , status] = text.split("\n").map((line) => line.trim())
      return Number(pid) > 0 && isPostmaster(Number(pid), data)
        ? Option.some({ pid: Number(pid), port: Number(port), status: statusOf(status) })
        : Option.none()
    })
  )

/**
 * The running server, after waiting for one that is starting (an orphan that recovers) or stopping.
 * None means that nothing is in the way of a start. Requires the lock.
 */
export const settle = (
  cluster: Cluster.Cluster
): Effect.Effect<Option.Option<Postmaster>, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const data = Cluster.dataDirectory(cluster)
    yield* Polling.until(
      Effect.sync(() =>
        Option.match(findPostmaster(data), { onNone: () => true, onSome: ({ status }) => status === "ready" })
      ),
      { every: "10 millis", atMost: startTimeout }
    )
    const running = findPostmaster(data)
    if (Option.isNone(running)) yield* removeStalePidFile(data)
    return running
  })

/**
 * Starts the server. Requires the lock, and `settle` to have found none. `port` is the port to use
 * and no other; without it the port of the last start is used if it is free, else any other.
 */
export const start = (
  cluster: Cluster.Cluster,
  log: string,
  port: Option.Option<number>
): Effect.Effect<Postmaster, EmbeddedPostgresError> => startOnSomePort(cluster, log, port, 0)

/** Stops the server and waits until it is gone. Does nothing when it is not running. */
export const stop = (cluster: Cluster.Cluster, mode: StopMode): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const data = Cluster.dataDirectory(cluster)
    const running = findPostmaster(data)
    if (Option.isNone(running)) return
    const { pid } = running.value
    // A process that ends loses its arguments before what it has open: gone is only one that has no
    // start time any more.
    const started = Option.getOrNull(ProcessRegistry.startTime(pid))
    yield* signal(pid, data, mode)
    const gone = yield* Polling.until(
      Effect.sync(() => started === null || Option.getOrNull(ProcessRegistry.startTime(pid)) !== started),
      {
        every: "5 millis",
        atMost: mode === "smart" ? smartTimeout : stopTimeout
      }
    )
    if (!gone) {
      yield* new EmbeddedPostgresError({
        reason: "StopFailed",
        message: `EmbeddedPostgres sent the server ${pid} of ${data} the signal for ${mode} shutdown, and it still runs`
      })
    }
  })

/** Stops the server in order, and without, when that takes too long. */
export const stopFirmly = (
  cluster: Cluster.Cluster,
  mode: StopMode
): Effect.Effect<void, EmbeddedPostgresError> =>
  stop(cluster, mode).pipe(
    Effect.catchIf(
      (error) => error.reason === "StopFailed",
      () => stop(cluster, "immediate")
    )
  )

// -----------------------------------------------------------------------------

// Crash recovery of a large cluster is what takes long.
const startTimeout = "60 seconds"
const stopTimeout = "10 seconds"
const smartTimeout = "60 seconds"
const startAttempts = 20
const maxLogBytes = 10_000_000

const statusOf = (line: string | undefined): Postmaster["status"] =>
  line === "ready" || line === "standby" ? "ready" : line === "stopping" ? "stopping" : "starting"

const signal = (pid: number, data: string, mode: StopMode): Effect.Effect<void> =>
  Effect.sync(() => {
    if (isPostmaster(pid, data)) Option.liftThrowable(() => process.kill(pid, stopSignals[mode]))()
  })

/**
 * The server removes the file of a dead process itself, after looking for survivors in its shared
 * memory, and is right to. But when the dead process's id belongs to another process now (in
 * containers, where ids start anew, it often does), it takes that one for a server.
 */
const removeStalePidFile = (data: string): Effect.Effect<void, EmbeddedPostgresError> =>
  fileSystem(`remove the stale postmaster.pid in ${data}`, () => {
    const file = path.join(data, "postmaster.pid")
    // Negative for the single-user mode.
    const pid = Option.map(ProcessRegistry.readText(file), (text) => Math.abs(Number(text.split("\n")[0])))
    if (
      Option.isSome(pid) &&
      pid.value > 0 &&
      ProcessRegistry.exists(pid.value) &&
      isStranger(pid.value, data)
    ) {
      fs.rmSync(file, { force: true })
    }
  })

const startOnSomePort = (
  cluster: Cluster.Cluster,
  log: string,
  wanted: Option.Option<number>,
  attempt: number
): Effect.Effect<Postmaster, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    const preferred = Option.orElse(wanted, () => (attempt === 0 ? Cluster.readPort(cluster) : Option.none()))
    const port = yield* Option.match(preferred, {
      onNone: () => freePort,
      onSome: (port) =>
        Option.isSome(wanted)
          ? Effect.succeed(port)
          : Effect.flatMap(isFree(port), (free) => (free ? Effect.succeed(port) : freePort))
    })
    const outcome = yield* launch(cluster, log, port)
    if (outcome._tag === "Ready") {
      yield* Cluster.writePort(cluster, port)
      return outcome.postmaster
    }
    const portTaken = /could not bind|Address already in use/.test(outcome.log)
    // The processes of a killed server, or of a killed single-user mode, are about to notice and
    // end.
    const survivors = /shared memory block|lock file "postmaster.pid" already exists/.test(outcome.log)
    if ((!portTaken && !survivors) || attempt >= startAttempts) {
      return yield* startFailed(cluster, log, port, outcome.log)
    }
    if (survivors) yield* Polling.pause("100 millis")
    else if (Option.isSome(wanted)) {
      yield* Polling.until(isFree(port), { every: "50 millis", atMost: "1 second" })
    }
    return yield* startOnSomePort(cluster, log, wanted, attempt + 1)
  })

type Outcome =
  | { readonly _tag: "Ready"; readonly postmaster: Postmaster }
  | { readonly _tag: "Failed"; readonly log: string }

/**
 * Starts the server process and waits until it accepts connections, or ends. Interruption stops it.
 */
const launch = (
  cluster: Cluster.Cluster,
  log: string,
  port: number
): Effect.Effect<Outcome, EmbeddedPostgresError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const data = Cluster.dataDirectory(cluster)
      yield* Cluster.writeSettings(cluster, port)
      const { child, start } = yield* fileSystem(`start a server with the log ${log}`, () =>
        spawnServer(cluster, log, data)
      )
      if (child.pid === undefined) {
        return yield* Program.cannotRun(cluster.binaries, "postgres", "the system did not start it")
      }
      const settled = Effect.sync(() => hasEnded(child) || isReady(child, data))
      yield* restore(Polling.until(settled, { every: "5 millis", atMost: startTimeout })).pipe(
        Effect.onInterrupt(() => end(child))
      )
      const postmaster = findPostmaster(data)
      if (!hasEnded(child) && Option.isSome(postmaster) && postmaster.value.status === "ready") {
        return { _tag: "Ready", postmaster: postmaster.value }
      }
      yield* end(child)
      return { _tag: "Failed", log: yield* readFrom(log, start) }
    })
  )

const spawnServer = (cluster: Cluster.Cluster, log: string, data: string) => {
  if ((fs.statSync(log, { throwIfNoEntry: false })?.size ?? 0) > maxLogBytes) fs.renameSync(log, `${log}.1`)
  const descriptor = fs.openSync(log, "a", 0o600)
  try {
    const start = fs.fstatSync(descriptor).size
    const child = Program.start(
      cluster.binaries,
      cluster.account,
      "postgres",
      ["-D", data],
      ["ignore", descriptor, descriptor]
    )
    // Without a listener a failure to start would be thrown; it shows in the missing process id.
    child.on("error", () => {})
    child.unref()
    return { child, start }
  } finally {
    fs.closeSync(descriptor)
  }
}

const hasEnded = (child: ChildProcess): boolean => child.exitCode !== null || child.signalCode !== null

const isReady = (child: ChildProcess, data: string): boolean =>
  Option.exists(findPostmaster(data), ({ pid, status }) => pid === child.pid && status === "ready")

const end = (child: ChildProcess): Effect.Effect<void> =>
  Effect.gen(function* () {
    if (hasEnded(child)) return
    child.kill("SIGQUIT")
    yield* Polling.until(
      Effect.sync(() => hasEnded(child)),
      { every: "5 millis", atMost: stopTimeout }
    )
  })

const readFrom = (file: string, start: number): Effect.Effect<string, EmbeddedPostgresError> =>
  fileSystem(`read the log ${file}`, () => fs.readFileSync(file).subarray(start).toString("utf8"))

const startFailed = (
  cluster: Cluster.Cluster,
  log: string,
  port: number,
  text: string
): EmbeddedPostgresError =>
  new EmbeddedPostgresError({
    reason: "StartFailed",
    message: `EmbeddedPostgres could not start PostgreSQL ${cluster.binaries.version} on ${Cluster.dataDirectory(cluster)}, port ${port}. The end of its log (${log}):\n${text.trim().split("\n").slice(-15).join("\n")}`
  })

/**
 * A port below those that systems give to outgoing connections (from 32768 on Linux, 49152
 * elsewhere): one of those could take the server's port while it restarts, even the connection of a
 * client of ours that tries to reach it.
 */
const freePort: Effect.Effect<number, EmbeddedPostgresError> = Effect.gen(function* () {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = yield* Random.nextIntBetween(15_000, 32_000)
    if (yield* isFree(port)) return port
  }
  return yield* new EmbeddedPostgresError({
    reason: "StartFailed",
    message:
      "EmbeddedPostgres found no free port from 15000 to 32000 on 127.0.0.1: is the loopback interface up?"
  })
})

const isFree = (port: number): Effect.Effect<boolean> =>
  Effect.async((resume) => {
    const server = net.createServer()
    server.on("error", () => resume(Effect.succeed(false)))
    server.listen({ host: "127.0.0.1", port, exclusive: true }, () =>
      server.close(() => resume(Effect.succeed(true)))
    )
    return Effect.sync(() => server.close())
  })
