import type { Buffer } from "node:buffer"
import type { EventEmitter } from "node:events"

/** The socket of a client that is being opened. */
export interface HandshakeStream {
  prependOnceListener(event: "data", listener: (chunk: Buffer) => void): unknown
}

/**
 * Calls back when the first bytes cannot come from a PostgreSQL server. `pg` itself takes them for
 * the length of a message and waits for the rest of it.
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

/**
 * Watches how a server lets a client in; gives whether it has asked for a password. `unbound` is
 * called before a password is sent, or the client let in, without a binding of the login to the TLS
 * connection (RFC 5802, SCRAM-SHA-256-PLUS).
 */
export const watchAuthentication = (connection: EventEmitter, unbound: () => void): (() => boolean) => {
  let isAsked = false
  let isBound = false
  for (const event of ["authenticationCleartextPassword", "authenticationMD5Password"]) {
    connection.prependListener(event, () => {
      isAsked = true
      unbound()
    })
  }
  connection.prependListener(
    "authenticationSASL",
    ({ mechanisms }: { readonly mechanisms: ReadonlyArray<string> }) => {
      isAsked = true
      isBound = mechanisms.includes("SCRAM-SHA-256-PLUS")
      if (!isBound) unbound()
    }
  )
  connection.prependListener("authenticationOk", () => {
    if (!isBound) unbound()
  })
  return () => isAsked
}

/** Longer than any message that a server begins with. */
const maxFirstMessage = 30_000
