/**
 * Which processes are PostgreSQL servers, and on which data directory. Synchronous, for exit
 * handlers.
 */
import * as Option from "effect/Option"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import * as ProcessRegistry from "./processRegistry.js"

/** A process that is a PostgreSQL server. */
export interface ServerProcess {
  /** Its `-D` argument as it was given; none without one. */
  readonly argument: Option.Option<string>
  /** The real path of its data directory; none when that cannot be told. */
  readonly data: Option.Option<string>
}

/**
 * Whether the process is a server on this data directory, by whatever spelling of the path it was
 * started.
 */
export const isPostmaster = (pid: number, data: string): boolean =>
  Option.exists(serverProcess(pid), (server) => runsOn(server, data))

/**
 * Whether the process is certainly no server on this data directory. Neither this nor
 * `isPostmaster` holds for a server whose data directory cannot be told.
 */
export const isStranger = (pid: number, data: string): boolean =>
  Option.match(serverProcess(pid), {
    onNone: () => true,
    onSome: (server) => Option.isSome(server.data) && !runsOn(server, data)
  })

/**
 * The server that a line of `ps -o command=` describes; none for other programs. Spaces separate
 * the arguments there, and are in paths, too.
 */
export const fromCommandLine = (line: string): Option.Option<ServerProcess> =>
  Option.map(Option.fromNullable(/^(?:.*\/)?postgres(?: -D ?(.+)| .*)?$/s.exec(line)), ([, argument]) =>
    described(Option.fromNullable(argument))
  )

// -----------------------------------------------------------------------------

const serverProcess = (pid: number): Option.Option<ServerProcess> =>
  process.platform === "linux"
    ? Option.flatMap(ProcessRegistry.readText(`/proc/${pid}/cmdline`), (text) =>
        fromArguments(pid, text.split("\0").slice(0, -1))
      )
    : fromCommandLine(
        (spawnSync("ps", ["-o", "command=", "-p", String(pid)], { encoding: "utf8" }).stdout ?? "").trim()
      )

/** The arguments of a zombie are empty. */
const fromArguments = (
  pid: number,
  [program, ...args]: ReadonlyArray<string>
): Option.Option<ServerProcess> => {
  if (program === undefined || path.basename(program) !== "postgres") return Option.none()
  const at = args.findIndex((arg) => arg.startsWith("-D"))
  const argument = Option.fromNullable(args[at] === "-D" ? args[at + 1] : args[at]?.slice(2))
  const server = described(argument)
  // A server goes into its data directory before it writes postmaster.pid. Only its own user and
  // root can see that.
  const workingDirectory = Option.liftThrowable(() => fs.readlinkSync(`/proc/${pid}/cwd`))()
  return Option.some({ ...server, data: Option.orElse(workingDirectory, () => server.data) })
}

const described = (argument: Option.Option<string>): ServerProcess => ({
  argument,
  data: Option.flatMap(
    Option.filter(argument, (given) => path.isAbsolute(given)),
    realPath
  )
})

const runsOn = (server: ServerProcess, data: string): boolean =>
  Option.contains(server.argument, data) ||
  Option.exists(server.data, (other) => Option.contains(realPath(data), other))

const realPath: (file: string) => Option.Option<string> = Option.liftThrowable((file: string) =>
  fs.realpathSync(file)
)
