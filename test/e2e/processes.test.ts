import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Line from "./support/Line.js"
import * as Program from "./support/Program.js"
import * as Site from "./support/Site.js"
import * as Tab from "./support/Tab.js"

/** A second program on the same database. */
const another = Effect.flatMap(Site.Site, ({ database }) => Program.start(database))

/**
 * A program with a single connection, which waits for locks, and for that connection, as long as it
 * takes.
 */
const patient = Effect.flatMap(Site.Site, ({ database }) =>
  Program.start(database, {
    environment: {
      DATABASE_MIN_CONNECTIONS: "1",
      DATABASE_MAX_CONNECTIONS: "1",
      DATABASE_LOCK_TIMEOUT: "off",
      DATABASE_STATEMENT_TIMEOUT: "off",
      DATABASE_ACQUIRE_TIMEOUT: "5 minutes"
    }
  })
)

/** A database that is reached over a line. */
const databaseOver = (database: Redacted.Redacted) =>
  Effect.gen(function* () {
    const url = new URL(Redacted.value(database))
    const line = yield* Line.make(Number(url.port))
    url.port = String(line.port)
    url.hostname = "127.0.0.1"
    return { line, through: Redacted.make(url.toString()) }
  })

const health = (program: Program.Program) =>
  Effect.promise(async () => {
    const response = await fetch(`${program.address}/healthz`)
    const { database, pool } = (await response.json()) as {
      readonly database: string
      readonly pool: { readonly busy: number }
    }
    return { status: response.status, database, busy: pool.busy }
  })

const databaseOf = (program: Program.Program) => Effect.map(health(program), ({ database }) => database)

layer(Site.layer, { excludeTestServices: true, timeout: "2 minutes" })("several processes", (it) => {
  it.scoped("keep the tabs of one text in sync, whichever of them a tab is connected to", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const other = yield* another
      const path = yield* Site.newText
      const one = yield* Tab.open(`${program.address}${path}`, { name: "Ada" })
      const two = yield* Tab.open(`${other.address}${path}`, { name: "Ben" })
      yield* one.showsPeople("Ada (you)", "Ben")
      yield* two.showsPeople("Ada", "Ben (you)")
      yield* one.types("from one")
      yield* two.shows("from one")
      yield* two.presses("End")
      yield* two.types(", from the other")
      yield* one.shows("from one, from the other")
      // Too long for a notification.
      const long = "äöü 0123456789\n".repeat(600)
      yield* one.replacesAll(long)
      yield* two.shows(long)
      yield* two.replacesAll("short again")
      yield* one.shows("short again")
      yield* two.closes
      yield* one.showsPeople("Ada (you)")
    })
  )

  it.scoped("lose nothing when one is killed between two keystrokes", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const path = yield* Site.newText
      const watcher = yield* Tab.open(`${program.address}${path}`, { name: "Ada" })
      const line = yield* Line.make(program.port)
      let typed = ""
      const writer = yield* Effect.gen(function* () {
        const first = yield* another
        yield* line.leadTo(first.port)
        const tab = yield* Tab.open(`http://127.0.0.1:${line.port}${path}`, { name: "Ben" })
        yield* tab.types("typed before ")
        yield* first.kill
        return tab
      })
      typed += "typed before "
      for (const round of ["one", "two", "three"]) {
        // While nobody is there, and while somebody has just come.
        yield* writer.types(`while there is none ${round}, `)
        const next = yield* another
        yield* line.leadTo(next.port)
        yield* writer.types(`while one comes ${round}, `)
        yield* writer.saved
        yield* writer.types(`until it is killed ${round}; `)
        yield* next.kill
        typed += `while there is none ${round}, while one comes ${round}, until it is killed ${round}; `
      }
      yield* line.leadTo(program.port)
      yield* writer.saved
      yield* writer.shows(typed)
      yield* watcher.shows(typed)
      assert.strictEqual(yield* Site.storedText(path), typed)
    })
  )

  it.scoped("lose nothing when the only one is killed and started again", () =>
    Effect.gen(function* () {
      const { database } = yield* Site.Site
      const first = yield* another
      const path = yield* Site.newText
      const one = yield* Tab.open(`${first.address}${path}`, { name: "Ada" })
      const two = yield* Tab.open(`${first.address}${path}`, { name: "Ben" })
      yield* one.types("before")
      yield* first.kill
      yield* one.types(" and after")
      yield* one.saysStatus(/^Offline/)
      yield* Program.start(database, { port: first.port })
      yield* one.saved
      yield* two.shows("before and after")
    })
  )

  it.scoped("forget the tabs of one that is dead", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const other = yield* another
      const path = yield* Site.newText
      const one = yield* Tab.open(`${program.address}${path}`, { name: "Ada" })
      yield* Tab.open(`${other.address}${path}`, { name: "Ben" })
      yield* one.showsPeople("Ada (you)", "Ben")
      yield* other.kill
      yield* one.showsPeople("Ada (you)")
    })
  )

  it.scoped("send their tabs elsewhere on Ctrl-C, and end without an error", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const other = yield* another
      const path = yield* Site.newText
      const line = yield* Line.make(other.port)
      const one = yield* Tab.open(`http://127.0.0.1:${line.port}${path}`, { name: "Ada" })
      const two = yield* Tab.open(`${program.address}${path}`, { name: "Ben" })
      yield* one.types("typed")
      yield* line.leadTo(program.port)
      assert.strictEqual(yield* other.interrupt, 0)
      yield* one.types(" through it")
      yield* one.saved
      yield* two.shows("typed through it")
      yield* two.showsPeople("Ada", "Ben (you)")
      assert.strictEqual(other.written(), `Two tabs in sync: ${other.address}/\n`)
    })
  )

  it.scoped("have a server of their own where there is no DATABASE_URL, and end it with themselves", () =>
    Effect.gen(function* () {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => {
          const directory = Fs.mkdtempSync(Path.join(Os.tmpdir(), "two-tab-sync-"))
          // The server may run as another user, and must get at its data below.
          Fs.chmodSync(directory, 0o755)
          return directory
        }),
        (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
      )
      for (const text of ["kept in .data", "kept in .data, and over a restart"]) {
        const program = yield* Program.start(undefined, { directory })
        const tab = yield* Tab.open(`${program.address}/`, { name: "Ada" })
        yield* tab.presses("Control+End")
        yield* tab.types(text.slice((yield* tab.text).length))
        yield* tab.saved
        yield* tab.shows(text)
        assert.strictEqual(yield* program.interrupt, 0)
        assert.strictEqual(program.written(), `Two tabs in sync: ${program.address}/\n`)
        yield* tab.closes
      }
      assert.notInclude(Fs.readFileSync(Path.join(directory, ".data", "server.log"), "utf8"), "FATAL")
    })
  )

  it.scoped("end in time although a tab does not answer", () =>
    Effect.gen(function* () {
      const other = yield* another
      const path = yield* Site.newText
      const line = yield* Line.make(other.port)
      yield* Tab.open(`http://127.0.0.1:${line.port}${path}`, { name: "Ada" })
      yield* line.hold
      assert.strictEqual(yield* other.interrupt, 0)
      yield* line.cut
    })
  )

  it.scoped("read again what they may have missed while they could not listen", () =>
    Effect.gen(function* () {
      const { database, program } = yield* Site.Site
      const { line, through } = yield* databaseOver(database)
      const deaf = yield* Program.start(through)
      const path = yield* Site.newText
      const one = yield* Tab.open(`${program.address}${path}`, { name: "Ada" })
      const two = yield* Tab.open(`${deaf.address}${path}`, { name: "Ben" })
      yield* line.cut
      yield* one.types("nobody hears this")
      yield* one.saved
      assert.strictEqual(yield* two.text, "")
      yield* line.mend
      yield* two.shows("nobody hears this")
    })
  )

  it.scoped("say that the database is away, and save when it is back", () =>
    Effect.gen(function* () {
      const { database } = yield* Site.Site
      const { line, through } = yield* databaseOver(database)
      const program = yield* Program.start(through)
      const path = yield* Site.newText
      const one = yield* Tab.open(`${program.address}${path}`, { name: "Ada" })
      assert.deepInclude(yield* health(program), { status: 200, database: "ready" })
      yield* line.cut
      yield* one.types("kept here")
      yield* one.saysStatus("Offline: your changes are kept here and will be saved")
      assert.deepInclude(yield* health(program), { status: 503, database: "down" })
      yield* line.mend
      yield* one.saved
      assert.strictEqual(yield* Site.storedText(path), "kept here")
      yield* Site.eventually(databaseOf(program), "ready")
      assert.notInclude(program.written(), "kept here")
    })
  )

  it.scoped("say that the database is silent, and when all connections are busy", () =>
    Effect.gen(function* () {
      const { database } = yield* Site.Site
      const { line, through } = yield* databaseOver(database)
      const silent = yield* Program.start(through)
      yield* line.hold
      assert.deepInclude(yield* health(silent), { status: 503, database: "down" })
      yield* line.release

      const narrow = yield* Program.start(database, {
        environment: { DATABASE_MIN_CONNECTIONS: "1", DATABASE_MAX_CONNECTIONS: "1" }
      })
      const path = yield* Site.newText
      const one = yield* Tab.open(`${narrow.address}${path}`, { name: "Ada" })
      const sql = yield* PgClient.PgClient
      yield* Effect.gen(function* () {
        yield* sql`SELECT FROM conversation WHERE id = ${path.slice("/c/".length)} FOR UPDATE`
        yield* one.types("waits for the lock")
        yield* Site.eventually(databaseOf(narrow), "saturated")
      }).pipe(sql.withTransaction)
      yield* one.saved
      assert.strictEqual(yield* Site.storedText(path), "waits for the lock")
    })
  )

  it.scoped("pass changes on while they cannot say who is there", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const busy = yield* patient
      const path = yield* Site.newText
      const locked = yield* Site.newText
      const one = yield* Tab.open(`${busy.address}${path}`, { name: "Ada" })
      const waiting = yield* Tab.open(`${busy.address}${locked}`, { name: "Ben" })
      const two = yield* Tab.open(`${program.address}${path}`, { name: "Cleo" })
      const sql = yield* PgClient.PgClient
      yield* Effect.gen(function* () {
        yield* sql`SELECT FROM conversation WHERE id = ${locked.slice("/c/".length)} FOR UPDATE`
        yield* waiting.types("takes the only connection")
        yield* Site.eventually(databaseOf(busy), "saturated")
        // It asks who is there.
        yield* Tab.open(`${program.address}${path}`, { name: "Dan" })
        yield* two.types("heard at once")
        yield* one.shows("heard at once")
      }).pipe(sql.withTransaction)
      yield* waiting.saved
    })
  )

  it.scoped("save to the last letter what a tab sent before it was closed, and let it ask before", () =>
    Effect.gen(function* () {
      const { address } = yield* patient
      const path = yield* Site.newText
      const one = yield* Tab.open(`${address}${path}`, { name: "Ada" })
      const sql = yield* PgClient.PgClient
      const asks = Effect.promise(() =>
        one.page.evaluate<boolean>(`!dispatchEvent(new Event("beforeunload", { cancelable: true }))`)
      )
      assert.isFalse(yield* asks)
      yield* Effect.gen(function* () {
        yield* sql`SELECT FROM conversation WHERE id = ${path.slice("/c/".length)} FOR UPDATE`
        yield* one.types("typed while the first letter waits")
        yield* one.saysStatus("Saving …")
        yield* Site.eventually(asks, true)
        yield* Effect.promise(() => one.page.goto("about:blank"))
      }).pipe(sql.withTransaction)
      yield* Site.eventually(Site.storedText(path), "typed while the first letter waits")
    })
  )

  it.scoped("say that the database is silent also when all connections are busy with it", () =>
    Effect.gen(function* () {
      const { database } = yield* Site.Site
      const { line, through } = yield* databaseOver(database)
      const narrow = yield* Program.start(through, {
        environment: { DATABASE_MIN_CONNECTIONS: "1", DATABASE_MAX_CONNECTIONS: "1" }
      })
      const path = yield* Site.newText
      const one = yield* Tab.open(`${narrow.address}${path}`, { name: "Ada" })
      yield* line.hold
      yield* one.types("on its way to nobody")
      yield* Site.eventually(
        Effect.map(health(narrow), ({ busy }) => busy),
        1
      )
      assert.deepInclude(yield* health(narrow), { status: 503, database: "down", busy: 1 })
      yield* line.release
      yield* one.saved
    })
  )
})
