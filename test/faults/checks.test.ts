import { assert, it } from "../support/it.js"
import * as Fs from "node:fs"

const folder = new URL("./", import.meta.url)

/** F1 to F29 and F31. F30 and F32 are about what there is not here: a checker of histories, and replicas. */
const ids = Array.from({ length: 31 }, (_, index) => `F${index + 1}`).filter((id) => id !== "F30")

it("Each fault check has a test with its id in its title, and no other id is in one", () => {
  const titles = Fs.readdirSync(folder)
    .filter((name) => name.endsWith(".test.ts"))
    .flatMap((name) => [
      ...Fs.readFileSync(new URL(name, folder), "utf8").matchAll(/\bcheck\(\s*["`](F\d+): /g)
    ])
  assert.sameMembers([...new Set(titles.map(([, id]) => String(id)))], ids)
})
