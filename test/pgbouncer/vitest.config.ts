import { defineConfig } from "vitest/config"
import { suite } from "../support/suite.js"
import { direct } from "./direct.js"

const escaped = (text: string) => text.replaceAll(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`)

/**
 * `npm run test:pgbouncer`: the integration tests once more, through PgBouncer in transaction mode.
 */
export default defineConfig(
  suite({
    length: "full",
    include: [
      "test/pgbouncer/**/*.test.ts",
      "test/baseline/**/*.test.ts",
      "test/model/**/*.test.ts",
      "test/testing/**/*.test.ts",
      "test/transaction/!(faults).test.ts",
      "test/connection/Statement.test.ts",
      // The others of security/ have servers of their own, or look at what is on the way to one.
      "test/security/limits.test.ts",
      "test/Copy.test.ts",
      "test/Database.test.ts",
      "test/DatabaseError.test.ts",
      "test/ForeignKey.test.ts",
      "test/Health.test.ts",
      "test/Migrator.test.ts",
      "test/Notification.test.ts",
      "test/Observability.test.ts",
      "test/migrations.test.ts"
    ],
    testNamePattern: new RegExp(`^(?!.*(?:${Object.keys(direct).map(escaped).join("|")})$)`),
    globalSetup: "test/pgbouncer/globalSetup.ts"
  })
)
