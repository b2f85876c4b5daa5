import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Database from "../../src/Database.js"
import * as DatabaseError from "../../src/DatabaseError.js"
import * as Transaction from "../../src/Transaction.js"
import * as Proxy from "../support/Proxy.js"
import { databaseLayer, TestServer, processId } from "../support/database.js"

const check = (name: string, test: Effect.Effect<unknown, unknown, TestServer | Scope.Scope>) =>
  it.scopedLive(name, () => Effect.provide(Effect.scoped(test), TestServer.layer))

/** One connection, so that what runs next runs on the same. */
const withOne = <A, E>(program: Effect.Effect<A, E, Database.Provided>) =>
  Effect.provide(program, databaseLayer({ maxConnections: 1 }))

const reasonOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), DatabaseError.reasonOf)

const tagOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(reasonOf(effect), (reason) => reason?._tag)

let roles = 0

/** A role that can log in, and a Layer for it on the test's database. */
const login = (password: string, rights: ReadonlyArray<string> = []) =>
  Effect.gen(function* () {
    const { admin, url } = yield* TestServer
    const name = `limits_${process.pid}_${++roles}`
    yield* Effect.acquireRelease(
      Effect.forEach(
        [
          `CREATE ROLE ${name} LOGIN PASSWORD '${password}'`,
          ...rights.map((right) => right.replace("$role", name))
        ],
        (statement) => admin.query(statement)
      ),
      () => Effect.orDie(admin.query(`DROP OWNED BY ${name}; DROP ROLE ${name}`))
    )
    const own = new URL(Redacted.value(url))
    own.username = name
    own.password = encodeURIComponent(password)
    return { name, url: Redacted.make(own.toString()) }
  })

const gibibyte = 2 ** 30

describe("identifiers", () => {
  // A dot separates the schema from the table, as everywhere in @effect/sql: names that hold one
  // cannot be written so.
  const part = FastCheck.oneof(
    FastCheck.constantFrom(
      '"',
      '""',
      "'",
      "\\",
      ";",
      "--",
      "/*",
      "$1",
      "$$",
      "?",
      " ",
      "\n",
      "é",
      "名",
      "🐘",
      "select"
    ),
    FastCheck.string({ minLength: 1, maxLength: 4 }).filter((text) => !/[\0.]/.test(text))
  )
  const identifier = FastCheck.array(part, { minLength: 1, maxLength: 10 })
    .map((parts) => parts.join(""))
    .filter((name) => Buffer.byteLength(name) <= 63)

  check(
    "of any characters name a table and a column, and nothing else",
    Effect.gen(function* () {
      yield* withOne(
        Effect.gen(function* () {
          const sql = yield* PgClient.PgClient
          const runtime = yield* Effect.runtime<Database.Provided>()
          const run = (table: string, column: string) =>
            Transaction.run(
              Effect.gen(function* () {
                yield* sql`CREATE TEMPORARY TABLE ${sql(table)} (${sql(column)} text) ON COMMIT DROP`
                yield* sql`INSERT INTO ${sql(table)} ${sql.insert({ [column]: "value" })}`
                yield* sql`UPDATE ${sql(table)} SET ${sql.update({ [column]: "other" })}`
                const rows =
                  yield* sql`SELECT ${sql(column)} FROM ${sql(table)} WHERE ${sql(column)} = ${"other"}`
                assert.deepStrictEqual(rows.map(Object.entries), [[[column, "other"]]])
                const names = yield* sql<{ name: string }>`
                  SELECT relname AS name FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'
                `
                assert.deepStrictEqual(
                  names.map(({ name }) => name),
                  [table]
                )
              })
            )
          yield* Effect.promise(() =>
            FastCheck.assert(
              FastCheck.asyncProperty(identifier, identifier, (table, column) =>
                Effect.runPromise(Effect.provide(run(table, column), runtime))
              ),
              { numRuns: 50, interruptAfterTimeLimit: 20_000 }
            )
          )
        })
      )
    })
  )

  check(
    "with a dot are a schema's and a table's name, each quoted for itself",
    withOne(
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const [schema, table] = ['o"ut; --', "i'n"]
        yield* sql`CREATE SCHEMA ${sql(schema)}`
        yield* sql`CREATE TABLE ${sql(`${schema}.${table}`)} (id int)`
        const found = yield* sql`SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ${schema}`
        assert.deepStrictEqual(found, [{ schemaname: schema, tablename: table }])
      })
    )
  )

  check(
    "of 63 bytes are kept whole, longer ones are cut by the server wherever they are used",
    withOne(
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const whole = `${"é".repeat(31)}x`
        assert.strictEqual(Buffer.byteLength(whole), 63)
        const longer = `${whole}${"y".repeat(200)}`
        yield* sql`CREATE TABLE ${sql(whole)} (id int)`
        yield* sql`INSERT INTO ${sql(longer)} (id) VALUES (1)`
        assert.deepStrictEqual(yield* sql`SELECT id FROM ${sql(whole)}`, [{ id: 1 }])
        assert.strictEqual(yield* tagOf(sql`CREATE TABLE ${sql(longer)} (id int)`), "DuplicateObject")
      })
    )
  )
})

describe("a role that may only read", () => {
  check(
    "gets typed refusals, and goes on reading on the same connection",
    Effect.gen(function* () {
      const { admin } = yield* TestServer
      yield* admin.query("CREATE TABLE note (id int PRIMARY KEY, text text)")
      yield* admin.query("INSERT INTO note VALUES (1, 'kept')")
      const { url } = yield* login("reader", ["GRANT SELECT ON note TO $role"])
      yield* Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const before = yield* processId
        for (const refused of [
          sql`INSERT INTO note (id) VALUES (2)`,
          sql`UPDATE note SET text = 'changed'`,
          sql`DELETE FROM note`,
          sql`TRUNCATE note`,
          sql`DROP TABLE note`,
          sql`CREATE TABLE public.other (id int)`,
          sql`SELECT rolpassword FROM pg_authid`,
          sql`SELECT pg_read_file('/etc/passwd')`,
          sql`COPY note TO PROGRAM 'true'`
        ]) {
          assert.strictEqual(yield* tagOf(refused), "PermissionDenied")
          assert.strictEqual(yield* tagOf(Transaction.run(refused)), "PermissionDenied")
        }
        assert.strictEqual(
          yield* tagOf(Transaction.run(sql`UPDATE note SET text = 'changed'`, { readOnly: true })),
          "ReadOnlyTransaction"
        )
        assert.deepStrictEqual(yield* sql`SELECT text FROM note`, [{ text: "kept" }])
        assert.strictEqual(yield* processId, before)
      }).pipe(Effect.provide(Database.layer({ url, minConnections: 0, maxConnections: 1 })))
    })
  )

  check(
    "in a read-only transaction is ReadOnlyTransaction for every writing statement",
    withOne(
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        yield* sql`CREATE TABLE note (id serial PRIMARY KEY)`
        const before = yield* processId
        for (const writing of [
          sql`INSERT INTO note DEFAULT VALUES`,
          sql`SELECT nextval('note_id_seq')`,
          sql`CREATE TABLE other (id int)`,
          sql`DROP TABLE note`
        ]) {
          assert.strictEqual(
            yield* tagOf(Transaction.run(writing, { readOnly: true })),
            "ReadOnlyTransaction"
          )
        }
        assert.strictEqual(yield* processId, before)
      })
    )
  )
})

describe("a password", () => {
  for (const password of ["plain", "sp ace%/?#:@é", "名前🔑", "x".repeat(200)]) {
    check(
      `of ${password.length} characters (${password.slice(0, 16)}) logs in by SCRAM-SHA-256, and never crosses the network`,
      Effect.gen(function* () {
        const { admin } = yield* TestServer
        const { name, url } = yield* login(password)
        const [stored] = yield* admin.query<{ text: string }>(
          "SELECT rolpassword AS text FROM pg_authid WHERE rolname = $1",
          [name]
        )
        assert.match(stored?.text ?? "", /^SCRAM-SHA-256\$/)
        const proxy = yield* Proxy.make(url)
        const use = (to: Redacted.Redacted) =>
          Effect.scoped(
            Effect.provide(PgClient.PgClient, Layer.fresh(Database.layer({ url: to, minConnections: 1 })))
          )
        yield* use(proxy.url)
        const trace = yield* proxy.trace
        // SASLInitialResponse and SASLResponse: two messages, where a password or its md5 is one.
        const first = trace.filter((message) => message.connection === 1)
        assert.strictEqual(first.filter(({ name }) => name === "PasswordMessage").length, 2)
        assert.strictEqual(first.filter(({ name }) => name === "Authentication").length, 4)
        const wrong = new URL(Redacted.value(url))
        wrong.password = "another"
        assert.strictEqual(yield* tagOf(use(Redacted.make(wrong.toString()))), "AuthenticationFailed")
        wrong.password = ""
        const without = yield* reasonOf(use(Redacted.make(wrong.toString())))
        assert.include(["ConnectFailed", "AuthenticationFailed"], without?._tag)
      })
    )
  }
})

describe("what the protocol cannot carry", () => {
  const impossible = (
    what: string,
    statement: (sql: PgClient.PgClient) => Effect.Effect<unknown, unknown>,
    problem: RegExp
  ) =>
    check(
      `${what} is a clear error, and the connection stays usable`,
      withOne(
        Effect.gen(function* () {
          const sql = yield* PgClient.PgClient
          const before = yield* processId
          const alone = yield* reasonOf(statement(sql))
          assert.strictEqual(alone?._tag, "InvalidRequest")
          if (alone?._tag === "InvalidRequest") assert.match(alone.problem, problem)
          // Not sent, so that it does not abort the transaction either.
          const after = yield* Transaction.run(
            Effect.zipRight(Effect.ignore(statement(sql)), sql`SELECT 1 AS one`)
          )
          assert.deepStrictEqual(after, [{ one: 1 }])
          assert.strictEqual(yield* processId, before)
        })
      )
    )

  impossible("a NUL byte in a statement", (sql) => sql.unsafe("SELECT 'a\0b'"), /NUL/)
  impossible(
    "one parameter more than 65,535",
    (sql) =>
      sql.unsafe(
        "SELECT 1",
        Array.from({ length: 65_536 }, () => 1)
      ),
    /65536 parameters.*65535/
  )

  check(
    "65,535 parameters arrive, and a NUL byte in a parameter is the server's error",
    withOne(
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const before = yield* processId
        const many = Array.from({ length: 65_535 }, (_, index) => index)
        const [row] = yield* sql<{
          count: number
        }>`SELECT count(*)::int AS count FROM (VALUES ${sql.csv(many.map((value) => sql`(${value}::int)`))}) AS many`
        assert.strictEqual(row?.count, many.length)
        const nul = yield* reasonOf(sql`SELECT ${"a\0b"}::text`)
        assert.include(["DataException", "InvalidRequest"], nul?._tag)
        assert.deepStrictEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
        assert.strictEqual(yield* processId, before)
      })
    )
  )

  // The pages of a buffer of zeros are never touched, but a copy of it would be.
  it.scopedLive("a parameter of 1 GiB is a clear error, and the connection stays usable", () =>
    withOne(
      Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const before = yield* processId
        const rss = process.memoryUsage().rss
        const reason = yield* reasonOf(sql`SELECT length(${Buffer.alloc(gibibyte)}::bytea)`)
        assert.strictEqual(reason?._tag, "InvalidRequest")
        if (reason?._tag === "InvalidRequest") assert.match(reason.problem, /1073741824 bytes.*1 GiB/)
        assert.isBelow(process.memoryUsage().rss - rss, gibibyte / 2)
        assert.strictEqual(yield* processId, before)
      })
    ).pipe(Effect.provide(TestServer.layer))
  )
})
