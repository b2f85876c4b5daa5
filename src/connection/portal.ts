import type { Submittable } from "pg"
import Result from "pg/lib/result.js"
import { prepareValue } from "pg/lib/utils.js"

/** The messages of the extended query protocol that a portal sends. */
interface Wire {
  parse(message: { readonly text: string; readonly name: string }): void
  bind(message: {
    readonly portal: string
    readonly statement: string
    readonly values: ReadonlyArray<unknown>
    readonly valueMapper: (value: unknown) => string | Buffer | null
  }): void
  describe(message: { readonly type: "P"; readonly name: string }): void
  execute(message: { readonly portal: string; readonly rows: number }): void
  close(message: { readonly type: "P" | "S"; readonly name: string }): void
  sendCopyFail(message: string): void
  sync(): void
}

/** A batch of rows, and whether it was the last one. */
export interface Batch {
  readonly rows: ReadonlyArray<object>
  readonly done: boolean
}

/**
 * A result that is read batch by batch: a named portal of the extended query protocol
 * (documentation, chapter "Message Flow"). Each fetch ends with Sync, so that other statements of
 * the same transaction may run between two fetches; a portal therefore lives in a transaction block
 * only.
 */
export class Portal {
  private readonly result = new Result(undefined, undefined)

  constructor(
    private readonly name: string,
    private readonly text: string,
    private readonly values: ReadonlyArray<string | Buffer | null>
  ) {}

  /** Binds the portal and fetches the first rows. */
  open(rows: number): (callback: FetchCallback) => Submittable {
    return (callback) =>
      new Fetch(this.result, callback, (wire) => {
        wire.parse({ text: this.text, name: "" })
        wire.bind({ portal: this.name, statement: "", values: this.values, valueMapper: prepareValue })
        wire.describe({ type: "P", name: this.name })
        wire.execute({ portal: this.name, rows })
        wire.sync()
      })
  }

  /** Fetches the next rows. */
  fetch(rows: number): (callback: FetchCallback) => Submittable {
    return (callback) =>
      new Fetch(this.result, callback, (wire) => {
        wire.execute({ portal: this.name, rows })
        wire.sync()
      })
  }

  /** Gives the portal's resources back to the server. */
  close(): (callback: FetchCallback) => Submittable {
    return (callback) =>
      new Fetch(this.result, callback, (wire) => {
        wire.close({ type: "P", name: this.name })
        wire.sync()
      })
  }
}

type FetchCallback = (error: unknown, batch: Batch | undefined) => void

/** Gives prepared statements back to the server. */
export class CloseStatements implements Submittable {
  constructor(
    private readonly names: ReadonlyArray<string>,
    readonly callback: (error: unknown) => void
  ) {}

  submit(connection: unknown): void {
    const wire = connection as Wire
    for (const name of this.names) wire.close({ type: "S", name })
    wire.sync()
  }

  handleReadyForQuery(): void {
    this.callback(null)
  }

  handleError(error: unknown): void {
    this.callback(error)
  }
}

/** One exchange with the server: `pg` calls the handlers as the answers come in. */
class Fetch implements Submittable {
  private readonly rows: Array<object> = []
  private suspended = false
  private unreadable: unknown

  constructor(
    private readonly result: Result,
    readonly callback: FetchCallback,
    private readonly send: (wire: Wire) => void
  ) {}

  submit(connection: unknown): void {
    this.send(connection as Wire)
  }

  handleRowDescription(message: { readonly fields: ReadonlyArray<unknown> }): void {
    this.result.addFields(message.fields)
  }

  handleDataRow(message: { readonly fields: ReadonlyArray<unknown> }): void {
    try {
      if (this.unreadable === undefined) this.rows.push(this.result.parseRow(message.fields))
    } catch (error) {
      this.unreadable = error
    }
  }

  handlePortalSuspended(): void {
    this.suspended = true
  }

  handleCommandComplete(): void {}

  handleEmptyQuery(): void {}

  handleCopyInResponse(connection: unknown): void {
    const wire = connection as Wire
    wire.sendCopyFail("a stream has nothing to send")
    // The server has read the first Sync as a part of the copy.
    wire.sync()
  }

  handleCopyData(): void {}

  handleReadyForQuery(): void {
    if (this.unreadable !== undefined) return this.callback(this.unreadable, undefined)
    this.callback(null, { rows: this.rows, done: !this.suspended })
  }

  handleError(error: unknown): void {
    this.callback(error, undefined)
  }
}
