/** Layers for the tests of programs that use promptgrimoire-db. */
export * as TestDatabase from "./TestDatabase.js"
