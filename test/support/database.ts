import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Database from "../../src/Database.js"
import type { Settings } from "../../src/DatabaseConfig.js"
import type * as Session from "../../src/connection/session.js"
import { reach } from "../../src/testing/server.js"
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

/**
 * Our Layer on the test's database; through the pooler of TEST_POOLER_URL, if there is one, as
 * `TestDatabase.layer`.
 */
export const databaseLayer = (settings: Partial<Settings> = {}) =>
  Layer.unwrapEffect(
    Effect.map(Effect.flatMap(TestServer, reach), (reached) =>
      Database.layer({ minConnections: 0, ...reached, ...settings })
    )
  )

/** Our Layer on an empty database of its own. */
export const testLayer = (settings: Partial<Settings> = {}) =>
  Layer.provideMerge(databaseLayer(settings), TestServer.layer)

/** The value of a setting on the connection that is lent. */
export const show = (setting: string) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const rows = yield* sql<{ value: string }>`SELECT current_setting(${setting}) AS value`
    return rows[0]?.value
  })

/** The backend of the connection that is lent. */
export const processId = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`
  return Number(rows[0]?.pid)
})
