// What the tests of the SDK share.
import assert from 'node:assert/strict'

// How long something that has to happen may take, and how often it is looked for.
const PATIENCE_MS = 10_000
const LOOK_EVERY_MS = 10

// until waits for condition to return something true and returns that.
export async function until(what, condition) {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    const found = await condition()
    if (found) return found
    if (Date.now() > deadline) assert.fail(`${what}: not within ${PATIENCE_MS} ms`)
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS))
  }
}

// within fails when promise has not settled in time; a hung call must not hang the run.
export async function within(what, promise) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${PATIENCE_MS} ms`)), PATIENCE_MS)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

// alive says whether a process of the sandbox exists and is no zombie.
export async function alive(sandbox, pid) {
  const result = await sandbox.commands.run(`ps -o stat= -p ${pid} | grep -qv '^Z' && echo yes || echo no`)
  return result.stdout === 'yes\n'
}

// endpoint is where the daemon listens in debug mode.
export const endpoint = 'http://localhost:49983'

// init tells the daemon who it is, as the host would; with a token it must be the set one.
export async function init(body, token) {
  const response = await fetch(`${endpoint}/init`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...(token && { 'X-Access-Token': token }) },
    body: JSON.stringify({ timestamp: new Date().toISOString(), ...body }),
  })
  assert.equal(response.status, 204, await response.text())
}
