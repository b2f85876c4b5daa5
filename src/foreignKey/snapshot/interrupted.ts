/** Which keys are the originals, and which exist only while a change of one goes on. */
import type { Key } from "../../catalog/foreignKeys.js"
import * as Marker from "./marker.js"
import * as Names from "./names.js"

/**
 * The keys that constraints of ours belong to, by the OIDs of those constraints; one whose original
 * is gone is not in it.
 */
export type Originals = ReadonlyMap<number, Key>

/** Finds the originals among all keys, looking each up by its name. */
export const originals = (keys: ReadonlyArray<Key>): Originals => {
  const ours = keys.filter(({ name }) => Names.isOurs(name))
  if (ours.length === 0) return new Map()
  const named = new Map<string, Array<Key>>()
  for (const key of keys) {
    for (const name of [Names.temporary(key.name), Names.aside(key.name)]) {
      const same = named.get(name)
      if (same === undefined) named.set(name, [key])
      else same.push(key)
    }
  }
  return new Map(
    ours.flatMap((one): ReadonlyArray<readonly [number, Key]> => {
      const original = named
        .get(one.name)
        ?.find(
          ({ referencing }) =>
            referencing.oid === one.referencing.oid ||
            referencing.partitions.some(({ oid }) => oid === one.referencing.oid)
        )
      return original === undefined ? [] : [[one.oid, original]]
    })
  )
}

/**
 * Constraints that exist during a change only are not listed and cannot be chosen, unless their
 * original is gone.
 */
export const isOriginal = (key: Key, originals: Originals): boolean => !originals.has(key.oid)

/** Whether a constraint is left over from a change of one that is gone. */
export const isLeftover = (key: Key, originals: Originals): boolean =>
  Names.isOurs(key.name) && !originals.has(key.oid)

/** Whether a change of this key was begun and not finished. */
export const isInterrupted = (key: Key, originals: Originals): boolean =>
  Marker.decode(key.comment) !== undefined || [...originals.values()].some(({ oid }) => oid === key.oid)
