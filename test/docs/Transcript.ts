import * as Effect from "effect/Effect"
import type { Ended } from "../support/command.js"
import { adminSession } from "../support/server.js"

/** How many conversations the database of the transcript has. */
const conversations = 100_000

/**
 * The tables of PromptGrimoire before the CASCADE fix, and rows in them, so that there is something
 * to validate.
 */
const prepare = `
  CREATE TABLE "user" (id int PRIMARY KEY, email text NOT NULL);
  CREATE TABLE class (
    id int PRIMARY KEY,
    owner_id int NOT NULL CONSTRAINT class_owner_id_fkey REFERENCES "user"
  );
  CREATE TABLE conversation (
    id int PRIMARY KEY,
    class_id int NOT NULL CONSTRAINT conversation_class_id_fkey REFERENCES class,
    owner_id int NOT NULL CONSTRAINT conversation_owner_id_fkey REFERENCES "user",
    raw_text text NOT NULL
  );
  INSERT INTO "user" SELECT n, 'user' || n || '@example.org' FROM generate_series(1, 1000) AS n;
  INSERT INTO class SELECT n, n FROM generate_series(1, 100) AS n;
  INSERT INTO conversation SELECT n, 1 + n % 100, 1 + n % 1000, 'text' FROM generate_series(1, ${conversations}) AS n;
  CREATE INDEX ix_class_owner_id ON class (owner_id);
  CREATE INDEX ix_conversation_class_id ON conversation (class_id);
  CREATE INDEX ix_conversation_owner_id ON conversation (owner_id);
  ANALYZE;
`

/** What is typed, in this order; `without` is the beginning of lines that `grep -v` leaves out. */
const commands: ReadonlyArray<{ readonly args: ReadonlyArray<string>; readonly without?: string }> = [
  { args: ["fk", "list"] },
  {
    args: ["fk", "plan", "--on-delete", "cascade", "--constraint", "class.class_owner_id_fkey"],
    without: "     "
  },
  { args: ["fk", "rebuild", "--on-delete", "cascade", "--references", "user"] },
  { args: ["fk", "list"] },
  { args: ["fk", "undo", "--table", "class"] },
  { args: ["fk", "history"] }
]

/**
 * What a person sees who changes the foreign keys of a database: one text for each command, both of
 * its outputs as on a terminal.
 */
export const record = Effect.fnUntraced(function* (
  database: string,
  run: (args: ReadonlyArray<string>) => Effect.Effect<Ended>
) {
  const admin = yield* adminSession(database)
  yield* admin.query(prepare)
  return yield* Effect.forEach(commands, ({ args, without }) =>
    Effect.map(run(args), ({ code, stderr, stdout }) => {
      const pipe = without === undefined ? "" : ` | grep -v '^${without}'`
      const lines = `${stderr}${stdout}`.trimEnd().split("\n")
      const printed = without === undefined ? lines : lines.filter((line) => !line.startsWith(without))
      const end = code === 0 ? [] : [`(exit code ${code})`]
      return [`$ promptgrimoire-db ${args.join(" ")}${pipe}`, ...printed, ...end].join("\n")
    })
  )
})

/**
 * A text without what differs from run to run: durations, points in time, and whether a lock was to
 * be had at once.
 */
export const comparable = (text: string): string =>
  text
    .replaceAll(/\d+(\.\d+)? (ms|s)\b/g, "N ms")
    .replaceAll(/("\w+Ms": ?)\d+(\.\d+)?/g, "$10")
    .replaceAll(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, "TIME")
    .replaceAll(/^.* waits for locks .*\n( {2}held by .*\n)*/gm, "")
    .replaceAll(/^! .* in the way right now: .*\n/gm, "")
    .replaceAll(/ +$/gm, "")
    .trim()
