/**
 * What it costs to start the command: the CPU time, user and system, of a process of the built
 * command, beside that of `node -e 0` in the same run, so that a slow or busy machine slows both.
 * Prints medians and their ratio, and exits with 1 when a ratio is above its limit.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { execFileSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { Client } from "pg"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"

const main = fileURLToPath(new URL("../dist/src/cli/main.js", import.meta.url))

/** The CPU time of a process with everything that it waited for, in milliseconds. */
const cpuTime = (args: ReadonlyArray<string>): number => {
  const printed = execFileSync(
    "bash",
    [
      "-c",
      'TIMEFORMAT="%U %S"; { time "$@" >/dev/null 2>&1 || exit 1; } 2>&1',
      "bash",
      process.execPath,
      ...args
    ],
    { encoding: "utf8" }
  )
  const [user = Number.NaN, system = Number.NaN] = printed.trim().split(" ").map(Number)
  return (user + system) * 1000
}

const median = (values: ReadonlyArray<number>) =>
  values.toSorted((left, right) => left - right)[Math.floor(values.length / 2)] ?? Number.NaN

const pairs = 15

/**
 * Runs pairs of both, one after the other, and says whether the ratio of their medians is within
 * the limit.
 */
const measure = (name: string, args: ReadonlyArray<string>, limit: number) =>
  Effect.gen(function* () {
    const times = Array.from({ length: pairs }, () => ({
      node: cpuTime(["-e", "0"]),
      command: cpuTime([main, ...args])
    }))
    const node = median(times.map((pair) => pair.node))
    const command = median(times.map((pair) => pair.command))
    const ratio = command / node
    yield* Console.log(
      `${name.padEnd(20)} ${command.toFixed(0).padStart(5)} ms   node ${node.toFixed(0).padStart(4)} ms   ratio ${ratio.toFixed(1).padStart(4)}   limit ${limit}`
    )
    return ratio <= limit
  })

/** Two tables and a key. */
const small = "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (parent_id int REFERENCES parent)"

const program = Effect.gen(function* () {
  const server = yield* EmbeddedPostgres.make()
  const url = Redacted.value(server.url)
  yield* Effect.promise(async () => {
    const client = new Client(url)
    await client.connect()
    await client.query(small)
    await client.end()
  })
  const isWithin = [
    yield* measure("--version", ["--version"], 4),
    yield* measure("--help", ["--help"], 4),
    yield* measure("fk rebuild --help", ["fk", "rebuild", "--help"], 4),
    yield* measure("fk list", ["fk", "list", "--url", url], 8)
  ]
  if (isWithin.includes(false)) process.exitCode = 1
})

void Effect.runPromise(Effect.scoped(program))
