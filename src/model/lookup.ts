import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Request from "effect/Request"
import * as RequestResolver from "effect/RequestResolver"

/**
 * A lookup by key that is batched: the lookups of one `Effect.forEach(keys, lookup, { batching:
 * true })` are one `fetch`.
 *
 * A request carries the context it was made in, so it is answered by the transaction it was made
 * in, and lookups of different transactions are never answered together. This is the one place that
 * knows how `@effect/sql` marks a transaction.
 *
 * Effect waits for a batch that runs when its `forEach` is interrupted; the statement timeout is
 * the limit of that.
 */
export const make = <Key extends string, A>(
  fetch: (keys: ReadonlyArray<Key>) => Effect.Effect<ReadonlyMap<Key, A>, SqlError>
): ((key: Key) => Effect.Effect<Option.Option<A>, SqlError>) => {
  const resolver = RequestResolver.makeBatched((lookups: ReadonlyArray<Lookup<Key, A>>) =>
    Effect.forEach(byTransaction(lookups), (group) => answer(group, fetch), { discard: true })
  )
  return (key) =>
    Effect.flatMap(Effect.context<never>(), (context) =>
      Effect.request(Request.of<Lookup<Key, A>>()({ key, context }), resolver)
    )
}

// -----------------------------------------------------------------------------
// internal
// -----------------------------------------------------------------------------

interface Lookup<Key, A> extends Request.Request<Option.Option<A>, SqlError> {
  readonly key: Key
  readonly context: Context.Context<never>
}

const byTransaction = <Key, A>(
  lookups: ReadonlyArray<Lookup<Key, A>>
): Iterable<ReadonlyArray<Lookup<Key, A>>> => {
  const groups = new Map<unknown, Array<Lookup<Key, A>>>()
  for (const lookup of lookups) {
    const open = Context.getOption(lookup.context, SqlClient.TransactionConnection)
    const connection = open._tag === "Some" ? open.value[0] : undefined
    const group = groups.get(connection)
    if (group === undefined) groups.set(connection, [lookup])
    else group.push(lookup)
  }
  return groups.values()
}

const answer = <Key extends string, A>(
  group: ReadonlyArray<Lookup<Key, A>>,
  fetch: (keys: ReadonlyArray<Key>) => Effect.Effect<ReadonlyMap<Key, A>, SqlError>
): Effect.Effect<void> => {
  const context = group[0]?.context ?? Context.empty()
  return fetch([...new Set(group.map(({ key }) => key))]).pipe(
    (fetched) => Effect.mapInputContext(fetched, (_executor: Context.Context<never>) => context),
    Effect.flatMap((found) =>
      Effect.forEach(group, (lookup) => Request.succeed(lookup, Option.fromNullable(found.get(lookup.key))), {
        discard: true
      })
    ),
    Effect.catchAllCause((cause) =>
      Effect.forEach(group, (lookup) => Request.failCause(lookup, cause), { discard: true })
    )
  )
}
