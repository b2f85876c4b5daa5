/**
 * What a statement costs the program that sends it: CPU time of this process (the server is another
 * one) and elapsed time for each operation, of our Layer, of the stock `@effect/sql-pg` and of a
 * plain `pg` pool, in turns on one server. Prints the median round of each, and ours against the
 * others: `npm run bench:connection`. `BENCH_ROUNDS` (default 9) sets how many rounds there are.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Pg from "pg"
import * as Database from "../src/Database.js"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"

const maxConnections = 15
const rows = 1000
const concurrencies = [1, 32]

/** What is measured, and how often it is done in a round. */
const workloads = [
  { name: "select by key", operations: 6000 },
  { name: "select of 100 rows", operations: 2000 },
  { name: "transaction, one update", operations: 3000 }
] as const

type Workload = (typeof workloads)[number]["name"]

interface Peer {
  readonly name: string
  /** One operation on the row of this number. */
  readonly run: Readonly<Record<Workload, (id: number) => Effect.Effect<unknown, SqlError>>>
}

const byKey = "SELECT id, name, age FROM item WHERE id = $1"
const many = "SELECT id, name, age FROM item WHERE id >= $1 ORDER BY id LIMIT 100"
const update = "UPDATE item SET age = age + 1 WHERE id = $1"

const effectPeer = (name: string, sql: PgClient.PgClient): Peer => ({
  name,
  run: {
    "select by key": (id) => sql`SELECT id, name, age FROM item WHERE id = ${id}`,
    "select of 100 rows": (id) =>
      sql`SELECT id, name, age FROM item WHERE id >= ${id % 900} ORDER BY id LIMIT 100`,
    "transaction, one update": (id) =>
      sql.withTransaction(sql`UPDATE item SET age = age + 1 WHERE id = ${id}`)
  }
})

const plainPeer = (pool: Pg.Pool): Peer => ({
  name: "plain pg pool",
  run: {
    "select by key": (id) => Effect.promise(() => pool.query(byKey, [id])),
    "select of 100 rows": (id) => Effect.promise(() => pool.query(many, [id % 900])),
    "transaction, one update": (id) =>
      Effect.promise(async () => {
        const client = await pool.connect()
        await client.query("BEGIN")
        await client.query(update, [id])
        await client.query("COMMIT")
        client.release()
      })
  }
})

const open = <E>(layer: Layer.Layer<PgClient.PgClient, E>) =>
  Effect.map(Layer.build(layer), Context.get(PgClient.PgClient))

interface Cost {
  /** Microseconds of CPU time of this process for each operation. */
  readonly cpu: number
  /** Microseconds for each operation. */
  readonly elapsed: number
}

const measure = (
  one: (id: number) => Effect.Effect<unknown, SqlError>,
  operations: number,
  concurrency: number
): Effect.Effect<Cost, SqlError> =>
  Effect.gen(function* () {
    const each = Math.ceil(operations / concurrency)
    const cpu = process.cpuUsage()
    const start = performance.now()
    yield* Effect.forEach(
      Array.from({ length: concurrency }, (_, fiber) => fiber),
      (fiber) =>
        Effect.loop(0, {
          while: (n) => n < each,
          step: (n) => n + 1,
          body: (n) => one(1 + ((fiber * each + n) % rows)),
          discard: true
        }),
      { concurrency: "unbounded", discard: true }
    )
    const elapsed = performance.now() - start
    const { system, user } = process.cpuUsage(cpu)
    const done = each * concurrency
    return { cpu: (user + system) / done, elapsed: (elapsed * 1000) / done }
  })

const median = (values: ReadonlyArray<number>): number =>
  values.toSorted((left, right) => left - right)[Math.floor(values.length / 2)] ?? Number.NaN

const program = Effect.gen(function* () {
  const rounds = yield* Config.withDefault(Config.integer("BENCH_ROUNDS"), 9)
  const { url } = yield* EmbeddedPostgres.EmbeddedPostgres
  const ours = yield* open(Database.layer({ url, minConnections: maxConnections, maxConnections }))
  const stock = yield* open(PgClient.layer({ url, maxConnections }))
  const pool = yield* Effect.acquireRelease(
    Effect.sync(() => new Pg.Pool({ connectionString: Redacted.value(url), max: maxConnections })),
    (pool) => Effect.promise(() => pool.end())
  )
  const peers = [effectPeer("promptgrimoire-db", ours), effectPeer("@effect/sql-pg", stock), plainPeer(pool)]

  yield* ours`CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, age int NOT NULL)`
  yield* ours`INSERT INTO item SELECT n, 'item ' || n, n % 90 FROM generate_series(1, ${rows}) AS n`
  yield* ours`ANALYZE item`
  yield* Console.log(
    `median of ${rounds} rounds, microseconds for each operation (CPU of this process / elapsed)`
  )

  for (const { name, operations } of workloads) {
    for (const concurrency of concurrencies) {
      const costs = peers.map((): Array<Cost> => [])
      for (let round = -1; round < rounds; round++) {
        for (const [index, peer] of peers.entries()) {
          const cost = yield* measure(peer.run[name], operations, concurrency)
          // The first round warms up.
          if (round >= 0) costs[index]?.push(cost)
        }
      }
      yield* Console.log(`\n${name}, ${concurrency === 1 ? "one fiber" : `${concurrency} fibers`}`)
      const cpuOf = (index: number) => costs[index]?.map(({ cpu }) => cpu) ?? []
      for (const [index, peer] of peers.entries()) {
        const cpu = median(cpuOf(index)).toFixed(1).padStart(8)
        const elapsed = median(costs[index]?.map(({ elapsed }) => elapsed) ?? [])
          .toFixed(1)
          .padStart(8)
        // Rounds side by side: what else the machine did then, it did to both.
        const ratio = median(cpuOf(0).map((mine, round) => mine / (cpuOf(index)[round] ?? Number.NaN)))
        const against = index === 0 ? "" : `   ours costs ${ratio.toFixed(2)} times its CPU`
        yield* Console.log(`  ${peer.name.padEnd(20)} ${cpu} / ${elapsed}${against}`)
      }
    }
  }
})

await Effect.runPromise(Effect.provide(Effect.scoped(program), EmbeddedPostgres.layer()))
