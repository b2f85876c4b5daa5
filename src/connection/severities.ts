import { Buffer } from "node:buffer"

/** What of `pg`'s connection the severities are read with. */
export interface SeveritySource {
  readonly stream: { prependListener(event: "data", listener: (chunk: Buffer) => void): unknown }
  once(event: "sslconnect", listener: () => void): unknown
  prependListener(
    event: "errorMessage" | "notice",
    listener: (message: { severity?: string }) => void
  ): unknown
}

/**
 * Gives the errors and notices of a connection their severity in English (field V, documentation,
 * chapter "Error and Notice Message Fields"). `pg` keeps the translated one only (field S), and
 * FATAL has to be told from ERROR in every language. To be called before the connection is opened.
 */
export const readSeverities = (connection: SeveritySource, encrypted: boolean): void => {
  const reader = new SeverityReader()
  const listen = () => connection.stream.prependListener("data", (chunk) => reader.read(chunk))
  if (encrypted) connection.once("sslconnect", listen)
  else listen()
  const annotate = (message: { severity?: string }) => {
    // What `pg` makes up about bytes that are no message has none.
    if (message.severity !== undefined) message.severity = reader.next() ?? message.severity
  }
  connection.prependListener("errorMessage", annotate)
  connection.prependListener("notice", annotate)
}

/** Goes from message to message, and looks into errors and notices only. */
export class SeverityReader {
  private readonly found: Array<string | undefined> = []
  /** The beginning of a message that is cut, as far as it is needed. */
  private cut: Buffer | undefined
  /** How many bytes of the next chunk belong to a message that was looked at. */
  private rest = 0

  /**
   * The severity of the next error or notice; `undefined` from a server that does not send it (a
   * pooler, which speaks English).
   */
  next(): string | undefined {
    return this.found.shift()
  }

  read(chunk: Buffer): void {
    const bytes = this.cut === undefined ? chunk : Buffer.concat([this.cut, chunk])
    let at = this.rest
    this.cut = undefined
    while (at + headerLength <= bytes.length) {
      const code = bytes[at]
      if (code === error || code === notice) {
        const severity = severityIn(bytes, at + headerLength)
        if (severity === null) break
        this.found.push(severity)
      }
      at += 1 + bytes.readUInt32BE(at + 1)
    }
    if (at < bytes.length) this.cut = bytes.subarray(at)
    this.rest = Math.max(at - bytes.length, 0)
  }
}

const headerLength = 5
const error = 0x45
const notice = 0x4e
const fieldV = 0x56

/** Field V, which the server sends second; null when it has not come yet. */
const severityIn = (bytes: Buffer, start: number): string | null | undefined => {
  const endOfFirst = bytes.indexOf(0, start)
  if (endOfFirst === -1 || endOfFirst + 1 >= bytes.length) return null
  if (bytes[endOfFirst + 1] !== fieldV) return undefined
  const end = bytes.indexOf(0, endOfFirst + 2)
  return end === -1 ? null : bytes.toString("latin1", endOfFirst + 2, end)
}
