import * as Effect from "effect/Effect"
import { type Notice, withNotices } from "../Database.js"
import { besideMessage, progress } from "./report.js"

/**
 * Prints what the server says while an effect runs, as psql does; that there is already what IF NOT
 * EXISTS asks for is left out.
 */
export const noticing = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  withNotices(effect, (notice) =>
    notice.severity === "NOTICE" && !notice.isRaised && notice.code.startsWith("42")
      ? Effect.void
      : Effect.forEach(noticeLines(notice), progress, { discard: true })
  )

const noticeLines = (notice: Notice): ReadonlyArray<string> => [
  `${notice.severity}: ${notice.message ?? `(${notice.code}) a text that can hold values of rows`}`,
  ...besideMessage(notice)
]
