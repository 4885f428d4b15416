// The page of Aldis: two real clients of /v1/connect, and a witness that compares what one was told
// with what the other received. No framework, no build step.
//
// `Places` remembers which places of the conversation a client knows, `Client` speaks the protocol,
// `Witness` counts broken promises, `Pane` draws. Only `Pane` and the last section touch the page.
'use strict';

const SUBPROTOCOL = 'aldis.v1.json';
const RECONNECT_MS_MIN = 250;
const RECONNECT_MS_MAX = 10_000;
/** A browser neither sends nor sees WebSocket pings: after this much silence it asks. */
const SILENCE_MS = 15_000;
const ANSWER_MS = 10_000;
/** A place missing for longer than this is asked for: `sent` and `msg` may cross for a moment. */
const GAP_MS = 1_500;
const ACKNOWLEDGE_MS = 40;
const READ_MS = 450;
/** What the other side, online and synced, has not received after this counts as lost. */
const LOST_MS = 10_000;
const BUBBLES_MAX = 200;
const LATENCIES_MAX = 500;

/** `dm:<a>:<b>`: ids in order of their bytes, `:` and `%` percent-encoded. */
function directName(one, other) {
  const encode = (id) => id.replaceAll('%', '%25').replaceAll(':', '%3A');
  const bytes = (id) => [...new TextEncoder().encode(id)];
  const [a, b] = [bytes(one), bytes(other)];
  let at = 0;
  while (at < a.length && at < b.length && a[at] === b[at]) at += 1;
  const oneIsFirst = at === a.length || (at < b.length && a[at] < b[at]);
  const [first, second] = oneIsFirst ? [one, other] : [other, one];
  return `dm:${encode(first)}:${encode(second)}`;
}

function randomHex(size) {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * The places (seqs) of one conversation that a client knows. `settled` is the last one up to which
 * none is missing: that far it may acknowledge. Only what the server pushed says where that run
 * begins, since before the first push something older may still be on its way.
 */
class Places {
  constructor() {
    this.midOf = new Map();
    this.base = null;
    this.settled = 0;
    this.highest = 0;
  }

  /** `new`, `repeat`, or `conflict` when another message is known in that place. */
  add(seq, mid, wasPushed) {
    const known = this.midOf.get(seq);
    if (known !== undefined && known !== mid) return 'conflict';
    this.midOf.set(seq, mid);
    this.highest = Math.max(this.highest, seq);
    if ((wasPushed || seq === 1) && (this.base === null || seq - 1 < this.base)) {
      this.base = seq - 1;
      this.settled = this.base;
    }
    this.advance();
    return known === undefined ? 'new' : 'repeat';
  }

  /** After `synced`: whatever did not come up to the head is not there for this member. */
  skipTo(head) {
    if (this.base === null) this.base = head;
    this.settled = Math.max(this.settled, head);
    this.highest = Math.max(this.highest, head);
    this.advance();
  }

  get hasGap() {
    return this.base !== null && this.settled < this.highest;
  }

  advance() {
    while (this.base !== null && this.midOf.has(this.settled + 1)) this.settled += 1;
  }
}

/** One device of one user, in its direct conversation with one other. */
class Client {
  /** `events`: state(), arrived(message), answered(entry), moved(), mayRead(). */
  constructor({ user, peer, device, events, witness }) {
    Object.assign(this, { user, peer, device, events, witness });
    this.convo = directName(user, peer);
    // A reloaded page counts from 1 again: its ids must not be those of the page before it.
    this.idPrefix = `${device}-${randomHex(4)}-`;
    this.excused = new Set();
    this.places = new Places();
    this.unanswered = new Map();
    this.peerDelivered = 0;
    this.peerRead = 0;
    this.written = 0;
    this.wanted = false;
    this.state = 'offline';
    this.attempt = 0;
    this.ticket = null;
    this.syncedAt = null;
    this.wasWelcomed = false;
    this.timers = {};
  }

  goOnline() {
    this.wanted = true;
    this.attempt = 0;
    clearTimeout(this.timers.reconnect);
    if (!this.socket) this.connect();
  }

  goOffline() {
    this.wanted = false;
    clearTimeout(this.timers.reconnect);
    const socket = this.socket;
    this.drop();
    if (socket) socket.close(1000);
    this.become('offline');
  }

  /** Writes a message; it is kept, and sent again with the same id, until it is answered. */
  send(text) {
    this.written += 1;
    const id = `${this.idPrefix}${this.written}`;
    const entry = { id, text, state: 'waiting', ts: Date.now(), writtenAt: performance.now() };
    this.unanswered.set(id, entry);
    if (this.isWelcomed && !this.isHolding) this.transmit(entry);
    return entry;
  }

  /** Something became readable, or the page came to the front. */
  acknowledgeSoon() {
    if (this.timers.acknowledge) return;
    this.timers.acknowledge = setTimeout(() => {
      this.timers.acknowledge = null;
      this.acknowledge('delivered');
    }, ACKNOWLEDGE_MS);
    this.readSoon();
  }

  readSoon() {
    if (this.timers.read) return;
    this.timers.read = setTimeout(() => {
      this.timers.read = null;
      if (this.events.mayRead()) this.acknowledge('read');
    }, READ_MS);
  }

  connect() {
    const query = this.ticket
      ? { ticket: this.ticket }
      : { user: this.user, device: this.device };
    const parameters = Object.entries(query).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const address = `${scheme}://${location.host}/v1/connect?${parameters.join('&')}`;
    const socket = new WebSocket(address, [SUBPROTOCOL]);
    this.socket = socket;
    this.become('connecting');
    this.watchSilence();
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.heardAt = performance.now();
      this.hear(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.closed(event.code);
    };
  }

  closed(code) {
    // A ticket that did not lead to a welcome may have expired; the name is tried next.
    if (!this.isWelcomed) this.ticket = null;
    this.drop();
    if (code === 4001) {
      this.wanted = false;
      this.become('replaced');
    } else if (this.wanted) {
      this.reconnectLater();
    }
  }

  drop() {
    this.socket = null;
    this.isWelcomed = false;
    this.isHolding = false;
    this.syncedAt = null;
    for (const name of ['silence', 'gap', 'hold']) clearTimeout(this.timers[name]);
    this.timers.gap = null;
  }

  /** Exponential backoff with full jitter, unless the server gave this client its own time. */
  reconnectLater() {
    const ceiling = Math.min(RECONNECT_MS_MAX, RECONNECT_MS_MIN * 2 ** this.attempt);
    const delay = this.reconnectMs ?? Math.random() * ceiling;
    this.reconnectMs = null;
    this.attempt += 1;
    this.become('waiting');
    this.timers.reconnect = setTimeout(() => this.connect(), delay);
  }

  /** A connection that says nothing, not even when asked, is dead. */
  watchSilence() {
    clearTimeout(this.timers.silence);
    const socket = this.socket;
    const asked = performance.now();
    const wait = this.isWelcomed ? SILENCE_MS : ANSWER_MS + SILENCE_MS;
    this.timers.silence = setTimeout(() => {
      if (socket !== this.socket) return;
      if (this.heardAt > asked) {
        this.watchSilence();
        return;
      }
      if (this.isWelcomed) this.say({ t: 'ping' });
      const pinged = performance.now();
      this.timers.silence = setTimeout(() => {
        if (socket !== this.socket) return;
        if (this.heardAt > pinged) {
          this.watchSilence();
          return;
        }
        socket.close();
        this.closed(1006);
      }, ANSWER_MS);
    }, wait);
  }

  hear(frame) {
    switch (frame.t) {
      case 'welcome': return this.welcomed(frame);
      case 'sent': return this.answered(frame);
      case 'msg': return this.received(frame);
      case 'receipt': return this.told(frame);
      case 'synced': return this.synced(frame);
      case 'goaway': this.reconnectMs = frame.reconnect_ms ?? null; return undefined;
      case 'error': return this.refused(frame);
      default: return undefined;
    }
  }

  welcomed(frame) {
    this.ticket = frame.ticket;
    this.attempt = 0;
    this.isWelcomed = true;
    this.wasWelcomed = true;
    this.acknowledged = { delivered: 0, read: 0 };
    this.become('online');
    for (const entry of this.unanswered.values()) this.transmit(entry);
    this.acknowledgeSoon();
  }

  answered({ id, convo, seq, mid, ts }) {
    const entry = this.unanswered.get(id);
    if (convo !== this.convo) return;
    this.witness.told(this, id, seq, mid);
    if (!entry) return;
    this.unanswered.delete(id);
    this.witness.latency(performance.now() - entry.transmittedAt, entry.writtenAt);
    this.places.add(seq, mid, false);
    this.lookForGap();
    Object.assign(entry, { seq, ts, state: 'sent' });
    this.acknowledgeSoon();
    this.events.answered(entry);
  }

  received(frame) {
    if (frame.convo !== this.convo) return;
    const verdict = this.places.add(frame.seq, frame.mid, true);
    this.witness.arrived(this, frame, verdict);
    this.lookForGap();
    this.acknowledgeSoon();
    if (verdict === 'new') this.events.arrived(frame);
  }

  told({ convo, seq, kind, by }) {
    if (convo !== this.convo || by !== this.peer) return;
    this.peerDelivered = Math.max(this.peerDelivered, seq);
    if (kind === 'read') this.peerRead = Math.max(this.peerRead, seq);
    this.events.moved();
  }

  synced({ convos }) {
    this.syncedAt = performance.now();
    const head = convos[this.convo];
    if (head) this.places.skipTo(head);
    this.acknowledgeSoon();
  }

  refused({ id, code, message, retry_ms: retryMs }) {
    const entry = this.unanswered.get(id);
    if (!entry) return;
    if (code === 'unavailable' || code === 'rate_limited') {
      // Those behind it may be accepted before it: the protocol's order leaves it out.
      this.excused.add(id);
      this.hold(retryMs ?? 1_000);
      return;
    }
    this.unanswered.delete(id);
    entry.state = 'failed';
    entry.reason = `${code}: ${message}`;
    this.events.answered(entry);
  }

  /** Nothing is sent for a moment, and then all that is unanswered, in order. */
  hold(delay) {
    if (this.isHolding) return;
    this.isHolding = true;
    this.timers.hold = setTimeout(() => {
      this.isHolding = false;
      for (const entry of this.unanswered.values()) this.transmit(entry);
    }, delay);
  }

  lookForGap() {
    if (!this.places.hasGap || this.timers.gap) return;
    this.timers.gap = setTimeout(() => {
      this.timers.gap = null;
      if (!this.places.hasGap || !this.isWelcomed) return;
      this.say({ t: 'sync', convos: { [this.convo]: this.places.settled } });
      this.lookForGap();
    }, GAP_MS);
  }

  acknowledge(kind) {
    const seq = this.places.settled;
    if (!this.isWelcomed || seq <= this.acknowledged[kind]) return;
    this.acknowledged[kind] = seq;
    if (kind === 'read') this.acknowledged.delivered = Math.max(seq, this.acknowledged.delivered);
    this.say({ t: 'ack', convo: this.convo, seq, kind });
  }

  transmit(entry) {
    entry.transmittedAt ??= performance.now();
    this.say({ t: 'send', to: this.peer, id: entry.id, body: entry.text });
  }

  say(operation) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(operation));
  }

  become(state) {
    this.state = state;
    this.events.state();
  }
}

/**
 * Compares what each client was told with what the other one received. Whatever was told `sent`
 * must arrive at the other side exactly once and in order; it counts what did not.
 */
class Witness {
  constructor() {
    this.clients = [];
    this.placeOf = new Map();
    this.midAt = new Map();
    this.owed = new Map();
    this.duplicated = 0;
    this.disordered = 0;
    this.accepted = 0;
    this.arrivedCount = 0;
    this.latencies = [];
    this.killed = null;
    this.news = '';
  }

  peerOf(client) {
    return this.clients.find((other) => other !== client);
  }

  /** `client` was told that its message `id` has this place. */
  told(client, id, seq, mid) {
    const known = this.placeOf.get(id);
    if (known) {
      if (known.seq !== seq || known.mid !== mid) this.duplicated += 1;
      return;
    }
    this.placeOf.set(id, { seq, mid });
    this.note(seq, mid);
    this.accepted += 1;
    const peer = this.peerOf(client);
    if (peer.places.midOf.get(seq) === mid) {
      this.arrivedCount += 1;
    } else {
      // A device that never connected starts at what its user's other devices have acknowledged.
      this.owed.set(seq, { peer, since: performance.now(), isDue: peer.wasWelcomed });
    }
  }

  /** `client` received a message; `verdict` says whether its place was new to it. */
  arrived(client, { seq, mid, from, id }, verdict) {
    this.note(seq, mid);
    if (verdict !== 'new') return;
    client.idsSeen ??= new Map();
    if (client.idsSeen.has(`${from} ${id}`)) this.duplicated += 1;
    client.idsSeen.set(`${from} ${id}`, seq);
    if (from === client.user) return;
    if (seq < (client.pushedHighest ?? 0)) this.disordered += 1;
    client.pushedHighest = Math.max(client.pushedHighest ?? 0, seq);
    this.compareNumbers(client, id);
    if (this.owed.delete(seq)) this.arrivedCount += 1;
  }

  /** Messages of this page are numbered as they were written, and must be placed in that order. */
  compareNumbers(client, id) {
    const peer = this.peerOf(client);
    if (!id.startsWith(peer.idPrefix) || peer.excused.has(id)) return;
    const number = Number(id.slice(peer.idPrefix.length));
    if (number < (client.numberHighest ?? 0)) this.disordered += 1;
    client.numberHighest = Math.max(client.numberHighest ?? 0, number);
  }

  note(seq, mid) {
    const known = this.midAt.get(seq);
    if (known !== undefined && known !== mid) this.duplicated += 1;
    this.midAt.set(seq, mid);
  }

  /** Told `sent`, and not there although the other side had every chance. */
  lost(now) {
    let count = 0;
    for (const { peer, since, isDue } of this.owed.values()) {
      const chance = peer.syncedAt === null ? Infinity : Math.max(since, peer.syncedAt);
      if (isDue && now - chance > LOST_MS) count += 1;
    }
    return count;
  }

  latency(elapsed, writtenAt) {
    this.latencies.push(elapsed);
    if (this.latencies.length > LATENCIES_MAX) this.latencies.shift();
    if (this.killed && writtenAt > this.killed.at) {
      const after = Math.round(performance.now() - this.killed.at);
      this.news = `${this.killed.child} killed; the next message was accepted ${after} ms later`;
      this.killed = null;
    }
  }

  latencyAt(share) {
    if (this.latencies.length === 0) return null;
    const sorted = [...this.latencies].sort((a, b) => a - b);
    return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  }
}

/** One side of the page. */
class Pane {
  constructor(user, peer, witness) {
    this.root = document.getElementById('pane').content.firstElementChild.cloneNode(true);
    this.list = this.root.querySelector('.messages');
    this.toggle = this.root.querySelector('.switch input');
    this.bubbles = new Map();
    this.isOnScreen = true;
    // Whether the newest message is kept in sight. Kept, since asking costs a layout each time.
    this.isPinned = true;
    this.client = new Client({ user, peer, device: deviceOf(user), witness, events: this.events() });
    this.dress(user, peer);
    this.listen();
    this.showState();
  }

  events() {
    return {
      state: () => this.showState(),
      arrived: (message) => this.show(message.id, {
        text: message.body ?? '[binary]',
        seq: message.seq,
        ts: message.ts,
        isMine: message.from === this.client.user,
      }),
      answered: (entry) => this.settle(entry),
      moved: () => this.showTicks(),
      mayRead: () => document.visibilityState === 'visible' && this.isOnScreen && this.isPinned,
    };
  }

  dress(user, peer) {
    this.root.querySelector('h2').textContent = user;
    this.root.querySelector('.avatar').textContent = [...user][0];
    this.root.setAttribute('aria-label', `${user}'s side`);
    this.list.setAttribute('aria-label', `Messages of ${user} and ${peer}`);
    this.field = this.root.querySelector('.composer input');
    this.field.placeholder = `Write to ${peer}`;
    this.field.setAttribute('aria-label', `Message from ${user} to ${peer}`);
    this.toggle.setAttribute('aria-label', `${user} is online`);
  }

  listen() {
    this.root.querySelector('form').addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.field.value !== '') this.write(this.field.value);
      this.field.value = '';
    });
    this.toggle.addEventListener('change', () => {
      if (this.toggle.checked) this.client.goOnline();
      else this.client.goOffline();
    });
    this.list.addEventListener('scroll', () => {
      const { scrollHeight, scrollTop, clientHeight } = this.list;
      this.isPinned = scrollHeight - scrollTop - clientHeight < 60;
      this.client.readSoon();
    }, { passive: true });
    new IntersectionObserver(([entry]) => {
      this.isOnScreen = entry.isIntersecting;
      this.client.readSoon();
    }, { threshold: 0.4 }).observe(this.root);
  }

  write(text) {
    const entry = this.client.send(text);
    this.show(entry.id, { text, ts: entry.ts, isMine: true, entry });
    this.isPinned = true;
    this.scrollSoon();
    this.showState();
  }

  show(id, { text, seq, ts, isMine, entry }) {
    const key = isMine ? `mine ${id}` : `theirs ${seq}`;
    const known = this.bubbles.get(key);
    if (known) {
      this.place(known, seq, ts);
      return;
    }
    const element = document.getElementById('message').content.firstElementChild.cloneNode(true);
    element.querySelector('.text').textContent = text;
    element.classList.toggle('mine', isMine);
    const bubble = { key, element, isMine, entry };
    this.bubbles.set(key, bubble);
    this.place(bubble, seq, ts);
    while (this.list.childElementCount > BUBBLES_MAX) {
      this.bubbles.delete(this.list.firstElementChild.dataset.key);
      this.list.firstElementChild.remove();
    }
    if (this.isPinned) this.scrollSoon();
  }

  /** In order of places; what has none yet stands below. */
  place(bubble, seq, ts) {
    const { element } = bubble;
    bubble.seq = seq ?? bubble.seq;
    element.dataset.key = bubble.key;
    element.dataset.seq = bubble.seq ?? '';
    const time = element.querySelector('time');
    time.textContent = new Date(ts).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' });
    time.dateTime = new Date(ts).toISOString();
    element.querySelector('.seq').textContent = bubble.seq ? `#${bubble.seq}` : '';
    const rank = (other) => (other.dataset.seq === '' ? Infinity : Number(other.dataset.seq));
    let after = element.parentNode ? element.previousElementSibling : this.list.lastElementChild;
    while (after && rank(after) > rank(element)) after = after.previousElementSibling;
    const before = after ? after.nextElementSibling : this.list.firstElementChild;
    if (before !== element) this.list.insertBefore(element, before);
    this.tick(bubble);
  }

  settle(entry) {
    const bubble = this.bubbles.get(`mine ${entry.id}`);
    if (bubble) {
      this.place(bubble, entry.seq, entry.ts);
      if (entry.reason) bubble.element.title = entry.reason;
    }
    this.showState();
  }

  showTicks() {
    for (const bubble of this.bubbles.values()) this.tick(bubble);
  }

  tick(bubble) {
    if (!bubble.isMine) return;
    const { peerDelivered, peerRead } = this.client;
    let ticks = bubble.entry?.state === 'failed' ? 'failed' : 'waiting';
    if (bubble.seq) ticks = 'sent';
    if (bubble.seq <= peerDelivered) ticks = 'delivered';
    if (bubble.seq <= peerRead) ticks = 'read';
    if (bubble.element.dataset.ticks === ticks) return;
    bubble.element.dataset.ticks = ticks;
    bubble.element.querySelector('.ticks').setAttribute('aria-label', ticks);
  }

  showState() {
    const { client } = this;
    if (!client) return;
    const words = {
      offline: 'offline',
      connecting: 'connecting',
      waiting: 'reconnecting',
      online: 'online',
      replaced: 'opened elsewhere',
    };
    const queued = client.unanswered.size;
    const isNews = client.state !== 'online' && queued > 0;
    const status = isNews ? `${words[client.state]}, ${queued} waiting` : words[client.state];
    this.root.dataset.state = client.state;
    const line = this.root.querySelector('.status');
    if (line.textContent !== status) line.textContent = status;
    this.toggle.checked = client.wanted;
  }

  /** To the newest message, once for all that came since the last picture. */
  scrollSoon() {
    if (this.isScrolling) return;
    this.isScrolling = true;
    requestAnimationFrame(() => {
      this.isScrolling = false;
      this.list.scrollTop = this.list.scrollHeight;
    });
  }
}

/** A device of its own for each tab, the same after a reload. */
function deviceOf(user) {
  const key = `aldis-device-${user}`;
  const device = sessionStorage.getItem(key) ?? `web-${randomHex(6)}`;
  sessionStorage.setItem(key, device);
  return device;
}

function start() {
  const parameters = new URLSearchParams(location.search);
  const named = [parameters.get('left') || 'alice', parameters.get('right') || 'bob'];
  const [left, right] = named[0] === named[1] ? ['alice', 'bob'] : named;
  const witness = new Witness();
  const panes = [new Pane(left, right, witness), new Pane(right, left, witness)];
  witness.clients = panes.map((pane) => pane.client);
  document.getElementById('panes').append(...panes.map((pane) => pane.root));
  for (const pane of panes) pane.client.goOnline();
  wireKills(witness);
  wireLoad(panes);
  document.addEventListener('visibilitychange', () => {
    for (const pane of panes) pane.client.readSoon();
  });
  window.addEventListener('online', () => {
    for (const pane of panes) if (pane.client.wanted) pane.client.goOnline();
  });
  setInterval(() => showCounters(witness, panes), 250);
}

function wireKills(witness) {
  for (const button of document.querySelectorAll('.kill')) {
    button.addEventListener('click', async () => {
      const { child } = button.dataset;
      button.disabled = true;
      const at = performance.now();
      const wasOnline = witness.clients.some((client) => client.state === 'online');
      const wait = () => {
        witness.killed = { child, at };
        witness.news = `${child} killed; waiting for the next message`;
      };
      try {
        const headers = { 'X-Aldis-Dev': '1' };
        const response = await fetch(`/dev/kill/${child}`, { method: 'POST', headers });
        if (response.ok) {
          wait();
        } else {
          witness.news = `${child}: ${(await response.json()).message}`;
        }
      } catch {
        // The edge may die of it before it answers.
        if (child === 'edge' && wasOnline) wait();
        else witness.news = `${child}: the edge did not answer`;
      }
      button.disabled = false;
    });
  }
}

function wireLoad(panes) {
  const button = document.getElementById('load');
  let timer = null;
  let round = 0;
  button.addEventListener('click', () => {
    clearInterval(timer);
    timer = timer ? null : setInterval(() => {
      const [writer, word] = round % 2 === 0 ? [panes[0], 'ping'] : [panes[1], 'pong'];
      writer.write(`${word} ${Math.floor(round / 2) + 1}`);
      round += 1;
    }, 50);
    button.setAttribute('aria-pressed', String(timer !== null));
  });
}

function showCounters(witness, panes) {
  const milliseconds = (value) => {
    if (value === null) return '-';
    if (value >= 1_000) return `${(value / 1_000).toFixed(1)} s`;
    return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
  };
  const numbers = {
    lost: witness.lost(performance.now()),
    duplicated: witness.duplicated,
    disordered: witness.disordered,
    accepted: witness.accepted,
    arrived: witness.arrivedCount,
    waiting: panes.reduce((sum, pane) => sum + pane.client.unanswered.size, 0),
    median: milliseconds(witness.latencyAt(0.5)),
    slowest: milliseconds(witness.latencyAt(1)),
  };
  for (const [name, value] of Object.entries(numbers)) {
    const element = document.getElementById(name);
    const text = String(value);
    if (element.textContent !== text) element.textContent = text;
    element.parentElement.classList.toggle('broken', value > 0);
  }
  const news = document.getElementById('news');
  if (news.textContent !== witness.news) news.textContent = witness.news;
  for (const pane of panes) pane.showState();
}

if (typeof document !== 'undefined') start();
