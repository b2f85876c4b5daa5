/**
 * The names of the constraints that exist during a change only. They follow from the original's
 * name alone (a constraint's name is unique on its table), so a rerun finds them after a crash,
 * also when the table was renamed meanwhile.
 */
import { createHash } from "node:crypto"

const digest = (name: string) => createHash("sha256").update(name, "utf8").digest("hex").slice(0, 24)

/** The constraint with the new action, before it takes the original's name. 46 bytes. */
export const temporary = (name: string): string => `promptgrimoire_fk_new_${digest(name)}`

/** The original, after the new constraint took its name and before it is dropped. 46 bytes. */
export const aside = (name: string): string => `promptgrimoire_fk_old_${digest(name)}`

/** Whether a name could be one of ours. */
export const isOurs = (name: string): boolean => /^promptgrimoire_fk_(new|old)_[0-9a-f]{24}$/.test(name)
