import * as Metric from "effect/Metric"
import * as MetricBoundaries from "effect/MetricBoundaries"
import * as MetricKey from "effect/MetricKey"
import * as MetricLabel from "effect/MetricLabel"
import { reasonOf } from "../DatabaseError.js"

/**
 * What a pool and its transactions tell about themselves, as Effect metrics under the names of
 * OpenTelemetry's semantic conventions for database clients (`db.client.*`, times in seconds).
 * Those of the pool are labelled with its name, those of operations with the database, the
 * operation and the error. Two have no name there: `promptgrimoire.db.transactions` by outcome, and
 * `promptgrimoire.db.transaction.retries`.
 */
export interface Telemetry {
  /** How many connections are idle and in use, and how many callers wait. */
  readonly connections: (idle: number, used: number, pending: number) => void
  /** A caller got its connection after so many milliseconds. */
  readonly waited: (millis: number) => void
  /** A connection was checked in after so many milliseconds. */
  readonly used: (millis: number) => void
  /** A connection was opened in so many milliseconds. */
  readonly created: (millis: number) => void
  /** A caller waited for a connection in vain. */
  readonly timedOut: () => void
  /** The server answered a statement after so many milliseconds, perhaps with an error. */
  readonly operation: (millis: number, name: string | undefined, error: unknown) => void
  readonly transaction: (outcome: "committed" | "rolled back" | "unknown") => void
  readonly retried: () => void
}

/** The attributes that spans and metrics of one database have in common. */
export type Place = Readonly<
  Record<"db.system.name" | "db.namespace" | "server.address" | "server.port", string>
>

/**
 * `db.response.status_code` and `error.type` of a failed operation: both are the SQLSTATE where the
 * server gave one; else `error.type` is the tag of the reason.
 */
export const errorAttributes = (error: unknown): ReadonlyArray<readonly [string, string]> => {
  const reason = reasonOf(error)
  return reason !== undefined && "code" in reason
    ? [
        ["db.response.status_code", reason.code],
        ["error.type", reason.code]
      ]
    : [["error.type", reason?._tag ?? "_OTHER"]]
}

/** Metrics of one pool. `name` tells it from others of the process; it is shown as it is. */
export const make = (name: string, place: Place, max: number, min: number): Telemetry => {
  const pool = MetricLabel.make("db.client.connection.pool.name", name)
  const gauge = (metric: string, ...labels: ReadonlyArray<MetricLabel.MetricLabel>) => {
    const made = Metric.fromMetricKey(MetricKey.taggedWithLabels(MetricKey.gauge(metric), [pool, ...labels]))
    return (value: number) => made.unsafeUpdate(value, [])
  }
  const histogram = (metric: string, ...labels: ReadonlyArray<MetricLabel.MetricLabel>) => {
    const made = Metric.fromMetricKey(
      MetricKey.taggedWithLabels(MetricKey.histogram(metric, seconds), labels)
    )
    return (millis: number) => made.unsafeUpdate(millis / 1000, [])
  }
  const counter = (metric: string, ...labels: ReadonlyArray<MetricLabel.MetricLabel>) => {
    const made = Metric.fromMetricKey(
      MetricKey.taggedWithLabels(MetricKey.counter(metric), [pool, ...labels])
    )
    return () => made.unsafeUpdate(1, [])
  }
  const state = (value: string) => MetricLabel.make("db.client.connection.state", value)
  const outcome = (value: string) =>
    counter("promptgrimoire.db.transactions", MetricLabel.make("outcome", value))

  const idle = gauge("db.client.connection.count", state("idle"))
  const used = gauge("db.client.connection.count", state("used"))
  const pending = gauge("db.client.connection.pending_requests")
  const operations = new Map<string, (millis: number) => void>()
  /**
   * By operation and error: there are few of them, and a metric is looked up by all of its labels.
   */
  const operation = (name: string | undefined, error: unknown) => {
    const failure = error === undefined ? [] : errorAttributes(error)
    const key = `${name} ${failure[0]?.[1]}`
    const known = operations.get(key)
    if (known !== undefined) return known
    const labels = [
      ...Object.entries(place),
      ...(name === undefined ? [] : [["db.operation.name", name] as const]),
      ...failure
    ]
    const made = histogram(
      "db.client.operation.duration",
      ...labels.map(([label, value]) => MetricLabel.make(label, value))
    )
    operations.set(key, made)
    return made
  }
  const outcomes = {
    committed: outcome("committed"),
    "rolled back": outcome("rolled back"),
    unknown: outcome("unknown")
  }
  gauge("db.client.connection.max")(max)
  gauge("db.client.connection.idle.min")(min)
  return {
    connections: (idleCount, usedCount, pendingCount) => {
      idle(idleCount)
      used(usedCount)
      pending(pendingCount)
    },
    waited: histogram("db.client.connection.wait_time", pool),
    used: histogram("db.client.connection.use_time", pool),
    created: histogram("db.client.connection.create_time", pool),
    timedOut: counter("db.client.connection.timeouts"),
    operation: (millis, name, error) => operation(name, error)(millis),
    transaction: (how) => outcomes[how](),
    retried: counter("promptgrimoire.db.transaction.retries")
  }
}

/** The bucket boundaries that the conventions advise for durations of database operations. */
const seconds = MetricBoundaries.fromIterable([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10])
