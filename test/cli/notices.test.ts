import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Os from "node:os"
import { createRequire } from "node:module"
import * as Path from "node:path"
import { pathToFileURL } from "node:url"
import { promptgrimoireDb } from "../support/command.js"
import { TestServer } from "../support/database.js"

/** Where a module is, for a file that is outside every package. */
const moduleUrl = (name: string) =>
  JSON.stringify(pathToFileURL(createRequire(import.meta.url).resolve(name)).href)

/** A directory of one migration that runs a text. */
const directory = (text: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const path = Fs.mkdtempSync(Path.join(Os.tmpdir(), "notices-"))
      Fs.writeFileSync(
        Path.join(path, "1_backfill.js"),
        `import { Effect } from ${moduleUrl("effect")}
         import { SqlClient } from ${moduleUrl("@effect/sql")}
         export default Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(${JSON.stringify(text)}))`
      )
      return path
    }),
    (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
  )

const talkative = `
  DO $$ BEGIN
    RAISE WARNING '17 rows had no owner' USING HINT = 'look into the log';
    RAISE NOTICE 'done';
  END $$;
  CREATE TABLE kept (id int);
  CREATE TABLE IF NOT EXISTS kept (id int);`

/** What an event trigger says that forbids schema changes. */
const refusing = `
  CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'no changes until Monday' USING DETAIL = 'the freeze', HINT = 'ask the duty officer';
  END $$;
  CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION refuse();`

describe("What the server says beside an answer", () => {
  it.scopedLive("is printed on standard error by migrate, once, also with --json", () =>
    Effect.gen(function* () {
      const { url } = yield* TestServer
      const target = ["--url", Redacted.value(url), "--directory", yield* directory(talkative)]
      const planned = yield* promptgrimoireDb(["migrate", "plan", ...target])
      const migrated = yield* promptgrimoireDb(["migrate", "--json", ...target])
      for (const { code, stderr } of [planned, migrated]) {
        assert.strictEqual(code, 0, stderr)
        assert.include(stderr, "WARNING: 17 rows had no owner\nHINT: look into the log\nNOTICE: done\n")
        assert.strictEqual(stderr.split("17 rows").length, 2, stderr)
        assert.notInclude(stderr, "already exists")
      }
    }).pipe(Effect.provide(TestServer.layer))
  )

  inFull(it).scopedLive("is printed on standard error by fk rebuild", () =>
    Effect.gen(function* () {
      const { admin, url } = yield* TestServer
      yield* admin.query(`
        CREATE TABLE owner (id int PRIMARY KEY);
        CREATE TABLE thing (owner int CONSTRAINT thing_owner_fkey REFERENCES owner);
        CREATE INDEX ON thing (owner);
        CREATE FUNCTION say() RETURNS event_trigger LANGUAGE plpgsql AS $$
          BEGIN RAISE WARNING 'a table was changed'; END $$;
        CREATE EVENT TRIGGER say ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION say();
      `)
      const rebuilt = yield* promptgrimoireDb([
        "fk",
        "rebuild",
        "--on-delete",
        "cascade",
        "--all",
        "--url",
        Redacted.value(url)
      ])
      assert.strictEqual(rebuilt.code, 0, rebuilt.stderr)
      assert.include(rebuilt.stderr, "WARNING: a table was changed\n")
    }).pipe(Effect.provide(TestServer.layer))
  )

  inFull(it).scopedLive("is printed with its detail and hint when a migration or a key fails of it", () =>
    Effect.gen(function* () {
      const { admin, url } = yield* TestServer
      yield* admin.query(`
        CREATE TABLE owner (id int PRIMARY KEY);
        CREATE TABLE thing (owner int CONSTRAINT thing_owner_fkey REFERENCES owner);
        ${refusing}
      `)
      const target = ["--url", Redacted.value(url)]
      const migrate = [
        "migrate",
        ...target,
        "--directory",
        yield* directory("ALTER TABLE thing ADD more int")
      ]
      const failed = yield* promptgrimoireDb(migrate)
      assert.strictEqual(failed.code, 1)
      assert.match(
        failed.stderr,
        /^Error: .*no changes until Monday.*\nDETAIL: the freeze\nHINT: ask the duty officer$/m
      )
      const { error } = JSON.parse((yield* promptgrimoireDb([...migrate, "--json"])).stdout)
      assert.deepInclude(error, { detail: "the freeze", hint: "ask the duty officer" })

      const change = ["fk", "rebuild", "--on-delete", "cascade", "--all", "--no-rehearsal", ...target]
      const rebuilt = yield* promptgrimoireDb(change)
      assert.strictEqual(rebuilt.code, 1)
      assert.match(
        rebuilt.stdout,
        /thing_owner_fkey failed: .*no changes until Monday.*the freeze; ask the duty officer/
      )
    }).pipe(Effect.provide(TestServer.layer))
  )
})
