/**
 * Failures that an application expects: an address that is taken, a class that is not there. They
 * are part of what an operation can answer, not faults of the database, and a transaction that one
 * of them ends is logged at WARNING.
 */
import * as Data from "effect/Data"
import * as Expected from "../errors/expected.js"

/**
 * `Data.TaggedError` for domain errors, for this library's and for an application's own. Their
 * fields are logged: keep addresses, codes and texts out of them.
 */
export const TaggedError: typeof Data.TaggedError = (tag) => {
  class DomainError extends Data.TaggedError(tag) {
    readonly [Expected.TypeId] = Expected.TypeId
  }
  return DomainError as never
}

/** Whether an error belongs to the domain. */
export const isDomainError = Expected.isMarked

/** There is a row with this id already. */
export class IdTaken extends TaggedError("IdTaken")<{
  /** Of what, such as `User`. */
  readonly model: string
  /** Which; of rows that are inserted in bulk it is not known. */
  readonly id: string | undefined
}> {
  override get message() {
    return `there is a ${this.model} with ${this.id === undefined ? "one of the ids" : `the id ${this.id}`} already`
  }
}
