/**
 * The rooms of src/, from the lowest to the highest: a module imports from its own room and from
 * rooms below it, type imports included. docs/architecture.md says why each is there.
 */
export const rooms = [
  ["errors"],
  ["DatabaseError"],
  ["connection"],
  ["DatabaseConfig"],
  ["telemetry"],
  ["pool"],
  ["transaction"],
  ["client"],
  ["Database"],
  ["Copy", "Notification", "Transaction"],
  ["sql"],
  ["catalog"],
  ["foreignKey/snapshot"],
  ["foreignKey/ledger"],
  ["foreignKey/steps"],
  ["foreignKey/hazards"],
  ["foreignKey/result"],
  ["foreignKey/types"],
  ["foreignKey/plan"],
  ["foreignKey/apply"],
  ["foreignKey/dryRunListener"],
  ["foreignKey/run"],
  ["ForeignKey"],
  ["purge"],
  ["Purge"],
  ["migrator"],
  ["Migrator"],
  ["embedded"],
  ["EmbeddedPostgres"],
  ["model"],
  ["index"],
  ["testing"],
  ["cli"]
]

/**
 * Imports of a room, from anywhere in src/: by its path, and within foreignKey/ by its name there.
 */
const importsOf = (room) => {
  const inside = room.startsWith("foreignKey/") ? `|\\.\\.?/${room.slice("foreignKey/".length)}` : ""
  return `^((\\./|(\\.\\./)+)${room}${inside})(/|\\.js$)`
}

const direction = rooms.slice(0, -1).flatMap((some, index) =>
  some.map((room) => ({
    files: [`src/${room}/**`, `src/${room}.ts`],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          patterns: rooms.slice(index + 1).flatMap((above) =>
            above.map((name) => ({
              regex: importsOf(name),
              message: `${room} stands below ${name} (oxlint.config.mjs): move what both need further down.`
            }))
          )
        }
      ]
    }
  }))
)

export default {
  plugins: ["typescript", "unicorn", "oxc", "import", "vitest"],
  categories: { correctness: "error", suspicious: "error", perf: "error" },
  rules: {
    "typescript/no-floating-promises": "error",
    "typescript/no-misused-promises": "error",
    "typescript/no-explicit-any": "error",
    "typescript/consistent-type-imports": "error",
    "typescript/no-non-null-assertion": "error",
    "import/no-cycle": "error",
    "import/no-namespace": "off",
    "no-shadow": "off",
    "typescript/consistent-return": "off",
    "consistent-return": "off",
    "oxc/no-map-spread": "off",
    "require-yield": "off",
    "no-underscore-dangle": "off",
    "unicorn/no-array-sort": "off",
    "unicorn/consistent-function-scoping": "off",
    "vitest/no-standalone-expect": "off",
    "vitest/require-mock-type-parameters": "off",
    "typescript/no-unsafe-type-assertion": "off",
    "no-await-in-loop": "off"
  },
  overrides: [
    ...direction,
    {
      files: ["test/**/*.test.ts"],
      rules: {
        "no-restricted-imports": [
          "error",
          {
            paths: [{ name: "@effect/vitest", message: "test/support/it.ts keeps what a test logs." }]
          }
        ]
      }
    }
  ],
  ignorePatterns: ["dist", "node_modules", ".data", ".postgres"]
}
