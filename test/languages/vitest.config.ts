import { defineConfig } from "vitest/config"
import { suite } from "../support/suite.js"

/**
 * `npm run test:languages`: the tests of errors once more, on a server whose messages are not
 * English.
 */
export default defineConfig(
  suite({
    length: "full",
    include: [
      "test/languages/**/*.test.ts",
      "test/client/Reserved.test.ts",
      "test/connection/StalePlan.test.ts",
      "test/connection/Statement.test.ts",
      "test/transaction/!(faults).test.ts",
      "test/migrator/**/*.test.ts",
      "test/foreignKey/Orphans.test.ts",
      "test/foreignKey/TooSlow.test.ts",
      "test/security/limits.test.ts",
      "test/Copy.test.ts",
      "test/Database.test.ts",
      "test/DatabaseError.test.ts",
      "test/Health.test.ts",
      "test/Migrator.test.ts",
      "test/Notification.test.ts"
    ],
    globalSetup: "test/languages/globalSetup.ts"
  })
)
