/** The client's only clock. The server has Effect's schedules; a browser has this. */

/** Something that happens once, some time after it was last told to. */
export interface Timer {
  /** In so many milliseconds from now, and not before. */
  readonly restart: (milliseconds: number) => void
  readonly stop: () => void
}

/** Makes a timer that stands still. */
export const timer = (run: () => void): Timer => {
  let waiting: ReturnType<typeof globalThis.setTimeout> | undefined
  const stop = () => globalThis.clearTimeout(waiting)
  return {
    restart: (milliseconds) => {
      stop()
      waiting = globalThis.setTimeout(run, milliseconds)
    },
    stop
  }
}
