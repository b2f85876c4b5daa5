import type { Buffer } from "node:buffer"

/** The socket of a client that is being opened. */
export interface HandshakeStream {
  prependOnceListener(event: "data", listener: (chunk: Buffer) => void): unknown
}

/**
 * Calls back when the first bytes cannot come from a PostgreSQL server. `pg` itself takes them for the length of a message
 * and waits for the rest of it.
 */
export const watchHandshake = (stream: HandshakeStream, encrypted: boolean, foreign: () => void): void => {
  stream.prependOnceListener("data", (chunk) => {
    const first = chunk.toString("latin1", 0, 1)
    const known = encrypted
      ? first === "E" || (chunk.length === 1 && (first === "S" || first === "N"))
      : "REvN".includes(first) && (chunk.length < 5 || chunk.readUInt32BE(1) < maxFirstMessage)
    if (!known) foreign()
  })
}

/** Longer than any message that a server begins with. */
const maxFirstMessage = 30_000
