/** What a command has of its process. */
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeConsole from "node:console"

/** The part of a process that a command reads and writes: `process` itself, or a test's own. */
export interface Process {
  readonly stdout: NodeJS.WritableStream
  readonly stderr: NodeJS.WritableStream
  readonly env: Readonly<Record<string, string | undefined>>
}

/** The environment variables of a command. Its streams are those of Effect's `Console`. */
export class Surroundings extends Context.Tag("promptgrimoire-db/cli/Surroundings")<
  Surroundings,
  { readonly env: Process["env"] }
>() {
  /** Everything that is printed goes to the streams of the process, Effect's logs included. */
  static readonly layer = ({ env, stderr, stdout }: Process): Layer.Layer<Surroundings> =>
    Layer.merge(
      Layer.succeed(Surroundings, { env }),
      Console.setConsole(consoleOf(new NodeConsole.Console({ stdout, stderr })))
    )
}

const consoleOf = (unsafe: Console.UnsafeConsole): Console.Console => {
  const calls =
    (name: keyof Console.UnsafeConsole) =>
    (...args: ReadonlyArray<unknown>) =>
      Effect.sync(() => Reflect.apply(unsafe[name], unsafe, args))
  return {
    [Console.TypeId]: Console.TypeId,
    assert: calls("assert"),
    clear: calls("clear")(),
    count: calls("count"),
    countReset: calls("countReset"),
    debug: calls("debug"),
    dir: calls("dir"),
    dirxml: calls("dirxml"),
    error: calls("error"),
    group: (options) => calls(options?.collapsed === true ? "groupCollapsed" : "group")(options?.label),
    groupEnd: calls("groupEnd")(),
    info: calls("info"),
    log: calls("log"),
    table: calls("table"),
    time: calls("time"),
    timeEnd: calls("timeEnd"),
    timeLog: calls("timeLog"),
    trace: calls("trace"),
    warn: calls("warn"),
    unsafe
  }
}
