/** The end of a process whose output is read, slowly or not to its end. */
import type { Writable } from "node:stream"
import { exitCodes } from "./report.js"

/** What a shell says of a program that SIGPIPE ended, because nobody reads its output any more. */
const brokenPipe = 141

/** Standard output or standard error. */
export interface Output {
  readonly stream: Writable
  /** Waits until it has delivered everything, or cannot any more, and says why it cannot. */
  readonly drain: (then: (error: NodeJS.ErrnoException | undefined) => void) => void
}

/**
 * Keeps a process alive whose output cannot be written: without a listener such an error ends it,
 * in the middle of its work.
 */
export const watch = (stream: Writable): Output => {
  let failure: NodeJS.ErrnoException | undefined
  stream.on("error", (error) => (failure ??= error))
  return {
    stream,
    drain: (then) => {
      if (failure !== undefined) then(failure)
      else stream.write("", (error) => then(failure ?? error ?? undefined))
    }
  }
}

/**
 * Waits for both outputs, and then gives the exit code: that of the work, unless it is 0 and the
 * result did not arrive. 141 says that its reader went away, as `head` does, and 1 that it could
 * not be written, as on a disk that is full. Whatever happened to standard error changes nothing.
 */
export const exitOf = (
  { stderr, stdout }: { readonly stdout: Output; readonly stderr: Output },
  code: number,
  exit: (code: number) => void
): void =>
  stdout.drain((error) => {
    const isClosed = error?.code === "EPIPE"
    if (error !== undefined && !isClosed) stderr.stream.write(`Error: standard output: ${error.message}\n`)
    stderr.drain(() => {
      const lost = isClosed ? brokenPipe : exitCodes.failed
      exit(error === undefined || code !== exitCodes.done ? code : lost)
    })
  })
