import type * as Effect from "effect/Effect"
import type { DatabaseError } from "../DatabaseError.js"
import type { Connection, PortalHandle, Request, Response } from "../connection/connection.js"
import type { Source } from "../connection/copyIn.js"

/** A connection that passes on what it is asked, for those that change some of it. */
export class WrappedConnection implements Connection {
  constructor(protected readonly inner: Connection) {}

  get processId() {
    return this.inner.processId
  }

  get isOpen() {
    return this.inner.isOpen
  }

  get isQuiet() {
    return this.inner.isQuiet
  }

  get quiet() {
    return this.inner.quiet
  }

  get abortedBy() {
    return this.inner.abortedBy
  }

  get outdated() {
    return this.inner.outdated
  }

  get transactionStatus() {
    return this.inner.transactionStatus
  }

  get expectsReadOnly() {
    return this.inner.expectsReadOnly
  }

  set expectsReadOnly(expects) {
    this.inner.expectsReadOnly = expects
  }

  get answerMillis() {
    return this.inner.answerMillis
  }

  set answerMillis(millis) {
    this.inner.answerMillis = millis
  }

  onClose(listener: (error: unknown) => void): () => void {
    return this.inner.onClose(listener)
  }

  destroy(cause?: Error): void {
    this.inner.destroy(cause)
  }

  get reset() {
    return this.inner.reset
  }

  run(request: Request): Effect.Effect<Response, DatabaseError> {
    return this.inner.run(request)
  }

  portal(text: string, values: ReadonlyArray<unknown>): PortalHandle {
    return this.inner.portal(text, values)
  }

  copyIn<E, R>(text: string, source: Source<E, R>): Effect.Effect<number, E | DatabaseError, R> {
    return this.inner.copyIn(text, source)
  }
}
