import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { emptyDatabase } from "../support/server.js"
import { application, comparable, database, definitions, snapshots, withRole } from "./support.js"
import { cases } from "../support/length.js"

const pair = `
  CREATE TABLE parent (a int, b int, PRIMARY KEY (a, b));
  CREATE TABLE child (x int, y int, CONSTRAINT fk FOREIGN KEY (x, y) REFERENCES parent);
  INSERT INTO parent VALUES (1, 1);
  INSERT INTO child VALUES (1, 1)`

const rebuild = (onDelete: ForeignKey.Action, options: Partial<ForeignKey.RebuildOptions> = {}) =>
  ForeignKey.rebuild({ selectors: {}, onDelete, ...options })

const undo = (options: Partial<ForeignKey.UndoOptions> = {}) => ForeignKey.undo({ selectors: {}, ...options })

/** What the ledger says, without times and names. */
const changes = Effect.map(ForeignKey.history(), (entries) =>
  entries.map(({ from, outcome, to, undoes }) => [from.action, to.action, undoes, outcome])
)

const action = Effect.map(ForeignKey.list(), (keys) => keys.map(({ onDelete }) => onDelete).join())

/** Runs a change up to an event, and interrupts it there. */
const stoppedAt = (
  matches: (event: ForeignKey.Progress) => boolean,
  run: (
    onProgress: ForeignKey.RebuildOptions["onProgress"]
  ) => Effect.Effect<unknown, unknown, Database.Database>
) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(run((event) => (matches(event) ? Effect.interrupt : Effect.void)))
    assert.strictEqual((yield* Fiber.await(fiber))._tag, "Failure")
  })

const stepDone = (step: string) => (event: ForeignKey.Progress) =>
  event._tag === "StepDone" && event.step === step

describe("the ledger", () => {
  it.scopedLive("has each change of each key, with the key as it was before and who changed it", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* rebuild("cascade")
      yield* rebuild("cascade")
      yield* rebuild("restrict")
      const [first, second, ...rest] = yield* ForeignKey.history()
      assert.deepStrictEqual(rest, [])
      assert.deepInclude(first, {
        id: 1,
        schema: "public",
        table: "child",
        name: "fk",
        referencedSchema: "public",
        referencedTable: "parent",
        from: { action: "no-action", columns: [] },
        to: { action: "cascade", columns: [] },
        definition: "FOREIGN KEY (x, y) REFERENCES public.parent(a, b)",
        undoes: null,
        outcome: "changed",
        application: "promptgrimoire-db"
      })
      const [who] = yield* session.query<{ role: string }>("SELECT current_user::text AS role")
      assert.strictEqual(first?.role, who?.role)
      assert.isAtMost(Date.parse(first?.startedAt ?? ""), Date.parse(first?.finishedAt ?? ""))
      assert.deepInclude(second, { id: 2, outcome: "changed" })
      assert.deepStrictEqual(second?.from, first?.to)
      assert.match(second?.definition ?? "", /ON DELETE CASCADE$/)
      const selected = { tables: [{ table: "other" }] }
      assert.deepStrictEqual(yield* ForeignKey.history({ selectors: selected }), [])
      assert.strictEqual(
        (yield* ForeignKey.history({ selectors: { references: [{ table: "parent" }] } })).length,
        2
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("is written before anything is changed, and closed when nothing is left to do", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      const before = yield* snapshots(session)
      const seen: Array<unknown> = []
      yield* rebuild("cascade", {
        onProgress: (event) =>
          Effect.orDie(
            Effect.gen(function* () {
              if (event._tag === "Recorded") {
                assert.strictEqual(event.ledger, `public.${ForeignKey.defaultLedger}`)
                assert.deepStrictEqual(yield* snapshots(session), before)
              }
              if (event._tag === "Recorded" || event._tag === "Finished") {
                const open = yield* session.query(
                  `SELECT finished_at IS NULL AS open FROM ${ForeignKey.defaultLedger}`
                )
                seen.push([event._tag, open])
              }
            })
          )
      })
      assert.deepStrictEqual(seen, [
        ["Recorded", [{ open: true }]],
        ["Finished", [{ open: false }]]
      ])
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive(
    "is made by the first change only: nobody who looks makes it, and nobody who goes without",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        yield* ForeignKey.list()
        const planned = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
        assert.deepStrictEqual(
          planned.steps.filter(({ when }) => when === "always").map(({ step }) => step),
          ["create-ledger", "record", "add", "validate", "swap", "record-end"]
        )
        assert.deepStrictEqual(yield* ForeignKey.history(), [])
        yield* rebuild("cascade", { ledger: false })
        const tables =
          "SELECT relname::text AS name FROM pg_class WHERE relname ~ 'changes' AND relkind = 'r'"
        assert.deepStrictEqual(yield* session.query(tables), [])
        assert.deepStrictEqual((yield* undo()).unchanged, ["public.child.fk"])
        yield* rebuild("restrict")
        assert.deepStrictEqual(yield* session.query(tables), [{ name: ForeignKey.defaultLedger }])
        const again = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade" })
        assert.strictEqual(again.steps[0]?.step, "record")
        assert.deepStrictEqual(again.steps[0]?.locks, [
          { relation: `public.${ForeignKey.defaultLedger}`, mode: "ROW EXCLUSIVE" }
        ])
      }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("is where the search path or the caller says", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; CREATE SCHEMA "App"; CREATE SCHEMA "Ops";
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = missing, "App", public', current_database()); END $$`)
      yield* rebuild("cascade")
      const elsewhere = { schema: "Ops", table: "Key's changes" }
      yield* rebuild("restrict", { ledger: elsewhere })
      assert.deepStrictEqual(
        yield* session.query(
          "SELECT relnamespace::regnamespace::text AS schema, relname::text AS name FROM pg_class WHERE relname ~ 'changes' AND relkind = 'r' ORDER BY 1"
        ),
        [
          { schema: '"App"', name: ForeignKey.defaultLedger },
          { schema: '"Ops"', name: "Key's changes" }
        ]
      )
      assert.strictEqual((yield* ForeignKey.history({ ledger: elsewhere })).length, 1)
      yield* undo({ ledger: elsewhere })
      assert.strictEqual(yield* action, "cascade")
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("is told what became of a change that another one took the place of", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* stoppedAt(stepDone("add"), (onProgress) => rebuild("cascade", { onProgress }))
      yield* stoppedAt(stepDone("swap"), (onProgress) => rebuild("restrict", { onProgress }))
      yield* rebuild("set-null")
      yield* stoppedAt(stepDone("validate"), (onProgress) => rebuild("cascade", { onProgress }))
      yield* rebuild("set-null")
      assert.deepStrictEqual(yield* changes, [
        ["no-action", "cascade", null, "taken back"],
        ["no-action", "restrict", null, "changed"],
        ["restrict", "set-null", null, "changed"],
        ["set-null", "cascade", null, "taken back"]
      ])
      assert.strictEqual(yield* action, "set-null")
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("is told that a change which failed was taken back", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* session.query("SET session_replication_role = replica; INSERT INTO child VALUES (7, 7)")
      const { failed } = yield* rebuild("cascade")
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["RowsViolate"]
      )
      assert.deepStrictEqual(yield* changes, [["no-action", "cascade", null, "taken back"]])
      assert.deepStrictEqual((yield* undo()).unchanged, ["public.child.fk"])
    }).pipe(Effect.provide(database))
  )
})

describe("an undo", () => {
  it.scopedLive("brings back the action with its columns, once", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      const version = yield* Catalog.serverVersion(session)
      const columns = version >= 150_000 ? ["y"] : []
      yield* rebuild("set-null", { onDeleteColumns: columns })
      const before = comparable(yield* snapshots(session))
      const written = yield* definitions(session)
      yield* rebuild("cascade")
      const { rebuilt } = yield* undo()
      assert.deepStrictEqual(
        rebuilt.map(({ previous }) => previous),
        [{ action: "cascade", columns: [] }]
      )
      assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
      assert.deepStrictEqual(yield* definitions(session), written)
      const again = yield* undo()
      assert.deepStrictEqual(again.unchanged, ["public.child.fk"])
      assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
      assert.deepStrictEqual((yield* changes).slice(1), [
        ["set-null", "cascade", null, "changed"],
        ["cascade", "set-null", 2, "changed"]
      ])
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("goes further back, and undoes an undo, if it is told which change", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(
        `${pair}; CREATE TABLE bystander (x int, y int, FOREIGN KEY (x, y) REFERENCES parent)`
      )
      yield* rebuild("cascade", { selectors: { tables: [{ table: "child" }] } })
      yield* rebuild("restrict", { selectors: { tables: [{ table: "child" }] } })
      yield* undo({ changes: [1] })
      assert.strictEqual(yield* action, "no-action,no-action")
      yield* undo({ changes: [3] })
      assert.strictEqual(yield* action, "no-action,restrict")
      assert.deepStrictEqual((yield* changes).slice(2), [
        ["restrict", "no-action", 1, "changed"],
        ["no-action", "restrict", 3, "changed"]
      ])
      const missing = yield* Effect.flip(undo({ changes: [77] }))
      assert.strictEqual(missing.message, "no foreign key fits change 77")
    }).pipe(Effect.provide(database))
  )

  inMatrix(it).scopedLive("takes back a change that was interrupted anywhere, and only that one", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; ALTER TABLE child ALTER CONSTRAINT fk DEFERRABLE`)
      yield* rebuild("restrict")
      const before = comparable(yield* snapshots(session))
      const points: ReadonlyArray<(event: ForeignKey.Progress) => boolean> = [
        (event) => event._tag === "Recorded",
        stepDone("add"),
        stepDone("validate"),
        stepDone("swap"),
        stepDone("settle")
      ]
      for (const [index, point] of cases(points, (point) => points.indexOf(point) % 3 === 1).entries()) {
        yield* stoppedAt(point, (onProgress) => rebuild("cascade", { onProgress }))
        yield* undo()
        assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
        assert.deepStrictEqual((yield* undo()).unchanged, ["public.child.fk"])
        assert.deepStrictEqual(
          (yield* changes).slice(1),
          Array.from({ length: index + 1 }, () => ["restrict", "cascade", null, "undone"])
        )
      }
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("that was interrupted anywhere is resumed by the next one", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      const before = comparable(yield* snapshots(session))
      for (const [index, step] of cases(
        ["add", "validate", "swap"],
        (step) => step === "validate"
      ).entries()) {
        yield* rebuild("cascade")
        yield* stoppedAt(stepDone(step), (onProgress) => undo({ onProgress }))
        const { failed, rebuilt, refused } = yield* undo()
        assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 1])
        assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
        assert.deepStrictEqual((yield* changes).slice(2 * index), [
          ["no-action", "cascade", null, "changed"],
          ["cascade", "no-action", 2 * index + 1, "changed"]
        ])
      }
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("has nothing to do for keys of which no change is recorded", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(`${pair}; CREATE TABLE single (id int PRIMARY KEY);
        CREATE TABLE other (parent_id int REFERENCES single ON DELETE CASCADE)`)
      const everywhere = { selectors: {} }
      const had = "public.other.other_parent_id_fkey"
      assert.deepStrictEqual((yield* ForeignKey.undo(everywhere)).unchanged, ["public.child.fk", had])
      const before = comparable(yield* snapshots(session))
      yield* rebuild("cascade", everywhere)
      const undone = yield* ForeignKey.undo(everywhere)
      assert.deepStrictEqual(
        undone.rebuilt.map(({ constraint }) => constraint),
        ["public.child.fk"]
      )
      assert.deepStrictEqual([undone.unchanged, undone.refused, undone.failed], [[had], [], []])
      assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("is refused where the ledger that was named is not there, or cannot be read", () =>
    withRole(
      (role) => `${pair}; ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role}`,
      ({ limited, session }) =>
        Effect.gen(function* () {
          const refused = (ledger?: ForeignKey.TableSelector) =>
            ForeignKey.undo({ selectors: {}, ledger }).pipe(
              Effect.provide(limited),
              Effect.map((result) => result.refused.map(({ code }) => code))
            )
          assert.deepStrictEqual(yield* refused({ schema: "public", table: "elsewhere" }), ["no-record"])
          yield* rebuild("cascade")
          yield* session.query(`REVOKE ALL ON ${ForeignKey.defaultLedger} FROM PUBLIC`)
          assert.deepStrictEqual(yield* refused(), ["ledger"])
        })
    )
  )

  inMatrix(it).scopedLive("reads the comment of a change that was interrupted without a ledger", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      const before = comparable(yield* snapshots(session))
      yield* stoppedAt(stepDone("validate"), (onProgress) =>
        rebuild("cascade", { onProgress, ledger: false })
      )
      yield* undo()
      assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive(
    "is refused where something else changed the key since, and harmless where it was put back",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        yield* rebuild("cascade")
        const replace = (onDelete: string) =>
          session.query(`ALTER TABLE child DROP CONSTRAINT fk;
          ALTER TABLE child ADD CONSTRAINT fk FOREIGN KEY (x, y) REFERENCES parent ON DELETE ${onDelete}`)
        yield* replace("SET NULL")
        const { refused } = yield* undo()
        assert.strictEqual(refused[0]?.code, "no-record")
        assert.include(
          refused[0]?.reason,
          "change (1) made it ON DELETE CASCADE, and something else made it SET NULL since"
        )
        yield* replace("NO ACTION")
        assert.deepStrictEqual((yield* undo()).unchanged, ["public.child.fk"])
      }).pipe(Effect.provide(database))
  )
})

describe("a change is refused before anything is touched", () => {
  inFull(it).scopedLive("if its ledger cannot be kept, and says what would help", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const role = `r${name}`
      yield* Effect.gen(function* () {
        const session = yield* application
        yield* session.query(`${pair}; CREATE ROLE ${role} LOGIN PASSWORD 'x'; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
          ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role}; CREATE SCHEMA closed; CREATE TABLE taken (id int)`)
        yield* Effect.addFinalizer(() =>
          Effect.ignore(session.query(`DROP OWNED BY ${role}; DROP ROLE ${role}`))
        )
        const limited = new URL(Redacted.value(url))
        limited.username = role
        limited.password = "x"
        const as = Effect.provide(Database.layer({ url: limited.toString(), minConnections: 1 }))
        const before = yield* snapshots(session)
        const refusal = (options: Partial<ForeignKey.RebuildOptions>) =>
          Effect.gen(function* () {
            const { failed, rebuilt, refused } = yield* rebuild("cascade", options)
            assert.deepStrictEqual([failed, rebuilt, refused[0]?.code], [[], [], "ledger"])
            assert.deepStrictEqual(yield* snapshots(session), before)
            const plan = yield* ForeignKey.plan({ selectors: {}, onDelete: "cascade", ...options })
            assert.deepStrictEqual(plan.refused, refused)
            return refused[0]?.reason ?? ""
          }).pipe(as)
        assert.include(yield* refusal({}), `GRANT CREATE ON SCHEMA public TO ${role}, `)
        assert.include(
          yield* refusal({ ledger: { schema: "closed", table: "t" } }),
          `GRANT USAGE ON SCHEMA closed TO ${role}, `
        )
        assert.include(
          yield* refusal({ ledger: { schema: "nowhere", table: "t" } }),
          "schema nowhere of the ledger does not exist"
        )
        assert.include(
          yield* refusal({ ledger: { table: "taken" } }),
          "public.taken is there, and is not a ledger of this tool"
        )
        yield* session.query("CREATE TABLE elsewhere (id int PRIMARY KEY, e int REFERENCES elsewhere)")
        yield* rebuild("cascade", { selectors: { tables: [{ table: "elsewhere" }] } })
        yield* session.query("DROP TABLE elsewhere")
        assert.include(
          yield* refusal({}),
          `GRANT SELECT, INSERT, UPDATE ON public.${ForeignKey.defaultLedger} TO ${role}, `
        )
        const undone = yield* as(undo())
        assert.deepStrictEqual([undone.rebuilt, undone.refused[0]?.code], [[], "ledger"])
        const unreadable = yield* Effect.flip(as(ForeignKey.history()))
        assert.strictEqual(unreadable._tag, "LedgerUnreadable")
        assert.include(unreadable.message, `TO ${role}, `)
        assert.strictEqual((yield* as(rebuild("cascade", { ledger: false }))).rebuilt.length, 1)
        yield* session.query(`GRANT SELECT, INSERT, UPDATE ON ${ForeignKey.defaultLedger} TO ${role}`)
        assert.strictEqual((yield* as(rebuild("restrict"))).rebuilt.length, 1)
        assert.strictEqual((yield* as(undo())).rebuilt.length, 1)
        assert.strictEqual((yield* ForeignKey.history()).at(-1)?.role, role)
      }).pipe(Effect.provide(Database.layer({ url, minConnections: 1 })))
    })
  )
})
