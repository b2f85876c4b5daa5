/** How much of what it could do a test does. */

/** The variable that the configuration of a suite sets for its tests. */
export const lengthVariable = "TEST_LENGTH"

/** Whether every case is run, and not only those that tell most: `npm test` has to be short. */
export const isFull = process.env[lengthVariable] !== "telling"

/** All cases of a full run, else those that tell most. */
export const cases = <A>(all: ReadonlyArray<A>, isTelling: (one: A) => boolean): ReadonlyArray<A> =>
  isFull ? all : all.filter(isTelling)

/**
 * The next of the points 1, 2, 3... at which something is stopped: all of a full run, else ever
 * fewer.
 */
export const next = (at: number): number => (isFull ? at + 1 : at * 2)
