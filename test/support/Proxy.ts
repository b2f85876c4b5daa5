/**
 * A byte proxy between clients and a PostgreSQL server that reads the protocol's framing in both
 * directions (documentation, chapter "Message Formats"), so that a test acts at one exact message:
 * holds it, swallows it, repeats it, splits it, cuts the connection at it or turns the connection
 * into a black hole. A test waits for a moment on the wire, never for a time.
 *
 * An encrypted connection passes through unread.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** One message of the protocol on its way through. */
export interface Message {
  /** The connection's number, from 1 in the order of their arrival. */
  readonly connection: number
  readonly from: "client" | "server"
  /** The name in the documentation: `Query`, `Bind`, `CommandComplete`, ... */
  readonly name: string
  /**
   * What tells it from others of its name: the statement of Query and Parse, and of the Bind,
   * Describe and Execute that refer to one; the tag of CommandComplete, the SQLSTATE of
   * ErrorResponse, the status of ReadyForQuery.
   */
  readonly text: string
}

/** What the proxy does with a message. */
export type Action =
  /** Lets it pass; the moment alone is of interest. */
  | { readonly _tag: "Pass" }
  /** Keeps it, and what follows it in its direction, until an effect has ended. */
  | { readonly _tag: "Hold"; readonly until: Effect.Effect<unknown> }
  /** Swallows it. */
  | { readonly _tag: "Drop" }
  /** Closes both sides, with RST or FIN towards who sent it. */
  | { readonly _tag: "Cut"; readonly how: "reset" | "end"; readonly delivered: boolean }
  /** Passes it on and closes the client's side; the server thinks that it is connected still. */
  | { readonly _tag: "Abandon" }
  /** Passes nothing on any more, in neither direction, and closes nothing. */
  | { readonly _tag: "BlackHole"; readonly delivered: boolean }
  /** Sends it twice. */
  | { readonly _tag: "Duplicate" }
  /** Sends it in pieces of so many bytes. */
  | { readonly _tag: "Split"; readonly bytes: number }

/** Which messages are meant. */
export type Match = (message: Message) => boolean

/** A rule at work, and what it has seen. */
export interface Moment {
  /** Waits for the first message that the rule acted upon. */
  readonly reached: Effect.Effect<Message>
  /** How many messages it acted upon. */
  readonly count: Effect.Effect<number>
  /** Ends the rule. */
  readonly off: Effect.Effect<void>
}

/** A proxy in front of one server. */
export interface Proxy {
  /** The server's url through the proxy. */
  readonly url: Redacted.Redacted
  /**
   * Acts upon messages that match: from the `nth` on (1 when left out), `times` of them (1 when
   * left out).
   */
  readonly when: (
    match: Match,
    action: Action,
    which?: { readonly nth?: number; readonly times?: number }
  ) => Effect.Effect<Moment>
  /** What came by so far, in order; rows are only counted, see `count`. */
  readonly trace: Effect.Effect<ReadonlyArray<Message>>
  /** How many messages of a name came by. */
  readonly count: (name: string) => Effect.Effect<number>
  /** Holds the first message of every new connection for so long, cancel requests left out. */
  readonly setDialDelay: (delay: Duration.DurationInput) => Effect.Effect<void>
  /** Refuses connections, until `accept`. */
  readonly refuse: Effect.Effect<void>
  readonly accept: Effect.Effect<void>
  /**
   * Takes the network down: nothing passes on any connection and nothing is closed, new ones
   * included.
   */
  readonly down: Effect.Effect<void>
  /**
   * Brings it back for new connections; those that saw it down stay dead, as behind a firewall that
   * forgot them.
   */
  readonly up: Effect.Effect<void>
  /** Turns every open connection into a black hole; new ones work. */
  readonly freeze: Effect.Effect<void>
  /** Closes every open connection on both sides. */
  readonly cutAll: (how: "reset" | "end") => Effect.Effect<void>
  /** Sends new connections to another server. */
  readonly retarget: (url: Redacted.Redacted) => Effect.Effect<void>
  readonly connections: Effect.Effect<{
    /** Sockets that clients have open now. */
    readonly open: number
    /** Sockets of clients so far. */
    readonly accepted: number
    /** Connections with a startup message so far. */
    readonly dialed: number
    /** Cancel requests so far. */
    readonly cancels: number
  }>
}

// -----------------------------------------------------------------------------
// actions and matches
// -----------------------------------------------------------------------------

/** Only looks. */
export const pass: Action = { _tag: "Pass" }

/** Keeps the message until the effect has ended. */
export const hold = (until: Effect.Effect<unknown>): Action => ({ _tag: "Hold", until })

/** Keeps the message for so long. */
export const delay = (duration: Duration.DurationInput): Action => hold(Effect.sleep(duration))

/** Swallows the message. */
export const drop: Action = { _tag: "Drop" }

/** Closes the connection instead of passing the message on. */
export const cutBefore = (how: "reset" | "end"): Action => ({ _tag: "Cut", how, delivered: false })

/** Closes the connection once the message has been passed on. */
export const cutAfter = (how: "reset" | "end"): Action => ({ _tag: "Cut", how, delivered: true })

/** Passes the message on and closes the connection towards the client alone. */
export const abandonAfter: Action = { _tag: "Abandon" }

/** A black hole from this message on. */
export const blackHoleBefore: Action = { _tag: "BlackHole", delivered: false }

/** A black hole as soon as this message has passed. */
export const blackHoleAfter: Action = { _tag: "BlackHole", delivered: true }

/** Sends the message twice. */
export const duplicate: Action = { _tag: "Duplicate" }

/** Sends the message in pieces. */
export const split = (bytes: number): Action => ({ _tag: "Split", bytes })

/** Messages of a client by name, and by what {@link Message.text} holds. */
export const client = (name: string, text: RegExp = /(?:)/): Match => matching("client", name, text)

/** Messages of the server. */
export const server = (name: string, text: RegExp = /(?:)/): Match => matching("server", name, text)

/** The message that makes the server run a statement: Query or Execute. */
export const statement =
  (text: RegExp): Match =>
  (message) =>
    message.from === "client" &&
    (message.name === "Query" || message.name === "Execute") &&
    text.test(message.text)

const matching =
  (from: Message["from"], name: string, text: RegExp): Match =>
  (message) =>
    message.from === from && message.name === name && text.test(message.text)

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** Puts a proxy in front of the server of `url`; it ends with the scope. */
export const make = (url: Redacted.Redacted): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.gen(function* () {
    const runCallback = Runtime.runCallback(yield* Effect.runtime())
    const links = new Set<Link>()
    const rules = new Set<Rule>()
    const trace: Array<Message> = []
    const counts = new Map<string, number>()
    let target = addressOf(url)
    let dialDelay: Duration.DurationInput = 0
    let isDown = false
    let opened = 0
    let dialed = 0
    let cancels = 0

    const observe = (message: Message): Action => {
      counts.set(message.name, (counts.get(message.name) ?? 0) + 1)
      if (message.name !== "DataRow") trace.push(message)
      if (message.name === "CancelRequest") cancels++
      const isDial = message.name === "StartupMessage"
      if (isDial) dialed++
      for (const rule of rules) if (rule.match(message) && rule.isDue()) return rule.take(message)
      return isDial && Duration.toMillis(dialDelay) > 0 ? delay(dialDelay) : pass
    }

    const listen = (port: number): Effect.Effect<Net.Server> =>
      Effect.async((resume) => {
        const listener = Net.createServer({ allowHalfOpen: true }, (socket) => {
          const link = new Link({
            number: ++opened,
            client: socket,
            server: Net.connect({ ...target, allowHalfOpen: true }),
            observe,
            run: (effect, then) => void runCallback(effect, { onExit: then }),
            ended: () => links.delete(link)
          })
          links.add(link)
          if (isDown) link.blackHole()
        })
        listener.listen(port, "127.0.0.1", () => resume(Effect.succeed(listener)))
      })

    let listener = yield* Effect.acquireRelease(listen(0), () =>
      Effect.sync(() => {
        listener.close()
        for (const link of links) link.cut("reset")
      })
    )
    const { port } = listener.address() as Net.AddressInfo
    const through = new URL(Redacted.value(url))
    through.hostname = "127.0.0.1"
    through.port = String(port)

    const forAll = (act: (link: Link) => void) =>
      Effect.sync(() => {
        for (const link of links) act(link)
      })

    return {
      url: Redacted.make(through.toString()),
      when: (match, action, which) =>
        Effect.sync(() => {
          const rule = new Rule(match, action, which?.nth ?? 1, which?.times ?? 1)
          rules.add(rule)
          return {
            reached: Deferred.await(rule.reached),
            count: Effect.sync(() => rule.acted),
            off: Effect.sync(() => void rules.delete(rule))
          }
        }),
      trace: Effect.sync(() => [...trace]),
      count: (name) => Effect.sync(() => counts.get(name) ?? 0),
      setDialDelay: (duration) =>
        Effect.sync(() => {
          dialDelay = duration
        }),
      refuse: Effect.sync(() => void listener.close()),
      accept: Effect.flatMap(listen(port), (again) =>
        Effect.sync(() => {
          listener = again
        })
      ),
      down: Effect.zipRight(
        Effect.sync(() => {
          isDown = true
        }),
        forAll((link) => link.blackHole())
      ),
      up: Effect.sync(() => {
        isDown = false
      }),
      freeze: forAll((link) => link.blackHole()),
      cutAll: (how) => forAll((link) => link.cut(how)),
      retarget: (url) =>
        Effect.sync(() => {
          target = addressOf(url)
        }),
      connections: Effect.sync(() => ({
        open: [...links].filter(({ client }) => !client.destroyed && !client.readableEnded).length,
        accepted: opened,
        dialed,
        cancels
      }))
    }
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

const addressOf = (url: Redacted.Redacted): { readonly host: string; readonly port: number } => {
  const { hostname, port } = new URL(Redacted.value(url))
  return { host: hostname, port: Number(port || 5432) }
}

class Rule {
  readonly reached = Deferred.unsafeMake<Message>(FiberId.none)
  acted = 0
  private seen = 0

  constructor(
    readonly match: Match,
    private readonly action: Action,
    private readonly nth: number,
    private readonly times: number
  ) {}

  isDue(): boolean {
    this.seen++
    return this.seen >= this.nth && this.acted < this.times
  }

  take(message: Message): Action {
    this.acted++
    Deferred.unsafeDone(this.reached, Effect.succeed(message))
    return this.action
  }
}

interface LinkOptions {
  readonly number: number
  readonly client: Net.Socket
  readonly server: Net.Socket
  readonly observe: (message: Message) => Action
  readonly run: (effect: Effect.Effect<unknown>, then: () => void) => void
  readonly ended: () => void
}

/** A client's connection and the one to the server that belongs to it. */
class Link {
  readonly client: Net.Socket
  readonly server: Net.Socket
  /** Passes nothing on. */
  dark = false

  constructor(readonly options: LinkOptions) {
    this.client = options.client
    this.server = options.server
    const framing = new Framing(options.number)
    const up = new Lane(this, this.client, this.server, (buffer) => framing.ofClient(buffer))
    const down = new Lane(this, this.server, this.client, (buffer) => framing.ofServer(buffer))
    for (const lane of [up, down]) {
      const { source } = lane
      source.setNoDelay(true)
      source.on("data", (chunk) => lane.receive(chunk))
      source.on("end", () => lane.end())
      source.on("drain", () => (source === this.client ? down : up).source.resume())
      source.on("error", () => {
        if (!this.dark) this.cut("reset")
      })
      source.on("close", () => {
        if (this.client.destroyed && this.server.destroyed) options.ended()
      })
    }
  }

  blackHole(): void {
    this.dark = true
  }

  cut(how: "reset" | "end"): void {
    for (const socket of [this.client, this.server]) closeBy(socket, how)
  }
}

const closeBy = (socket: Net.Socket, how: "reset" | "end"): void => {
  if (socket.destroyed) return
  if (how === "reset") socket.resetAndDestroy()
  else socket.end(() => socket.destroy())
}

/** A message cut out of the stream; without a message they are bytes that pass unread. */
interface Frame {
  readonly message: Message | undefined
  readonly length: number
}

/** One direction of a link. What it has received leaves in the same order. */
class Lane {
  private buffer: Buffer = Buffer.alloc(0)
  private held = false
  private ended = false

  constructor(
    private readonly link: Link,
    readonly source: Net.Socket,
    private readonly target: Net.Socket,
    private readonly next: (buffer: Buffer) => Frame | undefined
  ) {}

  receive(chunk: Buffer): void {
    if (this.link.dark) return
    this.buffer = this.buffer.length === 0 ? chunk : Buffer.concat([this.buffer, chunk])
    this.pump()
  }

  end(): void {
    this.ended = true
    if (this.link.dark) this.source.end()
    else this.pump()
  }

  private pump(): void {
    while (!this.held && !this.link.dark) {
      const frame = this.next(this.buffer)
      if (frame === undefined) break
      const bytes = this.buffer.subarray(0, frame.length)
      this.buffer = this.buffer.subarray(frame.length)
      if (frame.message === undefined) this.write(bytes)
      else this.act(this.link.options.observe(frame.message), bytes)
    }
    if (this.ended && !this.held && !this.link.dark) this.target.end()
  }

  private act(action: Action, bytes: Buffer): void {
    switch (action._tag) {
      case "Pass":
        return this.write(bytes)
      case "Drop":
        return
      case "Duplicate":
        return this.write(Buffer.concat([bytes, bytes]))
      case "Hold":
        return this.pause(action.until, () => this.write(bytes))
      case "Split":
        return this.pieces(bytes, action.bytes)
      case "Cut":
        if (!action.delivered) return this.link.cut(action.how)
        // What was passed on is read before the end of the connection; a reset could throw it away.
        this.held = true
        this.target.write(bytes, () => {
          this.target.end()
          closeBy(this.source, action.how)
        })
        return
      case "Abandon":
        this.write(bytes)
        this.link.blackHole()
        return closeBy(this.source, "end")
      case "BlackHole":
        if (action.delivered) this.write(bytes)
        return this.link.blackHole()
    }
  }

  private pieces(bytes: Buffer, size: number): void {
    this.held = true
    const step = (from: number) => {
      if (!this.link.dark) this.write(bytes.subarray(from, from + size))
      if (from + size < bytes.length && !this.link.dark) {
        setImmediate(step, from + size)
      } else {
        this.held = false
        this.pump()
      }
    }
    step(0)
  }

  private pause(until: Effect.Effect<unknown>, then: () => void): void {
    this.held = true
    this.link.options.run(until, () => {
      this.held = false
      if (!this.link.dark) then()
      this.pump()
    })
  }

  private write(bytes: Buffer): void {
    if (this.target.writable && !this.target.write(bytes)) this.source.pause()
  }
}

/** Reads the framing of one connection, and keeps what names refer to. */
class Framing {
  private started = false
  private opaque = false
  private awaitsEncryption = false
  private readonly statements = new Map<string, string>()
  private readonly portals = new Map<string, string>()

  constructor(private readonly connection: number) {}

  ofClient(buffer: Buffer): Frame | undefined {
    if (this.opaque) return rest(buffer)
    if (this.started) return this.frame(buffer, "client")
    if (buffer.length < 8) return undefined
    const length = buffer.readInt32BE(0)
    if (buffer.length < length) return undefined
    const name = firstMessages[buffer.readInt32BE(4)] ?? "StartupMessage"
    if (name === "SSLRequest" || name === "GSSENCRequest") this.awaitsEncryption = true
    if (name === "StartupMessage") this.started = true
    return { length, message: { connection: this.connection, from: "client", name, text: "" } }
  }

  ofServer(buffer: Buffer): Frame | undefined {
    if (buffer.length === 0) return undefined
    if (this.opaque) return rest(buffer)
    if (!this.awaitsEncryption) return this.frame(buffer, "server")
    this.awaitsEncryption = false
    const text = buffer.toString("latin1", 0, 1)
    this.opaque = text !== "N"
    return { length: 1, message: { connection: this.connection, from: "server", name: "Encryption", text } }
  }

  private frame(buffer: Buffer, from: Message["from"]): Frame | undefined {
    if (buffer.length < 5) return undefined
    const length = buffer.readInt32BE(1) + 1
    if (buffer.length < length) return undefined
    const type = buffer.toString("latin1", 0, 1)
    const name = (from === "client" ? clientMessages : serverMessages)[type] ?? type
    const text = this.textOf(name, buffer.subarray(5, length))
    return { length, message: { connection: this.connection, from, name, text } }
  }

  private textOf(name: string, body: Buffer): string {
    switch (name) {
      case "Query":
      case "CommandComplete":
      case "ParameterStatus":
        return cString(body, 0).text
      case "Parse": {
        const statement = cString(body, 0)
        const { text } = cString(body, statement.end)
        this.statements.set(statement.text, text)
        return text
      }
      case "Bind": {
        const portal = cString(body, 0)
        const text = this.statements.get(cString(body, portal.end).text) ?? ""
        this.portals.set(portal.text, text)
        return text
      }
      case "Execute":
        return this.portals.get(cString(body, 0).text) ?? ""
      case "Describe":
      case "Close": {
        const names = body[0] === 0x53 ? this.statements : this.portals
        return names.get(cString(body, 1).text) ?? ""
      }
      case "ErrorResponse":
        return sqlState(body)
      case "ReadyForQuery":
        return body.toString("latin1", 0, 1)
      default:
        return ""
    }
  }
}

const rest = (buffer: Buffer): Frame | undefined =>
  buffer.length === 0 ? undefined : { length: buffer.length, message: undefined }

const cString = (body: Buffer, from: number): { readonly text: string; readonly end: number } => {
  const nul = body.indexOf(0, from)
  const end = nul < 0 ? body.length : nul
  return { text: body.toString("utf8", from, end), end: end + 1 }
}

const sqlState = (body: Buffer): string => {
  for (let at = 0; at < body.length && body[at] !== 0;) {
    const field = cString(body, at + 1)
    if (body[at] === 0x43) return field.text
    at = field.end
  }
  return ""
}

const firstMessages: Record<number, string> = {
  80_877_102: "CancelRequest",
  80_877_103: "SSLRequest",
  80_877_104: "GSSENCRequest"
}

const clientMessages: Record<string, string> = {
  B: "Bind",
  C: "Close",
  D: "Describe",
  E: "Execute",
  F: "FunctionCall",
  H: "Flush",
  P: "Parse",
  Q: "Query",
  S: "Sync",
  X: "Terminate",
  c: "CopyDone",
  d: "CopyData",
  f: "CopyFail",
  p: "PasswordMessage"
}

const serverMessages: Record<string, string> = {
  "1": "ParseComplete",
  "2": "BindComplete",
  "3": "CloseComplete",
  A: "NotificationResponse",
  C: "CommandComplete",
  D: "DataRow",
  E: "ErrorResponse",
  G: "CopyInResponse",
  H: "CopyOutResponse",
  I: "EmptyQueryResponse",
  K: "BackendKeyData",
  N: "NoticeResponse",
  R: "Authentication",
  S: "ParameterStatus",
  T: "RowDescription",
  V: "FunctionCallResponse",
  Z: "ReadyForQuery",
  c: "CopyDone",
  d: "CopyData",
  n: "NoData",
  s: "PortalSuspended",
  t: "ParameterDescription",
  v: "NegotiateProtocolVersion"
}
