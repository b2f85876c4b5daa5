import { assert, it } from "./support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../", import.meta.url))
const columns = 100

/** But migrations: what is applied is not edited any more. */
const sources = ["src", "test", "bench", "scripts", "examples"].flatMap((folder) =>
  Fs.readdirSync(Path.join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts") && !name.includes("node_modules"))
    .map((name) => Path.join(folder, name))
)

it("Comments have lines of at most 100 columns", () => {
  const long = sources.flatMap((file) =>
    Fs.readFileSync(Path.join(root, file), "utf8")
      .split("\n")
      .flatMap((line, index) =>
        line.length > columns && /^\s*(?:\/\/|\/\*\*|\*)/.test(line) ? [`${file}:${index + 1}`] : []
      )
  )
  assert.isAbove(sources.length, 100)
  assert.deepStrictEqual(long, [])
})
