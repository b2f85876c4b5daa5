/** What the sessions of a change hold in the moment before each of their transactions commits. */
import { assert } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import type * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import { application, heldBy } from "./support.js"

/** A transaction, or a statement that cannot be in one. */
export interface Transaction {
  readonly sql: string
  /**
   * The strongest lock above ACCESS SHARE on each table, and on indexes where it is indexes that
   * are changed.
   */
  readonly held: Readonly<Record<string, string>>
}

const tables = ["r", "p"]
const indexes = [...tables, "i", "I"]

const commit = ";\nCOMMIT"

const isOutside = (sql: string) => /^(CREATE|DROP|REINDEX) INDEX CONCURRENTLY /.test(sql)

/**
 * Carries out a change on the very sessions that it opens itself; only each COMMIT is sent after a
 * look at the locks.
 */
export const transactions = <A, E, R>(change: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const database = yield* Database.Database
    const observer = yield* application
    const holder = yield* application
    const seen: Array<Transaction> = []
    const look = (session: Session, sql: string) =>
      Effect.map(heldBy(observer, session.processId, /^ALTER INDEX /m.test(sql) ? indexes : tables), (held) =>
        seen.push({ sql, held })
      )
    const watched = (session: Session): Session => {
      /** What was sent of the transaction before. */
      let begun = ""
      const query: Session["query"] = (sql, params, options) => {
        const whole = sql.startsWith("BEGIN") ? sql : `${begun};\n${sql}`
        begun = sql.startsWith("BEGIN") ? sql : ""
        return sql.endsWith(commit)
          ? session
              .query(sql.slice(0, -commit.length), params)
              .pipe(Effect.zipRight(look(session, whole)), Effect.zipRight(session.query("COMMIT")))
          : isOutside(sql)
            ? Effect.scoped(
                Effect.gen(function* () {
                  // It has all its locks, and waits, while somebody who has written to the tables
                  // goes on.
                  yield* holder.query(touchAll)
                  const running = yield* Effect.forkScoped(session.query<never>(sql, params))
                  yield* eventually("a statement that waits", waits(observer, session))
                  yield* look(session, sql)
                  yield* holder.query("COMMIT")
                  return yield* Fiber.join(running)
                }).pipe(Effect.catchTag("NeverCame", Effect.die))
              )
            : session.query(sql, params, options)
      }
      return { ...session, query }
    }
    const result = yield* Effect.provideService(change, Database.Database, {
      ...database,
      session: Effect.map(database.session, watched)
    })
    return { result, seen }
  })

/** Those are the transactions of these steps, with just the locks that the plan names for them. */
export const areThose = (
  seen: ReadonlyArray<Transaction>,
  steps: ReadonlyArray<ForeignKey.PlannedStep>,
  what: string
) => {
  assert.deepStrictEqual(
    seen.map(({ held, sql }, index) => {
      const step = steps[index]
      const misses = step?.sql.find((statement) => !isFrame(statement) && !sql.includes(statement))
      return [misses === undefined ? step?.step : `has no ${misses}: ${sql}`, held]
    }),
    steps.map(({ locks, step }) => [
      step,
      Object.fromEntries(locks.map(({ mode, relation }) => [relation.replace(/^(public|auth)\./, ""), mode]))
    ]),
    what
  )
}

/**
 * The engine sends it beforehand, or asks for the same locks in other ways and for another time.
 */
const isFrame = (statement: string) =>
  /^(BEGIN|SET LOCAL (lock|statement)_timeout|LOCK TABLE )/.test(statement) ||
  statement.includes("the locks were not to be had") ||
  statement.includes("set_config(''lock_timeout''")

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const touchAll = `
  BEGIN;
  DO $$ DECLARE r record; BEGIN
    FOR r IN SELECT oid::regclass AS relation FROM pg_class
      WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
    LOOP
      EXECUTE format('LOCK TABLE ONLY %s IN ROW EXCLUSIVE MODE', r.relation);
    END LOOP;
  END $$`

const waits = (observer: Session, session: Session) =>
  Effect.map(
    observer.query("SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'virtualxid' AND NOT granted", [
      session.processId
    ]),
    (rows) => rows.length > 0
  )
