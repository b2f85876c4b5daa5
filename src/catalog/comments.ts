/**
 * The comment on a constraint. A database of encoding SQL_ASCII takes any bytes as a comment,
 * valid UTF-8 or not. A change keeps them byte for byte.
 */
import { Buffer } from "node:buffer"
import * as Encoding from "./encoding.js"
import { literal } from "../sql/identifiers.js"

/**
 * A comment; the bytes of one that is not valid UTF-8, in hexadecimal; null where there is none.
 */
export type Comment = string | { readonly bytes: string } | null

/** As far as it is text: what is not valid UTF-8 is replaced by U+FFFD. */
export const text = (comment: Comment): string | null =>
  typeof comment === "object" && comment !== null
    ? Buffer.from(comment.bytes, "hex").toString("utf8")
    : comment

/** The comment of a constraint, as an SQL expression of type jsonb. */
export const read = (constraint: string): string =>
  `(SELECT CASE WHEN NOT ${Encoding.isReadable("c.comment")}
      THEN jsonb_build_object('bytes', encode(convert_to(c.comment, 'SQL_ASCII'), 'hex')) ELSE to_jsonb(c.comment) END
    FROM (SELECT pg_catalog.obj_description(${constraint}, 'pg_constraint') AS comment) c)`

/** As COMMENT takes it. */
export const sql = (comment: Comment): string =>
  comment === null
    ? "NULL"
    : typeof comment === "string"
      ? literal(comment)
      : `E'${comment.bytes.replaceAll(/../g, "\\x$&")}'`

/**
 * As a value of a JSON document, `value` an SQL expression of type jsonb that has what {@link read}
 * gave; its type is text.
 */
export const fromJson = (value: string): string =>
  `coalesce(convert_from(decode(${value} ->> 'bytes', 'hex'), 'SQL_ASCII'), ${value} #>> '{}')`
