import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as ForeignKey from "../../src/ForeignKey.js"
import { promptgrimoireDb, whenItSays } from "../support/command.js"
import { adminSession, emptyDatabase } from "../support/server.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent);
  CREATE INDEX ON child (parent_id)`

/**
 * A key whose comparisons end only when nobody holds the advisory lock 7 any more, so that VALIDATE
 * works, without waiting for a lock, for as long as that.
 */
const slow = `
  CREATE FUNCTION slow_equal(a int, b int) RETURNS boolean LANGUAGE plpgsql AS $$
  BEGIN
    WHILE EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
    LOOP PERFORM pg_sleep(0.01); END LOOP;
    RETURN a = b;
  END $$;
  CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = slow_equal);
  CREATE OPERATOR CLASS slow FOR TYPE int USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 ===, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
  CREATE TABLE parent (id int NOT NULL);
  CREATE UNIQUE INDEX ON parent (id slow);
  INSERT INTO parent VALUES (1);
  CREATE TABLE child (id int, parent_id int CONSTRAINT fk REFERENCES parent (id));
  INSERT INTO child SELECT n, CASE n WHEN 1 THEN 1 END FROM generate_series(1, 100000) AS n`

const change = (url: Redacted.Redacted) => [
  "fk",
  "rebuild",
  "--on-delete",
  "cascade",
  "--all",
  "--url",
  Redacted.value(url)
]

describe("the progress of fk rebuild", () => {
  inFull(it).scopedLive(
    "says that a long step works, and how far an index is, on standard error, with --json too",
    () =>
      Effect.gen(function* () {
        const { name, url } = yield* emptyDatabase
        const admin = yield* adminSession(name)
        yield* admin.query(slow)
        yield* admin.query("SELECT pg_advisory_lock(7)")
        const { code, stderr, stdout } = yield* whenItSays(
          /fk: validate has worked for/,
          [...change(url), "--json", "--create-indexes", "--report-every", "1 millis"],
          () => Effect.runFork(admin.query("SELECT pg_advisory_unlock(7)"))
        )
        assert.strictEqual(code, 0, stderr)
        assert.match(stderr, /fk: index \.\.\.\n/)
        assert.match(stderr, /fk: index has worked for \d+ ms \([a-z: ]+(, \d+ %)?\) \.\.\.\n/)
        assert.match(stderr, /fk: index done in .*\n.*fk: built index child_parent_id_/)
        assert.match(stderr, /fk: validate \.\.\.\n/)
        assert.match(stderr, /fk: done\n$/)
        assert.strictEqual(stdout.trimEnd().split("\n").length, 1)
        assert.strictEqual(JSON.parse(stdout).rebuilt.length, 1)
      })
  )

  inFull(it).scopedLive("has in its document what was done before it was stopped, with the error", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const admin = yield* adminSession(name)
      yield* admin.query(`
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE done (parent_id int CONSTRAINT fk REFERENCES parent);
        CREATE TABLE had (parent_id int CONSTRAINT fk REFERENCES parent ON DELETE CASCADE);
        CREATE TABLE child (parent_id int CONSTRAINT fk REFERENCES parent);
        CREATE TABLE later (parent_id int CONSTRAINT fk REFERENCES parent)`)
      yield* admin.query("BEGIN; SELECT FROM child")
      const stopped = yield* whenItSays(
        /child\.fk: swap waits for locks/,
        [...change(url), "--json"],
        (signal) => signal("SIGTERM")
      )
      assert.strictEqual(stopped.code, 1)
      const document = JSON.parse(stopped.stdout) as ForeignKey.RebuildResult & {
        readonly error: { readonly reason: string; readonly message: string }
      }
      assert.deepStrictEqual(
        document.rebuilt.map(({ constraint, previous }) => [constraint, previous.action]),
        [["public.done.fk", "no-action"]]
      )
      assert.deepStrictEqual(document.unchanged, ["public.had.fk"])
      assert.deepStrictEqual([document.refused, document.failed, document.warnings], [[], [], []])
      assert.strictEqual(document.error.reason, "Interrupted")
      assert.include(document.error.message, "while public.child.fk was being changed (step swap)")
      yield* admin.query("COMMIT")
    })
  )

  inFull(it).scopedLive(
    "says when it is stopped what state the key is in, and a rerun goes on from there",
    () =>
      Effect.gen(function* () {
        const { name, url } = yield* emptyDatabase
        const admin = yield* adminSession(name)
        yield* admin.query(pair)
        yield* admin.query("BEGIN; SELECT FROM child")
        const stopped = yield* whenItSays(/fk: swap waits for locks/, change(url), (signal) =>
          signal("SIGINT")
        )
        assert.strictEqual(stopped.code, 1)
        assert.strictEqual(stopped.stdout, "")
        const lines = stopped.stderr.trimEnd().split("\n")
        assert.strictEqual(
          lines.at(-1),
          "Error: interrupted while public.child.fk was being changed (step swap): its original or the new key has its name, whichever the server has committed, and protects the data; run the same command again to go on from there, or `fk plan` to see what is left"
        )
        const asDocument = yield* whenItSays(
          /fk: swap waits for locks/,
          [...change(url), "--json"],
          (signal) => signal("SIGTERM")
        )
        assert.strictEqual(asDocument.code, 1)
        assert.match(asDocument.stderr, /fk: swap waits for locks[^]*\n  held by client backend \d+/)
        const { error } = JSON.parse(asDocument.stdout)
        assert.strictEqual(error.reason, "Interrupted")
        assert.include(error.message, "public.child.fk")
        yield* admin.query("COMMIT")
        const rerun = yield* promptgrimoireDb([...change(url), "--json"])
        assert.strictEqual(rerun.code, 0, rerun.stderr)
        assert.notInclude(rerun.stderr, "fk: add")
        assert.strictEqual(JSON.parse(rerun.stdout).rebuilt.length, 1)
      })
  )
})
