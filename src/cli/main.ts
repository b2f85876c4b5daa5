#!/usr/bin/env node
/**
 * The command. As it is published this file is a bundle with most of what it needs, which starts
 * in a fraction of the time that hundreds of modules take. Migrations import modules too, and have
 * to share them with what runs them: what may load migrations runs with the installed modules.
 */
const args = process.argv.slice(2)
const isHelp = args.some((argument) => argument === "--help" || argument === "-h")
const loadsMigrations = args.includes("migrate") || args.includes("doctor")

const { start } = await(loadsMigrations && !isHelp ? import("./installed.js") : import("./start.js"))
start()
