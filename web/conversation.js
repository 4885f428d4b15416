// What one client knows of one conversation. It draws nothing and asks nothing.

import { groupChange, peerIn } from './sdk/index.js';

/** So many messages are kept of a conversation whose end is in sight; older ones are asked for. */
const KEPT_MAX = 200;
const TYPING_MS = 6_000;

export class Conversation {
  constructor(name, user) {
    this.name = name;
    this.user = user;
    /** The other one of a direct conversation; undefined in a group. */
    this.peer = peerIn(name, user);
    this.group = undefined;
    this.hasLeft = false;
    /** By key: one's own by their ids, since they have no place at first. */
    this.items = new Map();
    this.isOpened = false;
    this.hasMore = true;
    this.head = 0;
    this.read = 0;
    this.unread = 0;
    this.countedHead = 0;
    this.others = { delivered: 0, read: 0 };
    /** In groups, by kind and seq: how many have come so far. */
    this.counts = { delivered: new Map(), read: new Map() };
    this.typists = new Map();
    this.last = undefined;
  }

  get isGroup() {
    return this.peer === undefined;
  }

  get title() {
    if (this.isGroup) return this.name;
    return this.peer === this.user ? `${this.peer} (yourself)` : this.peer;
  }

  get oldest() {
    const seqs = [...this.items.values()].map(({ seq }) => seq ?? Infinity);
    return seqs.length === 0 ? Infinity : Math.min(...seqs);
  }

  /** A message of the server's, live or of the past. Returns its item, and whether it is new. */
  take(message) {
    const { seq, ts, from, id, kind } = message;
    const isMine = from === this.user && kind !== 'system';
    const key = isMine ? `mine ${id}` : `theirs ${seq}`;
    this.head = Math.max(this.head, seq);
    const known = this.items.get(key);
    const item = known ?? { key, from, isMine, text: textOf(message), id };
    Object.assign(item, { seq, ts, state: 'sent' });
    if (kind === 'system') item.change = groupChange(message);
    this.items.set(key, item);
    if (!this.last?.seq || seq >= this.last.seq) this.last = item;
    return { item, isNew: known === undefined };
  }

  /** What this device writes, before it is answered. */
  write({ id, body, ts }) {
    const key = `mine ${id}`;
    const item = { key, id, from: this.user, isMine: true, text: body ?? '', ts, state: 'waiting' };
    this.items.set(key, item);
    this.last = item;
    return item;
  }

  settle({ id, seq, ts }) {
    const item = this.items.get(`mine ${id}`);
    this.head = Math.max(this.head, seq);
    if (item) Object.assign(item, { seq, ts, state: 'sent' });
    return item;
  }

  refuse(id, reason) {
    const item = this.items.get(`mine ${id}`);
    if (item) Object.assign(item, { state: 'failed', reason });
    return item;
  }

  /** Somebody's live message. */
  count(item) {
    if (item.isMine || item.change || item.seq <= this.countedHead) return;
    this.countedHead = item.seq;
    if (item.seq > this.read) this.unread += 1;
  }

  /** What the server lists of it. */
  list({ head, read, unread, others_delivered: delivered, others_read: othersRead }) {
    const later = [...this.items.values()].filter(({ seq, isMine, change }) => (
      seq > head && !isMine && !change
    ));
    this.head = Math.max(this.head, head);
    this.countedHead = Math.max(this.countedHead, head);
    this.read = Math.max(this.read, read);
    this.unread = (this.read >= head ? 0 : unread) + later.length;
    this.others.delivered = Math.max(this.others.delivered, delivered);
    this.others.read = Math.max(this.others.read, othersRead);
  }

  /** This user has read so far, here or on another device. */
  readTo(seq) {
    if (seq <= this.read) return;
    this.read = seq;
    const isUnread = (item) => item.seq > seq && !item.isMine && !item.change;
    this.unread = [...this.items.values()].filter(isUnread).length;
  }

  told({ seq, kind, by, count, of }) {
    if (by === this.user) {
      if (kind === 'read') this.readTo(seq);
      return;
    }
    const kinds = kind === 'read' ? ['delivered', 'read'] : ['delivered'];
    for (const each of kinds) {
      const isByAll = count === undefined || count >= of;
      if (isByAll) this.others[each] = Math.max(this.others[each], seq);
      if (count !== undefined) this.noteCount(each, kind, seq, count, of);
    }
  }

  noteCount(each, kind, seq, count, of) {
    const known = this.counts[each].get(seq);
    // Whoever has read it has it: that count is a lower bound of the other.
    if (each !== kind && known && known.count >= count) return;
    this.counts[each].set(seq, { count, of });
    for (const other of this.counts[each].keys()) {
      if (this.counts[each].size <= 64) break;
      this.counts[each].delete(other);
    }
  }

  /** `waiting`, `sent`, `delivered`, `read` or `failed`; in groups also how many came so far. */
  ticksOf({ seq, state }) {
    if (state === 'failed' || !seq) return { ticks: state };
    if (seq <= this.others.read) return { ticks: 'read' };
    const read = this.reached('read', seq);
    const delivered = this.reached('delivered', seq);
    const ticks = seq <= this.others.delivered ? 'delivered' : 'sent';
    if (read) return { ticks, count: `read ${read.count}/${read.of}` };
    if (ticks === 'delivered' || !delivered) return { ticks };
    return { ticks, count: `delivered ${delivered.count}/${delivered.of}` };
  }

  /** Who has come to a later message has come to this one. */
  reached(kind, seq) {
    let best;
    for (const [at, reached] of this.counts[kind]) {
      if (at >= seq && reached.count > (best?.count ?? 0)) best = reached;
    }
    return best;
  }

  /** Lets go of the oldest; returns their keys. */
  trim() {
    if (this.items.size <= KEPT_MAX) return [];
    const placed = [...this.items.values()].filter(({ seq }) => seq).sort((a, b) => a.seq - b.seq);
    const gone = placed.slice(0, this.items.size - KEPT_MAX).map(({ key }) => key);
    for (const key of gone) this.items.delete(key);
    this.hasMore = true;
    return gone;
  }

  types(from, now) {
    this.typists.set(from, now + TYPING_MS);
  }

  /** Who types, of those who were heard in the last seconds. */
  typing(now) {
    for (const [from, until] of this.typists) if (until <= now) this.typists.delete(from);
    return [...this.typists.keys()];
  }

  mayChange() {
    const { group, user } = this;
    return group !== undefined && (group.owner === user || group.admins.includes(user));
  }
}

/** A system message in words. */
export function wordsOf({ from, change }) {
  const users = change.users.filter((user) => user !== from).join(', ');
  switch (change.op) {
    case 'create':
      return users === '' ? `${from} made the group` : `${from} made the group with ${users}`;
    case 'add': return `${from} added ${users}`;
    case 'remove': return `${from} removed ${users}`;
    case 'leave': return change.owner ? `${from} left; ${change.owner} owns it` : `${from} left`;
    case 'role':
      return `${users} can ${change.role === 'admin' ? 'now' : 'no longer'} change the group`;
    default: return 'the group was changed';
  }
}

export function textOf({ body, body64 }) {
  return body ?? `${Math.floor((body64?.length ?? 0) * 0.75)} bytes that are not text`;
}
