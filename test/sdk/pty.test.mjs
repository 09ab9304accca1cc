// Terminals.
import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import { CommandExitError, NotFoundError, Sandbox } from 'e2b'
import { alive, until, within } from './support.mjs'

const NO_PID = 2 ** 22 + 1

let sandbox
before(async () => {
  sandbox = await Sandbox.create()
})

const bytes = (text) => new TextEncoder().encode(text)

// open starts a terminal whose screen is what came of it so far.
async function open(opts) {
  const screen = { text: '' }
  const decoder = new TextDecoder()
  const onData = (data) => {
    screen.text += decoder.decode(data, { stream: true })
  }
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData, ...opts })
  const type = (text) => sandbox.pty.sendInput(terminal.pid, bytes(text))
  const shows = (what) => until(`"${what}" on the screen, which is ${JSON.stringify(screen.text)}`, () => screen.text.includes(what))
  return { terminal, screen, type, shows, onData }
}

test('type, see the output, leave', async () => {
  const { terminal, type, shows } = await open()
  await type('echo "sum: $((40+2))"\n')
  await shows('sum: 42')
  await type('exit\n')
  const result = await within('the end', terminal.wait())
  assert.equal(result.exitCode, 0)
})

test('the exit code of the shell', async () => {
  const { terminal, type } = await open()
  await type('exit 5\n')
  await assert.rejects(within('the end', terminal.wait()), (err) => {
    assert.ok(err instanceof CommandExitError)
    assert.equal(err.exitCode, 5)
    return true
  })
})

test('size, and its change', async () => {
  const { terminal, type, shows } = await open({ cols: 91, rows: 17 })
  await type('echo "size=$(stty size | tr " " x)"\n')
  await shows('size=17x91')
  await type('trap "echo changed" WINCH; echo ready$((1+1))\n')
  await shows('ready2')
  await sandbox.pty.resize(terminal.pid, { cols: 120, rows: 40 })
  await type('echo "now=$(stty size | tr " " x) $(tput cols)"\n')
  await shows('now=40x120 120')
  await shows('changed')
  await sandbox.pty.kill(terminal.pid)
  await assert.rejects(within('the end', terminal.wait()), CommandExitError)
})

test('user, directory, environment', async () => {
  const { terminal, type, shows } = await open({ user: 'root', cwd: '/usr/share', envs: { COLOUR: 'blue' } })
  await type('echo "at=$(id -un):$PWD:$COLOUR:$TERM:$LANG"\n')
  await shows('at=root:/usr/share:blue:xterm-256color:C.UTF-8')
  await type('exit\n')
  await within('the end', terminal.wait())
})

test('it is a terminal that the shell controls', async () => {
  const { terminal, type, shows } = await open()
  await type('test -t 0 -a -t 1 -a -t 2 && tty | sed "s/^/name=/"\n')
  await shows('name=/dev/pts/')
  await type('sleep 100\n')
  await until('the sleep', async () => (await sandbox.commands.run('pgrep -fx "sleep 100" || true')).stdout !== '')
  await type('\x03')
  await type('echo "ended=$?"\n')
  await shows('ended=130')
  await type('exit 0\n')
  await within('the end', terminal.wait())
})

test('kill', async () => {
  const { terminal } = await open()
  assert.equal(await sandbox.pty.kill(terminal.pid), true)
  await assert.rejects(within('the end', terminal.wait()), CommandExitError)
  assert.equal(await alive(sandbox, terminal.pid), false)
  assert.equal(await sandbox.pty.kill(terminal.pid), false)
  await assert.rejects(sandbox.pty.sendInput(NO_PID, bytes('x')), NotFoundError)
})

test('a terminal outlives its connection', async () => {
  const { terminal, type, shows, screen, onData } = await open()
  await type('NOTE=kept; echo first$((1+1))\n')
  await shows('first2')
  await terminal.disconnect()
  screen.text = ''
  const again = await sandbox.pty.connect(terminal.pid, { onData })
  await type('echo "note is $NOTE"\n')
  await shows('note is kept')
  await type('exit\n')
  assert.equal((await within('the end', again.wait())).exitCode, 0)
})

test('a large output arrives whole and in order', async () => {
  const { terminal, type, shows, screen } = await open()
  await type('stty -echo; PS1=; echo begin$((1+1)); seq 100000; echo finish$((1+1))\n')
  await shows('finish2')
  const from = screen.text.indexOf('begin2\r\n') + 'begin2\r\n'.length
  const lines = screen.text.slice(from, screen.text.indexOf('finish2')).trim().split('\r\n')
  assert.equal(lines.length, 100000)
  assert.ok(lines.every((line, i) => line === `${i + 1}`))
  await type('exit\n')
  await within('the end', terminal.wait())
})

test('the time limit of a terminal', async () => {
  const { terminal } = await open({ timeoutMs: 300 })
  await assert.rejects(within('the end', terminal.wait()))
  await until('the end of the shell', async () => !(await alive(sandbox, terminal.pid)))
})
