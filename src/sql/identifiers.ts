/** The only place where names and texts become SQL. */

/**
 * An identifier, always quoted: keywords, quotes, upper case and any Unicode are then ordinary
 * names.
 */
export const identifier = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** A schema-qualified name. */
export const qualified = (object: { readonly schema: string; readonly name: string }): string =>
  `${identifier(object.schema)}.${identifier(object.name)}`

/**
 * A table as FROM, UPDATE and DELETE name it for its own rows, which include those of its
 * partitions, but not those of tables that inherit from it.
 */
export const rowsOf = (table: {
  readonly kind: string
  readonly schema: string
  readonly name: string
}): string => (table.kind === "p" ? qualified(table) : `ONLY ${qualified(table)}`)

/** A string constant, whatever `standard_conforming_strings` says. */
export const literal = (text: string): string => {
  const quoted = `'${text.replaceAll("'", "''")}'`
  return text.includes("\\") ? ` E${quoted.replaceAll("\\", "\\\\")}` : quoted
}

/** A comma-separated list of identifiers. */
export const identifiers = (names: ReadonlyArray<string>): string => names.map(identifier).join(", ")

/**
 * An anonymous PL/pgSQL block. The body is a string constant, so no dollar quote inside can end it.
 */
export const block = (body: string): string => `DO ${literal(body)}`

/**
 * A name as people write it, which `Selectors.parts` reads back: quoted only where SQL would need
 * it. For messages and documents, never for statements (it does not know the keywords, which SQL
 * takes after a dot as they are).
 */
export const label = (...parts: ReadonlyArray<string>): string =>
  parts.map((part) => (/^[a-z_][a-z0-9_$]*$/.test(part) ? part : identifier(part))).join(".")
