/** Taking away what a change has added, where it cannot be finished. */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Session } from "../../connection/session.js"
import * as Catalog from "../../catalog/foreignKeys.js"
import * as Steps from "../steps/steps.js"
import type * as Snapshot from "../snapshot/snapshot.js"
import * as Marker from "../snapshot/marker.js"
import * as Names from "../snapshot/names.js"

/** Runs one step. */
type Run<E> = (step: Steps.Step) => Effect.Effect<void, E>

/** Drops the temporary key wherever it is: the original is as it was before. */
export const temporaries = <E>(
  session: Session,
  run: Run<E>,
  change: Steps.Change
): Effect.Effect<void, E | DatabaseError> =>
  Effect.gen(function* () {
    const { key } = change
    for (const { name, referencing } of yield* everywhere(session, change)) {
      if (name === Names.temporary(key.name)) yield* run(Steps.dropTemporary(change, referencing))
    }
  })

/**
 * Drops everything of ours that belongs to a key that is gone. If it only has another name now, it
 * gets back what the change had taken from it. `remembered` is the key as it was before the change,
 * if this run has seen that.
 */
export const gone = <E>(
  session: Session,
  run: Run<E>,
  aim: Pick<Steps.Change, "key" | "target" | "version" | "superuser">,
  remembered: Snapshot.Snapshot | undefined
): Effect.Effect<void, E | DatabaseError> =>
  Effect.gen(function* () {
    const { key: was } = aim
    const keys = yield* everywhere(session, aim)
    const heir = keys.find(
      ({ comment, name, oid, referencing }) =>
        referencing.oid === was.referencing.oid &&
        !Names.isOurs(name) &&
        (oid === was.oid || Marker.decode(comment)?.constraint === was.name)
    )
    const ours = keys.filter(
      ({ name }) => name === Names.temporary(was.name) || name === Names.aside(was.name)
    )
    const records = [heir, ...ours].map((key) => Marker.decode(key?.comment ?? null)?.original)
    const original = records.find((record) => record !== undefined) ?? remembered
    if (original === undefined) return
    for (const key of ours) {
      yield* run(Steps.dropTemporary({ ...aim, key, original }, key.referencing, key.name))
    }
    if (heir !== undefined) yield* run(Steps.restoreRenamed({ ...aim, key: heir, original }))
  })

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

/** The keys of every table at which a change adds something. */
const everywhere = (session: Session, change: Pick<Steps.Change, "key" | "version">) =>
  Catalog.read(session, {
    tables: [...new Set([change.key.referencing, ...Steps.places(change)].map(({ oid }) => oid))]
  })
