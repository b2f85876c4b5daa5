/**
 * The documentation is true: every block of README.md and docs/ is type-checked and run.
 *
 * A comment before a block says how it is run, `<!-- test: a, b=c -->`:
 *
 * - nothing, before TypeScript: it is a whole program, run on a fresh database that has the
 *   migrations of this package.
 * - `database=empty`, `database=NAME.sql`: an empty database, or one with a file of
 *   `test/fixtures`.
 * - `continues`: it is run on the database of the block before it.
 * - `file=PATH`: it is written to that file, for the blocks of its page that import or load it.
 *   Suites (`*.test.ts`) are run with vitest, under the `vitest.config.ts` of the page.
 * - `output`: it is what the program or the command before it prints on standard output; durations
 *   and points in time are not compared.
 * - `exit=CODE`, before commands: the exit code of the last one.
 * - `transcript`: it is what `Transcript.ts` records.
 * - nothing, before text: it is a drawing.
 *
 * `UPDATE_DOCS=1 npx vitest run test/docs` writes the transcript into its page.
 */
import { assert, inFull, layer } from "../support/it.js"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { type Ended, repository } from "../support/command.js"
import { loader } from "../support/migrations.js"
import { adminSession, serverUrl } from "../support/server.js"
import * as Block from "./Block.js"
import * as Project from "./Project.js"
import { comparable, record } from "./Transcript.js"
import { cases } from "../support/length.js"

const blocks = Block.pages.flatMap(Block.read)

/** What is to be done with a block. */
type Kind = "file" | "program" | "command" | "statements" | "output" | "transcript" | "drawing" | "unknown"

const kindOf = ({ directives, language }: Block.Block): Kind => {
  if ("output" in directives && (language === "text" || language === "json")) return "output"
  if ("transcript" in directives && language === "text") return "transcript"
  if ("file" in directives && (language === "ts" || language === "json")) return "file"
  return kinds[language] ?? "unknown"
}

const kinds: Readonly<Record<string, Kind>> = {
  ts: "program",
  sh: "command",
  sql: "statements",
  text: "drawing"
}

const knownDirectives = new Set(["program", "database", "continues", "file", "output", "exit", "transcript"])

const ofKind = (kind: Kind, all: ReadonlyArray<Block.Block> = blocks) =>
  all.filter((block) => kindOf(block) === kind)

/** The file that a block is written to, in the directory of its page. */
const fileOf = ({ directives, line }: Block.Block) =>
  typeof directives["file"] === "string" ? directives["file"] : `line${line}.ts`

/** What is written to files: programs, and what they load. */
const files = blocks
  .filter((block) => ["file", "program"].includes(kindOf(block)))
  .map((block) => ({ page: block.page, path: fileOf(block), text: block.text, line: block.line }))

const succeeds = (what: string, { code, stderr, stdout }: Ended, expected = 0) =>
  assert.strictEqual(code, expected, `${what}\n${stdout}\n${stderr}`)

/** The database of a group: its name, and its url. */
const database = Effect.fnUntraced(function* ({ directives }: Block.Block) {
  const which = directives["database"]
  const url = Redacted.value(yield* TestDatabase.make(which === undefined ? { loader } : {}))
  const name = new URL(url).pathname.slice(1)
  if (typeof which === "string" && which !== "empty") {
    const admin = yield* adminSession(name)
    yield* admin.query(Fs.readFileSync(Path.join(repository, "test/fixtures", which), "utf8"))
  }
  return { name, url }
})

/** Programs that are told of a pooler run without one here, and are warned of that. */
const withoutPoolerWarning = (printed: string) =>
  printed
    .split("\n")
    .filter((line) => !line.includes("no connection pooler was found"))
    .join("\n")

const runGroup = Effect.fnUntraced(function* (group: Block.Group) {
  const { command, directoryOf, node } = yield* Project.Project
  const { name, url } = yield* database(group[0])
  const cwd = directoryOf(group[0].page, "js")
  let printed = ""
  for (const block of group) {
    const what = Block.place(block)
    switch (kindOf(block)) {
      case "program": {
        const file = fileOf(block).replace(/\.ts$/, ".js")
        const ended = yield* node([file], { cwd, env: { DATABASE_URL: url } })
        succeeds(what, ended)
        printed = withoutPoolerWarning(ended.stdout)
        break
      }
      case "command": {
        const commands = commandsOf(block)
        for (const [index, { args, env }] of commands.entries()) {
          const ended = yield* node([command, ...args], { cwd, env: { DATABASE_URL: url, ...env } })
          const isLast = index === commands.length - 1
          succeeds(
            `${what}: ${args.join(" ")}`,
            ended,
            isLast ? Number(block.directives["exit"] ?? 0) : undefined
          )
          printed = ended.stdout
        }
        break
      }
      case "statements": {
        const admin = yield* adminSession(name)
        yield* admin.query(block.text)
        break
      }
      case "output":
        if (block.language === "json") {
          assert.deepStrictEqual(
            JSON.parse(comparable(printed)),
            JSON.parse(comparable(block.text)),
            Block.place(block)
          )
        } else {
          assert.strictEqual(comparable(printed), comparable(block.text), Block.place(block))
        }
        break
      default:
    }
  }
})

/**
 * The commands of this package in a block; of every other line at least the name of the program is
 * checked.
 */
const commandsOf = (block: Block.Block) =>
  block.text
    .replaceAll("\\\n", " ")
    .split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "")
    .flatMap((line) => {
      const words = line.match(/"[^"]*"|\S+/g) ?? []
      const assignments = words.slice(
        0,
        words.findIndex((word) => !/^[A-Z_]+=/.test(word))
      )
      const [program = "", ...args] = words
        .slice(assignments.length)
        .filter((word, index) => !(index === 0 && word === "npx"))
        .map((word) => word.replaceAll('"', ""))
      if (program === "promptgrimoire-db") {
        return [
          {
            args,
            env: Object.fromEntries(assignments.map((word) => word.replaceAll('"', "").split("=", 2)))
          }
        ]
      }
      for (const part of line.split("&&")) checkOther(part.trim(), block)
      return []
    })

const checkOther = (line: string, block: Block.Block) => {
  const script = /^npm (?:run )?(?:-s |--silent )?(?<script>test|[\w:]+)(?: --.*)?$/.exec(line)?.groups?.[
    "script"
  ]
  const scripts = manifest["scripts"] ?? {}
  const known =
    /^npm (ci|init -y|pkg set type=module|(install|i)( (-D|--save-dev))?( (@?[\w/-]+(@[\d.]+)?))+)$/.test(
      line
    ) ||
    /^export DATABASE_\w+=\S+$/.test(line) ||
    /^npx (vitest( run)?|tsx main\.ts)$/.test(line.replace(/^([A-Z_]+=\S+ )*/, "")) ||
    (script !== undefined && script in scripts)
  assert.isTrue(known, `${Block.place(block)}: nothing checks the command "${line}"`)
}

const manifest = JSON.parse(Fs.readFileSync(Path.join(repository, "package.json"), "utf8")) as Record<
  string,
  Record<string, string> | undefined
>

const suitesOf = (page: string) =>
  ofKind("file", Block.read(page)).filter(({ directives }) => String(directives["file"]).endsWith(".test.ts"))

const runs = (group: Block.Group) =>
  group.some((block) => ["program", "command", "statements"].includes(kindOf(block)))

const options = { concurrent: true }

layer(Project.layer(files), { excludeTestServices: true })("the code of the documentation", (it) => {
  it.effect("is of a kind that is run or checked, every block of it", () =>
    Effect.sync(() => {
      assert.deepStrictEqual(ofKind("unknown").map(Block.place), [])
      const directives = blocks.flatMap((block) => Object.keys(block.directives))
      assert.deepStrictEqual(
        directives.filter((name) => !knownDirectives.has(name)),
        []
      )
    })
  )

  inFull(it).effect(
    "has the types that it says",
    () =>
      Effect.gen(function* () {
        const { node, root } = yield* Project.Project
        const tsc = Path.join(repository, "node_modules/typescript/bin/tsc")
        succeeds("tsc", yield* node([tsc, "-p", root, "--noEmit", "--pretty", "false"], { cwd: root }))
      }),
    options
  )

  for (const page of cases(Block.pages, (page) => page === "README.md")) {
    const groups = Block.groups(Block.read(page)).filter(runs)
    for (const group of groups) {
      it.scoped(`of ${Block.place(group[0])} runs`, () => runGroup(group), options)
    }
    if (suitesOf(page).length === 0) continue
    inFull(it).effect(
      `of the suites of ${page} passes`,
      () =>
        Effect.gen(function* () {
          const { directoryOf, node } = yield* Project.Project
          const vitest = Path.join(repository, "node_modules/vitest/vitest.mjs")
          const ended = yield* node([vitest, "run", "--reporter=json"], {
            cwd: directoryOf(page, "ts"),
            env: { DATABASE_URL: serverUrl() }
          })
          succeeds(page, ended)
          const report = JSON.parse(ended.stdout) as { readonly testResults: ReadonlyArray<object> }
          assert.strictEqual(report.testResults.length, suitesOf(page).length, ended.stdout)
        }),
      options
    )
  }

  inFull(it).scoped(
    "transcript is what the command prints",
    () =>
      Effect.gen(function* () {
        const { command, node, root } = yield* Project.Project
        const shown = ofKind("transcript")
        const url = Redacted.value(yield* TestDatabase.make())
        const recorded = yield* record(new URL(url).pathname.slice(1), (args) =>
          node([command, ...args], { cwd: root, env: { DATABASE_URL: url } })
        )
        assert.strictEqual(shown.length, recorded.length)
        const update = yield* Config.withDefault(Config.string("UPDATE_DOCS"), "")
        for (const [index, actual] of recorded.entries()) {
          const block = shown[index]
          if (block === undefined) continue
          if (update === "1") {
            const file = Path.join(repository, block.page)
            Fs.writeFileSync(
              file,
              Fs.readFileSync(file, "utf8").replace(block.text, () => actual)
            )
          } else {
            const advice = "is out of date: UPDATE_DOCS=1 npx vitest run test/docs"
            assert.strictEqual(comparable(block.text), comparable(actual), `${Block.place(block)} ${advice}`)
          }
        }
      }),
    options
  )
})
