/**
 * Makes a release of this checkout: checks, tests, sets the version, commits, tags and packs.
 * Nothing leaves this machine: `npm run release -- 0.2.0`
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import { fileURLToPath } from "node:url"

const repository = fileURLToPath(new URL("..", import.meta.url))

class ReleaseError extends Data.TaggedError("ReleaseError")<{ readonly message: string }> {}

/** Runs a command with its output on this terminal; with `quiet` it is returned instead. */
const run = (command: string, args: ReadonlyArray<string>, quiet = false) =>
  Effect.async<string, ReleaseError>((resume) => {
    const fail = (why: string) => resume(new ReleaseError({ message: `${command} ${args.join(" ")} ${why}` }))
    const child = spawn(command, args, {
      cwd: repository,
      stdio: ["ignore", quiet ? "pipe" : "inherit", "inherit"]
    })
    let output = ""
    child.stdout?.on("data", (chunk: Buffer) => (output += chunk.toString()))
    child.on("error", (cause) => fail(`could not be run: ${cause.message}`))
    child.on("close", (code) => (code === 0 ? resume(Effect.succeed(output)) : fail(`ended with ${code}`)))
    return Effect.sync(() => child.kill())
  })

const release = (version: string) =>
  Effect.gen(function* () {
    if (!/^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/.test(version)) {
      return yield* new ReleaseError({
        message: `"${version}" is not a version of three numbers: npm run release -- 0.2.0`
      })
    }
    const changes = yield* run("git", ["status", "--porcelain"], true)
    if (changes !== "") {
      return yield* new ReleaseError({ message: `commit or stash these first:\n${changes.trimEnd()}` })
    }
    const changelog = Fs.readFileSync(`${repository}/CHANGELOG.md`, "utf8")
    if (!changelog.split("\n").some((line) => line.startsWith(`## ${version}`))) {
      return yield* new ReleaseError({
        message: `CHANGELOG.md has no section "## ${version}": write it first`
      })
    }
    yield* run("npm", ["run", "check"])
    yield* run("npm", ["test"])
    yield* run("npm", ["version", version, "--no-git-tag-version", "--allow-same-version"], true)
    const files = ["package.json", "package-lock.json"]
    if ((yield* run("git", ["status", "--porcelain", ...files], true)) !== "") {
      yield* run("git", ["commit", "-m", `release: ${version}`, ...files])
    }
    yield* run("git", ["tag", "-a", `v${version}`, "-m", `Version ${version}`])
    const packed = (yield* run("npm", ["pack", "--silent"], true)).trim()
    yield* Console.log(`${packed} is ready: git push --follow-tags && npm publish ${packed}`)
  })

NodeRuntime.runMain(release(process.argv[2] ?? ""))
