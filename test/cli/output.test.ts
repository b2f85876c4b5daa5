import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import { PassThrough } from "node:stream"
import { text } from "node:stream/consumers"
import { run } from "../../src/cli/run.js"
import { bundled } from "../support/bundled.js"
import { bundledCommand, repository } from "../support/command.js"
import { adminSession, emptyDatabase } from "../support/server.js"

/**
 * Runs Node in a pipeline of a shell, and answers with what came out of it and Node's exit code.
 */
const pipeline = (args: ReadonlyArray<string>, rest: string) =>
  Effect.promise(async () => {
    const child = spawn(
      "bash",
      ["-c", `"$@" ${rest}; printf '\\n%s\\n' "\${PIPESTATUS[0]}"`, "bash", process.execPath, ...args],
      {
        cwd: repository,
        env: { ...process.env, DATABASE_URL: undefined, DATABASE_DIRECT_URL: undefined },
        stdio: ["ignore", "pipe", "pipe"]
      }
    )
    const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)])
    const end = stdout.lastIndexOf("\n", stdout.length - 2)
    return { stdout: stdout.slice(0, end), stderr, code: Number(stdout.slice(end)) }
  })

/** A reader that takes a little at a time. */
const slowly = `node -e '
  process.stdin.on("readable", () => {
    const next = () => {
      const chunk = process.stdin.read(Math.min(65536, process.stdin.readableLength))
      if (chunk === null) return
      process.stdout.write(chunk)
      setTimeout(next, 1)
    }
    next()
  })'`

/** A program that prints so many bytes, and ends as the command does. */
const printing = (bytes: number, code: number, stream: "stdout" | "stderr" = "stdout") => [
  bundled({
    text: `import { exitOf, watch } from "./src/cli/output.ts"
   const outputs = { stdout: watch(process.stdout), stderr: watch(process.stderr) }
   process.${stream}.write("x".repeat(${bytes - 4}) + "end\\n")
   exitOf(outputs, ${code}, process.exit)`
  })
]

const large = 12 * 1024 * 1024

/** Five keys, one of which is refused because an extension owns its table. */
const refused = `
  CREATE EXTENSION lo;
  CREATE TABLE p (id int PRIMARY KEY);
  CREATE TABLE a (p int REFERENCES p); CREATE TABLE b (p int REFERENCES p);
  CREATE TABLE c (p int REFERENCES p); CREATE TABLE d (p int REFERENCES p);
  CREATE TABLE e (p int REFERENCES p);
  ALTER EXTENSION lo ADD TABLE c`

describe("the output of the command", () => {
  it.live("arrives whole through a pipe that is read slowly, whatever the exit code", () =>
    Effect.gen(function* () {
      for (const [code, stream, rest] of [
        [0, "stdout", `| ${slowly}`],
        [3, "stdout", `| ${slowly}`],
        [1, "stderr", `2>&1 >/dev/null | ${slowly}`]
      ] as const) {
        const ended = yield* pipeline(printing(large, code, stream), rest)
        assert.strictEqual(ended.code, code)
        assert.strictEqual(ended.stdout.length, large)
        assert.isTrue(ended.stdout.endsWith("end\n"))
      }
    })
  )

  it.live(
    "ends with 141 and quietly when nobody reads its result to the end, and keeps a code that is not 0",
    () =>
      Effect.gen(function* () {
        for (const [code, expected] of [
          [0, 141],
          [3, 3]
        ] as const) {
          const ended = yield* pipeline(printing(large, code), "| head -c 1")
          assert.deepStrictEqual(ended, { stdout: "x", stderr: "", code: expected })
        }
        const progress = yield* pipeline(printing(large, 0, "stderr"), "2>&1 >/dev/null | head -c 1")
        assert.deepStrictEqual(progress, { stdout: "x", stderr: "", code: 0 })
      })
  )

  it.live("fails and says why when it cannot be written", () =>
    Effect.gen(function* () {
      const ended = yield* pipeline(printing(100, 0), "> /dev/full")
      assert.strictEqual(ended.code, 1)
      assert.match(ended.stderr, /^Error: standard output: ENOSPC/)
    })
  )

  inFull(it).scopedLive("is one whole document, or one whole script, when a key is refused", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* admin.query(refused)
      const plan = [
        ...bundledCommand(),
        "fk",
        "plan",
        "--on-delete",
        "cascade",
        "--all",
        "--url",
        Redacted.value(url)
      ]
      const document = yield* pipeline([...plan, "--json"], `| ${slowly}`)
      assert.strictEqual(document.code, 3)
      assert.deepStrictEqual(
        JSON.parse(document.stdout).refused.map(({ constraint }: { constraint: string }) => constraint),
        ["public.c.c_p_fkey"]
      )
      const script = yield* pipeline([...plan, "--sql"], `2>/dev/null | ${slowly}`)
      const whole = yield* pipeline([...plan, "--sql"], `2>/dev/null | cat`)
      assert.strictEqual(script.code, 3)
      // The first line has the time.
      const statements = (text: string) => text.slice(text.indexOf("\n"))
      assert.strictEqual(statements(script.stdout), statements(whole.stdout))
      assert.include(script.stdout, "e_p_fkey")
    })
  )

  inFull(it).scopedLive("does not stop a rebuild when nobody reads its progress any more", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* admin.query(refused)
      const rebuild = ["fk", "rebuild", "--on-delete", "cascade", "--references", "p"]
      const ended = yield* pipeline(
        [...bundledCommand(), ...rebuild, "--url", Redacted.value(url)],
        "2>&1 | head -n 1"
      )
      assert.strictEqual(ended.code, 3)
      const rows = yield* admin.query(
        "SELECT pg_catalog.count(*)::int AS count FROM pg_catalog.pg_constraint WHERE contype = 'f' AND confdeltype = 'c'"
      )
      assert.deepStrictEqual(rows, [{ count: 4 }])
    })
  )

  it.live("goes to the streams that a run of the command in this process is given", () =>
    Effect.gen(function* () {
      const stdout = new PassThrough()
      const stderr = new PassThrough()
      const code = yield* run(["fk", "list", "--tabel", "x"], { stdout, stderr, env: {} })
      stdout.end()
      stderr.end()
      assert.strictEqual(code, 2)
      assert.strictEqual(yield* Effect.promise(() => text(stdout)), "")
      assert.include(yield* Effect.promise(() => text(stderr)), "--tabel")
    })
  )
})
