import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Os from "node:os"
import { createRequire } from "node:module"
import * as Path from "node:path"
import { pathToFileURL } from "node:url"
import * as Database from "../../src/Database.js"
import type * as Migrator from "../../src/Migrator.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { killedAt, promptgrimoireDb } from "../support/command.js"
import { loader } from "../support/migrations.js"

const url = Effect.map(TestDatabase.make(), Redacted.value)

const temporary = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "migrations-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
)

describe("promptgrimoire-db migrate", () => {
  it.scopedLive(
    "applies what is pending and says what each foreign key does now, then has nothing to do",
    () =>
      Effect.gen(function* () {
        const target = yield* url
        const pending = yield* promptgrimoireDb(["migrate", "status", "--url", target])
        assert.strictEqual(pending.code, 3)
        assert.match(pending.stdout, /1 +create_user_class_conversation +pending/)

        const first = yield* promptgrimoireDb(["migrate", "--url", target])
        assert.strictEqual(first.code, 0, first.stderr)
        assert.match(first.stdout, /Applied 1_create_user_class_conversation in \d+ ms\./)
        assert.match(first.stdout, /Current migration: 2\./)
        assert.strictEqual(first.stdout.match(/CASCADE$/gm)?.length, 3)
        assert.match(first.stderr, /Applying 2_cascade_foreign_keys/)

        const second = yield* promptgrimoireDb(["migrate"], { env: { DATABASE_URL: target } })
        assert.strictEqual(second.code, 0, second.stderr)
        assert.match(second.stdout, /^Nothing to do/)

        const done = yield* promptgrimoireDb(["migrate", "status", "--json", "--url", target])
        assert.strictEqual(done.code, 0)
        const { current, migrations } = JSON.parse(done.stdout)
        assert.strictEqual(current, 2)
        assert.deepStrictEqual(
          migrations.map(({ id, state }: { readonly id: number; readonly state: string }) => [id, state]),
          [
            [1, "applied"],
            [2, "applied"]
          ]
        )
      })
  )

  it.scopedLive("prints one JSON document and nothing else on standard output", () =>
    Effect.gen(function* () {
      const target = yield* url
      const { code, stdout } = yield* promptgrimoireDb(["migrate", "--json", "--url", target])
      assert.strictEqual(code, 0)
      const { applied, current } = JSON.parse(stdout)
      assert.strictEqual(current, 2)
      assert.deepStrictEqual(Object.keys(applied[0]), ["id", "name", "durationMs"])
      assert.strictEqual(stdout.trimEnd().split("\n").length, 1)
    })
  )

  it.scopedLive("stamps, migrates and goes back", () =>
    Effect.gen(function* () {
      const target = yield* url
      const stamped = yield* promptgrimoireDb(["migrate", "stamp", "--json", "--url", target, "1"])
      assert.strictEqual(stamped.code, 0, stamped.stderr)
      assert.strictEqual(JSON.parse(stamped.stdout).current, 1)
      const failed = yield* promptgrimoireDb(["migrate", "--json", "--url", target])
      assert.strictEqual(failed.code, 1, "the tables are not there, so migration 2 cannot be applied")
      assert.strictEqual(JSON.parse(failed.stdout).error.reason, "Failed")
      const back = yield* promptgrimoireDb(["migrate", "down", "--json", "--url", target, "--to", "1"])
      assert.strictEqual(back.code, 0, back.stderr)
      assert.deepStrictEqual(JSON.parse(back.stdout), { undone: [], current: 1 })
    })
  )

  inFull(it).scopedLive(
    "plans what is pending, and finds where a schema is not what its migrations make",
    () =>
      Effect.gen(function* () {
        const empty = yield* url
        const migrated = yield* Effect.map(TestDatabase.make({ loader }), Redacted.value)
        const [planned, checked] = yield* Effect.all(
          [
            promptgrimoireDb(["migrate", "plan", "--json", "--url", empty]),
            promptgrimoireDb(["migrate", "check", "--url", migrated])
          ],
          { concurrency: 2 }
        )
        assert.strictEqual(planned.code, 0, planned.stderr)
        const { current, migrations } = JSON.parse(planned.stdout) as Migrator.Plan
        assert.strictEqual(current, 0)
        assert.deepStrictEqual(
          migrations.map((migration) => Object.keys(migration).toSorted()),
          Array.from({ length: 2 }, () => ["foreignKeys", "id", "locks", "name", "online", "statements"])
        )
        assert.strictEqual(checked.code, 0, checked.stderr)
        assert.strictEqual(checked.stdout, "The schema is what its migrations make.\nCurrent migration: 2.\n")

        yield* Effect.gen(function* () {
          const { session } = yield* Database.Database
          const { query } = yield* session
          yield* query("DROP INDEX ix_class_owner_id; ALTER TABLE class ADD COLUMN extra int")
        }).pipe(Effect.scoped, Effect.provide(Database.layer({ url: migrated, minConnections: 0 })))
        const [drifted, document] = yield* Effect.all(
          [
            promptgrimoireDb(["migrate", "check", "--url", migrated]),
            promptgrimoireDb(["migrate", "check", "--json", "--url", migrated])
          ],
          { concurrency: 2 }
        )
        assert.strictEqual(drifted.code, 3, drifted.stderr)
        assert.match(drifted.stdout, /^! column public\.class\.extra is there, and no migration makes it$/m)
        assert.match(drifted.stdout, /^! index public\.ix_class_owner_id is missing: CREATE INDEX /m)
        assert.strictEqual(document.code, 3)
        assert.deepStrictEqual(JSON.parse(document.stdout), {
          current: 2,
          differences: [
            { kind: "column", name: "public.class.extra", expected: null, actual: "integer" },
            {
              kind: "index",
              name: "public.ix_class_owner_id",
              expected: "CREATE INDEX ix_class_owner_id ON public.class USING btree (owner_id)",
              actual: null
            }
          ]
        })
      })
  )

  it.scopedLive("ends with 3 when it refuses, 2 on bad usage, 1 when it fails, each with a reason", () =>
    Effect.gen(function* () {
      const target = yield* url
      const refused = yield* promptgrimoireDb(["migrate", "stamp", "--url", target, "99"])
      assert.strictEqual(refused.code, 3)
      assert.include(refused.stderr, "there is none with this id")

      const usage = yield* promptgrimoireDb(["migrate", "--no-such-option"])
      assert.strictEqual(usage.code, 2)
      const settings = yield* promptgrimoireDb([
        "migrate",
        "--json",
        "--url",
        "mysql://secret-user:s3cr3t@db/x"
      ])
      assert.strictEqual(settings.code, 2)
      assert.strictEqual(JSON.parse(settings.stdout).error.reason, "InvalidSettings")
      assert.notInclude(settings.stdout + settings.stderr, "s3cr3t")

      const unreachable = yield* promptgrimoireDb([
        "migrate",
        "--json",
        "--url",
        "postgresql://user:s3cr3t@127.0.0.1:1/x"
      ])
      assert.strictEqual(unreachable.code, 1)
      assert.include(JSON.parse(unreachable.stdout).error.message, "127.0.0.1:1")
      assert.notInclude(unreachable.stdout + unreachable.stderr, "s3cr3t")
    })
  )

  it.scopedLive(
    "refuses a directory without migrations, and takes it for what it says when it is told to",
    () =>
      Effect.gen(function* () {
        const target = yield* url
        const directory = yield* temporary
        const options = ["--json", "--directory", directory, "--url", target]
        const refused = yield* promptgrimoireDb(["migrate", ...options])
        assert.strictEqual(refused.code, 3, refused.stderr)
        assert.strictEqual(JSON.parse(refused.stdout).error.reason, "NoMigrations")
        const allowed = yield* promptgrimoireDb(["migrate", "status", "--allow-empty", ...options])
        assert.deepStrictEqual(JSON.parse(allowed.stdout), { current: 0, migrations: [] })
        assert.strictEqual(allowed.code, 0)
      })
  )

  it.scopedLive("takes time stamps for ids, and another ledger", () =>
    Effect.gen(function* () {
      const target = yield* url
      const directory = yield* temporary
      Fs.writeFileSync(
        Path.join(directory, "20240612093000_first.js"),
        `import { Effect } from ${JSON.stringify(pathToFileURL(createRequire(import.meta.url).resolve("effect")).href)}\nexport default Effect.void`
      )
      const options = ["--directory", directory, "--table", "public.Ledger", "--url", target]
      const applied = yield* promptgrimoireDb(["migrate", ...options])
      assert.strictEqual(applied.code, 0, applied.stderr)
      assert.include(applied.stdout, "Current migration: 20240612093000.")
      const stamped = yield* promptgrimoireDb(["migrate", "stamp", ...options, "20240612093000"])
      assert.strictEqual(stamped.code, 0, stamped.stderr)
      const down = yield* promptgrimoireDb(["migrate", "down", ...options, "--to", "20240612093000"])
      assert.strictEqual(down.stdout, "Nothing to do.\nCurrent migration: 20240612093000.\n", down.stderr)
    })
  )

  inFull(it).scopedLive(
    "works on the embedded server in .data without any setting, keeps it, and leaves nothing running",
    () =>
      Effect.gen(function* () {
        const cwd = yield* Effect.acquireRelease(
          Effect.sync(() => {
            const path = Fs.mkdtempSync(Path.join(Os.tmpdir(), "embedded-"))
            Fs.chmodSync(path, 0o755)
            return path
          }),
          (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
        )
        const first = yield* promptgrimoireDb(["migrate", "--json"], { cwd })
        assert.strictEqual(first.code, 0, first.stderr)
        assert.strictEqual(JSON.parse(first.stdout).applied.length, 2)
        const second = yield* promptgrimoireDb(["migrate", "--json"], { cwd })
        assert.deepStrictEqual(JSON.parse(second.stdout), { applied: [], current: 2 })
      })
  )

  inFull(it).scopedLive("resumes after it was killed at any moment", () =>
    Effect.gen(function* () {
      const target = yield* url
      for (const marker of ["Applying 1_", "1_create_user_class_conversation done", "Applying 2_"]) {
        yield* killedAt(marker, ["migrate", "--url", target])
      }
      const last = yield* promptgrimoireDb(["migrate", "--json", "--url", target])
      assert.strictEqual(last.code, 0, last.stderr)
      assert.strictEqual(JSON.parse(last.stdout).current, 2)
      const leftovers = yield* Effect.gen(function* () {
        const { session } = yield* Database.Database
        const { query } = yield* session
        return yield* query("SELECT conname, confdeltype FROM pg_constraint WHERE contype = 'f' ORDER BY 1")
      }).pipe(Effect.provide(Database.layer({ url: target })), Effect.scoped)
      assert.deepStrictEqual(leftovers, [
        { conname: "class_owner_id_fkey", confdeltype: "c" },
        { conname: "conversation_class_id_fkey", confdeltype: "c" },
        { conname: "conversation_owner_id_fkey", confdeltype: "c" }
      ])
    })
  )
})
