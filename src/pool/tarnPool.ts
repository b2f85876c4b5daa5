import * as Tarn from "tarn"

/**
 * The pool of `tarn`, which keeps count of what is free, used and being opened, and of who waits.
 * Three things of it are not enough here, and subclasses may do them: a free connection is handed
 * over at once, without a promise and two timers; whoever gives up waiting leaves the queue in the
 * same instant (`abort` leaves the queue some microtasks later, and a connection that is released
 * meanwhile goes to nobody, and never comes back); and what was idle for too long is for the user
 * of this class to find and {@link discard}: `tarn` measures it by the time of day, which can jump.
 */
export class TarnPool<T> extends Tarn.Pool<T> {
  /** A free resource that is `ready`, unless others wait. */
  take(ready: (resource: T) => boolean): T | undefined {
    const free = this.pendingAcquires.length === 0 ? this.free.at(-1) : undefined
    if (free === undefined || !ready(free.resource)) return undefined
    this.free.pop()
    this.used.push(free)
    return free.resource
  }

  /** Gives up waiting. Not possible any more when a resource is being handed over: `false`. */
  withdraw(pending: Pending<T>): boolean {
    if (!remove(this.pendingAcquires, (other) => other === pending)) return false
    pending.abort()
    return true
  }

  /**
   * Ends a wait that has lasted for too long, with `tarn`'s `TimeoutError`; no more when a resource
   * has been handed over.
   */
  expire(pending: Pending<T>): void {
    remove(this.pendingAcquires, (other) => other === pending)
    // `tarn` would know some microtasks later, and hand a resource over meanwhile that nobody
    // takes.
    pending.isRejected = true
    pending.reject(new Tarn.TimeoutError())
  }

  /**
   * Removes a free resource for good; `false` when it is in use. Closing it is left
   * to the caller.
   */
  discard(resource: T): boolean {
    return remove(this.free, (free) => free.resource === resource)
  }

  /**
   * Removes a resource in use for good, which makes room for another one. Closing it is left to the
   * caller.
   */
  drop(resource: T): void {
    if (remove(this.used, (used) => used.resource === resource)) this._tryAcquireOrCreate()
  }

  /** Switches off the eviction of `tarn`. */
  override _startReaping(): void {}

  /**
   * Opens what is missing to `min`, and `more` where there is room; gives the promises of what is
   * being opened.
   */
  topUp(more = 0): ReadonlyArray<Promise<T>> {
    const count = this.used.length + this.free.length + this.pendingCreates.length
    const missing = Math.min(this.min + more, this.max) - count
    return Array.from({ length: this.destroyed ? 0 : Math.max(missing, 0) }, () =>
      this._create().promise.then((resource) => {
        this._tryAcquireOrCreate()
        return resource
      })
    )
  }

  /** Whether it is open and nobody uses it. */
  isFree(resource: T): boolean {
    return this.free.some((free) => free.resource === resource)
  }

  /** How many are open. */
  get open(): number {
    return this.used.length + this.free.length
  }

  /** Whether fewer than `min` are open. */
  get isBelowMinimum(): boolean {
    return this.used.length + this.free.length < this.min
  }

  /** Fails whoever waits longest. */
  failFirst(error: unknown): void {
    this.pendingAcquires.shift()?.reject(error as Error)
  }

  /** Fails everybody who waits and stops; what is in use is not waited for. */
  async shutDown(error: unknown): Promise<void> {
    while (this.pendingAcquires.length > 0) this.failFirst(error)
    for (const used of this.used) used.settle()
    await this.destroy()
  }
}

/** A wait of `tarn`. */
export type Pending<T> = ReturnType<Tarn.Pool<T>["acquire"]>

const remove = <A>(items: Array<A>, matches: (item: A) => boolean): boolean => {
  const index = items.findIndex(matches)
  if (index < 0) return false
  items.splice(index, 1)
  return true
}
