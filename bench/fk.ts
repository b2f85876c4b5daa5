/**
 * How long writers stall while three foreign keys of one table change their action: {@link
 * ForeignKey.rebuild} beside drop-and-add in one transaction, which is what Alembic, drizzle-kit,
 * Ecto and Atlas do. Both run in turn on the same server, and a control figure says what the same
 * writers suffer while nobody changes anything. `npm run bench:fk -- 500000 2000000` chooses the
 * numbers of rows. It exits with 1 where the rebuild stalls writers for longer than {@link
 * longest}, or for longer with more rows, or, from 10 million rows on, less than {@link leastRatio}
 * times shorter than drop-and-add. `npm run bench:fk -- size` measures something else (fkSize.ts).
 */
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import type * as Scope from "effect/Scope"
import * as Os from "node:os"
import * as Database from "../src/Database.js"
import { DatabaseError } from "../src/DatabaseError.js"
import type { Session } from "../src/connection/session.js"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.js"
import * as ForeignKey from "../src/ForeignKey.js"
import * as Size from "./fkSize.js"

/** Child rows, unless the command line says others. */
const sizes = [500_000, 2_000_000, 10_000_000]

/** How often each way changes the keys at each size. */
const rounds = 3

/** How long the control figure is measured in each round, in milliseconds. */
const controlMillis = 5000

/**
 * The longest stall in the median that a rebuild may cause while nobody else holds a lock, in
 * milliseconds.
 */
const longest = 50

/**
 * How many times shorter it has to be than that of drop-and-add, in the medians, from so many rows
 * on.
 */
const leastRatio = { rows: 10_000_000, ratio: 50 }

const settings = { shared_buffers: "1GB", max_wal_size: "8GB", maintenance_work_mem: "256MB" }

const keys = ["author", "course", "topic"] as const

/**
 * Rows 1 to 1000 of each referenced table have children and stay; those from 10000 on come and go.
 */
const load = (session: Session, rows: number) =>
  Effect.gen(function* () {
    yield* session.query("SET statement_timeout = 0")
    yield* session.query(
      `${keys
        .map(
          (table) => `CREATE TABLE ${table} (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0);
            INSERT INTO ${table} (id) SELECT generate_series(1, 1000);`
        )
        .join("\n")}
      CREATE SEQUENCE passing START 10000;
      CREATE TABLE post (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        ${keys.map((table) => `${table}_id bigint NOT NULL`).join(", ")},
        body text NOT NULL DEFAULT 'a post'
      );
      INSERT INTO post (${keys.map((table) => `${table}_id`).join(", ")})
        SELECT 1 + n % 1000, 1 + n / 7 % 1000, 1 + n / 13 % 1000 FROM generate_series(1, ${rows}) AS n;
      ${keys.map((table) => `CREATE INDEX ON post (${table}_id);`).join("\n")}
      ${keys.map((table) => `ALTER TABLE post ADD CONSTRAINT post_${table} FOREIGN KEY (${table}_id) REFERENCES ${table};`).join("\n")}`
    )
    yield* session.query("VACUUM (ANALYZE)")
    yield* session.query("CHECKPOINT")
  })

// -----------------------------------------------------------------------------
// writers
// -----------------------------------------------------------------------------

type Write = (session: Session) => Effect.Effect<unknown, DatabaseError>

const some = Random.nextIntBetween(1, 1001)

const insertChild: Write = (session) =>
  Effect.flatMap(Effect.all([some, some, some]), (ids) =>
    session.query("INSERT INTO post (author_id, course_id, topic_id) VALUES ($1, $2, $3)", ids)
  )

const updateParent: Write = (session) =>
  Effect.flatMap(some, (id) => session.query("UPDATE author SET n = n + 1 WHERE id = $1", [id]))

const passParent: Write = (session) =>
  Effect.flatMap(
    session.query<{ readonly id: string }>(
      "INSERT INTO course (id) VALUES (nextval('passing')) RETURNING id::text"
    ),
    ([row]) => session.query("DELETE FROM course WHERE id = $1", [row?.id])
  )

/**
 * The four writers: two that insert children, one that updates parents, one that inserts and
 * deletes a parent without children.
 */
const writers: ReadonlyArray<Write> = [insertChild, insertChild, updateParent, passParent]

interface Measured<A> {
  readonly result: A
  readonly totalMillis: number
  /** The longest statement, or pair of them, of any writer. */
  readonly stallMillis: number
  readonly writes: number
  readonly errors: number
}

const millis = Effect.map(Clock.currentTimeNanos, (nanos) => Number(nanos) / 1e6)

/**
 * Runs the writers in closed loops around `change`; what they do before it begins is not counted.
 */
const beside = <A, E, R>(
  sessions: ReadonlyArray<Session>,
  change: Effect.Effect<A, E, R>
): Effect.Effect<Measured<A>, E, R> =>
  Effect.gen(function* () {
    const stop = yield* Ref.make(false)
    let begun = Number.POSITIVE_INFINITY
    let stallMillis = 0
    let writes = 0
    let errors = 0
    const loops = yield* Effect.forEach(writers, (write, index) => {
      const session = sessions[index]
      if (session === undefined) return Effect.dieMessage("a writer has no session")
      return Effect.fork(
        Effect.gen(function* () {
          while (!(yield* Ref.get(stop))) {
            const start = yield* millis
            yield* write(session).pipe(Effect.catchAll(() => Effect.sync(() => errors++)))
            const end = yield* millis
            if (end > begun) {
              stallMillis = Math.max(stallMillis, end - Math.max(start, begun))
              writes++
            }
          }
        })
      )
    })
    yield* Effect.sleep("500 millis")
    begun = yield* millis
    const result = yield* Effect.ensuring(change, Ref.set(stop, true))
    const totalMillis = (yield* millis) - begun
    yield* Effect.forEach(loops, Fiber.join)
    return { result, totalMillis, stallMillis, writes, errors }
  }).pipe(Effect.scoped)

// -----------------------------------------------------------------------------
// changes
// -----------------------------------------------------------------------------

const ours = (onDelete: ForeignKey.Action) =>
  Effect.flatMap(ForeignKey.rebuild({ selectors: {}, onDelete }), ({ failed, rebuilt, refused }) =>
    rebuilt.length === keys.length
      ? Effect.succeed(Math.max(...rebuilt.map(({ longestLockMs }) => longestLockMs)))
      : Effect.dieMessage(`rebuild did not change every key: ${JSON.stringify({ failed, refused })}`)
  )

/**
 * A migration that is chosen as a deadlock victim is run again, as its user would do. Gives the
 * number of tries.
 */
const dropAndAdd = (session: Session, onDelete: ForeignKey.Action) =>
  session
    .query(
      `BEGIN; ${keys
        .map(
          (table) => `ALTER TABLE post DROP CONSTRAINT post_${table};
          ALTER TABLE post ADD CONSTRAINT post_${table} FOREIGN KEY (${table}_id) REFERENCES ${table}
            ON DELETE ${onDelete === "cascade" ? "CASCADE" : "NO ACTION"};`
        )
        .join("\n")} COMMIT`
    )
    .pipe(
      Effect.tapError(() => session.query("ROLLBACK")),
      Effect.retry({
        while: (error) => DatabaseError.is(error) && error.reason._tag === "DeadlockDetected",
        times: 20
      })
    )

// -----------------------------------------------------------------------------
// the run
// -----------------------------------------------------------------------------

const figure = (value: number) => `${value.toFixed(value < 100 ? 1 : 0)} ms`

const line = (cells: ReadonlyArray<string>) =>
  Console.log(
    cells
      .map((cell, index) => (index < 2 ? cell.padEnd([11, 26][index] ?? 0) : cell.padStart(13)))
      .join("  ")
      .trimEnd()
  )

/**
 * `lockMillis` is what the rebuild itself reports as its longest lock; a stall can be longer, for
 * the machine is shared.
 */
const report = (
  rows: number,
  way: string,
  { errors, stallMillis, totalMillis, writes }: Measured<unknown>,
  lockMillis?: number
) =>
  line([
    rows.toLocaleString("en"),
    way,
    figure(stallMillis),
    lockMillis === undefined ? "" : figure(lockMillis),
    figure(totalMillis),
    String(Math.round((writes / totalMillis) * 1000)),
    String(errors)
  ])

/** Medians of the stalls of one size, in milliseconds. */
interface Stalls {
  readonly rows: number
  readonly control: number
  readonly ours: number
  readonly theirs: number
}

const measure = (
  rows: number
): Effect.Effect<
  Stalls,
  DatabaseError | ForeignKey.NoMatch | ForeignKey.Busy,
  Database.Database | Scope.Scope
> =>
  Effect.gen(function* () {
    const { session: open } = yield* Database.Database
    const session = yield* open
    yield* load(session, rows)
    const sessions = yield* Effect.forEach(writers, () => open)
    yield* Effect.forEach([session, ...sessions], (one) =>
      one.query("SET statement_timeout = 0; SET lock_timeout = 0")
    )
    // After the load the system still writes its pages back.
    yield* beside(sessions, Effect.sleep(controlMillis))
    const stalls = { control: [] as Array<number>, ours: [] as Array<number>, theirs: [] as Array<number> }
    for (let round = 1; round <= rounds; round++) {
      const control = yield* beside(sessions, Effect.sleep(controlMillis))
      stalls.control.push(control.stallMillis)
      yield* report(rows, "nobody changes anything", control)
      const mine = yield* beside(sessions, ours("cascade"))
      stalls.ours.push(mine.stallMillis)
      yield* report(rows, "ForeignKey.rebuild", mine, mine.result)
      const theirs = yield* beside(sessions, dropAndAdd(session, "no-action"))
      stalls.theirs.push(theirs.stallMillis)
      yield* report(rows, "drop and add", theirs)
    }
    const summary = (name: string, values: ReadonlyArray<number>) =>
      `${name} median ${figure(median(values))}, longest ${figure(Math.max(...values))}`
    yield* Console.log(
      `${rows.toLocaleString("en")} rows, stalls: ${[
        summary("rebuild", stalls.ours),
        summary("drop and add", stalls.theirs),
        summary("nobody", stalls.control)
      ].join("; ")}. Medians ${(median(stalls.theirs) / median(stalls.ours)).toFixed(1)} to 1, longest ${(
        Math.max(...stalls.theirs) / Math.max(...stalls.ours)
      ).toFixed(1)} to 1.\n`
    )
    return {
      rows,
      control: median(stalls.control),
      ours: median(stalls.ours),
      theirs: median(stalls.theirs)
    }
  })

/**
 * What the figures should be and are not. A machine that stalls its writers by itself stalls them
 * during a rebuild too.
 */
const broken = (all: ReadonlyArray<Stalls>): ReadonlyArray<string> => {
  const [smallest] = all
  return all.flatMap(({ control, ours, rows, theirs }) => [
    ...(ours > longest + control
      ? [
          `${rows} rows: the rebuild stalled writers for ${figure(ours)}, more than ${longest} ms and the control's`
        ]
      : []),
    ...(smallest !== undefined && ours > 2 * smallest.ours + control
      ? [
          `${rows} rows: the stall grew from the ${figure(smallest.ours)} of ${smallest.rows} rows to ${figure(ours)}`
        ]
      : []),
    ...(rows >= leastRatio.rows && theirs < leastRatio.ratio * ours
      ? [
          `${rows} rows: drop-and-add stalled ${(theirs / ours).toFixed(1)} times as long, not ${leastRatio.ratio} times`
        ]
      : [])
  ])
}

const median = (values: ReadonlyArray<number>) =>
  [...values].sort((left, right) => left - right)[Math.floor(values.length / 2)] ?? Number.NaN

const words = process.argv.slice(2)

const chosen = words.map(Number)

const program = Effect.gen(function* () {
  const server = yield* EmbeddedPostgres.make({ settings })
  yield* Console.log(
    `PostgreSQL ${server.version}, temporary cluster without fsync, ${Object.entries(settings)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ")}; ${Os.cpus().length} CPUs, load ${Os.loadavg()
      .map((load) => load.toFixed(1))
      .join(" ")}.
Three foreign keys on one table, four writers in closed loops; writers, changes and server share the machine.\n`
  )
  yield* line([
    "child rows",
    "change",
    "longest stall",
    "longest lock",
    "total time",
    "writes per s",
    "write errors"
  ])
  const all: Array<Stalls> = []
  for (const rows of chosen.length === 0 ? sizes : chosen) {
    const name = `bench_${rows}`
    const admin = <A, E, R>(use: (session: Session) => Effect.Effect<A, E, R>) =>
      Effect.flatMap(Database.Database, ({ session }) => Effect.scoped(Effect.flatMap(session, use))).pipe(
        Effect.provide(Database.layer({ url: server.url, minConnections: 0 }))
      )
    yield* admin((session) => session.query(`CREATE DATABASE ${name}`))
    all.push(
      yield* Effect.scoped(measure(rows)).pipe(
        Effect.provide(Database.layer({ url: Redacted.value(server.urlFor(name)), minConnections: 0 }))
      )
    )
    yield* admin((session) => session.query(`DROP DATABASE ${name} WITH (FORCE)`))
  }
  const problems = broken(all)
  yield* Effect.forEach(problems, (problem) => Console.error(problem), { discard: true })
  if (problems.length > 0) process.exitCode = 1
})

await Effect.runPromise(Effect.scoped(words[0] === "size" ? Size.run(words.slice(1)) : program))
