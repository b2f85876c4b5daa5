import { defineConfig } from "vitest/config"
import { suite } from "./test/support/suite.js"

/**
 * `npm test`: each part of the product with the cases that tell most. With `--mode full` all of
 * them.
 */
export default defineConfig(({ mode }) =>
  suite({
    length: mode === "full" ? "full" : "quick",
    include: ["test/**/*.test.ts"],
    exclude: [
      "test/faults/**",
      "test/transaction/faults.test.ts",
      "test/e2e/**",
      "test/pgbouncer/**",
      "test/languages/**",
      ...(mode === "full" ? [] : onlyInFull)
    ]
  })
)

/** Tests that are long because they are thorough, of what others test too. */
const onlyInFull = [
  "test/foreignKey/Kill.test.ts",
  "test/foreignKey/CrashPartitioned.test.ts",
  "test/foreignKey/ManyPartitions.test.ts",
  "test/foreignKey/OtherWays.test.ts",
  "test/foreignKey/PartitionsMeanwhile.test.ts",
  "test/foreignKey/Stall.test.ts",
  "test/foreignKey/Validation.test.ts",
  "test/support/Proxy.test.ts"
]
