/** The command with the modules that are installed: the bundle leaves this file out. */
export { start } from "./start.js"
