import { defineConfig } from "vitest/config"
import { ofMode } from "../support/length.js"
import { suite } from "../support/suite.js"

/**
 * `npm run test:faults`, on the major version POSTGRES_VERSION. One file at a time: several of them
 * measure time. With `--mode telling` the long runs are shorter.
 */
export default defineConfig(({ mode }) =>
  suite({
    length: ofMode(mode),
    include: ["test/faults/**/*.test.ts", "test/transaction/faults.test.ts"],
    globalSetup: "test/faults/globalSetup.ts",
    alone: true,
    execArgv: ["--expose-gc"]
  })
)
