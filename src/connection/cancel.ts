import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Net from "node:net"
import * as Tls from "node:tls"
import type { Endpoint } from "./endpoint.js"

/** What the server told a connection at its start, and what it takes to cancel its statement. */
interface BackendKey {
  readonly processId: number
  readonly secretKey: number
}

/** The address that a connection reached: a host name can stand for several servers. */
export interface Peer {
  readonly host: string
  readonly port: number
}

/**
 * Asks the server, on a socket of its own, to cancel what a backend is running (documentation,
 * chapter "Canceling Requests in Progress"). Gives `true` once the server has closed that socket,
 * which it does after it has signalled the backend, and `false` when the request could not be
 * delivered. The socket is encrypted when the connection is.
 */
export const cancel = (endpoint: Endpoint, peer: Peer, key: BackendKey): Effect.Effect<boolean> =>
  Effect.async<boolean>((resume) => {
    const socket = peer.host.startsWith("/")
      ? Net.connect(`${peer.host}/.s.PGSQL.${peer.port}`)
      : Net.connect(peer.port, peer.host)
    let sent = false
    let failed = false
    const send = (stream: Net.Socket) => {
      stream.write(cancelRequest(key))
      sent = true
    }
    const fail = () => {
      failed = true
      socket.destroy()
    }
    socket.on("error", fail)
    socket.on("close", () => resume(Effect.succeed(sent && !failed)))
    socket.on("connect", () => {
      if (endpoint.ssl === false) {
        send(socket)
        socket.resume()
        return
      }
      const options = Redacted.value(endpoint.ssl)
      socket.write(sslRequest)
      socket.once("data", (answer) => {
        if (answer.toString("latin1") !== "S") return fail()
        const secure = Tls.connect({
          ...options,
          socket,
          host: endpoint.host,
          ...(Net.isIP(endpoint.host) === 0 ? { servername: endpoint.host } : {})
        })
        secure.on("error", fail)
        secure.on("secureConnect", () => send(secure))
        secure.resume()
      })
    })
    return Effect.sync(() => socket.destroy())
  })

const cancelRequest = (key: BackendKey): Buffer => {
  const message = Buffer.alloc(16)
  message.writeInt32BE(16, 0)
  message.writeInt32BE(80_877_102, 4)
  message.writeInt32BE(key.processId, 8)
  message.writeInt32BE(key.secretKey, 12)
  return message
}

const sslRequest = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])
