/**
 * Foreign keys as the system catalogs describe them (PostgreSQL 13 to 18, chapter "System
 * Catalogs": pg_constraint, pg_trigger, pg_index). Reading takes ACCESS SHARE on catalogs only,
 * never a lock on a user's table.
 */
import * as Effect from "effect/Effect"
import * as Struct from "effect/Struct"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import * as Action from "./action.js"
import * as Comments from "./comments.js"
import { label } from "../sql/identifiers.js"

/** A table at one end of a foreign key. */
export interface Table extends Relation {
  /** Whether it is a partition of another table. */
  readonly partition: boolean
  /** The extension that owns it, if one does. */
  readonly extension: string | null
  /** Whether the current role has the rights of its owner. */
  readonly owned: boolean
  /**
   * Whether row security hides rows of it from the current role: from its owner's only where it is
   * forced.
   */
  readonly filtered: boolean
  /** Whether the current role may LOCK it in every mode, for which it need not own it. */
  readonly lockable: boolean
  /**
   * Its partitions, those of partitions too, in the order in which PostgreSQL locks them; empty if
   * it is not partitioned.
   */
  readonly partitions: ReadonlyArray<Relation>
  /**
   * The partitions whose DETACH CONCURRENTLY was stopped before its end (14 and later), by name.
   */
  readonly detaching: ReadonlyArray<string>
}

/** Whether row security hides rows of a table from its owner, also from the check of a new key. */
export const isForced = ({ filtered, owned }: Table): boolean => owned && filtered

/** A table's name and kind. */
export interface Relation {
  readonly oid: number
  readonly schema: string
  readonly name: string
  /**
   * `pg_class.relkind`: `r` ordinary, `p` partitioned, `f` foreign; `i` an index, `I` a partitioned
   * one.
   */
  readonly kind: string
}

/** A foreign key, with everything that a change of it must keep. */
export interface Key {
  readonly oid: number
  readonly name: string
  readonly referencing: Table
  readonly referenced: Table
  readonly columns: ReadonlyArray<string>
  readonly referencedColumns: ReadonlyArray<string>
  readonly onDelete: Action.Action
  /**
   * The columns that ON DELETE SET NULL or SET DEFAULT is limited to (15 and later); empty means
   * all of them.
   */
  readonly onDeleteColumns: ReadonlyArray<string>
  readonly onUpdate: Action.Action
  readonly match: "simple" | "full" | "partial"
  readonly deferrable: boolean
  readonly initiallyDeferred: boolean
  readonly validated: boolean
  /** False for NOT ENFORCED (18 and later). */
  readonly enforced: boolean
  /** A temporal key with PERIOD (18 and later). */
  readonly period: boolean
  /** Whether it belongs to a key of a partitioned table, and so changes with that one only. */
  readonly inherited: boolean
  /**
   * Whether the current role may read the referenced columns of all rows: otherwise VALIDATE
   * looks up row by row instead of reading both tables once (RI_Initial_Check, ri_triggers.c).
   */
  readonly readable: boolean
  readonly comment: Comments.Comment
  /** The unique index of the referenced table that it is bound to. */
  readonly boundIndex: {
    readonly oid: number
    readonly name: string
    readonly primary: boolean
    /** Whether the index has the referenced columns in the key's order. */
    readonly inOrder: boolean
  } | null
  /**
   * The indexes of the referenced table that an equal key could be bound to, in the order
   * PostgreSQL tries them.
   */
  readonly candidateIndexes: ReadonlyArray<{
    readonly oid: number
    readonly name: string
    /** Whether it belongs to an exclusion constraint. */
    readonly exclusion: boolean
  }>
}

/** The name of a key in messages and documents: schema, table and constraint. */
export const nameOf = (key: Key): string => label(key.referencing.schema, key.referencing.name, key.name)

/** Which keys to read. */
export interface Filter {
  /** The keys of these tables only, by their OIDs. */
  readonly tables?: ReadonlyArray<number>
  /** Of the keys of {@link tables} those with these names only. */
  readonly names?: ReadonlyArray<string>
  /**
   * Keys of partitions that belong to a key of their partitioned table are left out unless this is
   * true.
   */
  readonly inherited?: boolean
}

/**
 * Reads the foreign keys of this database, ordered by OID, without those of the system's own
 * schemas and of other sessions' temporary tables.
 */
export const read = (
  session: Session,
  { inherited = false, names, tables }: Filter = {}
): Effect.Effect<ReadonlyArray<Key>, DatabaseError> =>
  session
    .query<{ readonly keys: string }>(
      tables === undefined ? select(everywhere) : selectOfTables,
      tables === undefined ? [inherited] : [inherited, tables, names ?? null],
      { prepare: tables !== undefined }
    )
    .pipe(Effect.map(([row]) => parse(row?.keys ?? null)))

/** A key's names: what it is chosen by. */
export interface Named {
  readonly name: string
  readonly referencing: Pick<Table, "oid" | "schema" | "name">
  readonly referenced: Pick<Table, "schema" | "name">
}

/**
 * Reads the names of the keys that {@link read} reads, which costs little where these are
 * thousands.
 */
export const names = (session: Session): Effect.Effect<ReadonlyArray<Named>, DatabaseError> =>
  session
    .query<{ readonly key: string }>(
      `SELECT json_build_object(
        'name', k.conname,
        'referencing', json_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname),
        'referenced', json_build_object('schema', m.nspname, 'name', p.relname)
      )::text AS key
      FROM ${everywhere} k
      JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_namespace m ON m.oid = p.relnamespace
      WHERE ${isRead("false")}`
    )
    .pipe(Effect.map((rows) => rows.map((row) => JSON.parse(row.key) as Named)))

/** The OIDs of tables and of all their partitions. */
export const withPartitions = (
  session: Session,
  tables: ReadonlyArray<number>
): Effect.Effect<ReadonlyArray<number>, DatabaseError> =>
  session
    .query<{ readonly oid: string }>(
      `SELECT DISTINCT q.relid::oid::text AS oid
      FROM unnest($1::int8[]) AS w (oid) CROSS JOIN LATERAL pg_catalog.pg_partition_tree(w.oid::oid::regclass) q`,
      [tables]
    )
    .pipe(Effect.map((rows) => [...new Set([...tables, ...rows.map(({ oid }) => Number(oid))])]))

/** `server_version_num`: 130023 is 13.23. */
export const serverVersion = (session: Session): Effect.Effect<number, DatabaseError> =>
  session
    .query<{ readonly version: string }>("SELECT pg_catalog.current_setting('server_version_num') AS version")
    .pipe(Effect.map((rows) => Number(rows[0]?.version)))

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** What the catalogs say, with the rows of each catalog by themselves. */
interface Document {
  readonly keys: ReadonlyArray<ConstraintRow> | null
  readonly tables: ReadonlyArray<TableRow> | null
}

/** A row of pg_constraint. OIDs are text in JSON. */
interface ConstraintRow {
  readonly row: {
    readonly oid: string
    readonly conname: string
    readonly conrelid: string
    readonly confrelid: string
    readonly conindid: string
    readonly conparentid: string
    readonly conkey: ReadonlyArray<number>
    readonly confkey: ReadonlyArray<number>
    readonly confdeltype: string
    /** 15 and later. */
    readonly confdelsetcols?: ReadonlyArray<number> | null
    readonly confupdtype: string
    readonly confmatchtype: string
    readonly condeferrable: boolean
    readonly condeferred: boolean
    readonly convalidated: boolean
    /** 18 and later. */
    readonly conenforced?: boolean
    /** 18 and later. */
    readonly conperiod?: boolean
  }
  readonly comment: Comments.Comment
  /** Whether the role may read the referenced columns, row security aside. */
  readonly mayRead: boolean
}

/** A table at one end of a key, with its columns and indexes. */
interface TableRow extends Table {
  /** The names of its columns, by their numbers. */
  readonly columns: { readonly [number: string]: string }
  readonly indexes: ReadonlyArray<{
    readonly oid: number
    readonly name: string
    readonly primary: boolean
    readonly exclusion: boolean
    /** Whether keys can be bound to it: it is unique, immediate, valid and whole. */
    readonly eligible: boolean
    /** The numbers of its key columns, 0 for an expression. */
    readonly columns: ReadonlyArray<number>
  }>
}

/** Reads keys back from what {@link selectOfTables} answers. */
export const parse = (text: string | null): ReadonlyArray<Key> => {
  const { keys, tables } = JSON.parse(text ?? "{}") as Partial<Document>
  const tableOf = new Map((tables ?? []).map((row) => [row.oid, row]))
  return (keys ?? []).flatMap((key): ReadonlyArray<Key> => {
    const referencing = tableOf.get(Number(key.row.conrelid))
    const referenced = tableOf.get(Number(key.row.confrelid))
    return referencing === undefined || referenced === undefined ? [] : [decode(key, referencing, referenced)]
  })
}

const decode = (
  { comment, mayRead, row }: ConstraintRow,
  referencing: TableRow,
  referenced: TableRow
): Key => {
  const names = (table: TableRow, numbers: ReadonlyArray<number>) =>
    numbers.flatMap((number) => table.columns[number] ?? [])
  const bound = referenced.indexes.find(({ oid }) => oid === Number(row.conindid))
  return {
    oid: Number(row.oid),
    name: row.conname,
    referencing: tableFrom(referencing),
    referenced: tableFrom(referenced),
    columns: names(referencing, row.conkey),
    referencedColumns: names(referenced, row.confkey),
    onDelete: Action.fromCode(row.confdeltype),
    onDeleteColumns: names(referencing, row.confdelsetcols ?? []),
    onUpdate: Action.fromCode(row.confupdtype),
    match: row.confmatchtype === "f" ? "full" : row.confmatchtype === "p" ? "partial" : "simple",
    deferrable: row.condeferrable,
    initiallyDeferred: row.condeferred,
    validated: row.convalidated,
    enforced: row.conenforced ?? true,
    period: row.conperiod ?? false,
    inherited: Number(row.conparentid) !== 0,
    // The check of a new key passes by what is forced upon an owner.
    readable: mayRead && (referenced.owned || !referenced.filtered),
    comment,
    boundIndex:
      bound === undefined
        ? null
        : {
            oid: bound.oid,
            name: bound.name,
            primary: bound.primary,
            inOrder: isSame(bound.columns, row.confkey)
          },
    candidateIndexes: referenced.indexes
      .filter(({ columns, eligible }) => eligible && isSame(sorted(columns), sorted(row.confkey)))
      .map(({ exclusion, name, oid }) => ({ oid, name, exclusion }))
  }
}

const tableFrom = (row: TableRow): Table => Struct.omit(row, "columns", "indexes")

const sorted = (numbers: ReadonlyArray<number>) => numbers.toSorted((one, other) => one - other)

const isSame = (some: ReadonlyArray<number>, others: ReadonlyArray<number>) =>
  some.length === others.length && some.every((number, index) => number === others[index])

/**
 * Whether a constraint `k` is a key that is read. `inherited`: whether parts of a partitioned
 * table's key are read too.
 */
const isRead = (inherited: string) => `k.contype = 'f' AND (${inherited} OR k.conparentid = 0)
    AND k.connamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    AND NOT pg_catalog.pg_is_other_temp_schema(k.connamespace)`

/** A partition tree, as a LATERAL subquery: empty for a table that is not partitioned. */
const treeOf = (table: string) =>
  `(SELECT q.* FROM pg_catalog.pg_partition_tree(CASE WHEN ${table}.relkind = 'p' THEN ${table}.oid END) q)`

/** A table `t` of pg_class. An index is eligible as in transformFkeyCheckAttrs (tablecmds.c). */
const table = `json_build_object(
    'oid', t.oid::int8, 'schema', (SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.oid = t.relnamespace),
    'name', t.relname, 'kind', t.relkind, 'partition', t.relispartition,
    'extension', (
      SELECT (SELECT e.extname FROM pg_catalog.pg_extension e WHERE e.oid = d.refobjid) FROM pg_catalog.pg_depend d
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = t.oid AND d.objsubid = 0
        AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e'
    ),
    'owned', pg_catalog.pg_has_role(t.relowner, 'USAGE'),
    'lockable', pg_catalog.has_table_privilege(t.oid, CASE
      WHEN pg_catalog.current_setting('server_version_num')::int >= 170000 THEN 'UPDATE, DELETE, TRUNCATE, MAINTAIN'
      ELSE 'UPDATE, DELETE, TRUNCATE' END),
    'filtered', pg_catalog.row_security_active(t.oid),
    'partitions', (
      SELECT coalesce(json_agg(json_build_object(
        'oid', c.oid::int8, 'schema', (SELECT s.nspname FROM pg_catalog.pg_namespace s WHERE s.oid = c.relnamespace),
        'name', c.relname, 'kind', c.relkind
      ) ORDER BY q.level, c.oid), '[]')
      FROM ${treeOf("t")} q
      CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class c WHERE c.oid = q.relid OFFSET 0) c
      WHERE q.level > 0
    ),
    'detaching', (
      SELECT coalesce(json_agg(i.name ORDER BY i.name), '[]')
      -- By their parents: a partition that is being detached is no longer in the tree.
      FROM ${treeOf("t")} q
      CROSS JOIN LATERAL (
        SELECT (SELECT c.relname FROM pg_catalog.pg_class c WHERE c.oid = i.inhrelid) AS name, to_jsonb(i) ->> 'inhdetachpending' AS pending
        FROM pg_catalog.pg_inherits i WHERE i.inhparent = q.relid OFFSET 0
      ) i
      WHERE NOT q.isleaf AND i.pending::boolean
    ),
    'columns', (
      SELECT json_object_agg(a.attnum, a.attname)
      FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0
    ),
    'indexes', (
      SELECT coalesce(json_agg(json_build_object(
        'oid', i.indexrelid::int8, 'name', (SELECT c.relname FROM pg_catalog.pg_class c WHERE c.oid = i.indexrelid),
        'primary', i.indisprimary, 'exclusion', i.indisexclusion,
        'eligible', i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL,
        'columns', (i.indkey::int2[])[0:i.indnkeyatts - 1]
      ) ORDER BY i.indexrelid), '[]')
      FROM pg_catalog.pg_index i WHERE i.indrelid = t.oid
    )
  )`

/**
 * One document with the rows of pg_constraint, and beside them the tables at their ends: each
 * catalog is named once, because planning a question about catalogs takes longer than answering it.
 */
const select = (constraints: string) => `
WITH keys AS MATERIALIZED (
  SELECT k.* FROM ${constraints} k
  WHERE ${isRead("$1::boolean")}
),
ends (oid) AS MATERIALIZED (SELECT conrelid FROM keys UNION SELECT confrelid FROM keys)
SELECT json_build_object(
  'keys', (SELECT json_agg(json_build_object(
    'row', row_to_json(k),
    'comment', ${Comments.read("k.oid")},
    'mayRead', pg_catalog.has_table_privilege(k.confrelid, 'SELECT')
      OR (SELECT bool_and(pg_catalog.has_column_privilege(k.confrelid, c.number, 'SELECT')) FROM unnest(k.confkey) AS c (number))
  ) ORDER BY k.oid) FROM keys k),
  'tables', (
    SELECT json_agg(${table})
    FROM ends CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class t WHERE t.oid = ends.oid OFFSET 0) t
  )
)::text AS keys`

/** The constraints of all tables. */
const everywhere = "pg_catalog.pg_constraint"

/** The constraints of some tables, found by index whatever the planner believes of the catalog. */
const ofTables = `(
    SELECT c.* FROM (SELECT DISTINCT unnest($2::int8[]) AS oid) t
    CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint c WHERE c.conrelid = t.oid::oid OFFSET 0) c
    WHERE $3::name[] IS NULL OR c.conname = ANY ($3::name[])
  )`

/**
 * The query of {@link read}, for the parameters `inherited`, `tables` and `names`. {@link parse}
 * reads its answer.
 */
export const selectOfTables = select(ofTables)
