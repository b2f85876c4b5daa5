/**
 * The settings that a program makes for one transaction, where that is a savepoint of a longer one:
 * RELEASE does not take them back, as COMMIT would.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Connection, Request } from "../connection/connection.js"

/**
 * Settings by name, as they were before a transaction changed them; undefined for one that did not
 * exist.
 */
export type Before = Map<string, string | null>

/**
 * Notes how the settings are that a statement is about to make for its transaction, by SET LOCAL or
 * set_config. What a function of the database sets by itself is not seen.
 */
export const note = (
  connection: Connection,
  before: Before,
  request: Request
): Effect.Effect<void, DatabaseError> =>
  Effect.suspend(() => {
    const names = namesIn(request).filter((name) => !before.has(name))
    if (names.length === 0) return Effect.void
    return Effect.map(
      connection.run({
        text: "SELECT name, pg_catalog.current_setting(name, true) AS value FROM unnest($1::text[]) AS name",
        values: [names],
        isControl: true
      }),
      (response) => {
        for (const { name, value } of ("rows" in response ? response.rows : []) as ReadonlyArray<Setting>)
          before.set(name, value)
      }
    )
  })

/** Takes them back, in a transaction that is not aborted. */
export const restore = (connection: Connection, before: Before): Effect.Effect<void, DatabaseError> =>
  before.size === 0
    ? Effect.void
    : Effect.asVoid(
        connection.run({
          // Most settings refuse an empty text, which is what one of a program's own has after the
          // transaction that made it.
          text: `
            SELECT pg_catalog.set_config(name, coalesce(value, ''), true)
            FROM unnest($1::text[], $2::text[]) AS setting (name, value)
            WHERE pg_catalog.current_setting(name, true) IS DISTINCT FROM value
          `,
          values: [[...before.keys()], [...before.values()]],
          isControl: true
        })
      )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

interface Setting {
  readonly name: string
  readonly value: string | null
}

const namesIn = ({ text, values = [] }: Request): ReadonlyArray<string> => {
  if (!/\bset\s+local\b|\bset_config\b/i.test(text)) return []
  const written = [
    ...text.matchAll(/\bset\s+local\s+(?:time\s+(zone)\b|"?([\w.$]+)"?)/gi),
    ...text.matchAll(/\bset_config\s*\(\s*()'([\w.$]+)'/gi)
  ].map(([, zone, name]) => (zone === undefined || zone === "" ? name : "timezone"))
  const passed = /\bset_config\s*\(\s*\$/i.test(text) ? values.filter(isSettingName) : []
  return [
    ...new Set([...written.filter((name) => name !== undefined), ...passed].map((name) => name.toLowerCase()))
  ]
}

const isSettingName = (value: unknown): value is string =>
  typeof value === "string" && /^[a-z_][\w$]*(\.[a-z_][\w$]*)*$/i.test(value)
