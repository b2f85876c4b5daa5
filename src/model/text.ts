import * as Schema from "effect/Schema"

/**
 * The length of a text as PostgreSQL counts it for `varchar(n)`: in characters (code points), not
 * in UTF-16 units.
 */
const characters = (value: string): number => {
  let count = 0
  for (const _ of value) count++
  return count
}

/**
 * One line without white space around it, in the one form that Unicode's composed and decomposed
 * letters have in common (NFC).
 */
export const canonicalLine = (value: string): string => value.trim().normalize("NFC")

/**
 * The spelling under which an address is stored and looked up: two spellings of one address are not
 * two accounts.
 */
export const canonicalEmail = (value: string): string => canonicalLine(value.toLowerCase())

/**
 * Whether PostgreSQL can hold a text at all; what it cannot hold it must not be asked for either.
 */
export const isStorable = (value: string): boolean => !/[\0\p{Cs}]/u.test(value)

// -----------------------------------------------------------------------------
// rules: each answers with what is wrong, never with the value
// -----------------------------------------------------------------------------

type Rule = (value: string) => string | undefined

/** Whether there is a text of which nothing is to be seen. */
const isInvisible = (value: string): boolean =>
  /^[\p{White_Space}\p{Default_Ignorable_Code_Point}]+$/u.test(value)

const notEmpty: Rule = (value) =>
  value === ""
    ? "must not be empty"
    : isInvisible(value)
      ? "must not consist of invisible characters alone"
      : undefined

const atMost =
  (max: number): Rule =>
  (value) => {
    // No text has more characters than UTF-16 units.
    const length = value.length <= max ? 0 : characters(value)
    return length > max ? `must be at most ${max} characters long, and has ${length}` : undefined
  }

/**
 * PostgreSQL cannot store NUL at all, and half of a surrogate pair would come back as another
 * character.
 */
const storable =
  (unwanted: RegExp): Rule =>
  (value) => {
    const found = unwanted.exec(value)
    if (found === null) return undefined
    const code = `U+${(found[0].codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`
    return `must not contain control characters or broken surrogates, and has ${code} at position ${found.index}`
  }

/**
 * Line ends also of Unicode; and what turns the direction of the text that follows, on the page
 * around it too.
 */
const oneLine = storable(/[\p{Cc}\p{Cs}\u2028\u2029\u202a-\u202e\u2066-\u2069]/u)
const manyLines = storable(/(?![\t\n\r])[\p{Cc}\p{Cs}]/u)
const address: Rule = (value) => {
  const at = value.lastIndexOf("@")
  const parts = [value.slice(0, Math.max(at, 0)), value.slice(at + 1)]
  const isAddress = !/\s/.test(value) && parts.every((part) => part !== "" && !isInvisible(part))
  return isAddress ? undefined : "must be an e-mail address"
}

const text = Schema.String.annotations({ message: () => "must be text" })

const obeying = (...rules: ReadonlyArray<Rule>) =>
  text.pipe(
    Schema.filter((value) => {
      for (const rule of rules) {
        const problem = rule(value)
        if (problem !== undefined) return problem
      }
      return undefined
    })
  )

const normalized = (to: Schema.Schema<string>, decode: (value: string) => string) =>
  Schema.transform(text, to, { strict: true, decode, encode: (value) => value })

// -----------------------------------------------------------------------------
// schemas
// -----------------------------------------------------------------------------

/** A UUID as PostgreSQL writes it, so that equal ids are equal texts. */
export const uuid = obeying((value) =>
  /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value) ? undefined : "must be a UUID in lower case"
).annotations({ arbitrary: () => (fc) => fc.uuid() })

/**
 * A text as a column holds it: at most `max` characters, and otherwise whatever another program has
 * put there.
 */
export const stored = (max: number) => obeying(atMost(max))

/**
 * One line that says something, in the spelling of {@link canonicalLine}; it has no control
 * characters.
 */
export const line = (max: number) => normalized(obeying(notEmpty, atMost(max), oneLine), canonicalLine)

/** An e-mail address, in the spelling of {@link canonicalEmail}. */
export const email = (max: number) =>
  normalized(obeying(notEmpty, atMost(max), oneLine, address), canonicalEmail)

const textOrNull = Schema.NullOr(Schema.String).annotations({ message: () => "must be text or null" })

/**
 * One line or nothing: an empty text, or one of which nothing is to be seen, means `null`. What
 * another system has given out has its letters as they were given.
 */
export const optionalLine = Schema.transform(
  textOrNull,
  textOrNull.pipe(Schema.filter((value) => (value === null ? undefined : oneLine(value)))),
  {
    strict: true,
    decode: (value) => {
      const trimmed = value?.trim() ?? ""
      return trimmed === "" || isInvisible(trimmed) ? null : trimmed
    },
    encode: (value) => value
  }
)

/**
 * A text of any length, kept to the character: line ends, tabs, blank lines, outer white space, or
 * nothing at all.
 */
export const body = obeying(manyLines)
