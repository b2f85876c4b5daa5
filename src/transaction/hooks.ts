import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"

/** How a transaction can end. A COMMIT whose outcome is unknown is neither. */
export type Outcome = "committed" | "rolledBack"

/** An effect that waits for the end of a transaction. */
interface Hook {
  readonly when: Outcome
  readonly effect: Effect.Effect<unknown, unknown>
}

/**
 * What is to run after the outermost transaction has ended. A level hands its hooks to the level
 * around it when it is released, and is dropped with its savepoint: then only what waits for a
 * rollback is left.
 */
export class Hooks {
  private waiting: Array<Hook> = []

  add(hook: Hook): void {
    this.waiting.push(hook)
  }

  /** Takes over what a nested level left when it ended with `outcome`. */
  adopt(nested: Hooks, outcome: Outcome): void {
    for (const hook of nested.waiting) {
      if (outcome === "committed") this.waiting.push(hook)
      // Its own level was rolled back: it runs whatever becomes of the levels around.
      else if (hook.when === "rolledBack") this.waiting.push({ ...hook, when: "committed" }, hook)
    }
  }

  /**
   * Runs, in the order of their registration, the hooks for an outcome. One that fails is logged,
   * and undoes nothing. The end of a transaction cannot be interrupted; each hook has a fiber of
   * its own, so that what it interrupts itself, by a timeout for instance, ends.
   */
  run(outcome: Outcome): Effect.Effect<void> {
    return Effect.forEach(
      this.waiting.splice(0).filter(({ when }) => when === outcome),
      ({ effect, when }) =>
        Effect.catchAllCause(alone(effect), (cause) =>
          Cause.isInterruptedOnly(cause)
            ? Effect.void
            : Effect.logError(`An effect that ran after its transaction was ${described[when]} failed`, cause)
        ),
      { discard: true }
    )
  }
}

/** An interruption reaches a fiber's children, so it is none. */
const alone = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.flatMap(Effect.forkDaemon(Effect.interruptible(effect)), Fiber.join)

const described: { readonly [When in Outcome]: string } = {
  committed: "committed",
  rolledBack: "rolled back"
}
