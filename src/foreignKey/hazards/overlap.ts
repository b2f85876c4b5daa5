/**
 * What a delete does while the original and the key that will take its place are both there
 * (PostgreSQL 13 to 18, CREATE TABLE and SET CONSTRAINTS): of two triggers the one that fires first
 * decides, and the check of a deferred NO ACTION key fires when the transaction ends, after
 * everything that a statement does.
 */
import * as Action from "../../catalog/action.js"
import type { Key } from "../../catalog/foreignKeys.js"
import * as Names from "../snapshot/names.js"
import { label } from "../../sql/identifiers.js"
import type { Target } from "../snapshot/target.js"

/**
 * The action that deletes follow in transactions that do not change when the original is checked.
 * `first` is the key whose trigger has the smaller name.
 */
export const live = (
  original: Pick<Key, "onDelete" | "deferrable" | "initiallyDeferred">,
  target: Target,
  first: "original" | "new"
): Action.Action => {
  const originalWaits = original.onDelete === "no-action" && original.initiallyDeferred
  // Beside a DEFERRABLE original the new key is INITIALLY DEFERRED.
  const newWaits = target.action === "no-action" && original.deferrable
  const decides = originalWaits === newWaits ? first : originalWaits ? "new" : "original"
  return decides === "new" ? target.action : original.onDelete
}

/** What deletes follow while both keys are there. */
export interface Overlap {
  readonly live: Action.Action
  /** The step with which that ends. */
  readonly until: "swap" | "order"
  /** Where they follow the new action all the same, in sentences. */
  readonly except: ReadonlyArray<string>
}

/**
 * What deletes follow from the moment on at which the new key is there. Its triggers fire after the
 * original's, or not at all.
 */
export const of = ({
  key,
  superuser,
  target
}: {
  readonly key: Key
  readonly target: Target
  readonly superuser: boolean
}): Overlap => ({
  live: superuser ? key.onDelete : live(key, target, "original"),
  until: "swap",
  except: exceptions(key, target, superuser)
})

/**
 * What applications will notice of the mode of a DEFERRABLE key while it is changed, in sentences.
 */
export const warnings = (key: Key): ReadonlyArray<string> =>
  !key.enforced || !key.deferrable
    ? []
    : key.initiallyDeferred
      ? [
          "a transaction that sets it IMMEDIATE by name (SET CONSTRAINTS) before the swap gets the errors of what it does after the swap when it ends: the setting is the original's"
        ]
      : [
          "from the swap to step settle its checks come when the transaction ends; a transaction that defers it by name (SET CONSTRAINTS) before the swap and is still open after settle gets its errors at the statement: the setting is the original's"
        ]

/**
 * Where the new key acts before the swap although the original's triggers fire first: a NO ACTION
 * key lets rows be that it would refuse later, or not at all because the referenced key is there
 * again. A superuser's change has no such exception, because the new key's triggers are disabled.
 */
export const exceptions = (key: Key, target: Target, superuser: boolean): ReadonlyArray<string> => {
  if (superuser || !key.enforced || key.onDelete !== "no-action" || target.action === "no-action") return []
  const parent = label(key.referenced.schema, key.referenced.name)
  const early = `follow ON DELETE ${Action.sql(target.action)} from step add on already, not only from the swap on${
    Action.raises(target.action) ? `, and their errors name ${Names.temporary(key.name)} until then` : ""
  } (a superuser's change has no such exception)`
  return [
    ...(key.initiallyDeferred
      ? [
          `it is INITIALLY DEFERRED, so its own check comes when the transaction ends, after the new key: deletes in ${parent} ${early}`
        ]
      : key.deferrable
        ? [`in transactions that defer it (SET CONSTRAINTS), deletes in ${parent} ${early}`]
        : []),
    `deletes in ${parent} whose statement puts a row with the same key back ${early}`
  ]
}
