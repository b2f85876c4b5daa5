/**
 * What the browser is served: one page, its style, and the client with Yjs in one file. Nothing
 * comes from elsewhere.
 */
import * as FileSystem from "@effect/platform/FileSystem"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Esbuild from "esbuild"
import { fileURLToPath } from "node:url"

/** The files of the page, as text. */
export class Page extends Context.Tag("two-tab-sync/Page")<
  Page,
  { readonly html: string; readonly style: string; readonly script: string }
>() {}

/** The client could not be put together. */
export class NoClient extends Data.TaggedError("NoClient")<{ readonly cause: unknown }> {
  override get message() {
    return "The client could not be bundled; esbuild's own message is above."
  }
}

/** The page of `client/`, bundled when the program starts. */
export const layer = Layer.effect(
  Page,
  Effect.gen(function* () {
    const files = yield* FileSystem.FileSystem
    const script = yield* Effect.try({
      try: () =>
        Esbuild.buildSync({
          entryPoints: [pathOf("main.ts")],
          bundle: true,
          minify: true,
          write: false,
          format: "esm",
          target: "es2022",
          legalComments: "none"
        }).outputFiles.map(({ text }) => text),
      catch: (cause) => new NoClient({ cause })
    })
    return {
      html: yield* files.readFileString(pathOf("index.html")),
      style: yield* files.readFileString(pathOf("style.css")),
      script: script.join("")
    }
  })
)

const pathOf = (name: string) => fileURLToPath(new URL(`client/${name}`, import.meta.url))
