import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as ServerAccount from "../../src/embedded/serverAccount.js"

/** A directory with a certificate authority, removed with the scope. */
export interface Authority {
  readonly directory: string
  /** The file of its certificate, for `sslrootcert`. */
  readonly certificate: string
}

/** What a server's certificate says. */
export interface Subject {
  /** As OpenSSL's `subjectAltName`: `DNS:localhost,IP:127.0.0.1`. */
  readonly names: string
  /** Days until it expires; negative when it has. */
  readonly days?: number
  /** How it lets clients in, as pg_hba.conf says it. */
  readonly method?: string
}

/** A certificate authority of our own. */
export const makeAuthority = (name: string): Effect.Effect<Authority, never, Scope.Scope> =>
  Effect.gen(function* () {
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const made = fs.mkdtempSync(path.join(os.tmpdir(), "promptgrimoire-tls-"))
        // The server runs under another account when we are root.
        fs.chmodSync(made, 0o711)
        return made
      }),
      (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true, force: true }))
    )
    yield* openssl(directory, ["req", "-x509", ...newKey("ca.key"), "-out", "ca.crt", "-subj", `/CN=${name}`])
    return { directory, certificate: path.join(directory, "ca.crt") }
  })

/** A server that speaks TLS with a certificate of the authority, and takes nobody without TLS. */
export const makeServer = (authority: Authority, { days = 2, method = "scram-sha-256", names }: Subject) =>
  Effect.gen(function* () {
    const { directory } = authority
    const file = (name: string) => path.join(directory, name)
    fs.writeFileSync(file("extensions"), `subjectAltName=${names}\n`)
    yield* openssl(directory, [
      "req",
      "-new",
      ...newKey("server.key"),
      "-out",
      "request",
      "-subj",
      "/CN=server"
    ])
    yield* openssl(directory, [
      "x509",
      "-req",
      "-in",
      "request",
      "-out",
      "server.crt",
      "-days",
      String(days),
      "-CA",
      "ca.crt",
      "-CAkey",
      "ca.key",
      "-CAcreateserial",
      "-extfile",
      "extensions"
    ])
    fs.writeFileSync(file("pg_hba.conf"), `hostssl all all 127.0.0.1/32 ${method}\n`)
    const account = yield* ServerAccount.find(["postgres", "nobody"])
    for (const name of ["server.key", "server.crt", "pg_hba.conf"]) {
      if (Option.isSome(account)) fs.chownSync(file(name), account.value.uid, account.value.gid)
      fs.chmodSync(file(name), 0o600)
    }
    return yield* EmbeddedPostgres.make({
      settings: {
        ssl: "on",
        ssl_cert_file: file("server.crt"),
        ssl_key_file: file("server.key"),
        hba_file: file("pg_hba.conf")
      }
    })
  })

// -----------------------------------------------------------------------------

const newKey = (file: string) => [
  "-newkey",
  "ec",
  "-pkeyopt",
  "ec_paramgen_curve:prime256v1",
  "-nodes",
  "-keyout",
  file
]

const openssl = (cwd: string, args: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.sync(() => {
    try {
      execFileSync("openssl", args, { cwd, stdio: "pipe" })
    } catch (error) {
      if (error instanceof Error && "code" in error && error.code === "ENOENT") {
        throw new Error(
          "The tests of TLS make their certificates with openssl: install it (apt install openssl)",
          {
            cause: error
          }
        )
      }
      throw error
    }
  })
