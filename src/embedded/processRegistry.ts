import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import { spawnSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import { EmbeddedPostgresError, fileSystem } from "./embeddedPostgresError.js"
import * as Polling from "./polling.js"

/**
 * A name that says which process made it: process id, start time of the process, boot of the
 * machine, and a random part. A process id alone is reused, soon in containers; with the start time
 * and the boot it is not.
 */
export const newToken = (): string =>
  [
    process.pid,
    Option.getOrElse(startTime(process.pid), () => unknownStart),
    bootId(),
    randomBytes(4).toString("hex")
  ].join("-")

/** Whether the process that made this token still runs. False for names that are not tokens. */
export const isAlive = (token: string): boolean => {
  const [pid, start, boot] = token.split("-")
  if (pid === undefined || start === undefined || boot === undefined || !/^[1-9]\d*$/.test(pid)) return false
  if (boot !== bootId()) return false
  return Option.match(startTime(Number(pid)), {
    onNone: () => false,
    onSome: (now) => now === start || now === unknownStart || start === unknownStart
  })
}

/**
 * Whether the process that made this token is known to be dead: false for processes of another
 * container, or before a reboot.
 */
export const isKnownDead = (token: string): boolean => token.split("-")[2] === bootId() && !isAlive(token)

/** Process id in a token. */
const processIdOf = (token: string): number => Number(token.split("-")[0])

/**
 * Tokens of running processes in a directory of tokens. What dead processes left there is removed.
 * Synchronous, for exit handlers.
 */
export const livingSync = (directory: string): ReadonlyArray<string> =>
  fs.readdirSync(directory).filter((token) => {
    if (isAlive(token)) return true
    fs.rmSync(path.join(directory, token), { force: true })
    return false
  })

/** Puts this process's token into the directory, until the scope closes. */
export const register = (
  directory: string,
  token: string
): Effect.Effect<void, EmbeddedPostgresError, Scope.Scope> =>
  Effect.acquireRelease(
    fileSystem(`register this process in ${directory}`, () => create(directory, token)),
    () => unregister(directory, token)
  )

/** Takes a token out of the directory; no error when it is not there. */
export const unregister = (directory: string, token: string): Effect.Effect<void> =>
  Effect.ignore(fileSystem(`remove ${token}`, () => fs.rmSync(path.join(directory, token), { force: true })))

/**
 * Runs the effect while no other holder of the same lock runs, in this process or another.
 *
 * The lock is a directory of tokens. Whoever wants it adds its own token, then looks: alone, it has
 * the lock; not alone, it takes its token away and tries again. Of two, the one that added last
 * sees the other. There is no lock file to take over from a dead process, which is where such locks
 * go wrong: tokens of the dead do not count, and nobody's removal of them can hit a living one.
 */
export const withLock =
  (directory: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | EmbeddedPostgresError, R> =>
    Effect.suspend(() => {
      const token = newToken()
      return acquireLock(directory, token).pipe(
        Effect.zipRight(effect),
        Effect.ensuring(unregister(directory, token))
      )
    })

// -----------------------------------------------------------------------------

const unknownStart = "unknown"

const makePrivateDirectory = (directory: string): void => {
  // The mode is for the last one only: those above may be for others too.
  fs.mkdirSync(path.dirname(directory), { recursive: true })
  fs.mkdirSync(directory, { recursive: true, mode: 0o700 })
}

const create = (directory: string, token: string): void => {
  makePrivateDirectory(directory)
  fs.writeFileSync(path.join(directory, token), "", { flag: "wx", mode: 0o600 })
}

/** Names of the others that hold or want the lock; empty when `token` now has it. */
const tryLock = (directory: string, token: string): ReadonlyArray<string> => {
  makePrivateDirectory(directory)
  const before = livingSync(directory)
  if (before.length > 0) return before
  create(directory, token)
  const others = livingSync(directory).filter((other) => other !== token)
  if (others.length > 0) fs.rmSync(path.join(directory, token), { force: true })
  return others
}

const acquireLock = (directory: string, token: string): Effect.Effect<void, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    // Random, or two that started together would collide at every attempt.
    const every = yield* Random.nextIntBetween(3, 20)
    const attempt = fileSystem(`take the lock ${directory}`, () => tryLock(directory, token))
    const acquired = yield* Polling.until(
      Effect.map(attempt, (others) => others.length === 0),
      { every, atMost: lockTimeout }
    )
    if (!acquired) {
      const others = yield* fileSystem(`read the lock ${directory}`, () => livingSync(directory))
      yield* new EmbeddedPostgresError({
        reason: "Busy",
        message: `EmbeddedPostgres waited ${lockTimeout} for the lock ${directory}, held by process ${others.map(processIdOf).join(", ")}: another program starts or stops this server and hangs`
      })
    }
  })

// Longer than the slowest start that another process may be going through (see Server.ts).
const lockTimeout = "150 seconds"

/**
 * Start time of a running process, `unknown` when the system does not tell, none when there is no
 * such process (or only its zombie).
 */
export const startTime = (pid: number): Option.Option<string> =>
  process.platform === "linux" ? startTimeFromProc(pid) : startTimeFromPs(pid)

const startTimeFromProc = (pid: number): Option.Option<string> =>
  Option.match(readText(`/proc/${pid}/stat`), {
    // With hidepid=2 the processes of other users are invisible there.
    onNone: () => (exists(pid) ? Option.some(unknownStart) : Option.none()),
    onSome: (stat) => {
      // The second field, the command in parentheses, may hold spaces and parentheses itself: count
      // from the last one.
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
      const [state, start] = [fields[0], fields[19]]
      return state === "Z" || state === "X" ? Option.none() : Option.fromNullable(start)
    }
  })

const startTimeFromPs = (pid: number): Option.Option<string> => {
  const { stdout } = spawnSync("ps", ["-o", "lstart=", "-p", String(pid)], { encoding: "utf8" })
  const start = (stdout ?? "").trim()
  return start === ""
    ? Option.none()
    : Option.some(createHash("sha256").update(start).digest("hex").slice(0, 12))
}

/** Whether there is a process with this id, be it another user's. */
export const exists = (pid: number): boolean =>
  Option.match(Option.liftThrowable(() => process.kill(pid, 0))(), {
    onNone: () => fs.existsSync(`/proc/${pid}`),
    onSome: () => true
  })

/** What process ids are unique in: a boot of the machine, and a container. */
const bootId = (): string =>
  [
    Option.getOrElse(readText("/proc/sys/kernel/random/boot_id"), () => "0").slice(0, 8),
    Option.getOrElse(Option.liftThrowable(() => fs.readlinkSync("/proc/self/ns/pid"))(), () => "").replace(
      /\D/g,
      ""
    )
  ].join(".")

/** Content of a text file; none when it cannot be read. */
export const readText: (file: string) => Option.Option<string> = Option.liftThrowable((file: string) =>
  fs.readFileSync(file, "utf8")
)
