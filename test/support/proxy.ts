import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"

/** A TCP proxy in front of the server, for what networks do. */
export interface Proxy {
  readonly url: Redacted.Redacted
  /** Passes nothing on any more, and closes nothing: half-open connections, a silent server. */
  frozen: boolean
  /** The same for the connections that there are; new ones work. */
  readonly freezeOpen: () => void
  /** Keeps cancel requests until `releaseCancels`. */
  holdCancels: boolean
  readonly releaseCancels: () => void
  /** How many cancel requests are kept. */
  readonly heldCancels: () => number
  /** Called with what a client sends; `cut` closes its connection, before or after the server gets it. */
  onClientData: ((data: Buffer) => "pass" | "cut before" | "cut after") | undefined
  /** How many connections there were, cancel requests left out. */
  readonly accepted: () => number
  /** Milliseconds that a new connection waits. */
  dialDelayMillis: number
}

/** A proxy in front of the server of `url`; it ends with the scope. */
export const makeProxy = (url: Redacted.Redacted): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.gen(function* () {
    const target = new URL(Redacted.value(url))
    const sockets = new Set<Net.Socket>()
    const held: Array<() => void> = []
    const connections = new Set<{ frozen: boolean }>()
    let accepted = 0

    const serve = (client: Net.Socket) => {
      const server = Net.connect(Number(target.port || 5432), target.hostname)
      let isFirst = true
      const connection = { frozen: false }
      connections.add(connection)
      for (const [socket, other] of [
        [client, server],
        [server, client]
      ] as const) {
        sockets.add(socket)
        socket.setNoDelay(true)
        socket.on("error", () => {})
        socket.on("close", () => {
          sockets.delete(socket)
          if (!proxy.frozen) other.end()
        })
      }
      client.on("data", (data) => {
        const isCancel = isFirst && data.length >= 8 && data.readUInt32BE(4) === cancelRequestCode
        if (isFirst && !isCancel) accepted++
        const delay = isFirst && !isCancel ? proxy.dialDelayMillis : 0
        isFirst = false
        const pass = () => {
          if (proxy.frozen || connection.frozen) return
          const verdict = isCancel ? "pass" : (proxy.onClientData?.(data) ?? "pass")
          if (verdict !== "cut before") server.write(data)
          if (verdict !== "pass") client.destroy()
        }
        if (isCancel && proxy.holdCancels) held.push(pass)
        else if (delay > 0) setTimeout(pass, delay)
        else pass()
      })
      server.on("data", (data) => {
        if (!proxy.frozen && !connection.frozen && client.writable) client.write(data)
      })
    }

    const listener = yield* Effect.acquireRelease(
      Effect.async<Net.Server>((resume) => {
        const server = Net.createServer(serve)
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.sync(() => {
          server.close()
          for (const socket of sockets) socket.destroy()
        })
    )
    const through = new URL(target)
    through.hostname = "127.0.0.1"
    through.port = String((listener.address() as Net.AddressInfo).port)
    const proxy: Proxy = {
      url: Redacted.make(through.toString()),
      frozen: false,
      freezeOpen: () => {
        for (const connection of connections) connection.frozen = true
      },
      holdCancels: false,
      releaseCancels: () => {
        for (const release of held.splice(0)) release()
      },
      heldCancels: () => held.length,
      onClientData: undefined,
      accepted: () => accepted,
      dialDelayMillis: 0
    }
    return proxy
  })

const cancelRequestCode = 80_877_102
