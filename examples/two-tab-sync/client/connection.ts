import * as Y from "yjs"
import { heartbeatMillis } from "../limits.js"
import type { FromServer, FromTab, Person } from "../Protocol.js"
import { fromBase64, toBase64 } from "./bytes.js"
import { timer } from "./timer.js"

/** How it stands with what was typed here. */
export type Status =
  | { readonly state: "connecting" | "saved" | "saving" }
  /** There is no server; `unsaved` says whether something waits for it. */
  | { readonly state: "offline"; readonly unsaved: boolean }
  /** The server does not take it, and says why. */
  | { readonly state: "refused"; readonly message: string }

export interface Options {
  readonly doc: Y.Doc
  readonly url: string
  readonly person: Person
  /** What an earlier page could not get saved. */
  readonly unsaved: Uint8Array | undefined
  /** Runs what changes the document from elsewhere. */
  readonly whenIdle: (change: () => void) => void
  readonly onStatus: (status: Status) => void
  readonly onPeople: (people: ReadonlyArray<Person>) => void
}

export interface Connection {
  /** Tells the others another name. */
  readonly rename: (name: string) => void
  /** Connects now, if it is waiting to. */
  readonly hurry: () => void
  /** What no server has said to be committed. */
  readonly unsaved: () => Uint8Array | undefined
  /** Sends, before the page goes, what would wait for the answer to what is on its way. */
  readonly leave: () => void
}

/**
 * Keeps a document in step with the server's, over one WebSocket after the other.
 *
 * What is typed is kept until a server says that it is committed. One update is on its way at a
 * time, and what is typed in the meantime goes with the next. After a connection was lost, the two
 * compare what they have, and each gets what it lacks.
 */
export const connect = (options: Options): Connection => {
  const { doc, onPeople, onStatus, whenIdle } = options
  let { person } = options
  let socket: WebSocket | undefined
  /** Whether this connection's `State` has come: before it nothing is sent, after it everything. */
  let inStep = false
  let everInStep = false
  let failures = 0
  let lastId = 0
  let unsent = options.unsaved
  let sent: { readonly id: number; readonly update: Uint8Array } | undefined
  let refusal: string | undefined

  const unsaved = () => merged(sent?.update, unsent)

  const report = () => {
    if (refusal !== undefined) onStatus({ state: "refused", message: refusal })
    else if (!inStep)
      onStatus(
        everInStep || failures > 0
          ? { state: "offline", unsaved: unsaved() !== undefined }
          : { state: "connecting" }
      )
    else onStatus({ state: unsaved() === undefined ? "saved" : "saving" })
  }

  const say = (message: typeof FromTab.Encoded) => socket?.send(JSON.stringify(message))
  const sync = () => say({ _tag: "Sync", stateVector: toBase64(Y.encodeStateVector(doc)) })

  const flush = () => {
    if (inStep && sent === undefined && unsent !== undefined && refusal === undefined) {
      sent = { id: ++lastId, update: unsent }
      unsent = undefined
      say({ _tag: "Update", id: sent.id, update: toBase64(sent.update) })
    }
    report()
  }

  const notSent = () => {
    unsent = unsaved()
    sent = undefined
  }

  const hear = (message: typeof FromServer.Encoded) => {
    switch (message._tag) {
      case "State":
        whenIdle(() => Y.applyUpdate(doc, fromBase64(message.update), fromServer))
        if (!inStep) {
          inStep = true
          everInStep = true
          refusal = undefined
          const theirs = fromBase64(message.stateVector)
          if (unsent !== undefined || isAhead(doc, theirs)) unsent = Y.encodeStateAsUpdate(doc, theirs)
          else failures = 0
        }
        return flush()
      case "Update":
        return whenIdle(() => Y.applyUpdate(doc, fromBase64(message.update), fromServer))
      case "Saved":
        if (sent?.id === message.id) sent = undefined
        failures = 0
        return flush()
      case "Refused":
        notSent()
        if (message.reason === "Unavailable") return lost()
        refusal = message.message
        return report()
      case "People":
        return onPeople(message.people)
      case "Behind":
        return sync()
      case "Alive":
        return say({ _tag: "Alive" })
    }
  }

  const open = () => {
    const opened = new WebSocket(options.url)
    socket = opened
    silence.restart(4 * heartbeatMillis)
    opened.addEventListener("open", () => {
      if (socket !== opened) return
      say({ _tag: "Hello", person })
      sync()
    })
    opened.addEventListener("message", (event) => {
      if (socket !== opened) return
      silence.restart(4 * heartbeatMillis)
      hear(JSON.parse(event.data))
    })
    opened.addEventListener("close", () => {
      if (socket === opened) lost()
    })
  }

  /**
   * Gives this connection up, and tries the next one: soon at first, then every few seconds, never
   * all tabs at once.
   */
  const lost = () => {
    const closing = socket
    socket = undefined
    closing?.close()
    inStep = false
    notSent()
    silence.stop()
    retry.restart(Math.min(5000, 100 * 2 ** failures) * (0.5 + Math.random() / 2))
    failures++
    report()
  }

  const silence = timer(lost)
  const retry = timer(open)

  doc.on("update", (update: Uint8Array, origin: unknown) => {
    if (origin !== fromServer) unsent = merged(unsent, update)
    // What was too long may be shorter now, or somebody else has made room.
    if (inStep) refusal = undefined
    flush()
  })

  if (unsent !== undefined) Y.applyUpdate(doc, unsent, fromServer)
  report()
  open()

  return {
    rename: (name) => {
      person = { ...person, name }
      if (socket?.readyState === WebSocket.OPEN) say({ _tag: "Hello", person })
    },
    hurry: () => {
      if (socket !== undefined) return
      retry.stop()
      open()
    },
    unsaved,
    leave: () => {
      if (!inStep || unsent === undefined || refusal !== undefined) return
      say({ _tag: "Update", id: ++lastId, update: toBase64(unsent) })
    }
  }
}

/** The origin of changes that need not be sent. */
const fromServer = Symbol("server")

const merged = (...updates: ReadonlyArray<Uint8Array | undefined>): Uint8Array | undefined => {
  const some = updates.filter((update) => update !== undefined)
  return some.length > 1 ? Y.mergeUpdates(some) : some[0]
}

/**
 * Whether the document has something that one with the state vector `theirs` lacks, deletions
 * aside.
 */
const isAhead = (doc: Y.Doc, theirs: Uint8Array): boolean => {
  const have = Y.decodeStateVector(theirs)
  return Array.from(Y.decodeStateVector(Y.encodeStateVector(doc))).some(
    ([client, clock]) => clock > (have.get(client) ?? 0)
  )
}
