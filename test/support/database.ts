import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import type * as Redacted from "effect/Redacted"
import * as Cause from "effect/Cause"
import * as Database from "../../src/Database.js"
import type { Settings } from "../../src/DatabaseConfig.js"
import type * as Session from "../../src/driver/Session.js"
import { reach } from "../../src/testing/Server.js"
import { adminSession, emptyDatabase } from "./server.js"

/** An empty database, and a superuser's session in it beside the code under test. */
export class TestServer extends Context.Tag("test/TestServer")<
  TestServer,
  { readonly name: string; readonly url: Redacted.Redacted; readonly admin: Session.Session }
>() {
  static readonly layer = Layer.scoped(
    TestServer,
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      return { name, url, admin: yield* adminSession(name) }
    })
  )
}

/** Our Layer on the test's database; through the pooler of TEST_POOLER_URL, if there is one, as `TestDatabase.layer`. */
export const databaseLayer = (settings: Partial<Settings> = {}) =>
  Layer.unwrapEffect(
    Effect.map(Effect.flatMap(TestServer, reach), (reached) =>
      Database.layer({ minConnections: 0, ...reached, ...settings })
    )
  )

/** Our Layer on an empty database of its own. */
export const testLayer = (settings: Partial<Settings> = {}) =>
  Layer.provideMerge(databaseLayer(settings), TestServer.layer)

/** A log record as the tests look at it. */
export interface LogRecord {
  readonly level: string
  readonly message: string
  /** What else was logged with the message, and the cause, as text. */
  readonly details: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** A Layer that keeps log records instead of printing them; `onRecord` is called in the moment of each. */
export const recordLogs = (records: Array<LogRecord>, onRecord: (record: LogRecord) => void = () => {}) =>
  Layer.merge(
    Logger.replace(
      Logger.defaultLogger,
      Logger.make(({ annotations, cause, logLevel, message }) => {
        const [first, ...rest] = Array.isArray(message) ? message : [message]
        const record: LogRecord = {
          level: logLevel.label,
          message: String(first),
          details: [...rest.map(String), Cause.isEmpty(cause) ? "" : Cause.pretty(cause)].join("\n"),
          annotations: Object.fromEntries(HashMap.toEntries(annotations))
        }
        records.push(record)
        onRecord(record)
      })
    ),
    Logger.minimumLogLevel(LogLevel.All)
  )
