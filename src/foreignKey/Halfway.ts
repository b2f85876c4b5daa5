/** Which keys are the originals, and which exist only while a change of one goes on. */
import type { Key } from "./Catalog.js"
import * as Marker from "./Marker.js"
import * as Name from "./Name.js"

/** Constraints that exist during a change only are not listed and cannot be chosen, unless their original is gone. */
export const isOriginal = (key: Key, keys: ReadonlyArray<Key>): boolean =>
  !Name.isOurs(key.name) || originalOf(key, keys) === undefined

/** The key that a constraint of ours belongs to. */
export const originalOf = (ours: Key, keys: ReadonlyArray<Key>): Key | undefined =>
  keys.find(
    (key) =>
      (key.referencing.oid === ours.referencing.oid ||
        key.referencing.partitions.some(({ oid }) => oid === ours.referencing.oid)) &&
      (Name.temporary(key.name) === ours.name || Name.aside(key.name) === ours.name)
  )

/** Whether a change of this key was begun and not finished. */
export const isHalfway = (key: Key, keys: ReadonlyArray<Key>): boolean =>
  keys.some((other) => Name.isOurs(other.name) && originalOf(other, keys)?.oid === key.oid) ||
  Marker.decode(key.comment) !== undefined
