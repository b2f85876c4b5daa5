import { defineConfig } from "vitest/config"

/** The integration tests once more, through PgBouncer in transaction mode. */
export default defineConfig({
  test: {
    testTimeout: 60_000,
    hookTimeout: 120_000,
    include: [
      "test/pgbouncer/**/*.test.ts",
      "test/baseline/**/*.test.ts",
      "test/model/**/*.test.ts",
      "test/testing/**/*.test.ts",
      "test/transaction/**/*.test.ts",
      "test/Health.test.ts",
      "test/Migrator.test.ts",
      "test/Notification.test.ts",
      "test/Observability.test.ts",
      "test/migrations.test.ts"
    ],
    globalSetup: ["test/pgbouncer/globalSetup.ts"],
    pool: "forks",
    maxWorkers: 2,
    minWorkers: 1
  }
})
