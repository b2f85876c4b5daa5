import * as Effect from "effect/Effect"
import * as Net from "node:net"

/** A port of loopback that nobody uses. */
export const freePort = Effect.async<number>((resume) => {
  const probe = Net.createServer()
  probe.listen(0, "127.0.0.1", () => {
    const address = probe.address()
    probe.close(() =>
      resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0))
    )
  })
})

/** Whether somebody listens on a port of loopback. */
export const listens = (port: number): Effect.Effect<boolean> =>
  Effect.async((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    const end = (result: boolean) => {
      socket.destroy()
      resume(Effect.succeed(result))
    }
    socket.on("connect", () => end(true))
    socket.on("error", () => end(false))
  })
