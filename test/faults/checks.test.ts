import { assert, it } from "../support/it.js"
import * as Fs from "node:fs"

const files = [
  ...Fs.readdirSync(new URL("./", import.meta.url)).map((name) => new URL(name, import.meta.url)),
  new URL("../transaction/faults.test.ts", import.meta.url)
]

/**
 * F1 to F29 and F31. F30 and F32 are about what there is not here: a checker of histories, and
 * replicas.
 */
const ids = Array.from({ length: 31 }, (_, index) => `F${index + 1}`).filter((id) => id !== "F30")

it("Each fault check has a test with its id in its title, and no other id is in one", () => {
  const titles = files
    .filter(({ pathname }) => pathname.endsWith(".test.ts"))
    .flatMap((file) => [...Fs.readFileSync(file, "utf8").matchAll(/\bcheck\(\s*["`](F\d+): /g)])
  assert.sameMembers([...new Set(titles.map(([, id]) => String(id)))], ids)
})
