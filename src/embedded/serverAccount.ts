import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as fs from "node:fs"
import * as path from "node:path"
import { EmbeddedPostgresError, fileSystem } from "./embeddedPostgresError.js"

/** An account of this machine that the server runs as. */
export interface ServerAccount {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/**
 * The account to run the server as: none for the current one, which is right for everybody but
 * root. `initdb` and `postgres` refuse to run as root, and need an account that is in the password
 * file: the first of `candidates` that exists.
 */
export const find = (
  candidates: ReadonlyArray<string>
): Effect.Effect<Option.Option<ServerAccount>, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    if (process.getuid?.() !== 0) return Option.none()
    const accounts = yield* readAccounts
    const account = candidates
      .map((name) => accounts.find((account) => account.name === name && account.uid !== 0))
      .find((found) => found !== undefined)
    if (account === undefined) {
      return yield* new EmbeddedPostgresError({
        reason: "NoServerAccount",
        message: `EmbeddedPostgres runs as root, PostgreSQL refuses to, and none of the accounts ${candidates.join(", ")} exists: create one (useradd --system postgres), run as another user, or set DATABASE_URL to use another server`
      })
    }
    return Option.some(account)
  })

/** As `find`, but the owner of an existing directory: a cluster can only be run by its owner. */
export const ownerOf = (
  directory: string
): Effect.Effect<Option.Option<ServerAccount>, EmbeddedPostgresError> =>
  Effect.gen(function* () {
    if (process.getuid?.() !== 0) return Option.none()
    const { uid } = yield* fileSystem(`read the owner of ${directory}`, () => fs.statSync(directory))
    const account = (yield* readAccounts).find((account) => account.uid === uid && uid !== 0)
    if (account === undefined) {
      return yield* new EmbeddedPostgresError({
        reason: "NoServerAccount",
        message: `EmbeddedPostgres cannot run the cluster ${directory}: its owner, user id ${uid}, has no account here that PostgreSQL can run as. Change the owner (chown -R) or choose another data directory`
      })
    }
    return Option.some(account)
  })

/**
 * Whether the account may enter this directory and every one above it. Access lists and further
 * groups are not considered.
 */
export const canEnter = (directory: string, account: ServerAccount): boolean =>
  ancestors(directory).every((ancestor) => permits(ancestor, account, 0o1))

/**
 * Whether the account may read (and for `execute` run) this file, provided that it can enter its
 * directory.
 */
export const canRead = (file: string, account: ServerAccount, execute = false): boolean =>
  permits(file, account, execute ? 0o5 : 0o4)

// -----------------------------------------------------------------------------

const readAccounts: Effect.Effect<ReadonlyArray<ServerAccount>, EmbeddedPostgresError> = Effect.map(
  fileSystem("read /etc/passwd", () => fs.readFileSync("/etc/passwd", "utf8")),
  (text) =>
    text.split("\n").flatMap((line) => {
      const [name, , uid, gid] = line.split(":")
      return name && uid && gid ? [{ name, uid: Number(uid), gid: Number(gid) }] : []
    })
)

const ancestors = (directory: string): ReadonlyArray<string> =>
  directory === path.dirname(directory) ? [directory] : [...ancestors(path.dirname(directory)), directory]

const permits = (file: string, account: ServerAccount, bits: number): boolean => {
  const stat = fs.statSync(file, { throwIfNoEntry: false })
  if (stat === undefined) return false
  const shift = stat.uid === account.uid ? 6 : stat.gid === account.gid ? 3 : 0
  return ((stat.mode >> shift) & bits) === bits
}
