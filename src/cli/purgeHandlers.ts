/** What `fk purge` does. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Purge from "../Purge.js"
import type { Given } from "./options.js"
import type * as Definition from "./purge.js"
import * as Report from "./report.js"
import { runCommand } from "./runCommand.js"

/** `fk purge`. */
export const purge = ({ dryRun, json, url, ...options }: Given<typeof Definition.options>) =>
  runCommand(
    {
      json,
      url,
      interrupted: Effect.succeed(
        dryRun
          ? "interrupted; nothing was deleted"
          : "interrupted: the batches that were committed are deleted, and the row itself last; run the same command again to go on"
      )
    },
    (dryRun
      ? Effect.flatMap(Purge.plan(options), (plan) =>
          Report.result(
            json,
            plan,
            planLines(plan),
            plan.refused.length > 0 ? Report.exitCodes.refused : Report.exitCodes.done
          )
        )
      : Effect.gen(function* () {
          const result = yield* Purge.run({ ...options, onProgress: yield* reporter })
          yield* Report.result(json, result, resultLines(result))
        })
    ).pipe(
      Effect.catchTags({
        Refused: ({ refusals }) =>
          Report.result(json, { refused: refusals }, refusals.map(refusalLine), Report.exitCodes.refused),
        UnknownTarget: ({ _tag, message }) =>
          Report.failure(json, { reason: _tag, message }, Report.exitCodes.usage)
      })
    )
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const refusalLine = ({ reason }: Purge.Refusal) => `x ${reason}`

const planLines = ({ refused, rows, updates, warnings }: Purge.Plan) => [
  ...Report.table(
    ["Table", "Rows to delete"],
    rows.map((one) => [one.table, String(one.rows)])
  ),
  ...updates.map(
    ({ action, constraint, rows }) =>
      `${constraint}: ${rows} rows ${action === "set-null" ? "set to null" : "set to their default"}`
  ),
  ...warnings.map((warning) => `! ${warning}`),
  ...refused.map(refusalLine)
]

const resultLines = ({ durationMs, rows, transactions, updates, warnings }: Purge.Result) =>
  rows.length === 0
    ? ["There is no such row (any more)."]
    : [
        ...Report.table(
          ["Table", "Rows deleted"],
          rows.map((one) => [one.table, String(one.rows)])
        ),
        ...updates.map(({ constraint, rows }) => `${constraint}: ${rows} rows set to null`),
        ...warnings.map((warning) => `! ${warning}`),
        `Done in ${Report.duration(durationMs)}, ${transactions} transactions.`
      ]

/** Says at most once a second for each table how far it is. */
const reporter = Effect.sync(() => {
  const last = new Map<string, number>()
  return (event: Purge.Progress): Effect.Effect<void> =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      const isDue = (subject: string) => {
        if (now - (last.get(subject) ?? 0) < 1000) return false
        last.set(subject, now)
        return true
      }
      switch (event._tag) {
        case "Planned":
          return yield* Effect.forEach(
            [
              ...event.plan.rows.map(({ rows, table }) => `${table}: ${rows} rows to delete`),
              ...event.plan.warnings.map((warning) => `! ${warning}`)
            ],
            Report.progress,
            { discard: true }
          )
        case "Deleted": {
          const { elapsedMs, planned, table, total } = event
          const rate = Math.round((total / Math.max(1, elapsedMs)) * 1000)
          return isDue(table) || total >= planned
            ? yield* Report.progress(`${table}: ${total} of ${planned} rows deleted, ${rate} per second`)
            : undefined
        }
        case "Updated":
          return isDue(event.constraint)
            ? yield* Report.progress(`${event.constraint}: ${event.rows} rows set to null ...`)
            : undefined
        case "Waiting":
          return isDue("waiting")
            ? yield* Report.progress(`waits for locks (${event.reason}, try ${event.tries})`)
            : undefined
      }
    })
})
