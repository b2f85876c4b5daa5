import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"

/**
 * Urls of a primary and of its hot standby, which streams from it and lets no reader delay the
 * replay.
 */
export interface Pair {
  readonly primary: Redacted.Redacted
  readonly standby: Redacted.Redacted
}

/** A primary and a standby of it: a copy of the stopped primary, with `standby.signal`. */
export const make: Effect.Effect<Pair, never, Scope.Scope> = Effect.gen(function* () {
  const home = yield* directory
  const [first, second] = [Path.join(home, "primary"), Path.join(home, "standby")]
  const data = yield* Effect.scoped(
    Effect.map(EmbeddedPostgres.make({ dataDirectory: first }), ({ dataDirectory }) => dataDirectory)
  )
  yield* Effect.sync(() => {
    // Unlike Node's copy, this one keeps the owner, which is the server's account.
    const { status, stderr } = spawnSync("cp", ["-a", first, second], { encoding: "utf8" })
    if (status !== 0) throw new Error(`cannot copy the primary: ${stderr}`)
    Fs.writeFileSync(Path.join(second, Path.relative(first, data), "standby.signal"), "")
  })
  const primary = yield* EmbeddedPostgres.make({ dataDirectory: first })
  const { hostname, password, port, username } = new URL(Redacted.value(primary.url))
  const standby = yield* EmbeddedPostgres.make({
    dataDirectory: second,
    settings: {
      primary_conninfo: `host=${hostname} port=${port} user=${username} password=${password}`,
      max_standby_streaming_delay: "0"
    }
  })
  return { primary: primary.url, standby: standby.url }
}).pipe(Effect.orDie)

const directory = Effect.acquireRelease(
  Effect.sync(() => {
    const created = Fs.realpathSync(Fs.mkdtempSync(Path.join(Os.tmpdir(), "standby-test-")))
    Fs.chmodSync(created, 0o711)
    return created
  }),
  (created) => Effect.sync(() => Fs.rmSync(created, { recursive: true, force: true, maxRetries: 10 }))
)
