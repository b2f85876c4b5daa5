/** How much of what it could do a test does. */

/** The variable that the configuration of a suite sets for its tests; not empty in a full run. */
export const isFullVariable = "TEST_FULL"

/** Whether every case is run, and not only those that tell most: `npm test` has to be short. */
export const isFull = (process.env[isFullVariable] ?? "") !== ""

/** All cases of a full run, else those that tell most. */
export const cases = <A>(all: ReadonlyArray<A>, isTelling: (one: A) => boolean): ReadonlyArray<A> =>
  isFull ? all : all.filter(isTelling)
