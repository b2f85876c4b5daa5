/** What a schema consists of, and where two of them differ. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"

/**
 * An object of a schema, with its definition as PostgreSQL writes it. Owners, privileges, comments
 * and rows are not part of it.
 */
export interface SchemaObject {
  /**
   * `table`, `column`, `constraint`, `index`, `trigger`, `view`, `sequence`, `function`, `type`,
   * `policy`, ...
   */
  readonly kind: string
  readonly schema: string
  /**
   * Quoted where SQL needs that; columns and what else belongs to a table with its name:
   * `class.owner_id`.
   */
  readonly name: string
  readonly definition: string
}

/** A difference between what the migrations make and what is there. */
export interface Difference {
  readonly kind: string
  /** With its schema. */
  readonly name: string
  /** The definition that the migrations give it; null for what they do not make. */
  readonly expected: string | null
  /** The definition that it has; null for what is not there. */
  readonly actual: string | null
}

/**
 * Reads the objects of all schemas but the system's own and those of extensions. `without` are
 * tables to leave out, by name. Locks no table.
 */
export const read = (
  session: Session,
  without: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<SchemaObject>, DatabaseError> =>
  // Every name that is not PostgreSQL's own is written with its schema then.
  Effect.zipRight(
    session.query("SET search_path = pg_catalog"),
    session.query<SchemaObject>(select, [without])
  )

/**
 * The differences, in the schemas in which something is expected: the others belong to somebody
 * else.
 */
export const compare = (
  expected: ReadonlyArray<SchemaObject>,
  actual: ReadonlyArray<SchemaObject>
): ReadonlyArray<Difference> => {
  const schemas = new Set(expected.map(({ schema }) => schema))
  const byKey = (objects: ReadonlyArray<SchemaObject>) =>
    new Map(objects.map((object) => [`${object.kind} ${object.schema}.${object.name}`, object]))
  const wanted = byKey(expected)
  const found = byKey(actual.filter(({ schema }) => schemas.has(schema)))
  return [...new Set([...wanted.keys(), ...found.keys()])].toSorted().flatMap((key) => {
    const [want, have] = [wanted.get(key), found.get(key)]
    const object = want ?? have
    return object === undefined || want?.definition === have?.definition
      ? []
      : [
          {
            kind: object.kind,
            name: `${object.schema}.${object.name}`,
            expected: want?.definition ?? null,
            actual: have?.definition ?? null
          }
        ]
  })
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const kinds = `CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
      WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'composite type' END`

/**
 * Not null constraints are part of their column (from 18 on they are constraints too); clones of
 * partitions follow those of their table.
 */
const select = `
WITH extension AS (
  SELECT d.classid, d.objid FROM pg_depend d WHERE d.deptype = 'e'
), space AS (
  SELECT n.oid, n.nspname FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
), relation AS (
  SELECT c.*, s.nspname, ${kinds} AS kind
  FROM pg_class c JOIN space s ON s.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND NOT (c.relkind IN ('r', 'S') AND c.relname = ANY ($1::text[]))
    AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
)
SELECT o.kind, o.nspname::text AS schema, o.name, o.definition
FROM (
  SELECT c.kind, c.nspname, quote_ident(c.relname) AS name, concat_ws(' ',
    CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' END,
    'PARTITION BY ' || pg_get_partkeydef(c.oid),
    CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END,
    (SELECT CASE WHEN c.relispartition THEN 'OF ' ELSE 'INHERITS ' END || string_agg(i.inhparent::regclass::text, ', ' ORDER BY i.inhseqno)
      FROM pg_inherits i WHERE i.inhrelid = c.oid),
    'WITH (' || array_to_string(c.reloptions, ', ') || ')',
    CASE WHEN c.relrowsecurity THEN 'ROW LEVEL SECURITY' END, CASE WHEN c.relforcerowsecurity THEN 'FORCE ROW LEVEL SECURITY' END,
    CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
    (SELECT format('AS %s START %s INCREMENT %s MINVALUE %s MAXVALUE %s CACHE %s%s', format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement,
      q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' END) FROM pg_sequence q WHERE q.seqrelid = c.oid)
  ) AS definition
  FROM relation c
  UNION ALL
  SELECT 'column', c.nspname, format('%I.%I', c.relname, a.attname), concat_ws(' ',
    format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
    CASE WHEN a.attnotnull THEN 'NOT NULL' END,
    CASE WHEN a.attgenerated = '' THEN 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) ELSE format('GENERATED (%s) %s', a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid)) END,
    CASE a.attidentity WHEN 'a' THEN 'GENERATED ALWAYS AS IDENTITY' WHEN 'd' THEN 'GENERATED BY DEFAULT AS IDENTITY' END)
  FROM relation c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE c.relkind <> 'S'
  UNION ALL
  SELECT 'constraint', c.nspname, format('%I.%I', c.relname, k.conname), pg_get_constraintdef(k.oid)
  FROM relation c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype NOT IN ('n', 't') AND k.conparentid = 0
  UNION ALL
  SELECT 'index', c.nspname, quote_ident(i.relname), concat_ws(' ', pg_get_indexdef(i.oid), CASE WHEN NOT x.indisvalid THEN 'INVALID' END)
  FROM relation c JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
  UNION ALL
  SELECT 'trigger', c.nspname, format('%I.%I', c.relname, g.tgname), concat_ws(' ', pg_get_triggerdef(g.oid),
    CASE g.tgenabled WHEN 'D' THEN 'DISABLED' WHEN 'A' THEN 'ENABLED ALWAYS' WHEN 'R' THEN 'ENABLED REPLICA' END)
  FROM relation c JOIN pg_trigger g ON g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgparentid = 0
  UNION ALL
  SELECT 'rule', c.nspname, format('%I.%I', c.relname, r.rulename), pg_get_ruledef(r.oid)
  FROM relation c JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename <> '_RETURN'
  UNION ALL
  SELECT 'policy', c.nspname, format('%I.%I', c.relname, p.polname), concat_ws(' ',
    CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, 'FOR ' || p.polcmd::text,
    'TO ' || (SELECT string_agg(coalesce(r.rolname::text, 'public'), ', ' ORDER BY r.rolname) FROM unnest(p.polroles) AS u LEFT JOIN pg_roles r ON r.oid = u),
    'USING ' || pg_get_expr(p.polqual, p.polrelid), 'WITH CHECK ' || pg_get_expr(p.polwithcheck, p.polrelid))
  FROM relation c JOIN pg_policy p ON p.polrelid = c.oid
  UNION ALL
  SELECT CASE p.prokind WHEN 'a' THEN 'aggregate' WHEN 'p' THEN 'procedure' ELSE 'function' END, s.nspname,
    format('%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
    CASE WHEN p.prokind = 'a' THEN format_type(p.prorettype, NULL) ELSE pg_get_functiondef(p.oid) END
  FROM pg_proc p JOIN space s ON s.oid = p.pronamespace
  WHERE NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid)
  UNION ALL
  SELECT CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' ELSE 'range' END, s.nspname, quote_ident(t.typname), concat_ws(' ',
    (SELECT string_agg(quote_literal(l.enumlabel), ', ' ORDER BY l.enumsortorder) FROM pg_enum l WHERE l.enumtypid = t.oid),
    CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END, CASE WHEN t.typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || t.typdefault,
    (SELECT string_agg(format('CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)), ' ' ORDER BY k.conname)
      FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'),
    (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid))
  FROM pg_type t JOIN space s ON s.oid = t.typnamespace
  WHERE t.typtype IN ('e', 'd', 'r') AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid)
) o`
