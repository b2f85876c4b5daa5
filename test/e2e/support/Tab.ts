import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BrowserContextOptions, Page } from "playwright-core"
import { expect } from "vitest"
import { safetyNet } from "../../support/speed.js"
import { Chromium } from "./Chromium.js"

// What runs in the page is given as text, since the names of the browser are not those of Node:
// `edit` is the editor, by its id.

/**
 * What a person does in a tab, and what they see. Whatever is to be seen is waited for, and nothing
 * else is.
 */
export interface Tab {
  readonly page: Page
  /** Types at the caret, one key after the other, so many milliseconds apart. */
  readonly types: (text: string, apart?: number) => Effect.Effect<void>
  readonly presses: (...keys: ReadonlyArray<string>) => Effect.Effect<void>
  /** Puts this text in the place of everything, as pasting it would. */
  readonly replacesAll: (text: string) => Effect.Effect<void>
  /** Puts the caret, or the selection, there. */
  readonly selects: (start: number, end?: number) => Effect.Effect<void>
  /** The text, in the editor and in the synced text, is that. */
  readonly shows: (text: string) => Effect.Effect<void>
  readonly saysStatus: (status: string | RegExp) => Effect.Effect<void>
  /** Everything that was typed here is committed. */
  readonly saved: Effect.Effect<void>
  /** The names of who is connected, in any order. */
  readonly showsPeople: (...names: ReadonlyArray<string>) => Effect.Effect<void>
  /** What the editor holds now. */
  readonly text: Effect.Effect<string>
  /** The start and the end of the selection. */
  readonly selection: Effect.Effect<readonly [number, number]>
  readonly reloads: Effect.Effect<void>
  readonly closes: Effect.Effect<void>
}

/**
 * Opens an address in a browser window of its own, that of somebody called so, and waits for the
 * text.
 */
export const open = Effect.fn("Tab.open")(function* (
  url: string,
  options: BrowserContextOptions & { readonly name?: string } = {}
): Effect.fn.Return<Tab, never, Chromium | Scope.Scope> {
  const browser = yield* Chromium
  const { name, ...contextOptions } = options
  const context = yield* Effect.acquireRelease(
    Effect.promise(() => browser.newContext(contextOptions)),
    (context) => Effect.promise(() => context.close())
  )
  const page = yield* Effect.promise(() => context.newPage())
  const errors: Array<Error> = []
  page.on("pageerror", (error) => errors.push(error))
  yield* Effect.addFinalizer(() => Effect.sync(() => expect(errors).toEqual([])))
  yield* Effect.promise(() => page.goto(url))
  const tab = make(page)
  if (name !== undefined) {
    yield* Effect.promise(async () => {
      await page.getByLabel("Your name").fill(name)
      await page.getByLabel("Your name").press("Tab")
    })
  }
  yield* tab.saved
  return tab
})

const make = (page: Page): Tab => {
  const editor = page.getByLabel("Edit text")
  const synced = page.getByTestId("synced-text")
  const eventually = <A>(read: () => Promise<A>, message: string) =>
    expect.poll(read, { timeout: Duration.toMillis(safetyNet("1 minute")), interval: 10, message })
  const see = (check: () => Promise<unknown>) => Effect.asVoid(Effect.promise(check))
  const tab: Tab = {
    page,
    types: (text, apart) =>
      Effect.promise(() => editor.pressSequentially(text, apart === undefined ? {} : { delay: apart })),
    presses: (...keys) =>
      Effect.promise(async () => {
        for (const key of keys) await editor.press(key)
      }),
    replacesAll: (text) => Effect.promise(() => editor.fill(text)),
    selects: (start, end = start) =>
      see(() => page.evaluate(`edit.focus(), edit.setSelectionRange(${start}, ${end})`)),
    shows: (text) =>
      see(async () => {
        await eventually(() => synced.textContent(), "the synced text").toBe(text)
        await eventually(() => editor.inputValue(), "the text in the editor").toBe(text)
      }),
    saysStatus: (status) =>
      see(() => {
        const said = eventually(() => page.getByRole("status").textContent(), "the status")
        return typeof status === "string" ? said.toBe(status) : said.toMatch(status)
      }),
    saved: Effect.suspend(() => tab.saysStatus("Saved")),
    showsPeople: (...names) =>
      see(() =>
        eventually(
          async () => (await page.getByRole("listitem").allTextContents()).toSorted(),
          "who is connected"
        ).toEqual(names.toSorted())
      ),
    text: Effect.promise(() => editor.inputValue()),
    selection: Effect.promise(() =>
      page.evaluate<readonly [number, number]>("[edit.selectionStart, edit.selectionEnd]")
    ),
    reloads: see(() => page.reload()),
    closes: Effect.promise(() => page.close())
  }
  return tab
}
