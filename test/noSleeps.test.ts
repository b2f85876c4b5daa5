import { assert, it } from "./support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("./", import.meta.url))

/** Every source file of the tests; those of e2e/ have a test of their own. */
const sources = Fs.readdirSync(root, { recursive: true, encoding: "utf8" }).filter(
  (name) => /\.[cm]?[jt]s$/.test(name) && !name.startsWith("e2e/")
)

/**
 * The ways to let time pass, of JavaScript, Node and Effect. Put together, so that they are not
 * found here.
 */
const sleeps = new RegExp(
  [
    ["set", "Timeout"],
    ["set", "Interval"],
    ["set", "Immediate"],
    ["timers/", "promises"],
    ["Atomics", ".wait"],
    ["Effect\\.sl", "eep\\b"],
    ["Effect\\.de", "lay\\("]
  ]
    .map((parts) => parts.join(""))
    .join("|")
)

/** Where the passing of time is what a test is about: a file, what its line contains, and why. */
const allowed: ReadonlyArray<readonly [file: string, line: string, why: string]> = [
  // Networks and programs that take their time.
  ["support/Proxy.ts", "hold(Effect.", "a message that takes a while"],
  ["support/Proxy.ts", "(step, from + size)", "bytes that arrive one by one"],
  ["faults/acquire.test.ts", "30 seconds", "the length of an outage"],
  ["faults/acquire.test.ts", "150 millis", "the length of a dial"],
  ["faults/cancel.test.ts", "300 millis", "a cancel request that comes so late"],
  ["faults/error.test.ts", "400 millis", "a transaction that idles for longer than it may"],
  ["faults/error.test.ts", "1100 millis", "losses that lie apart"],
  ["faults/bank.test.ts", "20 millis", "the pace of a teller who was refused"],
  ["faults/bank.test.ts", "Duration.millis(millis)", "the pace of the faults"],
  ["faults/bank.test.ts", "seconds / 3", "a restart in each part of the run"],
  ["faults/bank.test.ts", "500 millis", "the length of an outage"],
  ["faults/lost.test.ts", "20 millis", "the pace of calls while a server restarts"],
  ["foreignKey/Traffic.ts", "2 millis", "the pace of the traffic"],
  ["foreignKey/Kill.test.ts", "5 millis", "the pace of a condition that is asked again"],

  ["cli/output.test.ts", "(next, 1)", "a reader that is slow"],

  ["support/witness.ts", "safetyNet(", "the longest wait for an answer"],

  // Interruptions at any moment: the moment is random.
  ["pool/Pool.test.ts", "1 millis", "a connection that is held for a moment"],
  ["pool/Pool.test.ts", "patience - 6", "a random moment"],
  ["faults/acquire.test.ts", "nextRange(0, 250)", "a random moment"],
  ["faults/cancel.test.ts", "Duration.millis(millis)", "a random moment"],

  // What must not happen as time passes.
  ["Database.test.ts", "1500 millis", "rounds of housekeeping after which the minimum is still there"],
  ["faults/lifetime.test.ts", "20 millis", "the garbage collector's time"],
  ["faults/lifetime.test.ts", "delay(", "samples of a figure, and statements, over a while"],
  ["faults/lifetime.test.ts", "500 millis", "rounds of housekeeping in which nothing may happen"],
  ["faults/lifetime.test.ts", "600 millis", "idle for longer than validateAfterIdle"],
  ["faults/lifetime.test.ts", "1800 millis", "held for longer than leakWarning"]
]

it("No test waits for time to pass, but where that is what it is about", () => {
  const found = sources.flatMap((name) =>
    Fs.readFileSync(Path.join(root, name), "utf8")
      .split("\n")
      .filter((line) => sleeps.test(line))
      .map((line) => ({ name, line: line.trim() }))
  )
  assert.isAbove(sources.length, 80)
  assert.isAbove(found.length, 10)
  assert.deepStrictEqual(
    found.filter(({ line, name }) => !allowed.some(([file, text]) => file === name && line.includes(text))),
    []
  )
})
