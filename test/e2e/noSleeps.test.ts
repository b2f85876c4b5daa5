import { assert, it } from "../support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** Every source file of these folders, this one included. */
const sources = ["test/e2e", "examples"].flatMap((folder) =>
  Fs.readdirSync(Path.join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => /\.(?:[cm]?[jt]sx?|html)$/.test(name))
    .map((name) => Path.join(folder, name))
)

/**
 * The ways to let time pass: of Playwright, of JavaScript, of Node, and of Effect. Put together, so
 * that they are not found here.
 */
const sleeps = new RegExp(
  [
    ["waitFor", "Timeout"],
    ["set", "Timeout"],
    ["set", "Interval"],
    ["set", "Immediate"],
    ["timers/", "promises"],
    ["Atomics", ".wait"],
    ["\\.sl", "eep\\b"],
    ["\\.de", "lay\\("]
  ]
    .map((parts) => parts.join(""))
    .join("|")
)

it("no browser test, and nothing that they test, waits for time to pass", () => {
  const found = sources.flatMap((name) =>
    Fs.readFileSync(Path.join(root, name), "utf8")
      .split("\n")
      .filter((line) => sleeps.test(line))
      .map((line) => `${name}: ${line.trim()}`)
  )
  assert.isAbove(sources.length, 20)
  // The browser's part of the example reconnects after a pause, and has one clock for that.
  assert.deepStrictEqual(
    found.filter((line) => !line.startsWith("examples/two-tab-sync/client/timer.ts: ")),
    []
  )
  assert.lengthOf(found, 2)
})

it("only the connection uses the browser's clock", () => {
  const users = sources.filter((name) =>
    /from "\.\.?\/.*timer\.js"/.test(Fs.readFileSync(Path.join(root, name), "utf8"))
  )
  assert.deepStrictEqual(users, ["examples/two-tab-sync/client/connection.ts"])
})

it("no browser test polls inside the program's page, whose policy forbids to evaluate text there", () => {
  const polls = new RegExp(["\\.page\\.waitFor", "Function"].join(""))
  const users = sources.filter((name) => polls.test(Fs.readFileSync(Path.join(root, name), "utf8")))
  assert.deepStrictEqual(users, [])
})
