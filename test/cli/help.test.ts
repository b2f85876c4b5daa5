import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import { promptgrimoireDb } from "../support/command.js"

const help = (...args: ReadonlyArray<string>) =>
  Effect.map(promptgrimoireDb(args), ({ code, stderr, stdout }) => {
    assert.deepStrictEqual([code, stderr], [0, ""], args.join(" "))
    return stdout.trimEnd().split("\n")
  })

/** The commands that a help lists, with what it says of each. */
const listed = (lines: ReadonlyArray<string>) =>
  lines.flatMap((line) => {
    const [, name = "", meaning = ""] = /^ {2}((?:migrate|fk|doctor)(?: [a-z]+)?) +(\S.*)$/.exec(line) ?? []
    return name === "" ? [] : [{ name, meaning }]
  })

describe("The help of the command", () => {
  it.effect("lists every command with one line, which is a sentence", () =>
    Effect.gen(function* () {
      const commands = listed(yield* help("--help"))
      assert.deepStrictEqual(
        commands.map(({ name }) => name),
        [
          "migrate",
          ...["status", "plan", "check", "stamp", "down"].map((name) => `migrate ${name}`),
          ...["list", "plan", "rebuild", "undo", "history", "check", "purge"].map((name) => `fk ${name}`),
          "doctor"
        ]
      )
      for (const { meaning, name } of commands) assert.match(meaning, /^[A-Z][^.]*\.$/, name)
      assert.deepStrictEqual(yield* help(), yield* help("-h"))
      assert.deepStrictEqual(
        listed(yield* help("fk")),
        commands.filter(({ name }) => name.startsWith("fk "))
      )
    })
  )

  it.effect("says of every command what each option means, and how it is called, in 80 columns", () =>
    Effect.gen(function* () {
      for (const { name } of [{ name: "" }, ...listed(yield* help("--help"))]) {
        const lines = yield* help(...name.split(" ").filter((word) => word !== ""), "--help")
        assert.deepStrictEqual(
          lines.filter((line) => line.length > 80),
          []
        )
        if (name === "") continue
        assert.include(lines, "Example")
        const terms = lines.flatMap((line, index) => (line.startsWith("  --") ? [index] : []))
        assert.isAbove(terms.length, 1, name)
        for (const at of terms) assert.match(lines[at + 1] ?? "", /^ {6}\S/, `${name}: ${lines[at]}`)
      }
    })
  )

  it.effect("has what a change of foreign keys takes, and which of it is required", () =>
    Effect.gen(function* () {
      const text = (yield* help("fk", "rebuild", "--help")).join("\n")
      assert.include(text, "  --on-delete no-action | restrict | cascade | set-null | set-default\n")
      assert.match(text, /The action that the keys shall have\. Required\./)
      assert.match(text, /--lock-timeout DURATION\n[^-]*default "250 millis"/)
      assert.notMatch(text, /user-defined|This setting/)
    })
  )

  it.effect("is not printed for a command that is none", () =>
    Effect.gen(function* () {
      const { code, stdout } = yield* promptgrimoireDb(["fk", "nope"])
      assert.deepStrictEqual([code, stdout], [2, ""])
    })
  )
})
