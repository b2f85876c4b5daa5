/**
 * Runs `npm test` beside four busy loops: `npm run test:busy`. No test may fail because the machine
 * is slow.
 */
import { type ChildProcess, spawn } from "node:child_process"

// Each looks at its parent, so that none outlives this process, however it ends.
const loop = "const parent = process.ppid; while (process.ppid === parent);"

const loops: ReadonlyArray<ChildProcess> = Array.from({ length: 4 }, () =>
  spawn(process.execPath, ["-e", loop], { stdio: "ignore" })
)
const tests = spawn("npm", ["test", "--", ...process.argv.slice(2)], { stdio: "inherit" })
tests.on("close", (code) => {
  for (const child of loops) child.kill()
  process.exitCode = code ?? 1
})
