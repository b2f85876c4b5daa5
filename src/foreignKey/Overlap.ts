/**
 * What a delete does while the original and the key that will take its place are both there (PostgreSQL 13 to 18, CREATE TABLE and SET CONSTRAINTS): of two triggers
 * the one that fires first decides, and the check of a deferred NO ACTION key fires when the transaction ends, after everything that a statement does.
 */
import * as Action from "./Action.js"
import type { Key } from "./Catalog.js"
import * as Name from "./Name.js"
import { label } from "./Sql.js"
import type { Target } from "./Target.js"

/** The action that deletes follow in transactions that do not change when the original is checked. `first` is the key whose trigger has the smaller name. */
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

/** What applications will notice of a change of this key besides its locks, in sentences. Only for DEFERRABLE keys. */
export const warnings = (key: Key, target: Target): ReadonlyArray<string> => {
  if (!key.enforced || !key.deferrable) return []
  const parent = label(key.referenced.schema, key.referenced.name)
  const early = `deletes in ${parent} follow ON DELETE ${Action.sql(target.action)} from step add on already, not only from the swap on${
    Action.raises(target.action) ? `, and their errors name ${Name.temporary(key.name)} until then` : ""
  }`
  const isEarly = key.onDelete === "no-action" && target.action !== "no-action"
  return key.initiallyDeferred
    ? [
        ...(isEarly
          ? [
              `it is INITIALLY DEFERRED, so its own check comes when the transaction ends, after the new key: ${early}`
            ]
          : []),
        "a transaction that sets it IMMEDIATE by name (SET CONSTRAINTS) before the swap gets the errors of what it does after the swap when it ends: the setting is the original's"
      ]
    : [
        ...(isEarly ? [`in transactions that defer it (SET CONSTRAINTS), ${early}`] : []),
        "from the swap to step settle its checks come when the transaction ends; a transaction that defers it by name (SET CONSTRAINTS) before the swap and is still open after settle gets its errors at the statement: the setting is the original's"
      ]
}
