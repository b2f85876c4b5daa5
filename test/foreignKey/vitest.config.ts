import { defineConfig } from "vitest/config"
import { ofMode } from "../support/length.js"
import { suite } from "../support/suite.js"

/**
 * `npm run test:fk`, on the major version POSTGRES_VERSION: all that changes foreign keys, in every
 * case. With `--mode telling` only the cases that tell most, with `--mode quick` those of `npm
 * test`.
 */
export default defineConfig(({ mode }) =>
  suite({
    length: ofMode(mode),
    include: ["test/ForeignKey.test.ts", "test/foreignKey/**/*.test.ts", "test/purge/**/*.test.ts"]
  })
)
