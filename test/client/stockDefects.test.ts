import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Database from "../../src/Database.js"
import { emptyDatabase } from "../support/server.js"
import { poolSize, scenarios } from "../support/stockDefects.js"

describe("The reproduced defects", () => {
  for (const { expected, name, run } of scenarios) {
    it.scopedLive(`${name}: the stock client is still defective`, () =>
      Effect.gen(function* () {
        const { url } = yield* emptyDatabase
        const outcome = yield* Effect.provide(run, PgClient.layer({ url, maxConnections: poolSize }))
        assert.isTrue(outcome.defect, outcome.observed)
      })
    )

    it.scopedLive(`${name}: ${expected}`, () =>
      Effect.gen(function* () {
        const { url } = yield* emptyDatabase
        const outcome = yield* Effect.provide(
          run,
          Database.layer({ url, minConnections: 1, maxConnections: poolSize })
        )
        assert.isFalse(outcome.defect, outcome.observed)
      })
    )
  }
})
