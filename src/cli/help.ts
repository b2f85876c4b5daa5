/**
 * What `--help` prints, in 80 columns: a command that has others lists them with one line each, any
 * other one its options with what they mean.
 */
import * as CliConfig from "@effect/cli/CliConfig"
import * as CommandDescriptor from "@effect/cli/CommandDescriptor"
import * as HelpDoc from "@effect/cli/HelpDoc"
import type * as Span from "@effect/cli/HelpDoc/Span"

/** A command and those below it, in the order in which help lists them. */
export interface Tree {
  readonly command: { readonly descriptor: CommandDescriptor.Command<unknown> }
  readonly below?: ReadonlyArray<Tree>
}

/** A command, by the words that it is called with. */
interface Found {
  readonly path: ReadonlyArray<string>
  readonly tree: Tree
}

/**
 * The help that arguments ask for: with `--help` or `-h`, or with the name of a command that does
 * nothing but have others. Undefined if they ask for none.
 */
export const of = (root: Tree, args: ReadonlyArray<string>): ReadonlyArray<string> | undefined => {
  const given = args.includes("--") ? args.slice(0, args.indexOf("--")) : args
  const isAsked = given.some((argument) => argument === "--help" || argument === "-h")
  const found = find(root, given)
  const isBare = given.length === found.path.length - 1 && isGroup(found.tree)
  return isAsked || isBare ? lines(found) : undefined
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const columns = 80

/** One way to call a command, below its options. */
const examples: Readonly<Record<string, string>> = {
  migrate: "promptgrimoire-db migrate --directory migrations",
  "migrate status": "promptgrimoire-db migrate status --json",
  "migrate plan": "promptgrimoire-db migrate plan --directory migrations",
  "migrate check": "promptgrimoire-db migrate check || echo 'somebody changed the schema'",
  "migrate stamp": "promptgrimoire-db migrate stamp 12",
  "migrate down": "promptgrimoire-db migrate down --to 11",
  "fk list": "promptgrimoire-db fk list --references user",
  "fk plan": "promptgrimoire-db fk plan --on-delete cascade --table public.class --sql",
  "fk rebuild": "promptgrimoire-db fk rebuild --on-delete cascade --references user",
  "fk undo": "promptgrimoire-db fk undo --table class",
  "fk history": "promptgrimoire-db fk history --table class --json",
  "fk check": "promptgrimoire-db fk check --all",
  "fk purge": "promptgrimoire-db fk purge --from user --where email=ada@example.org --dry-run",
  doctor: "promptgrimoire-db doctor --url postgresql://user:password@host:5432/name"
}

const nameOf = ({ command }: Tree) => [...CommandDescriptor.getNames(command.descriptor)].join()

const find = (root: Tree, args: ReadonlyArray<string>): Found => {
  let found: Found = { path: [nameOf(root)], tree: root }
  for (const argument of args) {
    const next = found.tree.below?.find((tree) => nameOf(tree) === argument)
    if (next === undefined) break
    found = { path: [...found.path, argument], tree: next }
  }
  return found
}

/** Whether a command does nothing but have others. */
const isGroup = (tree: Tree) => tree.below !== undefined && optionsOf(tree).length === 0

const lines = ({ path, tree }: Found): ReadonlyArray<string> => {
  const name = path.join(" ")
  const commands = listed(tree, path.slice(1))
  const options = optionsOf(tree)
  const args = argumentsOf(tree)
  const example = examples[path.slice(1).join(" ")]
  return [
    ...wrapped(descriptionOf(tree), 0),
    "",
    "Usage",
    ...(isGroup(tree) ? [] : [`  ${[name, ...args, "[OPTIONS]"].join(" ")}`]),
    ...(commands.length > 0 ? [`  ${name} COMMAND [OPTIONS]`, "", "Commands", ...commands] : []),
    ...(options.length > 0
      ? ["", "Options", ...options.flatMap(({ meaning, term }) => [`  ${term}`, ...wrapped(meaning, 6)])]
      : []),
    ...(example === undefined ? [] : ["", "Example", `  ${example}`]),
    "",
    commands.length > 0
      ? `${name} COMMAND --help shows the options of a command.`
      : "Exit codes: 0 done, 1 failed, 2 bad usage, 3 refused or pending."
  ]
}

/** Every command below one, with the first sentence about it. */
const listed = (tree: Tree, path: ReadonlyArray<string>): ReadonlyArray<string> => {
  const all = (above: Tree, words: ReadonlyArray<string>): ReadonlyArray<readonly [string, string]> =>
    (above.below ?? []).flatMap((one) => {
      const full = [...words, nameOf(one)]
      const own = isGroup(one) ? [] : [[full.join(" "), firstSentence(descriptionOf(one))] as const]
      return [...own, ...all(one, full)]
    })
  const found = all(tree, path)
  const width = Math.max(...found.map(([name]) => name.length))
  return found.map(([name, sentence]) => `  ${name.padEnd(width)}  ${sentence}`)
}

const firstSentence = (text: string) => /^.*?\.(?= |$)/.exec(text)?.[0] ?? text

const docOf = ({ command }: Tree) =>
  CommandDescriptor.getHelp(command.descriptor, CliConfig.make({ showBuiltIns: false }))

const descriptionOf = (tree: Tree) => paragraphs(docOf(tree))[0] ?? ""

/** What a command takes besides options, as `ID`. */
const argumentsOf = (tree: Tree) =>
  definitions(docOf(tree)).flatMap(([term]) => {
    const name = plain(term).trim()
    return name.startsWith("-") ? [] : [name.replaceAll(/[<>]/g, "").toUpperCase()]
  })

interface Described {
  readonly term: string
  readonly meaning: string
}

/** The options of a command itself, without those that every command of the library has. */
const optionsOf = (tree: Tree): ReadonlyArray<Described> =>
  definitions(docOf(tree)).flatMap(([term, text]) => {
    const name = plain(term).trim()
    return name.startsWith("-")
      ? [{ term: name.replace(/ 1\+$/, "..."), meaning: meaningOf(paragraphs(text)) }]
      : []
  })

/** What `@effect/cli` says of an option besides its description. */
const meaningOf = (texts: ReadonlyArray<string>) => {
  const isOptional = texts.some((text) => text.startsWith("This setting is optional"))
  const isRepeated = texts.some((text) => text.includes("may be repeated"))
  const own = texts.filter(
    (text) =>
      !/^(?:This setting is optional|This option may be repeated|One of the following: |This option must be repeated|A user-defined|A true or false|An integer|An existing|A directory|A file)/.test(
        text
      )
  )
  return [...own, ...(isOptional || isRepeated ? [] : ["Required."])].join(" ")
}

const definitions = (doc: HelpDoc.HelpDoc): ReadonlyArray<readonly [Span.Span, HelpDoc.HelpDoc]> =>
  HelpDoc.isSequence(doc)
    ? [...definitions(doc.left), ...definitions(doc.right)]
    : HelpDoc.isDescriptionList(doc)
      ? doc.definitions
      : []

const paragraphs = (doc: HelpDoc.HelpDoc): ReadonlyArray<string> =>
  HelpDoc.isSequence(doc)
    ? [...paragraphs(doc.left), ...paragraphs(doc.right)]
    : HelpDoc.isParagraph(doc)
      ? [plain(doc.value)]
      : []

const plain = (span: Span.Span): string => {
  switch (span._tag) {
    case "Sequence":
      return plain(span.left) + plain(span.right)
    case "Text":
    case "URI":
      return span.value
    default:
      return plain(span.value)
  }
}

/** A text in lines of at most 80 columns, after so many spaces. */
const wrapped = (text: string, indent: number): ReadonlyArray<string> => {
  const made: Array<string> = []
  let line = ""
  for (const word of text.split(/\s+/)) {
    if (line !== "" && indent + line.length + 1 + word.length > columns) {
      made.push(line)
      line = ""
    }
    line = line === "" ? word : `${line} ${word}`
  }
  return [...made, line].map((each) => " ".repeat(indent) + each)
}
