/**
 * Counts how often the statements of a pool's connections became outdated: each connection compares
 * what it prepared with it.
 */
export class Generation {
  current = 0
}

/**
 * Which statements of one connection are prepared on the server, and under which name.
 *
 * A statement is prepared when its text comes for the second time, so that statements that come
 * once cost the server nothing. The least recently used one is given up when `capacity` is reached.
 * What was prepared in an older generation is prepared anew before it is run.
 */
export class StatementCache {
  /**
   * Text to name; `undefined` for a text that is not prepared. In the order of use, the oldest
   * first.
   */
  private readonly names = new Map<string, string | undefined>()
  private readonly discarded: Array<string> = []
  private next = 1
  private known: number

  constructor(
    private readonly generation = new Generation(),
    private readonly capacity = 256
  ) {
    this.known = generation.current
  }

  /**
   * The name to run a statement under, or `undefined` to run it unprepared. `atOnce`: it is
   * prepared although it comes for the first time.
   */
  use(text: string, atOnce = false): string | undefined {
    if (this.known !== this.generation.current) this.prepareAnew()
    const seen = atOnce || this.names.has(text)
    const name = seen ? (this.names.get(text) ?? `s${this.next++}`) : undefined
    this.names.delete(text)
    this.names.set(text, name)
    if (this.names.size > this.capacity) {
      const [oldest] = this.names.keys()
      if (oldest !== undefined) {
        this.discard(oldest)
        this.names.delete(oldest)
      }
    }
    return name
  }

  /** Gives up what this connection has prepared. */
  prepareAnew(): void {
    this.known = this.generation.current
    for (const text of this.names.keys()) this.discard(text)
  }

  /**
   * Gives up what every connection of the pool has prepared, unless another one found out first.
   */
  outdate(): void {
    if (this.known === this.generation.current) this.generation.current++
    this.prepareAnew()
  }

  /** Gives up one statement. It is prepared anew when it comes again. */
  discard(text: string): void {
    const name = this.names.get(text)
    if (name === undefined) return
    this.names.set(text, undefined)
    this.discarded.push(name)
  }

  /** The names that the server can deallocate; each is given out once. */
  takeDiscarded(): ReadonlyArray<string> {
    return this.discarded.splice(0)
  }
}
