/** What `fk rebuild` and `fk undo` print. */
import * as Effect from "effect/Effect"
import * as ForeignKey from "../ForeignKey.js"
import * as Report from "./Report.js"

/** Tells a person what happens, unless a program reads. */
export const progress =
  (json: boolean) =>
  (event: ForeignKey.Progress): Effect.Effect<void> =>
    json ? Effect.void : Report.progress(describe(event))

/** Prints the result, and ends with what became of the keys. */
export const result = (
  json: boolean,
  result: ForeignKey.RebuildResult
): Effect.Effect<void, Report.Exited> => {
  const code =
    result.failed.length > 0
      ? Report.exitCodes.failed
      : result.refused.length > 0
        ? Report.exitCodes.refused
        : Report.exitCodes.done
  return Report.result(json, result, rebuildLines(result), code)
}

/** An action with its columns, in the words of the options. */
export const action = ({ action, columns }: ForeignKey.Target): string =>
  columns.length === 0 ? action : `${action} (${columns.join(", ")})`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const rebuildLines = ({ failed, rebuilt, refused, unchanged }: ForeignKey.RebuildResult) => [
  ...rebuilt.map(
    ({ constraint, durationMs, longestLockMs, previous }) =>
      `Rebuilt ${constraint} in ${Report.duration(durationMs)}, longest lock ${Report.duration(longestLockMs)} (was ${action(previous)}).`
  ),
  ...unchanged.map((constraint) => `= ${constraint} has this action already`),
  ...refused.map(({ constraint, reason }) => `x ${constraint} is refused: ${reason}`),
  ...failed.map(({ constraint, reason }) => `x ${constraint} failed: ${reason}`)
]

const describe = (event: ForeignKey.Progress): string => {
  switch (event._tag) {
    case "Started":
      return `${event.constraint}: ${action(event.from)} -> ${action(event.to)}`
    case "Recorded":
      return `${event.constraint}: recorded in ${event.ledger}`
    case "StepStarted":
      return `${event.constraint}: ${event.step} ...`
    case "StepDone":
      return `${event.constraint}: ${event.step} done in ${Report.duration(event.durationMs)}`
    case "Waiting":
      return `${event.constraint}: ${event.step} waits for locks (${event.tries} tries, ${Report.duration(event.elapsedMs)})${event.blockers
        .map((blocker) => `\n  held by ${ForeignKey.describeBlocker(blocker)}`)
        .join("")}`
    case "Reconnecting":
      return `${event.constraint}: connection lost (${event.code}), connecting again ...`
    case "IndexBuilt":
      return `${event.constraint}: built index ${event.index}`
    case "Overlap":
      return `${event.constraint}: until the swap, deletes follow ${event.live}`
    case "Finished":
      return `${event.constraint}: done`
  }
}
