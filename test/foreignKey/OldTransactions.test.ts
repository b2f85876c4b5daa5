import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import * as Database from "../../src/Database.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Blocker from "../../src/catalog/lockHolders.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as OldTransactions from "../../src/foreignKey/hazards/oldTransactions.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import { application, withRole } from "./support.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int, parent_id int CONSTRAINT fk REFERENCES parent);
  INSERT INTO parent SELECT generate_series(1, 10)`

/** What a plan says about the transactions that hold the tables, with `pid` for process ids. */
const obstacles = Effect.map(
  ForeignKey.plan({ selectors: {}, onDelete: "cascade", ledger: false }),
  ({ warnings }) =>
    warnings.flatMap(({ warning }) =>
      warning.includes("right now")
        ? [warning.replaceAll(/\d+/g, "pid").replace("VACUUM ANALYZE", "VACUUM")]
        : []
    )
)

/** A server of its own, with settings. */
const server = (settings: Record<string, string>) =>
  Effect.map(EmbeddedPostgres.make({ settings }), ({ url }) => Database.layer({ url, minConnections: 0 }))

describe("a prepared transaction in the way", () => {
  inFull(it).scopedLive("is named by the plan, while the change waits, and when it gives up", () =>
    Effect.gen(function* () {
      const layer = yield* server({ max_prepared_transactions: "2" })
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        yield* session.query("BEGIN; INSERT INTO child VALUES (1, 1); PREPARE TRANSACTION 'of the importer'")
        yield* eventually(
          "the plan warns",
          Effect.map(ForeignKey.plan({ selectors: {}, onDelete: "cascade" }), ({ warnings }) =>
            warnings.some(
              ({ warning }) => warning === "in the way right now: prepared transaction of the importer"
            )
          )
        )
        const change = { selectors: {}, onDelete: "cascade" } as const
        const { failed } = yield* ForeignKey.rebuild({ ...change, budget: "1 second" })
        assert.strictEqual(failed[0]?.code, "LockBudgetExhausted")
        assert.include(failed[0]?.reason, "in the way: prepared transaction of the importer.")
        const seen: Array<ForeignKey.Blocker> = []
        const { rebuilt } = yield* ForeignKey.rebuild({
          ...change,
          onProgress: (event) =>
            Effect.gen(function* () {
              if (event._tag !== "Waiting" || seen.length > 0) return
              seen.push(...event.blockers)
              yield* session.query("COMMIT PREPARED 'of the importer'")
            }).pipe(Effect.orDie)
        })
        assert.strictEqual(rebuilt.length, 1)
        assert.deepStrictEqual(
          seen.map(({ kind, pid, preparedTransaction }) => [kind, pid, preparedTransaction]),
          [["prepared transaction", null, "of the importer"]]
        )
      }).pipe(Effect.provide(layer))
    })
  )
})

describe("a backend that waits", () => {
  inFull(it).scopedLive(
    "is blocked by the prepared transactions that hold what it waits for, and by no other",
    () =>
      Effect.gen(function* () {
        const layer = yield* server({ max_prepared_transactions: "2" })
        yield* Effect.gen(function* () {
          const session = yield* application
          const waiting = yield* application
          yield* session.query(pair)
          yield* session.query("BEGIN; INSERT INTO child VALUES (1, 1); PREPARE TRANSACTION 'in the way'")
          yield* session.query("BEGIN; INSERT INTO parent VALUES (11); PREPARE TRANSACTION 'elsewhere'")
          const fiber = yield* Effect.fork(
            waiting.query("SET lock_timeout = 0; BEGIN; LOCK TABLE child IN SHARE ROW EXCLUSIVE MODE; COMMIT")
          )
          let seen: ReadonlyArray<Blocker.Blocker> = []
          yield* eventually(
            "it waits",
            Effect.map(Blocker.watch(session, waiting.processId), (blockers) => {
              seen = blockers
              return blockers.length > 0
            })
          )
          assert.deepStrictEqual(
            seen.map((blocker) => Blocker.describe(blocker)),
            ["prepared transaction in the way"]
          )
          yield* session.query("COMMIT PREPARED 'in the way'")
          yield* session.query("ROLLBACK PREPARED 'elsewhere'")
          yield* Fiber.join(fiber)
        }).pipe(Effect.provide(layer))
      })
  )
})

describe("autovacuum on a table", () => {
  // The server lets it go on for the waiter's deadlock_timeout.
  inFull(it).scopedLive("is moved aside, and writers do not wait for that", () =>
    Effect.gen(function* () {
      const layer = yield* server({ autovacuum_naptime: "1s", deadlock_timeout: "3s" })
      yield* Effect.gen(function* () {
        const session = yield* application
        const writer = yield* application
        // A page takes 100 ms, so that it would take minutes.
        yield* session.query(`${pair};
          ALTER TABLE child SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
            autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
          INSERT INTO child SELECT n, 1 FROM generate_series(1, 300000) AS n;
          DELETE FROM child WHERE id % 2 = 0`)
        const vacuums = session.query<{ pid: number }>(
          `SELECT a.pid FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.relation = 'child'::regclass
          WHERE a.backend_type = 'autovacuum worker' AND l.granted AND l.mode = 'ShareUpdateExclusiveLock'`
        )
        yield* eventually(
          "autovacuum works on it",
          Effect.map(vacuums, (rows) => rows.length === 1)
        )
        assert.deepStrictEqual(yield* obstacles, [
          "autovacuum (pid, VACUUM public.child) works on its tables right now: it will be moved aside, and begins again later"
        ])
        let longest = 0
        const write = Effect.gen(function* () {
          const start = yield* Clock.currentTimeMillis
          yield* writer.query("INSERT INTO child VALUES (0, 1); UPDATE parent SET id = id WHERE id = 1")
          longest = Math.max(longest, (yield* Clock.currentTimeMillis) - start)
        })
        yield* Effect.replicateEffect(write, 50)
        const usual = longest
        const writing = yield* Effect.fork(Effect.forever(write))
        const { failed, rebuilt } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
        yield* Fiber.interrupt(writing)
        assert.deepStrictEqual([failed, rebuilt.length], [[], 1])
        assert.isAbove(longest, 0)
        // Far from the three seconds that the server gives autovacuum.
        assert.isBelow(longest, 1_000 + 20 * usual)
        // None came to its end: whoever was there was cancelled.
        assert.deepStrictEqual(
          yield* session.query(
            "SELECT autovacuum_count::int AS ended FROM pg_stat_user_tables WHERE relname = 'child'"
          ),
          [{ ended: 0 }]
        )
      }).pipe(Effect.provide(layer))
    })
  )
})

describe("autovacuum that prevents wraparound", () => {
  inFull(it).scopedLive(
    "is named by the plan and when the change gives up, because it gives way to nobody",
    () =>
      Effect.gen(function* () {
        const layer = yield* server({ autovacuum_naptime: "1s", autovacuum_freeze_max_age: "100000" })
        yield* Effect.gen(function* () {
          const session = yield* application
          // A page takes 100 ms. Each subtransaction takes a transaction id.
          yield* session.query(`${pair};
          ALTER TABLE child SET (autovacuum_enabled = false, autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
          INSERT INTO child SELECT n, 1 FROM generate_series(1, 100000) AS n;
          CREATE TABLE spent (n int) WITH (autovacuum_enabled = false)`)
          yield* session.query(`DO $$ BEGIN
          FOR n IN 1..110000 LOOP
            BEGIN
              INSERT INTO spent VALUES (n);
            EXCEPTION WHEN division_by_zero THEN NULL;
            END;
          END LOOP;
        END $$`)
          yield* eventually(
            "the plan warns",
            Effect.map(obstacles, (found) =>
              found.includes(
                "autovacuum (pid, VACUUM public.child (to prevent wraparound)) works on its tables right now: it gives way to nobody, so let it come to its end first"
              )
            )
          )
          const [key] = yield* Catalog.read(session)
          if (key === undefined) return assert.fail("no key")
          yield* session.query("CREATE ROLE plain; SET ROLE plain")
          const told = (yield* OldTransactions.warnings(session, [key]))(key)
          yield* session.query("RESET ROLE")
          assert.deepStrictEqual(
            told.map((warning) => warning.replaceAll(/\d+/g, "pid")),
            [
              "autovacuum (pid) works on its tables right now: it will be moved aside, unless it is there to prevent wraparound, which this role may not see (GRANT pg_read_all_stats TO plain): then nothing but its end helps"
            ]
          )
          const { failed } = yield* ForeignKey.rebuild({
            selectors: {},
            onDelete: "cascade",
            ledger: false,
            budget: "1 second"
          })
          assert.strictEqual(failed[0]?.code, "LockBudgetExhausted")
          assert.match(failed[0]?.reason ?? "", /in the way: autovacuum worker \d+/)
        }).pipe(Effect.provide(layer))
      })
  )
})

describe("a session of another role, whose age the owner of the tables may not see", () => {
  const owned = (role: string) => `${pair}; GRANT CREATE ON SCHEMA public TO ${role};
    ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role}`

  inFull(it).scopedLive("is named by the plan, and counts as old once the change has seen it for long", () =>
    withRole(owned, ({ limited, role, session }) =>
      Effect.gen(function* () {
        const [me] = yield* session.query<{ readonly name: string }>(
          "SELECT quote_ident(current_user) AS name"
        )
        yield* session.query("SET application_name = 'dump'; BEGIN; SELECT count(*) FROM child")
        const warning = `in the way right now, if its transaction takes long: session of ${me?.name} ${session.processId} (dump). This role may not see since when (GRANT pg_read_all_stats TO ${role})`
        const plan = ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
        const told = Effect.map(plan, ({ warnings }) => warnings.map(({ warning }) => warning))
        assert.include(yield* Effect.provide(told, limited), warning)
        const reports: Array<ForeignKey.Blocker> = []
        const { failed } = yield* ForeignKey.rebuild({
          selectors: {},
          onDelete: "cascade",
          budget: "3 seconds",
          onProgress: (event) =>
            Effect.sync(() => (event._tag === "Waiting" ? reports.push(...event.blockers) : undefined))
        }).pipe(Effect.provide(limited))
        assert.strictEqual(failed[0]?.code, "LockBudgetExhausted")
        assert.include(failed[0]?.reason, `session of ${me?.name} ${session.processId} (dump)`)
        // Only a question, which nobody waits behind, is answered with a time.
        assert.isTrue(reports.some(({ transactionStart }) => transactionStart !== null))
      })
    )
  )

  inMatrix(it).scopedLive(
    "is as old as the time since it was first seen, and a new transaction is young",
    () =>
      withRole(owned, ({ limited, session }) =>
        Effect.gen(function* () {
          const owner = yield* application
          const [key] = yield* Catalog.read(owner)
          if (key === undefined) return assert.fail("no key")
          const sightings = yield* Ref.make<Blocker.Sightings>(new Map())
          const look = (olderThan: number) =>
            Effect.flatMap(
              Blocker.holders(
                owner,
                [{ table: key.referencing, mode: "ACCESS EXCLUSIVE" }],
                [owner.processId]
              ),
              (holders) => Blocker.old(holders, olderThan, sightings)
            )
          const isOld = Effect.map(look(50), (old) => old.some(({ pid }) => pid === session.processId))
          yield* session.query("BEGIN; SELECT count(*) FROM child")
          assert.isFalse(yield* isOld)
          yield* eventually("it is old", isOld)
          assert.deepStrictEqual(yield* look(600_000), [])
          yield* session.query("COMMIT; BEGIN; SELECT count(*) FROM child")
          assert.isFalse(yield* isOld)
          yield* eventually("the next one is old", isOld)
        }).pipe(Effect.provide(limited))
      )
  )

  it.scopedLive("is waited for before a key that it deferred by name is settled", () =>
    withRole(
      (role) => `${owned(role)}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE`,
      ({ limited, session }) =>
        Effect.gen(function* () {
          yield* session.query("BEGIN; SET CONSTRAINTS fk DEFERRED")
          let waits = 0
          const { rebuilt } = yield* ForeignKey.rebuild({
            selectors: {},
            onDelete: "cascade",
            onProgress: (event) =>
              event._tag === "Waiting" && event.step === "settle" && waits++ === 0
                ? Effect.orDie(session.query("INSERT INTO child VALUES (1, 77); DELETE FROM child; COMMIT"))
                : Effect.void
          }).pipe(Effect.provide(limited))
          assert.deepStrictEqual([rebuilt.length, waits > 0], [1, true])
        })
    )
  )
})
