import { assert, describe, it } from "../support/it.js"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DatabaseError from "../../src/DatabaseError.js"
import { repository } from "../support/command.js"

/** Every reason, kept complete by the type checker. */
const reasons = {
  SerializationFailure: true,
  ReplicaConflict: true,
  DeadlockDetected: true,
  LockTimeout: true,
  StatementTimeout: true,
  StatementCancelled: true,
  IdleInTransactionTimeout: true,
  TransactionTimeout: true,
  IdleSessionTimeout: true,
  ServerShutdown: true,
  ServerCrash: true,
  ServerStarting: true,
  DatabaseUnavailable: true,
  TooManyConnections: true,
  ServerResources: true,
  ServerSystemError: true,
  AuthenticationFailed: true,
  ReadOnlyTransaction: true,
  InvalidTransactionState: true,
  StalePreparedStatement: true,
  ProtocolViolation: true,
  ServerConnectionException: true,
  UniqueViolation: true,
  ForeignKeyViolation: true,
  NotNullViolation: true,
  CheckViolation: true,
  ExclusionViolation: true,
  IntegrityViolation: true,
  ValueTooLong: true,
  OutOfRange: true,
  InvalidInput: true,
  DataException: true,
  PermissionDenied: true,
  UndefinedObject: true,
  DuplicateObject: true,
  SyntaxError: true,
  InvalidStatement: true,
  ObjectState: true,
  FeatureNotSupported: true,
  RaisedException: true,
  ServerError: true,
  ConnectFailed: true,
  ConnectionLost: true,
  AcquireTimeout: true,
  Overloaded: true,
  PoolClosed: true,
  NestedAcquire: true,
  TransactionAborted: true,
  TransactionRolledBack: true,
  CommitOutcomeUnknown: true,
  SessionUnavailable: true,
  TransactionEnded: true,
  InvalidRequest: true
} satisfies Readonly<Record<DatabaseError.ReasonTag, true>>

/** The rows of the table of reasons: tag, codes, retry, disposition. */
const rows = Fs.readFileSync(Path.join(repository, "docs/errors.md"), "utf8")
  .split("\n")
  .map((line) => /^\| `(\w+)` \| ([^|]*)\| (\w+)[^|]*\| (keep|destroy|invalidate) \|$/.exec(line))
  .flatMap((match) => {
    const [, tag = "", codes = "", retry, disposition] = match ?? []
    return match === null ? [] : [{ tag, codes, retry, disposition }]
  })

/** What tells codes apart that stand for two things. */
const classified = (tag: string, code: string): DatabaseError.Reason => {
  switch (tag) {
    case "ReplicaConflict":
      return DatabaseError.classify({ code, routine: "ProcessRecoveryConflictInterrupt" })
    case "StatementTimeout":
      return DatabaseError.classify({ code }, undefined, true)
    case "StalePreparedStatement":
      return DatabaseError.classify({ code, routine: "RevalidateCachedQuery" })
    default:
      return DatabaseError.classify({ code })
  }
}

describe("the table of reasons in docs/errors.md", () => {
  it("has every reason once", () => {
    assert.sameMembers(
      rows.map(({ tag }) => tag),
      Object.keys(reasons)
    )
  })

  for (const { codes, disposition, retry, tag } of rows) {
    it(`says what becomes of ${tag}`, () => {
      const policy = DatabaseError.policy({ _tag: tag } as DatabaseError.Reason)
      assert.deepStrictEqual<object>(policy, { retry, disposition })
    })

    if (tag.startsWith("Transaction") && tag !== "TransactionTimeout") continue
    // A class stands for its codes without a reason of their own; no server uses the last ones.
    const all = codes.replaceAll(/class (\w\w)/g, "$1ZZZ").match(/\b[0-9A-Z]{5}\b/g) ?? []
    for (const code of all) {
      it(`gives ${code} to ${tag}`, () => {
        assert.strictEqual(classified(tag, code)._tag, tag)
      })
    }
  }
})
