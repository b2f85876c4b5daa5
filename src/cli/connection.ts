import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Database from "../Database.js"
import { environmentVariables } from "../DatabaseConfig.js"
import { parseUrl } from "../connection/endpoint.js"
import * as EmbeddedPostgres from "../EmbeddedPostgres.js"

/** Where the embedded server keeps its data, below the current directory. */
export const embeddedDirectory = ".data"

/** The environment in which the settings of a command are read. */
type Environment = Readonly<Record<string, string | undefined>>

/**
 * `direct`: past a pooler, because the command holds locks of sessions. `as configured`: as the
 * program would.
 */
export type Way = "direct" | "as configured"

/** The database of a command. It opens connections only when it needs them. */
export const layer = (given: Option.Option<Redacted.Redacted>, environment: Environment, way: Way) => {
  const direct = way === "direct" ? nonEmpty(environment[environmentVariables.directUrl]) : Option.none()
  const chosen = Option.map(given, Redacted.value).pipe(
    Option.orElse(() => direct),
    Option.orElse(() => nonEmpty(environment[environmentVariables.url]))
  )
  return Option.match(chosen, {
    onSome: (target) => databaseAt(target, environment, way),
    onNone: () =>
      Layer.unwrapScoped(
        Effect.map(EmbeddedPostgres.make({ dataDirectory: embeddedDirectory }), (server) =>
          databaseAt(Redacted.value(server.url), environment, "direct")
        )
      )
  })
}

const databaseAt = (target: string, environment: Environment, way: Way) => {
  const settings = new Map<string, string>([
    [environmentVariables.minConnections, "0"],
    [environmentVariables.maxConnections, "4"],
    // A migration or a change of the schema takes as long as it takes; each sets the limits that it
    // needs.
    ...(way === "direct" && !limitsStatements(target)
      ? [[environmentVariables.statementTimeout, "off"] as const]
      : [])
  ])
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined) settings.set(name, value)
  }
  settings.set(environmentVariables.url, target)
  if (way === "direct") {
    settings.delete(environmentVariables.directUrl)
    settings.delete(environmentVariables.pooler)
  }
  return Database.layerEnv.pipe(Layer.provide(Layer.setConfigProvider(ConfigProvider.fromMap(settings))))
}

/** Whether the url itself has a limit, before which the command's own stands back. */
const limitsStatements = (url: string) =>
  Either.match(parseUrl(url), {
    onLeft: () => false,
    onRight: ({ settings }) => settings.statementTimeout !== undefined
  })

const nonEmpty = (value: string | undefined) =>
  value === undefined || value === "" ? Option.none<string>() : Option.some(value)
