/** What `fk rebuild` and `fk undo` print. */
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as ForeignKey from "../ForeignKey.js"
import * as Report from "./report.js"

/** Tells what happens, on standard error, and keeps in mind how far it is. */
export interface Reporter {
  readonly onProgress: (event: ForeignKey.Progress) => Effect.Effect<void>
  /** What an interruption leaves, and what to do then. */
  readonly interrupted: Effect.Effect<string>
  /** What became of the keys so far. */
  readonly soFar: Effect.Effect<ForeignKey.RebuildResult>
}

/** A reporter of one run. */
export const reporter: Effect.Effect<Reporter> = Effect.gen(function* () {
  const at = yield* Ref.make<At | undefined>(undefined)
  const results = yield* Ref.make<ReadonlyArray<ForeignKey.RebuildResult>>([])
  return {
    onProgress: (event) =>
      Effect.gen(function* () {
        yield* Ref.update(at, (at) => follow(at, event))
        if (event._tag === "Finished") yield* Ref.update(results, (results) => [...results, event.result])
        yield* Report.progress(describe(event))
      }),
    interrupted: Effect.map(Ref.get(at), remains),
    soFar: Effect.map(Ref.get(results), ForeignKey.combineResults)
  }
})

/**
 * Prints the result, and ends with what became of the keys. `unchanged` says why nothing was done
 * to a key.
 */
export const result = (
  json: boolean,
  result: ForeignKey.RebuildResult,
  unchanged: string
): Effect.Effect<void, Report.Exited> => {
  const code =
    result.failed.length > 0
      ? Report.exitCodes.failed
      : result.refused.length > 0
        ? Report.exitCodes.refused
        : Report.exitCodes.done
  return Report.result(json, result, rebuildLines(result, unchanged), code)
}

/** The name of a key, as the selectors take it. */
export const nameOf = ({ name, schema, table }: Record<"schema" | "table" | "name", string>): string =>
  ForeignKey.label(schema, table, name)

/** What a key says that a delete does. */
export const onDelete = ({ enforced, onDelete }: ForeignKey.ForeignKeyInfo): string =>
  `${Report.words(onDelete)}${enforced ? "" : ", not enforced"}`

/** An action with its columns, in the words of the options. */
export const action = ({ action, columns }: ForeignKey.Target): string =>
  columns.length === 0
    ? action
    : `${action} (${columns.map((column) => ForeignKey.label(column)).join(", ")})`

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const rebuildLines = (
  { failed, rebuilt, refused, unchanged, warnings }: ForeignKey.RebuildResult,
  because: string
) => [
  ...rebuilt.map(
    ({ constraint, durationMs, longestLockMs, previous }) =>
      `Rebuilt ${constraint} in ${Report.duration(durationMs)}, longest lock ${Report.duration(longestLockMs)} (was ${action(previous)}).`
  ),
  ...unchanged.map((constraint) => `= ${constraint} ${because}`),
  ...warnings.map(({ constraint, warning }) => `! ${constraint}: ${warning}`),
  ...refused.map(({ constraint, reason }) => `x ${constraint} is refused: ${reason}`),
  ...failed.map(({ constraint, reason }) => `x ${constraint} failed: ${reason}`)
]

/** Where a run is: at a key, with the steps of the change that this run has begun and done. */
interface At {
  readonly constraint: string
  readonly begun: ReadonlyArray<string>
  readonly done: ReadonlyArray<string>
}

const follow = (at: At | undefined, event: ForeignKey.Progress): At | undefined => {
  switch (event._tag) {
    case "Started":
      return { constraint: event.constraint, begun: [], done: [] }
    case "Finished":
      return undefined
    case "StepStarted":
      return at && { ...at, begun: [...at.begun, event.step] }
    case "StepDone":
      return at && { ...at, done: [...at.done, event.step] }
    default:
      return at
  }
}

/**
 * What the steps of one transaction each have left. A step that was begun and is not done has
 * happened or not: only the server knows.
 */
const remains = (at: At | undefined): string => {
  const again = "run the same command again to go on from there"
  if (at === undefined) return `interrupted between two foreign keys; ${again}`
  const { begun, constraint, done } = at
  const isAny = (steps: ReadonlyArray<string>, ...names: ReadonlyArray<string>) =>
    names.some((name) => steps.includes(name))
  const state =
    isAny(done, "swap", "drop-original") || isAny(begun, "settle")
      ? "it has its new action; what is left is its mode, its comment or its record"
      : isAny(begun, "switch-names", "switch-delete", "switch-update", "drop-original")
        ? "both its original and the new key are there, one of them under a temporary name, and protect the data"
        : isAny(begun, "swap")
          ? "its original or the new key has its name, whichever the server has committed, and protects the data"
          : isAny(begun, "order") && !isAny(done, "order")
            ? "its original is as it was, and a new key beside it may act before it until step order is done"
            : isAny(begun, "add", "validate", "attach", "drop-temporary")
              ? "its original is as it was and protects the data, and a new key may be beside it under a temporary name"
              : isAny(begun, "index", "index-whole", "index-attach", "index-drop", "reindex")
                ? "it is as it was; an index that was being built may be there and not be valid"
                : "this run has not changed it"
  const last = begun.at(-1)
  return `interrupted while ${constraint} was being changed${last === undefined ? "" : ` (step ${last})`}: ${state}; ${again}, or \`fk plan\` to see what is left`
}

const outcomes = {
  rebuilt: "done",
  unchanged: "unchanged",
  refused: "refused",
  failed: "failed"
} as const

/** `(building index: scanning table, 43 %)`. */
const phase = ({ phase, share }: ForeignKey.Progress & { readonly _tag: "Working" }) =>
  phase === null ? "" : ` (${phase}${share === null ? "" : `, ${Math.floor(100 * share)} %`})`

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
    case "Working":
      return `${event.constraint}: ${event.step} has worked for ${Report.duration(event.elapsedMs)}${phase(event)} ...`
    case "Waiting":
      return `${event.constraint}: ${event.step} ${
        event.slow === 0
          ? "waits for locks"
          : `had its locks and needed longer than ${event.lockTimeoutMs} ms, ${event.slow === 1 ? "once" : `${event.slow} times`}, and tries again`
      } (${event.tries} tries, ${Report.duration(event.elapsedMs)})${event.blockers
        .map((blocker) => `\n  held by ${ForeignKey.describeBlocker(blocker)}`)
        .join("")}`
    case "Reconnecting":
      return `${event.constraint}: connection lost (${event.code}), connecting again ...`
    case "IndexBuilt":
      return `${event.constraint}: built index ${event.index}`
    case "Overlap":
      return [
        `${event.constraint}: until ${event.until === "swap" ? "the swap" : `step ${event.until} is done`}, deletes follow ${event.live}`,
        ...event.except.map((exception) => `  except: ${exception}`)
      ].join("\n")
    case "Finished":
      return `${event.constraint}: ${outcomes[event.outcome]}`
  }
}
