/** Applications that go on while a key is changed: what they do, what they suffered. */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Ref from "effect/Ref"
import type { Session } from "../../src/connection/session.js"
import type { DatabaseError } from "../../src/DatabaseError.js"
import { application } from "./support.js"

/**
 * Which of the two tables are partitioned; or that both are one table, whose key points to itself.
 */
export type Cut = "neither" | "child" | "parent" | "both" | "one table"

const cut = (table: "child" | "parent", which: Cut) =>
  which === "both" || which === table
    ? [
        " PARTITION BY HASH (id)",
        `CREATE TABLE ${table}_0 PARTITION OF ${table} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
  CREATE TABLE ${table}_1 PARTITION OF ${table} FOR VALUES WITH (MODULUS 2, REMAINDER 1) PARTITION BY HASH (id);
  CREATE TABLE ${table}_1_0 PARTITION OF ${table}_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
  CREATE TABLE ${table}_1_1 PARTITION OF ${table}_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);`
      ]
    : ["", ""]

/** Parents 1 to 900 have children and stay; those from 10000 on come and go. */
export const tables = (which: Cut = "neither", mode = "DEFERRABLE") => {
  if (which === "one table") return oneTable(mode)
  const [parentCut, parentParts] = cut("parent", which)
  const [childCut, childParts] = cut("child", which)
  return `
  CREATE TABLE parent (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0)${parentCut};
  ${parentParts}
  CREATE TABLE child (
    id bigserial PRIMARY KEY,
    parent_id bigint NOT NULL CONSTRAINT fk REFERENCES parent ON UPDATE CASCADE ${mode}
  )${childCut};
  ${childParts}
  CREATE INDEX ON child (parent_id);
  CREATE SEQUENCE passing START 10000;
  INSERT INTO parent (id) SELECT generate_series(1, 1000);
  INSERT INTO child (parent_id) SELECT 1 + n % 900 FROM generate_series(1, 20000) AS n`
}

/** The applications are the same: to them it is two tables. */
const oneTable = (mode: string) => `
  CREATE SEQUENCE child_id_seq START 1000000000;
  CREATE TABLE node (
    id bigint PRIMARY KEY DEFAULT nextval('child_id_seq'),
    n int NOT NULL DEFAULT 0,
    parent_id bigint CONSTRAINT fk REFERENCES node ON UPDATE CASCADE ${mode}
  );
  CREATE INDEX ON node (parent_id);
  CREATE VIEW parent AS SELECT id, n FROM node;
  CREATE VIEW child AS SELECT id, parent_id FROM node;
  CREATE SEQUENCE passing START 100000;
  INSERT INTO node (id) SELECT generate_series(1, 1000);
  INSERT INTO node (id, parent_id) SELECT 10000 + n, 1 + n % 900 FROM generate_series(1, 20000) AS n`

/** Rows whose parent does not exist. */
export const orphans =
  "SELECT count(*)::int AS n FROM child WHERE parent_id IS NOT NULL AND NOT EXISTS (SELECT FROM parent WHERE id = parent_id)"

/** The key let a row in that it forbids. */
class Accepted extends Data.TaggedError("Accepted")<{ readonly message: string }> {}

/** What a piece of work knows of the others. */
interface Others {
  /** Waits until the other loops have done so many. */
  readonly done: (works: number) => Effect.Effect<void, DatabaseError>
  /** The constraints that an error may name: those of before the change. */
  readonly names: ReadonlyArray<string>
}

/** One piece of work. */
type Work = (session: Session, others: Others) => Effect.Effect<unknown, DatabaseError | Accepted>

const some = Effect.map(Random.nextIntBetween(1, 901), (id) => [id])

/** A parent with a child, of which nobody else knows. */
const family = (s: Session) =>
  s
    .query<{ readonly id: string }>("INSERT INTO parent (id) VALUES (nextval('passing')) RETURNING id")
    .pipe(Effect.tap(([row]) => s.query("INSERT INTO child (parent_id) VALUES ($1)", [row?.id])))

const clear = (s: Session, id: string | undefined) =>
  Effect.zipRight(
    s.query("DELETE FROM child WHERE parent_id = $1", [id]),
    s.query("DELETE FROM parent WHERE id = $1", [id])
  )

/**
 * Up to 14 an UPDATE that moves a row of a partitioned parent carries out ON DELETE, so there no
 * key of one is updated.
 */
const works: ReadonlyArray<readonly [string, Work]> = [
  [
    "inserts children",
    (s) => Effect.flatMap(some, (id) => s.query("INSERT INTO child (parent_id) VALUES ($1)", id))
  ],
  [
    "inserts and deletes parents",
    (s) =>
      Effect.flatMap(
        s.query<{ readonly id: string }>("INSERT INTO parent (id) VALUES (nextval('passing')) RETURNING id"),
        ([row]) => s.query("DELETE FROM parent WHERE id = $1", [row?.id])
      )
  ],
  [
    "updates keys",
    (s) =>
      Effect.flatMap(some, (id) =>
        s.query("UPDATE child SET parent_id = 1 + parent_id % 900 WHERE id = $1", id)
      )
  ],
  [
    "counts children in their parent",
    (s) =>
      transaction(
        s,
        Effect.flatMap(some, (id) =>
          Effect.zipRight(
            s.query("INSERT INTO child (parent_id) VALUES ($1)", id),
            s.query("UPDATE parent SET n = n + 1 WHERE id = $1", id)
          )
        )
      )
  ],
  [
    "reads and then writes parents",
    (s) =>
      transaction(
        s,
        Effect.flatMap(some, (id) =>
          Effect.zipRight(
            s.query("SELECT n FROM parent WHERE id = $1", id),
            s.query("UPDATE parent SET n = n + 1 WHERE id = $1", id)
          )
        )
      )
  ],
  [
    "defers the key by name and inserts the child first",
    (s) =>
      transaction(
        s,
        Effect.zipRight(
          s.query("SET CONSTRAINTS fk DEFERRED"),
          Effect.flatMap(s.query<{ readonly id: string }>("SELECT nextval('passing') AS id"), ([row]) =>
            Effect.zipRight(
              s.query("INSERT INTO child (parent_id) VALUES ($1)", [row?.id]),
              s.query("INSERT INTO parent (id) VALUES ($1)", [row?.id])
            )
          )
        )
      )
  ],
  [
    "deletes parents that have a child",
    (s, { names }) =>
      Effect.gen(function* () {
        const [row] = yield* family(s)
        const children = s.query("SELECT FROM child WHERE parent_id = $1", [row?.id])
        const isDeleted = yield* s.query("DELETE FROM parent WHERE id = $1", [row?.id]).pipe(
          Effect.as(true),
          Effect.catchIf(
            ({ reason }) => "constraint" in reason && names.includes(reason.constraint ?? ""),
            () => Effect.succeed(false)
          )
        )
        if (isDeleted !== ((yield* children).length === 0)) {
          return yield* new Accepted({ message: "the child was left behind, or deleted without its parent" })
        }
        return isDeleted ? undefined : yield* clear(s, row?.id)
      })
  ],
  [
    "updates parents' own keys",
    (s) =>
      Effect.gen(function* () {
        const [row] = yield* family(s)
        const [moved] = yield* s.query<{ readonly id: string }>(
          `UPDATE parent SET id = nextval('passing') WHERE id = $1
            AND (current_setting('server_version_num')::int >= 150000
              OR NOT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = 'parent'::regclass))
          RETURNING id`,
          [row?.id]
        )
        const id = moved?.id ?? row?.id
        if ((yield* s.query("SELECT FROM child WHERE parent_id = $1", [id])).length === 0) {
          return yield* new Accepted({ message: "the child did not follow its parent" })
        }
        return yield* clear(s, id)
      })
  ],
  [
    "joins",
    (s) =>
      Effect.flatMap(some, (id) =>
        s.query("SELECT count(*) FROM child c JOIN parent p ON p.id = c.parent_id WHERE p.id = $1", id)
      )
  ],
  [
    "inserts orphans, which the key refuses",
    (s) =>
      s.query("INSERT INTO child (parent_id) VALUES (-1)").pipe(
        Effect.zipRight(new Accepted({ message: "the row was accepted" })),
        Effect.catchIf(
          (error) =>
            error._tag === "SqlError" &&
            error.reason._tag === "ForeignKeyViolation" &&
            error.reason.constraint === "fk",
          () => Effect.void
        )
      )
  ],
  [
    "reads for long in one transaction, as a dump does, and again after a while",
    (s, others) =>
      Effect.zipRight(
        transaction(
          s,
          Effect.zipRight(
            s.query("SELECT count(*) FROM parent WHERE id <= 1000"),
            Effect.replicateEffect(s.query("SELECT count(*) FROM child WHERE id <= 20000"), 100)
          )
        ),
        others.done(1_000)
      )
  ]
]

const transaction = (session: Session, body: Effect.Effect<unknown, DatabaseError>) =>
  session.query("BEGIN").pipe(
    Effect.zipRight(body),
    Effect.zipRight(session.query("COMMIT")),
    Effect.tapError(() => Effect.ignore(session.query("ROLLBACK")))
  )

/** How many of the loops touch the table with the key; one works on the referenced table only. */
export const usersOfChild = works.length - 1

/** Tells how long each statement of a session takes. */
const timed = (session: Session, tell: (millis: number) => void): Session => ({
  ...session,
  query: (sql, params) =>
    Effect.flatMap(Clock.currentTimeNanos, (start) =>
      Effect.ensuring(
        session.query(sql, params),
        Effect.map(Clock.currentTimeNanos, (end) => tell(Number(end - start) / 1e6))
      )
    )
})

/** What the applications went through. */
export interface Report {
  /** Pieces of work. */
  readonly done: number
  /** The longest time that one statement took, by the clock of the application. */
  readonly longestMillis: number
  /** The longest time that one of them waited for a lock on a table, by the clock of the server. */
  readonly longestWaitMillis: number
  /**
   * The longest time that a statement took which waits for nobody, by the clock of the application.
   */
  readonly longestPingMillis: number
  readonly errors: ReadonlyArray<string>
}

/**
 * The sessions of applications that wait for a lock on a table, and since when: up to 13 since the
 * beginning of their statement, which does little else. Names of the sessions that change keys
 * begin with `promptgrimoire-db: `, or with `migration`.
 */
const waits = `
  SELECT coalesce(max(extract(epoch FROM clock_timestamp()
    - coalesce((to_jsonb(l) ->> 'waitstart')::timestamptz, a.query_start)) * 1000), 0)::float8 AS longest
  FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
  WHERE NOT l.granted AND l.locktype = 'relation' AND a.datname = current_database()
    AND a.backend_type = 'client backend' AND a.application_name !~ '^(promptgrimoire-db: |migration)'`

/** Runs one closed loop of each kind of work while `change` runs, and until it has ended. */
export const beside = <A, E, R>(change: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const stop = yield* Ref.make(false)
    const total = yield* Ref.make(0)
    const watcher = yield* application
    const names = (yield* watcher.query<{ readonly name: string }>(
      "SELECT DISTINCT conname::text AS name FROM pg_constraint WHERE contype = 'f'"
    )).map(({ name }) => name)
    const running = yield* Effect.forEach(works, ([name, work]) =>
      Effect.fork(
        Effect.gen(function* () {
          let longest = 0
          const session = timed(yield* application, (millis) => {
            longest = Math.max(longest, millis)
          })
          const errors: Array<string> = []
          const others = Effect.fnUntraced(function* (works: number) {
            const enough = (yield* Ref.get(total)) + works
            while ((yield* Ref.get(total)) < enough && !(yield* Ref.get(stop))) {
              yield* session.query("SELECT 1")
            }
          })
          while (!(yield* Ref.get(stop))) {
            yield* work(session, { done: others, names }).pipe(
              Effect.catchAll((error) => Effect.sync(() => errors.push(`${name}: ${error.message}`)))
            )
            yield* Ref.update(total, (n) => n + 1)
          }
          return { longest, errors }
        })
      )
    )
    const watching = yield* Effect.fork(
      Effect.gen(function* () {
        let longest = 0
        let longestPing = 0
        const pinging = timed(watcher, (millis) => {
          longestPing = Math.max(longestPing, millis)
        })
        while (!(yield* Ref.get(stop))) {
          const [row] = yield* pinging.query<{ readonly longest: number }>(waits)
          longest = Math.max(longest, row?.longest ?? 0)
          yield* Effect.sleep("2 millis")
        }
        return { longest, longestPing }
      })
    )
    const result = yield* Effect.ensuring(change, Ref.set(stop, true))
    const reports = yield* Effect.forEach(running, Fiber.join)
    const watched = yield* Fiber.join(watching)
    const report: Report = {
      done: yield* Ref.get(total),
      longestMillis: Math.max(...reports.map(({ longest }) => longest)),
      longestWaitMillis: watched.longest,
      longestPingMillis: watched.longestPing,
      errors: reports.flatMap(({ errors }) => errors)
    }
    return { result, report }
  })
