import * as SqlMigrator from "@effect/sql/Migrator"
import * as SqlClient from "@effect/sql/SqlClient"
import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import * as Migrator from "../../src/Migrator.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer, databaseLayer } from "../support/database.js"
import { eventually } from "../support/eventually.js"

const schema = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int NOT NULL CONSTRAINT child_parent REFERENCES parent);
  CREATE INDEX ON child (parent_id);
  INSERT INTO parent SELECT n FROM generate_series(1, 20) n;
  INSERT INTO child SELECT n, n FROM generate_series(1, 20) n`

/** One table each: a migration that locks two could be the other half of a program's deadlock. */
const changes = ["ADD COLUMN first int", "ADD COLUMN second text", "DROP COLUMN first"].flatMap((change) => [
  `ALTER TABLE parent ${change}`,
  `ALTER TABLE child ${change}`
])

/** The first `count` migrations. */
const migrations = (count: number) =>
  SqlMigrator.fromRecord(
    Object.fromEntries(
      changes
        .slice(0, count)
        .map((change, index) => [
          `${index + 1}_change`,
          Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(change))
        ])
    )
  )

/**
 * What a program does again and again, on connections of its own: no other program lets them
 * prepare anew.
 */
const programs: Readonly<Record<string, Effect.Effect<unknown, unknown, Database.Provided>>> = {
  "statements outside transactions": Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.zipRight(sql`SELECT * FROM parent WHERE id = ${1}`, sql`SELECT * FROM child WHERE id = ${1}`)
  ),
  "transactions of one statement": Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.zipRight(
      Transaction.run(sql`SELECT * FROM parent WHERE id = ${2}`),
      Transaction.run(sql`UPDATE child SET parent_id = parent_id WHERE id = ${2} RETURNING *`)
    )
  ),
  "savepoints in transactions": Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Transaction.run(
      Effect.zipRight(sql`SELECT 1`, Transaction.run(sql`SELECT * FROM child WHERE parent_id = ${3}`))
    )
  ),
  "transactions of several statements": Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Transaction.run(
      Effect.zipRight(
        sql`SELECT * FROM parent WHERE id = ${4}`,
        sql`UPDATE child SET parent_id = parent_id WHERE id = ${4} RETURNING id, parent_id`
      )
    )
  ),
  "transactions with retry": Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Transaction.run(
      Effect.zipRight(
        sql`SELECT * FROM parent WHERE id = ${5}`,
        sql`SELECT * FROM child WHERE parent_id = ${5}`
      ),
      { retry: { times: 5, base: "1 millis" } }
    )
  )
}

layer(Layer.merge(TestServer.layer, Logger.remove(Logger.defaultLogger)), { excludeTestServices: true })(
  "A program that runs while its schema changes",
  (it) => {
    it.effect("sees no outdated plan, neither during migrations nor while a foreign key is rebuilt", () =>
      Effect.gen(function* () {
        const { admin } = yield* TestServer
        yield* admin.query(schema)
        let isOver = false
        const failures: Array<string> = []
        const running = yield* Effect.forEach(Object.entries(programs), ([name, work]) =>
          Effect.gen(function* () {
            const program = { rounds: 0 }
            const noted = Effect.match(work, {
              onFailure: (error) =>
                failures.push(`${name}: ${DatabaseError.reasonOf(error)?._tag ?? String(error)}`),
              onSuccess: () => program.rounds++
            })
            const fiber = yield* Effect.repeat(noted, { until: () => isOver }).pipe(
              Effect.provide(databaseLayer({ maxConnections: 1, prepare: true })),
              Effect.fork
            )
            return { name, program, fiber }
          })
        )
        /** A statement is prepared when its text comes for the second time: afterwards all are. */
        const untilPrepared = Effect.forEach(running, ({ name, program }) =>
          Effect.suspend(() => {
            const before = program.rounds
            return eventually(
              `${name} go on`,
              Effect.sync(() => failures.length > 0 || program.rounds > before + 3)
            )
          })
        )
        yield* untilPrepared
        for (const count of changes.keys()) {
          yield* Migrator.run({ loader: migrations(count + 1) })
          yield* untilPrepared
          assert.deepStrictEqual(failures, [])
        }
        const { rebuilt } = yield* ForeignKey.rebuild({
          selectors: { references: [{ schema: "public", table: "parent" }] },
          onDelete: "cascade"
        })
        yield* untilPrepared
        isOver = true
        yield* Fiber.joinAll(running.map(({ fiber }) => fiber))
        assert.deepStrictEqual(failures, [])
        assert.strictEqual(rebuilt.length, 1)
      }).pipe(Effect.provide(databaseLayer({ maxConnections: 2 })))
    )
  }
)
