// A conversation over a network that is cut before every frame, and before every two of them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Bench, FakeServer } from './fake.mjs';
import { directName } from '../dist/index.js';

const CONVO = directName('alice', 'bob');
const STEPS_MAX = 2_000;

/** What happens at which frame, besides the cuts. */
const SCRIPT = new Map([
  [2, (run) => run.write('1')],
  [3, (run) => run.server.write('bob', 'alice', 'a')],
  [4, (run) => run.write('2')],
  [6, (run) => { run.write('3'); run.server.write('bob', 'alice', 'b'); }],
  [8, (run) => { run.server.write('bob', 'alice', 'c'); run.write('4'); }],
  [11, (run) => run.server.write('bob', 'alice', 'd')],
]);

class Run {
  server = new FakeServer();
  bench;
  toServer = [];
  step = 0;

  constructor(cuts, { restarts = false, forgotten = [] } = {}) {
    this.cuts = cuts;
    this.restarts = restarts;
    for (const body of forgotten) this.server.forgotten.add(body);
    this.written = [];
    this.heard = [];
    this.startBench();
  }

  startBench(snapshot) {
    this.bench = new Bench({}, { snapshot });
    this.bench.connect();
    this.attended = 0;
    this.attend();
  }

  write(id) {
    this.written.push(id);
    this.bench.send(id);
  }

  /** Carries the core's wishes to the network. */
  attend() {
    const { bench, server } = this;
    for (; this.attended < bench.told.length; this.attended += 1) {
      const { is, message } = bench.told[this.attended];
      if (is === 'message') this.heard.push(message);
    }
    if (bench.opened.length > 0) {
      bench.opened = [];
      server.connected();
    }
    this.toServer.push(...bench.said);
    bench.said = [];
  }

  cut() {
    this.server.disconnected();
    this.toServer = [];
    if (!this.restarts) {
      this.bench.close(1006);
      return;
    }
    this.startBench(this.bench.core.snapshot);
  }

  play() {
    while (this.step < STEPS_MAX) {
      this.attend();
      SCRIPT.get(this.step)?.(this);
      this.attend();
      const frame = this.toServer.shift() ?? this.server.frames.shift();
      if (frame === undefined) {
        if (this.isAtRest) return this;
        this.bench.pass(Math.max(1, (this.bench.core.deadline ?? Infinity) - this.bench.now));
        if (!this.bench.core.deadline) throw new Error('nothing is to come');
        if (!SCRIPT.has(this.step)) continue;
      }
      this.step += 1;
      if (frame === undefined) continue;
      if (this.cuts.includes(this.step)) this.cut();
      else if (typeof frame === 'string') this.bench.hear(frame);
      else this.server.hear(JSON.stringify(frame));
    }
    throw new Error(`no rest after ${STEPS_MAX} frames`);
  }

  get isAtRest() {
    const head = this.server.log(CONVO).length;
    return this.step > Math.max(...SCRIPT.keys()) && this.bench.core.outbox.size === 0
      && this.server.cursors.get(CONVO) === head;
  }

  check() {
    const log = this.server.log(CONVO);
    const own = log.filter(({ from }) => from === 'alice').map(({ id }) => id);
    const others = log.filter(({ from }) => from === 'bob').map(({ body }) => body);
    const heard = this.heard.filter(({ from }) => from === 'bob').map(({ body }) => body);
    const what = `cuts before ${this.cuts}`;
    assert.deepEqual(own, this.written, `${what}: sends, once and in order`);
    assert.deepEqual(heard, others, `${what}: messages, once and in order`);
    assert.equal(others.length, 4);
  }
}

/** Every cut, and every two; returns how many runs that were. */
function playAll(options) {
  const frames = new Run([], options).play();
  frames.check();
  const last = frames.step + 12;
  let count = 0;
  for (let first = 1; first <= last; first += 1) {
    for (let second = first; second <= last; second += 1) {
      new Run([first, second], options).play().check();
      count += 1;
    }
  }
  return count;
}

test('nothing is lost, repeated or reordered', () => {
  const count = playAll({});
  assert.ok(count > 300, `${count} runs`);
});

test('also when pushes are missing', () => {
  const options = { forgotten: ['b', 'c'] };
  assert.equal(new Run([], options).play().server.forgotten.size, 0, 'both were left out');
  playAll(options);
});

test('also when the program ends and begins again with its storage', () => {
  playAll({ restarts: true });
});

test('the check itself finds clients that forget', () => {
  const forgetful = {
    outbox: (core) => { for (const { id } of core.outbox.list()) core.outbox.take(id); },
    places: (core) => core.places.clear(),
  };
  for (const [name, forget] of Object.entries(forgetful)) {
    let found = 0;
    for (let at = 1; at <= 20; at += 1) {
      const run = new Run([at]);
      run.cut = function cut() {
        forget(this.bench.core);
        Run.prototype.cut.call(this);
      };
      try {
        run.play().check();
      } catch {
        found += 1;
      }
    }
    assert.ok(found > 0, `a forgotten ${name} was not found`);
  }
});
