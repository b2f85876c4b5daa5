import * as Y from "yjs"
import { difference } from "./difference.js"

/** A textarea and a `Y.Text` that always show the same. */
export interface Binding {
  /**
   * Runs what may change the text from elsewhere: at once, or when the person has put together the
   * character that they are composing, since writing into a textarea breaks that off.
   */
  readonly whenIdle: (change: () => void) => void
}

/**
 * Binds them. What is typed becomes the smallest change of the text, and changes from elsewhere
 * leave the caret, the selection and the scroll position where they were in the text. Undo takes
 * back what was typed here and nothing that others did.
 */
export const bind = (area: HTMLTextAreaElement, text: Y.Text): Binding => {
  const undo = new Y.UndoManager(text, { trackedOrigins: new Set([area]) })
  const waiting: Array<() => void> = []
  let composing = false
  let shown = text.toJSON()
  area.value = shown

  const read = () => {
    if (area.value === shown) return
    const { deleted, index, inserted } = difference(shown, area.value, area.selectionEnd)
    shown = area.value
    text.doc?.transact(() => {
      text.delete(index, deleted)
      text.insert(index, inserted)
    }, area)
  }
  area.addEventListener("input", read)

  text.observe((event) => {
    if (event.transaction.origin === area) return
    const selection = moved(area, event)
    const { scrollTop } = area
    shown = text.toJSON()
    area.value = shown
    area.scrollTop = scrollTop
    // On some browsers this also takes the focus.
    if (document.activeElement === area) area.setSelectionRange(...selection)
  })

  area.addEventListener("compositionstart", () => {
    composing = true
  })
  area.addEventListener("compositionend", () => {
    composing = false
    // Some browsers tell of the last input only after this, when the changes that waited would have
    // wiped it out.
    read()
    for (const change of waiting.splice(0)) change()
  })

  // The textarea's own history ends with every change from elsewhere.
  const travel = (event: Event, direction: "undo" | "redo") => {
    event.preventDefault()
    undo[direction]()
  }
  area.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || composing) return
    const key = event.key.toLowerCase()
    if (key === "z") travel(event, event.shiftKey ? "redo" : "undo")
    else if (key === "y") travel(event, "redo")
  })
  area.addEventListener("beforeinput", (event) => {
    if (event.inputType === "historyUndo") travel(event, "undo")
    else if (event.inputType === "historyRedo") travel(event, "redo")
  })

  return {
    whenIdle: (change) => {
      if (composing) waiting.push(change)
      else change()
    }
  }
}

type Selection = [start: number, end: number, direction: "forward" | "backward" | "none"]

/** Where the selection is after a change. What is inserted right at an edge of it stays outside. */
const moved = (area: HTMLTextAreaElement, event: Y.YTextEvent): Selection => {
  let { selectionEnd: end, selectionStart: start } = area
  const collapsed = start === end
  let index = 0
  for (const { delete: deleted, insert, retain } of event.delta) {
    if (retain !== undefined) index += retain
    if (deleted !== undefined) {
      start = start > index ? Math.max(index, start - deleted) : start
      end = end > index ? Math.max(index, end - deleted) : end
    }
    if (typeof insert === "string") {
      if (index < start || (index === start && !collapsed)) start += insert.length
      if (index < end) end += insert.length
      index += insert.length
    }
  }
  // Undo and redo happen where the caret should be, as it is in a textarea.
  if (event.transaction.local) return [index, index, "none"]
  return [start, end, area.selectionDirection]
}
