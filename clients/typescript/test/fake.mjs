// A server for tests, in memory: dedup, places, cursors and backlog as the protocol has them. And a
// network between it and a core, in virtual time, that can be cut before any frame.

import { Core, directName } from '../dist/index.js';

const HEARTBEAT_MS = 30_000;

export class FakeServer {
  /** The log by conversation, and how far alice's device has acknowledged. */
  logs = new Map();
  cursors = new Map();
  midCount = 0;
  /** Bodies that are left out once when pushed live, so that a gap opens. */
  forgotten = new Set();
  frames = [];
  isOpen = false;

  /** Somebody else writes; alice hears it when she is connected. */
  write(from, to, body) {
    const { message } = this.append(directName(from, to), from, `${from}-${this.midCount}`, body);
    if (!this.isOpen || this.forgotten.delete(body)) return;
    this.say({ t: 'msg', ...message });
  }

  append(convo, from, id, body) {
    const log = this.log(convo);
    const first = log.find((message) => message.from === from && message.id === id);
    if (first) return { message: first, dup: true };
    this.midCount += 1;
    const message = {
      convo, seq: log.length + 1, mid: String(this.midCount), from, id, ts: this.midCount, body,
    };
    log.push(message);
    return { message, dup: false };
  }

  log(convo) {
    if (!this.logs.has(convo)) this.logs.set(convo, []);
    return this.logs.get(convo);
  }

  connected() {
    this.isOpen = true;
    this.frames = [];
    this.say({
      t: 'welcome', user: 'alice', device: 'd', session: 's', heartbeat_ms: HEARTBEAT_MS,
      ticket: 'ticket', server: 'e',
    });
    this.catchUp(undefined, (convo) => this.cursors.get(convo) ?? 0);
  }

  catchUp(ref, from) {
    const heads = {};
    for (const [convo, log] of this.logs) {
      const behind = log.filter(({ seq }) => seq > from(convo));
      for (const message of behind) this.say({ t: 'msg', ...message });
      if (behind.length > 0) heads[convo] = log.length;
    }
    this.say({ t: 'synced', ...(ref !== undefined && { ref }), convos: heads });
  }

  disconnected() {
    this.isOpen = false;
    this.frames = [];
  }

  hear(text) {
    const operation = JSON.parse(text);
    const { ref } = operation;
    switch (operation.t) {
      case 'send': {
        const convo = operation.convo ?? directName('alice', operation.to);
        const { message, dup } = this.append(convo, 'alice', operation.id, operation.body);
        const { seq, mid, ts, id } = message;
        return this.say({ t: 'sent', convo, id, seq, mid, ts, dup });
      }
      case 'ack': {
        const head = this.log(operation.convo).length;
        if (operation.seq > head) throw new Error(`acknowledged ${operation.seq} of ${head}`);
        const before = this.cursors.get(operation.convo) ?? 0;
        this.cursors.set(operation.convo, Math.max(before, operation.seq));
        return undefined;
      }
      case 'sync': return this.catchUp(ref, (convo) => operation.convos[convo] ?? Infinity);
      case 'ping': return this.say({ t: 'pong', ...(ref !== undefined && { ref }), ts: 1 });
      default: {
        const message = 'not here';
        return this.say({ t: 'error', ref, code: 'unknown_op', message });
      }
    }
  }

  say(frame) {
    this.frames.push(JSON.stringify(frame));
  }
}

/** A core and what is done with its effects. `log` holds all that it told. */
export class Bench {
  now = 1_000;
  told = [];
  opened = [];
  said = [];
  closings = [];
  saves = 0;
  connection = 0;

  constructor(options = {}, { random = () => 0.5, snapshot } = {}) {
    const all = { url: 'ws://x/v1/connect', user: 'alice', device: 'd', ...options };
    this.core = new Core(all, random, snapshot);
  }

  run() {
    for (let effect = this.core.next(); effect; effect = this.core.next()) {
      switch (effect.do) {
        case 'open':
          this.opened.push(effect);
          this.connection = effect.connection;
          break;
        case 'get_token': this.connection = effect.connection; this.isAsked = true; break;
        case 'say': this.said.push(JSON.parse(effect.text)); break;
        case 'close': this.closings.push(effect.code); break;
        case 'save': this.saves += 1; break;
        case 'tell': this.told.push(effect.happening); break;
        default: throw new Error(effect.do);
      }
    }
    return this;
  }

  connect() {
    this.core.connect(this.now);
    return this.run();
  }

  hear(frame, connection = this.connection) {
    const data = typeof frame === 'object' ? JSON.stringify(frame) : frame;
    this.core.heard(this.now, connection, data);
    return this.run();
  }

  welcome(more = {}) {
    return this.hear({
      t: 'welcome', user: 'alice', device: 'd', session: 's', heartbeat_ms: HEARTBEAT_MS,
      ticket: 'ticket', server: 'e', ...more,
    });
  }

  online(options) {
    return this.connect().welcome(options);
  }

  close(code = 1006) {
    this.core.closed(this.now, this.connection, code);
    return this.run();
  }

  /** Lets time pass, and timers ring at their time. */
  pass(ms) {
    const end = this.now + ms;
    while (this.core.deadline !== undefined && this.core.deadline <= end) {
      this.now = Math.max(this.now, this.core.deadline);
      this.core.tick(this.now);
      this.run();
    }
    this.now = end;
    return this;
  }

  send(id, to = 'bob') {
    this.core.send({ id, to, body: id, ts: this.now });
    return this.run();
  }

  msg(seq, more = {}) {
    return this.hear({
      t: 'msg', convo: 'dm:alice:bob', seq, mid: String(seq), from: 'bob', id: `b${seq}`, ts: seq,
      body: `text ${seq}`, ...more,
    });
  }

  sent(id, seq, more = {}) {
    return this.hear({
      t: 'sent', convo: 'dm:alice:bob', id, seq, mid: String(seq), ts: seq, dup: false, ...more,
    });
  }

  seqs() {
    return this.all('message').map(({ message }) => message.seq);
  }

  all(is) {
    return this.told.filter((happening) => happening.is === is);
  }

  states() {
    return this.all('state').map(({ state, reason }) => (reason ? `${state} ${reason}` : state));
  }

  /** What was said since the last call. */
  take(t) {
    const taken = this.said.filter((operation) => operation.t === t);
    this.said = this.said.filter((operation) => operation.t !== t);
    return taken;
  }
}
