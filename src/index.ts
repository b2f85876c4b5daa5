/**
 * The PostgreSQL data layer for Effect programs, and online changes of foreign keys. One namespace
 * per module. What is marked as internal, and modules that are not here, may change with any
 * version.
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
