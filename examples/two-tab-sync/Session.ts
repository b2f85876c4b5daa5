/**
 * One tab's WebSocket, from the upgrade to the end.
 *
 * What a tab says is worked off in its order, one message at a time, to the last one that has
 * arrived, even when its tab is gone.
 */
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Socket from "@effect/platform/Socket"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Mailbox from "effect/Mailbox"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Net from "node:net"
import { reasonOf } from "../../src/DatabaseError.js"
import type { ConversationId } from "../../src/model/Conversation.js"
import * as Document from "./Document.js"
import { Documents } from "./Documents.js"
import { heartbeatMillis, maxMessageLength } from "./limits.js"
import { decode, encode, type FromServer, type FromTab, type Refusal } from "./Protocol.js"
import { type Membership, Rooms } from "./Rooms.js"

// -----------------------------------------------------------------------------
// constructors
// -----------------------------------------------------------------------------

/** Upgrades the request, and talks with the tab until one of them hangs up. */
export const run = Effect.fn("Session.run")(function* (conversation: ConversationId) {
  const request = yield* HttpServerRequest.HttpServerRequest
  const { send, inbox } = yield* open(
    yield* request.upgrade,
    NodeHttpServerRequest.toIncomingMessage(request).socket
  )
  const receive = yield* receiver(conversation, send)
  yield* Effect.forkScoped(
    Effect.repeat(
      Effect.sync(() => send({ _tag: "Alive" })),
      Schedule.spaced(heartbeat)
    )
  )
  yield* inbox.take.pipe(Effect.timeout(silence), Effect.flatMap(receive), Effect.forever, Effect.ignore)
  return HttpServerResponse.empty()
}, Effect.scoped)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** How often a tab is asked whether it is there, and after how long a silence it is not. */
const heartbeat = Duration.millis(heartbeatMillis)
const silence = Duration.times(heartbeat, 4)

/** A tab has one update on its way at a time: one with so many messages waiting is none of ours. */
const maxWaiting = 64

/**
 * The bytes that may wait for a tab that does not read. Past them it is cut off; it will come back
 * and catch up.
 */
const maxBacklog = 16 * 1024 * 1024

/** How long a tab may take to answer a closing handshake. */
const closingTime = Duration.seconds(1)

/**
 * What is written goes out in order, what comes in waits in the inbox, and the end of the scope
 * hangs up.
 */
const open = Effect.fnUntraced(function* (socket: Socket.Socket, tcp: Net.Socket) {
  yield* Effect.addFinalizer(() => hangUp(tcp))
  const inbox = yield* Mailbox.make<string>({ capacity: maxWaiting, strategy: "dropping" })
  const outbox = yield* Mailbox.make<string>()
  const write = yield* socket.writer

  const send = (message: FromServer): void => {
    if (tcp.writableLength > maxBacklog) tcp.destroy()
    else outbox.unsafeOffer(encode(message))
  }

  yield* Effect.forkScoped(
    socket
      .runRaw((frame) => {
        if (frame.length > maxMessageLength) {
          // Nothing of that size is kept until its turn comes.
          send({
            _tag: "Refused",
            reason: "MessageTooLong",
            message: `A message may have ${maxMessageLength} characters.`
          })
          return
        }
        // A frame that is not text is no message either, and is refused as one.
        if (!inbox.unsafeOffer(typeof frame === "string" ? frame : "")) tcp.destroy()
      })
      .pipe(Effect.ensuring(inbox.end))
  )
  yield* Effect.addFinalizer(() =>
    write(new Socket.CloseEvent(serviceRestart, "connect again")).pipe(
      Effect.interruptible,
      Effect.timeout(closingTime),
      Effect.ignore
    )
  )
  yield* Effect.forkScoped(Effect.forever(Effect.flatMap(outbox.take, write)))
  return { send, inbox }
})

/** The close code of RFC 6455's registry for a server that goes down and that others replace. */
const serviceRestart = 1012

/** Gives the other side the time for a closing handshake, and no more. */
const hangUp = (tcp: Net.Socket) =>
  Effect.async<void>((resume) => {
    const done = () => resume(Effect.void)
    if (tcp.destroyed) return done()
    tcp.once("close", done)
    return Effect.sync(() => tcp.off("close", done))
  }).pipe(
    Effect.interruptible,
    Effect.timeout(closingTime),
    Effect.ignore,
    Effect.ensuring(Effect.sync(() => tcp.destroy()))
  )

/** Works off one frame. Nothing that a tab can send makes it fail. */
const receiver = Effect.fnUntraced(function* (
  conversation: ConversationId,
  send: (message: FromServer) => void
) {
  const documents = yield* Documents
  const rooms = yield* Rooms
  let membership: Membership | undefined

  const refuse = (reason: Refusal, message: string, id?: number) =>
    Effect.sync(() => send({ _tag: "Refused", reason, message, ...(id === undefined ? {} : { id }) }))

  /**
   * Answers with the reason of a failure, and keeps what only the program's owner should know in
   * the log.
   */
  const orRefuse = <A, E extends Failure, R>(effect: Effect.Effect<A, E, R>, id?: number) =>
    Effect.catchAll(effect, (error: Failure) => {
      switch (error._tag) {
        case "SqlError":
          return Effect.zipRight(
            Effect.logWarning(`The database refused: ${reasonOf(error)?._tag ?? "for an unknown reason"}`),
            refuse(
              "Unavailable",
              "The database does not answer. Nothing is lost; it will be tried again.",
              id
            )
          )
        case "ConversationNotFound":
          return refuse("UnknownConversation", "There is no such text.", id)
        default:
          return refuse(error._tag, error.message, id)
      }
    })

  const answer = (message: FromTab): Effect.Effect<void, never, Scope.Scope> => {
    switch (message._tag) {
      case "Hello":
        return membership === undefined
          ? Effect.map(rooms.join(conversation, message.person, send), (joined) => {
              membership = joined
            })
          : membership.rename(message.person.name)
      case "Sync":
        return documents.read(conversation).pipe(
          Effect.flatMap((state) => Document.missing(state, message.stateVector)),
          Effect.map((state) => send({ _tag: "State", ...state })),
          orRefuse
        )
      case "Update": {
        const { id, update } = message
        if (membership === undefined) return refuse("BadMessage", "Say Hello first.", id)
        return documents.save(conversation, update).pipe(
          Effect.zipRight(membership.changed(update)),
          Effect.map(() => send({ _tag: "Saved", id })),
          (saving) => orRefuse(saving, id),
          Effect.uninterruptible
        )
      }
      default:
        return Effect.void
    }
  }

  return (frame: string) =>
    Effect.matchEffect(decode(frame), {
      // The reason would quote what was sent, which may be somebody's text.
      onFailure: () => refuse("BadMessage", "This is no message of the protocol."),
      onSuccess: answer
    })
})

type Failure = Effect.Effect.Error<ReturnType<Context.Tag.Service<Documents>["save"]>>
