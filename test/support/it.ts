/**
 * What tests are written with: `@effect/vitest`, whose tests under a test clock show their log too.
 */
import * as Vitest from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { isFull, isQuick } from "./length.js"

export { assert, describe, expect } from "@effect/vitest"

/** They log nothing otherwise. What a test logs is printed if it fails. */
const log = Logger.add(Logger.defaultLogger)

const logged = <R>(tester: Vitest.Vitest.Tester<R>): Vitest.Vitest.Tester<R> =>
  Object.assign(
    ((name, self, options) =>
      tester(name, (context) => Effect.provide(self(context), log), options)) satisfies Vitest.Vitest.Test<R>,
    tester
  )

/** Declares a test. */
export const it = Object.assign(
  ((...args: Parameters<typeof Vitest.it>) => Vitest.it(...args)) as typeof Vitest.it,
  Vitest.it,
  { effect: logged(Vitest.it.effect), scoped: logged(Vitest.it.scoped) }
)

/** Declares the tests of a suite that share a Layer. */
export const layer: typeof Vitest.layer = (shared, options) => Vitest.layer(Layer.merge(shared, log), options)

const nothing: unknown = new Proxy(() => nothing, { get: () => nothing })

/**
 * Declares tests that are run at full length only: they are long, and others test the same with
 * less.
 */
export const inFull = <I>(it: I): I => (isFull ? it : (nothing as I))

/**
 * Declares tests that `npm test` leaves out, and that are run on each major version of the server.
 */
export const inMatrix = <I>(it: I): I => (isQuick ? (nothing as I) : it)
