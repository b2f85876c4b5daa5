import { defineConfig } from "vitest/config"

/** The foreign-key engine at full length: every generated key, every statement at which a client can be killed. */
export default defineConfig({
  test: {
    testTimeout: 60_000,
    hookTimeout: 120_000,
    include: ["test/ForeignKey.test.ts", "test/foreignKey/**/*.test.ts", "test/purge/**/*.test.ts"],
    globalSetup: ["src/testing/globalSetup.ts"],
    pool: "forks",
    maxWorkers: 2,
    minWorkers: 1
  }
})
