/** What the commands of `migrate` do. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { fileURLToPath } from "node:url"
import * as ForeignKey from "../ForeignKey.js"
import * as Migrator from "../Migrator.js"
import * as FkPlan from "./fkPlan.js"
import * as FkReport from "./fkReport.js"
import type * as Definition from "./migrate.js"
import { noticing } from "./notices.js"
import type { Given } from "./options.js"
import * as Report from "./report.js"
import { runCommand } from "./runCommand.js"

/** The migrations of this package, next to `src` both here and in the built package. */
export const ownDirectory = fileURLToPath(new URL("../../migrations", import.meta.url))

/** `migrate`. */
export const up = ({ json, url, ...chosen }: Given<typeof Definition.options>) =>
  runCommand(
    { json, url, interrupted },
    Effect.gen(function* () {
      const result = yield* noticing(Migrator.run(migrations(chosen)))
      const lines = [
        ...(result.applied.length === 0
          ? ["Nothing to do: every migration is applied."]
          : result.applied.map(
              ({ durationMs, id, name }) => `Applied ${id}_${name} in ${Report.duration(durationMs)}.`
            )),
        `Current migration: ${result.current}.`
      ]
      const keys = json ? [] : yield* foreignKeyLines
      yield* Report.result(json, result, [...lines, ...keys])
    })
  )

/** `migrate status`. */
export const status = ({ json, url, ...chosen }: Given<typeof Definition.options>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const status = yield* Migrator.status(migrations(chosen))
      const upToDate = status.migrations.every(({ state }) => state === "applied")
      yield* Report.result(
        json,
        status,
        statusLines(status),
        upToDate ? Report.exitCodes.done : Report.exitCodes.refused
      )
    })
  )

/** `migrate stamp`. */
export const stamp = ({ id, json, url, ...chosen }: Given<typeof Definition.stampOptions>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const status = yield* Migrator.stamp({ ...migrations(chosen), id })
      yield* Report.result(json, status, statusLines(status))
    })
  )

/** `migrate down`. */
export const down = ({ json, to, url, ...chosen }: Given<typeof Definition.downOptions>) =>
  runCommand(
    { json, url, interrupted },
    Effect.gen(function* () {
      const { applied: undone, current } = yield* noticing(Migrator.down({ ...migrations(chosen), to }))
      yield* Report.result(json, { undone, current }, [
        ...(undone.length === 0
          ? ["Nothing to do."]
          : undone.map(
              ({ durationMs, id, name }) => `Undid ${id}_${name} in ${Report.duration(durationMs)}.`
            )),
        `Current migration: ${current}.`
      ])
    })
  )

/** `migrate plan`. */
export const plan = ({ json, url, ...chosen }: Given<typeof Definition.options>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const result = yield* noticing(Migrator.plan(migrations(chosen)))
      const isRefused = result.migrations.some(({ foreignKeys }) =>
        foreignKeys.some(({ refused }) => refused.length > 0)
      )
      yield* Report.result(
        json,
        result,
        planLines(result),
        isRefused ? Report.exitCodes.refused : Report.exitCodes.done
      )
    })
  )

/** `migrate check`. */
export const check = ({ json, url, ...chosen }: Given<typeof Definition.options>) =>
  runCommand(
    { json, url },
    Effect.gen(function* () {
      const result = yield* Migrator.check(migrations(chosen))
      yield* Report.result(
        json,
        result,
        checkLines(result),
        result.differences.length === 0 ? Report.exitCodes.done : Report.exitCodes.refused
      )
    })
  )

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** What says which migrations a command is about. */
interface Chosen {
  readonly directory: Option.Option<string>
  readonly allowEmpty: boolean
  readonly table: Option.Option<string>
}

const migrations = ({ allowEmpty, directory, table }: Chosen): Migrator.Options => ({
  loader: Migrator.fromDirectory(
    Option.getOrElse(directory, () => ownDirectory),
    { allowEmpty }
  ),
  table: Option.getOrUndefined(table),
  onProgress: (event) => Report.progress(describe(event))
})

const interrupted = Effect.succeed(
  "interrupted: a migration that was running is rolled back, an online one is half done; run the same command again to go on"
)

const describe = (event: Migrator.Progress): string => {
  switch (event._tag) {
    case "Waiting":
      return "Waiting for another migrator to finish ..."
    case "Started":
      return `${event.direction === "up" ? "Applying" : "Undoing"} ${event.id}_${event.name} ...`
    case "Retrying":
      return `${event.id}_${event.name} could not get its locks (try ${event.attempt}, ${event.reason}); trying again ...`
    case "Finished":
      return `${event.id}_${event.name} done in ${Report.duration(event.durationMs)}`
  }
}

/** After a migration a person wants to see what a delete does now. */
const foreignKeyLines = Effect.map(Effect.map(ForeignKey.list(), Report.byName), (keys) =>
  keys.length === 0
    ? []
    : [
        "",
        ...Report.table(
          ["Foreign key", "References", "On delete"],
          keys.map((key) => [
            FkReport.nameOf(key),
            ForeignKey.label(key.referencedSchema, key.referencedTable),
            FkReport.onDelete(key)
          ])
        )
      ]
)

const statusLines = ({ current, migrations }: Migrator.Status): ReadonlyArray<string> => [
  ...(migrations.length === 0
    ? ["There are no migrations."]
    : Report.table(
        ["Id", "Name", "State", "Applied at"],
        migrations.map(({ appliedAt, id, name, state }) => [
          String(id),
          name,
          state,
          appliedAt?.toISOString() ?? ""
        ])
      )),
  `Current migration: ${current}.`
]

const planLines = ({ current, migrations }: Migrator.Plan): ReadonlyArray<string> => [
  ...(migrations.length === 0 ? ["Nothing to do: every migration is applied."] : []),
  ...migrations.flatMap(({ foreignKeys, id, locks, name, online, statements }) => [
    `${id}_${name}${online ? " (online: not in one transaction, so its locks are those of each statement)" : ""}`,
    ...statements.map((statement) => `     ${FkPlan.abbreviate(statement.trim().replaceAll(/\s+/g, " "))};`),
    ...(locks ?? []).map(({ mode, relation }) => `   locks ${relation} in ${mode} mode`),
    ...foreignKeys.flatMap(FkPlan.lines),
    ""
  ]),
  `Current migration: ${current}.`
]

const checkLines = ({ current, differences }: Migrator.Drift): ReadonlyArray<string> => [
  ...(differences.length === 0
    ? ["The schema is what its migrations make."]
    : differences.flatMap(({ actual, expected, kind, name }) =>
        expected === null
          ? [`! ${kind} ${name} is there, and no migration makes it`]
          : actual === null
            ? [`! ${kind} ${name} is missing: ${expected}`]
            : [
                `! ${kind} ${name} is not what the migrations make`,
                `    expected: ${expected}`,
                `    found:    ${actual}`
              ]
      )),
  `Current migration: ${current}.`
]
