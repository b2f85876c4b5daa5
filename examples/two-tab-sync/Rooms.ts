/**
 * Who is connected to which text, to this process and to the others, and what they are told.
 *
 * A process that dies cannot say that its tabs are gone. So each says again and again who is there,
 * and who was not heard of for a while is not there.
 */
import type * as SqlError from "@effect/sql/SqlError"
import * as Chunk from "effect/Chunk"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Mailbox from "effect/Mailbox"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { ConversationId } from "../../src/model/Conversation.js"
import { type Announcement, Announcements, type Heard, peoplePerAnnouncement } from "./Announcements.js"
import type { FromServer, Person } from "./Protocol.js"

// -----------------------------------------------------------------------------
// model
// -----------------------------------------------------------------------------

/** Puts a message into the line of those that a tab is sent; it never waits. */
export type Send = (message: FromServer) => void

/** Who is connected to which text. */
export class Rooms extends Context.Tag("two-tab-sync/Rooms")<
  Rooms,
  {
    /** Until the scope closes the tab is there for the others, and hears of every change. */
    readonly join: (
      conversation: ConversationId,
      person: Person,
      send: Send
    ) => Effect.Effect<Membership, never, Scope.Scope>
  }
>() {}

/** A tab in a room. */
export interface Membership {
  /** Passes a committed change on to the other tabs of this process. */
  readonly changed: (update: Uint8Array) => Effect.Effect<void>
  /** The person is called that now. */
  readonly rename: (name: string) => Effect.Effect<void>
}

// -----------------------------------------------------------------------------
// layers
// -----------------------------------------------------------------------------

const make = Effect.gen(function* () {
  const announcements = yield* Announcements
  const rooms = new Map<ConversationId, Room>()

  const announce = (said: Iterable<Announcement>) =>
    announcements
      .announce(said)
      .pipe(
        Effect.catchAll((error: SqlError.SqlError) =>
          Effect.logWarning("Could not tell the other processes who is connected", error)
        )
      )

  const join = Effect.fn("Rooms.join")(function* (conversation: ConversationId, person: Person, send: Send) {
    const member: Member = { person, send }
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const room = rooms.get(conversation) ?? { members: new Set(), elsewhere: new Map() }
        rooms.set(conversation, room)
        room.members.add(member)
        tellPeople(room)
      }),
      () =>
        Effect.suspend(() => {
          const room = rooms.get(conversation)
          room?.members.delete(member)
          if (room?.members.size === 0) rooms.delete(conversation)
          else if (room !== undefined) tellPeople(room)
          return announce([{ _tag: "Gone", conversation, tab: person.tab }])
        })
    )
    yield* announce([present([[conversation, member]]), { _tag: "WhoIsThere", conversation }])
    return {
      changed: (update) =>
        Effect.sync(() => {
          for (const other of rooms.get(conversation)?.members ?? []) {
            if (other !== member) other.send({ _tag: "Update", update })
          }
        }),
      rename: (name) =>
        Effect.suspend(() => {
          member.person = { ...person, name }
          const room = rooms.get(conversation)
          if (room !== undefined) tellPeople(room)
          return announce([present([[conversation, member]])])
        })
    } satisfies Membership
  })

  /**
   * What is said about who is there, one after the other: it waits for a connection, and changes of
   * texts must not wait for it.
   */
  const answers = yield* Mailbox.make<Iterable<Announcement>>({
    capacity: maxAnswers,
    strategy: "sliding"
  })

  const hear = Effect.fnUntraced(function* (heard: Heard) {
    if (heard._tag === "Missed") {
      for (const room of rooms.values()) tell(room, { _tag: "Behind" })
      answers.unsafeOffer(Array.from(rooms.keys(), (conversation) => ({ _tag: "WhoIsThere", conversation })))
      return
    }
    const { announcement, from } = heard
    switch (announcement._tag) {
      case "Edited": {
        const room = rooms.get(announcement.conversation)
        if (room === undefined) return
        tell(
          room,
          Option.match(announcement.update, {
            onNone: () => ({ _tag: "Behind" }) as const,
            onSome: (update) => ({ _tag: "Update", update }) as const
          })
        )
        return
      }
      case "Present": {
        const now = yield* Clock.currentTimeMillis
        for (const { conversation, ...person } of announcement.people) {
          const room = rooms.get(conversation)
          if (room === undefined) continue
          const known = room.elsewhere.get(from + person.tab)
          room.elsewhere.set(from + person.tab, { person, heardAt: now })
          if (known?.person.name !== person.name) tellPeople(room)
        }
        return
      }
      case "Gone": {
        const room = rooms.get(announcement.conversation)
        if (room?.elsewhere.delete(from + announcement.tab)) tellPeople(room)
        return
      }
      case "WhoIsThere": {
        const room = rooms.get(announcement.conversation)
        if (room !== undefined) answers.unsafeOffer(presentIn([[announcement.conversation, room]]))
      }
    }
  })

  const beat = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    for (const room of rooms.values()) {
      const silent = Array.from(room.elsewhere).filter(
        ([, { heardAt }]) => now - heardAt > Duration.toMillis(goneAfter)
      )
      for (const [key] of silent) room.elsewhere.delete(key)
      if (silent.length > 0) tellPeople(room)
    }
    yield* announce(presentIn(rooms))
  })

  yield* Effect.forkScoped(Stream.runForEach(announcements.heard, hear))
  yield* Effect.forkScoped(Effect.forever(Effect.flatMap(answers.take, announce)))
  yield* Effect.forkScoped(Effect.repeat(beat, Schedule.spaced(heartbeat)))
  return Rooms.of({ join })
})

/** The rooms of this process, in touch with those of the others. */
export const layer = Layer.scoped(Rooms, make)

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** How often a process says who is connected to it. */
const heartbeat = Duration.seconds(2)

/** How many answers may wait. What is left out then is said with the next heartbeat. */
const maxAnswers = 64

/** After this silence a tab of another process is not there. */
const goneAfter = Duration.times(heartbeat, 3)

interface Member {
  person: Person
  readonly send: Send
}

interface Room {
  /** The tabs of this process. */
  readonly members: Set<Member>
  /**
   * The tabs of the others, by process and tab: while a tab moves from one to the other, both may
   * name it.
   */
  readonly elsewhere: Map<string, { readonly person: Person; readonly heardAt: number }>
}

const tell = (room: Room, message: FromServer): void => {
  for (const { send } of room.members) send(message)
}

const tellPeople = (room: Room): void => {
  const byTab = new Map<string, Person>()
  for (const { person } of room.elsewhere.values()) byTab.set(person.tab, person)
  for (const { person } of room.members) byTab.set(person.tab, person)
  const people = Array.from(byTab.values()).toSorted((one, two) => (one.tab < two.tab ? -1 : 1))
  tell(room, { _tag: "People", people })
}

const present = (tabs: Iterable<readonly [ConversationId, Member]>): Announcement => ({
  _tag: "Present",
  people: Array.from(tabs, ([conversation, { person }]) => ({ conversation, ...person }))
})

const presentIn = (rooms: Iterable<readonly [ConversationId, Room]>): Iterable<Announcement> => {
  const tabs = Array.from(rooms).flatMap(([conversation, { members }]) =>
    Array.from(members, (member) => [conversation, member] as const)
  )
  return Chunk.map(Chunk.chunksOf(Chunk.unsafeFromArray(tabs), peoplePerAnnouncement), present)
}
