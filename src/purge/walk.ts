/**
 * Deletes what hangs below a row, children before parents, in statements of at most so many rows.
 *
 * It walks depth-first, a page of rows at a time, and reads each page when it needs it: nothing is
 * prepared, so nothing is lost when it dies, and a rerun begins with what is left. That is safe
 * because a parent never goes before its children: what is left can still be reached from the root.
 * Rows that refer to each other in a circle cannot go one by one, a delete of any of them cascades
 * to all; such rows are kept until the uppermost of them is ready and go in one statement.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import { nameOf } from "../catalog/foreignKeys.js"
import * as Closure from "./closure.js"
import * as Graph from "./graph.js"
import { identifier, label, rowsOf } from "../sql/identifiers.js"

/** How many rows of a table one transaction deleted. */
export interface Count {
  readonly node: Graph.Node
  readonly rows: number
}

/** What a walk needs. */
export interface Task {
  readonly graph: Graph.Graph
  /** The root's table as FROM names it, its key, and that key's values. */
  readonly from: string
  readonly key: Closure.RootKey
  readonly values: ReadonlyArray<string>
  /** Rows of one statement. */
  readonly batch: number
  /** Runs one statement with retries. */
  readonly run: <Row extends object>(
    sql: string,
    params: ReadonlyArray<unknown>
  ) => Effect.Effect<ReadonlyArray<Row>, DatabaseError | Blocked | Stuck>
  /** One transaction deleted rows. */
  readonly onDeleted: (counts: ReadonlyArray<Count>) => Effect.Effect<void>
  readonly onUpdated: (edge: Graph.Edge, rows: number) => Effect.Effect<void>
}

/**
 * Rows appeared during the purge that forbid the rest of it. What was deleted stays deleted;
 * everything left is consistent.
 */
export class Blocked extends Data.TaggedError("Blocked")<{
  /** The foreign key that forbids it. */
  readonly constraint: string
}> {
  override get message() {
    return `rows that refer by ${this.constraint} keep the rest from being deleted: remove them and run it again`
  }
}

/**
 * Rows stay although they are deleted, or refer to others although their reference was set to null.
 */
export class Stuck extends Data.TaggedError("Stuck")<{ readonly table: string }> {
  override get message() {
    return `rows of ${this.table} stay as they were although they were deleted, or their reference set to null: a trigger or rule of it keeps them. What was deleted stays deleted`
  }
}

/**
 * Deletes below the root until at most one batch was found, and then that and the root itself.
 * Gives the number of rows.
 */
export const toTheEnd = (task: Task): Effect.Effect<number, DatabaseError | Blocked | Stuck> =>
  Effect.gen(function* () {
    let total = 0
    for (;;) {
      const { deleted, rootIsLeft } = yield* pass(task)
      total += deleted
      if (!rootIsLeft) return total
    }
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** A row that is being worked on. */
interface Row {
  readonly node: Graph.Node
  readonly identity: ReadonlyArray<string>
  /** The key that it was found by, and the row that it refers to; none for the root. */
  edge: Graph.Edge | undefined
  via: Row | undefined
  /** All rows of the walk that it was found below. */
  readonly parents: Array<Row>
  frame: Frame | undefined
  /** The depth of the frame that it has to wait for. */
  low: number
}

interface Frame {
  readonly depth: number
  readonly node: Graph.Node
  readonly rows: ReadonlyArray<Row>
  /** Rows of deeper frames that go with this one's. */
  readonly held: Array<Row>
  edge: number
  /** Children of the current edge that are not to be read again. */
  skip: Array<Row>
  /**
   * Whether the current edge has more children than one page; how far the walk was when they were
   * read, and how often it came no further.
   */
  more: boolean
  seen: number
  standstills: number
}

/**
 * Leaves are read so many batches at a time: rows that were just deleted cost the next read time.
 */
const batchesOfLeaves = 20

/**
 * The children of an edge that are to be worked on now: those that nothing refers to (`leaves`),
 * and the others (`found`), which `known` gets. Without `known` all of them are leaves.
 */
const met = (
  frame: Frame,
  edge: Graph.Edge,
  rows: ReadonlyArray<Row>,
  children: ReadonlyArray<{ readonly identity: ReadonlyArray<string>; readonly ord: number }>,
  known: Map<string, Row> | undefined
) => {
  const found: Array<Row> = []
  const leaves: Array<Row> = []
  for (const { identity, ord } of children) {
    const parent = rows[ord - 1]
    if (parent === undefined) continue
    const child = newRow(edge.child, identity, edge, parent)
    const name = nameOfRow(child)
    const same = known?.get(name)
    if (known === undefined) leaves.push(child)
    else if (same === undefined) {
      known.set(name, child)
      found.push(child)
    } else {
      const row = same
      if (row.frame !== undefined && row.low >= row.frame.depth && !isAbove(row, parent)) {
        // It is still to be worked on, higher up: down here it comes before the row that it
        // refers to.
        row.edge = edge
        row.via = parent
        row.parents.push(parent)
        row.frame = undefined
        found.push(row)
      } else {
        if (row.frame !== undefined || row.low < Number.POSITIVE_INFINITY) {
          lower(parent, Math.min(row.low, row.frame?.depth ?? row.low))
          row.parents.push(parent)
        }
        frame.skip.push(row)
      }
    }
  }
  return { found, leaves }
}

const pass = (
  task: Task
): Effect.Effect<
  { readonly deleted: number; readonly rootIsLeft: boolean },
  DatabaseError | Blocked | Stuck
> =>
  Effect.gen(function* () {
    const { batch, graph } = task
    const known = new Map<string, Row>()
    let buffer: Array<Row> = []
    let deleted = 0

    const flush = Effect.gen(function* () {
      if (buffer.length === 0) return
      const rows = buffer
      buffer = []
      deleted += yield* remove(task, rows)
      for (const row of rows) known.delete(nameOfRow(row))
    })

    /** Rows that must go in one statement. */
    const emit = (rows: ReadonlyArray<Row>) =>
      Effect.gen(function* () {
        if (buffer.length + rows.length > batch) yield* flush
        for (const row of rows) {
          row.frame = undefined
          row.low = Number.POSITIVE_INFINITY
          buffer.push(row)
        }
        if (buffer.length >= batch) yield* flush
      })

    const findRoot = Effect.map(
      task.run<{ readonly identity: ReadonlyArray<string> }>(
        `SELECT ${Closure.identity(graph.root, "t")} AS identity FROM ${task.from} t WHERE ${Closure.isRoot(task.key, "t")}`,
        task.values
      ),
      ([row]) => row
    )
    const start = yield* findRoot
    if (start === undefined) return { deleted, rootIsLeft: false }
    const root = newRow(graph.root, start.identity)
    const stack: Array<Frame> = [newFrame(0, graph.root, [root])]
    known.set(nameOfRow(root), root)

    for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
      const frame = top
      const rows = frame.rows.filter((row) => row.frame === frame)
      const edge = rows.length === 0 ? undefined : edgesBelow(graph, frame.node)[frame.edge]
      if (edge === undefined) {
        if (frame.depth === 0 && deleted > batch) return { deleted, rootIsLeft: true }
        stack.pop()
        // If one row of a circle waits for a higher frame, so do all that wait with it: none may go
        // before another.
        const all = [...frame.held, ...rows]
        const low = Math.min(...all.map((row) => row.low))
        const ready = all.filter((row) => low >= frame.depth || row.low === Number.POSITIVE_INFINITY)
        for (const row of all) {
          if (low >= frame.depth || row.low === Number.POSITIVE_INFINITY) continue
          lower(row, low)
          hold(stack, row)
        }
        yield* low < frame.depth || frame.held.length === 0 ? inSlices(ready, batch, emit) : emit(ready)
        continue
      }
      if (edge.kind === "set-null") {
        yield* flush
        yield* setNull(task, edge, rows)
        nextEdge(frame)
        continue
      }
      if (frame.more) {
        yield* flush
        // Rows that wait for higher ones are read again once, and skipped from then on.
        frame.standstills = deleted + frame.skip.length === frame.seen ? frame.standstills + 1 : 0
        if (frame.standstills > 1) {
          return yield* new Stuck({ table: nameOfTable(edge.child) })
        }
      }
      frame.seen = deleted + frame.skip.length
      const isLeaf = edge.kind === "cascade" && !Graph.isInner(graph, edge.child)
      const limit = isLeaf ? batch * batchesOfLeaves : batch
      const children = yield* childrenOf(task, edge, rows, frame.skip, limit)
      const { found, leaves } = met(frame, edge, rows, children, isLeaf ? undefined : known)
      yield* inSlices(leaves, batch, emit)
      if (children.length >= limit) frame.more = true
      else nextEdge(frame)
      if (found.length > 0) {
        const going = edge.kind === "cascade" ? found : yield* goingOf(task, edge, found)
        if (edge.kind === "block" && going.length < found.length) {
          return yield* new Blocked({ constraint: nameOf(edge.key) })
        }
        if (going.length < found.length) {
          // A row that stays gets its default when the row goes that it refers to.
          const goes = new Set(going)
          for (const row of found.filter((row) => !goes.has(row))) {
            known.delete(nameOfRow(row))
            frame.skip.push(row)
          }
        }
        if (going.length > 0) stack.push(newFrame(stack.length, edge.child, going))
      }
    }
    yield* flush
    const rootIsLeft = (yield* findRoot) !== undefined
    if (rootIsLeft && deleted === 0) return yield* new Stuck({ table: nameOfTable(graph.root) })
    return { deleted, rootIsLeft }
  })

const nameOfRow = ({ identity, node }: Row) => `${node.table.oid}:${JSON.stringify(identity)}`

const nameOfTable = ({ table }: Graph.Node) => label(table.schema, table.name)

const newRow = (node: Graph.Node, identity: ReadonlyArray<string>, edge?: Graph.Edge, via?: Row): Row => ({
  node,
  identity,
  edge,
  via,
  parents: via === undefined ? [] : [via],
  frame: undefined,
  low: Number.POSITIVE_INFINITY
})

const newFrame = (depth: number, node: Graph.Node, rows: ReadonlyArray<Row>): Frame => {
  const frame: Frame = {
    depth,
    node,
    rows,
    held: [],
    edge: 0,
    skip: [],
    more: false,
    seen: -1,
    standstills: 0
  }
  for (const row of rows) row.frame = frame
  return frame
}

const nextEdge = (frame: Frame) => {
  frame.edge += 1
  frame.skip = []
  frame.more = false
  frame.seen = -1
  frame.standstills = 0
}

/**
 * Keys that forbid the delete come first, and those that set defaults, which may refer to no row:
 * rows that refer by them and go anyway must go before what they refer to.
 */
const edgesBelow = (graph: Graph.Graph, node: Graph.Node) => {
  const of = (kind: Graph.Edge["kind"]) =>
    graph.edges.filter(
      (edge) =>
        edge.parent === node &&
        edge.kind === kind &&
        (kind === "cascade" || kind === "set-null" || Graph.isReached(graph, edge.child))
    )
  return [...of("block"), ...of("set-default"), ...of("cascade"), ...of("set-null")]
}

const isAbove = (row: Row, below: Row) => {
  for (let at: Row | undefined = below; at !== undefined; at = at.via) if (at === row) return true
  return false
}

const lower = (row: Row, depth: number) => {
  row.low = Math.min(row.low, depth)
}

/** Leaves a row to the frame that it waits for; the rows that it refers to wait too. */
const hold = (stack: ReadonlyArray<Frame>, row: Row) => {
  row.frame = undefined
  for (const parent of row.parents) lower(parent, row.low)
  stack[row.low]?.held.push(row)
}

const inSlices = <E>(
  rows: ReadonlyArray<Row>,
  size: number,
  use: (rows: ReadonlyArray<Row>) => Effect.Effect<void, E>
) =>
  Effect.gen(function* () {
    for (let start = 0; start < rows.length; start += size) yield* use(rows.slice(start, start + size))
  })

/** The identities of rows as parameters: one array for each part. */
const columnsOf = (node: Graph.Node, rows: ReadonlyArray<Row>) =>
  node.identity.map((_, index) => rows.map(({ identity }) => identity[index] ?? ""))

const childrenOf = (
  { run }: Task,
  edge: Graph.Edge,
  rows: ReadonlyArray<Row>,
  skip: ReadonlyArray<Row>,
  limit: number
) => {
  const width = edge.parent.identity.length
  return run<{ readonly ord: number; readonly identity: ReadonlyArray<string> }>(
    `SELECT v.ord::int4 AS ord, ${Closure.identity(edge.child, "c")} AS identity
    FROM ${Closure.values(edge.parent, 1)} v
    JOIN ${rowsOf(edge.key.referenced)} p ON ${Closure.identifies(edge.parent, "p", "v")}
    JOIN ${rowsOf(edge.key.referencing)} c ON ${Graph.matches(edge, "p", "c")}
    ${
      skip.length === 0
        ? ""
        : `WHERE NOT EXISTS (
      SELECT FROM ${Closure.values(edge.child, width + 1)} s WHERE ${Closure.identifies(edge.child, "c", "s")}
    )`
    }
    LIMIT ${limit}`,
    [...columnsOf(edge.parent, rows), ...(skip.length === 0 ? [] : columnsOf(edge.child, skip))]
  )
}

/** Those of the rows that the same delete reaches by cascades: these go anyway. */
const goingOf = ({ from, graph, key, run, values }: Task, edge: Graph.Edge, rows: ReadonlyArray<Row>) =>
  Effect.map(
    run<{ readonly ord: number }>(Closure.going(graph, from, key, edge.child), [
      ...values,
      ...columnsOf(edge.child, rows)
    ]),
    (going) => going.flatMap(({ ord }) => rows[ord - 1] ?? [])
  )

/** What SET NULL would do when the rows are deleted, in statements of one batch each. */
const setNull = ({ batch, onUpdated, run }: Task, edge: Graph.Edge, rows: ReadonlyArray<Row>) =>
  Effect.gen(function* () {
    let before: ReadonlySet<string> = new Set()
    for (;;) {
      const updated = yield* run<{ readonly identity: ReadonlyArray<string> }>(
        `UPDATE ${rowsOf(edge.key.referencing)} t SET ${edge.columns.map((column) => `${identifier(column)} = NULL`).join(", ")}
        FROM (
          SELECT c.tableoid AS rel, c.ctid AS tid
          FROM ${Closure.values(edge.parent, 1)} v
          JOIN ${rowsOf(edge.key.referenced)} p ON ${Closure.identifies(edge.parent, "p", "v")}
          JOIN ${rowsOf(edge.key.referencing)} c ON ${Graph.matches(edge, "p", "c")}
          LIMIT ${batch}
        ) f
        WHERE t.tableoid = f.rel AND t.ctid = f.tid
        RETURNING ${Closure.identity(edge.child, "t")} AS identity`,
        columnsOf(edge.parent, rows)
      )
      if (updated.length > 0) yield* onUpdated(edge, updated.length)
      if (updated.length < batch) return
      // A trigger that sets a reference back would have the same rows found for ever.
      const now = new Set(updated.map(({ identity }) => JSON.stringify(identity)))
      if ([...now].every((identity) => before.has(identity))) {
        return yield* new Stuck({ table: nameOfTable(edge.child) })
      }
      before = now
    }
  })

/**
 * Deletes rows in one statement, so in one transaction: ROW EXCLUSIVE on their tables, and locks on
 * these rows. A row that no longer refers to the one it was found below is left alone.
 */
const remove = ({ onDeleted, run }: Task, rows: ReadonlyArray<Row>) =>
  Effect.gen(function* () {
    const groups = new Map<Graph.Edge | undefined, Array<Row>>()
    for (const row of rows) {
      const group = groups.get(row.edge)
      if (group === undefined) groups.set(row.edge, [row])
      else group.push(row)
    }
    const params: Array<ReadonlyArray<string>> = []
    const parts: Array<{ readonly node: Graph.Node; readonly sql: string }> = []
    for (const [edge, members] of groups) {
      const [first] = members
      if (first === undefined) continue
      const { node } = first
      const own = node.identity.map((_, index) => `k${index}`)
      const columns = [...columnsOf(node, members)]
      const names = [...own]
      let condition = Closure.identifies(node, "t", "v")
      if (edge !== undefined) {
        columns.push(
          ...columnsOf(
            edge.parent,
            members.flatMap(({ via }) => via ?? [])
          )
        )
        names.push(...edge.parent.identity.map((_, index) => `p${index}`))
        condition += ` AND EXISTS (
          SELECT FROM ${rowsOf(edge.key.referenced)} p
          WHERE ${Closure.identifies(edge.parent, "p", "v", "p")} AND ${Graph.matches(edge, "p", "t")}
        )`
      }
      const start = params.length + 1
      params.push(...columns)
      parts.push({
        node,
        sql: `DELETE FROM ${rowsOf(node.table)} t
        USING ${Closure.arrays(columns.length, start)} AS v(${names.join(", ")})
        WHERE ${condition} RETURNING 1`
      })
    }
    const [result] = yield* run<{ readonly counts: ReadonlyArray<number> }>(
      `WITH ${parts.map(({ sql }, index) => `d${index} AS (${sql})`).join(",\n")}
      SELECT ARRAY[${parts.map((_, index) => `(SELECT pg_catalog.count(*) FROM d${index})`).join(", ")}]::int4[] AS counts`,
      params
    )
    const counts = parts
      .map(({ node }, index) => ({ node, rows: result?.counts[index] ?? 0 }))
      .filter(({ rows }) => rows > 0)
    if (counts.length > 0) yield* onDeleted(counts)
    return counts.reduce((sum, { rows }) => sum + rows, 0)
  })
