import { defineConfig } from "vitest/config"
import { suite } from "../support/suite.js"

/**
 * `npm run test:e2e`. One file at a time: the latencies that they measure are of one pair of tabs.
 */
export default defineConfig(suite({ length: "full", include: ["test/e2e/**/*.test.ts"], alone: true }))
