/**
 * The PostgreSQL data layer for Effect programs, and online changes of foreign keys. One namespace per module.
 */
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
