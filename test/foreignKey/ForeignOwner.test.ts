/**
 * A role that owns the referencing table only, as an application's does of the tables that refer to
 * those of its authentication service.
 */
import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import { cases } from "../support/length.js"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Snapshot from "../../src/foreignKey/snapshot/snapshot.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import * as Following from "./Following.js"
import * as Observed from "./Observed.js"
import { application, snapshots, withRole } from "./support.js"

type Cut = "" | "referenced" | "referencing"

const tables = (role: string, privileges: string, cut: Cut = "") => {
  const table = (name: string, definition: string, isCut: boolean) =>
    `CREATE TABLE ${name} (${definition})${isCut ? " PARTITION BY RANGE (id)" : ""};
    ${isCut ? `CREATE TABLE ${name}_1 PARTITION OF ${name} DEFAULT;` : ""}`
  return `
  CREATE SCHEMA auth;
  ${table("auth.users", "id int PRIMARY KEY", cut === "referenced")}
  GRANT USAGE ON SCHEMA auth TO ${role}; GRANT ${privileges} ON auth.users TO ${role};
  GRANT ALL ON SCHEMA public TO ${role};
  CREATE TABLE sessions (user_id int CONSTRAINT sessions_user REFERENCES auth.users);
  ${table(
    "profiles",
    "id int PRIMARY KEY CONSTRAINT profiles_id_fkey REFERENCES auth.users ON UPDATE CASCADE",
    cut === "referencing"
  )}
  ALTER TABLE profiles OWNER TO ${role};
  ${cut === "referencing" ? `ALTER TABLE profiles_1 OWNER TO ${role};` : ""}
  INSERT INTO auth.users VALUES (1); INSERT INTO profiles VALUES (1)`
}

const choice = {
  selectors: { constraints: [{ table: "profiles", name: "profiles_id_fkey" }] },
  onDelete: "cascade",
  allowRowMovement: true
} as const

/** The keys in the order in which deletes of a referenced row carry them out. */
const order = (session: Session) =>
  session.query(
    `SELECT k.conname::text AS name FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
    WHERE g.tgrelid = 'auth.users'::regclass AND g.tgtype::int & 8 <> 0 ORDER BY g.tgname`
  )

/** Everything of the key but OIDs and the names of triggers on the other role's table. */
const definition = (session: Session) =>
  Effect.map(snapshots(session), (all) => {
    const snapshot = all["public.profiles.profiles_id_fkey"]
    if (snapshot === undefined) return undefined
    const actions = snapshot.flatMap(({ triggers }) =>
      triggers.filter(({ role }) => !role.startsWith("check"))
    )
    return Snapshot.withoutOids(
      Snapshot.withoutNamesOn(
        snapshot,
        actions.map(({ table }) => table)
      )
    )
  })

const keyOf = (session: Session) =>
  Effect.map(Catalog.read(session), (keys) => keys.filter(({ name }) => name === "profiles_id_fkey"))

/** Lets the key carry out deletes after every new one. */
const moveLast = `DO $$ DECLARE name text := (
    SELECT g.tgname FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
    WHERE k.conname = 'profiles_id_fkey' AND g.tgtype::int & 8 <> 0
  );
  BEGIN IF name <> 'zz' THEN EXECUTE format('ALTER TRIGGER %I ON auth.users RENAME TO %I', name, 'zz'); END IF; END $$`

/**
 * Creates a trigger between those of the key and of any new one, and leaves the transaction open.
 */
const comeBetween = `BEGIN;
  CREATE FUNCTION auth.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
  DO $$ DECLARE name text := (
    SELECT g.tgname FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
    WHERE k.conname = 'profiles_id_fkey' AND g.tgtype::int & 8 <> 0
  );
  BEGIN
    EXECUTE format(
      'CREATE TRIGGER %I AFTER DELETE ON auth.users FOR EACH ROW EXECUTE FUNCTION auth.nothing()', name || ' '
    );
  END $$`

const otherSide = (other: string) =>
  `the new key would act on the other side of ${other}, which acts on the same deletes or key updates, and only the owner of auth.users can rename triggers there: run it as a role that owns both tables, or as a superuser`

const tooEarly =
  "the new key would act before the original until the swap, and only the owner of auth.users can rename triggers there: run it as a role that owns both tables, or as a superuser"

const unreadable =
  "the role may not read all rows of auth.users: rows of public.profiles without one there were not counted, and step validate looks up each row of public.profiles by itself, which takes longer"

/** Interrupts a change when a step begins. */
const interruptedAt = (step: string, options: Partial<ForeignKey.RebuildOptions> = {}) =>
  Effect.gen(function* () {
    const reached = yield* Deferred.make<void>()
    const running = yield* Effect.fork(
      ForeignKey.rebuild({
        ...choice,
        ...options,
        onProgress: (event) =>
          event._tag === "StepStarted" && event.step === step
            ? Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never)
            : Effect.void
      })
    )
    yield* Deferred.await(reached)
    yield* Fiber.interrupt(running)
  })

describe("a role that does not own the referenced table", () => {
  for (const [what, privileges] of [
    ["may only REFERENCE its key", "REFERENCES (id)"],
    ["may LOCK it", "ALL"]
  ] as const) {
    for (const cut of cases(["", "referenced", "referencing"] as const, (cut) =>
      privileges === "ALL" ? cut === "referencing" : cut === ""
    )) {
      const run = cut === "" ? it : inMatrix(it)
      run.scopedLive(
        `changes a key and back where it ${what}${cut === "" ? "" : `, the ${cut} table partitioned`}`,
        () =>
          withRole(
            (role) => tables(role, privileges, cut),
            ({ limited, role, session }) =>
              Effect.gen(function* () {
                const before = yield* definition(session)
                const sorted = yield* order(session)
                const { refused, steps, warnings } = yield* ForeignKey.plan(choice)
                if (
                  cut === "referencing" &&
                  privileges !== "ALL" &&
                  (yield* Catalog.serverVersion(session)) < 180_000
                ) {
                  assert.deepStrictEqual(
                    refused.map(({ code, reason }) => [code, reason]),
                    [
                      [
                        "privileges",
                        `role ${role} lacks UPDATE, DELETE or TRUNCATE (to lock it) on the referenced table`
                      ]
                    ]
                  )
                  return
                }
                assert.deepStrictEqual(refused, [])
                assert.deepStrictEqual(
                  warnings.filter(({ code }) => code === "row-by-row").map(({ warning }) => warning),
                  privileges === "ALL" ? [] : [unreadable]
                )
                const [first, second] = (steps.find(({ step }) => step === "add")?.locks ?? []).filter(
                  ({ relation }) => !relation.endsWith("_1")
                )
                assert.deepStrictEqual(
                  privileges === "ALL"
                    ? [first?.relation, first?.implicit, second?.implicit]
                    : [second?.relation, second?.implicit === true ? undefined : "explicit", first?.implicit],
                  ["auth.users", undefined, undefined]
                )
                const { result, seen } = yield* Observed.transactions(
                  ForeignKey.rebuild({
                    ...choice,
                    swapTries: 0,
                    onProgress: yield* Following.watch(session, yield* keyOf(session))
                  })
                )
                assert.deepStrictEqual([result.failed, result.refused, result.rebuilt.length], [[], [], 1])
                Observed.areThose(
                  seen,
                  steps.filter(({ when }) => when === "always"),
                  what
                )
                assert.deepStrictEqual(yield* order(session), sorted)
                yield* session.query("BEGIN; DELETE FROM auth.users")
                assert.deepStrictEqual(yield* session.query("SELECT FROM profiles"), [])
                yield* session.query("ROLLBACK")
                const undone = yield* ForeignKey.undo({ ...choice })
                assert.deepStrictEqual([undone.failed, undone.refused, undone.rebuilt.length], [[], [], 1])
                assert.deepStrictEqual(yield* order(session), sorted)
                assert.deepStrictEqual(yield* definition(session), before)
              }).pipe(Effect.provide(limited))
          )
      )
    }
  }

  inMatrix(it).scopedLive("counts no rows without a referenced row where row security hides these", () =>
    withRole(
      (role) => `${tables(role, "REFERENCES, SELECT")}; ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY`,
      ({ limited }) =>
        Effect.gen(function* () {
          const { warnings } = yield* ForeignKey.plan(choice)
          assert.deepStrictEqual(
            warnings.flatMap(({ code, warning }) =>
              code === "row-by-row" || code === "orphans" ? [warning] : []
            ),
            [unreadable]
          )
          assert.strictEqual((yield* ForeignKey.rebuild(choice)).rebuilt.length, 1)
        }).pipe(Effect.provide(limited))
    )
  )

  inFull(it).scopedLive("resumes a change that was interrupted at any step", () =>
    withRole(
      (role) => tables(role, "REFERENCES, SELECT"),
      ({ limited, session }) =>
        Effect.gen(function* () {
          const sorted = yield* order(session)
          for (const step of ["add", "validate", "swap"] as const) {
            yield* interruptedAt(step)
            const { failed, rebuilt, refused } = yield* ForeignKey.rebuild(choice)
            assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 1], step)
            assert.deepStrictEqual(yield* order(session), sorted, step)
            const undone = yield* ForeignKey.undo({ ...choice })
            assert.deepStrictEqual([undone.failed, undone.refused, undone.rebuilt.length], [[], [], 1], step)
          }
        }).pipe(Effect.provide(limited))
    )
  )

  inFull(it).scopedLive("leaves to the owner a change that was interrupted while triggers were renamed", () =>
    withRole(
      (role) => tables(role, "ALL"),
      ({ limited, session }) =>
        Effect.gen(function* () {
          for (const step of ["switch-names", "drop-original"] as const) {
            yield* interruptedAt(step, { swapTries: 0 })
            const before = yield* snapshots(session)
            yield* Effect.gen(function* () {
              const { refused } = yield* ForeignKey.plan({ ...choice, ledger: false })
              assert.deepStrictEqual(
                refused.map(({ code }) => code),
                ["OwnerNeeded"]
              )
              const { failed } = yield* ForeignKey.rebuild({ ...choice, ledger: false })
              assert.deepStrictEqual(
                failed.map(({ code, reason }) => [code, reason]),
                [
                  [
                    "OwnerNeeded",
                    "a change of public.profiles.profiles_id_fkey was interrupted while triggers were renamed, and only the owner of auth.users can finish that: run it as a role that owns both tables, or as a superuser. Both the original and the new key protect the data"
                  ]
                ]
              )
            }).pipe(Effect.provide(limited))
            assert.deepStrictEqual(yield* snapshots(session), before, step)
            assert.deepStrictEqual((yield* ForeignKey.rebuild(choice)).rebuilt.length, 1, step)
            assert.deepStrictEqual((yield* ForeignKey.undo({ ...choice })).rebuilt.length, 1, step)
          }
        })
    )
  )

  it.scopedLive("is refused where another key would come to act before, and nothing is touched", () =>
    withRole(
      (role) => `${tables(role, "REFERENCES, SELECT")};
        CREATE TABLE posts (user_id int CONSTRAINT posts_user REFERENCES auth.users)`,
      ({ limited, session }) =>
        Effect.gen(function* () {
          const before = yield* snapshots(session)
          const reason = otherSide("key public.posts.posts_user")
          const refused = [{ constraint: "public.profiles.profiles_id_fkey", code: "firing-order", reason }]
          assert.deepStrictEqual((yield* ForeignKey.plan(choice)).refused, refused)
          assert.deepStrictEqual((yield* ForeignKey.rebuild(choice)).refused, refused)
          assert.deepStrictEqual(yield* snapshots(session), before)
        }).pipe(Effect.provide(limited))
    )
  )

  it.scopedLive("is refused where the new key would act before the original until the swap", () =>
    withRole(
      (role) => tables(role, "ALL"),
      ({ limited, session }) =>
        Effect.gen(function* () {
          yield* session.query(moveLast)
          const { refused } = yield* ForeignKey.rebuild(choice)
          assert.deepStrictEqual(
            refused.map(({ code, reason }) => [code, reason]),
            [["firing-order", tooEarly]]
          )
        }).pipe(Effect.provide(limited))
    )
  )

  for (const step of ["add", "swap"] as const) {
    const run = step === "add" ? it : inMatrix(it)
    run.scopedLive(
      `leaves the order in which keys act as it is where somebody moves another key before step ${step}`,
      () =>
        withRole(
          (role) => tables(role, "REFERENCES, SELECT"),
          ({ limited, session }) =>
            Effect.gen(function* () {
              const { failed, rebuilt } = yield* ForeignKey.rebuild({
                ...choice,
                onProgress: (event) =>
                  event._tag === "StepStarted" && event.step === step
                    ? session
                        .query(
                          // Between those of the key and of any new one.
                          `DO $$ DECLARE r record; BEGIN
                            FOR r IN
                              SELECT o.tgname, (
                                SELECT g.tgname FROM pg_trigger g JOIN pg_constraint k ON k.oid = g.tgconstraint
                                WHERE k.conname = 'profiles_id_fkey' AND g.tgtype = o.tgtype AND g.tgrelid = o.tgrelid
                              ) || ' ' AS moved
                              FROM pg_trigger o JOIN pg_constraint k ON k.oid = o.tgconstraint
                              WHERE k.conname = 'sessions_user' AND o.tgrelid = 'auth.users'::regclass
                            LOOP EXECUTE format('ALTER TRIGGER %I ON auth.users RENAME TO %I', r.tgname, r.moved); END LOOP;
                          END $$`
                        )
                        .pipe(Effect.orDie)
                    : Effect.void
              })
              assert.deepStrictEqual([rebuilt, failed.map(({ code }) => code)], [[], ["OutOfPlace"]])
              assert.strictEqual(
                failed[0]?.reason,
                `${otherSide("key public.sessions.sessions_user")}. Step ${step} was rolled back, the original still protects the data`
              )
              assert.deepStrictEqual(
                (yield* Catalog.read(session)).map(({ name, onDelete }) => [name, onDelete]),
                [
                  ["sessions_user", "no-action"],
                  ["profiles_id_fkey", "no-action"]
                ]
              )
            }).pipe(Effect.provide(limited))
        )
    )
  }

  inFull(it).scopedLive("finds a trigger that came between while the swap waited for its lock", () =>
    withRole(
      (role) => tables(role, "REFERENCES, SELECT"),
      ({ limited, session }) =>
        Effect.gen(function* () {
          const observer = yield* application
          const { failed, rebuilt } = yield* ForeignKey.rebuild({
            ...choice,
            // The machine may be busy with others.
            lockTimeout: "20 seconds",
            onProgress: (event) =>
              event._tag === "StepStarted" && event.step === "swap"
                ? Effect.gen(function* () {
                    yield* session.query(comeBetween)
                    const waits = observer.query(
                      "SELECT FROM pg_locks WHERE relation = 'auth.users'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"
                    )
                    yield* eventually(
                      "a swap that waits",
                      Effect.map(waits, (rows) => rows.length > 0)
                    ).pipe(Effect.zipRight(session.query("COMMIT")), Effect.orDie, Effect.forkDaemon)
                  }).pipe(Effect.orDie)
                : Effect.void
          })
          assert.deepStrictEqual([rebuilt, failed.map(({ code }) => code)], [[], ["OutOfPlace"]])
          assert.include(failed[0]?.reason, 'trigger "RI_ConstraintTrigger_a_')
          assert.strictEqual((yield* keyOf(session))[0]?.onDelete, "no-action")
        }).pipe(Effect.provide(limited))
    )
  )

  inMatrix(it).scopedLive("adds no key that would act before the original, whatever was planned", () =>
    withRole(
      (role) => tables(role, "REFERENCES, SELECT"),
      ({ limited, session }) =>
        Effect.gen(function* () {
          const { failed } = yield* ForeignKey.rebuild({
            ...choice,
            onProgress: (event) =>
              event._tag === "StepStarted" && event.step === "add"
                ? Effect.orDie(session.query(moveLast))
                : Effect.void
          })
          assert.deepStrictEqual(
            failed.map(({ code, reason }) => [code, reason]),
            [["OrderNotKept", `${tooEarly}. The original is as it was`]]
          )
          assert.strictEqual((yield* Catalog.read(session)).length, 2)
        }).pipe(Effect.provide(limited))
    )
  )

  inMatrix(it).scopedLive(
    "waits for the referenced table no longer than for one that it can LOCK, and names who is in the way",
    () =>
      withRole(
        (role) => tables(role, "REFERENCES, SELECT"),
        ({ limited, session }) =>
          Effect.gen(function* () {
            yield* session.query("BEGIN; UPDATE auth.users SET id = id")
            const { failed } = yield* ForeignKey.rebuild({
              ...choice,
              budget: "300 millis",
              // The machine may be busy with others.
              lockTimeout: "20 seconds"
            })
            yield* session.query("ROLLBACK")
            assert.strictEqual(failed[0]?.code, "LockBudgetExhausted")
            assert.include(failed[0]?.reason, String(session.processId))
          }).pipe(Effect.provide(limited))
      )
  )
})
