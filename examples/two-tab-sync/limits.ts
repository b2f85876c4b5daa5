/**
 * What the server and the client must agree on. The client is served without Effect, so it is not
 * in `Protocol.ts`.
 */

/** The name of the `Y.Text` in the Yjs document. */
export const textName = "text"

/** The most characters (UTF-16 units, as a textarea counts them) that a text may have. */
export const maxTextLength = 100_000

/** The most bytes that the Yjs state of a text may have; what was deleted leaves traces in it. */
export const maxStateBytes = 4 * 1024 * 1024

/**
 * The most characters of one message of a tab: the whole text, in three bytes a character, in
 * base64.
 */
export const maxMessageLength = 600_000

/** The most characters of a person's name. */
export const maxNameLength = 40

/**
 * How often a server says that it is there, in milliseconds. Who is not heard of for four times as
 * long is not there.
 */
export const heartbeatMillis = 5000
