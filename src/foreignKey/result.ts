/** What became of the keys of a run. */
import type * as Target from "./snapshot/target.js"
import type { Warned } from "./hazards/warning.js"

/** A key that was refused or has failed, and why. */
export interface Rejected {
  /** schema.table.name */
  readonly constraint: string
  readonly code: string
  readonly reason: string
}

/** What a run did, or what it has done so far. */
export interface RebuildResult {
  readonly rebuilt: ReadonlyArray<{
    readonly constraint: string
    readonly durationMs: number
    /** The longest time for which other sessions may have had to wait for this change. */
    readonly longestLockMs: number
    /** The action that it had before, to go back to. */
    readonly previous: Target.Target
  }>
  /** Keys that had the action already; for an undo, those of which there is nothing to undo. */
  readonly unchanged: ReadonlyArray<string>
  readonly refused: ReadonlyArray<Rejected>
  /** Keys that could not be changed; the reason says what remains. Run it again to resume. */
  readonly failed: ReadonlyArray<Rejected>
  /** What is to be known about keys that were rebuilt or are unchanged. */
  readonly warnings: ReadonlyArray<Warned>
}

/** Nothing was done. */
export const empty: RebuildResult = { rebuilt: [], unchanged: [], refused: [], failed: [], warnings: [] }

/**
 * Several results as one, in their order: those of the `Finished` events of a run are what it has
 * done.
 */
export const combine = (results: ReadonlyArray<RebuildResult>): RebuildResult => ({
  rebuilt: results.flatMap(({ rebuilt }) => rebuilt),
  unchanged: results.flatMap(({ unchanged }) => unchanged),
  refused: results.flatMap(({ refused }) => refused),
  failed: results.flatMap(({ failed }) => failed),
  warnings: results.flatMap(({ warnings }) => warnings)
})
