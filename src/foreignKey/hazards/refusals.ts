/**
 * Why a key is left alone. Everything here is found before anything is touched, from catalogs only.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Action from "../../catalog/action.js"
import { nameOf, type Key } from "../../catalog/foreignKeys.js"
import type * as Integrity from "../../catalog/integrity.js"
import * as Encoding from "../../catalog/encoding.js"
import * as Names from "../snapshot/names.js"
import * as CompetingIndexes from "./competingIndexes.js"
import { label } from "../../sql/identifiers.js"
import * as Target from "../snapshot/target.js"
import type * as TableKinds from "./tableKinds.js"

/** A reason not to change a key. */
export interface Refusal {
  /** A stable word for programs. */
  readonly code:
    | "period"
    | "foreign-table"
    | "extension"
    | "row-movement"
    | "privileges"
    | "catalog-disagrees"
    | "trigger-state"
    | "bound-index"
    | "columns"
    | "leftover"
    | "partition-key"
    | "detach-pending"
    | "ledger"
    | "no-record"
    | "language"
    | "unreadable-name"
    | "typed-table"
    | "generated-column"
    | "rehearsal"
    | "firing-order"
  /** What is wrong and what to do, for people. */
  readonly reason: string
}

/** What the current role and server allow. */
export interface Rights {
  readonly superuser: boolean
  readonly role: string
  /** Whether PL/pgSQL is installed: steps prove themselves with it. */
  readonly plpgsql: boolean
}

/** Reads what the current role may do. */
export const rights = (session: Session): Effect.Effect<Rights, DatabaseError> =>
  session
    .query<Rights>(
      `SELECT r.rolsuper AS superuser, r.rolname::text AS role, EXISTS (
        SELECT FROM pg_catalog.pg_language l WHERE l.lanname = 'plpgsql' AND has_language_privilege(l.oid, 'USAGE')
      ) AS plpgsql
      FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`
    )
    .pipe(Effect.map((rows) => rows[0] ?? { superuser: false, role: "unknown", plpgsql: false }))

/** What a decision is made from. */
export interface Evidence {
  readonly key: Key
  readonly target: Target.Target
  /** Keys of the same table that a change of a constraint that is gone left behind. */
  readonly leftovers: ReadonlyArray<Key>
  /**
   * Keys that partitions have of their own and that are as the new one will be, but for their
   * names.
   */
  readonly equals: ReadonlyArray<Key>
  readonly problems: ReadonlyArray<Integrity.Problem>
  readonly rights: Rights
  /** Names of the key and of what belongs to it that are not valid UTF-8. */
  readonly unreadable: ReadonlyArray<string>
  /** Privileges that the role lacks, in words. */
  readonly missing: ReadonlyArray<string>
  /** Why the new key would not act where this one does. */
  readonly misplaced: string | undefined
  readonly version: number
  readonly kind: TableKinds.Kind
  /** Why the ledger cannot be kept. */
  readonly ledgerProblem: string | undefined
  /** The caller knows that no UPDATE moves rows of a partitioned referenced table (13 and 14). */
  readonly allowRowMovement: boolean
}

/**
 * The keys among these that belong to a partition alone and that PostgreSQL would make part of the
 * new key of the partitioned table (tryAttachPartitionForeignKey, tablecmds.c): they would lose
 * their name and comment, and be dropped with it.
 *
 * @param keysOf The keys of a table, by its OID.
 */
export const equalsOf = (
  key: Key,
  target: Target.Target,
  keysOf: (table: number) => ReadonlyArray<Key>
): ReadonlyArray<Key> =>
  key.referencing.partitions
    .flatMap(({ oid }) => keysOf(oid))
    .filter(
      (other) =>
        !Names.isOurs(other.name) &&
        other.referenced.oid === key.referenced.oid &&
        JSON.stringify([other.columns, other.referencedColumns]) ===
          JSON.stringify([key.columns, key.referencedColumns]) &&
        other.onDelete === target.action &&
        other.onUpdate === key.onUpdate &&
        other.match === key.match &&
        other.deferrable === key.deferrable &&
        // Until the swap the new key of a DEFERRABLE one is INITIALLY DEFERRED, afterwards as the
        // original.
        (other.initiallyDeferred === key.deferrable || other.initiallyDeferred === key.initiallyDeferred)
    )

/** Every reason not to change this key; none means that it can be changed. */
export const all = (evidence: Evidence): ReadonlyArray<Refusal> => {
  const { key, missing, problems, rights, target, version } = evidence
  const found: Array<Refusal> = []
  const refuse = (code: Refusal["code"], reason: string) => found.push({ code, reason })
  const ends =
    key.referencing.oid === key.referenced.oid ? [key.referencing] : [key.referencing, key.referenced]
  if (!rights.plpgsql)
    refuse("language", "PL/pgSQL is missing, every step proves itself with it: CREATE EXTENSION plpgsql")
  if (evidence.unreadable.length > 0) refuse("unreadable-name", Encoding.problem(evidence.unreadable))
  if (key.period) {
    refuse("period", "it is a temporal key (PERIOD), for which PostgreSQL supports NO ACTION only")
  }
  for (const table of ends) {
    const name = label(table.schema, table.name)
    if (table.kind === "f") refuse("foreign-table", `${name} is a foreign table`)
    if (table.extension !== null) {
      refuse(
        "extension",
        `${name} belongs to extension ${table.extension}, whose updates rely on its definition`
      )
    }
    for (const partition of table.partitions.filter(({ kind }) => kind === "f")) {
      refuse("foreign-table", `partition ${label(partition.schema, partition.name)} is a foreign table`)
    }
  }
  if (
    version < 150_000 &&
    key.referenced.kind === "p" &&
    !Action.raises(target.action) &&
    !evidence.allowRowMovement
  ) {
    refuse(
      "row-movement",
      `PostgreSQL before 15 carries out ON DELETE when an UPDATE moves a row of ${label(
        key.referenced.schema,
        key.referenced.name
      )} to another partition, also with ON UPDATE CASCADE; allow it if that never happens`
    )
  }
  const { generated, typed } = evidence.kind
  // The change that is taken back by dropping the new key needs neither.
  if (typed !== null && !Target.equals(Target.of(key), target)) {
    const name = label(key.referencing.schema, key.referencing.name)
    refuse(
      "typed-table",
      `${name} is a typed table, of which PostgreSQL renames no constraint, so that the new key could not take its name: ALTER TABLE ${name} NOT OF, change the key, and ALTER TABLE ${name} OF ${typed}`
    )
  }
  if (generated.length > 0 && Action.takesColumns(target.action)) {
    refuse(
      "generated-column",
      `${generated.map((column) => label(column)).join(", ")} is generated, and PostgreSQL allows no ON DELETE ${Action.sql(target.action)} for a key with generated columns: only cascade, restrict and no-action are possible`
    )
  }
  if (missing.length > 0) {
    refuse("privileges", `role ${label(rights.role)} lacks ${missing.join(", ")}`)
  }
  if (evidence.misplaced !== undefined) refuse("firing-order", evidence.misplaced)
  for (const { kind, problem } of problems) {
    if (kind !== "trigger state") {
      refuse("catalog-disagrees", `it does not do what its catalog entry says: ${problem}`)
    } else if (!rights.superuser) {
      refuse(
        "trigger-state",
        `${problem}, and only a superuser can keep that: enable it first, or run as a superuser`
      )
    }
  }
  const bound = CompetingIndexes.obstacle(key)
  if (bound !== undefined) refuse("bound-index", bound)
  if (evidence.ledgerProblem !== undefined) refuse("ledger", evidence.ledgerProblem)
  for (const column of target.columns) {
    if (!key.columns.includes(column)) refuse("columns", `${label(column)} is not one of its columns`)
  }
  if (target.columns.length > 0 && !Action.takesColumns(target.action)) {
    refuse("columns", `ON DELETE ${Action.sql(target.action)} takes no columns`)
  }
  if (target.columns.length > 0 && version < 150_000) {
    refuse("columns", "a list of columns for SET NULL or SET DEFAULT needs PostgreSQL 15 or later")
  }
  for (const other of evidence.equals) {
    refuse(
      "partition-key",
      `${nameOf(other)} is a key of that partition alone, and as the new one will be: PostgreSQL would make it part of that. Drop it, or give it another action, first`
    )
  }
  for (const { detaching, schema, name } of ends) {
    for (const partition of detaching) {
      refuse(
        "detach-pending",
        `DETACH CONCURRENTLY of ${label(partition)} was not finished: ALTER TABLE ${label(schema, name)} DETACH PARTITION ${label(partition)} FINALIZE`
      )
    }
  }
  for (const other of evidence.leftovers) {
    refuse(
      "leftover",
      `${nameOf(other)} is left over from a change of a constraint that is gone: drop it or rename it`
    )
  }
  return found
}
