import type * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Line, PortalHandle, Request, Response } from "../connection/connection.js"
import type { Source } from "../connection/copyIn.js"

/** A connection that passes on what it is asked, for those that change some of it. */
export class WrappedLine implements Line {
  constructor(protected readonly line: Line) {}

  get processId() {
    return this.line.processId
  }

  get isOpen() {
    return this.line.isOpen
  }

  get isQuiet() {
    return this.line.isQuiet
  }

  get quiet() {
    return this.line.quiet
  }

  get abortedBy() {
    return this.line.abortedBy
  }

  get outdated() {
    return this.line.outdated
  }

  get transactionStatus() {
    return this.line.transactionStatus
  }

  get expectsReadOnly() {
    return this.line.expectsReadOnly
  }

  set expectsReadOnly(expects) {
    this.line.expectsReadOnly = expects
  }

  get answerMillis() {
    return this.line.answerMillis
  }

  set answerMillis(millis) {
    this.line.answerMillis = millis
  }

  onClose(listener: (error: unknown) => void): () => void {
    return this.line.onClose(listener)
  }

  destroy(cause?: Error): void {
    this.line.destroy(cause)
  }

  get reset() {
    return this.line.reset
  }

  run(request: Request): Effect.Effect<Response, DatabaseError> {
    return this.line.run(request)
  }

  portal(text: string, values: ReadonlyArray<unknown>): PortalHandle {
    return this.line.portal(text, values)
  }

  copyIn<E, R>(text: string, source: Source<E, R>): Effect.Effect<number, E | DatabaseError, R> {
    return this.line.copyIn(text, source)
  }
}
