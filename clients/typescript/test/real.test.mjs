// The package against a real `aldis up`: ALDIS is the binary, else target/release/aldis.
// Node 20 and 21 have a WebSocket behind --experimental-websocket.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { request } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { AldisError, Client, directName, groupChange } from '../dist/index.js';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');
const BINARY = process.env.ALDIS ?? path.join(ROOT, 'target/release/aldis');
const READY_MS_MAX = 60_000;
const PATIENCE_MS = 30_000;

let aldis;
let folder;
let address;
const clients = [];

before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'aldis-sdk-'));
  address = `127.0.0.1:${await freePort()}`;
  const flags = ['up', '--shards', '1', '--log', 'warn', '--listen', address];
  aldis = spawn(BINARY, [...flags, '--data', path.join(folder, 'data')]);
  let output = '';
  for (const stream of [aldis.stdout, aldis.stderr]) {
    stream.on('data', (chunk) => { output += chunk; });
  }
  const isReady = () => /^\W*ready\b/m.test(output);
  await until(() => `ready: ${output}`, isReady, READY_MS_MAX);
});

after(async () => {
  for (const client of clients) client.disconnect();
  if (aldis.exitCode === null) {
    const ended = once(aldis, 'exit');
    aldis.kill('SIGTERM');
    await ended;
  }
  await rm(folder, { recursive: true, force: true });
});

/** A client that keeps what it hears in `messages`. */
async function client(user, device, more = {}) {
  const url = `ws://${address}/v1/connect`;
  const made = await Client.create({ url, user, device, ...more });
  clients.push(made);
  made.messages = [];
  made.warnings = [];
  made.on('message', (message) => made.messages.push(message));
  made.on('warning', (text) => made.warnings.push(text));
  return made;
}

async function online(user, device, more) {
  const made = await client(user, device, more);
  made.connect();
  await hears(made, 'synced');
  return made;
}

/** The next event of that name for which `is` holds. */
function hears(client, name, is = () => true) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`no ${name} in time`)), PATIENCE_MS);
    const stop = client.on(name, (event) => {
      if (!is(event)) return;
      clearTimeout(late);
      stop();
      resolve(event);
    });
  });
}

const bodies = ({ messages }) => messages.map(({ body }) => body);

describe('two people', () => {
  test('chat: sent, message, receipts, history, list', async () => {
    const [ann, ben] = [await online('ann', 'a1'), await online('ben', 'b1')];
    const delivered = hears(ann, 'receipt', ({ kind }) => kind === 'delivered');
    const { sent } = ann.send({ to: 'ben', body: 'hello' });
    const { convo, seq, dup } = await sent;
    assert.deepEqual({ convo, seq, dup }, { convo: directName('ann', 'ben'), seq: 1, dup: false });
    assert.equal((await delivered).by, 'ben');
    assert.deepEqual(bodies(ben), ['hello']);
    const read = hears(ann, 'receipt', ({ kind }) => kind === 'read');
    ben.markRead(convo);
    assert.equal((await read).seq, 1);
    await ben.send({ convo, body64: 'AP8=' }).sent;
    await until('the bytes', () => ann.messages.length === 1);
    assert.equal(ann.messages[0].body64, 'AP8=');
    const page = await ann.history(convo, { limit: 1 });
    assert.deepEqual([page.msgs.map((message) => message.seq), page.more], [[2], true]);
    const [listed] = await ann.allConvos();
    assert.deepEqual([listed.convo, listed.head, listed.unread], [convo, 2, 1]);
    assert.ok((await ann.ping()).ts > 0);
    for (const { warnings } of [ann, ben]) assert.deepEqual(warnings, []);
  });

  test('written offline: goes out in order, also after a restart of the program', async () => {
    let kept;
    const storage = { load: () => kept, save: (snapshot) => { kept = structuredClone(snapshot); } };
    const written = Array.from({ length: 300 }, (_, index) => `number ${index}`);
    const first = await client('cat', 'c1', { storage });
    for (const body of written.slice(0, 150)) first.send({ to: 'dan', body });
    first.flush();
    const next = await client('cat', 'c1', { storage });
    for (const body of written.slice(150)) next.send({ to: 'dan', body });
    next.connect();
    const dan = await online('dan', 'd1');
    await until('all are there', () => dan.messages.length === written.length);
    assert.deepEqual(bodies(dan), written);
    assert.deepEqual(dan.messages.map(({ seq }) => seq), written.map((_, index) => index + 1));
    await until('all are answered', () => next.outbox.length === 0);
  });

  test('devices: each hears the others; watermarks outlive the program', async () => {
    let kept;
    const storage = { load: () => kept, save: (snapshot) => { kept = structuredClone(snapshot); } };
    const eve = await online('eve', 'e1');
    const other = await online('eve', 'e2', { storage });
    const fay = await online('fay', 'f1');
    await eve.send({ to: 'fay', body: 'from one' }).sent;
    await fay.send({ to: 'eve', body: 'and back' }).sent;
    await until('both', () => other.messages.length === 2 && eve.messages.length === 1);
    await until('it is kept', () => kept?.watermarks[directName('eve', 'fay')] === 2);
    other.disconnect();
    await fay.send({ to: 'eve', body: 'later' }).sent;
    const again = await online('eve', 'e2', { storage });
    await until('the later one', () => again.messages.length === 1);
    assert.deepEqual(bodies(again), ['later']);
  });

  test('replaced: the first one stays away', async () => {
    const one = await online('gus', 'same');
    const ends = hears(one, 'state', ({ state }) => state === 'DISCONNECTED');
    const two = await online('gus', 'same');
    assert.equal((await ends).reason, 'replaced');
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    assert.deepEqual([one.state, two.state], ['DISCONNECTED', 'CONNECTED']);
  });
});

test('a group: made, changed, left; refusals name their reason', async () => {
  const [ann, ben] = [await online('owner', 'a'), await online('second', 'b')];
  const made = await ann.createGroup('crew', ['second']);
  assert.deepEqual([made.owner, made.members], ['owner', ['owner', 'second']]);
  await ann.setRole('crew', ['second'], 'admin');
  await ben.addMembers('crew', ['third']);
  const third = await online('third', 'c');
  await until('it is told', () => third.messages.length >= 1);
  const told = hears(ann, 'receipt', ({ count, of }) => count === 2 && of === 2);
  await ann.send({ convo: 'crew', body: 'all' }).sent;
  await told;
  await ben.removeMembers('crew', ['third']);
  await until('four changes', () => ben.messages.filter(groupChange).length === 4);
  assert.deepEqual(ben.messages.map((message) => groupChange(message)?.op), [
    'create', 'role', 'add', undefined, 'remove',
  ]);
  const left = await ann.leaveGroup('crew');
  assert.equal(left.owner, 'second');
  assert.deepEqual((await ben.groupInfo('crew')).members, ['second']);
  await assert.rejects(ann.groupInfo('crew'), (error) => (
    error instanceof AldisError && error.code === 'not_member'
  ));
  await assert.rejects(ann.send({ convo: 'crew', body: 'x' }).sent, { code: 'not_member' });
  const body = 'x'.repeat(70_000);
  await assert.rejects(ann.send({ to: 'ben', body }).sent, { code: 'too_large' });
});

test('what this server knows of the protocol is answered, the rest unknown', async () => {
  const ann = await online('asks', 'a');
  const questions = [
    ann.devices(), ann.setPrivacy('everyone'), ann.createChannel('news'),
    ann.subscribeChannel('news'), ann.setExpiry(directName('asks', 'asks'), 0),
  ];
  for (const outcome of await Promise.allSettled(questions)) {
    const { code } = outcome.reason ?? {};
    const isNamed = ['unknown_op', 'no_such_convo', 'forbidden', undefined].includes(code);
    assert.ok(isNamed, String(outcome.reason));
  }
  ann.watchPresence(['ben']);
  ann.typing(directName('asks', 'asks'));
  await ann.ping();
  assert.deepEqual(ann.warnings, []);
});

test('every process is killed under load: nothing lost, repeated or reordered', async () => {
  const ann = await online('kill-a', 'a', { sendWindow: 1 });
  const ben = await online('kill-b', 'b');
  const written = [];
  const timer = setInterval(() => {
    written.push(`number ${written.length}`);
    ann.send({ to: 'kill-b', body: written.at(-1) });
  }, 10);
  for (const child of ['edge', 'sequencer', 'store', 'edge']) {
    await new Promise((resolve) => setTimeout(resolve, 700));
    await kill(child);
    await hears(ann, 'sent');
  }
  clearInterval(timer);
  await until('all are answered', () => ann.outbox.length === 0, 60_000);
  await until('all are there', () => ben.messages.length >= written.length, 60_000);
  // With one under way at a time the order holds also when one was answered `unavailable`.
  assert.deepEqual(bodies(ben), written);
  const seqs = ben.messages.map(({ seq }) => seq);
  assert.deepEqual(seqs, written.map((_, index) => index + 1));
  assert.ok(written.length > 100, `${written.length} messages`);
});

test('the example of the README runs', async () => {
  const example = path.join(ROOT, 'clients/typescript/example.mjs');
  const flags = process.execArgv.filter((flag) => flag.includes('websocket'));
  const child = spawn(process.execPath, [...flags, example, `ws://${address}/v1/connect`]);
  let output = '';
  child.stdout.on('data', (chunk) => { output += chunk; });
  child.stderr.on('data', (chunk) => { output += chunk; });
  const [status] = await once(child, 'exit');
  assert.equal(status, 0, output);
  assert.match(output, /alice: hello bob/);
});

async function until(what, condition, patience_ms = PATIENCE_MS) {
  const end = Date.now() + patience_ms;
  while (!condition()) {
    if (Date.now() > end) {
      throw new Error(`in vain: ${typeof what === 'function' ? what() : what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** As the page's kill buttons do it. */
function kill(child) {
  const [host, port] = address.split(':');
  const headers = { 'X-Aldis-Dev': '1', Origin: `http://${address}` };
  return new Promise((resolve) => {
    const asked = request({ host, port, path: `/dev/kill/${child}`, method: 'POST', headers });
    asked.on('response', (answer) => { answer.resume(); resolve(); });
    // The edge may die of it before it answers.
    asked.on('error', resolve);
    asked.end();
  });
}

async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const isFree = await new Promise((resolve) => {
      const probe = createServer();
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}
