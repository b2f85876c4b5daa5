import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type ChildProcess, spawn, type StdioOptions } from "node:child_process"
import * as path from "node:path"
import type { Binaries } from "./binaries.js"
import { EmbeddedPostgresError } from "./embeddedPostgresError.js"
import type { ServerAccount } from "./serverAccount.js"

/** How a program of PostgreSQL ended, with what it wrote to both outputs. */
export interface Result {
  readonly code: number | null
  readonly output: string
}

/** Runs a program of PostgreSQL to its end. Interruption kills it, and waits until it is gone. */
export const run = (
  binaries: Binaries,
  account: Option.Option<ServerAccount>,
  program: "initdb" | "postgres",
  args: ReadonlyArray<string>,
  input: string
): Effect.Effect<Result, EmbeddedPostgresError> =>
  Effect.async((resume) => {
    const child = start(binaries, account, program, args, ["pipe", "pipe", "pipe"])
    const chunks: Array<Buffer> = []
    child.stdout?.on("data", (chunk: Buffer) => chunks.push(chunk))
    child.stderr?.on("data", (chunk: Buffer) => chunks.push(chunk))
    // A program that ends early closes its input: its exit code and output say why, not the broken
    // pipe.
    child.stdin?.on("error", () => {})
    child.on("error", (cause) => resume(Effect.fail(cannotRun(binaries, program, cause))))
    child.on("close", (code) =>
      resume(Effect.succeed({ code, output: Buffer.concat(chunks).toString("utf8") }))
    )
    child.stdin?.end(input)
    return Effect.async<void>((gone) => {
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) {
        return gone(Effect.void)
      }
      child.on("exit", () => gone(Effect.void))
      child.kill("SIGTERM")
    })
  })

/**
 * Starts a program of PostgreSQL as the account, in an environment that nothing of ours reaches:
 * PGDATA, PGPORT and the like would change what it does.
 */
export const start = (
  binaries: Binaries,
  account: Option.Option<ServerAccount>,
  program: "initdb" | "postgres",
  args: ReadonlyArray<string>,
  stdio: StdioOptions
): ChildProcess =>
  spawn(path.join(binaries.directory, "bin", program), args, {
    // The account may not be able to enter our current directory.
    cwd: "/",
    // Messages in English: a few of them decide what to do next.
    env: { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" },
    stdio,
    // In a session of its own, a Ctrl-C in the terminal reaches us only, and we stop the server in
    // order.
    detached: true,
    ...Option.match(account, { onNone: () => ({}), onSome: ({ gid, uid }) => ({ gid, uid }) })
  })

/** The failure when the system could not run the program at all. */
export const cannotRun = (binaries: Binaries, program: string, cause: unknown): EmbeddedPostgresError =>
  new EmbeddedPostgresError({
    reason: "UnsupportedPlatform",
    message: `EmbeddedPostgres could not run ${path.join(binaries.directory, "bin", program)}: ${cause instanceof Error ? cause.message : String(cause)}. On Linux the binaries need glibc (not Alpine), and a file system that is not mounted noexec; set DATABASE_URL to use another server`,
    cause
  })
