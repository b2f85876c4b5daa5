import { defineConfig } from "vitest/config"
import { onlyInFull, suite } from "./test/support/suite.js"

/** `npm test`: each part of the product with the cases that tell most. With `--mode full` all of them. */
export default defineConfig(({ mode }) =>
  suite({
    length: mode === "full" ? "full" : "telling",
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
