import { defineConfig } from "vitest/config"
import { suite } from "../support/suite.js"

/**
 * `npm run test:fk`, on the major version POSTGRES_VERSION: all that changes foreign keys, in every
 * case. With `--mode telling` only the cases that tell most.
 */
export default defineConfig(({ mode }) =>
  suite({
    length: mode === "telling" ? "telling" : "full",
    include: ["test/ForeignKey.test.ts", "test/foreignKey/**/*.test.ts", "test/purge/**/*.test.ts"]
  })
)
