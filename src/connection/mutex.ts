import * as Effect from "effect/Effect"

/** What an `Effect.uninterruptibleMask` gives: makes a part interruptible, where the caller is. */
export type Restore = Wait<never>

/** A restore that may also give up, with an error of its own. */
export type Wait<Gone> = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | Gone, R>

/**
 * One at a time, first come first served. Unlike a semaphore's permit, a turn is never lost to an
 * interruption that comes between the moment it is given and the moment the fiber takes it: a
 * transaction would never end then.
 */
export class Mutex {
  private taken = false
  private isFree = false
  private readonly waiting = new Set<Ticket>()

  /** Runs a step when its turn has come. */
  readonly run = <A, E, R>(step: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.zipRight(this.take(restore), Effect.ensuring(restore(step), this.pass))
    )

  /** Waits for a turn; for a caller that cannot be interrupted but in what it `restore`s. */
  readonly take = <Gone = never>(restore: Wait<Gone>): Effect.Effect<void, Gone> =>
    Effect.suspend((): Effect.Effect<void, Gone> => {
      if (this.isFree) return Effect.void
      if (!this.taken) {
        this.taken = true
        return Effect.void
      }
      const ticket: Ticket = { given: false, resume: undefined }
      this.waiting.add(ticket)
      const wait = Effect.async<void>((resume) => {
        ticket.resume = () => resume(Effect.void)
        if (ticket.given) ticket.resume()
      })
      return Effect.matchCauseEffect(restore(wait), {
        onSuccess: () => Effect.void,
        onFailure: (cause) =>
          Effect.suspend(() => {
            if (ticket.given) this.next()
            else this.waiting.delete(ticket)
            return Effect.failCause(cause)
          })
      })
    })

  /** Ends a turn. */
  readonly pass: Effect.Effect<void> = Effect.sync(() => this.next())

  /** Nobody has to wait for a turn any more: what was taken in turns is gone. */
  free(): void {
    this.isFree = true
    for (const ticket of this.waiting) {
      ticket.given = true
      ticket.resume?.()
    }
    this.waiting.clear()
  }

  private next(): void {
    if (this.isFree) return
    const [ticket] = this.waiting
    if (ticket === undefined) {
      this.taken = false
      return
    }
    this.waiting.delete(ticket)
    ticket.given = true
    ticket.resume?.()
  }
}

interface Ticket {
  given: boolean
  resume: (() => void) | undefined
}
