import { prepareValue } from "pg/lib/utils.js"

/**
 * A row in the text format of COPY (documentation, chapter "COPY", "Text Format"), or why it cannot
 * be one, in words that name no value. Each value is written as it would go into a statement as a
 * parameter.
 */
export const encodeRow = (
  values: ReadonlyArray<unknown>,
  columns: ReadonlyArray<string>
): { readonly text: string } | { readonly problem: string } => {
  if (values.length !== columns.length) {
    return { problem: `has ${values.length} values for ${columns.length} columns` }
  }
  const fields: Array<string> = []
  let length = 0
  for (const [index, value] of values.entries()) {
    const field = encode(value)
    if (typeof field !== "string")
      return { problem: `cannot be sent: column ${columns[index]} ${field.problem}` }
    length += field.length
    if (length > maxRow) return { problem: `is larger than ${maxRow} characters in COPY's text format` }
    fields.push(field)
  }
  return { text: `${fields.join("\t")}\n` }
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** Well below the longest string of V8 and the longest line of PostgreSQL (1 GiB). */
const maxRow = 2 ** 28

const encode = (value: unknown): string | { readonly problem: string } => {
  const prepared = prepare(value)
  if (prepared === undefined) return { problem: "cannot be turned into a PostgreSQL value" }
  if (prepared === null) return "\\N"
  if (typeof prepared !== "string") {
    return prepared.length > maxRow / 2 ? { problem: "is too large" } : `\\\\x${prepared.toString("hex")}`
  }
  if (prepared.includes("\0")) return { problem: "contains a NUL byte, which PostgreSQL cannot store" }
  return needsEscape.test(prepared) ? prepared.replace(escaped, (found) => escapes[found] ?? found) : prepared
}

const prepare = (value: unknown): string | Buffer | null | undefined => {
  if (typeof value === "string") return value
  try {
    return prepareValue(value)
  } catch {
    return undefined
  }
}

/**
 * Without them a line is data, the end of a value, the end of a row, or the mark of the end: a
 * backslash begins the last.
 */
const needsEscape = /[\\\t\n\r]/
const escaped = /[\\\t\n\r]/g
const escapes: Readonly<Record<string, string>> = { "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r" }
