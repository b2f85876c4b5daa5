import * as Data from "effect/Data"

/**
 * Why the migrator stopped.
 *
 * - `Duplicate`: two migrations have one id.
 * - `OutOfOrder`: a migration never ran and its id is below the latest that did.
 * - `Edited`: an applied migration's file, or its name, is not what was applied.
 * - `Unknown`: the ledger holds a migration that the loader does not have.
 * - `ImportFailed`: a migration could not be loaded.
 * - `Locked`: another migrator is running and did not finish in time, or the lock was lost with its
 *   session.
 * - `Failed`: a migration failed; nothing of it was kept, unless it is an online one, which is run
 *   again to resume, or its COMMIT was not answered.
 * - `Irreversible`: a migration that would have to be undone has no `down`.
 * - `NoSuchMigration`: the id that was asked for does not exist.
 * - `NoMigrations`: the directory has no migration in it.
 * - `Ledger`: the ledger could not be read or written.
 * - `NoScratchDatabase`: what is compared or planned is tried on a temporary database, and the role
 *   may not create one.
 */
export type MigratorReason =
  | "Duplicate"
  | "OutOfOrder"
  | "Edited"
  | "Unknown"
  | "ImportFailed"
  | "Locked"
  | "Failed"
  | "Irreversible"
  | "NoSuchMigration"
  | "NoMigrations"
  | "Ledger"
  | "NoScratchDatabase"

/** The migrator's error. It never reports success for what did not run. */
export class MigratorError extends Data.TaggedError("MigratorError")<{
  readonly reason: MigratorReason
  /** The migration that it is about. */
  readonly id?: number
  readonly name?: string
  /** What happened and what to do. */
  readonly detail: string
  readonly cause?: unknown
}> {
  override get message(): string {
    const subject = this.id === undefined ? "" : ` of migration ${this.id}${this.name ? `_${this.name}` : ""}`
    return `${this.reason}${subject}: ${this.detail}`
  }
}

/** The reasons for which nothing was touched, because the files and the ledger disagree. */
export const isRefusal = ({ reason }: MigratorError): boolean =>
  reason === "Duplicate" ||
  reason === "OutOfOrder" ||
  reason === "Edited" ||
  reason === "Unknown" ||
  reason === "Irreversible" ||
  reason === "NoSuchMigration" ||
  reason === "NoMigrations"
