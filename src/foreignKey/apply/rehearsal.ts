/**
 * A change is rehearsed before anything is touched: the same steps, on empty copies of the tables,
 * in a transaction that is rolled back. Whatever the server refuses is found there, in its own
 * words, whoever refuses it: PostgreSQL for a kind of table, an event trigger, an extension. Nobody
 * else sees the copies; of the tables themselves the transaction takes ACCESS SHARE, to copy their
 * columns.
 *
 * The copies are in the schemas of their tables, where event triggers that ask for the schema see
 * the same, or temporary where the role may not create tables there. Of a partitioned table one
 * partition of each kind is copied. Keys that differ in names only share a rehearsal.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import * as Crypto from "node:crypto"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import type * as Attempt from "./attempt.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import * as Converge from "./converge.js"
import type * as Refusals from "../hazards/refusals.js"
import { identifier, identifiers, qualified } from "../../sql/identifiers.js"
import type * as TableKinds from "../hazards/tableKinds.js"
import * as Target from "../snapshot/target.js"
import * as Limits from "../plan/limits.js"
import type { Warning } from "../hazards/warning.js"
import type * as NextStep from "../plan/nextStep.js"

/** What a rehearsal found. */
export interface Verdict {
  readonly refusals: ReadonlyArray<Refusals.Refusal>
  /** That there was no rehearsal, and why. */
  readonly warnings: ReadonlyArray<Warning>
}

/** A change that is to be rehearsed. */
export interface Rehearsed extends NextStep.Aim {
  readonly kind: TableKinds.Kind
}

/** Rehearses the change of a key. Fails if the connection is lost. */
export type Rehearse = (change: Rehearsed) => Effect.Effect<Verdict, DatabaseError>

/** Nothing speaks against a change. */
const passed: Verdict = { refusals: [], warnings: [] }

/** Rehearses nothing. */
export const none: Rehearse = () => Effect.succeed(passed)

/** Lends a session that is in no transaction. */
export type Lend = <A, E>(
  use: (session: Session) => Effect.Effect<A, E>
) => Effect.Effect<A, E | DatabaseError>

/** Rehearses in sessions that are lent, the changes that are alike once. */
export const make = (lend: Lend): Effect.Effect<Rehearse> =>
  Effect.map(
    Ref.make<ReadonlyMap<string, Verdict>>(new Map()),
    (known) => (change) =>
      Effect.gen(function* () {
        const like = likeness(change)
        const before = (yield* Ref.get(known)).get(like)
        if (before !== undefined) return before
        const verdict = yield* lend((session) => rehearse(session, change))
        yield* Ref.update(known, (known) => new Map([...known, [like, verdict]]))
        return verdict
      })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const likeness = ({ key, kind, target }: Rehearsed) =>
  JSON.stringify([
    kind.likeness,
    target.action,
    target.columns.map((column) => key.columns.indexOf(column)),
    key.onDelete,
    key.onDeleteColumns.map((column) => key.columns.indexOf(column))
  ])

/** Makes the copies, runs the steps, and rolls back. */
const rehearse = (session: Session, aim: NextStep.Aim): Effect.Effect<Verdict, DatabaseError> =>
  Effect.gen(function* () {
    const originals = yield* session.query<Original>(definitions, [
      [aim.key.referencing.oid, aim.key.referenced.oid]
    ])
    const rollback = session.query("ROLLBACK")
    let problem = ""
    for (const temporary of originals.every(({ creatable }) => creatable) ? [false, true] : [true]) {
      const made = yield* Effect.either(copy(session, aim.key, originals, temporary))
      if (made._tag === "Right") {
        return yield* act(session, { ...aim, key: made.right }).pipe(Effect.ensuring(Effect.ignore(rollback)))
      }
      if (made.left.disposition !== "keep") return yield* made.left
      yield* rollback
      problem = words(made.left)
    }
    return (
      (yield* refusedAtOnce(session)) ?? notRehearsed(`no copies of its tables could be made: ${problem}`)
    )
  })

const notRehearsed = (why: string): Verdict => ({
  refusals: [],
  warnings: [{ code: "not-rehearsed", warning: `its steps were not rehearsed: ${why}` }]
})

/**
 * Begins the transaction and makes the copies; gives the key that is like the original. CREATE
 * TABLE says it all, so that event triggers that look for other commands see the steps alone; where
 * the role is a superuser those that are for ordinary sessions do not see it.
 */
const copy = (
  session: Session,
  key: Catalog.Key,
  originals: ReadonlyArray<Original>,
  temporary: boolean
): Effect.Effect<Catalog.Key, DatabaseError> =>
  Effect.gen(function* () {
    const stem = `promptgrimoire_rehearsal_${Crypto.randomUUID().slice(0, 8)}`
    const names = new Map(
      originals.map(({ oid, schema }, index) => {
        const name = `${stem}_${index}`
        return [Number(oid), temporary ? `pg_temp.${identifier(name)}` : qualified({ schema, name })]
      })
    )
    const nameOf = (oid: number | string | null) => names.get(Number(oid)) ?? ""
    const list = `(${identifiers(key.referencedColumns)})`
    const reference = `CONSTRAINT ${identifier(key.name)} ${Steps.definition(
      key,
      `${nameOf(key.referenced.oid)} ${list}`,
      Target.of(key),
      `${key.deferrable ? " DEFERRABLE" : ""}${key.initiallyDeferred ? " INITIALLY DEFERRED" : ""}${key.enforced ? "" : " NOT ENFORCED"}`
    )}`
    const create = ({ bound, name, oid, parent, partitionKey, schema, type }: Original) => {
      const cut = partitionKey === null ? "" : ` PARTITION BY ${partitionKey}`
      if (bound !== null && parent !== null) {
        return `CREATE TABLE ${nameOf(oid)} PARTITION OF ${nameOf(parent)} ${bound}${cut}`
      }
      const elements = [
        ...(type === null ? [`LIKE ${qualified({ schema, name })} INCLUDING GENERATED`] : []),
        ...(Number(oid) === key.referenced.oid ? [`UNIQUE ${list}`] : []),
        ...(Number(oid) === key.referencing.oid ? [reference] : [])
      ]
      return `CREATE TABLE ${nameOf(oid)}${type === null ? "" : ` OF ${type}`} (${elements.join(", ")})${cut}`
    }
    const [{ isSuperuser, mode } = { isSuperuser: false, mode: "origin" }] = yield* session.query<{
      readonly isSuperuser: boolean
      readonly mode: string
    }>(
      `SELECT current_setting('is_superuser') = 'on' AS "isSuperuser", current_setting('session_replication_role') AS mode`
    )
    const [referenced, ...others] = [
      ...originals.filter(({ oid }) => Number(oid) === key.referenced.oid),
      ...originals.filter(({ oid }) => Number(oid) !== key.referenced.oid)
    ]
    yield* session.query(
      [
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        "SET LOCAL lock_timeout = '1s'",
        ...(isSuperuser ? ["SET LOCAL session_replication_role = replica"] : []),
        ...[referenced, ...others].flatMap((original) => (original === undefined ? [] : [create(original)])),
        ...(isSuperuser ? [`SET LOCAL session_replication_role = ${mode}`] : [])
      ].join(";\n")
    )
    const [copied] = yield* session.query<{ readonly oid: string }>(
      "SELECT pg_catalog.to_regclass($1)::oid::text AS oid",
      [nameOf(key.referencing.oid)]
    )
    const [found] = yield* Catalog.read(session, { tables: [Number(copied?.oid)] })
    if (found === undefined) return key
    // The role owns the copies: they are changed as the tables will be all the same.
    const { lockable, owned } = key.referenced
    return { ...found, referenced: { ...found.referenced, lockable, owned } }
  })

/**
 * Event triggers can refuse the copies, too. Those of ddl_command_start come before names are
 * looked up, so statements that name nothing show what they say of the commands of the steps.
 */
const refusedAtOnce = (session: Session): Effect.Effect<Verdict | undefined, DatabaseError> =>
  Effect.gen(function* () {
    for (const statement of commands) {
      const found = yield* Effect.either(session.query(statement))
      if (found._tag === "Right") continue
      const error = found.left
      if (error.disposition !== "keep") return yield* error
      if (error.reason._tag !== "UndefinedObject" && !passes.has(error.reason._tag)) {
        return yield* refusal(session, statement, error)
      }
    }
    return undefined
  })

const commands = [
  "ALTER TABLE promptgrimoire_rehearsal RENAME CONSTRAINT a TO b",
  "ALTER TRIGGER a ON promptgrimoire_rehearsal RENAME TO b",
  "COMMENT ON CONSTRAINT a ON promptgrimoire_rehearsal IS NULL"
]

/** A table or a partition that is to be copied. */
interface Original {
  readonly oid: string
  /** The partitioned table that it is copied as a partition of. */
  readonly parent: string | null
  readonly schema: string
  readonly name: string
  readonly type: string | null
  readonly partitionKey: string | null
  readonly bound: string | null
  readonly creatable: boolean
}

/** The tables, partitioned ones before their partitions, of which there is one of each kind. */
const definitions = `
WITH RECURSIVE part (oid, parent, depth) AS (
  SELECT c.oid, NULL::oid, 0 FROM pg_catalog.pg_class c WHERE c.oid = ANY (($1::int8[])::oid[])
  UNION ALL
  SELECT k.oid, p.oid, p.depth + 1
  FROM part p CROSS JOIN LATERAL (
    SELECT DISTINCT ON (c.relkind) c.oid
    FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = p.oid AND c.relispartition AND c.oid <> ALL (($1::int8[])::oid[])
    ORDER BY c.relkind, c.oid
  ) k
)
SELECT p.oid::text AS oid, p.parent::text AS parent, n.nspname::text AS schema, c.relname::text AS name,
  CASE WHEN c.reloftype <> 0 THEN c.reloftype::regtype::text END AS type,
  CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END AS "partitionKey",
  pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bound, has_schema_privilege(n.oid, 'CREATE') AS creatable
FROM part p JOIN pg_catalog.pg_class c ON c.oid = p.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY p.depth, p.oid`

/** Changes the copy as the engine would, both ways of the swap. */
const act = (session: Session, aim: NextStep.Aim): Effect.Effect<Verdict, DatabaseError> =>
  Effect.gen(function* () {
    const at = yield* Ref.make<Steps.StepName>("add")
    const context: Attempt.StepContext = {
      session,
      patient: session,
      watcher: session,
      limits: Limits.limits(undefined, 1000),
      budget: yield* Ref.make(0),
      longestLock: yield* Ref.make(0),
      stillAlone: Effect.void,
      onWait: () => Effect.void,
      onCopies: true
    }
    const changed = yield* Effect.either(
      Converge.converge(context, {
        ...aim,
        swapTries: 1,
        settlePatience: 0,
        onStep: (step) => Ref.set(at, step),
        telling: (_, effect) => effect,
        onOverlap: () => Effect.void
      })
    )
    if (changed._tag === "Right") return passed
    const error = changed.left
    const step = yield* Ref.get(at)
    if (error._tag === "Unfaithful") return refused(`${error.message} (step ${step})`)
    if (error._tag !== "SqlError")
      return notRehearsed(`step ${step} on copies of its tables: ${error.message}`)
    if (error.disposition !== "keep") return yield* error
    if (passes.has(error.reason._tag))
      return notRehearsed(`step ${step} on copies of its tables: ${words(error)}`)
    yield* session.query("ROLLBACK")
    return yield* refusal(session, `step ${step}`, error)
  })

const refusal = (session: Session, what: string, error: DatabaseError) =>
  Effect.map(session.query<{ readonly names: string | null }>(eventTriggers), ([found]) => {
    const names = found?.names ?? null
    return refused(
      `PostgreSQL refuses ${what}: ${words(error)}${names === null ? "" : `. Event triggers that are enabled here: ${names}`}`
    )
  })

const refused = (what: string): Verdict => ({
  refusals: [
    {
      code: "rehearsal",
      reason: `${what}. This was found in a rehearsal: nothing was touched`
    }
  ],
  warnings: []
})

/** What says nothing about the step: it can be otherwise the next time. */
const passes: ReadonlySet<string> = new Set([
  "LockTimeout",
  "StatementTimeout",
  "StatementCancelled",
  "DeadlockDetected",
  "ServerResources",
  "ServerSystemError",
  "ReadOnlyTransaction"
])

/**
 * The server's message, detail and hint, and its code: the code alone where they can hold the
 * values of rows, which functions of event triggers may write. Messages about names, kinds and
 * states of objects hold none, and here nothing else is in the statements.
 */
const words = ({ message, reason }: DatabaseError): string => {
  if (!("shown" in reason)) return message
  const { code, isRaised, serverMessage, shown } = reason
  const said = [shown.message, shown.detail, shown.hint].filter((text) => text !== undefined)
  const isOfObjects = !isRaised && /^(?:0A|2B|42|55)/.test(code)
  const all = said.length === 0 && isOfObjects ? [Redacted.value(serverMessage)] : said
  return all.length === 0 ? `SQLSTATE ${code}` : `${all.join("; ")} (${code})`
}

const eventTriggers = `
SELECT string_agg(quote_ident(e.evtname), ', ' ORDER BY e.evtname) AS names
FROM pg_catalog.pg_event_trigger e
WHERE e.evtenabled IN ('O', 'A') AND e.evtevent IN ('ddl_command_start', 'ddl_command_end', 'sql_drop')`
