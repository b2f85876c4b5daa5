import type { FileSystem } from "@effect/platform/FileSystem"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import type { Provided } from "../Database.js"
import { DatabaseError, shownOf } from "../DatabaseError.js"
import { isRefusal, MigratorError } from "../Migrator.js"
import * as Connection from "./connection.js"
import * as Report from "./report.js"
import { Surroundings } from "./surroundings.js"

/**
 * Runs the work of a command on its database, and turns every way in which it can end into output
 * and an exit code. A defect is printed like an error: whoever runs the command gets one line, and
 * its JSON document if they asked for one.
 */
export const runCommand = <A, E>(
  {
    interrupted = Effect.succeed("interrupted; run the same command again"),
    json,
    soFar = Effect.succeed({}),
    url,
    way = "direct"
  }: {
    readonly json: boolean
    readonly url: Option.Option<Redacted.Redacted>
    readonly way?: Connection.Way
    /**
     * What to say when the command is stopped by Ctrl-C or SIGTERM: what it leaves, and what to do.
     */
    readonly interrupted?: Effect.Effect<string>
    /** What the command has done already: its JSON document has that beside the error. */
    readonly soFar?: Effect.Effect<object>
  },
  work: Effect.Effect<A, E, Provided | FileSystem>
) =>
  Effect.flatMap(Surroundings, ({ env }) => Effect.provide(work, Connection.layer(url, env, way))).pipe(
    Effect.onInterrupt(() =>
      Effect.flatMap(Effect.all([interrupted, soFar]), ([message, done]) =>
        Effect.ignore(Report.failure(json, { reason: "Interrupted", message }, Report.exitCodes.failed, done))
      )
    ),
    Effect.catchAllCause((cause) => {
      const failure = Cause.failureOption(cause)
      if (Option.isSome(failure) && failure.value instanceof Report.Exited) return Effect.fail(failure.value)
      if (Cause.isInterruptedOnly(cause)) return Effect.interrupt
      const squashed = Cause.squash(cause)
      const { code, ...error } = explain(squashed)
      const { detail, hint } = shownOf(squashed)
      return Effect.flatMap(soFar, (done) => Report.failure(json, { ...error, detail, hint }, code, done))
    })
  )

const explain = (
  error: unknown
): { readonly reason: string; readonly message: string; readonly code: Report.ExitCode } => {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof MigratorError) {
    const code = isRefusal(error) ? Report.exitCodes.refused : Report.exitCodes.failed
    return { reason: error.reason, message, code }
  }
  if (DatabaseError.is(error)) return { reason: error.reason._tag, message, code: Report.exitCodes.failed }
  const tag =
    typeof error === "object" && error !== null && "_tag" in error && typeof error._tag === "string"
      ? error._tag
      : "Defect"
  return {
    reason: tag,
    message,
    code: usageErrors.has(tag) ? Report.exitCodes.usage : Report.exitCodes.failed
  }
}

/** Errors whose cause is what was typed. */
const usageErrors: ReadonlySet<string> = new Set([
  "Contradiction",
  "InvalidSettings",
  "NoMatch",
  "UnclearSelection"
])
