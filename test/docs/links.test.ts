import { assert, it } from "../support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { repository } from "../support/command.js"
import { pages } from "./Block.js"

for (const page of pages) {
  it(`links from ${page} lead somewhere`, () => {
    const text = Fs.readFileSync(Path.join(repository, page), "utf8")
    const targets = [...text.matchAll(/\]\((?!https?:|#)([^)#\s]+)/g)].map(([, target]) => target ?? "")
    const missing = targets.filter(
      (target) => !Fs.existsSync(Path.join(repository, Path.dirname(page), target))
    )
    assert.deepStrictEqual(missing, [])
  })

  it(`paths of files that ${page} names are there`, () => {
    const text = Fs.readFileSync(Path.join(repository, page), "utf8")
    const named = [...text.matchAll(/`((?:src|test|migrations|examples|bench)\/[\w./-]+\.\w+)`/g)]
    const missing = named.flatMap(([, path = ""]) =>
      Fs.existsSync(Path.join(repository, path)) ? [] : [path]
    )
    assert.deepStrictEqual(missing, [])
  })
}
