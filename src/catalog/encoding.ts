/**
 * Names and comments in a database of encoding SQL_ASCII are the bytes that somebody gave, in
 * whatever encoding, and the server neither checks nor converts them (documentation, chapter
 * "Character Set Support"). Our sessions take them for UTF-8. What is not valid reads as U+FFFD
 * and fails no statement, and no statement can name it.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import { label } from "../sql/identifiers.js"

/**
 * The `client_encoding` of our sessions, as an SQL expression. Where the server cannot convert, it
 * is not to check either.
 */
export const ofClient = `CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END`

/** Whether the server does not know the encoding of names and comments. */
export const isUnknown = (session: Session): Effect.Effect<boolean, DatabaseError> =>
  session
    .query<{ readonly unknown: boolean }>("SELECT pg_catalog.getdatabaseencoding() = 'SQL_ASCII' AS unknown")
    .pipe(Effect.map((rows) => rows[0]?.unknown === true))

/** The names in a value that are not valid UTF-8, where {@link isUnknown}. Comments are none. */
export const unreadable = (value: unknown): ReadonlyArray<string> => [
  ...new Set(strings(value).filter((text) => text.includes("\uFFFD")))
]

/** What is wrong with such names, and what to do. */
export const problem = (names: ReadonlyArray<string>): string =>
  `${names.map((name) => label(name)).join(", ")} is not valid UTF-8, and no statement in UTF-8 can name it: rename it first`

/**
 * Whether a text can be read, as an SQL expression that is null for null. A byte is a character of
 * SQL_ASCII.
 */
export const isReadable = (text: string): string =>
  `CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN ${text} ~ '${validUtf8}' ELSE true END`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** Well-formed byte sequences (Unicode, table 3-7). */
const validUtf8 = `^(${[
  "[\\u0001-\\u007f]",
  "[\\u00c2-\\u00df][\\u0080-\\u00bf]",
  "\\u00e0[\\u00a0-\\u00bf][\\u0080-\\u00bf]",
  "[\\u00e1-\\u00ec\\u00ee\\u00ef][\\u0080-\\u00bf]{2}",
  "\\u00ed[\\u0080-\\u009f][\\u0080-\\u00bf]",
  "\\u00f0[\\u0090-\\u00bf][\\u0080-\\u00bf]{2}",
  "[\\u00f1-\\u00f3][\\u0080-\\u00bf]{3}",
  "\\u00f4[\\u0080-\\u008f][\\u0080-\\u00bf]{2}"
].join("|")})*$`

const strings = (value: unknown): ReadonlyArray<string> =>
  typeof value === "string"
    ? [value]
    : Array.isArray(value)
      ? value.flatMap(strings)
      : typeof value === "object" && value !== null
        ? Object.entries(value).flatMap(([name, part]) => (name === "comment" ? [] : strings(part)))
        : []
