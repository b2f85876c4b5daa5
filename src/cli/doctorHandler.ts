import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Database from "../Database.js"
import * as DatabaseError from "../DatabaseError.js"
import { describePool } from "../errors/wording.js"
import * as ForeignKey from "../ForeignKey.js"
import * as Migrator from "../Migrator.js"
import * as Transaction from "../Transaction.js"
import * as Pooler from "../pool/poolerCheck.js"
import type * as Definition from "./doctor.js"
import { ownDirectory } from "./migrateHandlers.js"
import * as FkReport from "./fkReport.js"
import type { Given } from "./options.js"
import * as Report from "./report.js"
import { runCommand } from "./runCommand.js"

/** The limits that the server says are in effect on a pooled connection. */
const limits = [
  "statement_timeout",
  "lock_timeout",
  "idle_in_transaction_session_timeout",
  "deadlock_timeout"
]

/** What the command finds out; the document that it prints with --json. */
interface Diagnosis {
  readonly server: { readonly version: string; readonly database: string; readonly role: string }
  /** Whether something stands between this program and the server. */
  readonly pooler: "none" | "present"
  /** The setting `pooler`, and what does not fit between it and what was found. */
  readonly poolerSetting: "none" | "transaction"
  readonly poolerProblem: string | null
  readonly timeouts: Readonly<Record<string, string>>
  readonly health: Database.Health
  readonly pendingMigrations: ReadonlyArray<string>
  /** Null where no session can be opened, as the next one. */
  readonly foreignKeysWithoutIndex: ReadonlyArray<string> | null
  readonly foreignKeyProblems: ReadonlyArray<string> | null
  /** What could not be found out, and what that needs. */
  readonly missing: ReadonlyArray<string>
}

const diagnose = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const database = yield* Database.Database
  const [server] = yield* sql<Diagnosis["server"]>`
    SELECT pg_catalog.current_setting('server_version') AS version,
           pg_catalog.current_database()::text AS database, current_user::text AS role
  `
  // Behind a transaction pooler the limits are those of a transaction.
  const shown = yield* Transaction.run(sql<{ name: string; value: string }>`
    SELECT name, pg_catalog.current_setting(name) AS value FROM pg_catalog.pg_settings WHERE ${sql.in("name", limits)}
  `)
  const isFound = yield* database.isBehindPooler
  const poolerSetting = database.config.pooler
  const { migrations } = yield* Migrator.status({ loader: Migrator.fromDirectory(ownDirectory) })
  // Behind a transaction pooler without a way past it everything else is still worth saying.
  const keys = yield* ForeignKey.list().pipe(
    Effect.catchIf(
      (error) => DatabaseError.reasonOf(error)?._tag === "SessionUnavailable",
      () => Effect.succeed(null)
    )
  )
  const diagnosis: Diagnosis = {
    server: server ?? { version: "unknown", database: "unknown", role: "unknown" },
    pooler: isFound ? "present" : "none",
    poolerSetting,
    poolerProblem: Pooler.disagreement(poolerSetting, isFound) ?? null,
    timeouts: Object.fromEntries(shown.map(({ name, value }) => [name, value])),
    health: yield* database.health,
    pendingMigrations: migrations
      .filter(({ state }) => state !== "applied")
      .map(({ id, name }) => `${id}_${name}`),
    foreignKeysWithoutIndex:
      keys?.filter(({ enforced, index }) => enforced && index === null).map(FkReport.nameOf) ?? null,
    foreignKeyProblems:
      keys?.flatMap((key) => key.problems.map((problem) => `${FkReport.nameOf(key)}: ${problem}`)) ?? null,
    missing: keys === null ? [withoutSession] : []
  }
  return diagnosis
})

const withoutSession =
  "foreign keys: they are read over a session past the pooler; set DATABASE_DIRECT_URL to the server's own address"

const lines = (diagnosis: Diagnosis): ReadonlyArray<string> => [
  `Server           PostgreSQL ${diagnosis.server.version}, database ${diagnosis.server.database}, role ${diagnosis.server.role}`,
  `Pooler           ${diagnosis.pooler}, and the setting is ${diagnosis.poolerSetting}`,
  ...(diagnosis.poolerProblem === null ? [] : [`Pooler problem   ${diagnosis.poolerProblem}`]),
  `Pool             ${describePool(diagnosis.health.pool)}`,
  ...Object.entries(diagnosis.timeouts).map(([name, value]) => `${name} is ${value}`),
  `Health           ${diagnosis.health.status}${"reason" in diagnosis.health ? `: ${diagnosis.health.reason}` : ""}`,
  ...list("Pending migrations", diagnosis.pendingMigrations),
  ...list("Foreign keys without an index on their columns", diagnosis.foreignKeysWithoutIndex),
  ...list("Foreign keys with problems", diagnosis.foreignKeyProblems),
  ...diagnosis.missing.map((what) => `Not found out: ${what}`)
]

const list = (title: string, entries: ReadonlyArray<string> | null) =>
  entries === null
    ? []
    : entries.length === 0
      ? [`${title}: none`]
      : [`${title}:`, ...entries.map((entry) => `  ${entry}`)]

/** `doctor`. */
export const doctor = ({ json, url }: Given<typeof Definition.doctorOptions>) =>
  runCommand(
    { json, url, way: "as configured" },
    Effect.flatMap(diagnose, (diagnosis) =>
      Report.result(
        json,
        diagnosis,
        lines(diagnosis),
        diagnosis.missing.length === 0 ? Report.exitCodes.done : Report.exitCodes.failed
      )
    )
  )
