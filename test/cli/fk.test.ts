import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import { identifier, qualified } from "../../src/sql/identifiers.js"
import type * as ForeignKey from "../../src/ForeignKey.js"
import * as TestDatabase from "../../src/testing/TestDatabase.js"
import { promptgrimoireDb } from "../support/command.js"
import { loader } from "../support/migrations.js"
import { adminSession, emptyDatabase } from "../support/server.js"

const migrated = Effect.map(TestDatabase.make({ loader }), Redacted.value)

describe("promptgrimoire-db fk", () => {
  it.scopedLive("lists, plans, changes and changes back", () =>
    Effect.gen(function* () {
      const url = yield* migrated
      const listed = yield* promptgrimoireDb(["fk", "list", "--json", "--url", url])
      assert.strictEqual(listed.code, 0, listed.stderr)
      const keys = JSON.parse(listed.stdout)
      assert.strictEqual(keys.length, 3)

      const selection = ["--on-delete", "no-action", "--table", "class", "--url", url]
      const planned = yield* promptgrimoireDb(["fk", "plan", ...selection])
      assert.strictEqual(planned.code, 0, planned.stderr)
      assert.match(planned.stdout, /locks public\.class in ACCESS EXCLUSIVE mode/)
      assert.match(planned.stdout, /VALIDATE CONSTRAINT/)

      const rebuilt = yield* promptgrimoireDb(["fk", "rebuild", ...selection])
      assert.strictEqual(rebuilt.code, 0, rebuilt.stderr)
      assert.match(rebuilt.stdout, /Rebuilt public\.class\.class_owner_id_fkey in .*was cascade/)
      assert.match(rebuilt.stderr, /class_owner_id_fkey: validate/)

      const back = yield* promptgrimoireDb([
        "fk",
        "rebuild",
        "--json",
        "--all",
        "--on-delete",
        "cascade",
        "--url",
        url
      ])
      assert.strictEqual(back.code, 0, back.stderr)
      const { failed, rebuilt: changed, refused, unchanged } = JSON.parse(back.stdout)
      assert.deepStrictEqual([changed.length, unchanged.length, refused, failed], [1, 2, [], []])

      const undone = yield* promptgrimoireDb(["fk", "undo", "--json", "--table", "class", "--url", url])
      assert.strictEqual(undone.code, 0, undone.stderr)
      assert.strictEqual(JSON.parse(undone.stdout).rebuilt[0].previous.action, "cascade")
      const history = yield* promptgrimoireDb(["fk", "history", "--json", "--table", "class", "--url", url])
      assert.strictEqual(history.code, 0, history.stderr)
      const changes: ReadonlyArray<ForeignKey.RecordedChange> = JSON.parse(history.stdout)
      assert.deepStrictEqual(
        changes.map(({ to, undoes }) => [to.action, undoes === null]),
        [
          ["cascade", true],
          ["no-action", true],
          ["cascade", true],
          ["no-action", false]
        ]
      )
      const unknown = yield* promptgrimoireDb([
        "fk",
        "undo",
        "--json",
        "--all",
        "--ledger",
        "public.other",
        "--url",
        url
      ])
      assert.strictEqual(unknown.code, 3, unknown.stdout)
      assert.strictEqual(JSON.parse(unknown.stdout).refused.length, 3)
    })
  )

  it.scopedLive("wants to be told which keys, and ends with 2 when that is unclear or fits none", () =>
    Effect.gen(function* () {
      const url = yield* migrated
      for (const [selection, text] of [
        [[], "--all"],
        [["--all", "--table", "class"], "--all goes alone"],
        [["--table", "nowhere"], "nowhere"],
        [["--constraint", "a.b.c.d"], "[SCHEMA.]TABLE.NAME"],
        [["--all", "--ledger", "a", "--no-ledger"], "contradict"]
      ] as const) {
        const { code, stderr, stdout } = yield* promptgrimoireDb([
          "fk",
          "rebuild",
          "--on-delete",
          "cascade",
          "--url",
          url,
          ...selection
        ])
        assert.strictEqual(code, 2, stdout + stderr)
        assert.include(stdout + stderr, text)
      }
    })
  )

  it.scopedLive("has a document of its own for each command, as described", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* admin.query(`
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent);
        CREATE TABLE done (parent_id int CONSTRAINT done REFERENCES parent ON DELETE CASCADE);
        CREATE TABLE orphaned (parent_id int CONSTRAINT orphaned REFERENCES parent);
        SET session_replication_role = replica; INSERT INTO orphaned VALUES (1); RESET session_replication_role;
        CREATE TABLE hacked (parent_id int CONSTRAINT hacked REFERENCES parent);
        UPDATE pg_constraint SET confdeltype = 'n' WHERE conname = 'hacked'`)
      const run = (...args: ReadonlyArray<string>) =>
        Effect.map(promptgrimoireDb(["fk", ...args, "--url", Redacted.value(url)]), (ended) => ({
          ...ended,
          document: (): unknown => JSON.parse(ended.stdout)
        }))
      const change = ["--on-delete", "cascade", "--all"]
      const [planned, script, both, checked] = yield* Effect.all(
        [
          run("plan", ...change, "--json"),
          run("plan", ...change, "--sql"),
          run("plan", ...change, "--sql", "--json"),
          run("check", "--json")
        ],
        { concurrency: 2 }
      )

      assert.strictEqual(planned.code, 3, planned.stderr)
      const plan = planned.document() as ForeignKey.PlanResult
      assert.sameMembers(Object.keys(plan), ["madeFrom", "steps", "unchanged", "refused", "warnings"])
      assert.sameMembers(Object.keys(plan.madeFrom), ["version", "database", "at"])
      for (const step of plan.steps) {
        assert.sameMembers(Object.keys(step), ["constraint", "step", "when", "sql", "locks", "blocks"])
        for (const lock of step.locks) assert.sameMembers(Object.keys(lock), ["relation", "mode"])
      }
      assert.deepStrictEqual(plan.unchanged, ["public.done.done"])
      assert.deepStrictEqual(
        plan.refused.map(({ code, constraint }) => [code, constraint]),
        [["catalog-disagrees", "public.hacked.hacked"]]
      )
      assert.sameMembers(Object.keys(plan.refused[0] ?? {}), ["constraint", "code", "reason"])
      for (const warning of plan.warnings)
        assert.sameMembers(Object.keys(warning), ["constraint", "code", "warning"])
      assert.isNotEmpty(plan.warnings)

      assert.strictEqual(script.code, 3)
      assert.match(script.stderr, /^x public\.hacked\.hacked is refused: .+\n$/)
      assert.match(script.stdout, /^-- x public\.hacked\.hacked is refused: /m)
      assert.match(script.stdout, /^-- Foreign keys of database /)
      assert.deepStrictEqual(both.code, 2)
      assert.include(both.stdout, "--sql and --json contradict each other")

      assert.strictEqual(checked.code, 3, checked.stderr)
      assert.deepStrictEqual(
        (checked.document() as ReadonlyArray<ForeignKey.CheckedKey>).map(({ constraint }) => constraint),
        ["public.hacked.hacked"]
      )

      // A key that fails counts for more than one that is refused.
      const failed = yield* run("rebuild", ...change, "--json")
      assert.strictEqual(failed.code, 1, failed.stderr)
      const result = failed.document() as ForeignKey.RebuildResult
      assert.sameMembers(Object.keys(result), ["rebuilt", "unchanged", "refused", "failed", "warnings"])
      assert.sameMembers(Object.keys(result.rebuilt[0] ?? {}), [
        "constraint",
        "durationMs",
        "longestLockMs",
        "previous"
      ])
      assert.deepStrictEqual(
        [result.rebuilt, result.refused, result.failed].map((keys) =>
          keys.map(({ constraint }) => constraint)
        ),
        [["public.child.fk"], ["public.hacked.hacked"], ["public.orphaned.orphaned"]]
      )
      assert.strictEqual(result.failed[0]?.code, "RowsViolate")
      assert.deepStrictEqual(result.unchanged, ["public.done.done"])
      for (const line of [
        "child.fk: done",
        "done.done: unchanged",
        "hacked.hacked: refused",
        "orphaned.orphaned: failed"
      ])
        assert.match(failed.stderr, new RegExp(`public\\.${line}`))

      const [refused, everything] = yield* Effect.all(
        [run("rebuild", "--on-delete", "cascade", "--table", "hacked"), run("list", "--json")],
        { concurrency: 2 }
      )
      assert.strictEqual(refused.code, 3, refused.stderr)
      assert.match(refused.stdout, /^x public\.hacked\.hacked is refused: /m)
      assert.strictEqual(everything.code, 0)
      for (const key of everything.document() as ReadonlyArray<ForeignKey.ForeignKeyInfo>) {
        assert.sameMembers(Object.keys(key), [
          "schema",
          "table",
          "name",
          "columns",
          "referencedSchema",
          "referencedTable",
          "referencedColumns",
          "onDelete",
          "onDeleteColumns",
          "onUpdate",
          "match",
          "deferrable",
          "initiallyDeferred",
          "validated",
          "enforced",
          "index",
          "problems"
        ])
      }
    })
  )

  it.scopedLive("prints names that its selectors take, whatever they are", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* admin.query("CREATE TABLE parent (id int PRIMARY KEY)")
      const names = ["Order", "order", "a.b", 'quo"te', "two words", "Ünï", "user", "1st", "$", '"', "x.y.z"]
      const keys = names.map((part) => ({ schema: `S.${part}`, table: part, name: `${part}_P_fkey` }))
      yield* admin.query(
        keys
          .map(({ name, schema, table }) => {
            const of = qualified({ schema, name: table })
            return `CREATE SCHEMA ${identifier(schema)};
              CREATE TABLE ${of} ("P.x" int CONSTRAINT ${identifier(name)} REFERENCES parent)`
          })
          .join("; ")
      )
      const run = (...args: ReadonlyArray<string>) =>
        promptgrimoireDb(["fk", ...args, "--url", Redacted.value(url)])
      const rows = (stdout: string) =>
        stdout
          .split("\n")
          .slice(1)
          .filter((line) => !line.startsWith("!") && line !== "")
      const listed = yield* run("list")
      const printed = rows(listed.stdout).map(
        (row) => /^(.+?)  +"P\.x"  +public\.parent \(id\)/.exec(row)?.[1] ?? row
      )
      assert.strictEqual(printed.length, names.length)
      for (const [options, count] of [
        [printed.flatMap((one) => ["--constraint", one]), names.length],
        [["--schema", '"S.order"', "--schema", '"S."""'], 2],
        [["--constraint", `"S.Order"."Order"."Order_P_fkey"`], 1]
      ] as const) {
        const { code, stdout } = yield* run("list", "--json", ...options)
        assert.strictEqual(code, 0, stdout)
        assert.strictEqual(JSON.parse(stdout).length, count)
      }
      const changed = yield* run("rebuild", "--on-delete", "cascade", "--constraint", printed[0] ?? "")
      assert.strictEqual(changed.code, 0, changed.stderr)
      const history = yield* run("history", "--constraint", printed[0] ?? "")
      assert.include(history.stdout, `1       ${printed[0]}  `)
      assert.include(changed.stdout, `Rebuilt ${printed[0]} in `)
    })
  )

  it.scopedLive("purge counts, deletes what a cascade would, and has nothing left to do", () =>
    Effect.gen(function* () {
      const url = yield* migrated
      const id = "00000000-0000-4000-8000-000000000001"
      yield* Effect.gen(function* () {
        const { session } = yield* Database.Database
        const { query } = yield* session
        yield* query(`
          INSERT INTO "user" VALUES ('${id}', 'ada@example.org', 'Ada', NULL, now());
          INSERT INTO class VALUES ('${id}', 'Class', '${id}', 'CODE', now());
          INSERT INTO conversation SELECT gen_random_uuid(), '${id}', '${id}', '', NULL, now() FROM generate_series(1, 25)
        `)
      }).pipe(Effect.scoped, Effect.provide(Database.layer({ url, minConnections: 0 })))
      const purge = [
        "fk",
        "purge",
        "--from",
        "user",
        "--where",
        `id=${id}`,
        "--batch",
        "10",
        "--json",
        "--url",
        url
      ]

      const dry = yield* promptgrimoireDb([...purge, "--dry-run"])
      assert.strictEqual(dry.code, 0, dry.stderr)
      assert.include(dry.stdout, '"public.conversation"')
      const run = yield* promptgrimoireDb(purge)
      assert.strictEqual(run.code, 0, run.stdout + run.stderr)
      assert.isAtLeast(JSON.parse(run.stdout).transactions, 3)
      assert.notInclude(run.stderr + run.stdout, id)
      const again = yield* promptgrimoireDb(purge)
      assert.strictEqual(again.code, 0, again.stdout)
    })
  )

  it.scopedLive("doctor says what a program would meet", () =>
    Effect.gen(function* () {
      const url = yield* migrated
      const { code, stdout } = yield* promptgrimoireDb(["doctor", "--json", "--url", url], {
        env: { DATABASE_STATEMENT_TIMEOUT: "7 seconds" }
      })
      assert.strictEqual(code, 0)
      const diagnosis = JSON.parse(stdout)
      assert.strictEqual(diagnosis.timeouts.statement_timeout, "7s")
      assert.strictEqual(diagnosis.pooler, "none")
      assert.strictEqual(diagnosis.poolerSetting, "none")
      assert.isNull(diagnosis.poolerProblem)
      assert.strictEqual(diagnosis.health.pool.max, 4)
      assert.strictEqual(diagnosis.health.status, "ready")
      assert.deepStrictEqual(diagnosis.pendingMigrations, [])
      assert.deepStrictEqual(diagnosis.foreignKeysWithoutIndex, [])
    })
  )

  it.scopedLive(
    "doctor says where the setting of a pooler and what it finds disagree, and shows the pool",
    () =>
      Effect.gen(function* () {
        const url = yield* migrated
        const { code, stdout } = yield* promptgrimoireDb(["doctor", "--url", url], {
          env: { DATABASE_POOLER: "transaction", DATABASE_DIRECT_URL: url }
        })
        assert.strictEqual(code, 0, stdout)
        assert.match(stdout, /^Pooler +none, and the setting is transaction$/m)
        assert.match(stdout, /^Pooler problem +pooler is "transaction", but no .* set pooler to "none"/m)
        assert.match(stdout, /^Pool +\d of 4 connections busy, \d idle, 0 waiting$/m)
      })
  )
})
