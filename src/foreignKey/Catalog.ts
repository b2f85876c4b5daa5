/**
 * Foreign keys as the system catalogs describe them (PostgreSQL 13 to 18, chapter "System Catalogs": pg_constraint, pg_trigger,
 * pg_index). Reading takes ACCESS SHARE on catalogs only, never a lock on a user's table.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../driver/Session.js"
import * as Action from "./Action.js"
import * as Comment from "./Comment.js"
import { label } from "./Sql.js"

/** A table at one end of a foreign key. */
export interface Table extends Relation {
  /** Whether it is a partition of another table. */
  readonly partition: boolean
  /** The extension that owns it, if one does. */
  readonly extension: string | null
  /** Whether the current role has the rights of its owner. */
  readonly owned: boolean
  /** Whether the current role may LOCK it in every mode, for which it need not own it. */
  readonly lockable: boolean
  /** Its partitions, those of partitions too, in the order in which PostgreSQL locks them; empty if it is not partitioned. */
  readonly partitions: ReadonlyArray<Relation>
  /** The partitions whose DETACH CONCURRENTLY was stopped before its end (14 and later), by name. */
  readonly detaching: ReadonlyArray<string>
}

/** A table's name and kind. */
export interface Relation {
  readonly oid: number
  readonly schema: string
  readonly name: string
  /** `pg_class.relkind`: `r` ordinary, `p` partitioned, `f` foreign; `i` an index, `I` a partitioned one. */
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
  /** The columns that ON DELETE SET NULL or SET DEFAULT is limited to (15 and later); empty means all of them. */
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
  readonly comment: Comment.Comment
  /** The unique index of the referenced table that it is bound to. */
  readonly boundIndex: { readonly oid: number; readonly name: string; readonly primary: boolean } | null
  /** The indexes of the referenced table that an equal key could be bound to, in the order PostgreSQL tries them. */
  readonly candidateIndexes: ReadonlyArray<{
    readonly oid: number
    readonly name: string
    /** Whether it belongs to an exclusion constraint. */
    readonly exclusion: boolean
  }>
  /** The columns of the referenced table's primary key, in its order. */
  readonly primaryKeyColumns: ReadonlyArray<string>
  /**
   * An index whose leading columns are the referencing columns, in any order, if there is one. If a partitioned table has none but each of its partitions
   * does, it is that of the first one.
   */
  readonly supportingIndex: string | null
}

/** The name of a key in messages and documents: schema, table and constraint. */
export const nameOf = (key: Key): string => label(key.referencing.schema, key.referencing.name, key.name)

/** Which keys to read. */
export interface Filter {
  /** The keys of these tables only, by their OIDs. */
  readonly tables?: ReadonlyArray<number>
  /** Of the keys of {@link tables} those with these names only. */
  readonly names?: ReadonlyArray<string>
  /** Keys of partitions that belong to a key of their partitioned table are left out unless this is true. */
  readonly inherited?: boolean
}

/** Reads the foreign keys of this database, ordered by OID, without those of the system's own schemas and of other sessions' temporary tables. */
export const read = (
  session: Session,
  { inherited = false, names, tables }: Filter = {}
): Effect.Effect<ReadonlyArray<Key>, DatabaseError> =>
  session
    .query<{ readonly key: string }>(
      tables === undefined ? select(everywhere) : selectOfTables,
      tables === undefined ? [inherited] : [inherited, tables, names ?? null],
      { prepare: tables !== undefined }
    )
    .pipe(Effect.map((rows) => rows.map((row) => decode(JSON.parse(row.key) as Document))))

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

type Document = Omit<Key, "onDelete" | "onUpdate" | "match"> & {
  readonly onDelete: string
  readonly onUpdate: string
  readonly match: string
}

const decode = (document: Document): Key => ({
  ...document,
  onDelete: Action.fromCode(document.onDelete),
  onUpdate: Action.fromCode(document.onUpdate),
  match: document.match === "f" ? "full" : document.match === "p" ? "partial" : "simple"
})

const columnNames = (relation: string, numbers: string) => `(
  SELECT coalesce(jsonb_agg(a.attname ORDER BY u.position), '[]')
  FROM unnest(${numbers}) WITH ORDINALITY AS u(number, position)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = ${relation} AND a.attnum = u.number
)`

const table = (alias: string) => `(
  SELECT jsonb_build_object(
    'oid', t.oid::int8, 'schema', n.nspname, 'name', t.relname, 'kind', t.relkind, 'partition', t.relispartition,
    'extension', (
      SELECT e.extname FROM pg_catalog.pg_depend d
      JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = t.oid AND d.objsubid = 0
        AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e'
    ),
    'owned', pg_catalog.pg_has_role(t.relowner, 'USAGE'),
    'lockable', CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 170000
      THEN pg_catalog.has_table_privilege(t.oid, 'UPDATE, DELETE, TRUNCATE, MAINTAIN')
      ELSE pg_catalog.has_table_privilege(t.oid, 'UPDATE, DELETE, TRUNCATE') END,
    'partitions', CASE WHEN t.relkind <> 'p' THEN '[]' ELSE (
      SELECT coalesce(jsonb_agg(jsonb_build_object(
        'oid', c.oid::int8, 'schema', (SELECT s.nspname FROM pg_catalog.pg_namespace s WHERE s.oid = c.relnamespace), 'name', c.relname, 'kind', c.relkind
      ) ORDER BY q.level, c.oid), '[]')
      FROM pg_catalog.pg_partition_tree(t.oid) q
      CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class c WHERE c.oid = q.relid OFFSET 0) c
      WHERE q.level > 0
    ) END,
    'detaching', CASE WHEN t.relkind <> 'p' THEN '[]' ELSE (
      SELECT coalesce(jsonb_agg(c.relname ORDER BY c.relname), '[]')
      -- By their parents: a partition that is being detached is no longer in the tree.
      FROM pg_catalog.pg_partition_tree(t.oid) q
      CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_inherits i WHERE i.inhparent = q.relid OFFSET 0) i
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
      WHERE NOT q.isleaf AND (to_jsonb(i) ->> 'inhdetachpending')::boolean
    ) END
  )
  FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
  WHERE t.oid = ${alias}
)`

const sorted = (array: string) => `(SELECT array_agg(x ORDER BY x) FROM unnest(${array}) AS x)`

/** An index of a relation on the key's columns, which a partition can have in another order than its partitioned table. */
const supporting = (relation: string) => `(
      SELECT c.relname
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
      JOIN pg_catalog.pg_am m ON m.oid = c.relam
      WHERE i.indrelid = ${relation} AND i.indisvalid AND i.indisready AND i.indpred IS NULL
        AND (m.amname = 'btree' OR (m.amname = 'hash' AND cardinality(k.conkey) = 1))
        AND i.indnkeyatts >= cardinality(k.conkey)
        AND ${sorted("(i.indkey::int2[])[0:cardinality(k.conkey) - 1]")} = (
          SELECT array_agg(here.attnum ORDER BY here.attnum)
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_attribute here ON here.attrelid = ${relation} AND here.attname = a.attname
          WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
        )
      ORDER BY i.indnkeyatts, i.indexrelid
      LIMIT 1
    )`

/**
 * Whether a constraint `k` is a key that is read. `inherited`: whether parts of a partitioned
 * table's key are read too.
 */
const isRead = (inherited: string) => `k.contype = 'f' AND (${inherited} OR k.conparentid = 0)
    AND k.connamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    AND NOT pg_catalog.pg_is_other_temp_schema(k.connamespace)`

/** An index is a candidate as in transformFkeyCheckAttrs (tablecmds.c): unique, immediate, whole, exactly the key's columns. */
const select = (constraints: string) => `
WITH chosen AS MATERIALIZED (
  SELECT k.oid FROM ${constraints} k
  WHERE ${isRead("$1::boolean")}
)
SELECT jsonb_build_object(
  'oid', k.oid::int8,
  'name', k.conname,
  'referencing', ${table("k.conrelid")},
  'referenced', ${table("k.confrelid")},
  'columns', ${columnNames("k.conrelid", "k.conkey")},
  'referencedColumns', ${columnNames("k.confrelid", "k.confkey")},
  'onDelete', k.confdeltype,
  'onDeleteColumns', ${columnNames(
    "k.conrelid",
    `ARRAY(
      SELECT c::int2 FROM jsonb_array_elements_text(
        CASE jsonb_typeof(to_jsonb(k) -> 'confdelsetcols') WHEN 'array' THEN to_jsonb(k) -> 'confdelsetcols' ELSE '[]' END
      ) AS c
    )`
  )},
  'onUpdate', k.confupdtype,
  'match', k.confmatchtype,
  'deferrable', k.condeferrable,
  'initiallyDeferred', k.condeferred,
  'validated', k.convalidated,
  'enforced', coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true),
  'period', coalesce((to_jsonb(k) ->> 'conperiod')::boolean, false),
  'inherited', k.conparentid <> 0,
  'readable', (
    SELECT (
      NOT t.relrowsecurity OR pg_catalog.pg_has_role(t.relowner, 'USAGE')
      OR (SELECT r.rolsuper OR r.rolbypassrls FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
    ) AND (
      pg_catalog.has_table_privilege(t.oid, 'SELECT')
      OR (SELECT bool_and(pg_catalog.has_column_privilege(t.oid, c.number, 'SELECT')) FROM unnest(k.confkey) AS c (number))
    )
    FROM pg_catalog.pg_class t WHERE t.oid = k.confrelid
  ),
  'comment', ${Comment.read("k.oid")},
  'boundIndex', (
    SELECT jsonb_build_object('oid', i.indexrelid::int8, 'name', c.relname, 'primary', i.indisprimary)
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indexrelid = k.conindid
  ),
  'candidateIndexes', (
    SELECT coalesce(jsonb_agg(jsonb_build_object('oid', i.indexrelid::int8, 'name', c.relname, 'exclusion', i.indisexclusion) ORDER BY i.indexrelid), '[]')
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = k.confrelid AND i.indisunique AND i.indimmediate AND i.indisvalid
      AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = cardinality(k.confkey)
      AND ${sorted("(i.indkey::int2[])[0:i.indnkeyatts - 1]")} = ${sorted("k.confkey")}
  ),
  'primaryKeyColumns', (
    SELECT coalesce(jsonb_agg(a.attname ORDER BY u.position), '[]')
    FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u(number, position)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
    WHERE i.indrelid = k.confrelid AND i.indisprimary
  ),
  'supportingIndex', coalesce(
    ${supporting("k.conrelid")},
    CASE WHEN (SELECT t.relkind FROM pg_catalog.pg_class t WHERE t.oid = k.conrelid) = 'p' THEN (
      SELECT CASE WHEN count(*) = count(s.name) THEN (array_agg(s.name ORDER BY q.relid::oid))[1] END
      FROM pg_catalog.pg_partition_tree(k.conrelid) q CROSS JOIN LATERAL (SELECT ${supporting("q.relid")} AS name) s
      WHERE q.isleaf
    ) END
  )
)::text AS key
FROM chosen
CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint k WHERE k.oid = chosen.oid OFFSET 0) k
ORDER BY k.oid`

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
 * reads its rows.
 */
export const selectOfTables = select(ofTables)

/** Reads keys back from a JSON array of the rows of {@link selectOfTables}. */
export const parse = (text: string | null): ReadonlyArray<Key> =>
  ((JSON.parse(text ?? "null") as ReadonlyArray<Document> | null) ?? []).map(decode)
