/** What the sessions of a change run with. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../DatabaseError.js"
import type { QueryOptions, Session } from "../connection/session.js"
import * as Encoding from "./encoding.js"
import { block, literal } from "../sql/identifiers.js"

/**
 * Makes a session ours. Names resolve in pg_catalog only. Texts are in UTF-8, as far as the server
 * knows. The roles', database's and server's own limits are lifted where a change has to outlive
 * them (validation can take hours, and the session with the advisory lock is idle meanwhile); a
 * backend whose client is gone gives up within 10 s (14 and later).
 */
export const prepare = (session: Session, purpose: string): Effect.Effect<void, DatabaseError> =>
  session
    .query(`SELECT ${assign([["application_name", `promptgrimoire-db: ${purpose}`], ...settings])}`)
    .pipe(Effect.zipRight(noticeLostClients(session)))

/**
 * Unknown before 14, and refused where the operating system does not tell a server that its client
 * is gone.
 */
const noticeLostClients = (session: Session): Effect.Effect<void, DatabaseError> =>
  session.query("SET client_connection_check_interval = '10s'").pipe(
    Effect.catchIf(
      ({ disposition }) => disposition === "keep",
      () => Effect.void
    ),
    Effect.asVoid
  )

/**
 * Makes a session act as the role that logged in, also where that role is set to take on another
 * one: only that one may cancel and terminate backends of its own.
 */
export const asLoginRole = (session: Session): Effect.Effect<void, DatabaseError> =>
  Effect.asVoid(session.query("SET ROLE NONE"))

/** The same for a session of psql: a statement without rows, which would be printed. */
export const script = (): string => block(`BEGIN PERFORM ${assign(settings)}; END`)

/** Opens a session and makes it ours. */
export const prepared = (
  open: Effect.Effect<Session, DatabaseError, Scope.Scope>,
  purpose: string
): Effect.Effect<Session, DatabaseError, Scope.Scope> =>
  Effect.tap(open, (session) => prepare(session, purpose))

/**
 * The same session, which fails when a statement gets no answer: the server ends one after 30 s and
 * says so, unless the network swallows it. For statements that may take longer another session asks
 * whether the server still answers.
 */
export const answering = (session: Session): Session => ({
  ...session,
  query: <Row extends object>(sql: string, params?: ReadonlyArray<unknown>, options?: QueryOptions) =>
    session.query<Row>(sql, params, { answerMillis: 40_000, ...options })
})

/**
 * The server's deadlock_timeout in milliseconds: after it, a waiting application's transaction can
 * become a deadlock victim.
 */
export const deadlockTimeout = (session: Session): Effect.Effect<number, DatabaseError> =>
  session
    .query<{ readonly milliseconds: string }>(
      `SELECT extract(epoch FROM pg_catalog.current_setting('deadlock_timeout')::pg_catalog.interval) * 1000 AS milliseconds`
    )
    .pipe(Effect.map((rows) => Number(rows[0]?.milliseconds ?? 1000)))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const settings = [
  ["search_path", "pg_catalog"],
  ["statement_timeout", "30s"],
  ["lock_timeout", "5s"],
  ["idle_in_transaction_session_timeout", "60s"],
  ["idle_session_timeout", "0"],
  ["transaction_timeout", "0"],
  ["standard_conforming_strings", "on"],
  ["client_min_messages", "warning"],
  ["default_transaction_isolation", "read committed"],
  ["default_transaction_read_only", "off"],
  // What is prepared is planned once: the questions are about a few rows by index, whatever their
  // parameters are.
  ["plan_cache_mode", "force_generic_plan"],
  // Questions to the catalogs look expensive and are not: to compile them takes longer than to
  // answer them.
  ["jit", "off"]
] as const

/** Assigns those that the server's version has. */
const assign = (values: ReadonlyArray<readonly [name: string, value: string]>) =>
  `pg_catalog.set_config(s.name, s.value, false)
  FROM (VALUES ${[
    ...values.map(([name, value]) => `(${literal(name)}, ${literal(value)})`),
    `('client_encoding', ${Encoding.ofClient})`
  ].join(", ")}) AS s (name, value)
  WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL`
