import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Line from "./support/Line.js"
import * as Site from "./support/Site.js"
import * as Tab from "./support/Tab.js"

/** Two tabs with the same text, each behind a line that can be held and cut. */
const openOnLines = (text = "") =>
  Effect.gen(function* () {
    const { program } = yield* Site.Site
    const path = yield* Site.newText
    const lines = yield* Effect.all([Line.make(program.port), Line.make(program.port)])
    const [one, two] = yield* Effect.all([
      Tab.open(`http://127.0.0.1:${lines[0].port}${path}`, { name: "Ada" }),
      Tab.open(`http://127.0.0.1:${lines[1].port}${path}`, { name: "Ben" })
    ])
    if (text !== "") yield* one.replacesAll(text)
    yield* two.shows(text)
    yield* one.saved
    const hold = Effect.all(lines.map(({ hold }) => hold))
    const release = Effect.all(lines.map(({ release }) => release))
    return { one, two, lines, path, hold, release }
  })

layer(Site.layer, { excludeTestServices: true, timeout: "2 minutes" })("edits at the same time", (it) => {
  it.scoped("merge when neither tab could know of the other's", () =>
    Effect.gen(function* () {
      const { hold, one, path, release, two } = yield* openOnLines()
      yield* hold
      yield* one.types("AAA")
      yield* two.types("BBB")
      yield* one.shows("AAA")
      yield* two.shows("BBB")
      yield* one.saysStatus("Saving …")
      yield* release
      yield* one.saved
      yield* two.saved
      const text = yield* Site.storedText(path)
      assert.include(["AAABBB", "BBBAAA"], text)
      yield* one.shows(text)
      yield* two.shows(text)
    })
  )

  it.scoped("keep what was typed in the middle of what somebody else deleted", () =>
    Effect.gen(function* () {
      const { hold, one, release, two } = yield* openOnLines("keep delete this keep")
      yield* hold
      yield* one.selects(5, 17)
      yield* one.presses("Delete")
      yield* two.selects(11)
      yield* two.types("[not] ")
      yield* release
      yield* one.shows("keep [not] keep")
      yield* two.shows("keep [not] keep")
    })
  )

  it.scoped("move a caret with the text around it", () =>
    Effect.gen(function* () {
      const { one, two } = yield* openOnLines("world")
      yield* two.selects(5)
      yield* one.selects(0)
      yield* one.types("Hello, ")
      yield* two.shows("Hello, world")
      yield* two.types("!")
      yield* one.shows("Hello, world!")
    })
  )

  it.scoped("leave a selection on the words that were selected", () =>
    Effect.gen(function* () {
      const { one, two } = yield* openOnLines("one two three")
      yield* two.selects(4, 7)
      yield* one.selects(0)
      yield* one.types("zero ")
      yield* two.shows("zero one two three")
      assert.deepStrictEqual(yield* two.selection, [9, 12])
      yield* one.selects(9)
      yield* one.types("and ")
      yield* two.shows("zero one and two three")
      assert.deepStrictEqual(yield* two.selection, [13, 16])
      yield* two.types("2")
      yield* one.shows("zero one and 2 three")
    })
  )

  it.scoped("wait until a character is composed", () =>
    Effect.gen(function* () {
      const { one, two } = yield* openOnLines("text: ")
      yield* two.selects(6)
      const keyboard = yield* Effect.promise(() => two.page.context().newCDPSession(two.page))
      yield* Effect.promise(() =>
        keyboard.send("Input.imeSetComposition", { text: "に", selectionStart: 1, selectionEnd: 1 })
      )
      yield* one.shows("text: に")
      yield* one.selects(0)
      yield* one.types("more ")
      yield* one.saved
      assert.strictEqual(yield* two.text, "text: に")
      yield* Effect.promise(() => keyboard.send("Input.insertText", { text: "日本" }))
      yield* one.shows("more text: 日本")
      yield* two.shows("more text: 日本")
    })
  )

  it.scoped("keep what was composed where the browser tells of it only after the end", () =>
    Effect.gen(function* () {
      const { one, two } = yield* openOnLines("text: ")
      yield* two.selects(6)
      yield* Effect.promise(() => two.page.evaluate(`edit.dispatchEvent(new Event("compositionstart"))`))
      yield* one.selects(0)
      yield* one.types("more ")
      yield* one.saved
      assert.strictEqual(yield* two.text, "text: ")
      yield* Effect.promise(() =>
        two.page.evaluate(`{
          edit.setRangeText("日本", 6, 6, "end")
          edit.dispatchEvent(new Event("compositionend"))
          edit.dispatchEvent(new InputEvent("input"))
        }`)
      )
      yield* two.shows("more text: 日本")
      yield* one.shows("more text: 日本")
    })
  )

  it.scoped("that cannot be saved are told to a screen reader", () =>
    Effect.gen(function* () {
      const { lines, one } = yield* openOnLines()
      yield* Effect.promise(() =>
        one.page.evaluate(`{
          globalThis.seen = []
          new MutationObserver((changes) => {
            seen.push(...changes.map(({ attributeName }) => attributeName ?? "text"))
          }).observe(document.querySelector("#status"), { attributes: true, childList: true })
        }`)
      )
      yield* lines[0].cut
      yield* one.saysStatus(/^Offline/)
      const seen = yield* Effect.promise(() => one.page.evaluate<ReadonlyArray<string>>("seen"))
      // What becomes live after it has changed is not read out.
      assert.deepStrictEqual(seen.slice(0, 2), ["aria-live", "text"])
    })
  )

  it.scoped("are undone by who made them, and by nobody else", () =>
    Effect.gen(function* () {
      const { one, two } = yield* openOnLines()
      yield* one.types("mine")
      yield* two.shows("mine")
      yield* two.selects(4)
      yield* two.types(", yours")
      yield* one.shows("mine, yours")
      yield* one.presses("Control+z")
      yield* two.shows(", yours")
      yield* one.presses("Control+Shift+z")
      yield* two.shows("mine, yours")
    })
  )

  it.scoped("catch up, both ways, when a connection was lost", () =>
    Effect.gen(function* () {
      const { lines, one, path, two } = yield* openOnLines("start ")
      yield* lines[1].cut
      yield* two.saysStatus("Offline: connecting again …")
      yield* two.selects(6)
      yield* two.types("two ")
      yield* two.saysStatus("Offline: your changes are kept here and will be saved")
      yield* one.showsPeople("Ada (you)")
      yield* one.selects(0)
      yield* one.types("one ")
      yield* one.saved
      yield* lines[1].mend
      yield* two.saved
      yield* one.shows("one start two ")
      yield* two.shows("one start two ")
      yield* one.showsPeople("Ada (you)", "Ben")
      assert.strictEqual(yield* Site.storedText(path), "one start two ")
    })
  )

  it.scoped("survive a reload before they could be sent", () =>
    Effect.gen(function* () {
      const { hold, one, path, release } = yield* openOnLines("start ")
      yield* hold
      yield* one.selects(6)
      yield* one.types("and this")
      yield* one.saysStatus("Saving …")
      const reloaded = yield* Effect.fork(one.reloads)
      yield* release
      yield* Fiber.join(reloaded)
      yield* one.saved
      yield* one.shows("start and this")
      assert.strictEqual(yield* Site.storedText(path), "start and this")
    })
  )

  it.scoped("of six people at once are all there in the end", () =>
    Effect.gen(function* () {
      const tabs = yield* Site.openTabs("Ada", "Ben", "Cleo", "Dan", "Eve", "Fay")
      yield* Effect.forEach(tabs, (tab, index) => tab.types(String(index).repeat(20)), {
        concurrency: "unbounded"
      })
      yield* Effect.forEach(tabs, (tab) => tab.saved)
      const text = yield* tabs[0].text
      assert.strictEqual(
        text.split("").toSorted().join(""),
        ["0", "1", "2", "3", "4", "5"].map((digit) => digit.repeat(20)).join("")
      )
      for (const tab of tabs) yield* tab.shows(text)
    })
  )
})
