/**
 * The `statement_timeout` in force on a connection, as far as it is known: from the settings, and
 * from what is set in a text. It tells a timeout from a cancellation, which have one SQLSTATE and
 * one routine (57014, ProcessInterrupts).
 */
export class StatementLimit {
  private local: number | undefined | typeof unset = unset

  private session: number | undefined

  /** `initial` in milliseconds; 0 is no limit, `undefined` is one that is not known. */
  constructor(private readonly initial: number | undefined) {
    this.session = initial
  }

  /** Takes note of what a text that is about to be sent sets. */
  note(text: string, values: ReadonlyArray<unknown>, inTransaction: boolean): void {
    if (!relevant.test(text)) return
    const rest = text.replaceAll(setting, (_, scope: string | undefined, amount: string, unit = "ms") => {
      this.set(Number(amount) * (millisPerUnit[unit.toLowerCase()] ?? Number.NaN), {
        isLocal: scope?.toUpperCase() === "LOCAL",
        inTransaction
      })
      return ""
    })
    if (/\b(?:reset|discard)\s+all\b/i.test(rest)) this.set(this.initial, { isLocal: false, inTransaction })
    // A function or a parameter: what is in force afterwards is not in the text.
    const isUnknown =
      named.test(rest) || values.some((value) => typeof value === "string" && named.test(value))
    if (isUnknown) this.set(undefined, { isLocal: false, inTransaction })
  }

  private set(
    millis: number | undefined,
    { inTransaction, isLocal }: { readonly isLocal: boolean; readonly inTransaction: boolean }
  ): void {
    this.local = isLocal || inTransaction ? millis : unset
    // Whether what a transaction sets for the session stays depends on how it ends.
    if (!isLocal) this.session = inTransaction ? undefined : millis
  }

  /** SET LOCAL ends with its transaction. */
  endTransaction(): void {
    this.local = unset
  }

  /**
   * Whether a statement that the server ended after so many milliseconds had run for as long as it
   * may; `undefined` if that is not known.
   */
  isOverdue(millis: number): boolean | undefined {
    const limit = this.local === unset ? this.session : this.local
    if (limit === undefined || Number.isNaN(limit)) return undefined
    // Two clocks measure it: a millisecond, and a thousandth, are none.
    return limit > 0 && millis + 1 >= limit * 0.999
  }
}

const unset = Symbol("unset")

const named = /statement_timeout/i

const relevant = /statement_timeout|set_config|\b(?:reset|discard)\s+all\b/i

const setting =
  /\bSET\s+(?:(LOCAL|SESSION)\s+)?statement_timeout\s*(?:=|\bTO\b)\s*(?:'\s*)?(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?(?![\w.])(?:\s*')?/gi

/** The units of PostgreSQL's limits (chapter "Parameter Names and Values"). */
export const millisPerUnit: Readonly<Record<string, number>> = {
  us: 0.001,
  ms: 1,
  s: 1000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000
}
