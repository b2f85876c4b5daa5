import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"

/** The line between two programs, and what can happen to it. */
export interface Line {
  readonly port: number
  /** Passes nothing on, and keeps it. */
  readonly hold: Effect.Effect<void>
  /** Passes on what was kept, and what comes. */
  readonly release: Effect.Effect<void>
  /** Breaks the connections that there are, and every new one until `mend`. */
  readonly cut: Effect.Effect<void>
  readonly mend: Effect.Effect<void>
  /** Where new connections lead. */
  readonly leadTo: (port: number) => Effect.Effect<void>
}

/** A line to a port of this machine. */
export const make = (to: number): Effect.Effect<Line, never, Scope.Scope> =>
  Effect.gen(function* () {
    const sockets = new Set<Net.Socket>()
    let target = to
    let held = false
    let broken = false

    const connect = (from: Net.Socket) => {
      if (broken) {
        from.destroy()
        return
      }
      const there = Net.connect(target, "127.0.0.1")
      for (const [socket, other] of [
        [from, there],
        [there, from]
      ] as const) {
        sockets.add(socket)
        socket.setNoDelay(true)
        socket.on("data", (data) => other.write(data))
        // A connection that breaks is what this is for.
        socket.on("error", () => {})
        socket.on("end", () => other.end())
        socket.on("close", () => {
          sockets.delete(socket)
          other.destroy()
        })
        if (held) socket.pause()
      }
    }
    const listener = yield* Effect.acquireRelease(
      Effect.async<Net.Server>((resume) => {
        const server = Net.createServer(connect)
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.async<void>((resume) => {
          server.close(() => resume(Effect.void))
          for (const socket of sockets) socket.destroy()
        })
    )
    return {
      port: (listener.address() as Net.AddressInfo).port,
      hold: Effect.sync(() => {
        held = true
        for (const socket of sockets) socket.pause()
      }),
      release: Effect.sync(() => {
        held = false
        for (const socket of sockets) socket.resume()
      }),
      cut: Effect.sync(() => {
        broken = true
        for (const socket of sockets) socket.destroy()
      }),
      mend: Effect.sync(() => {
        broken = false
      }),
      leadTo: (port) =>
        Effect.sync(() => {
          target = port
        })
    }
  })
