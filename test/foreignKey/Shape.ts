/** Foreign keys in every shape that PostgreSQL allows, generated; and the SQL that creates them. */
import * as FastCheck from "effect/FastCheck"
import { type Action, actions } from "../../src/ForeignKey.js"
import { identifier, identifiers, literal, qualified } from "../../src/sql/identifiers.js"

export interface Shape {
  readonly name: string
  readonly referencing: string
  readonly referenced: string
  /** Names of referencing and referenced columns, pairwise, in the key's order. */
  readonly columns: ReadonlyArray<readonly [string, string]>
  /** The order of the columns in the parent's own key. */
  readonly reversedKey: boolean
  readonly selfReference: boolean
  readonly schemas: readonly [string, string]
  readonly onDelete: Action
  readonly onUpdate: Action
  /**
   * How many of the columns ON DELETE SET NULL or SET DEFAULT names (15 and later); 0 means no
   * list.
   */
  readonly someColumns: number
  readonly matchFull: boolean
  readonly mode: "not deferrable" | "initially immediate" | "initially deferred"
  readonly state: "valid" | "not valid" | "not enforced"
  readonly comment: string | null
  /** The unique index that the key is bound to, and another one of the same columns, if any. */
  readonly parentKey:
    | "primary"
    | "unique"
    | "primary, then unique"
    | "unique, then primary"
    | "unique, then unique"
  /** Whether the index that the key is bound to has a higher OID than the other one. */
  readonly reindexed: boolean
  readonly triggers: "origin" | "disabled" | "always" | "replica"
  readonly inheritance: boolean
  readonly generatedName: boolean
  /**
   * How the referencing table is cut; `leaf only` means that one partition has the key, the others
   * do not.
   */
  readonly referencingParts: "none" | "partitioned" | "two levels" | "leaf only"
  readonly referencedParts: "none" | "partitioned" | "two levels"
  /**
   * Whether the key is on tables of its own, or is another one of those of the shape before, also
   * on the same columns, or points back.
   */
  readonly relation: "own tables" | "same tables" | "same columns" | "back"
}

/** An ordinary key between two ordinary tables, with something of what a change has to keep. */
export const plain: Shape = {
  name: "key",
  referencing: "child",
  referenced: "parent",
  columns: [["parent_id", "id"]],
  reversedKey: false,
  selfReference: false,
  schemas: ["public", "public"],
  onDelete: "no-action",
  onUpdate: "cascade",
  someColumns: 0,
  matchFull: false,
  mode: "initially immediate",
  state: "valid",
  comment: "kept",
  parentKey: "primary",
  reindexed: false,
  triggers: "origin",
  inheritance: false,
  generatedName: false,
  referencingParts: "none",
  referencedParts: "none",
  relation: "own tables"
}

/**
 * What makes a change take other steps or other locks: the kinds of tables, as differences from
 * {@link plain}.
 */
export const kinds: ReadonlyArray<readonly [string, Partial<Shape>]> = [
  ["ordinary tables", {}],
  ["a self-reference", { selfReference: true }],
  ["a table that others inherit from", { inheritance: true }],
  ["a partitioned referencing table", { referencingParts: "two levels" }],
  ["a partitioned referenced table", { referencedParts: "two levels" }],
  ["two partitioned tables", { referencingParts: "partitioned", referencedParts: "partitioned" }]
]

const awkward = FastCheck.constantFrom(
  "plain",
  "Capital",
  "select",
  "user",
  "two words",
  'quo"te',
  "apo'strophe",
  "back\\slash",
  "dollar$$tag",
  "semi;colon",
  "-- comment",
  "ünïcödé",
  "名前",
  "🗝️",
  "%I",
  "a.b",
  "e\u0301",
  " lead",
  "x".repeat(63),
  "ж".repeat(31),
  "ON DELETE CASCADE"
)

/** PostgreSQL has no NUL in texts. */
const text = FastCheck.string({ unit: "grapheme", minLength: 1, maxLength: 15 }).map((text) =>
  text.replaceAll("\0", "_")
)

/** At most 63 bytes, as the server keeps them, and not the same for two indexes. */
const unique = (name: string, index: number, part = "") => {
  const suffix = `${part === "" ? "" : `_${part}`}_${index}`
  let kept = name
  while (Buffer.byteLength(kept) > 63 - suffix.length) kept = Array.from(kept).slice(0, -1).join("")
  return kept + suffix
}

/**
 * The values of the fields that have some few, the frequent ones more than once; those that a
 * server of this version accepts.
 */
export const choices = (version: number) =>
  ({
    reversedKey: [false, true],
    selfReference: [false, true],
    schemas: [
      ["public", "public"],
      ["public", 'Other "schema"'],
      ['Other "schema"', "public"]
    ],
    onDelete: actions,
    onUpdate: actions,
    someColumns: version >= 150_000 ? [0, 1, 2] : [0],
    matchFull: [false, true],
    mode: ["not deferrable", "initially immediate", "initially deferred"],
    state: ["valid", "valid", "not valid", version >= 180_000 ? "not enforced" : "valid"],
    parentKey: ["primary", "unique", "primary, then unique", "unique, then primary", "unique, then unique"],
    reindexed: [false, true],
    triggers: ["origin", "origin", "origin", "disabled", "always", "replica"],
    inheritance: [false, true],
    generatedName: [false, true],
    referencingParts: ["none", "none", "partitioned", "two levels", "leaf only"],
    referencedParts: ["none", "none", "partitioned", "two levels"],
    relation: ["own tables", "own tables", "own tables", "same tables", "same columns", "back"]
  }) satisfies { readonly [Field in keyof Shape]?: ReadonlyArray<Shape[Field]> }

/** Shapes that a server of this version accepts. */
export const arbitrary = (version: number): FastCheck.Arbitrary<Shape> => {
  const of = choices(version)
  return FastCheck.record<Shape>({
    name: FastCheck.oneof(awkward, text),
    referencing: awkward,
    referenced: awkward,
    columns: FastCheck.array(FastCheck.tuple(awkward, awkward), { minLength: 1, maxLength: 3 }),
    comment: FastCheck.option(
      FastCheck.oneof(awkward, FastCheck.string({ unit: "grapheme", minLength: 1 })),
      { nil: null }
    ),
    reversedKey: FastCheck.constantFrom(...of.reversedKey),
    selfReference: FastCheck.constantFrom(...of.selfReference),
    schemas: FastCheck.constantFrom(...of.schemas),
    onDelete: FastCheck.constantFrom(...of.onDelete),
    onUpdate: FastCheck.constantFrom(...of.onUpdate),
    someColumns: FastCheck.constantFrom(...of.someColumns),
    matchFull: FastCheck.constantFrom(...of.matchFull),
    mode: FastCheck.constantFrom(...of.mode),
    state: FastCheck.constantFrom(...of.state),
    parentKey: FastCheck.constantFrom(...of.parentKey),
    reindexed: FastCheck.constantFrom(...of.reindexed),
    triggers: FastCheck.constantFrom(...of.triggers),
    inheritance: FastCheck.constantFrom(...of.inheritance),
    generatedName: FastCheck.constantFrom(...of.generatedName),
    referencingParts: FastCheck.constantFrom(...of.referencingParts),
    referencedParts: FastCheck.constantFrom(...of.referencedParts),
    relation: FastCheck.constantFrom(...of.relation)
  }).filter(
    (shape) =>
      !(isCut(shape) && shape.inheritance) &&
      !(isCut(shape) && shape.state === "not valid" && version < 180_000) &&
      !(shape.selfReference && shape.referencingParts !== "none")
  )
}

/** Whether the table that has the key is partitioned. */
const isCut = (shape: Shape) =>
  shape.selfReference ? shape.referencedParts !== "none" : shape.referencingParts !== "none"

/** The shape with names that are valid and its own. */
export const numbered = (shape: Shape, index: number): Shape => ({
  ...shape,
  name: unique(shape.name, index),
  referencing: unique(shape.referencing, index),
  referenced: unique(`p${shape.referenced}`, index),
  columns: shape.columns.map(([child, parent], position) => [
    unique(`c${child}`, position),
    unique(`p${parent}`, position)
  ])
})

/**
 * The shapes with names that are valid and their own, on the tables of the last before them that
 * has tables of its own.
 */
export const together = (shapes: ReadonlyArray<Shape>, version: number): ReadonlyArray<Shape> => {
  let owner: Shape | undefined
  return shapes.map((shape, index) => {
    const own = numbered(shape, index)
    if (owner === undefined || own.relation === "own tables") {
      owner = { ...own, relation: "own tables" }
      return owner
    }
    return onTablesOf(owner, own, index, version)
  })
}

/**
 * A partitioned table cannot have keys that are not valid (up to 17), nor an enforced and a not
 * enforced one on the same columns (18).
 */
const onTablesOf = (owner: Shape, own: Shape, index: number, version: number): Shape => {
  const { columns, parentKey, referenced, referencedParts, referencing, referencingParts, selfReference } =
    owner
  const back = own.relation === "back" && !selfReference
  const added = (position: number) => unique(`c${own.columns[position]?.[0] ?? ""}`, position, String(index))
  const shared: Shape = {
    ...own,
    relation: own.relation === "back" && !back ? "same tables" : own.relation,
    referencing,
    referenced,
    schemas: owner.schemas,
    selfReference,
    referencingParts,
    referencedParts,
    parentKey,
    reindexed: false,
    inheritance: false,
    columns:
      own.relation === "same columns"
        ? columns
        : columns.map(([child, parent], position) => [added(position), back ? child : parent])
  }
  const placed: Shape = back
    ? {
        ...shared,
        referencing: referenced,
        referenced: referencing,
        schemas: [owner.schemas[1], owner.schemas[0]],
        referencingParts: referencedParts,
        referencedParts: referencingParts === "leaf only" ? "partitioned" : referencingParts
      }
    : shared
  const notEnforced = owner.state === "not enforced"
  if (!isCut(placed)) return placed
  if (placed.relation === "same columns" && (placed.state === "not enforced") !== notEnforced) {
    return { ...placed, state: notEnforced ? "not enforced" : "valid" }
  }
  return placed.state === "not valid" && version < 180_000 ? { ...placed, state: "valid" } : placed
}

/**
 * Keys between two tables: a second one, one more on the columns of the first, and one back, which
 * makes a circle.
 */
export const circle: ReadonlyArray<Shape> = together(
  (["own tables", "same tables", "same columns", "back"] as const).map((relation) => ({
    ...plain,
    relation
  })),
  0
)

/** Where the key is. */
export const key = (shape: Shape) => ({
  schema: shape.selfReference ? shape.schemas[1] : shape.schemas[0],
  table: shape.selfReference
    ? shape.referenced
    : shape.referencingParts === "leaf only"
      ? partName(shape.referencing, "low")
      : shape.referencing,
  name: shape.name
})

const partName = (table: string, part: string) => unique(table, Number(/\d+$/.exec(table)?.[0] ?? 0), part)

/**
 * Partitions by the first column: below 10, the rest, which is cut again for two levels, and a
 * default one.
 */
const parts = (
  cut: Shape["referencingParts"],
  schema: string,
  table: string,
  column: string
): ReadonlyArray<string> => {
  const part = (name: string, of: string, bounds: string, cutAgain = "") =>
    `CREATE TABLE ${qualified({ schema, name: partName(table, name) })} PARTITION OF ${qualified({ schema, name: of })} ${bounds} ${cutAgain}`
  return cut === "none"
    ? []
    : [
        part("low", table, "FOR VALUES FROM (MINVALUE) TO (10)"),
        ...(cut === "two levels"
          ? [
              part(
                "high",
                table,
                "FOR VALUES FROM (10) TO (100)",
                `PARTITION BY RANGE (${identifier(column)})`
              ),
              part("highest", partName(table, "high"), "FOR VALUES FROM (50) TO (100)"),
              part("rest", partName(table, "high"), "DEFAULT")
            ]
          : [part("high", table, "FOR VALUES FROM (10) TO (100)")]),
        part("other", table, "DEFAULT")
      ]
}

/** The statements that create the tables and the key. */
export const create = (shape: Shape): ReadonlyArray<string> => {
  const parent = qualified({ schema: shape.schemas[1], name: shape.referenced })
  const { name, schema, table } = key(shape)
  const child = qualified({ schema, name: table })
  const whole = qualified({ schema, name: shape.referencing })
  const parentColumns = shape.columns.map(([, column]) => column)
  const childColumns = shape.columns.map(([column]) => column)
  const keyColumns = identifiers(shape.reversedKey ? parentColumns.toReversed() : parentColumns)
  const declare = (columns: ReadonlyArray<string>) =>
    columns.map((column) => `${identifier(column)} int DEFAULT 1`).join(", ")
  const number = Number(/\d+$/.exec(shape.referenced)?.[0] ?? 0)
  const keys = shape.parentKey
    .split(", then ")
    .map(
      (kind, at) =>
        `ALTER TABLE ${parent} ADD CONSTRAINT ${identifier(unique("Parent's key", number, String(at)))} ${
          kind === "primary" ? "PRIMARY KEY" : "UNIQUE"
        } (${keyColumns})`
    )
  const reindexed =
    shape.reindexed && keys.length > 1 && shape.referencedParts === "none"
      ? [
          `REINDEX INDEX CONCURRENTLY ${qualified({ schema: shape.schemas[1], name: unique("Parent's key", number, "0") })}`
        ]
      : []
  const limited =
    shape.someColumns > 0 && (shape.onDelete === "set-null" || shape.onDelete === "set-default")
      ? ` (${identifiers(childColumns.slice(0, shape.someColumns))})`
      : ""
  const sql = (action: Action) => action.replace("-", " ").toUpperCase()
  const target = `ALTER TABLE ${child}`
  const tables = [
    'CREATE SCHEMA IF NOT EXISTS "Other ""schema"""',
    `CREATE TABLE ${parent} (${declare(shape.selfReference ? [...parentColumns, ...childColumns] : parentColumns)})${cut(
      shape.referencedParts,
      parentColumns
    )}`,
    ...parts(shape.referencedParts, shape.schemas[1], shape.referenced, parentColumns[0] ?? ""),
    ...keys,
    ...(shape.selfReference
      ? []
      : [
          `CREATE TABLE ${whole} (${declare(childColumns)})${cut(shape.referencingParts, childColumns)}`,
          ...parts(shape.referencingParts, schema, shape.referencing, childColumns[0] ?? "")
        ]),
    `INSERT INTO ${parent} (${identifiers(parentColumns)}) VALUES (${parentColumns.map(() => "1").join(", ")})`,
    ...(shape.selfReference ? [] : [`INSERT INTO ${whole} DEFAULT VALUES`])
  ]
  /** The column list of a partition cannot be changed by itself. */
  const extended = shape.selfReference ? parent : whole
  const additions =
    shape.relation === "same columns"
      ? []
      : [
          ...childColumns.map(
            (column) => `ALTER TABLE ${extended} ADD COLUMN ${identifier(column)} int DEFAULT 1`
          ),
          ...(shape.relation === "back"
            ? [
                `ALTER TABLE ${parent} ADD CONSTRAINT ${identifier(unique("Back", Number(/\d+$/.exec(name)?.[0] ?? 0)))} UNIQUE (${identifiers(parentColumns)})`
              ]
            : [])
        ]
  return [
    ...(shape.relation === "own tables" ? tables : additions),
    `${target} ADD ${shape.generatedName ? "" : `CONSTRAINT ${identifier(name)} `}FOREIGN KEY (${identifiers(
      childColumns
    )}) REFERENCES ${parent} (${identifiers(parentColumns)})${shape.matchFull ? " MATCH FULL" : ""} ON UPDATE ${sql(
      shape.onUpdate
    )} ON DELETE ${sql(shape.onDelete)}${limited}${
      shape.mode === "not deferrable" ? "" : ` DEFERRABLE ${shape.mode.toUpperCase()}`
    }${shape.state === "valid" ? "" : ` ${shape.state.toUpperCase()}`}`,
    ...(shape.generatedName
      ? [
          `DO ${literal(`DECLARE generated text := (
            SELECT conname FROM pg_constraint
            WHERE conrelid = ${literal(child)}::regclass AND contype = 'f' AND conparentid = 0
            ORDER BY oid DESC LIMIT 1
          );
          BEGIN EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', ${literal(child)}, generated, ${literal(name)}); END`)}`
        ]
      : []),
    ...reindexed,
    ...(shape.comment === null
      ? []
      : [`COMMENT ON CONSTRAINT ${identifier(name)} ON ${child} IS ${literal(shape.comment)}`]),
    ...(shape.triggers === "origin" ? [] : [triggerStates(shape, child)]),
    ...(shape.inheritance
      ? [
          `CREATE TABLE ${qualified({ schema, name: unique("heir", Number(/\d+$/.exec(table)?.[0] ?? 0)) })} () INHERITS (${child})`
        ]
      : [])
  ]
}

const cut = (parts: Shape["referencingParts"], columns: ReadonlyArray<string>) =>
  parts === "none" ? "" : ` PARTITION BY RANGE (${identifiers(columns.slice(0, 1))})`

const triggerStates = (shape: Shape, child: string) => {
  const clause =
    shape.triggers === "disabled"
      ? "DISABLE"
      : shape.triggers === "always"
        ? "ENABLE ALWAYS"
        : "ENABLE REPLICA"
  return `DO ${literal(`DECLARE r record;
    BEGIN
      FOR r IN SELECT tgrelid::regclass AS relation, tgname FROM pg_trigger
        WHERE tgconstraint IN (
          SELECT k.oid FROM pg_constraint k JOIN pg_partition_tree(${literal(child)}::regclass) q ON q.relid = k.conrelid
          WHERE k.contype = 'f'
        )
      LOOP
        EXECUTE format('ALTER TABLE ONLY %s ${clause} TRIGGER %I', r.relation, r.tgname);
      END LOOP;
    END`)}`
}
