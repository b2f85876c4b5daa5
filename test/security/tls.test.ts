import * as SqlClient from "@effect/sql/SqlClient"
import { assert, describe, inFull, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { inspect } from "node:util"
import * as Database from "../../src/Database.js"
import { DatabaseError } from "../../src/DatabaseError.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as Proxy from "../support/Proxy.js"
import { eventually } from "../support/eventually.js"
import { type Authority, makeAuthority, makeServer } from "./certificates.js"
import { cases } from "../support/length.js"

/** The server's url with other parts. */
const urlWith = (url: Redacted.Redacted, sslmode: string, authority?: Authority, host?: string) => {
  const changed = new URL(Redacted.value(url))
  if (host !== undefined) changed.hostname = host
  changed.searchParams.set("sslmode", sslmode)
  if (authority !== undefined) changed.searchParams.set("sslrootcert", authority.certificate)
  return Redacted.make(changed.toString())
}

/** A program on the database of a url. */
const on = <A, E, R>(url: Redacted.Redacted, program: Effect.Effect<A, E, R>) =>
  Effect.provide(program, Database.layer({ url, minConnections: 0 }))

/** Whether the server says that our connection is encrypted. */
const isEncrypted = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ ssl: boolean }>`SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`
  return row?.ssl
})

/** The connection must fail with this problem and code, and say nothing of the password. */
const refused = (url: Redacted.Redacted, problem: string, code?: string) =>
  Effect.gen(function* () {
    const error = yield* Effect.flip(on(url, isEncrypted))
    assert.instanceOf(error, DatabaseError)
    assert.strictEqual(error.reason._tag, "ConnectFailed")
    if (error.reason._tag !== "ConnectFailed") return
    assert.strictEqual(error.reason.problem, problem)
    assert.strictEqual(error.reason.systemCode, code)
    const { password } = new URL(Redacted.value(url))
    assert.isAbove(password.length, 10)
    for (const text of [
      String(error),
      error.stack ?? "",
      JSON.stringify(error),
      inspect(error, { depth: 10 })
    ]) {
      assert.notInclude(text, password)
    }
  })

const check = (name: string, test: Effect.Effect<unknown, unknown, Scope.Scope>, tester = it) =>
  tester.scopedLive(name, () => test)

describe("TLS", () => {
  check(
    "verify-full accepts the certificate of the host's name and address, and refuses an unknown authority",
    Effect.gen(function* () {
      const authority = yield* makeAuthority("ours")
      const server = yield* makeServer(authority, { names: "DNS:localhost,IP:127.0.0.1" })
      assert.isTrue(yield* on(urlWith(server.url, "verify-full", authority), isEncrypted))
      assert.isTrue(yield* on(urlWith(server.url, "verify-full", authority, "localhost"), isEncrypted))
      const stranger = yield* makeAuthority("stranger")
      for (const unknown of [stranger, undefined]) {
        yield* refused(
          urlWith(server.url, "verify-full", unknown),
          "TLS refused",
          "UNABLE_TO_VERIFY_LEAF_SIGNATURE"
        )
      }
      // The server's access rules, not ours, refuse the plain connection.
      const plain = yield* Effect.flip(on(urlWith(server.url, "disable"), isEncrypted))
      assert.instanceOf(plain, DatabaseError)
      assert.strictEqual(plain.reason._tag, "AuthenticationFailed")
    })
  )

  check(
    "verify-full holds an address against the addresses of the certificate, not against the name localhost",
    Effect.gen(function* () {
      const authority = yield* makeAuthority("ours")
      const server = yield* makeServer(authority, { names: "DNS:localhost" })
      assert.isTrue(yield* on(urlWith(server.url, "verify-full", authority, "localhost"), isEncrypted))
      yield* refused(
        urlWith(server.url, "verify-full", authority),
        "TLS refused",
        "ERR_TLS_CERT_ALTNAME_INVALID"
      )
      const byAddress = yield* makeServer(authority, { names: "IP:127.0.0.1" })
      assert.isTrue(yield* on(urlWith(byAddress.url, "verify-full", authority), isEncrypted))
    }),
    inFull(it)
  )

  check(
    "verify-full refuses a certificate of another name, which verify-ca and require accept",
    Effect.gen(function* () {
      const authority = yield* makeAuthority("ours")
      const server = yield* makeServer(authority, { names: "DNS:db.example.test,IP:192.0.2.1" })
      for (const host of ["localhost", "127.0.0.1"]) {
        yield* refused(
          urlWith(server.url, "verify-full", authority, host),
          "TLS refused",
          "ERR_TLS_CERT_ALTNAME_INVALID"
        )
      }
      assert.isTrue(yield* on(urlWith(server.url, "verify-ca", authority), isEncrypted))
      assert.isTrue(yield* on(urlWith(server.url, "require"), isEncrypted))
    }),
    inFull(it)
  )

  check(
    "verify-full refuses an expired certificate, and require encrypts without looking at it",
    Effect.gen(function* () {
      const authority = yield* makeAuthority("ours")
      const server = yield* makeServer(authority, { names: "DNS:localhost,IP:127.0.0.1", days: -1 })
      yield* refused(urlWith(server.url, "verify-full", authority), "TLS refused", "CERT_HAS_EXPIRED")
      assert.isTrue(yield* on(urlWith(server.url, "require"), isEncrypted))
    }),
    inFull(it)
  )

  check(
    "channel_binding=require logs in where the server binds the login to the connection, and sends no password where it does not",
    Effect.gen(function* () {
      const authority = yield* makeAuthority("ours")
      const names = "DNS:localhost,IP:127.0.0.1"
      const bound = (url: Redacted.Redacted) =>
        Redacted.make(`${Redacted.value(urlWith(url, "verify-full", authority))}&channel_binding=require`)
      const server = yield* makeServer(authority, { names })
      assert.isTrue(yield* on(bound(server.url), isEncrypted))
      for (const method of ["password", "trust"]) {
        const other = yield* makeServer(authority, { names, method })
        assert.isTrue(yield* on(urlWith(other.url, "verify-full", authority), isEncrypted))
        yield* refused(bound(other.url), "no channel binding")
      }
    }),
    inFull(it)
  )

  check(
    "a server without TLS is refused by every mode that asks for it, before the password is sent",
    Effect.gen(function* () {
      const authority = yield* makeAuthority("ours")
      const server = yield* EmbeddedPostgres.make()
      const proxy = yield* Proxy.make(server.url)
      for (const mode of ["require", "verify-full"]) {
        yield* refused(
          urlWith(proxy.url, mode, mode === "require" ? undefined : authority),
          "TLS not offered by the server"
        )
      }
      assert.strictEqual(yield* proxy.count("StartupMessage"), 0)
      assert.strictEqual(yield* proxy.count("PasswordMessage"), 0)
    })
  )

  for (const mode of cases(["verify-full", "require"] as const, (mode) => mode === "verify-full")) {
    inFull(check)(
      `an interrupted statement is cancelled over TLS, with ${mode}`,
      Effect.gen(function* () {
        const authority = yield* makeAuthority("ours")
        const server = yield* makeServer(authority, { names: "IP:127.0.0.1,DNS:localhost" })
        const proxy = yield* Proxy.make(server.url)
        const context = yield* Layer.build(Database.layer({ url: urlWith(server.url, "require") }))
        const active = Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const rows = yield* sql`
            SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'
          `
          return rows.length
        }).pipe(Effect.provide(context))
        const url = urlWith(proxy.url, mode, mode === "require" ? undefined : authority)
        yield* on(
          url,
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            const [before] = yield* sql`SELECT pg_backend_pid() AS pid`
            const sleeper = yield* Effect.fork(sql`SELECT pg_sleep(600)`)
            yield* eventually(
              "it runs",
              Effect.map(active, (count) => count === 1)
            )
            yield* Fiber.interrupt(sleeper)
            yield* eventually(
              "it was cancelled",
              Effect.map(active, (count) => count === 0)
            )
            // Cancelled, and not cut off: the same backend goes on.
            const [after] = yield* sql`SELECT pg_backend_pid() AS pid`
            assert.deepStrictEqual(after, before)
          })
        )
        // The pool may have opened another connection meanwhile; none of them said anything in the
        // clear.
        assert.isAtLeast(yield* proxy.count("SSLRequest"), 2)
        assert.strictEqual(yield* proxy.count("CancelRequest"), 0)
        assert.strictEqual((yield* proxy.connections).dialed, 0)
      })
    )
  }
})
