/**
 * Tests that are about a connection to PostgreSQL itself: their names, and why they cannot pass
 * through a transaction pooler.
 */
export const direct: Readonly<Record<string, string>> = {
  // Limits of a session are parameters of its start, which a pooler does not pass on; here every
  // transaction sets its own.
  "puts its settings into effect on the server: the default limits": "limits of the session",
  "puts its settings into effect on the server: other limits, and none": "limits of the session",
  "a statement that runs for too long ends with StatementTimeout, one that waits with LockTimeout":
    "limits of the session",
  "takes options of timeouts for this transaction only": "ends with the limits of the session",

  // After a cancel request a connection is given up, because a pooler could deliver the request too
  // late: a transaction goes with it.
  "that leaves the transaction usable when it is interrupted":
    "a cancelled statement's connection is given up",
  "streams and goes on after one that was abandoned midway, failed or was interrupted":
    "a cancelled statement's connection is given up",
  "a running statement is cancelled, the transaction rolled back, the connection used again":
    "a cancelled statement's connection is given up",
  "of BEGIN, at any moment, costs no connection and no log record":
    "a cancelled statement's connection is given up",
  "streams outside of any transaction in one of their own": "a cancelled statement's connection is given up",

  // What a pool has open are clients of the pooler, and its backends are the pooler's.
  "keeps as many connections as it should: the minimum from the start, and until its end":
    "counts backends in pg_stat_activity",
  "those above the minimum until they were idle for the idle timeout": "counts backends in pg_stat_activity",
  "none beyond its lifetime, while the database answers": "counts backends in pg_stat_activity",
  "decides on its own what becomes of the connection": "tells connections apart by their backends",

  // A named statement is prepared on one of the pooler's backends, and used on another.
  "that comes again is prepared on the server, the second time": "named statements are off",
  "is prepared anew when its table has changed, or when it was deallocated": "named statements are off"
}
