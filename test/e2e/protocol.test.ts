import * as PgClient from "@effect/sql-pg/PgClient"
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Socket from "@effect/platform/Socket"
import { assert, layer } from "../support/it.js"
import * as Effect from "effect/Effect"
import * as Encoding from "effect/Encoding"
import * as Mailbox from "effect/Mailbox"
import * as Schema from "effect/Schema"
import * as Http from "node:http"
import * as Y from "yjs"
import { maxMessageLength, maxTextLength } from "../../examples/two-tab-sync/limits.js"
import { FromServer, type FromTab } from "../../examples/two-tab-sync/Protocol.js"
import * as Site from "./support/Site.js"

const secret = "a secret that no log may hold"

/** A tab that says what it likes. */
const connect = Effect.fn("connect")(function* (path: string) {
  const { program } = yield* Site.Site
  const socket = yield* Socket.makeWebSocket(
    `${program.address.replace("http", "ws")}/sync/${path.slice("/c/".length)}`
  )
  const heard = yield* Mailbox.make<FromServer, Socket.SocketError>()
  const write = yield* socket.writer
  yield* Effect.forkScoped(
    Mailbox.into(
      socket.runRaw((frame) => Effect.flatMap(decode(frame), (message) => heard.offer(message))),
      heard
    )
  )
  const say = (message: typeof FromTab.Encoded) => write(JSON.stringify(message))
  /** The next message that is one of these. */
  const hear = <Tag extends FromServer["_tag"]>(...tags: ReadonlyArray<Tag>) =>
    heard.take.pipe(
      Effect.repeat({ until: (message) => (tags as ReadonlyArray<string>).includes(message._tag) }),
      Effect.map((message) => message as Extract<FromServer, { readonly _tag: Tag }>)
    )
  return { write, say, hear }
}, Effect.provide(NodeSocket.layerWebSocketConstructor))

const decode = (frame: string | Uint8Array) =>
  Effect.orDie(Schema.decodeUnknown(Schema.parseJson(FromServer))(frame))

const hello = {
  _tag: "Hello",
  person: { tab: "00000000-0000-4000-8000-00000000000a", name: "Ada" }
} as const

/** An update that writes into a document of its own. */
const update = (id: number, edit: (doc: Y.Doc) => void) => {
  const doc = new Y.Doc()
  edit(doc)
  return { _tag: "Update", id, update: Encoding.encodeBase64(Y.encodeStateAsUpdate(doc)) } as const
}
const writes = (id: number, text: string) => update(id, (doc) => doc.getText("text").insert(0, text))

/** The last of two changes of a document, without the first one. */
const later = (id: number, edit: (text: Y.Text) => void) => {
  const doc = new Y.Doc()
  const text = doc.getText("text")
  text.insert(0, "ac")
  const before = Y.encodeStateVector(doc)
  edit(text)
  return {
    _tag: "Update",
    id,
    update: Encoding.encodeBase64(Y.encodeStateAsUpdate(doc, before))
  } as const
}

layer(Site.layer, { excludeTestServices: true, timeout: "2 minutes" })("the server", (it) => {
  it.scoped("refuses what is no message, and goes on with who sent it", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const { hear, say, write } = yield* connect(path)
      const nonsense = [
        secret,
        "",
        "null",
        "[]",
        `{"_tag":"Nothing","text":"${secret}"}`,
        `{"_tag":"Update","id":-1,"update":""}`,
        `{"_tag":"Update","id":1,"update":"${secret}"}`,
        `{"_tag":"Hello","person":{"tab":"1","name":"${secret}"}}`,
        `{"_tag":"Hello","person":{"tab":"${hello.person.tab}","name":"  "}}`,
        `{"_tag":"Hello","person":{"tab":"${hello.person.tab}","name":"${"n".repeat(41)}"}}`,
        new Uint8Array([1, 2, 3])
      ]
      for (const frame of nonsense) {
        yield* write(frame)
        assert.strictEqual((yield* hear("Refused")).reason, "BadMessage")
      }
      yield* say(writes(7, "too early"))
      assert.include(yield* hear("Refused"), { reason: "BadMessage", id: 7 })
      yield* write(JSON.stringify({ text: secret }).padEnd(maxMessageLength + 1))
      assert.strictEqual((yield* hear("Refused")).reason, "MessageTooLong")

      yield* say(hello)
      yield* say(writes(8, "well said"))
      assert.strictEqual((yield* hear("Saved", "Refused"))._tag, "Saved")
      assert.strictEqual(yield* Site.storedText(path), "well said")
    })
  )

  it.scoped("refuses changes that are none, or that leave something else than a plain text", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const { hear, say } = yield* connect(path)
      yield* say(hello)
      const refused = (message: typeof FromTab.Encoded) =>
        Effect.zipRight(say(message), hear("Saved", "Refused"))
      const bad = [
        { _tag: "Update", id: 1, update: Encoding.encodeBase64(secret) } as const,
        { _tag: "Update", id: 2, update: "" } as const,
        writes(3, "carriage\r\nreturn"),
        update(4, (doc) => doc.getText("text").insertEmbed(0, { image: secret })),
        update(5, (doc) => doc.getArray("text").push([1, 2, 3])),
        update(6, (doc) => doc.getMap("another").set("kept", secret)),
        update(7, (doc) => {
          doc.getText("text").insert(0, "as long as what it replaces")
          doc.getMap(secret).set("gone", 1)
          doc.getMap(secret).delete("gone")
        }),
        update(8, (doc) => doc.getText("text").insert(0, "bold", { bold: secret })),
        update(9, (doc) => {
          doc.getText("text").insert(0, "not bold any more", { bold: secret })
          doc.getText("text").format(0, 17, { bold: null, italic: true })
        }),
        update(10, (doc) => doc.getText("text").setAttribute("language", secret)),
        update(11, (doc) => {
          doc.getText("text").setAttribute(secret, true)
          doc.getText("text").removeAttribute(secret)
        }),
        later(12, (text) => text.insert(0, "b")),
        later(13, (text) => text.delete(0, 1))
      ]
      for (const message of bad) {
        assert.include(yield* refused(message), { _tag: "Refused", reason: "BadUpdate", id: message.id })
      }
      yield* say({ _tag: "Sync", stateVector: Encoding.encodeBase64(secret) })
      assert.strictEqual((yield* hear("State", "Refused"))._tag, "Refused")
      assert.strictEqual(yield* Site.storedText(path), "")
    })
  )

  it.scoped("refuses a text that is too long, and takes it when it was shortened", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const { hear, say } = yield* connect(path)
      yield* say(hello)
      const doc = new Y.Doc()
      const text = doc.getText("text")
      text.insert(0, "ä".repeat(maxTextLength + 1))
      const all = (id: number) =>
        say({ _tag: "Update", id, update: Encoding.encodeBase64(Y.encodeStateAsUpdate(doc)) })
      yield* all(1)
      assert.include(yield* hear("Saved", "Refused"), { _tag: "Refused", reason: "TextTooLong", id: 1 })
      text.delete(0, 1)
      yield* all(2)
      assert.include(yield* hear("Saved", "Refused"), { _tag: "Saved", id: 2 })
      assert.lengthOf(yield* Site.storedText(path), maxTextLength)
    })
  )

  it.scoped("takes the same change twice, and tells a tab only what it lacks", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const { hear, say } = yield* connect(path)
      yield* say(hello)
      const change = writes(1, "once")
      for (const id of [1, 2]) {
        yield* say({ ...change, id })
        assert.include(yield* hear("Saved", "Refused"), { _tag: "Saved", id })
      }
      assert.strictEqual(yield* Site.storedText(path), "once")
      yield* say({ _tag: "Sync", stateVector: "AA==" })
      const { stateVector, update } = yield* hear("State")
      assert.isAbove(update.length, "once".length)
      yield* say({ _tag: "Sync", stateVector: Encoding.encodeBase64(stateVector) })
      assert.deepStrictEqual((yield* hear("State")).update, new Uint8Array([0, 0]))
    })
  )

  it.scoped("refuses what is too long when it comes, and not when its turn comes", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const { hear, say, write } = yield* connect(path)
      yield* say(hello)
      const sql = yield* PgClient.PgClient
      yield* Effect.gen(function* () {
        yield* sql`SELECT FROM conversation WHERE id = ${path.slice("/c/".length)} FOR UPDATE`
        yield* say(writes(1, "waits for the row"))
        yield* write("".padEnd(maxMessageLength + 1))
        assert.strictEqual((yield* hear("Refused", "Saved"))._tag, "Refused")
      }).pipe(sql.withTransaction)
      assert.include(yield* hear("Refused", "Saved"), { _tag: "Saved", id: 1 })
    })
  )

  it.scoped("has one room for a conversation, also for who writes its id in upper case", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const lower = yield* connect(path)
      const upper = yield* connect(`/c/${path.slice("/c/".length).toUpperCase()}`)
      yield* lower.say(hello)
      yield* upper.say({ ...hello, person: { tab: hello.person.tab.replace("a", "b"), name: "Ben" } })
      const everybody = upper
        .hear("People")
        .pipe(Effect.repeat({ until: ({ people }) => people.length === 2 }))
      yield* everybody
      yield* lower.say(writes(1, "for both"))
      const { update } = yield* upper.hear("Update")
      assert.isAbove(update.length, "for both".length)
    })
  )

  it.scoped("says that there is no such conversation", () =>
    Effect.gen(function* () {
      const { hear, say } = yield* connect("/c/00000000-0000-4000-8000-0000000000ff")
      yield* say(hello)
      yield* say({ _tag: "Sync", stateVector: "AA==" })
      assert.strictEqual((yield* hear("Refused", "State"))._tag, "Refused")
      yield* say(writes(1, "for nobody"))
      assert.include(yield* hear("Refused", "Saved"), { reason: "UnknownConversation", id: 1 })
    })
  )

  it.scoped("cuts off a tab that says more than it can be answered, and nobody else", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      const calm = yield* connect(path)
      const wild = yield* connect(path)
      for (let count = 0; count < 500; count++) yield* wild.say({ _tag: "Sync", stateVector: "AA==" })
      yield* Effect.flip(Effect.forever(wild.hear("State")))
      yield* calm.say({ _tag: "Sync", stateVector: "AA==" })
      yield* calm.hear("State")
    })
  )

  it.scoped("answers plain requests", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const path = yield* Site.newText
      const status = (path: string, headers: Record<string, string> = {}, method = "GET") =>
        Effect.promise(async () => {
          const response = await fetch(program.address + path, { headers, method, redirect: "manual" })
          await response.text()
          return response.status
        })
      assert.strictEqual(yield* status("/"), 303)
      assert.strictEqual(yield* status(path), 200)
      assert.strictEqual(yield* status("/healthz"), 200)
      assert.strictEqual(yield* status("/c/none"), 404)
      assert.strictEqual(yield* status("/nothing"), 404)
      // Not a WebSocket.
      assert.strictEqual(yield* status(path.replace("/c/", "/sync/")), 400)
      const elsewhere = { origin: "https://elsewhere.example" }
      assert.strictEqual(yield* status("/conversations", elsewhere, "POST"), 403)
      assert.strictEqual(yield* status(path.replace("/c/", "/sync/"), elsewhere), 403)
      assert.strictEqual(yield* status("/conversations", { origin: "not an origin" }, "POST"), 403)
      assert.strictEqual(yield* status("/conversations", { origin: program.address }, "POST"), 303)
    })
  )

  it.scoped("knows its own page by the names that it was told, and by any address", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const status = (host: string, origin = `http://${host}`) =>
        Effect.async<number | undefined>((resume) => {
          const request = Http.request(
            `${program.address}/conversations`,
            { method: "POST", headers: { host, origin } },
            (response) => {
              response.resume()
              resume(Effect.succeed(response.statusCode))
            }
          )
          request.end()
          return Effect.sync(() => request.destroy())
        })
      const ours = ["localhost:3000", "127.0.0.1:3000", "192.168.1.7:3000", "[::1]:3000", Site.publicName]
      for (const host of ours) assert.strictEqual(yield* status(host), 303, host)
      // Its name leads here by now, and a page of it was loaded before.
      for (const host of ["evil.example:3000", `${Site.publicName}.evil.example`]) {
        assert.strictEqual(yield* status(host), 403, host)
      }
      assert.strictEqual(yield* status("127.0.0.1:3000", "http://127.0.0.1:3001"), 403)
      assert.strictEqual(yield* status(Site.publicName, `https://${Site.publicName}`), 303)
    })
  )

  it.scoped("keeps its hands off a state that another program wrote and that is none", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      yield* Site.setColumns(path, { crdt_state: Buffer.from([0, 1, 2, 3]) })
      const { hear, say } = yield* connect(path)
      yield* say(hello)
      yield* say({ _tag: "Sync", stateVector: "AA==" })
      assert.strictEqual((yield* hear("Refused", "State"))._tag, "Refused")
      yield* say(writes(1, "over it"))
      assert.include(yield* hear("Refused", "Saved"), { reason: "BadUpdate", id: 1 })
    })
  )

  it.scoped("starts from the raw text of a conversation that nobody has edited", () =>
    Effect.gen(function* () {
      const path = yield* Site.newText
      yield* Site.setColumns(path, { raw_text: "pasted\r\nlong ago" })
      const { hear, say } = yield* connect(path)
      yield* say(hello)
      yield* say({ _tag: "Sync", stateVector: "AA==" })
      const doc = new Y.Doc()
      Y.applyUpdate(doc, (yield* hear("State")).update)
      assert.strictEqual(doc.getText("text").toJSON(), "pasted\nlong ago")
      doc.getText("text").insert(0, "Edited: ")
      yield* say({ _tag: "Update", id: 1, update: Encoding.encodeBase64(Y.encodeStateAsUpdate(doc)) })
      yield* hear("Saved")
      assert.strictEqual(yield* Site.storedText(path), "Edited: pasted\nlong ago")
    })
  )

  it.scoped("writes nothing of it into its log", () =>
    Effect.gen(function* () {
      const { program } = yield* Site.Site
      const log = program.written()
      for (const text of [secret, Encoding.encodeBase64(secret), "well said", "once", "pasted"])
        assert.notInclude(log, text)
      // Refused changes are rolled back, which is logged, but not as a fault.
      assert.notInclude(log, "ERROR")
    })
  )
})
