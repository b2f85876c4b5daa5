import { assert, describe, it } from "../support/it.js"
import { SeverityReader } from "../../src/connection/severities.js"

const message = (code: string, body: Buffer) => {
  const header = Buffer.alloc(5)
  header.write(code, 0, "latin1")
  header.writeUInt32BE(body.length + 4, 1)
  return Buffer.concat([header, body])
}

const fields = (...parts: ReadonlyArray<string>) =>
  Buffer.concat([...parts.map((part) => Buffer.from(`${part}\0`)), Buffer.from("\0")])

describe("The severity of an error", () => {
  const wire = Buffer.concat([
    message("D", Buffer.from("a row that holds E\0\0\0\x20SFEHLER\0VFATAL\0")),
    message("N", fields("SHINWEIS", "VNOTICE", "C00000", "Mtext")),
    message("E", fields("SВАЖНО", "VFATAL", "C57P01", `M${"text".repeat(100)}`)),
    message("E", fields("SERROR", "C08P01", "Mof a pooler")),
    message("Z", Buffer.from("I")),
    message("E", fields("Sエラー", "VERROR", "C42601", "Mtext"))
  ])
  const severities = ["NOTICE", "FATAL", undefined, "ERROR"]

  it("is read from the field that no server translates, wherever the stream of bytes is cut", () => {
    for (let size = 1; size <= wire.length; size++) {
      const reader = new SeverityReader()
      for (let at = 0; at < wire.length; at += size) reader.read(wire.subarray(at, at + size))
      assert.deepStrictEqual(
        severities.map(() => reader.next()),
        severities
      )
    }
  })
})
