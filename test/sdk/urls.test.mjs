// A secured sandbox: what the token opens, and the signed URLs that need none.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { AuthenticationError, Sandbox } from 'e2b'
import { endpoint, init } from './support.mjs'

const TOKEN = '0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0'

let sandbox, home
before(async () => {
  await init({ accessToken: TOKEN })
  sandbox = new Sandbox({ sandboxId: 'debug_sandbox_id', envdVersion: '0.6.13', envdAccessToken: TOKEN })
  home = (await sandbox.commands.run('echo -n "$HOME"')).stdout
})
after(async () => {
  await init({}, TOKEN) // an authorised update without a token removes it
  const open = await Sandbox.create()
  assert.equal((await open.commands.run('echo open')).stdout, 'open\n')
})

// refused is what a URL without a right answers.
async function refused(url, message, opts) {
  const response = await fetch(url, opts)
  const body = await response.json()
  assert.deepEqual([response.status, body], [401, { code: 401, message }])
}

const form = (text) => {
  const body = new FormData()
  body.append('file', new Blob([text]), 'hello.txt')
  return { method: 'POST', body }
}

test('without the token nothing is open but the health', async () => {
  const stranger = await Sandbox.create()
  assert.equal(await stranger.isRunning(), true)
  await assert.rejects(stranger.commands.run('true'), AuthenticationError)
  await assert.rejects(stranger.files.list('/'), AuthenticationError)
  await assert.rejects(stranger.files.read('/etc/hostname'), AuthenticationError)
  await assert.rejects(stranger.files.write('x', 'x'), AuthenticationError)
  const other = new Sandbox({ sandboxId: 'debug_sandbox_id', envdVersion: '0.6.13', envdAccessToken: 'wrong' })
  await assert.rejects(other.commands.run('true'), AuthenticationError)
  await assert.rejects(other.files.read('/etc/hostname'), AuthenticationError)
})

test('upload and download by URL', async () => {
  const upload = await sandbox.uploadUrl('hello.txt')
  assert.match(upload, /signature=v1_/)
  const response = await fetch(upload, form('hello'))
  assert.equal(response.status, 200)
  assert.deepEqual(await response.json(), [{ name: 'hello.txt', path: `${home}/hello.txt`, type: 'file' }])
  assert.equal(await sandbox.files.read('hello.txt'), 'hello')
  const download = await fetch(await sandbox.downloadUrl('hello.txt'))
  assert.equal(download.status, 200)
  assert.equal(await download.text(), 'hello')
})

test('an upload URL without a path takes the name of the part', async () => {
  const response = await fetch(await sandbox.uploadUrl(), form('unnamed'))
  assert.equal(response.status, 200, await response.clone().text())
  assert.equal(await sandbox.files.read('hello.txt'), 'unnamed')
})

test('with a user and an expiration', async () => {
  const upload = await sandbox.uploadUrl('/root/signed.txt', { user: 'root', useSignatureExpiration: 120 })
  assert.match(upload, /signature_expiration=\d+/)
  assert.equal((await fetch(upload, form('of root'))).status, 200)
  const info = await sandbox.files.getInfo('/root/signed.txt', { user: 'root' })
  assert.equal(info.owner, 'root')
  const download = await fetch(await sandbox.downloadUrl('/root/signed.txt', { user: 'root', useSignatureExpiration: 120 }))
  assert.equal(await download.text(), 'of root')
  await sandbox.files.remove('/root/signed.txt', { user: 'root' })
})

test('names that a URL has to escape', async () => {
  const name = 'ä ö+&?%41 #.txt'
  assert.equal((await fetch(await sandbox.uploadUrl(name), form('odd'))).status, 200)
  assert.equal(await (await fetch(await sandbox.downloadUrl(name))).text(), 'odd')
})

test('a signature that is over', async () => {
  const url = await sandbox.downloadUrl('hello.txt', { useSignatureExpiration: -10 })
  await refused(url, 'signature is already expired')
  await refused(await sandbox.uploadUrl('hello.txt', { useSignatureExpiration: -10 }), 'signature is already expired', form('x'))
})

test('a signature of something else', async () => {
  const change = (url, key, value) => {
    const changed = new URL(url)
    if (value === undefined) changed.searchParams.delete(key)
    else changed.searchParams.set(key, value)
    return changed
  }
  const url = await sandbox.downloadUrl('hello.txt', { useSignatureExpiration: 120 })
  await refused(change(url, 'path', 'other.txt'), 'invalid signature')
  await refused(change(url, 'username', 'root'), 'invalid signature')
  await refused(change(url, 'signature_expiration', '99999999999'), 'invalid signature')
  await refused(change(url, 'signature_expiration', undefined), 'invalid signature')
  await refused(change(url, 'signature', 'v1_x'), 'invalid signature')
  await refused(change(url, 'signature', undefined), 'missing signature query parameter')
  await refused(url, 'invalid signature', form('a read signature is none to write'))
})

test('a wrong token is not helped by a right signature', async () => {
  const url = await sandbox.downloadUrl('hello.txt')
  await refused(url, 'access token present in header but does not match', { headers: { 'X-Access-Token': 'wrong' } })
})

test('nobody without the token can tell the daemon who it is', async () => {
  const response = await fetch(`${endpoint}/init`, { method: 'POST', body: JSON.stringify({ accessToken: 'mine' }) })
  assert.equal(response.status, 401)
  assert.equal((await sandbox.commands.run('echo still')).stdout, 'still\n')
})
