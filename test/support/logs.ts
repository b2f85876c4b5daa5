import * as Cause from "effect/Cause"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"

/** A log record as the tests look at it. */
export interface LogRecord {
  /** `ERROR`, `WARN`, ... */
  readonly level: string
  readonly message: string
  /** What else was logged with the message, and the cause, as text. */
  readonly details: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/**
 * A Layer that keeps log records instead of printing them; `onRecord` is called in the moment of
 * each.
 */
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

/** All that a record says. */
export const textOf = ({ details, message }: LogRecord): string => `${message} ${details}`
