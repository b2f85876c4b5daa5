import * as Command from "@effect/cli/Command"
import { json, loaded, url } from "./options.js"

/** What `doctor` takes. */
export const doctorOptions = { url, json }

/** `doctor`. */
export const command = Command.make(
  "doctor",
  doctorOptions,
  loaded(() => import("./doctorHandler.js").then(({ doctor }) => doctor))
).pipe(
  Command.withDescription(
    "Says what a program would meet on a database. That is the server's version, a pooler, the limits in effect, the pool, pending migrations, and foreign keys without an index."
  )
)
