/**
 * Migrations on a temporary database: what they make, what they say to the server, and what they
 * lock.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { Database } from "../Database.js"
import { DryRunListener } from "../foreignKey/dryRunListener.js"
import type { PlanResult } from "../foreignKey/types.js"
import type { Step } from "./migration.js"

/** What a migration would do. */
export interface Trial {
  /**
   * The statements that it runs, in order, without those that control transactions, and without
   * those of {@link foreignKeys}.
   */
  readonly statements: ReadonlyArray<string>
  /**
   * The strongest lock on each table, index or sequence that is there before it, held until it
   * commits; ACCESS SHARE is left out. Null for an online migration, whose transactions are its
   * own.
   */
  readonly locks: ReadonlyArray<Locked> | null
  /** Its changes of foreign keys through `ForeignKey.rebuild`, as `ForeignKey.plan` shows them. */
  readonly foreignKeys: ReadonlyArray<PlanResult>
}

/** A lock of a transaction. */
export interface Locked {
  /** schema.name */
  readonly relation: string
  /** As LOCK TABLE names it: `ACCESS EXCLUSIVE`. */
  readonly mode: string
}

/** Hears the statements of a temporary database while a step runs. */
export class Recorder {
  private heard: Array<string> | undefined

  readonly onStatement = (text: string): void => {
    if (text !== "" && !text.startsWith("--")) this.heard?.push(text)
  }

  /** Runs a step, and gives the statements that were run meanwhile. */
  readonly during = <E, R>(step: Effect.Effect<unknown, E, R>): Effect.Effect<ReadonlyArray<string>, E, R> =>
    Effect.suspend(() => {
      const heard: Array<string> = []
      this.heard = heard
      return Effect.as(step, heard)
    }).pipe(
      Effect.ensuring(
        Effect.sync(() => {
          this.heard = undefined
        })
      )
    )
}

/**
 * A step that tells what it does when it has run, inside of its transaction if it has one. Changes
 * of foreign keys are planned for the keys of `live`, and for those of the temporary database only
 * where they are not there yet: the plan then has the keys' own state, warnings and refusals.
 */
export const recorded = (
  recorder: Recorder,
  live: typeof Database.Service,
  step: Step,
  online: boolean,
  tell: (trial: Trial) => void
): Step =>
  Effect.gen(function* () {
    const foreignKeys: Array<PlanResult> = []
    const listening = Effect.provideService(step, DryRunListener, (plan) =>
      Effect.gen(function* () {
        const there = yield* Effect.either(Effect.provideService(plan, Database, live))
        if (Either.isLeft(there) && there.left._tag !== "NoMatch") return yield* there.left
        foreignKeys.push(Either.isRight(there) ? there.right : yield* plan)
      })
    )
    const before = yield* relations
    const statements = yield* recorder.during(listening)
    tell({ statements, locks: online ? null : yield* locks(before), foreignKeys })
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * The relations that are there, by OID; those of the system and of this package's ledgers concern
 * nobody.
 */
const relations = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{ readonly oid: string; readonly name: string }>`
      SELECT c.oid::text AS oid, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    `,
    (rows) => new Map(rows.map(({ name, oid }) => [oid, name]))
  )
)

const locks = (
  before: ReadonlyMap<string, string>
): Effect.Effect<ReadonlyArray<Locked>, SqlError, SqlClient.SqlClient> =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ readonly oid: string; readonly mode: string }>`
        SELECT DISTINCT ON (l.relation) l.relation::text AS oid, m.mode
        FROM pg_catalog.pg_locks AS l
        JOIN (VALUES ('RowShareLock', 'ROW SHARE', 1), ('RowExclusiveLock', 'ROW EXCLUSIVE', 2),
          ('ShareUpdateExclusiveLock', 'SHARE UPDATE EXCLUSIVE', 3), ('ShareLock', 'SHARE', 4),
          ('ShareRowExclusiveLock', 'SHARE ROW EXCLUSIVE', 5), ('ExclusiveLock', 'EXCLUSIVE', 6),
          ('AccessExclusiveLock', 'ACCESS EXCLUSIVE', 7)) AS m (name, mode, strength) ON m.name = l.mode
        WHERE l.locktype = 'relation' AND l.granted AND l.pid = pg_catalog.pg_backend_pid()
        ORDER BY l.relation, m.strength DESC
      `,
      (rows) =>
        rows
          .flatMap(({ mode, oid }): ReadonlyArray<Locked> => {
            const relation = before.get(oid)
            return relation === undefined ? [] : [{ relation, mode }]
          })
          .toSorted((left, right) => (left.relation < right.relation ? -1 : 1))
    )
  )
