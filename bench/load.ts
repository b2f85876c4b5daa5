/**
 * Loading users: `insertMany`, which is a statement for each batch, beside `insertStream`, which is
 * a COPY. Both in turn, on emptied tables of one server; prints rows per second and their ratio.
 * `npm run bench:load -- 100000` chooses the number of rows.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { loader } from "../migrations/index.js"
import * as User from "../src/model/User.js"
import * as TestDatabase from "../src/testing/TestDatabase.js"

const given = process.argv.slice(2).map(Number)
const sizes = given.length > 0 ? given : [100, 1000, 10_000, 50_000]
const rounds = 5

const median = (values: ReadonlyArray<number>) =>
  values.toSorted((left, right) => left - right)[Math.floor(values.length / 2)] ?? Number.NaN

const program = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const users = yield* User.UserRepository
  const emptied = sql`TRUNCATE "user" CASCADE`
  const millis = <E, R>(load: Effect.Effect<unknown, E, R>) =>
    Effect.map(Effect.zipRight(emptied, Effect.timed(load)), ([time]) => Duration.toMillis(time))
  for (const size of sizes) {
    const rows = Array.from({ length: size }, (_, n) => ({
      email: `user${n}@example.org`,
      displayName: "Somebody"
    }))
    const batches: Array<number> = []
    const copies: Array<number> = []
    for (let round = 0; round < rounds; round++) {
      batches.push(yield* millis(users.insertMany(rows)))
      copies.push(yield* millis(users.insertStream(Stream.fromIterable(rows))))
    }
    const perSecond = (times: ReadonlyArray<number>) => Math.round((size / median(times)) * 1000)
    yield* Console.log(
      `${size} rows: insertMany ${perSecond(batches)} rows/s, insertStream ${perSecond(copies)} rows/s, ratio ${(
        median(batches) / median(copies)
      ).toFixed(2)}`
    )
  }
})

const database = Layer.provideMerge(User.layer, TestDatabase.layer({ loader }))

await Effect.runPromise(program.pipe(Effect.provide(database)))
