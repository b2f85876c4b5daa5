import { describe, it, assert } from "@effect/vitest"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Database from "../src/Database.js"
import * as Transaction from "../src/Transaction.js"
import { emptyDatabase } from "./support/server.js"

const TestLayer = Layer.unwrapScoped(
  Effect.map(emptyDatabase, ({ url }) => Database.layer({ url, minConnections: 1 }))
)

describe("Transaction", () => {
  it.scoped("keeps what the body wrote", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE t (id int PRIMARY KEY)`
      yield* Transaction.run(sql`INSERT INTO t VALUES (1)`)
      assert.deepStrictEqual(yield* sql`SELECT id FROM t`, [{ id: 1 }])
    }).pipe(Effect.provide(TestLayer))
  )
})
