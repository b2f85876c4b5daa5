import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Shown } from "../DatabaseError.js"

/**
 * The exit codes of every command: done, failed, bad usage, and refused or pending (the reason is
 * in the output).
 */
export const exitCodes = { done: 0, failed: 1, usage: 2, refused: 3 } as const

/** A code of {@link exitCodes}. */
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes]

/** The end of a command that has printed its result and did not get all it wanted. */
export class Exited extends Data.TaggedError("Exited")<{ readonly code: ExitCode }> {}

/**
 * Prints a result on standard output, which nothing else is written to: the JSON document, or the
 * lines for a person. Then ends the command with the exit code.
 */
export const result = (
  json: boolean,
  document: unknown,
  lines: ReadonlyArray<string>,
  code: ExitCode = exitCodes.done
): Effect.Effect<void, Exited> =>
  Effect.zipRight(
    Console.log(json ? JSON.stringify(document) : lines.join("\n")),
    code === exitCodes.done ? Effect.void : new Exited({ code })
  )

/**
 * Prints an error: as a JSON document on standard output, beside what was done before, or for a
 * person on standard error.
 */
export const failure = (
  json: boolean,
  error: { readonly reason: string; readonly message: string } & Partial<Pick<Shown, "detail" | "hint">>,
  code: ExitCode,
  done: object = {}
): Effect.Effect<never, Exited> =>
  Effect.zipRight(
    json
      ? Console.log(JSON.stringify({ ...done, error }))
      : Console.error([`Error: ${error.message}`, ...besideMessage(error)].join("\n")),
    new Exited({ code })
  )

/** Tells a person what goes on, on standard error. */
export const progress = (line: string): Effect.Effect<void> => Console.error(line)

/** What the server says below a message, as psql prints it. */
export const besideMessage = ({
  detail,
  hint
}: Partial<Pick<Shown, "detail" | "hint">>): ReadonlyArray<string> => [
  ...(detail === undefined ? [] : [`DETAIL: ${detail}`]),
  ...(hint === undefined ? [] : [`HINT: ${hint}`])
]

/** Rows under a heading, the columns lined up. */
export const table = (
  heading: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>
): ReadonlyArray<string> => {
  const widths = heading.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0))
  )
  const line = (cells: ReadonlyArray<string>) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd()
  return [line(heading), ...rows.map(line)]
}

/** `3 ms`, `1.2 s`, `2 min 5 s`. */
export const duration = (millis: number): string => {
  if (millis < 1000) return `${Math.round(millis)} ms`
  if (millis < 60_000) return `${(millis / 1000).toFixed(1)} s`
  return `${Math.floor(millis / 60_000)} min ${Math.round((millis % 60_000) / 1000)} s`
}

/** An action as SQL spells it: `NO ACTION`. */
export const words = (action: string): string => action.replaceAll("-", " ").toUpperCase()

/** Foreign keys in an order that a rebuild does not change. */
export const byName = <A extends { readonly schema: string; readonly table: string; readonly name: string }>(
  keys: ReadonlyArray<A>
): ReadonlyArray<A> => {
  const label = ({ name, schema, table }: A) => `${schema}\0${table}\0${name}`
  return keys.toSorted((left, right) => (label(left) < label(right) ? -1 : 1))
}
