import { defineConfig } from "vitest/config"

/** The browser tests: `npm run test:e2e`. One file after the other, since the latencies that they measure are of one pair of tabs. */
export default defineConfig({
  test: {
    testTimeout: 60_000,
    hookTimeout: 120_000,
    include: ["test/e2e/**/*.test.ts"],
    globalSetup: ["src/testing/globalSetup.ts"],
    pool: "forks",
    fileParallelism: false
  }
})
