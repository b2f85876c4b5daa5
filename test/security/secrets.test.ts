import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import type * as Session from "../../src/connection/session.js"
import * as Notification from "../../src/Notification.js"
import * as Transaction from "../../src/Transaction.js"
import { TestServer } from "../support/database.js"
import * as Capture from "./capture.js"
import { isFull } from "../support/length.js"

/**
 * A secret: a token that occurs nowhere else, and around it what escaping and quoting trip over.
 */
interface Secret {
  readonly token: string
  readonly text: string
}

const wild = FastCheck.array(
  FastCheck.oneof(
    FastCheck.constantFrom(
      "'",
      '"',
      "\\",
      "%",
      "@",
      "/",
      "?",
      "#",
      ":",
      " ",
      "\n",
      "\t",
      "$1",
      "{",
      "(",
      "é",
      "🔑",
      "\u202e"
    ),
    FastCheck.string({ minLength: 1, maxLength: 1 }).filter((text) => text !== "\0")
  ),
  { maxLength: 8 }
).map((parts) => parts.join(""))

const secret: FastCheck.Arbitrary<Secret> = FastCheck.record({
  token: FastCheck.stringMatching(/^[a-z][a-z0-9]{19}$/),
  before: wild,
  after: wild
}).map(({ after, before, token }) => ({ token, text: `${before}${token}${after}` }))

const number = FastCheck.bigInt({ min: 10n ** 17n, max: 9n * 10n ** 18n })

const schema = `
  CREATE EXTENSION IF NOT EXISTS btree_gist;
  CREATE DOMAIN short AS text CHECK (length(VALUE) < 3);
  CREATE TABLE parent (id text PRIMARY KEY);
  CREATE TABLE item (
    id bigserial PRIMARY KEY,
    name text UNIQUE,
    code varchar(3),
    small int,
    checked text CONSTRAINT item_checked CHECK (length(checked) < 3),
    parent text REFERENCES parent,
    needed text NOT NULL DEFAULT '',
    alone text,
    EXCLUDE USING gist (alone WITH =)
  );
  CREATE FUNCTION complain(value text, code text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'no good: %', value USING ERRCODE = code, DETAIL = value, HINT = value; END $$;
  CREATE FUNCTION mention(value text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN RAISE WARNING 'look at %', value; RETURN value; END $$;
`

/** Statements that fail, by the reason that they must fail with; each has been told the secret. */
const failing = (sql: PgClient.PgClient, secret: Secret, digits: bigint, showRaised: boolean) => [
  ...failingOfThemselves(sql, secret, digits),
  // What a function's author wrote to be read is shown, unless the setting says otherwise.
  ...(showRaised ? [] : raising(sql, secret))
]

const raising = (sql: PgClient.PgClient, { text }: Secret) =>
  [
    ["RaisedException", sql`SELECT complain(${text}, 'P0001')`],
    ["UniqueViolation", sql`SELECT complain(${text}, '23505')`],
    ["PermissionDenied", sql`SELECT complain(${text}, '42501')`],
    ["SerializationFailure", sql`SELECT complain(${text}, '40001')`],
    ["LockTimeout", sql`SELECT complain(${text}, '55P03')`]
  ] as const

const failingOfThemselves = (sql: PgClient.PgClient, { text }: Secret, digits: bigint) =>
  [
    ["UniqueViolation", sql`INSERT INTO item ${sql.insert([{ name: text }, { name: text }])}`],
    ["InvalidInput", sql`SELECT ${text}::uuid`],
    ["InvalidInput", sql`SELECT ${text + "}"}::jsonb`],
    ["InvalidInput", sql`SELECT ${text}::int`],
    ["DataException", sql`SELECT ${text}::timestamptz`],
    ["DataException", sql`SELECT 'a' ~ ${`[${tokenOf(text)}`}`],
    ["ValueTooLong", sql`INSERT INTO item (code) VALUES (${text})`],
    ["OutOfRange", sql`SELECT ${String(digits)}::int`],
    ["OutOfRange", sql`INSERT INTO item (small) VALUES (${digits.toString()}::bigint)`],
    ["CheckViolation", sql`INSERT INTO item (checked, name) VALUES (${text}, ${text})`],
    ["CheckViolation", sql`SELECT ${text}::short`],
    ["NotNullViolation", sql`INSERT INTO item (name, needed) VALUES (${text}, NULL)`],
    ["ForeignKeyViolation", sql`INSERT INTO item (parent) VALUES (${`${text}!`})`],
    ["ExclusionViolation", sql`INSERT INTO item (alone) VALUES (${text}), (${text})`],
    ["SyntaxError", sql`SELECT to_tsquery('simple', ${`${text} & & (`})`],
    ["UndefinedObject", sql`SELECT ${`"${text.replaceAll('"', '""')}"`}::regclass`],
    ["UndefinedObject", sql`SELECT current_setting(${`app.${tokenOf(text)}`})`],
    ["UndefinedObject", sql`SELECT ${`"${tokenOf(text)}"`}::regrole`],
    ["InvalidRequest", sql`SELECT ${text}::text, ${{ toPostgres: () => raise(text) } as never}`],
    ["InvalidRequest", sql.unsafe(`SELECT '\0', $1`, [text])]
  ] as const

/** A statement on its own, as a stream, and as the error that aborts a transaction. */
const further = (sql: PgClient.PgClient, statement: ReturnType<typeof failing>[number][1]) => [
  Stream.runDrain(statement.stream),
  Transaction.run(statement, { name: "failing" }),
  Transaction.run(Effect.zipRight(Effect.ignore(statement), Effect.ignore(sql`SELECT 1`))),
  Transaction.run(Effect.zipRight(Effect.ignore(statement), sql`SELECT 1`))
]

const tokenOf = (text: string) => /[a-z][a-z0-9]{19}/.exec(text)?.[0] ?? text

const raise = (text: string): never => {
  throw new Error(text)
}

/** Where a text shows one of the words, with what stands before it. */
const leaks = (texts: ReadonlyArray<string>, words: ReadonlyArray<string>) =>
  texts.flatMap((text) =>
    words.flatMap((word) => {
      const at = text.indexOf(word)
      return at < 0 ? [] : [text.slice(Math.max(0, at - 100), at + word.length)]
    })
  )

/** A login with a password of its own on the test's database. */
const makeRole = (admin: Session.Session, name: string, password: string) =>
  Effect.acquireRelease(
    Effect.gen(function* () {
      const literal = yield* admin.query<{ sql: string }>(
        "SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', $1::text, $2::text) AS sql",
        [name, password]
      )
      yield* admin.query(literal.map((row) => row.sql).join(";"))
      yield* admin.query(`GRANT ALL ON ALL TABLES IN SCHEMA public TO ${name}`)
      yield* admin.query(`GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO ${name}`)
    }),
    () => Effect.orDie(admin.query(`DROP OWNED BY ${name}; DROP ROLE ${name}`))
  )

const urlFor = (url: Redacted.Redacted, user: string, password: string) => {
  const { host, pathname } = new URL(Redacted.value(url))
  return `postgresql://${user}:${encodeURIComponent(password)}@${host}${pathname}`
}

let roles = 0
const newRole = () => `secret_role_${process.pid}_${++roles}`

describe("secrets", () => {
  it.scopedLive("no password, parameter or row value is in any log, span, metric or error", () =>
    Effect.gen(function* () {
      const { admin, url } = yield* TestServer
      yield* admin.query(schema)
      const run = (
        capture: Capture.Capture,
        {
          digits,
          password,
          showRaised,
          value,
          wrong
        }: {
          readonly showRaised: boolean
          readonly password: Secret
          readonly wrong: Secret
          readonly value: Secret
          readonly digits: bigint
        }
      ) =>
        Effect.gen(function* () {
          const user = newRole()
          yield* makeRole(admin, user, password.text)
          const right = Database.layer({
            url: urlFor(url, user, password.text),
            echo: true,
            slowStatement: "0 millis",
            showRaised,
            minConnections: 1,
            maxConnections: 2
          })
          const seen = yield* capture.exit(
            Effect.gen(function* () {
              const sql = yield* PgClient.PgClient
              const database = yield* Database.Database
              capture.texts.push(
                ...Capture.prints(database),
                ...Capture.prints(database.config),
                ...Capture.prints(sql)
              )
              if (!showRaised) {
                const [row] = yield* sql`SELECT mention(${value.text}) AS value`
                assert.strictEqual(row?.["value"], value.text)
              }
              yield* sql`INSERT INTO parent (id) VALUES (${value.text}) ON CONFLICT DO NOTHING`
              yield* Stream.runDrain(sql`SELECT id FROM parent WHERE id = ${value.text}`.stream)
              for (const [tag, statement] of failing(sql, value, digits, showRaised)) {
                const exit = yield* capture.exit(statement)
                const reason = Exit.isFailure(exit)
                  ? DatabaseError.reasonOf(exit.cause._tag === "Fail" ? exit.cause.error : undefined)
                  : undefined
                assert.strictEqual(reason?._tag, tag, `${tag}: ${String(exit)}`.slice(0, 300))
                if (reason === undefined) continue
                capture.texts.push(...Capture.prints(reason))
              }
              // Each in one of the ways that carry its error further, another one with every run.
              const offset = Number(digits % 4n)
              for (const [index, [, statement]] of failing(sql, value, digits, showRaised).entries()) {
                yield* capture.exit(further(sql, statement)[(index + offset) % 4] ?? Effect.void)
              }
              yield* capture.exit(Notification.notify("channel", value.text.repeat(500)))
            }).pipe(Effect.provide(right))
          )
          assert.isTrue(Exit.isSuccess(seen), String(seen))
          const refused = yield* capture.exit(
            Layer.build(Database.layer({ url: urlFor(url, user, wrong.text), echo: true, minConnections: 1 }))
          )
          assert.strictEqual(
            DatabaseError.reasonOf(
              Exit.isFailure(refused) && refused.cause._tag === "Fail" ? refused.cause.error : undefined
            )?._tag,
            "AuthenticationFailed"
          )
          // Settings that are wrong, with the password in the url all the same.
          for (const bad of [
            `${urlFor(url, user, wrong.text)}?sslmode=never`,
            `postgresql://${user}:${wrong.text}@[/`,
            // As it is in the url, it would be read as the host, or as the database.
            `postgresql://${user}:p@${wrong.token}#@127.0.0.1/db`,
            `postgresql://${user}:p@${wrong.token}?@127.0.0.1/db`,
            `postgresql://${user}:1/${wrong.token}@127.0.0.1/db`,
            `${urlFor(url, user, wrong.text)}?sslrootcert=/nowhere&sslmode=require`,
            urlFor(url, user, wrong.text).replace("postgresql:", "mysql:")
          ]) {
            const exit = yield* capture.exit(Layer.build(Database.layer({ url: bad })))
            assert.isTrue(Exit.isFailure(exit))
          }
          yield* capture.metrics
          assert.isAbove(capture.texts.length, 500)
        }).pipe(Effect.scoped, Effect.provide(capture.layer))
      yield* Effect.promise(() =>
        FastCheck.assert(
          FastCheck.asyncProperty(
            secret,
            secret,
            secret,
            number,
            FastCheck.boolean(),
            async (password, wrong, value, digits, showRaised) => {
              const capture = Capture.make()
              await Effect.runPromise(run(capture, { password, wrong, value, digits, showRaised }))
              const words = [password.token, wrong.token, value.token, String(digits)]
              const found = leaks(capture.texts, words)
              if (found.length > 0) assert.fail(`shown: ${[...new Set(found)].slice(0, 5).join("\n")}`)
            }
          ),
          {
            numRuns: Number(process.env["SECRETS_RUNS"] ?? (isFull ? 50 : 5)),
            interruptAfterTimeLimit: 45_000,
            endOnFailure: true
          }
        )
      )
    }).pipe(Effect.provide(TestServer.layer))
  )
})
