/** A change that is stopped at every point at which it can be, and what has to follow. */
import { assert, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Ref from "effect/Ref"
import type { Session } from "../../src/connection/session.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { next } from "../support/length.js"
import { application, comparable, database, snapshots } from "./support.js"

/**
 * The server ends the session that runs the n-th DDL command or write to the ledger from now, right
 * after it.
 */
const bomb = `
  CREATE SCHEMA crash;
  CREATE SEQUENCE crash.command;
  CREATE FUNCTION crash.explode() RETURNS event_trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF nextval('crash.command') = current_setting('crash.at')::int THEN
      PERFORM pg_terminate_backend(pg_backend_pid());
      PERFORM pg_sleep(60);
    END IF;
  END $$;
  CREATE FUNCTION crash.explode_too() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN
    IF nextval('crash.command') = current_setting('crash.at')::int THEN
      PERFORM pg_terminate_backend(pg_backend_pid());
      PERFORM pg_sleep(60);
    END IF;
    RETURN NULL;
  END $$;
  CREATE TRIGGER explode AFTER INSERT OR UPDATE ON ${ForeignKey.defaultLedger}
    FOR EACH STATEMENT EXECUTE FUNCTION crash.explode_too();
  CREATE EVENT TRIGGER explode ON ddl_command_end EXECUTE FUNCTION crash.explode()`

const arm = (session: Session, at: number) =>
  session.query(`
    SELECT setval('crash.command', 1, false);
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET crash.at = ${at}', current_database()); END $$`)

/** The swap, and the steps that take its place under load. */
const ways = [
  ["in one transaction", 60],
  ["table by table", 0]
] as const

/** Changes all keys of the database. */
const rebuild = (
  onDelete: ForeignKey.Action,
  swapTries: number,
  onProgress?: ForeignKey.RebuildOptions["onProgress"]
) =>
  ForeignKey.rebuild({
    selectors: {},
    onDelete,
    swapTries,
    onProgress,
    rehearse: false,
    allowRowMovement: true
  })

/**
 * The change is done, nothing of ours is left, the key is what an uninterrupted change makes of it,
 * and the ledger says how it was before.
 */
const converges = Effect.fnUntraced(function* (session: Session, swapTries: number, reference: unknown) {
  const result = yield* rebuild("cascade", swapTries)
  assert.deepStrictEqual([result.refused, result.failed], [[], []])
  assert.deepStrictEqual(comparable(yield* snapshots(session)), reference)
  yield* recorded("no-action", "cascade")
})

/** The last change in the ledger is this one, it was completed, and no other is open. */
const recorded = (from: ForeignKey.Action, to: ForeignKey.Action) =>
  Effect.map(ForeignKey.history(), (entries) => {
    assert.deepStrictEqual(
      entries.filter(({ outcome }) => outcome === null),
      []
    )
    const { from: was, to: is } = entries.findLast(({ outcome }) => outcome === "changed") ?? {}
    assert.deepStrictEqual([was?.action, is?.action], [from, to])
  })

/** A database with the key, and what its snapshot is after an uninterrupted change. */
const prepared = Effect.fnUntraced(function* (tables: string, swapTries: number) {
  const session = yield* application
  yield* session.query(tables)
  const original = comparable(yield* snapshots(session))
  yield* rebuild("cascade", swapTries)
  const reference = comparable(yield* snapshots(session))
  const reset = Effect.gen(function* () {
    const back = yield* rebuild("no-action", 60)
    assert.deepStrictEqual([back.refused, back.failed], [[], []])
    assert.deepStrictEqual(comparable(yield* snapshots(session)), original)
    yield* recorded("cascade", "no-action")
  })
  yield* reset
  return { session, reference, reset }
})

/**
 * The tests of one kind of tables, whose only key has no action. The server ends the session more
 * than `fewest` times.
 */
export const stopped = (of: string, tables: string, fewest: number): void => {
  for (const [way, swapTries] of ways) {
    // In `npm test` the one transaction is killed, and what locks table by table is interrupted.
    const [killed, interrupted] = swapTries > 0 ? [it, inFull(it)] : [inFull(it), it]
    killed.scopedLive(
      `converges when run again after the server ended its session at any statement, ${of}, ${way}`,
      () =>
        Effect.gen(function* () {
          const { reference, reset, session } = yield* prepared(tables, swapTries)
          yield* session.query(bomb)
          for (let at = 1; ; at = next(at)) {
            yield* arm(session, at)
            const result = yield* rebuild("cascade", swapTries)
            yield* arm(session, 0)
            if (result.rebuilt.length === 1) {
              assert.isAbove(at - 1, fewest)
              break
            }
            assert.strictEqual(result.failed[0]?.code, "ServerShutdown")
            yield* converges(session, swapTries, reference)
            yield* reset
          }
        }).pipe(Effect.provide(database))
    )

    interrupted.scopedLive(
      `converges when run again after an interruption between any two steps, ${of}, ${way}`,
      () =>
        Effect.gen(function* () {
          const { reference, reset, session } = yield* prepared(tables, swapTries)
          for (let at = 1; ; at = next(at)) {
            const seen = yield* Ref.make(0)
            const fiber = yield* Effect.fork(
              rebuild("cascade", swapTries, () =>
                Effect.flatMap(
                  Ref.updateAndGet(seen, (n) => n + 1),
                  (n) => (n === at ? Effect.interrupt : Effect.void)
                )
              )
            )
            const exit = yield* Fiber.await(fiber)
            if (exit._tag === "Success") break
            yield* converges(session, swapTries, reference)
            yield* reset
          }
        }).pipe(Effect.provide(database))
    )

    inFull(it).scopedLive(`can be taken back from any point where it was stopped, ${of}, ${way}`, () =>
      Effect.gen(function* () {
        const { reset, session } = yield* prepared(tables, swapTries)
        yield* session.query(bomb)
        for (let at = 1; ; at = next(at)) {
          yield* arm(session, at)
          const result = yield* rebuild("cascade", swapTries)
          yield* arm(session, 0)
          if (result.rebuilt.length === 1) break
          yield* reset
        }
      }).pipe(Effect.provide(database))
    )
  }
}
