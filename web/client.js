// A client of /v1/connect as the protocol asks for one: watermarks, cumulative acknowledgements,
// gaps closed by `sync`, resends with the same id, reconnects with backoff. It draws nothing.

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
/** How many messages are asked for when the page opens. */
const HISTORY_COUNT = 50;
/** Places behind this many newer ones are forgotten, so that a page may run for days. */
const PLACES_MAX = 20_000;

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

export function randomHex(size) {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** What can be offered as a subprotocol; a JSON Web Token is. */
function isToken(text) {
  return text !== undefined && /^[\w.-]+$/.test(text);
}

/**
 * The places (seqs) of one conversation that a client knows. `settled` is the last one up to which
 * none is missing: that far it may acknowledge. Only what the server pushed says where that run
 * begins, since before the first push something older may still be on its way.
 */
class Places {
  constructor() {
    this.midOf = new Map();
    this.forgotten = 0;
    this.base = null;
    this.settled = 0;
    this.highest = 0;
  }

  /** `new`, `repeat`, or `conflict` when another message is known in that place. */
  add(seq, mid, wasPushed) {
    const known = this.midOf.get(seq);
    if (known !== undefined && known !== mid) return 'conflict';
    if (seq <= this.forgotten) return 'repeat';
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
    this.forget();
  }

  forget() {
    if (this.midOf.size <= PLACES_MAX) return;
    for (const seq of this.midOf.keys()) {
      if (this.midOf.size <= PLACES_MAX / 2) return;
      if (seq > this.settled) continue;
      this.midOf.delete(seq);
      this.forgotten = Math.max(this.forgotten, seq);
    }
  }
}

/** One device of one user, in its direct conversation with one other. */
export class Client {
  /**
   * `events`: state(), arrived(message), remembered(message), answered(entry), moved(), mayRead().
   * `outbox`: what an earlier life of this device left unanswered, with its ids.
   * `needsToken`: the edge believes tokens only. `token`: the one for it, kept here and nowhere else.
   */
  constructor({ user, peer, device, outbox, events, witness, needsToken, token }) {
    Object.assign(this, { user, peer, device, events, witness, needsToken });
    this.token = needsToken ? token : undefined;
    this.convo = directName(user, peer);
    // A reloaded page counts from 1 again: its ids must not be those of the page before it.
    this.idPrefix = `${device}-${randomHex(4)}-`;
    this.excused = new Set();
    this.places = new Places();
    this.unanswered = new Map();
    for (const { id, text, ts } of outbox) this.keep(id, text, ts);
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

  /** Another token, after the state `token`. */
  useToken(token) {
    this.token = token;
    this.goOnline();
  }

  /** Writes a message; it is kept, and sent again with the same id, until it is answered. */
  send(text) {
    this.written += 1;
    const entry = this.keep(`${this.idPrefix}${this.written}`, text, Date.now());
    if (this.isWelcomed && !this.isHolding) this.transmit(entry);
    return entry;
  }

  /** What is to outlive the page. */
  get outbox() {
    return [...this.unanswered.values()].map(({ id, text, ts }) => ({ id, text, ts }));
  }

  keep(id, text, ts) {
    const entry = { id, text, ts, state: 'waiting', writtenAt: performance.now() };
    this.unanswered.set(id, entry);
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
    const isByToken = this.needsToken && !this.ticket;
    if (isByToken && !isToken(this.token)) {
      this.askForToken(this.token ? 'that is no token' : '');
      return;
    }
    const subprotocols = isByToken ? [SUBPROTOCOL, `bearer.${this.token}`] : [SUBPROTOCOL];
    let query = { user: this.user, device: this.device };
    if (this.ticket) query = { ticket: this.ticket };
    if (isByToken) query = {};
    // Not URLSearchParams: it writes a space as `+`, which is a plus here.
    const parameters = Object.entries(query)
      .map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&');
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const address = `${scheme}://${location.host}/v1/connect?${parameters}`;
    const socket = new WebSocket(address, subprotocols);
    this.socket = socket;
    this.isByToken = isByToken;
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
    const mayBeRefused = this.isByToken && !this.isWelcomed;
    // A ticket that did not lead to a welcome may have expired; name or token are tried next.
    if (!this.isWelcomed) this.ticket = null;
    this.drop();
    if (code === 4001) {
      this.wanted = false;
      this.become('replaced');
    } else if (this.wanted && mayBeRefused) {
      this.reconnectUnlessRefused();
    } else if (this.wanted) {
      this.reconnectLater();
    }
  }

  /** A browser does not say why a WebSocket failed. Where plain HTTP works, it was the token. */
  async reconnectUnlessRefused() {
    const isThere = await fetch('/', { method: 'HEAD' }).then(({ ok }) => ok, () => false);
    if (!this.wanted || this.socket) return;
    if (isThere) this.askForToken('token not accepted');
    else this.reconnectLater();
  }

  askForToken(problem) {
    this.token = undefined;
    this.problem = problem;
    this.become('token');
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
      case 'page': return this.remembered(frame);
      case 'convos': return this.caughtUp(frame);
      case 'goaway': this.reconnectMs = frame.reconnect_ms ?? null; return undefined;
      case 'error': return this.refused(frame);
      default: return undefined;
    }
  }

  welcomed(frame) {
    if (frame.user !== this.user) {
      const { socket } = this;
      this.drop();
      socket.close(1000);
      this.askForToken(`that is ${frame.user}'s token`);
      return;
    }
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
    this.askForThePast();
  }

  /** Once, for what was said and acknowledged before this page opened. Errors leave it out. */
  askForThePast() {
    if (this.hasAsked) return;
    this.hasAsked = true;
    this.say({ t: 'history', convo: this.convo, limit: HISTORY_COUNT });
    // The names behind this one begin with our own conversation, or nearly so.
    const after = [...this.convo].slice(0, -1).join('');
    this.say({ t: 'convos', after });
  }

  /** Only to be shown: what the server pushed is all that is counted and acknowledged. */
  remembered({ convo, msgs }) {
    if (convo !== this.convo) return;
    for (const message of msgs) this.events.remembered(message);
  }

  caughtUp({ convos }) {
    const ours = convos.find(({ convo }) => convo === this.convo);
    if (!ours) return;
    this.peerDelivered = Math.max(this.peerDelivered, ours.others_delivered);
    this.peerRead = Math.max(this.peerRead, ours.others_read);
    this.events.moved();
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
