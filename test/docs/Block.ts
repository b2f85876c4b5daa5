import * as Fs from "node:fs"
import * as Path from "node:path"
import { repository } from "../support/command.js"

/** A fenced block of a page. */
export interface Block {
  /** The page's path in the repository, such as `docs/errors.md`. */
  readonly page: string
  /** The line of the page that the block's text begins at. */
  readonly line: number
  readonly language: string
  readonly text: string
  /**
   * What the comment `<!-- test: ... -->` before the block says, such as `{ file: "main.ts" }` or
   * `{ continues: true }`.
   */
  readonly directives: Readonly<Record<string, string | true>>
}

/**
 * Blocks of one page that share a database: the first one gets a fresh one, the others say
 * `continues`.
 */
export type Group = readonly [Block, ...Array<Block>]

/** The pages of the documentation. */
export const pages: ReadonlyArray<string> = [
  "README.md",
  ...Fs.readdirSync(Path.join(repository, "docs"))
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`)
]

/** Every fenced block of a page. */
export const read = (page: string): ReadonlyArray<Block> => {
  const lines = Fs.readFileSync(Path.join(repository, page), "utf8").split("\n")
  const blocks: Array<Block> = []
  for (let index = 0; index < lines.length; index++) {
    const fence = /^ {0,3}(?<marks>`{3,}|~{3,})\s*(?<language>\S*)/.exec(lines[index] ?? "")?.groups
    if (fence === undefined) continue
    const marks = fence["marks"] ?? ""
    const end = lines.findIndex((line, at) => at > index && line.trim() === marks)
    if (end < 0) throw new Error(`${page}:${index + 1}: the block does not end`)
    blocks.push({
      page,
      line: index + 2,
      language: fence["language"] ?? "",
      text: lines.slice(index + 1, end).join("\n"),
      directives: directives(lines[index - 1] ?? "")
    })
    index = end
  }
  return blocks
}

/** Blocks in the groups that they run in. */
export const groups = (blocks: ReadonlyArray<Block>): ReadonlyArray<Group> => {
  const all: Array<[Block, ...Array<Block>]> = []
  for (const block of blocks) {
    const last = all.at(-1)
    const belongs = "continues" in block.directives || "output" in block.directives
    if (belongs && last === undefined) throw new Error(`${place(block)}: there is nothing that it continues`)
    if (belongs) last?.push(block)
    else all.push([block])
  }
  return all
}

/** Where a block is, for people. */
export const place = ({ line, page }: Block): string => `${page}:${line}`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const directives = (line: string): Block["directives"] => {
  const words = /^<!-- test: (?<words>.+) -->$/.exec(line)?.groups?.["words"]
  return Object.fromEntries(
    (words ?? "")
      .split(",")
      .map((word) => word.trim().split("=", 2))
      .filter(([name]) => name !== "")
      .map(([name, value]) => [name, value ?? true])
  )
}
