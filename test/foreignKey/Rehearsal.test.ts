import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Rehearsal from "../../src/foreignKey/apply/rehearsal.js"
import * as TableKinds from "../../src/foreignKey/hazards/tableKinds.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { cases } from "../support/length.js"
import { application, comparable, database, snapshots, withRole } from "./support.js"
import * as Shape from "./Shape.js"

const pair = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent DEFERRABLE);
  COMMENT ON CONSTRAINT fk ON child IS 'kept'`

const relations = "SELECT oid::int8::int AS oid, relname::text AS name FROM pg_class ORDER BY oid"

/** The refusals of plan and run, which are the same; nothing is touched, and nothing is left. */
const refused = (options: Partial<ForeignKey.RebuildOptions> = {}) =>
  Effect.gen(function* () {
    const session = yield* application
    const before = [yield* snapshots(session), yield* session.query(relations)]
    const change = { selectors: {}, onDelete: "cascade", ledger: false, ...options } as const
    const { refused, steps } = yield* ForeignKey.plan(change)
    assert.deepStrictEqual(steps, [])
    const result = yield* ForeignKey.rebuild(change)
    assert.deepStrictEqual([result.rebuilt, result.failed, result.refused], [[], [], refused])
    assert.deepStrictEqual([yield* snapshots(session), yield* session.query(relations)], before)
    return refused
  })

const freeze = (event: string, tag: string, body: string) => `
  CREATE FUNCTION freeze() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN ${body}; END $$;
  CREATE EVENT TRIGGER "Freeze" ON ${event} WHEN TAG IN ('${tag}') EXECUTE FUNCTION freeze()`

const words =
  "RAISE EXCEPTION 'change freeze until Monday' USING DETAIL = 'release 7', HINT = 'ask the duty officer'"

describe("what an event trigger refuses", () => {
  for (const [event, tag, body, step] of cases(
    [
      ["ddl_command_start", "ALTER TABLE", words, "add"],
      ["ddl_command_end", "COMMENT", words, "add"],
      ["sql_drop", "ALTER TABLE", words, "swap"],
      ["ddl_command_start", "ALTER TRIGGER", words, "swap"],
      [
        "ddl_command_end",
        "ALTER TABLE",
        `IF current_query() LIKE '%VALIDATE%' THEN ${words}; END IF`,
        "validate"
      ]
    ] as const,
    ([event]) => event === "sql_drop"
  )) {
    it.scopedLive(`is refused before anything is touched, in its words: ${event} of ${tag} in ${step}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(pair)
        yield* session.query(freeze(event, tag, body))
        const [key] = yield* refused()
        assert.deepStrictEqual(key, {
          constraint: "public.child.fk",
          code: "rehearsal",
          reason: `PostgreSQL refuses step ${step}: change freeze until Monday; release 7; ask the duty officer (P0001). Event triggers that are enabled here: "Freeze". This was found in a rehearsal: nothing was touched`
        })
        yield* session.query('DROP EVENT TRIGGER "Freeze"')
        const { rebuilt, warnings } = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
        assert.deepStrictEqual([rebuilt.length, warnings], [1, []])
      }).pipe(Effect.provide(database))
    )
  }

  for (const [code, body, said] of [
    ["23505", "INSERT INTO public.log VALUES ('secret')", / \(23505\)\. .*$/],
    ["22P02", "PERFORM note::int FROM public.log", /^PostgreSQL refuses step add: SQLSTATE 22P02\. /]
  ] as const) {
    inFull(it).scopedLive(`is shown without what can hold the values of rows: ${code}`, () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(
          `${pair}; CREATE TABLE log (note text UNIQUE); INSERT INTO log VALUES ('secret')`
        )
        yield* session.query(freeze("ddl_command_end", "COMMENT", body))
        const [key] = yield* refused()
        assert.match(key?.reason ?? "", said)
        assert.notInclude(key?.reason, "secret")
      }).pipe(Effect.provide(database))
    )
  }

  inMatrix(it).scopedLive("is found where the role is no superuser and may not even make the copies", () =>
    withRole(
      (role) => `${pair}; ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role};
        CREATE FUNCTION frozen() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN ${words}; END $$`,
      ({ limited, session }) =>
        Effect.gen(function* () {
          yield* session.query("CREATE EVENT TRIGGER frozen ON ddl_command_start EXECUTE FUNCTION frozen()")
          const [key] = yield* Effect.provide(refused(), limited)
          assert.match(
            key?.reason ?? "",
            /^PostgreSQL refuses ALTER TABLE .+: change freeze until Monday; release 7; ask the duty officer \(P0001\)/
          )
          yield* session.query("DROP EVENT TRIGGER frozen")
        })
    )
  )

  inMatrix(it).scopedLive("is not looked for when that is not wanted", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(pair)
      yield* session.query(freeze("ddl_command_start", "ALTER TRIGGER", words))
      const { failed, refused } = yield* ForeignKey.rebuild({
        selectors: {},
        onDelete: "cascade",
        rehearse: false,
        swapTries: 0
      })
      assert.deepStrictEqual([failed.map(({ code }) => code), refused], [["RaisedException"], []])
    }).pipe(Effect.provide(database))
  )
})

describe("a rehearsal", () => {
  for (const [what, kind] of cases(
    Shape.kinds,
    ([what]) => what.startsWith("two") || what.startsWith("ord"),
    ([what]) => what.startsWith("two")
  )) {
    it.scopedLive(
      `has nothing to say of a change between ${what}, whatever the actions, and leaves nothing`,
      () =>
        Effect.gen(function* () {
          const session = yield* application
          const version = yield* Catalog.serverVersion(session)
          yield* session.query(Shape.create({ ...Shape.plain, ...kind }).join(";\n"))
          const before = comparable(yield* snapshots(session))
          const [key] = yield* Catalog.read(session)
          if (key === undefined) return assert.fail("no key")
          const kinds = yield* TableKinds.read(session, [key.oid])
          const own = kinds.get(key.oid)
          if (own === undefined) return assert.fail("no kind")
          const rehearse = yield* Rehearsal.make((use) => use(session))
          for (const action of ForeignKey.actions.filter((action) => action !== key.onDelete)) {
            assert.deepStrictEqual(
              yield* rehearse({ key, kind: own, target: { action, columns: [] }, version, superuser: true }),
              {
                refusals: [],
                warnings: []
              }
            )
          }
          assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
          assert.deepStrictEqual(
            yield* session.query("SELECT FROM pg_class WHERE relname LIKE 'promptgrimoire%'"),
            []
          )
        }).pipe(Effect.provide(database))
    )
  }

  it.scopedLive(
    "goes without the right to create tables in the schema, and is said to be missing without any",
    () =>
      withRole(
        (
          role
        ) => `CREATE SCHEMA closed; SET search_path = closed; ${pair}; GRANT USAGE ON SCHEMA closed TO ${role};
        ALTER TABLE child OWNER TO ${role}; ALTER TABLE parent OWNER TO ${role};
        DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$`,
        ({ limited, role, session }) =>
          Effect.gen(function* () {
            const plan = Effect.map(
              ForeignKey.plan({ selectors: {}, onDelete: "cascade", ledger: false }).pipe(
                Effect.provide(limited)
              ),
              ({ steps, warnings }) => {
                assert.isNotEmpty(steps)
                return warnings.filter(({ code }) => code === "not-rehearsed").map(({ warning }) => warning)
              }
            )
            assert.match(
              (yield* plan).join(),
              /^its steps were not rehearsed: no copies of its tables could be made: .+ \(42501\)$/
            )
            yield* session.query(
              `DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO ${role}', current_database()); END $$`
            )
            assert.deepStrictEqual(yield* plan, [])
          })
      )
  )
})
