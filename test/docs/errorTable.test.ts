import { assert, describe, it } from "../support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import type * as DatabaseError from "../../src/DatabaseError.js"
import { classify } from "../../src/errors/classify.js"
import { policy } from "../../src/errors/policy.js"
import { clientReasons, serverReasons } from "../../src/errors/reasons.js"
import { repository } from "../support/command.js"

/** The rows of the table of reasons: tag, codes, retry, disposition. */
const rows = Fs.readFileSync(Path.join(repository, "docs/errors.md"), "utf8")
  .split("\n")
  .map((line) => /^\| `(\w+)` \| ([^|]*)\| (\w+)[^|]*\| (keep|destroy|invalidate) \|$/.exec(line))
  .flatMap((match) => {
    const [, tag = "", codes = "", retry, disposition] = match ?? []
    return match === null ? [] : [{ tag, codes, retry, disposition }]
  })

/** What tells codes apart that stand for two things. */
const classified = (tag: string, code: string): DatabaseError.Reason => {
  switch (tag) {
    case "ReplicaConflict":
      return classify({ code, routine: "ProcessRecoveryConflictInterrupt" })
    case "StatementTimeout":
      return classify({ code }, undefined, true)
    case "StalePreparedStatement":
      return classify({ code, routine: "RevalidateCachedQuery" })
    default:
      return classify({ code })
  }
}

describe("the table of reasons in docs/errors.md", () => {
  it("has every reason once", () => {
    assert.sameMembers(
      rows.map(({ tag }) => tag),
      Object.keys({ ...serverReasons, ...clientReasons })
    )
  })

  for (const { codes, disposition, retry, tag } of rows) {
    it(`says what becomes of ${tag}`, () => {
      assert.deepStrictEqual<object>(policy({ _tag: tag } as DatabaseError.Reason), { retry, disposition })
    })

    if (tag.startsWith("Transaction") && tag !== "TransactionTimeout") continue
    // A class stands for its codes without a reason of their own; no server uses the last ones.
    const all = codes.replaceAll(/class (\w\w)/g, "$1ZZZ").match(/\b[0-9A-Z]{5}\b/g) ?? []
    for (const code of all) {
      it(`gives ${code} to ${tag}`, () => {
        assert.strictEqual(classified(tag, code)._tag, tag)
      })
    }
  }
})
