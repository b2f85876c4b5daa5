/**
 * Large cascades in small transactions: what a DELETE would do, and doing it in batches. The public
 * face is ../Purge.ts.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import { nameOf, type Relation } from "../catalog/foreignKeys.js"
import * as Encoding from "../catalog/encoding.js"
import * as Closure from "./closure.js"
import * as Graph from "./graph.js"
import * as Walk from "./walk.js"
import type { TableSelector } from "../catalog/selectors.js"
import * as SessionSettings from "../catalog/sessionSettings.js"
import { label, rowsOf } from "../sql/identifiers.js"
import * as SupportingIndexes from "../catalog/supportingIndexes.js"

export { Blocked, Stuck } from "./walk.js"

/** Which row to delete. */
export interface Target {
  readonly from: TableSelector
  /**
   * The columns of a primary or unique key of the table, and their values as text. The values
   * appear in no message.
   */
  readonly where: ReadonlyArray<{ readonly column: string; readonly value: string }>
  /**
   * A row trigger that fires before a delete can keep its row, with all that hangs below it, so
   * tables that have one are refused unless this says that none does. Default false.
   */
  readonly trustTriggers?: boolean | undefined
}

/** How to delete it. */
export interface Options extends Target {
  /** The most rows that one transaction deletes or changes. Default 1000. */
  readonly batch?: number | undefined
  /** The longest that one statement waits for one lock. Default 250 ms. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /** The longest that one batch may take. Default 30 seconds. */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /**
   * How often a batch is tried that does not get its locks or is a deadlock's victim. Default 30.
   */
  readonly tries?: number | undefined
  readonly onProgress?: ((event: Progress) => Effect.Effect<void>) | undefined
}

/** What happens during a purge. Times in milliseconds. */
export type Progress =
  /** What is to be deleted, as counted before. */
  | { readonly _tag: "Planned"; readonly plan: Plan }
  /** A transaction deleted rows of a table. */
  | {
      readonly _tag: "Deleted"
      readonly table: string
      readonly rows: number
      /** Rows of this table deleted so far, and how many were counted before. */
      readonly total: number
      readonly planned: number
      readonly elapsedMs: number
    }
  /** A transaction set references to null. */
  | {
      readonly _tag: "Updated"
      readonly constraint: string
      readonly rows: number
      readonly elapsedMs: number
    }
  /** A batch did not get its locks and is tried again. */
  | { readonly _tag: "Waiting"; readonly reason: string; readonly tries: number }

/** What a single DELETE would do now. */
export interface Plan {
  readonly table: string
  /** Rows to delete, the table of the row itself first, then others as cascades reach them. */
  readonly rows: ReadonlyArray<{ readonly table: string; readonly rows: number }>
  /** Rows that stay, with a reference that becomes null or its default. */
  readonly updates: ReadonlyArray<{
    readonly constraint: string
    readonly action: "set-null" | "set-default"
    readonly rows: number
  }>
  /** Why it would not be done; empty if it would. */
  readonly refused: ReadonlyArray<Refusal>
  readonly warnings: ReadonlyArray<string>
}

/** What was deleted. */
export interface Result {
  readonly table: string
  /**
   * Rows deleted by statements of the purge, for each table. Rows that came at the last moment go
   * with the last statement's cascade and are not counted.
   */
  readonly rows: ReadonlyArray<{ readonly table: string; readonly rows: number }>
  readonly updates: ReadonlyArray<{ readonly constraint: string; readonly rows: number }>
  readonly transactions: number
  readonly durationMs: number
  readonly warnings: ReadonlyArray<string>
}

/** Why nothing is deleted. */
export interface Refusal {
  /** A stable word for programs. */
  readonly code:
    | "not-a-key"
    | "privileges"
    | "row-security"
    | "catalog-disagrees"
    | "blocked"
    | "unclear-outcome"
    | "kept-rows"
    | "unreadable-name"
  /** What is wrong and what to do, for people. */
  readonly reason: string
}

/** There is no such table or column, or several. */
export class UnknownTarget extends Data.TaggedError("UnknownTarget")<{ readonly message: string }> {}

/** The purge was refused before anything was deleted. */
export class Refused extends Data.TaggedError("Refused")<{ readonly refusals: ReadonlyArray<Refusal> }> {
  override get message() {
    return `nothing was deleted: ${this.refusals.map(({ reason }) => reason).join("; ")}`
  }
}

/** How a session of its own is opened. */
type Open = Effect.Effect<Session, DatabaseError, Scope.Scope>

/**
 * What a single DELETE would do. Reads in one statement, which can take long and locks the tables
 * ACCESS SHARE; writes nothing.
 */
export const plan = (open: Open, target: Target): Effect.Effect<Plan, DatabaseError | UnknownTarget> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* prepared(open, "plan purge")
      return (yield* prepare(session, target)).plan
    })
  )

/** Does it. */
export const run = (
  open: Open,
  options: Options
): Effect.Effect<Result, DatabaseError | UnknownTarget | Refused | Walk.Blocked | Walk.Stuck> =>
  Effect.scoped(
    Effect.gen(function* () {
      const start = yield* Clock.currentTimeMillis
      const report = options.onProgress ?? (() => Effect.void)
      const session = yield* prepared(open, "purge")
      const { plan, task } = yield* prepare(session, options)
      if (plan.refused.length > 0 || task === undefined) return yield* new Refused({ refusals: plan.refused })
      yield* report({ _tag: "Planned", plan })
      // Triggers of the user's run as they do in any other session. A key's value that cannot be
      // read must fail: another row could be meant.
      yield* session.query(
        `RESET search_path; RESET client_encoding; SET lock_timeout = ${millis(options.lockTimeout ?? "250 millis")};
        SET statement_timeout = ${millis(options.statementTimeout ?? "30 seconds")}`
      )
      const deleted = new Map<string, number>()
      const updated = new Map<string, number>()
      let transactions = 0
      const elapsed = Effect.map(Clock.currentTimeMillis, (now) => now - start)
      yield* Walk.toTheEnd({
        ...task,
        batch: Math.max(1, Math.floor(options.batch ?? 1000)),
        run: <Row extends object>(sql: string, params: ReadonlyArray<unknown>) =>
          retrying(session.query<Row>(sql, params), options.tries ?? 30, report).pipe(
            Effect.mapError(violation)
          ),
        onDeleted: (counts) =>
          Effect.gen(function* () {
            transactions += 1
            for (const { node, rows } of counts) {
              const table = nameOfTable(node)
              const total = (deleted.get(table) ?? 0) + rows
              deleted.set(table, total)
              const planned = plan.rows.find((one) => one.table === table)?.rows ?? 0
              yield* report({ _tag: "Deleted", table, rows, total, planned, elapsedMs: yield* elapsed })
            }
          }),
        onUpdated: (edge, rows) =>
          Effect.gen(function* () {
            const constraint = nameOf(edge.key)
            updated.set(constraint, (updated.get(constraint) ?? 0) + rows)
            transactions += 1
            yield* report({ _tag: "Updated", constraint, rows, elapsedMs: yield* elapsed })
          })
      })
      return {
        table: plan.table,
        rows: [...deleted].map(([table, rows]) => ({ table, rows })),
        updates: [...updated].map(([constraint, rows]) => ({ constraint, rows })),
        transactions,
        durationMs: yield* elapsed,
        warnings: plan.warnings
      }
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const prepared = (open: Open, purpose: string) =>
  Effect.tap(open, (session) => SessionSettings.prepare(session, purpose))

const millis = (duration: Duration.DurationInput) => Math.max(1, Math.round(Duration.toMillis(duration)))

const nameOfTable = ({ table }: Graph.Node) => label(table.schema, table.name)

const constraintOf = (reason: DatabaseError["reason"]) =>
  "constraint" in reason && "schema" in reason && "table" in reason
    ? label(...[reason.schema, reason.table, reason.constraint].flatMap((part) => part ?? []))
    : "a foreign key"

/** What a key forbids in the middle of a purge was not there when it was planned. */
const violation = (error: DatabaseError) =>
  error.reason._tag === "ForeignKeyViolation"
    ? new Walk.Blocked({ constraint: constraintOf(error.reason) })
    : error

/** Tries again what was not done for want of a lock: waits at random, up to two seconds. */
const retrying = <A>(
  statement: Effect.Effect<A, DatabaseError>,
  times: number,
  report: (event: Progress) => Effect.Effect<void>
): Effect.Effect<A, DatabaseError> => {
  const attempt = (tries: number): Effect.Effect<A, DatabaseError> =>
    Effect.catchAll(statement, (error) =>
      tries < times && transient.has(error.reason._tag)
        ? Effect.gen(function* () {
            yield* report({ _tag: "Waiting", reason: error.reason._tag, tries })
            yield* Effect.sleep(
              Duration.millis(Math.min(2000, 20 * 1.5 ** tries) * (0.5 + (yield* Random.next)))
            )
            return yield* attempt(tries + 1)
          })
        : Effect.fail(error)
    )
  return attempt(1)
}

const transient: ReadonlySet<string> = new Set(["LockTimeout", "DeadlockDetected", "SerializationFailure"])

type Prepared = {
  readonly plan: Plan
  readonly task: Pick<Walk.Task, "graph" | "from" | "key" | "values"> | undefined
}

const prepare = (session: Session, target: Target): Effect.Effect<Prepared, DatabaseError | UnknownTarget> =>
  Effect.gen(function* () {
    const table = yield* findTable(session, target.from)
    const columns = yield* findColumns(session, table, target)
    const name = label(table.schema, table.name)
    const refuse = (refused: ReadonlyArray<Refusal>): Prepared => ({
      plan: { table: name, rows: [], updates: [], refused, warnings: [] },
      task: undefined
    })
    if (!columns.unique) {
      return refuse([
        {
          code: "not-a-key",
          reason: `${target.where.map(({ column }) => label(column)).join(", ")} is no primary or unique key of ${name}: give all columns of one${
            columns.keys.length === 0
              ? ", and it has none: add one first"
              : ` (${columns.keys.map((key) => key.map((column) => label(column)).join(", ")).join("; ")})`
          }`
        }
      ])
    }
    const graph = yield* Graph.read(session, table.oid)
    const early = [...refusalsOf(graph), ...((yield* Encoding.isUnknown(session)) ? unreadableIn(graph) : [])]
    if (early.length > 0) return refuse(early)
    const indexes = yield* SupportingIndexes.read(session, [...new Set(graph.edges.map(({ key }) => key))])
    const from = rowsOf(table)
    const values = target.where.map(({ value }) => value)
    yield* session.query("SET statement_timeout = 0")
    const [row] = yield* session.query<{ readonly counts: string }>(
      Closure.count(graph, from, columns.parts),
      values
    )
    const counts = JSON.parse(row?.counts ?? "{}") as Closure.Counts
    return {
      plan: planOf(graph, counts, indexes, name, target.trustTriggers === true),
      task: { graph, from, key: columns.parts, values }
    }
  })

const findTable = (session: Session, { schema, table }: TableSelector) =>
  Effect.gen(function* () {
    const rows = yield* session.query<{ readonly found: string }>(
      `SELECT jsonb_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind)::text AS found
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relname = $1 AND ($2::text IS NULL OR n.nspname = $2) AND c.relkind IN ('r', 'p')
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND NOT pg_is_other_temp_schema(n.oid)
      ORDER BY n.nspname`,
      [table, schema ?? null]
    )
    const found = rows.map((row) => JSON.parse(row.found) as Relation)
    const [only] = found
    const given = schema === undefined ? label(table) : label(schema, table)
    if (only === undefined) return yield* new UnknownTarget({ message: `there is no table ${given}` })
    if (found.length > 1) {
      return yield* new UnknownTarget({
        message: `there are several tables ${given}: say which, ${found.map((one) => label(one.schema, one.name)).join(" or ")}`
      })
    }
    return only
  })

/**
 * A column's type without domains and without a length or precision: an explicit cast cuts a text
 * to the length of varchar(3) and rounds a number, and another row would be meant.
 */
const baseType = (type: string) => `(
              WITH RECURSIVE base AS (
                SELECT t.oid, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = ${type}
                UNION ALL
                SELECT t.oid, t.typtype, t.typbasetype FROM base b JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype
              )
              SELECT format_type(b.oid, -1) FROM base b WHERE b.typtype <> 'd'
            )`

/** The columns that were given, and whether they determine a row. */
const findColumns = (session: Session, table: Relation, { where }: Target) =>
  Effect.gen(function* () {
    const names = where.map(({ column }) => column)
    const rows = yield* session.query<{ readonly found: string }>(
      `SELECT jsonb_build_object(
        'columns', (
          SELECT coalesce(jsonb_object_agg(a.attname, jsonb_build_object(
            'type', ${baseType("a.atttypid")},
            'operator', (
              SELECT quote_ident(s.nspname) || '.' || o.oprname
              FROM pg_index i
              CROSS JOIN LATERAL unnest((i.indkey::int2[])[0:i.indnkeyatts - 1], (i.indclass::oid[])[0:i.indnkeyatts - 1]) AS u(number, class)
              JOIN pg_opclass c ON c.oid = u.class
              JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype
                AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
              JOIN pg_operator o ON o.oid = m.amopopr
              JOIN pg_namespace s ON s.oid = o.oprnamespace
              WHERE i.indrelid = a.attrelid AND i.indisunique AND u.number = a.attnum
              ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1
            )
          )), '{}')
          FROM pg_attribute a WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped
        ),
        'keys', (
          SELECT coalesce(jsonb_agg((
            SELECT jsonb_agg(a.attname ORDER BY u.position)
            FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u(number, position)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
          ) ORDER BY i.indisprimary DESC, i.indexrelid), '[]')
          FROM pg_index i
          WHERE i.indrelid = $1::int8::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
        )
      )::text AS found`,
      [table.oid]
    )
    const found = JSON.parse(rows[0]?.found ?? "{}") as {
      readonly columns: Record<string, { readonly type: string; readonly operator: string | null }>
      readonly keys: ReadonlyArray<ReadonlyArray<string>>
    }
    const unknown = names.filter((column) => found.columns[column] === undefined)
    if (unknown.length > 0 || names.length === 0) {
      return yield* new UnknownTarget({
        message: `${label(table.schema, table.name)} has no column ${unknown.map((column) => label(column)).join(", ")}`
      })
    }
    return {
      keys: found.keys,
      unique:
        new Set(names).size === names.length &&
        found.keys.some(
          (key) => key.length === names.length && key.every((column) => names.includes(column))
        ),
      parts: names.map((column) =>
        Closure.rootPart(
          column,
          found.columns[column]?.type ?? "text",
          found.columns[column]?.operator ?? "pg_catalog.="
        )
      )
    }
  })

/** What the catalogs alone forbid. */
const refusalsOf = (graph: Graph.Graph): ReadonlyArray<Refusal> => {
  const found: Array<Refusal> = graph.faulty.map(({ constraint, problem }) => ({
    code: "catalog-disagrees",
    reason: `what ${constraint} does on a delete cannot be foreseen: ${problem}`
  }))
  const need = (node: Graph.Node, privileges: ReadonlyArray<"usage" | "select" | "delete" | "update">) => {
    const missing = privileges.filter((privilege) => !node.rights[privilege])
    const table = nameOfTable(node)
    if (missing.length > 0) {
      found.push({
        code: "privileges",
        reason: `this role lacks ${missing.map((privilege) => privilege.toUpperCase()).join(", ")} on ${table} (a cascade runs as the owner of ${table}, a purge as yourself): grant it, or run as the owner`
      })
    }
    if (node.rights.rowSecurity) {
      found.push({
        code: "row-security",
        reason: `row security hides rows of ${table} from this role, which a cascade would delete: run as its owner or with BYPASSRLS`
      })
    }
  }
  for (const node of graph.nodes) {
    need(node, ["usage", "select", "delete"])
  }
  for (const { child, kind } of graph.edges) {
    if (kind !== "cascade" && !Graph.isReached(graph, child)) need(child, ["usage", "select"])
    if (kind === "set-null") need(child, ["update"])
  }
  return found.filter((one, index) => found.findIndex(({ reason }) => reason === one.reason) === index)
}

/** What statements would have to name and cannot. */
const unreadableIn = ({ edges, nodes }: Graph.Graph): ReadonlyArray<Refusal> => {
  const named = (node: Graph.Node) => [node.table, node.identity]
  const names = Encoding.unreadable([
    nodes.map(named),
    edges.map(({ child, columns, comparisons, key, kind }) => [
      named(child),
      columns,
      key.columns,
      key.referencedColumns,
      comparisons,
      kind === "set-default" ? child.defaults : {}
    ])
  ])
  return names.length === 0 ? [] : [{ code: "unreadable-name", reason: Encoding.problem(names) }]
}

const planOf = (
  graph: Graph.Graph,
  counts: Closure.Counts,
  indexes: ReadonlyMap<number, string>,
  table: string,
  trustTriggers: boolean
): Plan => {
  const refused: Array<Refusal> = []
  const warnings: Array<string> = []
  const updates: Array<Plan["updates"][number]> = []
  const rowsOf = new Map(graph.nodes.map((node, index) => [node, counts.rows[index] ?? 0]))
  for (const [index, edge] of graph.edges.entries()) {
    const constraint = nameOf(edge.key)
    const { dangling, going, staying } = counts.references[index] ?? { dangling: 0, going: 0, staying: 0 }
    if (dangling > 0) {
      refused.push({
        code: "blocked",
        reason: `${dangling} ${dangling === 1 ? "row refers" : "rows refer"} by ${constraint} (SET DEFAULT) to rows that would be deleted, and by default to rows that are not there or would be deleted too: remove them first, or change the key`
      })
    }
    if (edge.kind === "block") {
      if (staying > 0) {
        refused.push({
          code: "blocked",
          reason: `${staying} ${staying === 1 ? "row refers" : "rows refer"} by ${constraint} (${describe(edge)}) to rows that would be deleted: remove them first, or change the key`
        })
      }
      if (going > 0) {
        warnings.push(
          `${going} ${going === 1 ? "row refers" : "rows refer"} by ${constraint} (${describe(edge)}) to rows that go with them: a purge deletes them first, a single DELETE can fail there`
        )
      }
    }
    if (edge.kind === "set-null" || edge.kind === "set-default") {
      if (staying > 0) updates.push({ constraint, action: edge.kind, rows: staying })
      const rivals = graph.edges.filter(
        (other) =>
          other !== edge &&
          other.child === edge.child &&
          other.key.columns.some((column) => edge.columns.includes(column))
      )
      if (going + staying > 0 && rivals.length > 0) {
        refused.push({
          code: "unclear-outcome",
          reason: `${constraint} sets columns that ${rivals.map(({ key }) => nameOf(key)).join(", ")} also uses: what a single DELETE does depends on which trigger fires first`
        })
      }
      if (going > 0) {
        const others = graph.edges.filter((other) => other !== edge && other.child === edge.child)
        warnings.push(
          `${going} ${going === 1 ? "row refers" : "rows refer"} by ${constraint} to rows that go with them: a single DELETE can fail there, or on ${others
            .map(({ key }) => nameOf(key))
            .join(", ")}, if it changes a row before it deletes it; a purge does not`
        )
      }
      if (edge.kind === "set-default" && going + staying > 0) {
        warnings.push(
          `${going + staying} rows get their default by ${constraint}: that happens in the transaction that deletes the row they refer to, however many they are`
        )
      }
    }
    if (!indexes.has(edge.key.oid) && (rowsOf.get(edge.parent) ?? 0) > 0) {
      warnings.push(
        `no index on the columns of ${constraint}: every batch, and every deleted row of ${nameOfTable(edge.parent)}, reads all of ${nameOfTable(edge.child)}`
      )
    }
  }
  for (const node of graph.nodes) {
    const { rules, triggers } = node.rights
    const keepers = [
      ...rules.map((rule) => `rule ${rule}`),
      ...triggers.map((trigger) => `trigger ${trigger}`)
    ]
    if (keepers.length === 0 || rowsOf.get(node) === 0) continue
    const named = `${keepers.join(", ")} of ${nameOfTable(node)} can keep rows from being deleted`
    const below = graph.edges.some((edge) => edge.parent === node && edge.kind !== "block")
    if (below && (rules.length > 0 || !trustTriggers)) {
      refused.push({
        code: "kept-rows",
        reason: `${named}: a single DELETE would then leave what hangs below them, and a purge deletes that first${
          rules.length > 0 ? "" : "; --trust-triggers says that they keep none"
        }`
      })
    } else warnings.push(named)
  }
  for (const constraint of graph.disabled) {
    warnings.push(`the triggers of ${constraint} are disabled: rows that refer by it stay`)
  }
  return {
    table,
    rows: graph.nodes.map((node) => ({ table: nameOfTable(node), rows: rowsOf.get(node) ?? 0 })),
    updates,
    refused,
    warnings
  }
}

const describe = ({ child, columns, key }: Graph.Edge) =>
  key.onDelete === "set-null"
    ? columns.some((column) => child.rights.notNull.includes(column))
      ? "SET NULL of a column that is NOT NULL"
      : "SET NULL of some columns of a MATCH FULL key"
    : key.onDelete === "restrict"
      ? "RESTRICT"
      : "NO ACTION"
