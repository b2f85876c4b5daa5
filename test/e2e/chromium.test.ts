import { assert, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Chromium from "./support/Chromium.js"

it.scoped("without a browser the tests fail, and say what to install", () =>
  Effect.gen(function* () {
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const given = process.env["CHROMIUM_PATH"]
        process.env["CHROMIUM_PATH"] = "/nowhere/chromium"
        return given
      }),
      (given) =>
        Effect.sync(() => {
          if (given === undefined) delete process.env["CHROMIUM_PATH"]
          else process.env["CHROMIUM_PATH"] = given
        })
    )
    const { message } = yield* Effect.flip(Layer.build(Chromium.layer))
    assert.include(message, "none at /nowhere/chromium")
    assert.include(message, "apt-get install chromium")
    assert.include(message, "CHROMIUM_PATH")
  })
)
