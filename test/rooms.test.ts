import { assert, it } from "./support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const src = fileURLToPath(new URL("../src/", import.meta.url))

/**
 * Folders and modules of a folder, by the names that the configuration of the linter has for them.
 */
const within = (folder: string) =>
  Fs.readdirSync(Path.join(src, folder)).map((name) => Path.join(folder, name.replace(/\.ts$/, "")))

it("Every room of src/ has its place in the direction of imports", async () => {
  const { rooms } = (await import(new URL("../oxlint.config.mjs", import.meta.url).href)) as {
    readonly rooms: ReadonlyArray<ReadonlyArray<string>>
  }
  assert.sameMembers(rooms.flat(), [
    ...within("").filter((name) => name !== "foreignKey"),
    ...within("foreignKey")
  ])
})
