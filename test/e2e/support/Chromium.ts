import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Fs from "node:fs"
import { type Browser, chromium } from "playwright-core"

/** A real browser, with a profile of its own that is thrown away with it. */
export class Chromium extends Context.Tag("test/Chromium")<Chromium, Browser>() {}

/** There is no browser to test with. */
class NoChromium extends Data.TaggedError("NoChromium")<{ readonly tried: ReadonlyArray<string> }> {
  override get message() {
    return `These tests need Chromium, and there is none at ${this.tried.join(", ")}. Install it (Debian, Ubuntu: apt-get install chromium), or say in CHROMIUM_PATH where it is.`
  }
}

const places = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/usr/bin/google-chrome-stable",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
]

const executable = Effect.suspend(() => {
  const given = process.env["CHROMIUM_PATH"]
  const tried = given === undefined || given === "" ? places : [given]
  return Effect.fromNullable(tried.find((path) => Fs.existsSync(path))).pipe(
    Effect.mapError(() => new NoChromium({ tried }))
  )
})

/** The browser of the machine. */
export const layer = Layer.scoped(
  Chromium,
  Effect.flatMap(executable, (executablePath) =>
    Effect.acquireRelease(
      Effect.promise(() =>
        chromium.launch({
          executablePath,
          args: [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync"
          ]
        })
      ),
      (browser) => Effect.promise(() => browser.close())
    )
  )
)
