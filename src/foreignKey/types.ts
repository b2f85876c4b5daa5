/** What the operations on foreign keys take, tell and give. */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Action from "../catalog/action.js"
import type * as Blocker from "../catalog/lockHolders.js"
import type { StepName } from "./steps/steps.js"
import type * as Overlap from "./hazards/overlap.js"
import type * as TableLocks from "../catalog/tableLocks.js"
import type * as Result from "./result.js"
import type * as Selectors from "../catalog/selectors.js"
import type * as Target from "./snapshot/target.js"
import type * as Warning from "./hazards/warning.js"

/** A foreign key, as `fk list` prints it. */
export interface ForeignKeyInfo {
  readonly schema: string
  readonly table: string
  readonly name: string
  readonly columns: ReadonlyArray<string>
  readonly referencedSchema: string
  readonly referencedTable: string
  readonly referencedColumns: ReadonlyArray<string>
  readonly onDelete: Action.Action
  /** The columns that SET NULL or SET DEFAULT is limited to; empty means all. */
  readonly onDeleteColumns: ReadonlyArray<string>
  readonly onUpdate: Action.Action
  readonly match: "simple" | "full" | "partial"
  readonly deferrable: boolean
  readonly initiallyDeferred: boolean
  readonly validated: boolean
  readonly enforced: boolean
  /**
   * An index on the referencing columns, which a delete or key update of a referenced row needs;
   * null if there is none.
   */
  readonly index: string | null
  /** What is wrong with it, or keeps it from acting, in words. */
  readonly problems: ReadonlyArray<string>
}

/** Which keys a run is about. */
export interface Common {
  readonly selectors: Selectors.Selectors
  /**
   * PostgreSQL 13 and 14 carry out ON DELETE when an UPDATE moves a referenced row to another
   * partition, so keys to partitioned tables are refused there, unless this says that no UPDATE
   * does that.
   */
  readonly allowRowMovement?: boolean | undefined
  /**
   * Builds an index on the referencing columns first where none is, CONCURRENTLY; for a partitioned
   * table a partitioned index, which its partitions of later inherit. Default false.
   */
  readonly createIndexes?: boolean | undefined
  /**
   * Runs the steps on empty copies of the tables first, in a transaction that is rolled back, and
   * refuses what the server refuses there. Default true. What an event trigger does outside of the
   * transaction it does for the copies too.
   */
  readonly rehearse?: boolean | undefined
}

/** What to change, and to what. */
export interface PlanOptions extends Common {
  readonly onDelete: Action.Action
  /** Limits SET NULL or SET DEFAULT to these columns (PostgreSQL 15 and later). */
  readonly onDeleteColumns?: ReadonlyArray<string> | undefined
  /**
   * The table in which the changes are recorded for {@link undo}; it is created with the first one.
   * Default: `promptgrimoire_db_foreign_key_changes` in the schema that CREATE TABLE would use.
   * False: nothing is recorded.
   */
  readonly ledger?: Selectors.TableSelector | false | undefined
  /**
   * How long a plan may take to count rows without a referenced row, for each key. Default 5
   * seconds.
   */
  readonly orphanTimeout?: Duration.DurationInput | undefined
}

/** How hard to try. */
export interface Effort {
  /**
   * The longest that others wait because of one try of a step that stops them: for its locks and
   * its work together, COMMIT aside. Of this, up to 0.8 is for the locks, and never more than 0.6
   * of the server's deadlock_timeout. Default 250 ms.
   */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /**
   * How long to go on trying to get locks, for each key; validation does not count. Default 10
   * minutes.
   */
  readonly budget?: Duration.DurationInput | undefined
  /**
   * Tries to swap with both tables locked, before the steps that lock one table each. Default 60.
   */
  readonly swapTries?: number | undefined
  /**
   * How long to wait, for a DEFERRABLE INITIALLY IMMEDIATE key, until the transactions have ended
   * that may have deferred the original by name. Its checks run at commit until then. Default 1
   * minute.
   */
  readonly settlePatience?: Duration.DurationInput | undefined
  /**
   * How long to wait for another process that changes keys of this database. Default 10 seconds.
   */
  readonly patience?: Duration.DurationInput | undefined
  /**
   * How often, for each key, to go on by itself after the connection was lost: the server
   * restarted, the network failed. Trying to connect counts against the budget. A session that was
   * ended with pg_terminate_backend ends the run. Default 5; 0 means never.
   */
  readonly reconnects?: number | undefined
  /**
   * How often to tell that a step still works which takes long, with `Working`. Default 10 seconds.
   */
  readonly reportEvery?: Duration.DurationInput | undefined
  readonly onProgress?: ((event: Progress) => Effect.Effect<void>) | undefined
}

/** How to change it. */
export interface RebuildOptions extends PlanOptions, Effort {}

/** What to undo, and how. */
export interface UndoOptions extends Common, Effort {
  /** The changes to undo, by their numbers in the ledger. Default: the last one of each key. */
  readonly changes?: ReadonlyArray<number> | undefined
  /** The table in which the changes are recorded. Default as in {@link PlanOptions}. */
  readonly ledger?: Selectors.TableSelector | undefined
}

/** Which changes of the ledger. */
export interface HistoryOptions {
  readonly selectors?: Selectors.Selectors | undefined
  /** The table in which the changes are recorded. Default as in {@link PlanOptions}. */
  readonly ledger?: Selectors.TableSelector | undefined
}

/**
 * A key that does not do what its definition says, or never acts because its definition says so.
 */
export interface CheckedKey {
  /** schema.table.name */
  readonly constraint: string
  /** How it differs from its definition; empty if it does not. */
  readonly problems: ReadonlyArray<string>
  /** What its definition keeps it from doing: NOT ENFORCED (18 and later). */
  readonly notes: ReadonlyArray<string>
}

/** One step of a plan: a transaction of its own, or statements that cannot be in one. */
export interface PlannedStep {
  /** schema.table.name */
  readonly constraint: string
  readonly step: StepName
  /**
   * `always`; `contended`: taken instead of `swap` only, when its locks cannot be had together; `if
   * out of order`: taken instead of the step before only, when the new key's triggers would fire
   * before the original's.
   */
  readonly when: "always" | "contended" | "if out of order"
  /**
   * The transaction of one try, statement by statement, its limits among them; without BEGIN and
   * COMMIT what cannot be in one.
   */
  readonly sql: ReadonlyArray<string>
  /**
   * The strongest lock on each table, in the order in which they are taken; ACCESS SHARE is left
   * out.
   */
  readonly locks: ReadonlyArray<{
    readonly relation: string
    readonly mode: TableLocks.Mode
    /** True where a statement takes it by itself, because the role may not LOCK that table. */
    readonly implicit?: true
  }>
  /** A sentence: what other sessions cannot do while the locks are held, and for how long. */
  readonly blocks: string
}

/** What {@link plan} found. */
export interface PlanResult {
  /** What the plan was made from; when it is run, the keys must still be so. */
  readonly madeFrom: {
    /** PostgreSQL's version, as `server_version` has it. */
    readonly version: string
    readonly database: string
    /** When the catalogs were read (ISO 8601, by the server's clock). */
    readonly at: string
  }
  readonly steps: ReadonlyArray<PlannedStep>
  readonly unchanged: ReadonlyArray<string>
  readonly refused: ReadonlyArray<Result.Rejected>
  readonly warnings: ReadonlyArray<Warning.Warned>
}

/**
 * How long a step has been at work, and how far it is where the server says so (chapter "Progress
 * Reporting"; VALIDATE has no such view).
 */
export interface Working {
  readonly elapsedMs: number
  /**
   * What it does now, in PostgreSQL's words: `building index: scanning table`. Null where the
   * server does not say.
   */
  readonly phase: string | null
  /** How much of that phase is done, from 0 to 1. */
  readonly share: number | null
}

/** What happens during {@link rebuild}. Times in milliseconds. */
export type Progress =
  | {
      readonly _tag: "Started"
      readonly constraint: string
      readonly from: Target.Target
      readonly to: Target.Target
    }
  /** The change is written down, in this table. */
  | { readonly _tag: "Recorded"; readonly constraint: string; readonly ledger: string }
  | { readonly _tag: "StepStarted"; readonly constraint: string; readonly step: StepName }
  | {
      readonly _tag: "StepDone"
      readonly constraint: string
      readonly step: StepName
      readonly durationMs: number
    }
  /** The step goes on, and takes long: `validate`, or the build of an index. */
  | ({ readonly _tag: "Working"; readonly constraint: string; readonly step: StepName } & Working)
  /**
   * The step is not done yet. It has no locks, `blockers` hold them; or, if `slow` is not 0, so
   * many tries had them and needed longer than `lockTimeoutMs`, and so were rolled back.
   */
  | {
      readonly _tag: "Waiting"
      readonly constraint: string
      readonly step: StepName
      readonly tries: number
      readonly slow: number
      readonly lockTimeoutMs: number
      readonly elapsedMs: number
      readonly blockers: ReadonlyArray<Blocker.Blocker>
    }
  /**
   * The connection was lost, for the n-th time, for this reason; the change goes on when it is
   * back.
   */
  | {
      readonly _tag: "Reconnecting"
      readonly constraint: string
      readonly losses: number
      readonly code: string
    }
  | { readonly _tag: "IndexBuilt"; readonly constraint: string; readonly index: string }
  /**
   * Both constraints are there; deletes follow this action until that step is done, but for the
   * exceptions, which are sentences. It is the original's action, unless that is INITIALLY
   * DEFERRED, or an interrupted change left something else, which step `order` puts right.
   */
  | ({ readonly _tag: "Overlap"; readonly constraint: string } & Overlap.Overlap)
  | {
      readonly _tag: "Finished"
      readonly constraint: string
      readonly outcome: "rebuilt" | "unchanged" | "refused" | "failed"
      readonly durationMs: number
      /**
       * The part of the run's result that is about this key. What a run that is interrupted has
       * done is what it has told so.
       */
      readonly result: Result.RebuildResult
    }
