/**
 * Keys that do not do what their catalog entry says: somebody edited the catalogs, a bug of the
 * server left triggers out (17.0: DETACH; 18.0 to 18.3: ALTER CONSTRAINT ENFORCED), or triggers
 * were disabled. Enforcement is in the triggers, not in pg_constraint.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Session } from "../connection/session.js"
import * as Lookup from "./lookups.js"

/** One way in which a key and its triggers disagree. */
export interface Problem {
  /**
   * The OID of the constraint: that of the topmost one, if it belongs to a partitioned table's key.
   */
  readonly constraint: number
  readonly kind: "trigger" | "deferrability" | "partitions" | "trigger state"
  /** What is wrong, in words. */
  readonly problem: string
}

/**
 * Examines the enforced ones of these foreign keys, by their OIDs, or of all in the database.
 * Locks nothing but catalogs, with ACCESS SHARE.
 */
export const read = (
  session: Session,
  keys?: ReadonlyArray<number>
): Effect.Effect<ReadonlyArray<Problem>, DatabaseError> =>
  session
    .query<Omit<Problem, "constraint"> & { readonly constraint: string }>(
      keys === undefined ? select(everyKey) : select(chosenKeys),
      keys === undefined ? [] : [keys]
    )
    .pipe(Effect.map((rows) => rows.map((row) => ({ ...row, constraint: Number(row.constraint) }))))

const everyKey = "pg_catalog.pg_constraint"

/** By index, one by one. */
const chosenKeys = `(
    SELECT c.* FROM unnest($1::int8[]) AS w (oid)
    CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint c WHERE c.oid = w.oid::oid OFFSET 0) c
  )`

const triggers = Lookup.triggersOf("fk.oid")

/** Verified on 13 to 18 against healthy catalogs and four kinds of damage. */
const select = (keys: string) => String.raw`
WITH RECURSIVE root AS (
  SELECT k.oid, k.oid AS root FROM ${keys} k WHERE k.contype = 'f' AND k.conparentid = 0
  UNION ALL
  SELECT k.oid, r.root FROM root r CROSS JOIN LATERAL ${Lookup.childrenOf("r.oid")} k
),
fk AS (
  SELECT k.oid, r.root, k.conrelid, k.confrelid, k.confdeltype, k.confupdtype, k.condeferrable, k.condeferred,
    c.relkind AS referencing_kind, p.relkind AS referenced_kind, c.oid::regclass AS relation, k.conname,
    k.conparentid <> 0 AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_constraint q WHERE q.oid = k.conparentid AND q.conrelid <> k.conrelid
    ) AS for_partition_of_referenced,
    k.conparentid <> 0 AND EXISTS (
      SELECT FROM pg_catalog.pg_constraint q WHERE q.oid = k.conparentid AND q.conrelid <> k.conrelid
    ) AS on_partition
  FROM root r
  CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_constraint k WHERE k.oid = r.oid OFFSET 0) k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
  WHERE k.contype = 'f' AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
),
want (code, deletes, updates) AS (
  VALUES ('a'::"char", 'RI_FKey_noaction_del', 'RI_FKey_noaction_upd'),
    ('r', 'RI_FKey_restrict_del', 'RI_FKey_restrict_upd'),
    ('c', 'RI_FKey_cascade_del', 'RI_FKey_cascade_upd'),
    ('n', 'RI_FKey_setnull_del', 'RI_FKey_setnull_upd'),
    ('d', 'RI_FKey_setdefault_del', 'RI_FKey_setdefault_upd')
)
SELECT fk.root::int8::text AS "constraint", x.kind,
  x.problem || CASE WHEN fk.oid = fk.root THEN '' ELSE ' (partition ' || fk.relation || ', ' || fk.conname || ')' END AS problem
FROM fk
JOIN want d ON d.code = fk.confdeltype
JOIN want u ON u.code = fk.confupdtype
CROSS JOIN LATERAL (
  SELECT 'trigger' AS kind, 'ON DELETE trigger of the referenced table should be ' || d.deletes || ', is ' || coalesce(
    (SELECT string_agg(t.proname, ', ' ORDER BY t.proname) FROM ${triggers} t WHERE t.tgrelid = fk.confrelid AND t.proname LIKE '%\_del'),
    'missing') AS problem
  WHERE NOT fk.on_partition AND (fk.referenced_kind = 'r' OR current_setting('server_version_num')::int >= 150000)
    AND NOT EXISTS (SELECT FROM ${triggers} t WHERE t.tgrelid = fk.confrelid AND t.proname = d.deletes)
  UNION ALL
  SELECT 'trigger', 'ON UPDATE trigger of the referenced table should be ' || u.updates || ', is ' || coalesce(
    (SELECT string_agg(t.proname, ', ' ORDER BY t.proname) FROM ${triggers} t WHERE t.tgrelid = fk.confrelid
      AND t.proname ~ '(action|restrict|cascade|null|default)_upd$'),
    'missing')
  WHERE NOT fk.on_partition AND (fk.referenced_kind = 'r' OR current_setting('server_version_num')::int >= 150000)
    AND NOT EXISTS (SELECT FROM ${triggers} t WHERE t.tgrelid = fk.confrelid AND t.proname = u.updates)
  UNION ALL
  SELECT 'trigger', 'the referencing table should have 2 check triggers, has ' || n.have
  FROM (
    SELECT count(*) AS have FROM ${triggers} t WHERE t.tgrelid = fk.conrelid AND t.proname LIKE 'RI\_FKey\_check\_%'
  ) n
  WHERE NOT fk.for_partition_of_referenced
    AND (fk.referencing_kind = 'r' OR current_setting('server_version_num')::int >= 150000) AND n.have <> 2
  UNION ALL
  SELECT 'deferrability', 'the constraint is ' || ${mode("fk.condeferrable", "fk.condeferred")} || ', its trigger ' || t.proname
    || ' is ' || ${mode("t.tgdeferrable", "t.tginitdeferred")}
  FROM ${triggers} t
  WHERE (t.proname LIKE 'RI\_FKey\_check%' OR t.proname LIKE 'RI\_FKey\_noaction%')
    AND (t.tgdeferrable, t.tginitdeferred) <> (fk.condeferrable, fk.condeferred)
  UNION ALL
  SELECT 'partitions', 'the referenced table has ' || n.want || ' partitions, the key is enforced on ' || n.have
  FROM (
    SELECT (SELECT count(*) FROM pg_catalog.pg_inherits i WHERE i.inhparent = fk.confrelid) AS want,
      (SELECT count(*) FROM pg_catalog.pg_constraint q WHERE q.conparentid = fk.oid AND q.conrelid = fk.conrelid) AS have
  ) n
  WHERE fk.referenced_kind = 'p' AND NOT fk.on_partition AND n.want <> n.have
  UNION ALL
  SELECT 'trigger state', 'its trigger ' || t.proname || ' on ' || t.tgrelid::regclass || CASE t.tgenabled
    WHEN 'D' THEN ' is disabled' WHEN 'R' THEN ' fires on replicas only' ELSE ' always fires' END
  FROM ${triggers} t WHERE t.tgenabled <> 'O'
) x
ORDER BY fk.root, x.kind, 3`

function mode(deferrable: string, deferred: string) {
  return `CASE WHEN ${deferred} THEN 'INITIALLY DEFERRED' WHEN ${deferrable} THEN 'DEFERRABLE' ELSE 'NOT DEFERRABLE' END`
}
