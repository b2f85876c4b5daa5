import * as Effect from "effect/Effect"
import * as Database from "../../src/Database.js"
import type { QueryOptions, Session } from "../../src/connection/session.js"
import * as Catalog from "../../src/catalog/foreignKeys.js"
import * as Snapshot from "../../src/foreignKey/snapshot/snapshot.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { assert, describe, inFull, it } from "../support/it.js"
import { application, database } from "./support.js"

/** Keys of one name on many tables, each with something of its own. */
const various = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE cut (id int, parent_id int CONSTRAINT fk REFERENCES parent) PARTITION BY RANGE (id);
  CREATE TABLE cut_1 PARTITION OF cut FOR VALUES FROM (1) TO (2);
  CREATE TABLE cut_2 PARTITION OF cut FOR VALUES FROM (2) TO (3);
  DO $$ BEGIN
    FOR n IN 1 .. 5 LOOP
      EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a int CONSTRAINT fk REFERENCES parent%s, b int CONSTRAINT other REFERENCES t%s)',
        n, (ARRAY['', ' DEFERRABLE', ' ON UPDATE CASCADE'])[n % 3 + 1], greatest(1, n - 1));
      EXECUTE format('COMMENT ON CONSTRAINT fk ON t%s IS %L', n, 'of ' || n);
    END LOOP;
  END $$`

const keys = (count: number) => `
  CREATE TABLE parent (id int PRIMARY KEY);
  DO $$ BEGIN
    FOR n IN 1 .. ${count} LOOP
      EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent)', n);
    END LOOP;
  END $$`

/**
 * What the change of one key asks again and again, and the pages that the server looks at for it.
 */
const cost = (count: number) =>
  Effect.gen(function* () {
    const session = yield* application
    yield* session.query(keys(count))
    const known = yield* Database.Database
    const asked: Array<string> = []
    let pages = 0
    const counting = (session: Session): Session => ({
      ...session,
      query: <Row extends object>(sql: string, params?: ReadonlyArray<unknown>, options?: QueryOptions) =>
        Effect.gen(function* () {
          // What watches a step asks as often as the step takes time.
          if ((options?.prepare ?? false) !== false && !sql.includes("pg_blocking_pids")) {
            asked.push(sql)
            const [row] = yield* session.query<{ readonly "QUERY PLAN": ReadonlyArray<Explained> }>(
              `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${sql}`,
              params
            )
            const plan = row?.["QUERY PLAN"][0]?.Plan
            pages += (plan?.["Shared Hit Blocks"] ?? Number.NaN) + (plan?.["Shared Read Blocks"] ?? 0)
          }
          return yield* session.query<Row>(sql, params, options)
        })
    })
    const { rebuilt } = yield* Effect.provideService(
      ForeignKey.rebuild({
        selectors: { tables: [{ table: "t1" }] },
        onDelete: "cascade",
        rehearse: false
      }),
      Database.Database,
      { ...known, session: Effect.map(known.session, counting) }
    )
    assert.strictEqual(rebuilt.length, 1)
    return { asked, pages }
  }).pipe(Effect.scoped, Effect.provide(database))

interface Explained {
  readonly Plan: { readonly "Shared Hit Blocks": number; readonly "Shared Read Blocks": number }
}

describe("many keys", () => {
  it.scopedLive("are read together as each of them is read alone", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(various)
      const all = yield* Catalog.read(session)
      assert.isAbove(all.length, 10)
      const together = yield* Snapshot.readAll(
        session,
        all.map(({ oid }) => oid)
      )
      for (const key of all) {
        const alone = yield* Snapshot.read(session, key.referencing.oid, key.name)
        assert.isDefined(alone)
        assert.deepStrictEqual(together.get(key.oid), alone, Catalog.nameOf(key))
        const [named] = yield* Catalog.read(session, { tables: [key.referencing.oid], names: [key.name] })
        assert.deepStrictEqual(named, key)
      }
      assert.strictEqual(together.size, all.length)
    }).pipe(Effect.provide(database))
  )

  inFull(it).scopedLive("are planned together as each of them is planned alone", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(various)
      const planned = (selectors: ForeignKey.Selectors) =>
        Effect.map(ForeignKey.plan({ selectors, onDelete: "cascade", allowRowMovement: true }), ({ steps }) =>
          steps.filter(({ step }) => step !== "create-ledger")
        )
      const all = yield* planned({})
      for (const { name, referencing } of yield* Catalog.read(session)) {
        const constraint = ForeignKey.label(referencing.schema, referencing.name, name)
        const alone = yield* planned({
          constraints: [{ schema: referencing.schema, table: referencing.name, name }]
        })
        assert.isAbove(alone.length, 0)
        assert.deepStrictEqual(
          all.filter((step) => step.constraint === constraint),
          alone,
          constraint
        )
      }
    }).pipe(Effect.provide(database))
  )

  it.scopedLive(
    "are chosen by the names that they have at one time, also where a table gets another one",
    () =>
      Effect.gen(function* () {
        const session = yield* application
        yield* session.query(keys(3))
        const known = yield* Database.Database
        const other = yield* application
        let renamed = 0
        const renaming = (session: Session): Session => ({
          ...session,
          query: <Row extends object>(sql: string, params?: ReadonlyArray<unknown>, options?: QueryOptions) =>
            session
              .query<Row>(sql, params, options)
              .pipe(
                Effect.tap(() =>
                  sql.includes("pg_partition_tree(w.oid") && renamed++ === 0
                    ? other.query("ALTER TABLE t2 RENAME TO t9")
                    : Effect.void
                )
              )
        })
        const error = yield* Effect.flip(
          Effect.provideService(
            ForeignKey.rebuild({
              selectors: { tables: [{ table: "t1" }, { table: "t2" }] },
              onDelete: "cascade"
            }),
            Database.Database,
            { ...known, session: Effect.map(known.session, renaming) }
          )
        )
        assert.deepStrictEqual([renamed, error.message], [1, "no foreign key fits table t2"])
      }).pipe(Effect.scoped, Effect.provide(database))
  )

  it.scopedLive("make the change of one of them cost no more", () =>
    Effect.gen(function* () {
      const few = yield* cost(3)
      const many = yield* cost(300)
      assert.deepStrictEqual(many.asked, few.asked)
      // An index of a larger catalog is higher by a page.
      assert.isAtMost(many.pages, 1.5 * few.pages)
    })
  )
})
