import { assert, describe, it } from "./support/it.js"
import * as Effect from "effect/Effect"
import * as ForeignKey from "../src/ForeignKey.js"
import { application, comparable, database, definitions, snapshots } from "./foreignKey/support.js"

const schema = `
  CREATE TABLE "user" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email text);
  CREATE TABLE class (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id uuid NOT NULL CONSTRAINT class_owner_id_fkey REFERENCES "user"
  );
  CREATE INDEX ix_class_owner_id ON class (owner_id);
  CREATE TABLE conversation (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    class_id uuid NOT NULL REFERENCES class,
    owner_id uuid NOT NULL REFERENCES "user"
  );
  COMMENT ON CONSTRAINT class_owner_id_fkey ON class IS 'who teaches, isn''t it \\ so';
  INSERT INTO "user" (email) VALUES ('a'), ('b');
  INSERT INTO class (owner_id) SELECT id FROM "user";
  INSERT INTO conversation (class_id, owner_id) SELECT id, owner_id FROM class`

describe("ForeignKey", () => {
  it.scopedLive("lists every key with its columns, actions, index and problems", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(schema)
      const keys = yield* ForeignKey.list()
      assert.deepStrictEqual(
        keys.map(({ index, name, problems }) => ({ name, index, problems })),
        [
          { name: "class_owner_id_fkey", index: "ix_class_owner_id", problems: [] },
          {
            name: "conversation_class_id_fkey",
            index: null,
            problems: ["no index on the referencing columns"]
          },
          {
            name: "conversation_owner_id_fkey",
            index: null,
            problems: ["no index on the referencing columns"]
          }
        ]
      )
      assert.deepStrictEqual(keys[0], {
        schema: "public",
        table: "class",
        name: "class_owner_id_fkey",
        columns: ["owner_id"],
        referencedSchema: "public",
        referencedTable: "user",
        referencedColumns: ["id"],
        onDelete: "no-action",
        onDeleteColumns: [],
        onUpdate: "no-action",
        match: "simple",
        deferrable: false,
        initiallyDeferred: false,
        validated: true,
        enforced: true,
        index: "ix_class_owner_id",
        problems: []
      })
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("changes the action of the chosen keys only, and says so", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(schema)
      const result = yield* ForeignKey.rebuild({
        selectors: { references: [{ table: "user" }] },
        onDelete: "cascade"
      })
      assert.deepStrictEqual(
        result.rebuilt.map(({ constraint, previous }) => ({ constraint, previous })),
        [
          { constraint: "public.class.class_owner_id_fkey", previous: { action: "no-action", columns: [] } },
          {
            constraint: "public.conversation.conversation_owner_id_fkey",
            previous: { action: "no-action", columns: [] }
          }
        ]
      )
      assert.deepStrictEqual([result.unchanged, result.refused, result.failed], [[], [], []])
      const actions = (yield* ForeignKey.list()).map(({ name, onDelete }) => [name, onDelete])
      assert.deepStrictEqual(actions, [
        ["conversation_class_id_fkey", "no-action"],
        ["class_owner_id_fkey", "cascade"],
        ["conversation_owner_id_fkey", "cascade"]
      ])
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("deletes what belongs to a deleted row once its keys cascade", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(schema)
      yield* ForeignKey.rebuild({ selectors: {}, onDelete: "cascade" })
      yield* session.query(`DELETE FROM "user" WHERE email = 'a'`)
      assert.deepStrictEqual(
        yield* session.query(
          "SELECT (SELECT count(*)::int FROM class) AS class, (SELECT count(*)::int FROM conversation) AS conversation"
        ),
        [{ class: 1, conversation: 1 }]
      )
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("leaves everything as it was when the action is changed there and back", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(schema)
      const before = yield* snapshots(session)
      const written = yield* definitions(session)
      for (const onDelete of ["cascade", "no-action"] as const) {
        const result = yield* ForeignKey.rebuild({ selectors: {}, onDelete })
        assert.deepStrictEqual([result.refused, result.failed], [[], []])
        assert.strictEqual(result.rebuilt.length, 3)
      }
      assert.deepStrictEqual(comparable(yield* snapshots(session)), comparable(before))
      assert.deepStrictEqual(yield* definitions(session), written)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("does nothing to a key that has the action already", () =>
    Effect.gen(function* () {
      const session = yield* application
      yield* session.query(schema)
      const before = yield* snapshots(session)
      const result = yield* ForeignKey.rebuild({ selectors: {}, onDelete: "no-action" })
      assert.deepStrictEqual(result, {
        rebuilt: [],
        unchanged: [
          "public.class.class_owner_id_fkey",
          "public.conversation.conversation_class_id_fkey",
          "public.conversation.conversation_owner_id_fkey"
        ],
        refused: [],
        failed: [],
        warnings: []
      })
      assert.deepStrictEqual(yield* snapshots(session), before)
    }).pipe(Effect.provide(database))
  )

  it.scopedLive("fails when the selectors name no key", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        ForeignKey.rebuild({ selectors: { tables: [{ table: "nothing" }] }, onDelete: "cascade" })
      )
      assert.strictEqual(error._tag, "NoMatch")
    }).pipe(Effect.provide(database))
  )
})
