/** How fast this machine is now, so that no test fails because it is slow, or busy. */
import * as Duration from "effect/Duration"
import { createHash } from "node:crypto"

/**
 * Milliseconds of {@link work} on the machine that limits were chosen on, with nothing beside it.
 */
const usualMillis = 100

const work = () => {
  const digest = createHash("sha256")
  const block = Buffer.alloc(64 * 1024, "promptgrimoire")
  for (let n = 0; n < 1536; n++) digest.update(block)
  digest.digest()
}

/** How many times longer than usual everything takes now, at least 1. */
export const slowness = (): number => {
  const start = performance.now()
  work()
  return Math.max(1, (performance.now() - start) / usualMillis)
}

/** The variable in which the configuration of a suite hands the slowness to its tests. */
export const variable = "TEST_SLOWNESS"

/**
 * A limit that nothing but a fault reaches. It is given as what is generous on a usual machine.
 * Where time is what a test is about, the test compares two things of one run instead.
 */
export const safetyNet = (generous: Duration.DurationInput): Duration.Duration =>
  Duration.times(Duration.decode(generous), Number(process.env[variable] ?? 1))
