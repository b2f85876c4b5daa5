import { assert, it } from "../support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { repository } from "../support/command.js"
import { pages } from "./Block.js"

/** Whether a file is there and, if a name is given, declares it. */
const isThere = (path: string, name: string | undefined): boolean => {
  const file = Path.join(repository, path)
  if (!Fs.existsSync(file)) return false
  const declaration = `^\\s*(?:(?:export|const|private|static|readonly) )*${name ?? ""}\\b\\s*[(<:=]`
  return name === undefined || new RegExp(declaration, "m").test(Fs.readFileSync(file, "utf8"))
}

for (const page of pages) {
  it(`links from ${page} lead somewhere`, () => {
    const text = Fs.readFileSync(Path.join(repository, page), "utf8")
    const targets = [...text.matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)].map(([, target]) => target ?? "")
    const missing = targets.filter(
      (target) => !Fs.existsSync(Path.join(repository, Path.dirname(page), target))
    )
    assert.deepStrictEqual(missing, [])
  })

  it(`files and functions that ${page} names are there`, () => {
    const text = Fs.readFileSync(Path.join(repository, page), "utf8")
    const named = [...text.matchAll(/`((?:src|test|migrations|examples|bench)\/[\w./-]+\.\w+)(?::(\w+))?`/g)]
    const missing = named.flatMap(([, path = "", name]) =>
      isThere(path, name) ? [] : [`${path}:${name ?? ""}`]
    )
    assert.deepStrictEqual(missing, [])
  })
}
