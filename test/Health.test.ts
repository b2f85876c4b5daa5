import { assert, describe, it } from "./support/it.js"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Database from "../src/Database.js"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"
import { eventually } from "./support/eventually.js"

const health = Effect.flatMap(Database.Database, (database) => database.health)

describe("Database.health", () => {
  it.scopedLive("is ready when the server answers on a pooled connection", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* health).status, "ready")
    }).pipe(Effect.provide(TestDatabase.layer()))
  )

  it.scopedLive("is saturated, and not down, when every connection is in use", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const database = yield* Database.Database
      const done = yield* Deferred.make<void>()
      yield* Effect.forkScoped(
        Effect.forEach([1, 2], () => sql.withTransaction(Deferred.await(done)), {
          concurrency: "unbounded",
          discard: true
        })
      )
      yield* eventually(
        "both connections are busy",
        Effect.map(database.stats, ({ busy }) => busy === 2)
      )
      const found = yield* health
      assert.strictEqual(found.status, "saturated")
      assert.match("reason" in found ? found.reason : "", /all 2 connections are in use/)
      yield* Deferred.succeed(done, undefined)
      yield* eventually(
        "it is ready again",
        Effect.map(health, ({ status }) => status === "ready")
      )
    }).pipe(
      Effect.provide(TestDatabase.layer({ settings: { maxConnections: 2, acquireTimeout: "20 seconds" } }))
    )
  )

  it.scopedLive("is down, with the reason, while the server is, and ready again afterwards", () =>
    Effect.gen(function* () {
      const server = yield* EmbeddedPostgres.make()
      yield* Effect.gen(function* () {
        yield* server.stop("immediate")
        const found = yield* health
        assert.strictEqual(found.status, "down")
        assert.include("reason" in found ? found.reason : "", "cannot connect")
        yield* server.start
        yield* eventually(
          "it is ready again",
          Effect.map(health, ({ status }) => status === "ready")
        )
      }).pipe(Effect.provide(Database.layer({ url: server.url, minConnections: 1 })))
    })
  )
})
