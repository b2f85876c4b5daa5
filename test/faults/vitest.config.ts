import { defineConfig } from "vitest/config"

/** The fault checks, on the major version POSTGRES_VERSION. One file at a time: several of them measure time. */
export default defineConfig({
  test: {
    // Every check by its id, also those that pass.
    reporters: ["verbose"],
    testTimeout: 120_000,
    hookTimeout: 120_000,
    include: ["test/faults/**/*.test.ts"],
    globalSetup: ["test/faults/globalSetup.ts"],
    pool: "forks",
    poolOptions: { forks: { execArgv: ["--expose-gc"] } },
    fileParallelism: false
  }
})
