/**
 * Which statements of one connection are prepared on the server, and under which name.
 *
 * A statement is prepared when its text comes for the second time, so that statements that come once cost the server
 * nothing. The least recently used one is given up when `capacity` is reached.
 */
export class StatementCache {
  /** Text to name; `undefined` for a text seen once. In the order of use, the oldest first. */
  private readonly names = new Map<string, string | undefined>()
  private readonly discarded: Array<string> = []
  private next = 1

  constructor(private readonly capacity = 256) {}

  /** The name to run a statement under, or `undefined` to run it unprepared. */
  use(text: string): string | undefined {
    const seen = this.names.has(text)
    const name = seen ? (this.names.get(text) ?? `s${this.next++}`) : undefined
    this.names.delete(text)
    this.names.set(text, name)
    if (this.names.size > this.capacity) {
      const [oldest] = this.names.keys()
      if (oldest !== undefined) this.forget(oldest)
    }
    return name
  }

  /** Gives every statement up: their plans no longer fit. */
  clear(): void {
    for (const text of this.names.keys()) this.forget(text)
  }

  private forget(text: string): void {
    const name = this.names.get(text)
    this.names.delete(text)
    if (name !== undefined) this.discarded.push(name)
  }

  /** The names that the server can deallocate; each is given out once. */
  takeDiscarded(): ReadonlyArray<string> {
    return this.discarded.splice(0)
  }
}
