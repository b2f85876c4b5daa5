/**
 * Back to the action from before. An undo takes back the last change that the ledger has of a key,
 * and asking again changes nothing, so that a run that was interrupted or failed for some keys can
 * be run again. Whoever wants to go further back, or to undo an undo, names the change.
 */
import type { Entry } from "../ledger/ledger.js"
import type { UndoOptions } from "../types.js"
import type { Aim, Candidate } from "./selection.js"
import * as Target from "../snapshot/target.js"

/**
 * The aim of an undo of one of these changes or, without any, of the last one. Of a key without a
 * recorded change there is nothing to undo, unless the record itself is not there where the caller
 * says that it is.
 */
export const aim =
  ({ changes, ledger: named }: Pick<UndoOptions, "changes" | "ledger">) =>
  ({ entries, interrupted, key, ledger, recorded }: Candidate): Aim => {
    const now = Target.of(key)
    const chosen = entries.findLast(({ id }) => changes?.includes(id))
    if (chosen !== undefined) return { target: chosen.from, undoes: chosen.id }
    const last = entries.findLast(({ outcome }) => outcome !== "taken back")
    // An interrupted change that the ledger does not know: the comment on the constraint does.
    if (interrupted && last?.finishedAt !== null) return { target: recorded, undoes: undefined }
    if (last === undefined) {
      return ledger?.readable === true && (ledger.exists || named === undefined)
        ? { target: now, undoes: undefined }
        : refuse(
            "there is no record of changes where it was looked for, so what it was before is not known: use fk rebuild --on-delete"
          )
    }
    if (last.finishedAt === null) {
      return last.undoes === null
        ? { target: last.from, undoes: last.id }
        : { target: last.to, undoes: last.undoes }
    }
    if (isUndone(last) || Target.equals(now, last.from)) return { target: now, undoes: undefined }
    return Target.equals(now, last.to)
      ? { target: last.from, undoes: last.id }
      : refuse(
          `its last recorded change (${last.id}) made it ON DELETE ${Target.words(last.to)}, and something else made it ${Target.words(
            now
          )} since: use fk rebuild --on-delete, or name the change to undo`
        )
  }

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const isUndone = ({ outcome, undoes }: Entry) => outcome === "undone" || undoes !== null

const refuse = (reason: string): Aim => ({ refusal: { code: "no-record", reason } })
