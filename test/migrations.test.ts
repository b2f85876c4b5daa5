import { assert, describe, inFull, it } from "./support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Migrations from "../migrations/index.js"
import * as Database from "../src/Database.js"
import * as Migration from "../src/migrator/migration.js"
import * as Migrator from "../src/Migrator.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import { snapshot } from "./support/catalog.js"
import { loader, migrationsDirectory } from "./support/migrations.js"

/** Runs a file of SQL, as `psql -f` would. */
const load = (file: string) =>
  Effect.gen(function* () {
    const { session } = yield* Database.Database
    const text = Fs.readFileSync(new URL(`fixtures/${file}`, import.meta.url), "utf8")
    yield* Effect.scoped(Effect.flatMap(session, ({ query }) => query(text)))
  })

const before = "promptgrimoire-59d4ef6caf5d.sql"
const after = "promptgrimoire-995de44465b7.sql"

const rows = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [digest] = yield* sql`
    SELECT (SELECT count(*) FROM "user")::int AS users, (SELECT count(*) FROM class)::int AS classes,
           (SELECT count(*) FROM conversation)::int AS conversations,
           (SELECT md5(string_agg(c::text, '' ORDER BY id)) FROM conversation AS c) AS digest
  `
  return digest
})

const empty = TestDatabase.layer()

describe("migrations", () => {
  it.effect("have a version of what is in their files, for those who bundle them", () =>
    Effect.gen(function* () {
      const digest = Crypto.createHash("sha256")
      for (const name of Fs.readdirSync(migrationsDirectory).sort()) {
        if (/^\d/.test(name)) digest.update(Fs.readFileSync(Path.join(migrationsDirectory, name)))
      }
      const expected = digest.digest("hex").slice(0, 16)
      for (const { version } of yield* Migration.sources(Migrations.loader)) {
        assert.strictEqual(version, expected, "migrations/index.ts")
      }
    })
  )

  it.live("make the schema that the application's own migrations make", () =>
    Effect.gen(function* () {
      const theirs = yield* Effect.andThen(load(before), load(after)).pipe(
        Effect.andThen(snapshot),
        Effect.provide(empty)
      )
      const ours = yield* Effect.andThen(Migrator.run({ loader }), snapshot).pipe(Effect.provide(empty))
      assert.deepStrictEqual(ours, theirs)
    })
  )

  it.live("bring the application's database to where its own next migration brings it, with every row", () =>
    Effect.gen(function* () {
      const theirs = yield* Effect.andThen(load(before), load(after)).pipe(
        Effect.andThen(Effect.all([snapshot, rows])),
        Effect.provide(empty)
      )
      const ours = yield* Effect.gen(function* () {
        yield* load(before)
        yield* Migrator.stamp({ loader, id: 1 })
        const { applied, current } = yield* Migrator.run({ loader })
        assert.deepStrictEqual(
          applied.map(({ id }) => id),
          [2]
        )
        assert.strictEqual(current, 2)
        return yield* Effect.all([snapshot, rows])
      }).pipe(Effect.provide(empty))
      assert.deepStrictEqual(ours, theirs)
      assert.containSubset(ours[1], { users: 200, classes: 40, conversations: 2000 })
    })
  )

  inFull(it).live("go back to where migration 1 was, and forward again", () =>
    Effect.gen(function* () {
      yield* Migrator.run({ loader })
      const cascading = yield* snapshot
      yield* Migrator.down({ loader, to: 1 })
      const plain = yield* snapshot
      assert.notDeepEqual(plain, cascading)
      yield* Migrator.run({ loader })
      assert.deepStrictEqual(yield* snapshot, cascading)
      yield* Migrator.down({ loader, to: 1 })
      assert.deepStrictEqual(yield* snapshot, plain)
      const { current } = yield* Migrator.down({ loader, to: 0 })
      assert.strictEqual(current, 0)
      assert.deepStrictEqual((yield* snapshot).columns, [])
    }).pipe(Effect.provide(empty))
  )

  it.live("are the same in the bundled record and in the files", () =>
    Effect.gen(function* () {
      const names = (from: typeof loader) =>
        Effect.map(Migration.sources(from), (all) => all.map(({ id, name }) => `${id}_${name}`))
      assert.deepStrictEqual(yield* names(Migrations.loader), yield* names(loader))
    })
  )
})
