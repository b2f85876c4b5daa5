import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    testTimeout: 60_000,
    hookTimeout: 120_000,
    include: ["test/**/*.test.ts"],
    exclude: [
      "test/faults/**",
      "test/e2e/**",
      "test/pgbouncer/**",
      "test/foreignKey/Kill.test.ts",
      "test/foreignKey/CrashPartitioned.test.ts",
      "test/foreignKey/ManyPartitions.test.ts"
    ],
    // Some of the generated foreign keys; `npm run test:fk` takes all of them, and minutes.
    env: { FK_PROPERTY_KEYS: process.env["FK_PROPERTY_KEYS"] ?? "72" },
    globalSetup: ["src/testing/globalSetup.ts"],
    pool: "forks",
    maxWorkers: 2,
    minWorkers: 1
  }
})
