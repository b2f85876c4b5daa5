/**
 * What a change of one key costs in databases of many keys, and with many partitions: `npm run
 * bench:fk -- size`, or some of it only, `npm run bench:fk -- size keys=100 keys=5000
 * partitions=100`. {@link ForeignKey.rebuild} runs beside psql, which gets the bare statements of
 * the same plan: no guards, no limits, nothing that is read. Both change the same keys, each in a
 * database of its own, of which {@link sample} at most. Each of the {@link rounds} measures every
 * size once, and the medians count. POSTGRES_VERSION chooses the server. It exits with 1 where ours
 * takes more than {@link limits}.
 */
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import * as Os from "node:os"
import * as Database from "../src/Database.js"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import * as ForeignKey from "../src/ForeignKey.js"

/**
 * How many keys are changed at most. There are at least two partitioned tables, and enough for so
 * many partitions together.
 */
const sample = 100

/** How often each size is measured. */
const rounds = 3

/**
 * How many times longer than psql, and how many times longer a key in the largest database than in
 * the smallest one.
 */
const limits = { ratio: 3, growth: 1.2 }

/**
 * What is measured unless the command line says what: keys of ordinary tables, or partitions of
 * each table.
 */
const everything = [
  "keys=100",
  "keys=900",
  "keys=5000",
  "partitions=10",
  "partitions=100",
  "partitions=400"
] as const

const ordinary = (keys: number) => `DO $$ BEGIN
  FOR t IN 0 .. ${Math.ceil(keys / 3) - 1} LOOP
    EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a int, b int, c int)', t);
    EXECUTE format('CREATE INDEX ON t%s (a)', t);
    EXECUTE format('CREATE INDEX ON t%s (b)', t);
    EXECUTE format('CREATE INDEX ON t%s (c)', t);
  END LOOP;
  FOR k IN 0 .. ${keys - 1} LOOP
    EXECUTE format('ALTER TABLE t%s ADD CONSTRAINT fk%s FOREIGN KEY (%s) REFERENCES t%s',
      k / 3, k, (ARRAY['a', 'b', 'c'])[k % 3 + 1], (k * 31 + 13) % ${Math.ceil(keys / 3)});
  END LOOP;
END $$`

const partitioned = (partitions: number) => `
CREATE TABLE parent (id int PRIMARY KEY);
DO $$ BEGIN
  FOR t IN 1 .. ${Math.max(2, Math.ceil(sample / partitions))} LOOP
    EXECUTE format('CREATE TABLE child_%s (id int, parent_id int REFERENCES parent) PARTITION BY RANGE (id)', t);
    EXECUTE format('CREATE INDEX ON child_%s (parent_id)', t);
    FOR n IN 1 .. ${partitions} LOOP
      EXECUTE format('CREATE TABLE child_%s_%s PARTITION OF child_%s FOR VALUES FROM (%s) TO (%s)', t, n, t, n, n + 1);
    END LOOP;
  END LOOP;
END $$`

/** Milliseconds of wall time. */
const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const start = yield* Clock.currentTimeMillis
    const result = yield* effect
    return { result, millis: (yield* Clock.currentTimeMillis) - start }
  })

/** Runs a script and fails with the first error of it. */
const psql = (url: string, script: string) =>
  Effect.async<void, PsqlFailed>((resume) => {
    const child = spawn("psql", ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", "-"], {
      stdio: ["pipe", "ignore", "inherit"],
      env: { ...process.env, PGOPTIONS: "-c client_min_messages=warning" }
    })
    child.on("error", (error) => {
      resume(new PsqlFailed({ message: `psql could not be run: ${error.message}` }))
    })
    child.on("close", (code) => {
      resume(code === 0 ? Effect.void : new PsqlFailed({ message: `psql ended with ${code}` }))
    })
    child.stdin.end(script)
    return Effect.sync(() => child.kill())
  })

class PsqlFailed extends Data.TaggedError("PsqlFailed")<{ readonly message: string }> {}

/**
 * Of each step its transaction, and in it what locks or changes something: the blocks too that give
 * triggers their names and states, so that both ways end with the same catalogs.
 */
const bare = (steps: ForeignKey.PlanResult["steps"]) =>
  steps
    .filter(({ when }) => when === "always")
    .flatMap(({ sql }) =>
      sql.filter((statement) =>
        /^(BEGIN|COMMIT|LOCK|ALTER|COMMENT|CREATE|INSERT|UPDATE)\b|^DO\b.*\b(LOCK|EXECUTE)\b/s.test(statement)
      )
    )
    .map((statement) => `${statement};\n`)
    .join("")

interface Measured {
  readonly kind: "keys" | "partitions"
  readonly size: number
  /** The number of keys that were changed. */
  readonly changed: number
  readonly planMillis: number
  readonly millis: number
  readonly psqlMillis: number
  /** The medians and the longest of the locks, in milliseconds. */
  readonly lockMillis: readonly [median: number, longest: number]
}

const ratio = ({ millis, psqlMillis }: Measured) => millis / Math.max(1, psqlMillis)

const measure = (
  server: Effect.Effect.Success<ReturnType<typeof EmbeddedPostgres.make>>,
  kind: Measured["kind"],
  size: number
) =>
  Effect.gen(function* () {
    const made = (name: string) => Redacted.value(server.urlFor(name))
    const on = <A, E, R>(url: string, use: Effect.Effect<A, E, R>) =>
      Effect.provide(use, Database.layer({ url, minConnections: 0 }))
    const query = (url: string, sql: string) =>
      on(
        url,
        Effect.scoped(
          Effect.gen(function* () {
            const session = yield* Effect.flatMap(Database.Database, ({ session }) => session)
            yield* session.query("SET statement_timeout = 0")
            yield* session.query(sql)
          })
        )
      )
    const [mine, theirs] = [`size_${kind}_${size}`, `size_${kind}_${size}_psql`]
    yield* query(Redacted.value(server.url), `CREATE DATABASE ${mine}`)
    yield* query(made(mine), kind === "keys" ? ordinary(size) : partitioned(size))
    yield* query(Redacted.value(server.url), `CREATE DATABASE ${theirs} TEMPLATE ${mine}`)
    const options: ForeignKey.RebuildOptions = {
      selectors:
        kind === "keys"
          ? {
              tables: Array.from({ length: Math.ceil(Math.min(size, sample) / 3) }, (_, t) => ({
                table: `t${t}`
              }))
            }
          : { references: [{ table: "parent" }] },
      onDelete: "cascade",
      // The swap of a table with hundreds of partitions may take all the time that it needs.
      ...(kind === "partitions" ? { lockTimeout: "5 seconds" } : {})
    }
    const planned = yield* timed(on(made(theirs), ForeignKey.plan(options)))
    // Half of it before ours and half after, so that a machine that slows down meanwhile slows
    // both.
    const { steps } = planned.result
    const first = steps.findIndex(
      ({ constraint }, index) => index >= steps.length / 2 && constraint !== steps[index - 1]?.constraint
    )
    const half = first === -1 ? steps.length : first
    const before = yield* timed(psql(made(theirs), bare(steps.slice(0, half))))
    const { millis, result } = yield* timed(on(made(mine), ForeignKey.rebuild(options)))
    if (result.failed.length + result.refused.length > 0) {
      return yield* Effect.dieMessage(JSON.stringify({ failed: result.failed, refused: result.refused }))
    }
    const after =
      half === steps.length ? undefined : yield* timed(psql(made(theirs), bare(steps.slice(half))))
    yield* query(Redacted.value(server.url), `DROP DATABASE ${mine}`)
    yield* query(Redacted.value(server.url), `DROP DATABASE ${theirs}`)
    const locks = result.rebuilt.map(({ longestLockMs }) => longestLockMs)
    const measured: Measured = {
      kind,
      size,
      changed: result.rebuilt.length,
      planMillis: planned.millis,
      millis,
      psqlMillis: before.millis + (after?.millis ?? 0),
      lockMillis: [median(locks), Math.max(...locks)]
    }
    return measured
  })

const median = (numbers: ReadonlyArray<number>) =>
  numbers.toSorted((one, other) => one - other)[numbers.length >> 1] ?? Number.NaN

/** What the rounds of one size say together. */
const together = (one: Measured, all: ReadonlyArray<Measured>): Measured => ({
  ...one,
  planMillis: median(all.map(({ planMillis }) => planMillis)),
  millis: median(all.map(({ millis }) => millis)),
  psqlMillis: median(all.map(({ psqlMillis }) => psqlMillis)),
  lockMillis: [
    median(all.map(({ lockMillis: [usual] }) => usual)),
    Math.max(...all.map(({ lockMillis: [, longest] }) => longest))
  ]
})

const line = (measured: Measured) =>
  [
    `${measured.kind} ${measured.size}`.padEnd(16),
    `changed ${measured.changed}`.padEnd(12),
    `plan ${measured.planMillis} ms`,
    `rebuild ${measured.millis} ms (${(measured.millis / measured.changed).toFixed(1)} a key)`,
    `psql ${measured.psqlMillis} ms`,
    `ratio ${ratio(measured).toFixed(2)}`,
    `locks ${measured.lockMillis.map((lock) => lock.toFixed(1)).join(" / ")} ms`
  ].join("  ")

/** What a key or a partition costs in the largest schema, beside the smallest one of its kind. */
const growth = (all: ReadonlyArray<Measured>, kind: Measured["kind"]) => {
  const sorted = all.filter((one) => one.kind === kind).toSorted((one, other) => one.size - other.size)
  const [smallest, largest] = [sorted[0], sorted.at(-1)]
  if (smallest === undefined || largest === undefined || smallest === largest) return undefined
  const each = ({ changed, millis, size }: Measured) => millis / (kind === "keys" ? changed : changed * size)
  return { from: smallest.size, to: largest.size, times: each(largest) / each(smallest) }
}

/** Measures the sizes of the command line. */
export const run = (chosen: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const sizes = (chosen.length === 0 ? everything : chosen).map((word) => {
      const [, kind, size] = /^(keys|partitions)=(\d+)$/.exec(word) ?? []
      return { word, kind: kind === "keys" ? ("keys" as const) : ("partitions" as const), size: Number(size) }
    })
    const unknown = sizes.find(({ size }) => !(size > 0))
    if (unknown !== undefined) {
      return yield* Effect.dieMessage(`${unknown.word} is neither keys=NUMBER nor partitions=NUMBER`)
    }
    const server = yield* EmbeddedPostgres.make({ settings: { max_locks_per_transaction: "2000" } })
    yield* Console.log(
      `PostgreSQL ${server.version}, temporary cluster without fsync, empty tables; ${Os.cpus().length} CPUs, load ${Os.loadavg()
        .map((load) => load.toFixed(1))
        .join(" ")}`
    )
    // Not counted: it has Node compile what all others run.
    yield* measure(server, "keys", sample / 4)
    const measured: Array<ReadonlyArray<Measured>> = []
    for (let round = 1; round <= rounds; round++) {
      yield* Console.error(`round ${round} of ${rounds}`)
      measured.push(yield* Effect.forEach(sizes, ({ kind, size }) => measure(server, kind, size)))
    }
    const [one = []] = measured
    const all = one.map((first, index) =>
      together(
        first,
        measured.flatMap((round) => round[index] ?? [])
      )
    )
    yield* Effect.forEach(all, (size) => Console.log(line(size)), { discard: true })
    for (const kind of ["keys", "partitions"] as const) {
      const found = growth(all, kind)
      if (found !== undefined) {
        yield* Console.log(
          `${kind}: each costs ${found.times.toFixed(2)} times as much with ${found.to} as with ${found.from}`
        )
      }
    }
    const problems = [
      ...all
        .filter((one) => ratio(one) > limits.ratio)
        .map(
          (one) => `${one.kind} ${one.size}: ${ratio(one).toFixed(2)} times psql, more than ${limits.ratio}`
        ),
      ...(["keys", "partitions"] as const).flatMap((kind) => {
        const grown = growth(all, kind)
        return grown !== undefined && grown.times > limits.growth
          ? [
              `each of ${grown.to} ${kind} costs ${grown.times.toFixed(2)} times one of ${grown.from}, more than ${limits.growth}`
            ]
          : []
      })
    ]
    yield* Effect.forEach(problems, (problem) => Console.error(problem), { discard: true })
    if (problems.length > 0) process.exitCode = 1
    return undefined
  })
