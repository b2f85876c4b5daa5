/** How much of what it could do a test does. */

/** The variable that the configuration of a suite sets for its tests. */
export const lengthVariable = "TEST_LENGTH"

/**
 * `quick` is `npm test`: what tells most, in minutes. `telling` is what each major version of the
 * server is tested with. `full` is everything.
 */
export type Length = "quick" | "telling" | "full"

/** The length that a suite is run at, from `vitest --mode`; full without it. */
export const ofMode = (mode: string): Length => (mode === "quick" || mode === "telling" ? mode : "full")

const length = process.env[lengthVariable] ?? "full"

/** Whether every case is run. */
export const isFull = length === "full"

/** Whether only what tells most is run. */
export const isQuick = length === "quick"

/**
 * All cases of a full run, else those that tell most; of `npm test` those of them that tell most of
 * all.
 */
export const cases = <A>(
  all: ReadonlyArray<A>,
  isTelling: (one: A) => boolean,
  isQuickest: (one: A) => boolean = isTelling
): ReadonlyArray<A> => (isFull ? all : all.filter(isQuick ? isQuickest : isTelling))

/**
 * The next of the points 1, 2, 3... at which something is stopped: all of a full run, else ever
 * fewer.
 */
export const next = (at: number): number => (isFull ? at + 1 : at * (isQuick ? 3 : 2))
