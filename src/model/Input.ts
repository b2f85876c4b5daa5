import * as Effect from "effect/Effect"
import * as ParseResult from "effect/ParseResult"
import * as Record from "effect/Record"
import * as Schema from "effect/Schema"
import * as DomainError from "./DomainError.js"

/**
 * Input that the database must not be given. It says which field and why, and never repeats the
 * value.
 */
export class InvalidInput extends DomainError.TaggedError("InvalidInput")<{
  /** What was to be made of it, such as `User`. */
  readonly model: string
  readonly issues: ReadonlyArray<{
    /**
     * The field, such as `displayName`; with the index of the element in front if there were
     * several.
     */
    readonly path: string
    readonly message: string
  }>
}> {
  override get message() {
    return `${this.model}: ${this.issues.map(({ message, path }) => `${path} ${message}`).join("; ")}`
  }
}

/**
 * A field that can be left out.
 *
 * @internal
 */
export const optional = <A, I>(schema: Schema.Schema<A, I>) => Schema.optionalWith(schema, { exact: true })

/** What a schema of input takes: a field that can be left out can also be `undefined`. */
export type Of<Fields> = {
  readonly [Name in keyof Fields]: Partial<Pick<Fields, Name>> extends Pick<Fields, Name>
    ? Fields[Name] | undefined
    : Fields[Name]
}

/**
 * Reads input by a schema, and reports all that is wrong with it at once.
 *
 * @internal
 */
export const decode = <A, I>(model: string, schema: Schema.Schema<A, I>) => {
  const parse = Schema.decodeUnknown(schema, { errors: "all" })
  return (input: Of<I>, prefix = ""): Effect.Effect<A, InvalidInput> =>
    Effect.mapError(
      parse(Record.filter(input as Record<string, unknown>, (value) => value !== undefined)),
      (error) =>
        new InvalidInput({
          model,
          issues: ParseResult.ArrayFormatter.formatErrorSync(error).map(({ message, path }) => ({
            path: prefix + path.map(String).join("."),
            message: message.replace(/, actual [^]*$/, "")
          }))
        })
    )
}
