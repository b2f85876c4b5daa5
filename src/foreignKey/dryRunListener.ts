import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Database } from "../Database.js"
import type { DatabaseError } from "../DatabaseError.js"
import type { PlanResult } from "./types.js"
import type { NoMatch } from "./plan/selection.js"

/** What a change would do to the database that it is provided with. */
export type Planned = Effect.Effect<PlanResult, DatabaseError | NoMatch, Database>

/**
 * Who wants to know the plan of each change before it is carried out: the migrator, when it tries
 * migrations on a temporary database. Nobody otherwise.
 */
export class DryRunListener extends Context.Reference<DryRunListener>()(
  "promptgrimoire-db/foreignKey/DryRunListener",
  {
    defaultValue: (): Listener => () => Effect.void
  }
) {}

type Listener = (plan: Planned) => Effect.Effect<void, DatabaseError | NoMatch, Database>
