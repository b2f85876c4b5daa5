/**
 * A process of its own that changes every key to CASCADE, for tests that kill it: `changeAll.ts URL
 * SWAP_TRIES`.
 */
import * as Effect from "effect/Effect"
import * as Database from "../../src/Database.js"
import * as ForeignKey from "../../src/ForeignKey.js"

const [url = "", swapTries = "60"] = process.argv.slice(2)

await Effect.runPromise(
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", swapTries: Number(swapTries) }).pipe(
    Effect.provide(Database.layer({ url, minConnections: 1 }))
  )
)
