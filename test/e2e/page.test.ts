import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import { fileURLToPath } from "node:url"
import type { BrowserContextOptions, Page } from "playwright-core"
import { Chromium } from "./support/Chromium.js"
import * as Site from "./support/Site.js"
import * as Tab from "./support/Tab.js"

const images = fileURLToPath(new URL("../../docs/images/", import.meta.url))

const lesson = `Lesson 4: The cave

Narrator: You stand before a cave. It is dark inside, and you hear water.
Student: I light my lantern and go in, slowly.
Narrator: The walls are covered with drawings. One of them moves.

Questions
1. Who tells this story?
2. What would you have done?
`

/** Two people at work on one text, in two windows. */
const twoWindows = (options: BrowserContextOptions) =>
  Effect.gen(function* () {
    const { program } = yield* Site.Site
    const path = yield* Site.newText
    const [one, two] = yield* Effect.all(
      ["Ada", "Ben"].map((name) => Tab.open(`${program.address}${path}`, { ...options, name }))
    )
    if (one === undefined || two === undefined) return yield* Effect.dieMessage("no tabs")
    yield* one.replacesAll(lesson)
    yield* two.shows(lesson)
    yield* two.selects(lesson.length)
    yield* two.types("3. What does the drawing want?")
    yield* one.shows(`${lesson}3. What does the drawing want?`)
    for (const tab of [one, two]) {
      yield* tab.saved
      yield* tab.showsPeople(...(tab === one ? ["Ada (you)", "Ben"] : ["Ada", "Ben (you)"]))
    }
    return [one, two] as const
  })

/** Puts pictures of pages next to each other into one. */
const picture = (name: string, pages: ReadonlyArray<Page>, backdrop: string) =>
  Effect.gen(function* () {
    const browser = yield* Chromium
    yield* Effect.promise(async () => {
      const shots = await Promise.all(pages.map((page) => page.screenshot()))
      const page = await browser.newPage({ viewport: { width: 1600, height: 800 } })
      const figures = shots.map((shot) => `<img src="data:image/png;base64,${shot.toString("base64")}">`)
      await page.setContent(`<style>
        body { display: inline-flex; gap: 24px; margin: 0; padding: 24px; background: ${backdrop} }
        img { height: 640px; border-radius: 10px; box-shadow: 0 4px 18px #0006 }
      </style>${figures.join("")}`)
      await page.locator("img").last().waitFor()
      await page.waitForFunction("[...document.images].every((image) => image.complete)")
      const taken = await page.locator("body").screenshot()
      const path = `${images}${name}`
      const stored = Fs.existsSync(path) ? Fs.readFileSync(path) : undefined
      // Two renderings of the same differ by a shade here and there, which is no reason to change a
      // file.
      if (stored === undefined || !(await looksLike(page, stored, taken))) Fs.writeFileSync(path, taken)
      await page.close()
    })
    assert.isAbove(Fs.statSync(`${images}${name}`).size, 10_000)
  })

/** Whether no point of two pictures differs by more than an eye can see. */
const looksLike = (page: Page, one: Buffer, two: Buffer) =>
  page.evaluate<boolean>(`(async () => {
    const points = async (base64) => {
      const bitmap = await createImageBitmap(await (await fetch("data:image/png;base64," + base64)).blob())
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d")
      canvas.drawImage(bitmap, 0, 0)
      return canvas.getImageData(0, 0, bitmap.width, bitmap.height)
    }
    const one = await points("${one.toString("base64")}")
    const two = await points("${two.toString("base64")}")
    return one.width === two.width && one.height === two.height &&
      one.data.every((value, index) => Math.abs(value - two.data[index]) < 8)
  })()`)

/** Nothing sticks out of the window to the side. */
const fits = (page: Page) =>
  Effect.promise(async () => {
    const [content, window] = await page.evaluate<readonly [number, number]>(
      "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert.isAtMost(content, window)
  })

/** The least contrast between a text on the page and what is behind it (WCAG 2.2, 1.4.3). */
const leastContrast = (page: Page) =>
  Effect.promise(() =>
    page.evaluate<number>(`{
      const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true })
      const behind = (element) => element === null ? [] : [...behind(element.parentElement), getComputedStyle(element).backgroundColor]
      const luminance = (colours) => {
        canvas.clearRect(0, 0, 1, 1)
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1) }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((byte) => byte / 255)
          .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
      }
      const contrast = (element) => {
        const under = behind(element)
        const [low, high] = [luminance(under), luminance([...under, getComputedStyle(element).color])].sort((a, b) => a - b)
        return (high + 0.05) / (low + 0.05)
      }
      Math.min(...[...document.querySelectorAll("h1, h2, label, p, li, textarea, input, button, #synced")].map(contrast))
    }`)
  )

layer(Site.layer, { excludeTestServices: true, timeout: "2 minutes" })("the page", (it) => {
  for (const [colorScheme, name, backdrop] of [
    ["light", "two-tabs.png", "#dfe3e8"],
    ["dark", "two-tabs-dark.png", "#05070a"]
  ] as const) {
    it.scoped(`is readable in ${colorScheme} mode`, () =>
      Effect.gen(function* () {
        const [one, two] = yield* twoWindows({ colorScheme, viewport: { width: 760, height: 640 } })
        for (const { page } of [one, two]) {
          yield* fits(page)
          assert.isAtLeast(yield* leastContrast(page), 4.5)
        }
        yield* picture(name, [one.page, two.page], backdrop)
      })
    )
  }

  it.scoped("fits a phone", () =>
    Effect.gen(function* () {
      const phone = {
        viewport: { width: 390, height: 780 },
        deviceScaleFactor: 2,
        isMobile: true,
        hasTouch: true
      }
      const [one] = yield* twoWindows(phone)
      const [, two] = yield* twoWindows({ ...phone, colorScheme: "dark" })
      for (const { page } of [one, two]) yield* fits(page)
      yield* picture("phone.png", [one.page, two.page], "#dfe3e8")
    })
  )

  it.scoped("can be used by name and by keyboard", () =>
    Effect.gen(function* () {
      const [one, two] = yield* Site.openTabs("Ada", "Ben")
      const { page } = one
      yield* Effect.promise(async () => {
        assert.strictEqual(await page.getByRole("textbox", { name: "Edit text" }).count(), 1)
        assert.strictEqual(await page.getByRole("textbox", { name: "Your name" }).count(), 1)
        assert.strictEqual(await page.getByRole("region", { name: "synced-text" }).count(), 1)
        assert.strictEqual(await page.getByRole("status").count(), 1)
        await page.getByLabel("Your name").focus()
        await page.keyboard.press("Tab")
        await page.keyboard.type("from the keyboard")
      })
      yield* two.shows("from the keyboard")
    })
  )

  it.scoped("tells the others a new name, and keeps it", () =>
    Effect.gen(function* () {
      const [one, two] = yield* Site.openTabs("Ada", "Ben")
      yield* Effect.promise(async () => {
        await one.page.getByLabel("Your name").fill("  Ada Lovelace <b> ")
        await one.page.getByLabel("Your name").press("Enter")
      })
      yield* two.showsPeople("Ada Lovelace <b>", "Ben (you)")
      yield* one.reloads
      yield* one.showsPeople("Ada Lovelace <b> (you)", "Ben")
    })
  )

  for (const [who, whose] of [
    ["its author", "late"],
    ["somebody else", "early"]
  ] as const) {
    it.scoped(`says why something is not saved, and saves it when ${who} has made room`, () =>
      Effect.gen(function* () {
        const [one, two] = yield* Site.openTabs("Ada", "Ben")
        yield* one.replacesAll("x".repeat(60_000))
        yield* one.saved
        yield* two.shows("x".repeat(60_000))
        // Neither is too long, and both together are.
        yield* Effect.all([pastes(one, "y".repeat(30_000)), pastes(two, "z".repeat(30_000))], {
          concurrency: "unbounded"
        })
        const tooLong = /^Not saved\. The text is too long/
        const tabs = yield* Effect.raceFirst(
          Effect.as(one.saysStatus(tooLong), { late: one, early: two }),
          Effect.as(two.saysStatus(tooLong), { late: two, early: one })
        )
        yield* tabs.early.saved
        yield* tabs[whose].selects(0, 40_000)
        yield* tabs[whose].presses("Delete")
        yield* one.saved
        yield* two.saved
        yield* two.shows(yield* one.text)
        assert.lengthOf(yield* two.text, 80_000)
      })
    )
  }

  it.scoped("starts another text", () =>
    Effect.gen(function* () {
      const [one] = yield* Site.openTabs("Ada")
      yield* one.types("the first")
      yield* one.saved
      const before = one.page.url()
      yield* Effect.promise(async () => {
        await one.page.getByRole("button", { name: "Start another text" }).click()
        await one.page.waitForURL((url) => url.toString() !== before)
      })
      yield* one.saved
      yield* one.shows("")
    })
  )
})

const pastes = (tab: Tab.Tab, text: string) =>
  Effect.asVoid(
    Effect.promise(() =>
      tab.page.evaluate(
        `edit.setRangeText("${text}", 0, 0, "end"), edit.dispatchEvent(new InputEvent("input"))`
      )
    )
  )
