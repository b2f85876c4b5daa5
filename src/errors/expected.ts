import * as Predicate from "effect/Predicate"

/** Marks an error that is one of a program's answers, and no fault of the database. */
export const TypeId: unique symbol = Symbol.for("promptgrimoire-db/Expected")

/** Whether an error is marked so: a transaction that it ends is logged at WARNING. */
export const isMarked = (error: unknown): boolean => Predicate.hasProperty(error, TypeId)
