/** What the configurations of the suites have in common. */
import * as Duration from "effect/Duration"
import type { ViteUserConfig } from "vitest/config"
import { type Length, lengthVariable } from "./length.js"
import { safetyNet, slowness, variable } from "./speed.js"

/** What is a suite's own. */
export interface Suite {
  readonly include: ReadonlyArray<string>
  readonly exclude?: ReadonlyArray<string>
  /** Starts the server. */
  readonly globalSetup?: string
  /** How many cases of each test. */
  readonly length: Length
  /** One file at a time, where tests measure. */
  readonly alone?: boolean
  readonly testNamePattern?: RegExp
  readonly execArgv?: ReadonlyArray<string>
}

/**
 * A suite that is quiet: one line for each file, and what a test printed only if it failed. Two
 * processes share its files, and load each module once.
 */
export const suite = (options: Suite): ViteUserConfig => {
  process.env[variable] ??= String(slowness())
  const limit = Duration.toMillis(safetyNet(options.length === "full" ? "20 minutes" : "5 minutes"))
  return {
    test: {
      include: [...options.include],
      exclude: [...(options.exclude ?? [])],
      globalSetup: [options.globalSetup ?? "src/testing/globalSetup.ts"],
      env: { [lengthVariable]: options.length },
      silent: "passed-only",
      // Some groups of tests are run at full length only.
      passWithNoTests: options.length !== "full",
      slowTestThreshold: limit,
      testTimeout: limit,
      hookTimeout: limit,
      teardownTimeout: limit,
      pool: "forks",
      poolOptions: { forks: { isolate: false, execArgv: [...(options.execArgv ?? [])] } },
      maxWorkers: options.alone === true ? 1 : 2,
      minWorkers: 1,
      ...(options.testNamePattern === undefined ? {} : { testNamePattern: options.testNamePattern }),
      coverage: { include: ["src/**"] }
    }
  }
}
