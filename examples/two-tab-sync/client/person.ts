import { maxNameLength } from "../limits.js"
import type { Person } from "../Protocol.js"

/**
 * This tab, under the name that was given in this browser before, else under one that is made up.
 */
export const thisTab = (): Person => ({ tab: uuid(), name: storedName() ?? inventedName() })

/** A name as the server takes it, or nothing. */
export const cleanName = (typed: string): string | undefined =>
  typed.trim().slice(0, maxNameLength).trim() || undefined

/** Keeps the name for the next time. */
export const storeName = (name: string): void => localStorage.setItem(key, name)

/**
 * The colour of a name, the same in every tab and after a reload; how bright it is depends on the
 * page's colours.
 */
export const hueOf = ({ name }: Person): number =>
  Array.from(name).reduce((hue, character) => (hue * 31 + (character.codePointAt(0) ?? 0)) % 360, 0)

const key = "two-tab-sync/name"

const storedName = () => cleanName(localStorage.getItem(key) ?? "")

const inventedName = () =>
  `${oneOf(["Amber", "Blue", "Coral", "Green", "Olive", "Rose", "Silver", "Violet"])} ${oneOf(["Badger", "Finch", "Fox", "Hare", "Heron", "Otter", "Owl", "Wren"])}`

const oneOf = (choices: ReadonlyArray<string>) => choices[Math.floor(Math.random() * choices.length)] ?? ""

/**
 * As `crypto.randomUUID`, which browsers have on secure pages only: not on a phone that visits over
 * the local network.
 */
const uuid = (): string => {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`
}
