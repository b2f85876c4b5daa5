/**
 * What the repositories do with the rows of their tables alike: each statement is written here
 * once.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as Lookup from "./lookup.js"

/**
 * The rows of the table of that name: the columns that make one, under the names of its fields, and
 * what is made of them.
 */
export const make = <Row extends { readonly id: Id }, Id extends string, A>(
  sql: SqlClient.SqlClient,
  name: string,
  columnsOfRow: string,
  toModel: (row: Row) => A
) => {
  const table = sql(name)
  const columns = sql.literal(columnsOfRow)

  /** The first row of a statement's, if there is one. */
  const one = Effect.map((rows: ReadonlyArray<Row>) => Option.map(Option.fromNullable(rows[0]), toModel))

  const byId = (id: Id) => one(sql<Row>`SELECT ${columns} FROM ${table} WHERE id = ${id}`)

  const byIds = (ids: ReadonlyArray<Id>) =>
    Effect.map(
      sql<Row>`SELECT ${columns} FROM ${table} WHERE id = ANY(${ids}::uuid[])`,
      (rows): ReadonlyMap<Id, A> => new Map(rows.map((row) => [row.id, toModel(row)]))
    )

  /** Makes changes of columns, if there are any, and gives the row as it is then. */
  const change = (id: Id, changes: ReadonlyArray<Statement.Fragment>) =>
    changes.length === 0
      ? byId(id)
      : one(sql<Row>`UPDATE ${table} SET ${sql.csv(changes)} WHERE id = ${id} RETURNING ${columns}`)

  /** Deletes a row, and says whether it was there. */
  const remove = (id: Id) =>
    Effect.map(sql`DELETE FROM ${table} WHERE id = ${id} RETURNING id`, (deleted) => deleted.length > 0)

  /** The rows that follow from these clauses: a condition, and an order. */
  const stream = (clauses: Statement.Fragment) =>
    Stream.map(sql<Row>`SELECT ${columns} FROM ${table} ${clauses}`.stream, toModel)

  /** How many rows there are, under a condition or at all. */
  const count = (where: Statement.Fragment = sql.literal("")) =>
    Effect.map(
      sql<{ readonly count: number }>`SELECT count(*)::float8 AS count FROM ${table} ${where}`,
      ([row]) => row?.count ?? 0
    )

  return { columns, one, byId, byIds, load: Lookup.make(byIds), change, remove, stream, count }
}
