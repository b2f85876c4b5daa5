/**
 * The parts of `pg` that custom statements are built with, as `pg-cursor` and `pg-query-stream` do;
 * not in `@types/pg`.
 */
declare module "pg/lib/utils.js" {
  export const prepareValue: (value: unknown) => string | Buffer | null
}

declare module "pg/lib/result.js" {
  import type { FieldDef } from "pg"
  export default class Result {
    constructor(rowMode: "array" | undefined, types: unknown)
    readonly fields: ReadonlyArray<FieldDef>
    addFields(fields: ReadonlyArray<unknown>): void
    parseRow(fields: ReadonlyArray<unknown>): object
  }
}
