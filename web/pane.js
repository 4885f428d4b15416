// One side of the page: what one client has to show, and what a person does with it.

import { Client, randomHex } from './client.js';
import { announce } from './announcer.js';

const BUBBLES_MAX = 200;
/** So near to the end, the newest message is kept in sight. */
const PINNED_PX = 60;
/** What scrolls so soon after a person touched the list is that person's wish. */
const TOUCH_MS = 1_000;
const READ_SHARE = 0.4;
const DEVICE_TRIES = 4;
const DEVICE_PAUSE_MS = 150;

const STATES = {
  offline: 'offline',
  connecting: 'connecting',
  waiting: 'reconnecting',
  online: 'online',
  replaced: 'opened elsewhere',
  token: 'needs a token',
};
const TICKS = {
  waiting: 'on its way',
  sent: 'accepted',
  delivered: 'delivered',
  read: 'read',
  failed: 'refused',
};
const CLOCK = new Intl.DateTimeFormat([], {
  hour: '2-digit', minute: '2-digit', second: '2-digit',
});

export class Pane {
  constructor({ user, peer, device, witness, needsToken, token }) {
    this.root = document.getElementById('pane').content.firstElementChild.cloneNode(true);
    this.list = this.root.querySelector('.messages');
    this.toggle = this.root.querySelector('.switch input');
    this.newer = this.root.querySelector('.newer');
    this.bubbles = new Map();
    this.isQuiet = false;
    this.isOnScreen = true;
    // Whether the newest message is kept in sight. Kept, since asking costs a layout each time.
    this.isPinned = true;
    this.touchedAt = -Infinity;
    this.unseen = 0;
    this.client = new Client({
      user, peer, device, witness, needsToken, token, outbox: takeOutbox(user), events: this.events(),
    });
    this.dress(user, peer);
    this.listen();
    for (const entry of this.client.unanswered.values()) this.showOwn(entry);
    this.showState();
  }

  events() {
    return {
      state: () => this.showState(),
      arrived: (message) => this.arrived(message),
      remembered: (message) => this.showReceived(message),
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
    this.composer = this.root.querySelector('.composer:not(.token)');
    this.tokenForm = this.root.querySelector('.token');
    this.tokenField = this.tokenForm.querySelector('input');
    this.tokenField.placeholder = `Token of ${user}`;
    this.tokenField.setAttribute('aria-label', this.tokenField.placeholder);
    this.tokenForm.title = `aldis token --jwt-key FILE --user ${user}`;
    this.field = this.composer.querySelector('textarea');
    this.field.placeholder = `Write to ${peer}`;
    this.field.setAttribute('aria-label', `Message from ${user} to ${peer}`);
    this.toggle.setAttribute('aria-label', `${user} is online`);
  }

  listen() {
    this.composer.addEventListener('submit', (event) => {
      event.preventDefault();
      this.submit();
    });
    this.tokenForm.addEventListener('submit', (event) => {
      event.preventDefault();
      const token = this.tokenField.value.trim();
      this.tokenField.value = '';
      if (token !== '') this.client.useToken(token);
    });
    this.field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.toggle.addEventListener('change', () => {
      if (this.toggle.checked) this.client.goOnline();
      else this.client.goOffline();
    });
    this.newer.addEventListener('click', () => {
      this.pin();
      this.list.focus({ preventScroll: true });
    });
    for (const kind of ['wheel', 'touchmove', 'pointerdown', 'keydown']) {
      this.list.addEventListener(kind, () => {
        this.touchedAt = performance.now();
      }, { passive: true });
    }
    this.list.addEventListener('scroll', () => this.scrolled(), { passive: true });
    // A phone's keyboard, or a longer draft, takes room away.
    new ResizeObserver(() => {
      if (this.isPinned) this.scrollSoon();
    }).observe(this.list);
    window.addEventListener('pagehide', () => keepOutbox(this.client));
    new IntersectionObserver(([entry]) => {
      this.isOnScreen = entry.isIntersecting;
      this.client.readSoon();
    }, { threshold: READ_SHARE }).observe(this.root);
  }

  submit() {
    if (this.field.value.trim() !== '') this.write(this.field.value);
    this.field.value = '';
  }

  write(text) {
    this.showOwn(this.client.send(text));
    this.pin();
    this.showState();
  }

  arrived(message) {
    this.showReceived(message);
    if (message.from === this.client.user) return;
    if (!this.isQuiet) announce(`${message.from} to ${this.client.user}: ${textOf(message)}`);
    if (this.isPinned) return;
    this.unseen += 1;
    this.showNewer();
  }

  showOwn(entry) {
    this.show(entry.id, { text: entry.text, ts: entry.ts, isMine: true, entry });
  }

  showReceived(message) {
    const { id, seq, ts, from } = message;
    this.show(id, { text: textOf(message), seq, ts, isMine: from === this.client.user });
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
    time.textContent = CLOCK.format(ts);
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
      if (entry.reason) {
        const reason = bubble.element.querySelector('.reason');
        reason.textContent = entry.reason;
        reason.hidden = false;
      }
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
    const drawing = bubble.element.querySelector('.ticks');
    drawing.setAttribute('aria-label', TICKS[ticks]);
    drawing.querySelector('title').textContent = TICKS[ticks];
    drawing.querySelector('use').setAttribute('href', `#ticks-${ticks}`);
  }

  showState() {
    const { client } = this;
    if (!client) return;
    const queued = client.unanswered.size;
    const asks = client.state === 'token';
    const word = (asks && client.problem) || STATES[client.state];
    const isNews = client.state !== 'online' && queued > 0;
    const status = isNews ? `${word}, ${queued} waiting` : word;
    if (this.root.dataset.state !== client.state) {
      this.root.dataset.state = client.state;
      announce(`${client.user} is ${word}`);
    }
    this.tokenForm.hidden = !asks;
    this.composer.hidden = asks;
    const line = this.root.querySelector('.status');
    if (line.textContent !== status) line.textContent = status;
    this.toggle.checked = client.wanted && !asks;
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.list;
    const isNear = scrollHeight - scrollTop - clientHeight < PINNED_PX;
    // Messages that came since our own scrolling leave the end behind, without anybody's wish.
    const isWished = !this.isScrolling || performance.now() - this.touchedAt < TOUCH_MS;
    if (isNear || isWished) this.isPinned = isNear;
    if (this.isPinned) this.unseen = 0;
    this.showNewer();
    this.client.readSoon();
  }

  showNewer() {
    this.newer.hidden = this.isPinned;
    const count = this.unseen === 1 ? '1 new message' : `${this.unseen} new messages`;
    this.newer.textContent = this.unseen === 0 ? 'Go to the newest' : count;
  }

  pin() {
    this.isPinned = true;
    this.unseen = 0;
    this.showNewer();
    this.scrollSoon();
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

/**
 * A device for each user of this tab, the same after a reload. A duplicated tab gets a copy of the
 * storage, but not of the lock: two of one device would push each other out.
 */
export async function deviceOf(user) {
  const key = `aldis-device-${user}`;
  const known = sessionStorage.getItem(key);
  // A page that reloads may hold the lock for a moment longer.
  for (let attempt = 0; known && attempt < DEVICE_TRIES; attempt += 1) {
    if (await take(known)) return known;
    await new Promise((resolve) => setTimeout(resolve, DEVICE_PAUSE_MS));
  }
  const device = `web-${randomHex(6)}`;
  sessionStorage.setItem(key, device);
  await take(device);
  return device;
}

/** Holds the lock of this name for as long as the page lives. False: another page holds it. */
function take(device) {
  if (!navigator.locks) return Promise.resolve(true);
  return new Promise((resolve) => {
    navigator.locks.request(`aldis-${device}`, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise(() => {});
    });
  });
}

function keepOutbox({ user, outbox }) {
  sessionStorage.setItem(`aldis-outbox-${user}`, JSON.stringify(outbox));
}

function takeOutbox(user) {
  const key = `aldis-outbox-${user}`;
  const kept = sessionStorage.getItem(key);
  sessionStorage.removeItem(key);
  return kept ? JSON.parse(kept) : [];
}

function textOf({ body, body64 }) {
  return body ?? `${Math.floor((body64?.length ?? 0) * 0.75)} bytes that are not text`;
}
