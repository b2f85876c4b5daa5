/**
 * Which foreign keys a DELETE follows, read from the catalogs: tables as nodes (partitions belong
 * to their topmost partitioned table), keys as edges from the referenced to the referencing table.
 * Takes ACCESS SHARE on catalogs only.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import * as Catalog from "../catalog/foreignKeys.js"
import * as Integrity from "../catalog/integrity.js"
import * as TableLocks from "../catalog/tableLocks.js"
import { identifier } from "../sql/identifiers.js"

/** An expression that identifies a row together with others, without its table's alias. */
export interface Part {
  /** As SQL. */
  readonly column: string
  readonly type: string
  /** Its type's equality, as in `OPERATOR(pg_catalog.=)`. */
  readonly operator: string
}

/** A table that the delete can reach, or that refers to one of those. */
export interface Node {
  readonly table: Catalog.Relation
  /** The OIDs of the tables that hold its rows. */
  readonly relations: ReadonlyArray<number>
  /** A unique key without nulls; a row's place and version where the table has none. */
  readonly identity: ReadonlyArray<Part>
  /** The defaults of its columns, as SQL; those that are not constant are left out. */
  readonly defaults: { readonly [column: string]: string }
  /** What the current role may not do, and what makes rows invisible to it or undeletable. */
  readonly rights: Rights
}

/** What the current role can do with a table. */
export interface Rights {
  readonly usage: boolean
  readonly select: boolean
  readonly delete: boolean
  readonly update: boolean
  /** Whether row security applies to the current role. */
  readonly rowSecurity: boolean
  /** Columns that are NOT NULL. */
  readonly notNull: ReadonlyArray<string>
  /** Row triggers of users that fire before a delete; each may keep its row. */
  readonly triggers: ReadonlyArray<string>
  /** Rules on DELETE; each may do something else instead. */
  readonly rules: ReadonlyArray<string>
}

/** The equality of a pair of columns, the referenced one on the left. */
export interface Comparison {
  readonly operator: string
  /**
   * The referenced column's collation as SQL, by which PostgreSQL compares where the referencing
   * one has another; else null.
   */
  readonly collation: string | null
}

/** A foreign key that acts when a referenced row is deleted. */
export interface Edge {
  readonly key: Catalog.Key
  readonly kind: "cascade" | "block" | "set-null" | "set-default"
  /** How each pair of columns is compared. */
  readonly comparisons: ReadonlyArray<Comparison>
  readonly parent: Node
  readonly child: Node
  /** The columns that SET NULL or SET DEFAULT sets. */
  readonly columns: ReadonlyArray<string>
}

/** What a delete in one table can do. */
export interface Graph {
  readonly root: Node
  /** The tables that cascades reach, the root first. */
  readonly nodes: ReadonlyArray<Node>
  /** The keys that reference those tables and act. */
  readonly edges: ReadonlyArray<Edge>
  /**
   * Keys among them whose triggers are not what the catalog says, or not the same on every
   * partition.
   */
  readonly faulty: ReadonlyArray<{ readonly constraint: string; readonly problem: string }>
  /** Keys that do nothing because their triggers are disabled. */
  readonly disabled: ReadonlyArray<string>
}

/** Whether anything refers to a table's rows. */
export const isInner = (graph: Graph, node: Node): boolean =>
  node === graph.root || graph.edges.some((edge) => edge.parent === node)

/** Whether cascades reach a table. */
export const isReached = (graph: Graph, node: Node): boolean => graph.nodes.includes(node)

/**
 * The condition under which two values are equal, as a key compares them (ri_GenerateQualCollation,
 * ri_triggers.c).
 */
export const isEqual = (
  referenced: string,
  referencing: string,
  comparison: Comparison | undefined
): string => {
  const { collation, operator } = comparison ?? { collation: null, operator: "pg_catalog.=" }
  return `${referenced} OPERATOR(${operator}) ${referencing}${collation === null ? "" : ` COLLATE ${collation}`}`
}

/**
 * The condition under which a row `child` refers to a row `parent`, compared as the key itself does
 * it.
 */
export const matches = (edge: Edge, parent: string, child: string): string =>
  edge.key.columns
    .map((column, index) =>
      isEqual(
        `${parent}.${identifier(edge.key.referencedColumns[index] ?? "")}`,
        `${child}.${identifier(column)}`,
        edge.comparisons[index]
      )
    )
    .join(" AND ")

/** Reads what a delete in a table does. */
export const read = (session: Session, root: number): Effect.Effect<Graph, DatabaseError> =>
  Effect.gen(function* () {
    const keys = yield* Catalog.read(session)
    const extras = yield* session.query<{ readonly extra: string }>(selectKeys)
    const extraOf = new Map(
      extras.map(({ extra }) => {
        const decoded = JSON.parse(extra) as KeyExtra
        return [decoded.oid, decoded]
      })
    )
    const problems = yield* Integrity.read(session)
    const oids = new Set([
      root,
      ...keys.flatMap(({ referenced, referencing }) =>
        [referenced, referencing].flatMap((table) => TableLocks.withPartitions(table).map(({ oid }) => oid))
      )
    ])
    const rows = yield* session.query<{ readonly node: string }>(selectNodes, [[...oids]])
    const nodeOf = new Map<number, Node>()
    for (const row of rows) {
      const { identity, ...node } = JSON.parse(row.node) as Omit<Node, "identity"> & {
        readonly identity: ReadonlyArray<Part> | null
      }
      const complete: Node = {
        ...node,
        identity: identity?.map((part) => ({ ...part, column: identifier(part.column) })) ?? place
      }
      for (const oid of node.relations) nodeOf.set(oid, complete)
    }
    const rootNode = nodeOf.get(root)
    if (rootNode === undefined) {
      return yield* Effect.dieMessage("Purge: the table is gone since it was looked up")
    }
    const nodes = [rootNode]
    const edges: Array<Edge> = []
    const faulty: Array<{ readonly constraint: string; readonly problem: string }> = []
    const disabled: Array<string> = []
    for (const node of nodes) {
      for (const key of keys) {
        const parent = nodeOf.get(key.referenced.oid)
        const child = nodeOf.get(key.referencing.oid)
        const extra = extraOf.get(key.oid)
        if (parent !== node || child === undefined || extra === undefined || !key.enforced) continue
        const constraint = Catalog.nameOf(key)
        const wrong = problems.find(
          ({ constraint, kind }) => constraint === key.oid && kind !== "trigger state"
        )
        if (wrong !== undefined) faulty.push({ constraint, problem: wrong.problem })
        if (key.period) faulty.push({ constraint, problem: "it is a temporal key (PERIOD)" })
        if (extra.on && extra.off) {
          faulty.push({ constraint, problem: "its triggers are enabled on some partitions only" })
        }
        if (!extra.on) {
          disabled.push(constraint)
          continue
        }
        const columns = key.onDeleteColumns.length === 0 ? key.columns : key.onDeleteColumns
        const edge: Edge = {
          key,
          kind: kindOf(key, columns, child),
          comparisons: extra.comparisons,
          parent,
          child,
          columns
        }
        edges.push(edge)
        if (edge.kind === "cascade" && !nodes.includes(child)) nodes.push(child)
      }
    }
    return { root: rootNode, nodes, edges, faulty, disabled }
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * SET NULL forbids the delete of a row that is referred to where it cannot be carried out: a column
 * is NOT NULL, or MATCH FULL has no references that are null in part.
 */
const kindOf = (key: Catalog.Key, columns: ReadonlyArray<string>, { rights }: Node): Edge["kind"] =>
  key.onDelete === "no-action" ||
  key.onDelete === "restrict" ||
  (key.onDelete === "set-null" &&
    (columns.some((column) => rights.notNull.includes(column)) ||
      (key.match === "full" && columns.length < key.columns.length)))
    ? "block"
    : key.onDelete

/** A row version: its slot can be used again for another row, which then has another xmin. */
const place: ReadonlyArray<Part> = [
  { column: "tableoid", type: "pg_catalog.oid", operator: "pg_catalog.=" },
  { column: "ctid", type: "pg_catalog.tid", operator: "pg_catalog.=" },
  { column: "xmin", type: "pg_catalog.xid", operator: "pg_catalog.=" }
]

interface KeyExtra {
  readonly oid: number
  readonly comparisons: ReadonlyArray<Comparison>
  readonly on: boolean
  readonly off: boolean
}

const operatorName = (alias: string) =>
  `(SELECT quote_ident(s.nspname) FROM pg_catalog.pg_namespace s WHERE s.oid = ${alias}.oprnamespace) || '.' || ${alias}.oprname`

const selectKeys = String.raw`
WITH RECURSIVE tree AS (
  SELECT k.oid, k.oid AS root FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0
  UNION ALL
  SELECT k.oid, t.root FROM pg_catalog.pg_constraint k JOIN tree t ON k.conparentid = t.oid
)
SELECT jsonb_build_object(
  'oid', k.oid::int8,
  'comparisons', (
    SELECT jsonb_agg(jsonb_build_object(
      'operator', ${operatorName("o")},
      'collation', (
        SELECT quote_ident(s.nspname) || '.' || quote_ident(l.collname)
        FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace s ON s.oid = l.collnamespace
        WHERE l.oid = pa.attcollation AND pa.attcollation <> ca.attcollation
      )
    ) ORDER BY u.position)
    FROM unnest(k.conpfeqop, k.confkey, k.conkey) WITH ORDINALITY AS u(operator, referenced, referencing, position)
    JOIN pg_catalog.pg_operator o ON o.oid = u.operator
    JOIN pg_catalog.pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.referenced
    JOIN pg_catalog.pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.referencing
  ),
  'on', coalesce(bool_or(g.tgenabled IN ('O', 'A')), false),
  'off', coalesce(bool_or(g.tgenabled NOT IN ('O', 'A')), false)
)::text AS extra
FROM pg_catalog.pg_constraint k
JOIN tree t ON t.root = k.oid
LEFT JOIN (
  pg_catalog.pg_trigger g
  JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid AND p.proname LIKE 'RI\_FKey\_%\_del'
) ON g.tgconstraint = t.oid
GROUP BY k.oid, k.conrelid, k.confrelid, k.conkey, k.confkey, k.conpfeqop`

const selectNodes = `
SELECT jsonb_build_object(
  'table', jsonb_build_object('oid', t.oid::int8, 'schema', n.nspname, 'name', t.relname, 'kind', t.relkind),
  'relations', r.oids,
  'identity', (
    SELECT (
      SELECT jsonb_agg(jsonb_build_object(
        'column', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod), 'operator', ${operatorName("o")}
      ) ORDER BY u.position)
      FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1], (i.indclass::oid[])[0:i.indnkeyatts - 1])
        WITH ORDINALITY AS u(number, class, position)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
      JOIN pg_catalog.pg_opclass c ON c.oid = u.class
      JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype
        AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
      JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
    )
    FROM pg_catalog.pg_index i
    WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (
        SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS number
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = number
        WHERE NOT a.attnotnull
      )
    ORDER BY i.indisprimary DESC, i.indexrelid
    LIMIT 1
  ),
  'defaults', (
    SELECT coalesce(jsonb_object_agg(
      a.attname, coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), 'NULL') || '::' || pg_catalog.format_type(a.atttypid, a.atttypmod)
    ), '{}')
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type y ON y.oid = a.atttypid AND y.typtype <> 'd'
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = ''
      AND (d.oid IS NULL OR d.adbin::text LIKE '{CONST %')
  ),
  'rights', jsonb_build_object(
    'usage', has_schema_privilege(t.relnamespace, 'USAGE'),
    'select', has_table_privilege(t.oid, 'SELECT'),
    'delete', has_table_privilege(t.oid, 'DELETE'),
    'update', has_table_privilege(t.oid, 'UPDATE'),
    'rowSecurity', row_security_active(t.oid),
    'notNull', (
      SELECT coalesce(jsonb_agg(a.attname), '[]') FROM pg_catalog.pg_attribute a
      WHERE a.attrelid = t.oid AND a.attnotnull AND a.attnum > 0 AND NOT a.attisdropped
    ),
    'triggers', (
      SELECT coalesce(jsonb_agg(DISTINCT quote_ident(g.tgname)), '[]') FROM pg_catalog.pg_trigger g
      WHERE r.oids @> to_jsonb(g.tgrelid::int8) AND NOT g.tgisinternal AND g.tgenabled <> 'D'
        AND g.tgtype & 1 = 1 AND g.tgtype & 2 = 2 AND g.tgtype & 8 = 8
    ),
    'rules', (
      SELECT coalesce(jsonb_agg(DISTINCT quote_ident(w.rulename)), '[]') FROM pg_catalog.pg_rewrite w
      WHERE r.oids @> to_jsonb(w.ev_class::int8) AND w.ev_type = '4' AND w.ev_enabled <> 'D'
    )
  )
)::text AS node
FROM (
  SELECT DISTINCT coalesce(pg_catalog.pg_partition_root(u.oid::oid)::oid, u.oid::oid) AS oid FROM unnest($1::int8[]) AS u(oid)
) d
JOIN pg_catalog.pg_class t ON t.oid = d.oid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
CROSS JOIN LATERAL (
  SELECT CASE WHEN t.relkind = 'p' THEN (SELECT jsonb_agg(q.relid::oid::int8) FROM pg_catalog.pg_partition_tree(t.oid) q)
    ELSE jsonb_build_array(t.oid::int8) END AS oids
) r`
