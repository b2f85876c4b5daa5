/** Who holds the locks that a step waits for. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import type { Relation, Table } from "./foreignKeys.js"
import * as TableLocks from "./tableLocks.js"

/**
 * A session or a prepared transaction that is in the way. It never says what the session's
 * statement is: that can hold values.
 */
export interface Blocker {
  /** The backend's process id; null for a prepared transaction. */
  readonly pid: number | null
  readonly applicationName: string | null
  /**
   * `client backend`, `autovacuum worker`, `prepared transaction`, ... PostgreSQL shows that, the
   * state and the times of other roles' sessions to superusers and members of pg_read_all_stats
   * only; for anybody else it is `session of` with the role's name, and an autovacuum worker is
   * known by having no role.
   */
  readonly kind: string
  /** `active`, `idle in transaction`, ... */
  readonly state: string | null
  /**
   * When its transaction began (ISO 8601); if the server does not show that, when it was first
   * seen, or null.
   */
  readonly transactionStart: string | null
  /** When its current or last statement began (ISO 8601). */
  readonly queryStart: string | null
  /**
   * The global identifier of a prepared transaction: end it with COMMIT PREPARED or ROLLBACK
   * PREPARED.
   */
  readonly preparedTransaction: string | null
}

/** A blocker in one line. */
export const describe = (blocker: Blocker): string =>
  blocker.pid === null
    ? `prepared transaction ${blocker.preparedTransaction ?? "(unknown)"}`
    : `${blocker.kind} ${blocker.pid}${
        blocker.applicationName === null || blocker.applicationName === ""
          ? ""
          : ` (${blocker.applicationName})`
      }${blocker.state === null ? "" : `, ${blocker.state}`}${
        blocker.transactionStart === null ? "" : `, in a transaction since ${blocker.transactionStart}`
      }`

/**
 * Who blocks a backend now; of the prepared transactions (their process id is 0 there) those that
 * hold what it waits for. If one of them waits, directly or through others, for that very backend,
 * the backend is cancelled in the same statement: our DDL gives way before PostgreSQL looks for a
 * deadlock and picks an application's transaction as the victim (rule R3).
 */
export const watch = (
  session: Session,
  processId: number
): Effect.Effect<ReadonlyArray<Blocker>, DatabaseError> =>
  session.query<Blocker>(
    `WITH RECURSIVE blocker (pid, direct) AS (
      SELECT b, true FROM unnest(pg_catalog.pg_blocking_pids($1::int4)) AS b
      UNION
      SELECT b, false FROM blocker, unnest(pg_catalog.pg_blocking_pids(blocker.pid)) AS b
    ),
    cancelled AS (
      SELECT count(pg_catalog.pg_cancel_backend($1::int4)) AS n FROM (SELECT FROM blocker WHERE pid = $1::int4 LIMIT 1) c
    )
    SELECT ${columns}
    FROM (SELECT DISTINCT pid FROM blocker WHERE direct AND pid <> $1::int4) b
    CROSS JOIN cancelled
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
    LEFT JOIN pg_catalog.pg_prepared_xacts x ON b.pid = 0 AND x.transaction IN (
      SELECT t.transactionid
      FROM pg_catalog.pg_locks w
      JOIN pg_catalog.pg_locks h ON h.pid IS NULL AND h.locktype = w.locktype AND h.database IS NOT DISTINCT FROM w.database
        AND h.relation IS NOT DISTINCT FROM w.relation AND h.transactionid IS NOT DISTINCT FROM w.transactionid
      JOIN pg_catalog.pg_locks t ON t.pid IS NULL AND t.locktype = 'transactionid' AND t.virtualtransaction = h.virtualtransaction
      WHERE w.pid = $1::int4 AND NOT w.granted
    )`,
    [processId],
    // Where one connection gets no answer, the other one gets none either.
    { prepare: "at once", answerMillis: 10_000 }
  )

/** Ends what a backend of ours does now, by another session. */
export const cancel = (session: Session, processId: number): Effect.Effect<void> =>
  Effect.ignore(session.query("SELECT pg_catalog.pg_cancel_backend($1::int4)", [processId]))

/** A transaction that holds a lock. */
export interface Holder extends Blocker {
  /** Which transaction of the session it is. */
  readonly virtualTransaction: string
  /** The tables that it holds, of those that were asked about, by their OIDs. */
  readonly relations: ReadonlyArray<number>
  /** Milliseconds since its transaction began; null if this role may not see that. */
  readonly age: number | null
  /**
   * What an autovacuum worker is doing, if this role may see it: `autovacuum: VACUUM public.child
   * (to prevent wraparound)`.
   */
  readonly autovacuum: string | null
}

/**
 * Who holds a lock that conflicts with one of these, the oldest transaction first. Asking takes no
 * lock and queues nowhere, so nobody waits behind the question, as they would behind a lock
 * request. A prepared transaction has no process; the lock on its own id tells which it is.
 */
export const holders = (
  session: Session,
  locks: ReadonlyArray<{ readonly table: Relation | Table; readonly mode: TableLocks.Mode }>,
  processIds: ReadonlyArray<number>
): Effect.Effect<ReadonlyArray<Holder>, DatabaseError> =>
  session.query<Holder>(
    `SELECT ${columns}, b."virtualTransaction", b.relations,
      extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared))::float8 * 1000 AS age,
      CASE WHEN a.backend_type = 'autovacuum worker' THEN a.query END AS autovacuum
    FROM (
      SELECT l.pid, l.virtualtransaction AS "virtualTransaction", jsonb_agg(DISTINCT l.relation::int8) AS relations
      FROM jsonb_to_recordset($1::jsonb) AS w (relation int8, modes jsonb)
      JOIN pg_catalog.pg_locks l ON l.relation = w.relation::oid AND w.modes ? l.mode
      WHERE l.locktype = 'relation' AND l.granted AND (l.pid IS NULL OR l.pid <> ALL ($2::int4[]))
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
      GROUP BY l.pid, l.virtualtransaction
    ) b
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
    LEFT JOIN pg_catalog.pg_locks t ON b.pid IS NULL AND t.virtualtransaction = b."virtualTransaction" AND t.pid IS NULL
      AND t.locktype = 'transactionid'
    LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = t.transactionid
    WHERE a.pid IS NOT NULL OR x.gid IS NOT NULL
    ORDER BY coalesce(a.xact_start, x.prepared), a.pid`,
    [
      JSON.stringify(
        locks.flatMap(({ mode, table }) =>
          TableLocks.withPartitions(table).map(({ oid }) => ({
            relation: oid,
            modes: TableLocks.conflicts(mode)
          }))
        )
      ),
      processIds
    ],
    { prepare: "at once" }
  )

/** Whether it is autovacuum, which gives way to a lock request, and to nothing else. */
export const isAutovacuum = ({ kind }: Blocker): boolean => kind === autovacuumWorker

/**
 * When transactions were first seen whose age the server does not show, by the program's clock, in
 * milliseconds.
 */
export type Sightings = ReadonlyMap<string, number>

/**
 * The holders whose transactions are older than `olderThan` milliseconds, autovacuum left out.
 * Where the server does not show the age of a transaction it counts from when it was first seen,
 * which `sightings` remembers from one call to the next.
 */
export const old = (
  holders: ReadonlyArray<Holder>,
  olderThan: number,
  sightings: Ref.Ref<Sightings>
): Effect.Effect<ReadonlyArray<Blocker>> =>
  Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    const known = yield* Ref.get(sightings)
    const id = ({ pid, virtualTransaction }: Holder) => `${pid} ${virtualTransaction}`
    const seen = new Map(
      holders.flatMap((holder): ReadonlyArray<readonly [string, number]> =>
        holder.age === null ? [[id(holder), known.get(id(holder)) ?? now]] : []
      )
    )
    yield* Ref.set(sightings, seen)
    return holders.flatMap((holder): ReadonlyArray<Blocker> => {
      const since = seen.get(id(holder))
      if (isAutovacuum(holder) || (holder.age ?? now - (since ?? now)) <= olderThan) return []
      return [since === undefined ? holder : { ...holder, transactionStart: new Date(since).toISOString() }]
    })
  })

/**
 * The transactions of clients of this database that are running now, other than those of these
 * backends. Every role may see that they are there.
 */
export const transactions = (
  session: Session,
  processIds: ReadonlyArray<number>
): Effect.Effect<ReadonlyArray<Transaction>, DatabaseError> =>
  session.query<Transaction>(
    `SELECT l.virtualtransaction AS "virtualTransaction", ${columns}
    FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    JOIN pg_catalog.pg_database d ON d.oid = a.datid AND d.datname = pg_catalog.current_database()
    LEFT JOIN pg_catalog.pg_prepared_xacts x ON false
    WHERE l.locktype = 'virtualxid' AND l.granted AND l.virtualxid = l.virtualtransaction
      AND l.pid <> ALL ($1::int4[])
      -- What kind of backend another role's is may be hidden; background workers have no user.
      AND a.usesysid IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'`,
    [processIds]
  )

/** A running transaction. */
export interface Transaction extends Blocker {
  readonly virtualTransaction: string
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const iso = (column: string) => `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`

const autovacuumWorker = "autovacuum worker"

const columns = `a.pid, a.application_name AS "applicationName",
      coalesce(
        a.backend_type,
        CASE WHEN x.gid IS NOT NULL THEN 'prepared transaction' WHEN a.pid IS NULL THEN 'unknown session'
          WHEN a.usesysid IS NULL THEN '${autovacuumWorker}' ELSE 'session of ' || coalesce(quote_ident(a.usename), 'a dropped role') END
      ) AS kind,
      a.state, ${iso("coalesce(a.xact_start, x.prepared)")} AS "transactionStart", ${iso("a.query_start")} AS "queryStart",
      x.gid AS "preparedTransaction"`
