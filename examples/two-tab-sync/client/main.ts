/** The page of one text. */
import * as Y from "yjs"
import { maxNameLength, maxTextLength, textName } from "../limits.js"
import type { Person } from "../Protocol.js"
import { bind } from "./binding.js"
import { fromBase64, toBase64 } from "./bytes.js"
import { connect, type Status } from "./connection.js"
import { cleanName, hueOf, storeName, thisTab } from "./person.js"

const conversation = location.pathname.slice("/c/".length)
const unsavedKey = `two-tab-sync/unsaved/${conversation}`

const element = <E extends HTMLElement>(id: string, type: new () => E): E => {
  const found = document.querySelector(`#${id}`)
  if (found instanceof type) return found
  throw new TypeError(`The page has no ${type.name} #${id}`)
}
const area = element("edit", HTMLTextAreaElement)
const mirror = element("synced", HTMLElement)
const status = element("status", HTMLElement)
const people = element("people", HTMLElement)
const name = element("name", HTMLInputElement)

// -----------------------------------------------------------------------------
// what is shown
// -----------------------------------------------------------------------------

const inWords = (now: Status): string => {
  switch (now.state) {
    case "connecting":
      return "Connecting …"
    case "saved":
      return "Saved"
    case "saving":
      return "Saving …"
    case "offline":
      return now.unsaved
        ? "Offline: your changes are kept here and will be saved"
        : "Offline: connecting again …"
    default:
      return `Not saved. ${now.message}`
  }
}

let stateSince = performance.now()

const showStatus = (now: Status) => {
  // Nobody wants to hear "saved" after each letter; that it is not saved is another thing. Only
  // what is live before it changes is read out.
  status.ariaLive = now.state === "offline" || now.state === "refused" ? "polite" : "off"
  status.textContent = inWords(now)
  if (now.state !== status.dataset["state"]) stateSince = performance.now()
  status.dataset["state"] = now.state
}

const showPeople = (all: ReadonlyArray<Person>) => {
  people.replaceChildren(
    ...all
      .toSorted((one, two) => Number(two.tab === person.tab) - Number(one.tab === person.tab))
      .map((one) => {
        const item = document.createElement("li")
        item.textContent = one.tab === person.tab ? `${one.name} (you)` : one.name
        item.style.setProperty("--hue", String(hueOf(one)))
        return item
      })
  )
}

// -----------------------------------------------------------------------------
// the text
// -----------------------------------------------------------------------------

const doc = new Y.Doc()
const text = doc.getText(textName)
const person = thisTab()
const binding = bind(area, text)
text.observe(() => {
  mirror.textContent = text.toJSON()
})

const left = sessionStorage.getItem(unsavedKey)
const connection = connect({
  doc,
  url: `${location.protocol.replace("http", "ws")}//${location.host}/sync/${conversation}`,
  person,
  unsaved: left === null ? undefined : fromBase64(left),
  whenIdle: binding.whenIdle,
  onStatus: showStatus,
  onPeople: showPeople
})
sessionStorage.removeItem(unsavedKey)

area.maxLength = maxTextLength
area.disabled = false

name.maxLength = maxNameLength
name.value = person.name
name.addEventListener("change", () => {
  const given = cleanName(name.value)
  if (given === undefined) return
  storeName(given)
  connection.rename(given)
})

// -----------------------------------------------------------------------------
// coming and going
// -----------------------------------------------------------------------------

window.addEventListener("online", connection.hurry)
document.addEventListener("visibilitychange", connection.hurry)

// Reloading the page, or going back to it, brings back what could not be saved. A tab that is
// closed does not come back: the server gets all that it has not got yet.
window.addEventListener("pagehide", () => {
  const unsaved = connection.unsaved()
  if (unsaved !== undefined) sessionStorage.setItem(unsavedKey, toBase64(unsaved))
  connection.leave()
})
/** A server that takes longer to save, in milliseconds, may not save at all. */
const patience = 1000
window.addEventListener("beforeunload", (event) => {
  if (connection.unsaved() === undefined) return
  const saving = status.dataset["state"] === "saving" && performance.now() - stateSince < patience
  if (!saving) event.preventDefault()
})
