import { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Migrator from "../src/Migrator.js"

/**
 * The tables of PromptGrimoire as its Alembic revision 59d4ef6caf5d makes them, with the same names of constraints and
 * indexes: users own classes, classes and users own conversations. Ids and times come from the program.
 *
 * Locks nothing that exists: every object is new.
 */
export default Migrator.define({
  up: Effect.gen(function* () {
    const sql = yield* PgClient

    yield* sql`
      CREATE TABLE "user" (
        id uuid NOT NULL,
        email varchar(255) NOT NULL,
        display_name varchar(100) NOT NULL,
        stytch_member_id varchar,
        created_at timestamp with time zone NOT NULL,
        CONSTRAINT user_pkey PRIMARY KEY (id)
      )
    `
    yield* sql`CREATE UNIQUE INDEX ix_user_email ON "user" (email)`
    yield* sql`CREATE UNIQUE INDEX ix_user_stytch_member_id ON "user" (stytch_member_id)`

    yield* sql`
      CREATE TABLE class (
        id uuid NOT NULL,
        name varchar(200) NOT NULL,
        owner_id uuid NOT NULL,
        invite_code varchar(20) NOT NULL,
        created_at timestamp with time zone NOT NULL,
        CONSTRAINT class_pkey PRIMARY KEY (id),
        CONSTRAINT class_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES "user" (id),
        CONSTRAINT class_invite_code_key UNIQUE (invite_code)
      )
    `
    yield* sql`CREATE INDEX ix_class_owner_id ON class (owner_id)`

    yield* sql`
      CREATE TABLE conversation (
        id uuid NOT NULL,
        class_id uuid NOT NULL,
        owner_id uuid NOT NULL,
        raw_text varchar NOT NULL,
        crdt_state bytea,
        created_at timestamp with time zone NOT NULL,
        CONSTRAINT conversation_pkey PRIMARY KEY (id),
        CONSTRAINT conversation_class_id_fkey FOREIGN KEY (class_id) REFERENCES class (id),
        CONSTRAINT conversation_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES "user" (id)
      )
    `
    yield* sql`CREATE INDEX ix_conversation_class_id ON conversation (class_id)`
    yield* sql`CREATE INDEX ix_conversation_owner_id ON conversation (owner_id)`
  }),
  down: Effect.gen(function* () {
    const sql = yield* PgClient
    yield* sql`DROP TABLE conversation, class, "user"`
  })
})
