/**
 * The data model of PromptGrimoire: users, classes and conversations, one repository each, with the
 * errors, pages and options that their callers need. An application of its own has one like it.
 */
export * as Bulk from "./Bulk.js"
export * as Class from "./Class.js"
export * as Conversation from "./Conversation.js"
export * as DomainError from "./DomainError.js"
export * as Input from "./Input.js"
export * as Page from "./Page.js"
export * as User from "./User.js"
