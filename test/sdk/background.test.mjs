// Commands in the background: found again, fed, ended.
import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import { CommandExitError, NotFoundError, Sandbox, SandboxError } from 'e2b'
import { alive, until, within } from './support.mjs'

// No process has this number: it is above what the kernel gives out.
const NO_PID = 2 ** 22 + 1

let sandbox
before(async () => {
  sandbox = await Sandbox.create()
})

test('wait for the end', async () => {
  const command = await sandbox.commands.run('sleep 0.1; echo late; exit 3', { background: true })
  assert.ok(command.pid > 0)
  assert.equal(command.exitCode, undefined)
  await assert.rejects(within('the end', command.wait()), (err) => {
    assert.ok(err instanceof CommandExitError)
    assert.deepEqual([err.exitCode, err.stdout], [3, 'late\n'])
    return true
  })
  assert.equal(command.exitCode, 3)
})

test('kill, by handle and by pid', async () => {
  const command = await sandbox.commands.run('sleep 100', { background: true })
  assert.equal(await alive(sandbox, command.pid), true)
  assert.equal(await command.kill(), true)
  await assert.rejects(within('the end', command.wait()), (err) => {
    assert.ok(err instanceof CommandExitError)
    assert.deepEqual([err.exitCode, err.error], [-1, 'signal: killed'])
    return true
  })
  assert.equal(await alive(sandbox, command.pid), false)
  assert.equal(await command.kill(), false)
  assert.equal(await sandbox.commands.kill(NO_PID), false)
})

test('kill ends the whole group', async () => {
  const seen = []
  const command = await sandbox.commands.run('sleep 100 & echo $!; wait', {
    background: true,
    onStdout: (text) => void seen.push(text),
  })
  const child = Number(await until('the pid of the child', () => seen.join('').trim()))
  assert.equal(await alive(sandbox, child), true)
  await command.kill()
  await assert.rejects(within('the end', command.wait()), CommandExitError)
  await until('the end of the child', async () => !(await alive(sandbox, child)))
})

test('stdin by handle and by pid, and its end', async () => {
  const command = await sandbox.commands.run('cat', { background: true, stdin: true })
  await command.sendStdin('one\n')
  await sandbox.commands.sendStdin(command.pid, 'two\n')
  await sandbox.commands.sendStdin(command.pid, new Uint8Array([0xc3, 0xa9, 0x0a]))
  await sandbox.commands.sendStdin(command.pid, '')
  await until('the echo', () => command.stdout === 'one\ntwo\né\n')
  await sandbox.commands.closeStdin(command.pid)
  const result = await within('the end', command.wait())
  assert.deepEqual([result.exitCode, result.stdout], [0, 'one\ntwo\né\n'])
})

test('closing stdin by handle, twice', async () => {
  const command = await sandbox.commands.run('wc -c; read -t 0.2 -r _', { background: true, stdin: true })
  await command.sendStdin('12345')
  await command.closeStdin()
  await command.closeStdin().catch((err) => assert.ok(err instanceof NotFoundError, `${err}`)) // it may be over by now
  await within('the end', command.wait()).catch((err) => assert.ok(err instanceof CommandExitError, `${err}`))
  assert.equal(command.stdout.trim(), '5')
})

test('a large input arrives whole', async () => {
  const command = await sandbox.commands.run('sha256sum', { background: true, stdin: true })
  const data = 'wrenn '.repeat(500_000)
  await within('the input', command.sendStdin(data))
  await command.closeStdin()
  const { createHash } = await import('node:crypto')
  const sum = createHash('sha256').update(data).digest('hex')
  assert.equal((await within('the end', command.wait())).stdout, `${sum}  -\n`)
})

test('input that nobody can take', async () => {
  await assert.rejects(sandbox.commands.sendStdin(NO_PID, 'x'), NotFoundError)
  const command = await sandbox.commands.run('sleep 100', { background: true })
  await assert.rejects(sandbox.commands.sendStdin(command.pid, 'x'), SandboxError)
  await command.kill()
  await assert.rejects(command.wait(), CommandExitError)
})

test('the list of what runs', async () => {
  const command = await sandbox.commands.run('sleep 100', { background: true, cwd: '/usr', envs: { COLOUR: 'blue' } })
  const found = (await sandbox.commands.list()).find((p) => p.pid === command.pid)
  assert.ok(found)
  assert.deepEqual(
    { cmd: found.cmd, args: found.args, envs: found.envs, cwd: found.cwd },
    { cmd: '/bin/bash', args: ['-l', '-c', 'sleep 100'], envs: { COLOUR: 'blue' }, cwd: '/usr' },
  )
  await command.kill()
  await assert.rejects(command.wait(), CommandExitError)
  assert.equal((await sandbox.commands.list()).some((p) => p.pid === command.pid), false)
})

test('a client that leaves and one that comes', async () => {
  const command = await sandbox.commands.run('while read -r line; do echo "got $line"; done; exit 4', { background: true, stdin: true })
  await command.disconnect()
  const other = await Sandbox.connect(sandbox.sandboxId)
  const seen = []
  const again = await other.commands.connect(command.pid, { onStdout: (text) => void seen.push(text) })
  assert.equal(again.pid, command.pid)
  const third = await other.commands.connect(command.pid)
  await again.sendStdin('hello\n')
  await until('the answer', () => seen.join('') === 'got hello\n')
  await again.closeStdin()
  for (const handle of [again, third]) {
    await assert.rejects(within('the end', handle.wait()), (err) => {
      assert.deepEqual([err.exitCode, err.stdout], [4, 'got hello\n'])
      return true
    })
  }
})

test('the end is known to those who come late', async () => {
  const command = await sandbox.commands.run('exit 9', { background: true })
  await assert.rejects(command.wait(), CommandExitError)
  const late = await sandbox.commands.connect(command.pid)
  await assert.rejects(within('the end', late.wait()), (err) => {
    assert.equal(err.exitCode, 9)
    return true
  })
})

test('connecting to nothing', async () => {
  await assert.rejects(sandbox.commands.connect(NO_PID), NotFoundError)
})
