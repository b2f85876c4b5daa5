import { fileURLToPath } from "node:url"
import * as Migrator from "../../src/Migrator.js"

/** The migrations of this repository, from their files. */
export const migrationsDirectory = fileURLToPath(new URL("../../migrations", import.meta.url))

/** Loads the migrations of this repository. */
export const loader = Migrator.fromDirectory(migrationsDirectory)
