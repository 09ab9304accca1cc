// Commands in the foreground: what they print, how they end, what they are given.
import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import { CommandExitError, InvalidArgumentError, AuthenticationError, Sandbox, TimeoutError } from 'e2b'
import { until, within } from './support.mjs'

let sandbox
before(async () => {
  sandbox = await Sandbox.create()
})

test('the sandbox is running and can be connected to', async () => {
  assert.equal(await sandbox.isRunning(), true)
  const again = await Sandbox.connect(sandbox.sandboxId)
  assert.equal((await again.commands.run('echo hello')).stdout, 'hello\n')
  assert.equal(sandbox.getHost(8080), 'localhost:8080')
})

test('stdout, stderr and the exit code', async () => {
  const result = await sandbox.commands.run('echo out; echo err >&2')
  assert.deepEqual(
    { stdout: result.stdout, stderr: result.stderr, exitCode: result.exitCode, error: result.error },
    { stdout: 'out\n', stderr: 'err\n', exitCode: 0, error: undefined },
  )
})

test('output is streamed while the command runs', async () => {
  const seen = []
  const command = await sandbox.commands.run('echo first; read -r _; echo second', {
    background: true,
    stdin: true,
    onStdout: (text) => void seen.push(text),
  })
  await until('the first line', () => seen.length > 0)
  assert.equal(seen.join(''), 'first\n')
  await command.sendStdin('\n')
  await within('the end', command.wait())
  assert.equal(seen.join(''), 'first\nsecond\n')
})

test('a non-zero exit is an error that tells everything', async () => {
  await assert.rejects(sandbox.commands.run('echo out; echo err >&2; exit 7'), (err) => {
    assert.ok(err instanceof CommandExitError)
    assert.deepEqual([err.exitCode, err.stdout, err.stderr, err.error], [7, 'out\n', 'err\n', 'exit status 7'])
    return true
  })
})

test('a command ended by a signal', async () => {
  await assert.rejects(sandbox.commands.run('kill -KILL $$'), (err) => {
    assert.ok(err instanceof CommandExitError)
    assert.equal(err.exitCode, -1)
    assert.equal(err.error, 'signal: killed')
    return true
  })
})

test('the default user, its home and its environment', async () => {
  const result = await sandbox.commands.run('id -un; id -Gn; echo "$USER $LOGNAME"; [ "$HOME" = "$PWD" ] && echo home; echo "$FROM_INIT"')
  assert.deepEqual(result.stdout.split('\n'), ['user', 'user team', 'user user', 'home', 'yes', ''])
})

test('another user', async () => {
  assert.equal((await sandbox.commands.run('id -un', { user: 'root' })).stdout, 'root\n')
})

test('a user that does not exist', async () => {
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-here' }), AuthenticationError)
})

test('the working directory', async () => {
  assert.equal((await sandbox.commands.run('pwd', { cwd: '/usr/share' })).stdout, '/usr/share\n')
  await assert.rejects(sandbox.commands.run('pwd', { cwd: '/no/such/place' }), (err) => {
    assert.ok(err instanceof InvalidArgumentError, `${err}`)
    assert.match(err.message, /cwd '\/no\/such\/place' does not exist/)
    return true
  })
})

test('environment variables are for one command only', async () => {
  const envs = { GREETING: 'grüß dich', EMPTY: '', FROM_INIT: 'changed' }
  const result = await sandbox.commands.run('echo "$GREETING|$EMPTY|$FROM_INIT"', { envs })
  assert.equal(result.stdout, 'grüß dich||changed\n')
  assert.equal((await sandbox.commands.run('echo "$GREETING|$FROM_INIT"')).stdout, '|yes\n')
})

test('characters that pieces of output may split', async () => {
  const result = await sandbox.commands.run(`yes 'é€😀' | head -n 40000`)
  assert.equal(result.stdout, 'é€😀\n'.repeat(40000))
})

test('a megabyte each on both streams', async () => {
  const result = await sandbox.commands.run('head -c 1000000 /dev/zero | tr "\\0" o; head -c 1000000 /dev/zero | tr "\\0" e >&2')
  assert.equal(result.stdout, 'o'.repeat(1000000))
  assert.equal(result.stderr, 'e'.repeat(1000000))
})

test('a command whose time is over', async () => {
  const began = Date.now()
  await assert.rejects(sandbox.commands.run('sleep 63.25', { timeoutMs: 300 }), TimeoutError)
  assert.ok(Date.now() - began < 5000)
  // The limit is the command's, not only the client's: it must not go on.
  const left = await sandbox.commands.run('for i in $(seq 100); do pgrep -fx "sleep 63.25" >/dev/null || exit 0; sleep 0.05; done; exit 1')
  assert.equal(left.exitCode, 0)
})

test('no time limit', async () => {
  assert.equal((await sandbox.commands.run('sleep 0.2; echo done', { timeoutMs: 0 })).stdout, 'done\n')
})

test('a command without stdin does not wait for any', async () => {
  assert.equal((await within('cat', sandbox.commands.run('cat; echo over'))).stdout, 'over\n')
})

test('a background process that holds the output does not hold the answer', async () => {
  const result = await within('the answer', sandbox.commands.run('sleep 20 & echo started'))
  assert.equal(result.stdout, 'started\n')
  await sandbox.commands.run('pkill -fx "sleep 20"')
})

test('fifty commands at once', async () => {
  const all = await Promise.all(Array.from({ length: 50 }, (_, i) => sandbox.commands.run(`echo ${i}; exit 0`)))
  assert.deepEqual(all.map((r) => r.stdout), Array.from({ length: 50 }, (_, i) => `${i}\n`))
})
