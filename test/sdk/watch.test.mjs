// Directories watched for what happens in them.
import assert from 'node:assert/strict'
import { before, beforeEach, test } from 'node:test'
import { FileNotFoundError, FilesystemEventType, InvalidArgumentError, Sandbox } from 'e2b'
import { until } from './support.mjs'

let sandbox, home, dir
before(async () => {
  sandbox = await Sandbox.create()
  home = (await sandbox.commands.run('echo -n "$HOME"')).stdout
})

let count = 0
beforeEach(async () => {
  dir = `${home}/watch-${++count}`
  await sandbox.files.makeDir(dir)
})

// watch returns the events as they come and how to wait for one.
async function watch(opts, path = dir) {
  const events = []
  const handle = await sandbox.files.watchDir(path, (event) => void events.push(event), opts)
  const saw = (type, name) =>
    until(`${type} of ${name}`, () => events.find((e) => e.type === type && e.name === name)).catch((err) => {
      err.message += `; there was ${JSON.stringify(events)}`
      throw err
    })
  return { events, handle, saw }
}

test('created, written, permissions changed, renamed, removed', async () => {
  const { handle, saw } = await watch()
  await sandbox.files.write(`${dir}/file`, 'one')
  await saw(FilesystemEventType.CREATE, 'file')
  await sandbox.commands.run(`echo more >> ${dir}/file`)
  await saw(FilesystemEventType.WRITE, 'file')
  await sandbox.commands.run(`chmod 600 ${dir}/file`)
  await saw(FilesystemEventType.CHMOD, 'file')
  await sandbox.files.rename(`${dir}/file`, `${dir}/moved`)
  await saw(FilesystemEventType.RENAME, 'file')
  await saw(FilesystemEventType.CREATE, 'moved')
  await sandbox.files.remove(`${dir}/moved`)
  await saw(FilesystemEventType.REMOVE, 'moved')
  await handle.stop()
})

test('what the SDK writes is seen as the file that it is', async () => {
  const { events, handle, saw } = await watch({ recursive: true })
  await sandbox.files.write(`${dir}/first`, 'one')
  await saw(FilesystemEventType.CREATE, 'first')
  await sandbox.files.write(`${dir}/last`, 'x')
  await saw(FilesystemEventType.CREATE, 'last')
  assert.deepEqual([...new Set(events.map((e) => e.name))].sort(), ['first', 'last'])
  await handle.stop()
})

test('an overwritten file is seen', async () => {
  await sandbox.files.write(`${dir}/file`, 'one')
  const { events, handle } = await watch()
  await sandbox.files.write(`${dir}/file`, 'two')
  await until('a write or a create', () =>
    events.some((e) => e.name === 'file' && [FilesystemEventType.WRITE, FilesystemEventType.CREATE].includes(e.type)))
  await handle.stop()
})

test('only the directory itself, unless asked', async () => {
  await sandbox.files.makeDir(`${dir}/sub`)
  const { events, handle, saw } = await watch()
  await sandbox.files.write(`${dir}/sub/inner`, 'x')
  await sandbox.files.write(`${dir}/outer`, 'x')
  await saw(FilesystemEventType.CREATE, 'outer')
  assert.equal(events.some((e) => e.name.includes('inner')), false)
  await handle.stop()
})

test('recursive, with directories that come later', async () => {
  await sandbox.files.makeDir(`${dir}/there`)
  const { handle, saw } = await watch({ recursive: true })
  await sandbox.files.write(`${dir}/there/file`, 'x')
  await saw(FilesystemEventType.CREATE, 'there/file')
  await sandbox.commands.run(`mkdir -p ${dir}/late/deeper && echo x > ${dir}/late/deeper/file`)
  await saw(FilesystemEventType.CREATE, 'late')
  await saw(FilesystemEventType.CREATE, 'late/deeper')
  await saw(FilesystemEventType.CREATE, 'late/deeper/file')
  await sandbox.commands.run(`echo y >> ${dir}/late/deeper/file`)
  await saw(FilesystemEventType.WRITE, 'late/deeper/file')
  await sandbox.commands.run(`rm -r ${dir}/late`)
  await saw(FilesystemEventType.REMOVE, 'late/deeper/file')
  await saw(FilesystemEventType.REMOVE, 'late')
  await handle.stop()
})

test('with the entry', async () => {
  const { handle, saw } = await watch({ includeEntry: true })
  await sandbox.commands.run(`install -m 640 /dev/null ${dir}/file`)
  const event = await saw(FilesystemEventType.CREATE, 'file')
  assert.deepEqual([event.entry?.name, event.entry?.path, event.entry?.owner], ['file', `${dir}/file`, 'user'])
  await sandbox.commands.run(`rm ${dir}/file`)
  assert.equal((await saw(FilesystemEventType.REMOVE, 'file')).entry, undefined)
  await handle.stop()
})

test('a burst of files is seen whole', async () => {
  const files = 2000
  const { events, handle } = await watch()
  await sandbox.commands.run(`cd ${dir} && seq ${files} | xargs touch`)
  await until(`${files} creations`, () => new Set(events.filter((e) => e.type === FilesystemEventType.CREATE).map((e) => e.name)).size === files)
  await handle.stop()
})

test('two watchers of one directory', async () => {
  const [one, two] = [await watch(), await watch()]
  await sandbox.files.write(`${dir}/file`, 'x')
  await one.saw(FilesystemEventType.CREATE, 'file')
  await two.saw(FilesystemEventType.CREATE, 'file')
  await one.handle.stop()
  await sandbox.files.write(`${dir}/again`, 'x')
  await two.saw(FilesystemEventType.CREATE, 'again')
  assert.equal(one.events.some((e) => e.name === 'again'), false)
  await two.handle.stop()
})

test('the end is told', async () => {
  const ends = []
  const { handle } = await watch({ onExit: (err) => void ends.push(err) })
  await handle.stop()
  await until('the end', () => ends.length === 1)
})

test('the time limit of a watch', async () => {
  const ends = []
  await watch({ timeoutMs: 300, onExit: (err) => void ends.push(err) })
  await until('the end', () => ends.length === 1)
  assert.ok(ends[0] instanceof Error)
})

test('what cannot be watched', async () => {
  await assert.rejects(watch({}, `${dir}/missing`), FileNotFoundError)
  await sandbox.files.write(`${dir}/file`, 'x')
  await assert.rejects(watch({}, `${dir}/file`), InvalidArgumentError)
})
