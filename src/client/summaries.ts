/**
 * What a statement does, in the words of OpenTelemetry's semantic conventions for database clients.
 */
export interface Summary {
  /** `db.operation.name`: the statement's first word, in capitals. */
  readonly operation: string | undefined
  /** `db.collection.name`: the table, where the statement is about exactly one. */
  readonly table: string | undefined
  /** `db.query.summary`: names only, and few enough of them to group by. */
  readonly text: string
}

/** Summaries of texts, kept for those that come again. */
export class Summaries {
  private readonly known = new Map<string, Summary>()

  of(text: string): Summary {
    const known = this.known.get(text)
    if (known !== undefined) return known
    const summary = summarize(text)
    if (text.length <= maxRead) {
      if (this.known.size >= maxKnown) this.known.clear()
      this.known.set(text, summary)
    }
    return summary
  }
}

/**
 * The first word of a statement, if statements begin with it: any other word could be a value that
 * somebody put into the text.
 */
export const operationOf = (text: string): string | undefined => {
  const word = firstWord.exec(text)?.[1]?.toUpperCase()
  return word !== undefined && operations.has(word) ? word : undefined
}

// -----------------------------------------------------------------------------

const maxRead = 4000
const maxKnown = 1000

const firstWord = /^(?:\s|--[^\n]*\n|\/\*.*?\*\/)*([a-z]+)\b/is

const operations: ReadonlySet<string> = new Set(
  (
    "ABORT ALTER ANALYZE BEGIN CALL CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE DELETE DISCARD DO DROP END EXECUTE EXPLAIN " +
    "FETCH GRANT IMPORT INSERT LISTEN LOAD LOCK MERGE MOVE NOTIFY PREPARE REASSIGN REFRESH REINDEX RELEASE RESET REVOKE ROLLBACK SAVEPOINT SECURITY " +
    "SELECT SET SHOW START TABLE TRUNCATE UNLISTEN UPDATE VACUUM VALUES WITH"
  ).split(" ")
)

/** The operations whose tables are read. A WITH names its own queries like tables. */
const withTables: ReadonlySet<string> = new Set(["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"])

const comments = /--[^\n]*|\/\*.*?\*\//gs
const strings = /'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$/gs
/** Words that tables follow elsewhere. */
const otherwise = /\bdistinct\s+from\b|\bdo\s+update\b|\bfor\s+(?:no\s+key\s+)?update\b/gi
const identifier = String.raw`(?:"(?:[^"]|"")+"|[a-z_][\w$]*)`
const table = new RegExp(
  String.raw`\b(from|join|into|update|using)\s+(?:only\s+)?(${identifier}(?:\s*\.\s*${identifier})?)(\s*[(,])?`,
  "gi"
)

const summarize = (text: string): Summary => {
  const operation = operationOf(text)
  if (operation === undefined) return { operation, table: undefined, text: "postgresql" }
  const { isSimple, names } = withTables.has(operation)
    ? tablesOf(text.slice(0, maxRead))
    : operation === "COPY"
      ? copied(text)
      : { isSimple: false, names: [] }
  return {
    operation,
    table: isSimple && names.length === 1 && text.length <= maxRead ? names[0] : undefined,
    text: [operation, ...names.slice(0, 3)].join(" ")
  }
}

const copy = new RegExp(String.raw`\bcopy\s+(${identifier}(?:\s*\.\s*${identifier})?)`, "i")

/** The table that COPY reads or fills; that of a query stands in parentheses. */
const copied = (text: string) => {
  const name = copy.exec(text.replaceAll(comments, " "))?.[1]
  return { isSimple: true, names: name === undefined ? [] : [name] }
}

/** The tables of the outermost statement, and whether there can be no others. */
const tablesOf = (text: string): { readonly names: ReadonlyArray<string>; readonly isSimple: boolean } => {
  let rest = text.replaceAll(comments, " ").replaceAll(strings, "''").replaceAll(otherwise, " ")
  let isSimple = true
  // Parentheses go from the inside out: what is in them names no table of the outermost statement,
  // unless it is one itself.
  for (let before = ""; before !== rest;) {
    before = rest
    rest = rest.replaceAll(/\((?!\))[^()]*\)/g, (group) => {
      if (/\bselect\b/i.test(group)) isSimple = false
      return "()"
    })
  }
  const names = new Set<string>()
  for (const [, word, name = "", next = ""] of rest.matchAll(table)) {
    const isCall = next.endsWith("(") && word?.toLowerCase() !== "into"
    if (next.endsWith(",")) isSimple = false
    if (!isCall) names.add(name)
  }
  return { names: [...names], isSimple }
}
