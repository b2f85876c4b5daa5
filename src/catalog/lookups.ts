/**
 * Parts of queries that follow a key through the catalogs by index, row by row. OFFSET 0 keeps the
 * planner from reading a catalog once for all rows instead: after many ALTER TABLEs nothing is
 * known of the catalogs, and it expects more rows of a recursive query than a key has. Without
 * that, what one key costs would depend on how many others there are.
 */

/**
 * The constraints under one, as a LATERAL subquery. Where no key belongs to a partitioned table,
 * `conparentid` has one value, 0, and an equality is thought to find every row; the comparison with
 * 0 says that it does not.
 */
export const childrenOf = (oid: string): string =>
  `(SELECT * FROM pg_catalog.pg_constraint c WHERE c.conparentid = ${oid} AND c.conparentid > 0::oid OFFSET 0)`

/** The triggers of one constraint and the names of their functions, as a LATERAL subquery. */
export const triggersOf = (oid: string): string =>
  `(SELECT c.*, (SELECT p.proname FROM pg_catalog.pg_proc p WHERE p.oid = c.tgfoid) AS proname
    FROM pg_catalog.pg_trigger c WHERE c.tgconstraint = ${oid} AND c.tgconstraint > 0::oid OFFSET 0)`
