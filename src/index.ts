/**
 * The PostgreSQL data layer for Effect programs, and online changes of foreign keys. One namespace
 * per module.
 *
 * Of what the repositories are written with only that is public which their callers need: options,
 * pages, errors. The functions that are marked as internal, and the modules that are not here, may
 * change with any version.
 */
export * as Copy from "./Copy.js"
export * as Database from "./Database.js"
export * as DatabaseConfig from "./DatabaseConfig.js"
export * as DatabaseError from "./DatabaseError.js"
export * as EmbeddedPostgres from "./EmbeddedPostgres.js"
export * as ForeignKey from "./ForeignKey.js"
export * as Migrator from "./Migrator.js"
export * as Notification from "./Notification.js"
export * as Purge from "./Purge.js"
export * as Transaction from "./Transaction.js"
export * as Bulk from "./model/Bulk.js"
export * as Class from "./model/Class.js"
export * as Conversation from "./model/Conversation.js"
export * as DomainError from "./model/DomainError.js"
export * as Input from "./model/Input.js"
export * as Page from "./model/Page.js"
export * as User from "./model/User.js"
