import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { expect } from "vitest"
import * as Y from "yjs"
import { loader } from "../../../migrations/index.js"
import * as Database from "../../../src/Database.js"
import * as TestDatabase from "../../../src/testing/TestDatabase.js"
import { safetyNet } from "../../support/speed.js"
import * as Chromium from "./Chromium.js"
import * as Program from "./Program.js"
import * as Tab from "./Tab.js"

/** A database of its own, and the program running on it. */
export class Site extends Context.Tag("test/Site")<
  Site,
  {
    readonly program: Program.Program
    readonly database: Redacted.Redacted
  }
>() {}

/** A name, besides that of the machine, under which the site is reached. */
export const publicName = "texts.example"

/** The site of a test file, its database for the test itself, and a browser. */
export const layer = Layer.unwrapScoped(
  Effect.map(TestDatabase.make({ loader }), (database) =>
    Layer.mergeAll(
      Layer.scoped(
        Site,
        Effect.map(Program.start(database, { environment: { PUBLIC_NAMES: publicName } }), (program) =>
          Site.of({ program, database })
        )
      ),
      Database.layer({ url: database, minConnections: 0, maxConnections: 2 }),
      Chromium.layer
    )
  )
).pipe(Layer.orDie)

/** A new, empty text, by its path. */
export const newText: Effect.Effect<string, never, Site> = Effect.flatMap(Site, ({ program }) =>
  Effect.promise(async () => {
    const response = await fetch(`${program.address}/conversations`, { method: "POST", redirect: "manual" })
    return response.headers.get("location") ?? "no text was made"
  })
)

/** Tabs with a new text, each in a window of its own, of people of these names. */
export const openTabs = <const Names extends ReadonlyArray<string>>(
  ...names: Names
): Effect.Effect<{ readonly [Key in keyof Names]: Tab.Tab }, never, Site | Chromium.Chromium | Scope.Scope> =>
  Effect.gen(function* () {
    const { program } = yield* Site
    const path = yield* newText
    const tabs = yield* Effect.forEach(names, (name) => Tab.open(`${program.address}${path}`, { name }))
    return tabs as { readonly [Key in keyof Names]: Tab.Tab }
  })

/** What the table says that the text is. */
export const storedText = Effect.fn("Site.storedText")(function* (path: string) {
  const sql = yield* PgClient.PgClient
  const [row] = yield* sql<{ crdt_state: Uint8Array | null }>`
    SELECT crdt_state FROM conversation WHERE id = ${path.slice("/c/".length)}
  `
  const doc = new Y.Doc()
  if (row?.crdt_state) Y.applyUpdate(doc, row.crdt_state)
  return doc.getText("text").toJSON()
}, Effect.orDie)

/** Writes into a conversation past the program. */
export const setColumns = Effect.fn("Site.setColumns")(function* (
  path: string,
  columns: { readonly raw_text: string } | { readonly crdt_state: Buffer }
) {
  const sql = yield* PgClient.PgClient
  yield* sql`UPDATE conversation SET ${sql.update(columns)} WHERE id = ${path.slice("/c/".length)}`
}, Effect.orDie)

/** Retries until it is so. */
export const eventually = <A, R>(
  read: Effect.Effect<A, never, R>,
  expected: A
): Effect.Effect<void, never, R> =>
  Effect.flatMap(Effect.runtime<R>(), (runtime) =>
    Effect.promise(() =>
      expect
        .poll(() => Effect.runPromise(Effect.provide(read, runtime)), {
          timeout: Duration.toMillis(safetyNet("1 minute")),
          interval: 20
        })
        .toEqual(expected)
    )
  )
