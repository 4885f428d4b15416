// One device of one user, over the client of `sdk/`: its conversations, who is there, who types,
// and the token if the edge asks for one. It draws nothing.

import { Client, directName } from './sdk/index.js';
import { Conversation } from './conversation.js';
import { randomHex, storageOf } from './device.js';

const HISTORY_COUNT = 50;
/** Of so many conversations the last message is asked for, to be shown in the list. */
const PREVIEWS_MAX = 30;
const IS_TOKEN = /^[\w.-]+$/;

const WORDS = { CONNECTING: 'connecting', CONNECTED: 'online', RECONNECTING: 'waiting' };

export class Session {
  /**
   * `peer`: whose conversation is there from the start, and what `witness` looks at. `events`:
   * state(), listed(), arrived(conversation, item), changed(conversation, item),
   * moved(conversation). `needsToken`: the edge believes tokens only. `token`: the one for it, kept
   * here and nowhere else.
   */
  static async open(options) {
    const session = new Session(options);
    await session.prepare(options.device);
    return session;
  }

  constructor({ user, peer, events, witness, needsToken, token }) {
    Object.assign(this, { user, peer, events, witness, needsToken });
    this.token = needsToken ? token : undefined;
    this.state = 'offline';
    this.wanted = false;
    this.conversations = new Map();
    this.presence = new Map();
    this.unsupported = new Set();
    // A reloaded page counts from 1 again: its ids must not be those of the page before it.
    this.idPrefix = `${randomHex(6)}-`;
    this.written = 0;
    this.excused = new Set();
    this.transmittedAt = new Map();
    this.syncedAt = null;
    this.wasWelcomed = false;
    this.isListed = false;
    if (peer !== undefined) this.direct = this.conversation(directName(user, peer));
  }

  async prepare(device) {
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    this.client = await Client.create({
      url: `${scheme}://${location.host}/v1/connect`,
      user: this.user,
      device,
      storage: storageOf(this.user),
      ...(this.needsToken && { token: () => this.token }),
    });
    for (const outgoing of this.client.outbox) {
      this.conversation(outgoing.convo ?? directName(this.user, outgoing.to)).write(outgoing);
    }
    this.listen();
  }

  listen() {
    const { client } = this;
    client.on('state', (event) => this.stateChanged(event));
    client.on('attempt_failed', ({ byToken }) => byToken && this.giveUpIfRefused());
    client.on('frame', (frame) => this.witnessed(frame));
    client.on('message', (message) => this.arrived(message));
    client.on('sent', (sent) => this.answered(sent));
    client.on('postponed', ({ id }) => this.excused.add(id));
    client.on('rejected', ({ outgoing, problem }) => this.rejected(outgoing, problem));
    client.on('receipt', (receipt) => {
      const conversation = this.conversation(receipt.convo);
      conversation.told(receipt);
      this.events.moved(conversation);
    });
    client.on('failed', ({ convo, id }) => {
      const conversation = this.conversation(convo);
      const item = conversation.refuse(id, 'not delivered in time');
      if (item) this.events.changed(conversation, item);
    });
    client.on('presence', (presence) => {
      this.presence.set(presence.user, presence);
      this.events.listed();
    });
    client.on('typing', ({ convo, from }) => {
      if (from === this.user) return;
      this.conversation(convo).types(from, performance.now());
      this.events.listed();
    });
    client.on('unsupported', (operation) => this.unsupported.add(operation));
    client.on('synced', () => {
      this.syncedAt = performance.now();
      this.loadList();
    });
    window.addEventListener('pagehide', () => client.flush());
  }

  // Online and offline.

  goOnline() {
    this.wanted = true;
    this.client.connect();
  }

  goOffline() {
    this.wanted = false;
    this.client.disconnect();
  }

  /** Another token, after the state `token`. */
  useToken(token) {
    this.token = token;
    this.goOnline();
  }

  stateChanged({ state, reason }) {
    this.syncedAt = null;
    if (state === 'CONNECTED') {
      this.wasWelcomed = true;
      const now = performance.now();
      for (const { id } of this.client.outbox) this.noteTransmission(id, now);
    }
    if (state === 'DISCONNECTED' && reason === 'no_token') {
      return this.askForToken(this.token ? 'that is no token' : '');
    }
    if (state === 'DISCONNECTED' && reason === 'not_me') {
      return this.askForToken(`that is ${this.welcomedAs}'s token`);
    }
    // Asked for by `askForToken`, which says more.
    if (state === 'DISCONNECTED' && this.state === 'token') return undefined;
    if (reason === 'replaced' || reason === 'revoked') this.wanted = false;
    const isStopped = { replaced: 'replaced', revoked: 'revoked' }[reason];
    return this.become(isStopped ?? WORDS[state] ?? 'offline');
  }

  /** A browser does not say why a WebSocket failed. Where plain HTTP works, it was the token. */
  async giveUpIfRefused() {
    const isThere = await fetch('/', { method: 'HEAD' }).then(({ ok }) => ok, () => false);
    if (!isThere || !this.wanted || this.client.state === 'CONNECTED') return;
    this.askForToken('token not accepted');
    this.client.disconnect();
  }

  askForToken(problem) {
    if (this.token && !IS_TOKEN.test(this.token)) this.problem = 'that is no token';
    else this.problem = problem;
    this.token = undefined;
    this.become('token');
  }

  become(state) {
    this.state = state;
    this.events.state();
  }

  // Conversations.

  conversation(name) {
    let conversation = this.conversations.get(name);
    if (conversation === undefined) {
      conversation = new Conversation(name, this.user);
      this.conversations.set(name, conversation);
      this.watch(conversation.isGroup ? [] : [conversation.peer]);
    }
    return conversation;
  }

  /** Newest first; of those that are over only what is still shown. */
  get sorted() {
    return [...this.conversations.values()]
      .sort((a, b) => (b.last?.ts ?? 0) - (a.last?.ts ?? 0));
  }

  get unread() {
    return [...this.conversations.values()].reduce((sum, { unread }) => sum + unread, 0);
  }

  async loadList() {
    const listed = await this.client.allConvos().catch(() => []);
    const isFirst = !this.isListed;
    this.isListed = true;
    const unknown = [];
    for (const entry of listed) {
      const conversation = this.conversation(entry.convo);
      conversation.list(entry);
      if (conversation.last === undefined) unknown.push(conversation);
      this.events.moved(conversation);
    }
    this.events.listed();
    if (!isFirst) return;
    for (const conversation of unknown.slice(0, PREVIEWS_MAX)) this.loadPreview(conversation);
  }

  async loadPreview(conversation) {
    const page = await this.client.history(conversation.name, { limit: 1 }).catch(() => undefined);
    for (const message of page?.msgs ?? []) conversation.take(message);
    this.events.listed();
  }

  async loadGroup(conversation) {
    try {
      this.setGroup(await this.client.groupInfo(conversation.name));
    } catch ({ code }) {
      if (code === 'not_member') conversation.hasLeft = true;
      this.events.moved(conversation);
    }
  }

  /** Only of a group that was looked at more is asked. */
  groupChanged(conversation, { op, users }) {
    const isOut = (op === 'remove' || op === 'leave') && users.includes(this.user);
    const isIn = (op === 'create' || op === 'add') && users.includes(this.user);
    if (isOut || isIn) conversation.hasLeft = isOut;
    if (conversation.group !== undefined && !isOut) this.loadGroup(conversation);
  }

  setGroup(group) {
    const conversation = this.conversation(group.convo);
    if ((conversation.group?.version ?? -1) > group.version) return;
    conversation.group = group;
    conversation.hasLeft = !group.members.includes(this.user);
    this.watch(group.members);
    this.events.moved(conversation);
    this.events.listed();
  }

  /** The 50 before the oldest that is there. Resolves once they are in the conversation. */
  async loadOlder(conversation) {
    if (conversation.isLoading || !conversation.hasMore) return [];
    conversation.isLoading = true;
    const before = conversation.isOpened ? conversation.oldest : Infinity;
    try {
      const limit = HISTORY_COUNT;
      const where = Number.isFinite(before) ? { before, limit } : { limit };
      const page = await this.client.history(conversation.name, where);
      conversation.hasMore = page.more;
      conversation.isOpened = true;
      return page.msgs.map((message) => conversation.take(message).item);
    } catch {
      // It does not exist yet, or the server cannot say now. The next scroll asks again.
      return [];
    } finally {
      conversation.isLoading = false;
    }
  }

  watch(users) {
    this.client?.watchPresence(users.filter((user) => user !== this.user));
  }

  // Messages.

  /** Writes a message; it is kept, and sent again with the same id, until it is answered. */
  write(conversation, text) {
    this.written += 1;
    const id = `${this.idPrefix}${this.written}`;
    const now = performance.now();
    this.transmittedAt.set(id, { writtenAt: now });
    const item = conversation.write({ id, body: text, ts: Date.now() });
    if (this.state === 'online') this.noteTransmission(id, now);
    this.client.send({ convo: conversation.name, body: text, id });
    return item;
  }

  noteTransmission(id, now) {
    const times = this.transmittedAt.get(id) ?? { writtenAt: now };
    times.at ??= now;
    this.transmittedAt.set(id, times);
  }

  arrived(message) {
    const conversation = this.conversation(message.convo);
    const { item, isNew } = conversation.take(message);
    if (isNew) conversation.count(item);
    conversation.typists.delete(message.from);
    if (item.change) this.groupChanged(conversation, item.change);
    if (isNew) this.events.arrived(conversation, item);
    else this.events.changed(conversation, item);
  }

  answered(sent) {
    const conversation = this.conversation(sent.convo);
    const item = conversation.settle(sent);
    const times = this.transmittedAt.get(sent.id);
    this.transmittedAt.delete(sent.id);
    const now = performance.now();
    if (conversation === this.direct && times) {
      this.witness?.latency(now - (times.at ?? now), times.writtenAt);
    }
    if (item) this.events.changed(conversation, item);
  }

  rejected(outgoing, { code, message }) {
    const conversation = this.conversation(outgoing.convo ?? directName(this.user, outgoing.to));
    const item = conversation.refuse(outgoing.id, `${code}: ${message}`);
    if (item) this.events.changed(conversation, item);
  }

  /** All that was handed on, and what the history showed, is read. */
  markRead(conversation) {
    if (this.state !== 'online' || conversation.hasLeft) return;
    const seq = this.client.watermark(conversation.name) || conversation.head;
    if (seq <= conversation.read) return;
    this.client.markRead(conversation.name, seq);
    conversation.readTo(seq);
    this.events.listed();
  }

  witnessed(frame) {
    if (frame.t === 'welcome') this.welcomedAs = frame.user;
    if (!this.witness || frame.convo !== this.direct.name) return;
    if (frame.t === 'msg') this.witness.arrived(this, frame);
    // An answer to an earlier life of the page: whom it reached then nobody here has seen.
    if (frame.dup && !frame.id.startsWith(this.idPrefix)) return;
    if (frame.t === 'sent') this.witness.told(this, frame.id, frame.seq, frame.mid);
  }
}
