import { assert, describe, it } from "../support/it.js"
import type { Blocker } from "../../src/catalog/lockHolders.js"
import * as QueuePolicy from "../../src/foreignKey/apply/queuePolicy.js"

const transaction = (pid: number, transactionStart: string): Blocker => ({
  pid,
  transactionStart,
  applicationName: null,
  kind: "client backend",
  state: "active",
  queryStart: transactionStart,
  preparedTransaction: null
})

const after = (...looks: ReadonlyArray<ReadonlyArray<Blocker>>) =>
  looks.reduce(QueuePolicy.look, QueuePolicy.none)

const first = transaction(1, "2026-01-01T10:00:00.000Z")
const next = transaction(1, "2026-01-01T10:00:02.000Z")
const other = transaction(2, "2026-01-01T10:00:01.000Z")

describe("behind old transactions a lock request queues", () => {
  it("rarely while they show no sign of an end", () => {
    assert.strictEqual(QueuePolicy.chance(after([first], [first], [], [first, other])), 0.05)
  })

  it("half of the time once one has relieved another, also in the same session and after a moment without any", () => {
    assert.strictEqual(QueuePolicy.chance(after([first], [other])), 0.5)
    assert.strictEqual(QueuePolicy.chance(after([first], [], [next])), 0.5)
  })

  it("less behind several, and less with every time that it was in vain", () => {
    const relieved = after([first], [other, next])
    assert.strictEqual(QueuePolicy.chance(relieved), 0.25)
    const chances = Array.from({ length: 100 }, (_, queued) => QueuePolicy.chance({ ...relieved, queued }))
    assert.isTrue(chances.every((chance, index) => chance <= (chances[index - 1] ?? 1)))
    assert.strictEqual(chances.at(-1), 0.05)
  })
})
