import { assert, describe, inFull, inMatrix, it } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import * as Database from "../../src/Database.js"
import type { Session } from "../../src/connection/session.js"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.js"
import * as AdvisoryLock from "../../src/catalog/advisoryLock.js"
import * as ForeignKey from "../../src/ForeignKey.js"
import { eventually } from "../support/eventually.js"
import * as Proxy from "../support/Proxy.js"
import { adminSession, emptyDatabase } from "../support/server.js"
import { application, comparable, snapshots } from "./support.js"
import { cases } from "../support/length.js"
import { safetyNet } from "../support/speed.js"

const tables = `
  CREATE TABLE parent (id int PRIMARY KEY);
  CREATE TABLE child (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent);
  CREATE TABLE other (id int PRIMARY KEY, parent_id int CONSTRAINT fk REFERENCES parent);
  INSERT INTO parent SELECT generate_series(1, 100);
  INSERT INTO child SELECT id, id FROM parent`

const change = (options: Partial<ForeignKey.RebuildOptions> = {}) =>
  ForeignKey.rebuild({ selectors: {}, onDelete: "cascade", rehearse: false, ...options })

/** Once, at the end of a step of the first key. */
const once = (step: string, effect: Effect.Effect<unknown, unknown>) =>
  Effect.map(
    Ref.make(false),
    (done) =>
      (event: ForeignKey.Progress): Effect.Effect<void> =>
        event._tag === "StepDone" && event.step === step
          ? Effect.flatMap(Ref.getAndSet(done, true), (was) =>
              was ? Effect.void : Effect.orDie(Effect.asVoid(effect))
            )
          : Effect.void
  )

/** The statement of a change that holds this text, and not the one that makes a session ready. */
const sending = (text: string): Proxy.Match => {
  const isStatement = Proxy.statement(/(?:)/)
  return (message) =>
    isStatement(message) && message.text.includes(text) && !message.text.includes("search_path")
}

const ours = (session: Session, purpose: string) =>
  session.query<{ pid: number }>(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1",
    [`promptgrimoire-db: ${purpose}`]
  )

/** Both keys are changed, in one history without an open end. */
const isDone = Effect.gen(function* () {
  const keys = yield* ForeignKey.list()
  assert.deepStrictEqual(
    keys.map(({ onDelete, problems }) => [onDelete, problems.filter((text) => !text.startsWith("no index"))]),
    [
      ["cascade", []],
      ["cascade", []]
    ]
  )
  assert.deepStrictEqual(
    (yield* ForeignKey.history()).map(({ outcome }) => outcome),
    ["changed", "changed"]
  )
})

describe("a change whose connections are lost goes on by itself", () => {
  for (const mode of cases(["immediate", "fast"] as const, (mode) => mode === "immediate")) {
    inMatrix(it).scopedLive(`when the server restarts (${mode}) between any two steps`, () =>
      Effect.gen(function* () {
        const server = yield* EmbeddedPostgres.make()
        for (const step of cases(["add", "validate", "swap"], (step) => step === "validate")) {
          const layer = Database.layer({ url: server.url, minConnections: 0 })
          yield* Effect.scoped(
            Effect.flatMap(application, (session) =>
              session.query(
                `DROP TABLE IF EXISTS child, other, parent, ${ForeignKey.defaultLedger}; ${tables}`
              )
            )
          ).pipe(Effect.provide(layer))
          yield* Effect.gen(function* () {
            const onProgress = yield* once(
              step,
              Effect.zipRight(server.stop(mode), Effect.forkDaemon(server.start))
            )
            const { failed, rebuilt, refused } = yield* change({ onProgress })
            assert.deepStrictEqual([failed, refused], [[], []])
            assert.deepStrictEqual(
              rebuilt.map(({ previous }) => previous.action),
              ["no-action", "no-action"]
            )
            yield* isDone
          }).pipe(Effect.provide(layer))
        }
      })
    )
  }

  const behindProxy = <A, E>(
    use: (proxy: Proxy.Proxy, session: Session) => Effect.Effect<A, E, Database.Database>
  ) =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const session = yield* adminSession(name)
      yield* session.query(tables)
      const proxy = yield* Proxy.make(url)
      return yield* use(proxy, session).pipe(
        Effect.provide(
          Database.layer({
            url: proxy.url,
            minConnections: 0,
            statementTimeout: "1 second",
            lockTimeout: "1 second"
          })
        )
      )
    })

  inFull(it).scopedLive(
    "when the network swallows all that is sent, without closing a connection, while VALIDATE runs",
    () =>
      behindProxy((proxy) =>
        Effect.gen(function* () {
          const validating = yield* proxy.when(sending("VALIDATE "), Proxy.blackHoleAfter)
          yield* Effect.fork(Effect.zipRight(validating.reached, proxy.freeze))
          const lost: Array<string> = []
          const { failed, rebuilt, refused } = yield* change({
            onProgress: (event) =>
              Effect.sync(() => {
                if (event._tag === "Reconnecting") lost.push(event.code)
              })
          })
          assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 2])
          assert.deepStrictEqual(lost, ["ConnectionLost"])
          yield* isDone
        })
      )
  )

  inFull(it).scopedLive("when the network swallows all that is sent, between two steps", () =>
    behindProxy((proxy) =>
      Effect.gen(function* () {
        const lost: Array<string> = []
        const freeze = yield* once("add", proxy.freeze)
        const { failed, rebuilt, refused } = yield* change({
          onProgress: (event) =>
            Effect.zipRight(
              Effect.sync(() => {
                if (event._tag === "Reconnecting") lost.push(event.code)
              }),
              freeze(event)
            )
        })
        assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 2])
        assert.deepStrictEqual(lost, ["ConnectionLost"])
        yield* isDone
      })
    )
  )

  inMatrix(it).scopedLive("when the network cuts the connection of its rehearsal", () =>
    behindProxy((proxy) =>
      Effect.gen(function* () {
        const cut = yield* proxy.when(Proxy.statement(/promptgrimoire_rehearsal/), Proxy.cutAfter("end"))
        const { failed, rebuilt, refused } = yield* change({ rehearse: true })
        assert.deepStrictEqual([failed, refused, rebuilt.length, yield* cut.count], [[], [], 2, 1])
        yield* isDone
      })
    )
  )

  for (const cut of cases(
    ["VALIDATE ", "DROP CONSTRAINT ", "INSERT INTO ", 'UPDATE "'],
    (cut) => cut === 'UPDATE "'
  )) {
    for (const seen of ["sees that", "thinks it connected still"] as const) {
      const run = seen === "sees that" ? it : inMatrix(it)
      run.scopedLive(`when the network cuts a connection while ${cut}runs, and the server ${seen}`, () =>
        behindProxy((proxy) =>
          Effect.gen(function* () {
            const isSeen = seen === "sees that"
            const moment = yield* proxy.when(
              sending(cut),
              isSeen ? Proxy.cutAfter("end") : Proxy.abandonAfter
            )
            const lost: Array<string> = []
            const { failed, rebuilt, refused } = yield* change({
              onProgress: (event) =>
                Effect.sync(() => {
                  if (event._tag !== "Reconnecting") return
                  lost.push(event.code)
                })
            })
            assert.deepStrictEqual([failed, refused, rebuilt.length], [[], [], 2])
            assert.deepStrictEqual([yield* moment.count, lost], [1, ["ConnectionLost"]])
            yield* isDone
          })
        )
      )
    }
  }
})

describe("a change whose connections are lost ends", () => {
  const inDatabase = <A, E>(use: (session: Session) => Effect.Effect<A, E, Database.Database>) =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const session = yield* adminSession(name)
      yield* session.query(tables)
      return yield* use(session).pipe(Effect.provide(Database.layer({ url, minConnections: 0 })))
    })

  for (const purpose of cases(
    ["change foreign keys", "change foreign keys (watcher)", "change foreign keys (advisory lock)"],
    (purpose) => purpose === "change foreign keys"
  )) {
    it.scopedLive(`when somebody ends its session "${purpose}", with all its keys`, () =>
      inDatabase((session) =>
        Effect.gen(function* () {
          const before = comparable(yield* snapshots(session))
          const onProgress = yield* once(
            "add",
            Effect.gen(function* () {
              const [target] = yield* ours(session, purpose)
              yield* session.query("SELECT pg_terminate_backend($1)", [target?.pid])
              yield* eventually(
                "it is gone",
                Effect.map(ours(session, purpose), (rows) => rows.length === 0)
              )
            })
          )
          const { failed, rebuilt, refused } = yield* change({ onProgress })
          assert.deepStrictEqual([rebuilt, refused], [[], []])
          assert.deepStrictEqual(
            failed.map(({ code }) => code),
            ["ServerShutdown", "ServerShutdown"]
          )
          assert.include(failed[0]?.reason, "pg_terminate_backend")
          assert.include(failed[1]?.reason, "not begun, because public.child.fk failed")
          const undone = yield* ForeignKey.undo({ selectors: { tables: [{ table: "child" }] } })
          assert.deepStrictEqual(undone.failed, [])
          assert.deepStrictEqual(comparable(yield* snapshots(session)), before)
        })
      )
    )
  }

  inFull(it).scopedLive("when the key can no longer be changed", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const session = yield* adminSession(name)
      yield* session.query(tables)
      const proxy = yield* Proxy.make(url)
      yield* proxy.when(Proxy.statement(/VALIDATE /), Proxy.cutAfter("end"))
      const { failed } = yield* change({
        selectors: { tables: [{ table: "child" }] },
        onProgress: (event) =>
          event._tag === "Reconnecting"
            ? Effect.orDie(Effect.asVoid(session.query("ALTER EXTENSION plpgsql ADD TABLE parent")))
            : Effect.void
      }).pipe(Effect.provide(Database.layer({ url: proxy.url, minConnections: 0 })))
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["extension"]
      )
      assert.include(
        failed[0]?.reason,
        "it cannot be gone on with: public.parent belongs to extension plpgsql"
      )
    })
  )

  inMatrix(it).scopedLive("when another process has taken the lock meanwhile", () =>
    Effect.gen(function* () {
      const { name, url } = yield* emptyDatabase
      const session = yield* adminSession(name)
      yield* session.query(tables)
      const proxy = yield* Proxy.make(url)
      const onProgress = yield* once(
        "add",
        Effect.gen(function* () {
          yield* proxy.refuse
          yield* proxy.cutAll("end")
          yield* AdvisoryLock.acquire(session, safetyNet("1 minute"))
          yield* proxy.accept
        })
      )
      const { failed } = yield* change({ onProgress, patience: "10 millis" }).pipe(
        Effect.provide(
          Database.layer({
            url: Redacted.value(proxy.url),
            minConnections: 0,
            statementTimeout: "1 second",
            lockTimeout: "1 second"
          })
        )
      )
      assert.deepStrictEqual(
        failed.map(({ code }) => code),
        ["Busy", "Busy"]
      )
    })
  )

  inFull(it).scopedLive("when it is told not to connect again", () =>
    Effect.gen(function* () {
      const server = yield* EmbeddedPostgres.make()
      const layer = Database.layer({ url: server.url, minConnections: 0 })
      yield* Effect.scoped(Effect.flatMap(application, (session) => session.query(tables))).pipe(
        Effect.provide(layer)
      )
      const onProgress = yield* once("add", Effect.zipRight(server.stop("immediate"), server.start))
      const fiber = yield* Effect.fork(change({ onProgress, reconnects: 0 }).pipe(Effect.provide(layer)))
      const { failed } = yield* Fiber.join(fiber)
      assert.strictEqual(failed.length, 2)
      const { rebuilt } = yield* change().pipe(Effect.provide(layer))
      assert.strictEqual(rebuilt.length, 2)
    })
  )
})
