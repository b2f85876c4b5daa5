/** Random databases whose tables refer to each other in every way that a delete can follow. */
import * as FastCheck from "effect/FastCheck"

/** A database as statements; the row to delete is `s0.t0` with `a = 0 AND b = 0`. */
export interface Generated {
  readonly tables: number
  readonly keys: ReadonlyArray<{
    readonly from: number
    readonly to: number
    readonly action: string
    readonly composite: boolean
    readonly deferred: boolean
    readonly matchFull: boolean
    /**
     * Whether SET NULL and SET DEFAULT set the first column of a composite key only (15 and later).
     */
    readonly oneColumn: boolean
    /** Whether its triggers are switched off, so that rows stay that refer to what is gone. */
    readonly disabled: boolean
  }>
  readonly partitioned: ReadonlyArray<boolean>
  readonly rows: number
  readonly seed: number
}

/**
 * Graphs of two to five tables and up to seven keys, circles and self-references among them, that a
 * server of this version accepts.
 */
export const arbitrary = (version: number): FastCheck.Arbitrary<Generated> =>
  FastCheck.integer({ min: 2, max: 5 }).chain((tables) =>
    FastCheck.record({
      tables: FastCheck.constant(tables),
      keys: FastCheck.array(
        FastCheck.record({
          from: FastCheck.nat(tables - 1),
          to: FastCheck.nat(tables - 1),
          action: FastCheck.constantFrom(
            "CASCADE",
            "CASCADE",
            "CASCADE",
            "CASCADE",
            "SET NULL",
            "SET NULL",
            "SET DEFAULT",
            "NO ACTION",
            "RESTRICT"
          ),
          composite: FastCheck.boolean(),
          deferred: FastCheck.boolean(),
          matchFull: FastCheck.boolean(),
          oneColumn: version >= 150_000 ? FastCheck.boolean() : FastCheck.constant(false),
          disabled: rarely
        }),
        { minLength: 1, maxLength: 7 }
      ),
      partitioned: FastCheck.array(FastCheck.boolean(), { minLength: tables, maxLength: tables }),
      rows: FastCheck.integer({ min: 4, max: 60 }),
      seed: FastCheck.nat(1_000_000)
    })
  )

const rarely = FastCheck.nat(9).map((chance) => chance === 0)

/** A table's name: every other one is in a schema of its own, with a name that needs quotes. */
export const table = (index: number) => `s${index % 2}."T ${index}"`

/**
 * The statements. Rows have the key (a, b) with b = a % 3 and a unique `u` of their own;
 * partitioned tables are partitioned by b. Some references are null, most are to rows that come
 * before, so that many rows can be reached and some cannot. The last row of a table refers to
 * nothing, and is what references become by default.
 */
export const create = (graph: Generated): ReadonlyArray<string> => {
  const random = generator(graph.seed)
  const isPartitioned = (index: number) => graph.partitioned[index] === true && random.partitions
  const indices = Array.from({ length: graph.tables }, (_, index) => index)
  // A unique key of one column is not possible on a table that is partitioned by another.
  const isComposite = (key: Generated["keys"][number]) => key.composite || isPartitioned(key.to)
  const spare = (key: Generated["keys"][number]) =>
    isComposite(key) ? [graph.rows, graph.rows % 3] : [graph.rows + 1000, "NULL"]
  return [
    "CREATE SCHEMA s0; CREATE SCHEMA s1",
    ...indices.flatMap((index) => [
      `CREATE TABLE ${table(index)} (a int NOT NULL, b int NOT NULL, ${
        isPartitioned(index) ? "PRIMARY KEY (a, b)" : "u int NOT NULL UNIQUE, PRIMARY KEY (b, a)"
      }${graph.keys
        .flatMap((key, at) => {
          const [x, y] = spare(key)
          return key.from === index ? [`, x${at} int DEFAULT ${x}, y${at} int DEFAULT ${y}`] : []
        })
        .join("")})${isPartitioned(index) ? " PARTITION BY LIST (b)" : ""}`,
      ...(isPartitioned(index)
        ? [0, 1, 2].map(
            (b) => `CREATE TABLE s1.part_${index}_${b} PARTITION OF ${table(index)} FOR VALUES IN (${b})`
          )
        : [])
    ]),
    ...indices.map((index) => {
      const own = graph.keys.flatMap((key, at) => (key.from === index ? [{ key, at }] : []))
      const rows = Array.from({ length: graph.rows + 1 }, (_, a) => {
        const references = own.map(({ key }) => {
          if (a === graph.rows || random.next() < 0.15) return "NULL, NULL"
          // Mostly trees below row 0, with some circles.
          const near = Math.floor(random.next() * (random.next() < 0.9 ? a : graph.rows))
          return isComposite(key) ? `${near}, ${near % 3}` : `${near + 1000}, NULL`
        })
        return `(${[a, a % 3, ...(isPartitioned(index) ? [] : [a + 1000]), ...references].join(", ")})`
      })
      return `INSERT INTO ${table(index)} VALUES ${rows.join(", ")}`
    }),
    ...graph.keys.flatMap((key, at) => [
      `ALTER TABLE ${table(key.from)} ADD CONSTRAINT key_${at} FOREIGN KEY (${
        isComposite(key) ? `y${at}, x${at}` : `x${at}`
      }) REFERENCES ${table(key.to)} (${isComposite(key) ? "b, a" : "u"})${key.matchFull ? " MATCH FULL" : ""} ON DELETE ${key.action}${
        key.oneColumn && isComposite(key) && key.action.startsWith("SET") ? ` (x${at})` : ""
      }${key.deferred ? " DEFERRABLE INITIALLY DEFERRED" : ""}`,
      `CREATE INDEX ON ${table(key.from)} (x${at}, y${at})`,
      ...(key.disabled ? [disable(`key_${at}`)] : [])
    ])
  ]
}

/** Switches off the triggers of a key, those on partitions too. */
export const disable = (key: string) => `DO $$
  DECLARE r record;
  BEGIN
    FOR r IN
      WITH RECURSIVE tree AS (
        SELECT oid FROM pg_constraint WHERE conname = '${key}' AND contype = 'f' AND conparentid = 0
        UNION SELECT k.oid FROM pg_constraint k JOIN tree t ON k.conparentid = t.oid
      )
      SELECT g.tgrelid::regclass AS relation, g.tgname FROM pg_trigger g JOIN tree t ON g.tgconstraint = t.oid
    LOOP EXECUTE format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', r.relation, r.tgname); END LOOP;
  END $$`

/** All rows of all tables, as one text. */
export const contents = (graph: Generated) =>
  `SELECT ${Array.from(
    { length: graph.tables },
    (_, index) =>
      `(SELECT coalesce(string_agg(t::text, ' ' ORDER BY a), '') FROM ${table(index)} t) AS t${index}`
  ).join(", ")}`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/**
 * A generator of its own, so that a graph that fast-check shrinks has the same rows each time
 * (mulberry32).
 */
const generator = (seed: number) => {
  let state = seed
  return {
    partitions: seed % 3 === 0,
    next: () => {
      state = (state + 0x6d2b79f5) | 0
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
    }
  }
}
