/**
 * The comment on a constraint of ours: what is being changed into what, and the original in full.
 * It is what a rerun and an undo read, and what a person sees who finds the constraint.
 */
import * as Option from "effect/Option"
import { type Comment, text } from "../../catalog/comments.js"
import type * as Snapshot from "./snapshot.js"
import type { Target } from "./target.js"

/** What the marker records. */
export interface Marker {
  /** The name of the constraint that is being changed. */
  readonly constraint: string
  readonly from: Target
  readonly to: Target
  /**
   * The original when the change began, comment and names of triggers included. The parts of a
   * partitioned table's key do without it.
   */
  readonly original?: Snapshot.Snapshot
}

const prefix = "promptgrimoire-db is changing a foreign key here, rerun it to finish: "

/** The text of the comment. */
export const encode = (marker: Marker): string => prefix + JSON.stringify(marker)

/**
 * Whether a comment is one of ours, also if it cannot be read any more because somebody edited it.
 */
export const isOurs = (comment: Comment): boolean => text(comment)?.startsWith(prefix) === true

/** Reads a comment; undefined if it is not one of ours, or somebody edited it. */
export const decode = (comment: Comment): Marker | undefined => {
  const whole = text(comment)
  return whole?.startsWith(prefix) === true
    ? Option.getOrUndefined(parse(whole.slice(prefix.length)))
    : undefined
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const parse = Option.liftThrowable((text: string) => JSON.parse(text) as Marker)
