/**
 * A key and its successor are both there for as long as rows are checked. Whatever others do
 * meanwhile must come out as if the original were alone.
 */
import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Session } from "../../src/connection/session.js"
import * as Action from "../../src/catalog/action.js"
import type { StepName } from "../../src/foreignKey/steps/steps.js"
import * as Names from "../../src/foreignKey/snapshot/names.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { cases } from "../support/length.js"
import { application, withRole } from "./support.js"

interface Case {
  readonly name: string
  readonly from: ForeignKey.Action
  readonly to: ForeignKey.Action
  readonly mode: "NOT DEFERRABLE" | "DEFERRABLE" | "DEFERRABLE INITIALLY DEFERRED"
}

const numbered = (given: ReadonlyArray<Omit<Case, "name">>): ReadonlyArray<Case> =>
  given.map((one, index) => ({ ...one, name: `fk_${index}` }))

const pairs = ForeignKey.actions.flatMap((from) =>
  ForeignKey.actions.flatMap((to) => (from === to ? [] : [{ from, to }]))
)

/** Every pair of actions. */
const plain = numbered(pairs.map((pair) => ({ ...pair, mode: "NOT DEFERRABLE" })))

/** Those for which it matters when a key is checked. */
const deferrable = numbered(
  pairs
    .filter(({ from, to }) => from === "no-action" || to === "no-action")
    .flatMap((pair) => [
      { ...pair, mode: "DEFERRABLE" as const },
      { ...pair, mode: "DEFERRABLE INITIALLY DEFERRED" as const }
    ])
)

/** One that comes to delete rows, and one that ceases to. */
const opposites = numbered([
  { from: "no-action", to: "cascade", mode: "NOT DEFERRABLE" },
  { from: "cascade", to: "restrict", mode: "NOT DEFERRABLE" }
])

/** Whether the pair is one of {@link opposites}. */
const isTelling = ({ from, to }: Case) => opposites.some((one) => one.from === from && one.to === to)

const kinds = {
  "ordinary tables": ["", ""],
  "a partitioned referencing table": ["", "PARTITION BY RANGE (parent_id)"],
  "a partitioned referenced table": ["PARTITION BY RANGE (id)", ""],
  "two partitioned tables": ["PARTITION BY RANGE (id)", "PARTITION BY RANGE (parent_id)"]
} as const

type Kind = keyof typeof kinds

const roles = ["a superuser", "the tables' owner"] as const

type Role = (typeof roles)[number]

const create = (kind: Kind, { from, mode, name }: Case) => {
  const table = (named: string, columns: string, cut: string) =>
    `CREATE TABLE ${named} (${columns}) ${cut}; ${
      cut === ""
        ? ""
        : `CREATE TABLE ${named}_1 PARTITION OF ${named} FOR VALUES FROM (0) TO (100); CREATE TABLE ${named}_2 PARTITION OF ${named} DEFAULT;`
    }`
  return `
    ${table(`parent_${name}`, "id int PRIMARY KEY", kinds[kind][0])}
    ${table(`child_${name}`, "id int, parent_id int DEFAULT 2", kinds[kind][1])}
    INSERT INTO parent_${name} VALUES (1), (2); INSERT INTO child_${name} VALUES (1, 1);
    ALTER TABLE child_${name} ADD CONSTRAINT ${name} FOREIGN KEY (parent_id) REFERENCES parent_${name}
      ON DELETE ${Action.sql(from)} ${mode};`
}

/** Puts something before the names of a key's triggers. */
const rename = (session: Session, constraint: string, prefix: string) =>
  session.query(`DO $$ DECLARE r record; BEGIN
    FOR r IN
      WITH RECURSIVE tree AS (
        SELECT oid FROM pg_constraint WHERE conname = '${constraint}' AND contype = 'f' AND NOT EXISTS (
          SELECT FROM pg_constraint up WHERE up.oid = pg_constraint.conparentid AND up.conname = '${constraint}'
        )
        UNION SELECT k.oid FROM pg_constraint k JOIN tree t ON k.conparentid = t.oid
      )
      SELECT g.tgname, g.tgrelid::regclass AS relation FROM pg_trigger g JOIN tree t ON t.oid = g.tgconstraint WHERE g.tgparentid = 0
    LOOP EXECUTE format('ALTER TRIGGER %I ON %s RENAME TO %I', r.tgname, r.relation, '${prefix}' || r.tgname); END LOOP;
  END $$`)

/**
 * What a delete, a key update and an insert do in a transaction that is rolled back: the rows that
 * are left, or the error with the constraint that it names.
 */
const outcomes = (session: Session, { from, mode, name }: Case, role: Role) => {
  // Where the new key of another role acts all the same, as the plan says (Overlap.test.ts).
  const isExcepted = role !== "a superuser" && from === "no-action"
  const statements = [
    `DELETE FROM parent_${name} WHERE id = 1`,
    `UPDATE parent_${name} SET id = 11 WHERE id = 1`,
    `INSERT INTO child_${name} VALUES (2, 99)`,
    ...(isExcepted
      ? []
      : [
          `WITH gone AS (DELETE FROM parent_${name} WHERE id = 1 RETURNING id) INSERT INTO parent_${name} SELECT id FROM gone`
        ])
  ]
  const modes =
    mode === "NOT DEFERRABLE"
      ? [""]
      : isExcepted
        ? ["SET CONSTRAINTS ALL IMMEDIATE"]
        : [
            "",
            "SET CONSTRAINTS ALL DEFERRED",
            `SET CONSTRAINTS ${name} DEFERRED`,
            "SET CONSTRAINTS ALL IMMEDIATE"
          ]
  return Effect.forEach(
    modes.flatMap((set) => statements.map((statement) => [set, statement] as const)),
    ([set, statement]) =>
      Effect.gen(function* () {
        yield* session.query(`BEGIN; ${set}`)
        const outcome = yield* Effect.gen(function* () {
          yield* session.query(statement)
          const rows = yield* session.query(`SELECT id, parent_id FROM child_${name} ORDER BY 1, 2`)
          yield* session.query("SET CONSTRAINTS ALL IMMEDIATE")
          return JSON.stringify(rows)
        }).pipe(
          Effect.catchAll(({ reason }) =>
            Effect.succeed([reason._tag, "constraint" in reason ? reason.constraint : ""].join(" "))
          )
        )
        yield* session.query("ROLLBACK")
        return `${set} ${statement}: ${outcome}`
      })
  )
}

/** Runs as the role, in a database of its own, with sessions of that role. */
const as = <E, R>(role: Role, use: (session: Session, reader: Session) => Effect.Effect<void, E, R>) =>
  withRole(
    (limited) => `GRANT ALL ON SCHEMA public TO ${limited}`,
    ({ limited }) => {
      const program = Effect.gen(function* () {
        yield* use(yield* application, yield* application)
      })
      return role === "a superuser" ? program : Effect.provide(program, limited)
    }
  )

const choice = ({ name, to }: Case) => ({
  selectors: { constraints: [{ table: `child_${name}`, name }] },
  onDelete: to,
  ledger: false as const,
  allowRowMovement: true,
  settlePatience: 0,
  // The machine may be busy with others.
  lockTimeout: "20 seconds" as const
})

/**
 * An outcome without the name of a constraint, which is another one for a moment where a change is
 * made table by table.
 */
const unnamed = (outcome: string) => outcome.replace(/(Violation) \S+$/, "$1")

/**
 * Changes one key; at every boundary of a step a reader holds its locks while everything is tried.
 * From the swap on it comes out as with the original or as it does in the end.
 */
const change = (
  session: Session,
  reader: Session,
  role: Role,
  given: Case,
  before: ReadonlyArray<string>,
  options: Partial<ForeignKey.RebuildOptions> = {}
) =>
  Effect.gen(function* () {
    const steps: Array<StepName> = []
    const later: Array<ReadonlyArray<string>> = []
    let isOver = false
    const result = yield* ForeignKey.rebuild({
      ...choice(given),
      ...options,
      onProgress: (event) =>
        Effect.gen(function* () {
          if (event._tag !== "StepStarted" && event._tag !== "StepDone") return
          steps.push(event.step)
          isOver ||=
            event._tag === "StepDone" &&
            ["swap", "switch-enable", "switch-delete", "switch-names"].includes(event.step)
          yield* reader.query(`BEGIN; SELECT FROM parent_${given.name}, child_${given.name}`)
          const now = yield* outcomes(session, given, role)
          yield* reader.query("COMMIT")
          if (isOver) later.push(now)
          else assert.deepStrictEqual(now, before, `${JSON.stringify(given)}, ${event._tag} ${event.step}`)
        }).pipe(Effect.orDie)
    })
    const after = yield* outcomes(session, given, role)
    for (const now of later) {
      for (const [index, outcome] of now.entries()) {
        assert.include([before[index], after[index]].map(String).map(unnamed), unnamed(outcome))
      }
    }
    return { result, steps }
  })

const isPlainest = (kind: Kind) => kind === "ordinary tables"

/** The plainest tables, and those that take the most steps. */
const isTellingKind = (kind: Kind) => kind === "ordinary tables" || kind === "two partitioned tables"

describe("until the swap, a delete, a key update and an insert do what they do with the original alone", () => {
  for (const kind of cases(Object.keys(kinds) as ReadonlyArray<Kind>, isTellingKind, isPlainest)) {
    for (const role of cases(roles, (role) => (role === "a superuser") === (kind === "ordinary tables"))) {
      const sets = kind === "ordinary tables" ? { plain, deferrable } : { plain }
      for (const [set, all] of Object.entries(sets)) {
        const run = set === "plain" ? it : inMatrix(it)
        run.scopedLive(
          `for every ${set === "plain" ? "pair of actions" : "DEFERRABLE key"}, on ${kind}, changed by ${role}`,
          () =>
            as(role, (session, reader) =>
              Effect.gen(function* () {
                for (const [index, given] of cases(all, isTelling).entries()) {
                  yield* session.query(create(kind, given))
                  // So they sort last, as when the OIDs of the database have got another digit.
                  if (index % 2 === 0) yield* rename(session, given.name, "zz ")
                  const before = yield* outcomes(session, given, role)
                  const { result } = yield* change(session, reader, role, given, before)
                  assert.deepStrictEqual([result.failed, result.refused, result.rebuilt.length], [[], [], 1])
                }
              })
            )
        )
      }

      const reads = kind === "ordinary tables" ? it : inFull(it)
      reads.scopedLive(
        `while a reader holds its locks, after that, and in the run that goes on, on ${kind}, changed by ${role}`,
        () =>
          as(role, (session, reader) =>
            Effect.gen(function* () {
              const holder = yield* application
              for (const given of opposites) {
                yield* session.query(create(kind, given))
                yield* rename(session, given.name, "zz ")
                const before = yield* outcomes(session, given, role)
                yield* holder.query(`BEGIN; SELECT FROM parent_${given.name}, child_${given.name}`)
                const held = yield* change(session, reader, role, given, before, { budget: "300 millis" })
                assert.deepStrictEqual(
                  held.result.failed.map(({ code }) => code),
                  ["LockBudgetExhausted"]
                )
                assert.include(
                  held.result.failed[0]?.reason,
                  "The original constraint still protects the data"
                )
                assert.deepStrictEqual(yield* outcomes(session, given, role), before)
                yield* holder.query("COMMIT")
                const resumed = yield* change(session, reader, role, given, before, { swapTries: 0 })
                assert.deepStrictEqual([resumed.result.failed, resumed.result.rebuilt.length], [[], 1])
                assert.notInclude(resumed.steps, "order")
              }
            })
          )
      )

      inFull(it).scopedLive(
        `from step order on, where triggers were renamed in the middle of a change, on ${kind}, changed by ${role}`,
        () =>
          as(role, (session) =>
            Effect.gen(function* () {
              for (const given of opposites) {
                const { from, name, to } = given
                yield* session.query(create(kind, given))
                const before = yield* outcomes(session, given, role)
                yield* Fiber.await(
                  yield* Effect.fork(
                    ForeignKey.rebuild({
                      ...choice(given),
                      onProgress: (event) =>
                        event._tag === "StepDone" && event.step === "add" ? Effect.interrupt : Effect.void
                    })
                  )
                )
                yield* rename(session, Names.temporary(name), "A ")
                if (role === "a superuser") {
                  yield* session.query(`DO $$ DECLARE r record; BEGIN
                    FOR r IN SELECT tgname, tgrelid::regclass AS relation FROM pg_trigger WHERE tgenabled = 'D'
                    LOOP EXECUTE format('ALTER TABLE ONLY %s ENABLE TRIGGER %I', r.relation, r.tgname); END LOOP; END $$`)
                }
                assert.notDeepEqual(yield* outcomes(session, given, role), before)
                const { steps } = yield* ForeignKey.plan(choice(given))
                assert.strictEqual(steps[0]?.step, "order")
                const holder = yield* application
                yield* holder.query(`BEGIN; LOCK TABLE parent_${name} IN ROW EXCLUSIVE MODE`)
                const held = yield* ForeignKey.rebuild({ ...choice(given), budget: "300 millis" })
                yield* holder.query("COMMIT")
                assert.include(
                  held.failed[0]?.reason,
                  `deletes in public.parent_${name} follow ON DELETE ${Action.sql(to)} until it is done, and not ON DELETE ${Action.sql(from)}`
                )
                const told: Array<ForeignKey.Progress> = []
                let isInOrder = false
                const result = yield* ForeignKey.rebuild({
                  ...choice(given),
                  onProgress: (event) =>
                    Effect.gen(function* () {
                      if (event._tag === "Overlap") told.push(event)
                      if (event._tag !== "StepDone" && event._tag !== "StepStarted") return
                      isInOrder ||= event._tag === "StepStarted" && event.step !== "order"
                      if (!isInOrder || ["swap", "settle"].includes(event.step)) return
                      assert.deepStrictEqual(yield* outcomes(session, given, role), before, event.step)
                    }).pipe(Effect.orDie)
                })
                assert.deepStrictEqual([result.failed, result.rebuilt.length], [[], 1])
                assert.deepInclude(told[0], { live: to, until: "order" })
              }
            })
          )
      )
    }
  }
})
