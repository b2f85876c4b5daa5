/** The migrations of PromptGrimoire's schema, for programs that bundle them; the command reads the files. */
import * as Migrator from "../src/Migrator.js"
import createUserClassConversation from "./0001_create_user_class_conversation.js"
import cascadeForeignKeys from "./0002_cascade_foreign_keys.js"

/** Loads the migrations of this folder; the version is a digest of their files, which a test compares. */
export const loader = Migrator.fromRecord(
  {
    "0001_create_user_class_conversation": createUserClassConversation,
    "0002_cascade_foreign_keys": cascadeForeignKeys
  },
  { version: "ca6e1465a33af170" }
)
