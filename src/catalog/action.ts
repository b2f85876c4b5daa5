/** What a foreign key does to the referencing rows, and how PostgreSQL writes it down. */

/** What happens to the referencing rows when a referenced row is deleted (or its key updated). */
export type Action = "no-action" | "restrict" | "cascade" | "set-null" | "set-default"

interface Entry {
  readonly action: Action
  /** `pg_constraint.confdeltype` and `confupdtype`. */
  readonly code: string
  readonly sql: string
  /** The function of the referenced table's DELETE trigger. */
  readonly deleteFunction: string
}

const entries: ReadonlyArray<Entry> = [
  { action: "no-action", code: "a", sql: "NO ACTION", deleteFunction: "RI_FKey_noaction_del" },
  { action: "restrict", code: "r", sql: "RESTRICT", deleteFunction: "RI_FKey_restrict_del" },
  { action: "cascade", code: "c", sql: "CASCADE", deleteFunction: "RI_FKey_cascade_del" },
  { action: "set-null", code: "n", sql: "SET NULL", deleteFunction: "RI_FKey_setnull_del" },
  { action: "set-default", code: "d", sql: "SET DEFAULT", deleteFunction: "RI_FKey_setdefault_del" }
]

const find = (matches: (entry: Entry) => boolean): Entry => {
  const entry = entries.find(matches)
  if (entry === undefined) throw new Error("PostgreSQL reported a foreign key action that does not exist")
  return entry
}

const of = (action: Action) => find((entry) => entry.action === action)

/** Every action, in the order of PostgreSQL's documentation. */
export const all: ReadonlyArray<Action> = entries.map((entry) => entry.action)

/** The action that a code of `pg_constraint` stands for. */
export const fromCode = (code: string): Action => find((entry) => entry.code === code).action

/** The code of an action in `pg_constraint`. */
export const code = (action: Action): string => of(action).code

/** An action as SQL spells it. */
export const sql = (action: Action): string => of(action).sql

/** The name of the trigger function that carries out an ON DELETE action. */
export const deleteFunction = (action: Action): string => of(action).deleteFunction

/** Whether an action answers a DELETE that would leave referencing rows with an error. */
export const raises = (action: Action): boolean => action === "no-action" || action === "restrict"

/**
 * Whether an action can be limited to some of the referencing columns (PostgreSQL 15 and later).
 */
export const takesColumns = (action: Action): boolean => action === "set-null" || action === "set-default"
