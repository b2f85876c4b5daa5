/**
 * The rows that one DELETE would delete, as SQL. A row is its table's OID and its ctid as text (13
 * cannot hash a tid), which is exact within one statement: everything here is one statement, so one
 * snapshot.
 */
import * as Graph from "./graph.js"
import { identifier, rowsOf } from "../sql/identifiers.js"

/** The columns of a unique key of the root, and their types. */
export type RootKey = ReadonlyArray<Graph.Part>

/** The condition that selects the root's row; its values are the parameters 1, 2, ... */
export const isRoot = (key: RootKey, alias: string): string =>
  key
    .map(
      ({ column, operator, type }, index) =>
        `${alias}.${column} OPERATOR(${operator}) $${index + 1}::text::${type}`
    )
    .join(" AND ")

/** What {@link count} gives, in the order of the graph's nodes and edges. */
export interface Counts {
  /** Rows to delete of each node. */
  readonly rows: ReadonlyArray<number>
  /**
   * For each edge that is no cascade: rows that refer to a deleted row and stay, and those that go
   * too. Of those that stay, how many would get a default that refers to no row.
   */
  readonly references: ReadonlyArray<{
    readonly staying: number
    readonly going: number
    readonly dangling: number
  }>
}

/**
 * Counts what one DELETE would delete and change, in one statement that locks the tables ACCESS
 * SHARE.
 */
export const count = (graph: Graph.Graph, from: string, key: RootKey): string => `
WITH RECURSIVE reach (rel, place) AS (
  SELECT t.tableoid::oid::int8, t.ctid::text FROM ${from} t WHERE ${isRoot(key, "t")}
  UNION
  SELECT n.rel, n.place FROM reach r CROSS JOIN LATERAL (${union(
    graph.edges
      .filter((edge) => edge.kind === "cascade" && Graph.isInner(graph, edge.child))
      .map((edge) => below(edge, "c.tableoid::oid::int8 AS rel, c.ctid::text AS place")),
    "SELECT NULL::int8 AS rel, NULL::text AS place WHERE false"
  )}) n
)
SELECT pg_catalog.jsonb_build_object(
  'rows', pg_catalog.jsonb_build_array(${graph.nodes.map((node) => `(${countNode(graph, node)})`).join(", ")}),
  'references', pg_catalog.jsonb_build_array(${graph.edges.map((edge) => `(${countEdge(graph, edge)})`).join(", ")})
)::text AS counts`

/**
 * Which rows of a node would go, from their identities: the parameters after those of the root are
 * one array of texts for each part. Gives the ordinals of those that do. It follows the keys
 * upwards, so it reads a row's ancestors only.
 */
export const going = (graph: Graph.Graph, from: string, key: RootKey, node: Graph.Node): string => `
WITH RECURSIVE up (rel, place, ord) AS (
  SELECT t.tableoid::oid::int8, t.ctid::text, v.ord FROM ${values(node, key.length + 1)} v
  JOIN ${rowsOf(node.table)} t ON ${identifies(node, "t", "v")}
  UNION
  SELECT n.rel, n.place, u.ord FROM up u CROSS JOIN LATERAL (${union(
    graph.edges
      .filter((edge) => edge.kind === "cascade")
      .map(
        (edge) => `SELECT p.tableoid::oid::int8 AS rel, p.ctid::text AS place
    FROM ${rowsOf(edge.key.referencing)} c JOIN ${rowsOf(edge.key.referenced)} p ON ${Graph.matches(edge, "p", "c")}
    WHERE u.rel IN (${edge.child.relations.join(", ")}) AND c.tableoid::oid::int8 = u.rel AND c.ctid = u.place::tid`
      ),
    "SELECT NULL::int8 AS rel, NULL::text AS place WHERE false"
  )}) n
)
SELECT DISTINCT u.ord::int4 AS ord FROM up u JOIN ${from} t ON t.tableoid::oid::int8 = u.rel AND t.ctid::text = u.place
WHERE ${isRoot(key, "t")}`

/**
 * Identities as a table of texts `k0`, `k1`, ... with their ordinal `ord`; the arrays are the
 * parameters from `first` on.
 */
export const values = (node: Graph.Node, first: number): string => {
  const names = node.identity.map((_, index) => `k${index}`)
  return `(SELECT * FROM ${arrays(names.length, first)} WITH ORDINALITY AS w(${names.join(", ")}, ord))`
}

/**
 * Parameters that are arrays of texts, as rows with a column for each. Functions have their schema:
 * the statements of a purge run with the role's own search path, in which somebody else may have
 * put functions of the same names.
 */
export const arrays = (count: number, first: number): string =>
  `ROWS FROM (${Array.from({ length: count }, (_, index) => `pg_catalog.unnest($${first + index}::text[])`).join(", ")})`

/** The condition under which a row has an identity, whose texts are the columns `k0`, `k1`, ... */
export const identifies = (node: Graph.Node, row: string, value: string, prefix = "k"): string =>
  node.identity
    .map(
      ({ column, operator, type }, index) =>
        `${row}.${column} OPERATOR(${operator}) ${value}.${prefix}${index}::${type}`
    )
    .join(" AND ")

/** The identity of a row as an array of texts. */
export const identity = (node: Graph.Node, row: string): string =>
  `ARRAY[${node.identity.map(({ column }) => `${row}.${column}::text`).join(", ")}]::text[]`

/** The columns of a root's key as parts of an identity. */
export const rootPart = (column: string, type: string, operator: string): Graph.Part => ({
  column: identifier(column),
  type,
  operator
})

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const union = (selects: ReadonlyArray<string>, none: string) =>
  selects.length === 0 ? none : selects.join("\n    UNION ALL\n    ")

/**
 * The rows below the row `r`. The list of OIDs is a one-time filter, which keeps keys of other
 * tables from being looked at.
 */
const below = (edge: Graph.Edge, columns: string) => `SELECT ${columns}
    FROM ${rowsOf(edge.key.referenced)} p JOIN ${rowsOf(edge.key.referencing)} c ON ${Graph.matches(edge, "p", "c")}
    WHERE r.rel IN (${edge.parent.relations.join(", ")}) AND p.tableoid::oid::int8 = r.rel AND p.ctid = r.place::tid`

const countNode = (graph: Graph.Graph, node: Graph.Node) => {
  if (Graph.isInner(graph, node)) {
    return `SELECT pg_catalog.count(*) FROM reach r WHERE r.rel IN (${node.relations.join(", ")})`
  }
  const edges = graph.edges.filter((edge) => edge.kind === "cascade" && edge.child === node)
  const [only] = edges
  return edges.length === 1 && only !== undefined
    ? `SELECT pg_catalog.count(*) FROM reach r CROSS JOIN LATERAL (${below(only, "1")}) c`
    : `SELECT pg_catalog.count(*) FROM (SELECT DISTINCT c.rel, c.tid FROM reach r CROSS JOIN LATERAL (${union(
        edges.map((edge) => below(edge, "c.tableoid AS rel, c.ctid AS tid")),
        ""
      )}) c) d`
}

const countEdge = (graph: Graph.Graph, edge: Graph.Edge) =>
  edge.kind === "cascade"
    ? "SELECT NULL::jsonb"
    : `SELECT pg_catalog.jsonb_build_object(
        'staying', pg_catalog.count(*) FILTER (WHERE NOT x.going), 'going', pg_catalog.count(*) FILTER (WHERE x.going),
        'dangling', pg_catalog.count(*) FILTER (WHERE NOT x.going AND x.dangling)
      ) FROM reach r CROSS JOIN LATERAL (${below(edge, `(${member(graph, edge)}) AS going, (${dangles(edge)}) AS dangling`)}) x`

/**
 * Whether the row `c` would refer to no row that stays, once SET DEFAULT has set its columns. Only
 * the server knows what a default gives that is not constant.
 */
const dangles = ({ child, columns, comparisons, key, kind }: Graph.Edge) => {
  const values = key.columns.map((column) =>
    columns.includes(column) ? child.defaults[column] : `c.${identifier(column)}`
  )
  if (kind !== "set-default" || values.includes(undefined)) return "false"
  const isNull = values.map((value) => `(${value}) IS NULL`)
  const conditions = values.map((value, index) =>
    Graph.isEqual(`d.${identifier(key.referencedColumns[index] ?? "")}`, `(${value})`, comparisons[index])
  )
  const isMissing = `NOT EXISTS (
    SELECT FROM ${rowsOf(key.referenced)} d
    WHERE ${conditions.join(" AND ")} AND NOT EXISTS (
      SELECT FROM reach x WHERE x.rel = d.tableoid::oid::int8 AND x.place = d.ctid::text
    )
  )`
  return key.match === "full"
    ? `NOT (${isNull.join(" AND ")}) AND (${isNull.join(" OR ")} OR ${isMissing})`
    : `NOT (${isNull.join(" OR ")}) AND ${isMissing}`
}

/** Whether the row `c` of a key's referencing table goes too. */
const member = (graph: Graph.Graph, { child }: Graph.Edge) => {
  if (!Graph.isReached(graph, child)) return "false"
  if (Graph.isInner(graph, child)) {
    return "EXISTS (SELECT FROM reach x WHERE x.rel = c.tableoid::oid::int8 AND x.place = c.ctid::text)"
  }
  return graph.edges
    .filter((edge) => edge.kind === "cascade" && edge.child === child)
    .map(
      (edge) => `EXISTS (
        SELECT FROM ${rowsOf(edge.key.referencing)} c2
        JOIN ${rowsOf(edge.key.referenced)} p2 ON ${Graph.matches(edge, "p2", "c2")}
        JOIN reach x ON x.rel = p2.tableoid::oid::int8 AND x.place = p2.ctid::text
        WHERE c2.tableoid = c.tableoid AND c2.ctid = c.ctid
      )`
    )
    .join(" OR ")
}
