// Files: written, read, listed, moved, removed.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { before, beforeEach, test } from 'node:test'
import { AuthenticationError, FileNotFoundError, FileType, InvalidArgumentError, Sandbox, SandboxError } from 'e2b'

let sandbox, home, dir
before(async () => {
  sandbox = await Sandbox.create()
  home = (await sandbox.commands.run('echo -n "$HOME"')).stdout
})

let count = 0
beforeEach(async () => {
  dir = `${home}/files-${++count}`
  await sandbox.files.makeDir(dir)
})

// stream makes data into a stream of small pieces.
function stream(data) {
  const piece = 16 << 10
  let at = 0
  return new ReadableStream({
    pull(controller) {
      if (at >= data.length) return controller.close()
      controller.enqueue(data.subarray(at, (at += piece)))
    },
  })
}

async function gather(readable) {
  const pieces = []
  for await (const piece of readable) pieces.push(piece)
  return Buffer.concat(pieces)
}

test('a string, and what is said of it', async () => {
  const path = `${dir}/hello.txt`
  const info = await sandbox.files.write(path, 'grüß dich\n')
  assert.deepEqual({ name: info.name, type: info.type, path: info.path }, { name: 'hello.txt', type: 'file', path })
  assert.equal(info.metadata, undefined)
  assert.equal(await sandbox.files.read(path), 'grüß dich\n')
  assert.equal((await sandbox.commands.run(`stat -c '%U %G %a' ${path}`)).stdout, 'user user 644\n')
})

test('bytes, a blob and a stream', async () => {
  const data = randomBytes(300_000)
  const ways = {
    bytes: data.buffer.slice(data.byteOffset, data.byteOffset + data.length),
    blob: new Blob([data]),
    stream: stream(data),
  }
  for (const [name, body] of Object.entries(ways)) {
    const path = `${dir}/${name}`
    const info = await sandbox.files.write(path, body)
    assert.equal(info.path, path, name)
    assert.ok(Buffer.from(await sandbox.files.read(path, { format: 'bytes' })).equals(data), name)
  }
})

test('reading as text, bytes, blob and stream', async () => {
  const path = `${dir}/data`
  const data = Buffer.from('é'.repeat(100_000))
  await sandbox.files.write(path, data.toString())
  assert.equal(await sandbox.files.read(path, { format: 'text' }), data.toString())
  assert.ok(Buffer.from(await sandbox.files.read(path, { format: 'bytes' })).equals(data))
  assert.ok(Buffer.from(await (await sandbox.files.read(path, { format: 'blob' })).arrayBuffer()).equals(data))
  assert.ok((await gather(await sandbox.files.read(path, { format: 'stream' }))).equals(data))
})

test('an empty file', async () => {
  const path = `${dir}/empty`
  await sandbox.files.write(path, '')
  assert.equal(await sandbox.files.read(path), '')
  assert.equal((await sandbox.files.read(path, { format: 'bytes' })).length, 0)
  assert.equal((await (await sandbox.files.read(path, { format: 'blob' })).arrayBuffer()).byteLength, 0)
  assert.equal((await gather(await sandbox.files.read(path, { format: 'stream' }))).length, 0)
  assert.equal((await sandbox.files.getInfo(path)).size, 0)
})

test('gzip on the way, up and down', async () => {
  const path = `${dir}/packed`
  const text = 'again and again\n'.repeat(10_000)
  await sandbox.files.write(path, text, { gzip: true })
  assert.equal((await sandbox.files.getInfo(path)).size, text.length)
  assert.equal(await sandbox.files.read(path, { gzip: true }), text)
  assert.equal(await sandbox.files.read(path), text)
  await sandbox.files.write(path, stream(Buffer.from(text)), { gzip: true })
  assert.equal(await sandbox.files.read(path), text)
})

test('as octet-stream when asked', async () => {
  const info = await sandbox.files.write(`${dir}/octets`, 'plain', { useOctetStream: true })
  assert.equal(info.path, `${dir}/octets`)
  assert.equal(await sandbox.files.read(`${dir}/octets`), 'plain')
})

test('several files in one go', async () => {
  const files = ['a.txt', 'b/c.txt', 'ä ö.txt'].map((name) => ({ path: `${dir}/${name}`, data: `of ${name}` }))
  for (const write of [(f) => sandbox.files.writeFiles(f), (f) => sandbox.files.write(f)]) {
    const infos = await write(files)
    assert.deepEqual(infos.map((i) => i.path), files.map((f) => f.path))
    assert.deepEqual(infos.map((i) => i.name), ['a.txt', 'c.txt', 'ä ö.txt'])
    for (const file of files) assert.equal(await sandbox.files.read(file.path), file.data)
    await sandbox.files.remove(`${dir}/b`)
  }
  assert.deepEqual(await sandbox.files.write([]), [])
})

test('overwriting makes the file shorter', async () => {
  await sandbox.files.write(`${dir}/f`, 'a long text')
  await sandbox.files.write(`${dir}/f`, 'short')
  assert.equal(await sandbox.files.read(`${dir}/f`), 'short')
})

test('directories on the way are made and belong to the user', async () => {
  await sandbox.files.write(`${dir}/x/y/z`, 'deep')
  assert.equal((await sandbox.commands.run(`stat -c '%U %a' ${dir}/x ${dir}/x/y`)).stdout, 'user 755\nuser 755\n')
})

test('relative paths and ~ are in the home', async () => {
  const info = await sandbox.files.write('relative.txt', 'r')
  assert.equal(info.path, `${home}/relative.txt`)
  assert.equal(await sandbox.files.read('~/relative.txt'), 'r')
  await assert.rejects(sandbox.files.read('~root/x'), SandboxError)
})

test('another user', async () => {
  const path = `${dir}/of-root`
  await sandbox.files.write(path, 'x', { user: 'root' })
  assert.equal((await sandbox.files.getInfo(path)).owner, 'root')
  await assert.rejects(sandbox.files.write(path, 'x', { user: 'nobody-here' }), AuthenticationError)
})

test('what is not there', async () => {
  await assert.rejects(sandbox.files.read(`${dir}/missing`), (err) => {
    assert.ok(err instanceof FileNotFoundError, `${err}`)
    assert.match(err.message, /path '.*\/missing' does not exist/)
    return true
  })
  await assert.rejects(sandbox.files.read(`${dir}/missing`, { format: 'stream' }), FileNotFoundError)
  await assert.rejects(sandbox.files.getInfo(`${dir}/missing`), FileNotFoundError)
  await assert.rejects(sandbox.files.list(`${dir}/missing`), FileNotFoundError)
  await assert.rejects(sandbox.files.rename(`${dir}/missing`, `${dir}/there`), FileNotFoundError)
  assert.equal(await sandbox.files.exists(`${dir}/missing`), false)
  await sandbox.files.remove(`${dir}/missing`)
})

test('directories taken for files, and files for directories', async () => {
  await sandbox.files.write(`${dir}/file`, 'x')
  await assert.rejects(sandbox.files.read(dir), InvalidArgumentError)
  await assert.rejects(sandbox.files.write(dir, 'x'), InvalidArgumentError)
  await assert.rejects(sandbox.files.list(`${dir}/file`), InvalidArgumentError)
  await assert.rejects(sandbox.files.makeDir(`${dir}/file`), InvalidArgumentError)
})

test('makeDir says whether it made one', async () => {
  assert.equal(await sandbox.files.makeDir(`${dir}/new/deep`), true)
  assert.equal(await sandbox.files.makeDir(`${dir}/new/deep`), false)
  const info = await sandbox.files.getInfo(`${dir}/new/deep`)
  assert.deepEqual([info.type, info.owner, info.mode], [FileType.DIR, 'user', 0o755])
})

test('lists, to a depth', async () => {
  await sandbox.files.writeFiles(['file1', 'subdir1/a', 'subdir1/deep/b', 'subdir2/c'].map((p) => ({ path: `${dir}/${p}`, data: p })))
  const names = async (opts) => (await sandbox.files.list(dir, opts)).map((e) => e.path.slice(dir.length + 1))
  assert.deepEqual(await names(), ['file1', 'subdir1', 'subdir2'])
  assert.deepEqual(await names({ depth: 2 }), ['file1', 'subdir1', 'subdir1/a', 'subdir1/deep', 'subdir2', 'subdir2/c'])
  assert.deepEqual(await names({ depth: 3 }), ['file1', 'subdir1', 'subdir1/a', 'subdir1/deep', 'subdir1/deep/b', 'subdir2', 'subdir2/c'])
  await assert.rejects(sandbox.files.list(dir, { depth: 0 }), InvalidArgumentError)
})

test('all that is known of an entry', async () => {
  await sandbox.files.write(`${dir}/script`, '12345')
  await sandbox.commands.run(`chmod 750 ${dir}/script && ln -s script ${dir}/link && ln -s nowhere ${dir}/broken`)
  const info = await sandbox.files.getInfo(`${dir}/script`)
  assert.deepEqual(
    [info.name, info.type, info.path, info.size, info.mode, info.permissions, info.owner, info.group, info.symlinkTarget],
    ['script', FileType.FILE, `${dir}/script`, 5, 0o750, '-rwxr-x---', 'user', 'user', undefined],
  )
  assert.ok(Math.abs(info.modifiedTime.getTime() - Date.now()) < 60_000)
  const link = await sandbox.files.getInfo(`${dir}/link`)
  assert.deepEqual([link.type, link.symlinkTarget, link.mode], [FileType.FILE, `${dir}/script`, 0o750])
  assert.match(link.permissions, /^L/)
  const folder = await sandbox.files.getInfo(dir)
  assert.deepEqual([folder.type, folder.permissions], [FileType.DIR, 'drwxr-xr-x'])
  const listed = await sandbox.files.list(dir)
  assert.deepEqual(listed.map((e) => e.name), ['link', 'script']) // a broken link has no type and is dropped
})

test('rename and remove', async () => {
  await sandbox.files.write(`${dir}/old`, 'content')
  const info = await sandbox.files.rename(`${dir}/old`, `${dir}/to/new`)
  assert.deepEqual([info.name, info.path, info.type], ['new', `${dir}/to/new`, FileType.FILE])
  assert.equal(await sandbox.files.exists(`${dir}/old`), false)
  assert.equal(await sandbox.files.exists(`${dir}/to/new`), true)
  assert.equal(await sandbox.files.read(`${dir}/to/new`), 'content')
  await sandbox.files.remove(`${dir}/to`)
  assert.equal(await sandbox.files.exists(`${dir}/to`), false)
})

test('metadata', async () => {
  const path = `${dir}/described`
  const written = await sandbox.files.write(path, 'x', { metadata: { Origin: 'upload', note: 'a b;c' } })
  const want = { origin: 'upload', note: 'a b;c' }
  assert.deepEqual({ ...written.metadata }, want)
  assert.deepEqual({ ...(await sandbox.files.getInfo(path)).metadata }, want)
  const listed = (await sandbox.files.list(dir)).find((e) => e.name === 'described')
  assert.deepEqual({ ...listed.metadata }, want)
  const moved = await sandbox.files.rename(path, `${dir}/moved`)
  assert.deepEqual({ ...moved.metadata }, want)
  // Each upload brings its own whole set; none clears it.
  await sandbox.files.write(`${dir}/moved`, stream(Buffer.from('y')), { metadata: { other: '1' } })
  assert.deepEqual({ ...(await sandbox.files.getInfo(`${dir}/moved`)).metadata }, { other: '1' })
  await sandbox.files.write(`${dir}/moved`, 'z')
  assert.equal((await sandbox.files.getInfo(`${dir}/moved`)).metadata, undefined)
})

test('64 MiB up and down, as streams', async () => {
  const data = randomBytes(64 << 20)
  await sandbox.files.write(`${dir}/large`, stream(data))
  let at = 0
  for await (const piece of await sandbox.files.read(`${dir}/large`, { format: 'stream' })) {
    assert.ok(data.subarray(at, at + piece.length).equals(piece), `at ${at}`)
    at += piece.length
  }
  assert.equal(at, data.length)
  await sandbox.files.remove(`${dir}/large`)
})

test('a stream that is not read to its end', async () => {
  await sandbox.files.write(`${dir}/some`, 'x'.repeat(5_000_000))
  const readable = await sandbox.files.read(`${dir}/some`, { format: 'stream' })
  const reader = readable.getReader()
  assert.equal((await reader.read()).done, false)
  await reader.cancel()
  assert.equal(await sandbox.files.exists(`${dir}/some`), true)
})
