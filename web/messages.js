// The messages of the open conversation: in order of places, with their ticks, scrolled to the
// newest unless a person scrolled up; older ones are asked for as the top comes near.

import { wordsOf } from './conversation.js';

/** So near to the end, the newest message is kept in sight. */
const PINNED_PX = 60;
/** So near to the top, older messages are asked for. */
const OLDER_PX = 200;
/** What scrolls so soon after a person touched the list is that person's wish. */
const TOUCH_MS = 1_000;

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

export class Messages {
  /** `events`: older() when the top is near, seen() when something may have become read. */
  constructor(root, events) {
    this.events = events;
    this.list = root.querySelector('.messages');
    this.newer = root.querySelector('.newer');
    this.bubbles = new Map();
    // Whether the newest message is kept in sight. Kept, since asking costs a layout each time.
    this.isPinned = true;
    this.touchedAt = -Infinity;
    this.unseen = 0;
    this.listen();
  }

  listen() {
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
  }

  /** Another conversation. */
  open(conversation) {
    this.conversation = conversation;
    this.bubbles.clear();
    this.list.replaceChildren();
    this.trim();
    const items = [...conversation.items.values()];
    items.sort((a, b) => (a.seq ?? Infinity) - (b.seq ?? Infinity));
    for (const item of items) this.show(item);
    this.pin();
  }

  /** A message that came. */
  arrived(item) {
    this.show(item);
    this.trim();
    if (this.isPinned || item.isMine) return;
    this.unseen += 1;
    this.showNewer();
  }

  /** One that is there already, or one's own. */
  changed(item) {
    this.show(item);
    this.trim();
  }

  /** Older ones, above: what is in sight stays where it is. */
  prepend(items) {
    const { list } = this;
    const fromEnd = list.scrollHeight - list.scrollTop;
    for (const item of items.toReversed()) this.show(item);
    if (!this.isPinned) list.scrollTop = list.scrollHeight - fromEnd;
  }

  show(item) {
    const known = this.bubbles.get(item.key);
    if (known) {
      this.place(known);
      return;
    }
    const template = document.getElementById(item.change ? 'event' : 'message');
    const element = template.content.firstElementChild.cloneNode(true);
    const bubble = { item, element };
    if (item.change) element.querySelector('.words').textContent = wordsOf(item);
    else this.dress(element, item);
    element.dataset.key = item.key;
    this.bubbles.set(item.key, bubble);
    this.place(bubble);
    if (this.isPinned) this.scrollSoon();
  }

  dress(element, item) {
    element.querySelector('.text').textContent = item.text;
    element.classList.toggle('mine', item.isMine);
    const from = element.querySelector('.from');
    from.hidden = item.isMine || !this.conversation.isGroup;
    from.textContent = item.from;
  }

  /** In order of places; what has none yet stands below. */
  place(bubble) {
    const { element, item } = bubble;
    const isPlaced = element.parentNode && element.dataset.seq === String(item.seq ?? '');
    element.dataset.seq = item.seq ?? '';
    if (!item.change) this.showMeta(element, item);
    if (!isPlaced) {
      const rank = (other) => (other.dataset.seq === '' ? Infinity : Number(other.dataset.seq));
      let after = element.parentNode ? element.previousElementSibling : this.list.lastElementChild;
      while (after && rank(after) > rank(element)) after = after.previousElementSibling;
      const before = after ? after.nextElementSibling : this.list.firstElementChild;
      if (before !== element) this.list.insertBefore(element, before);
    }
    this.tick(bubble);
  }

  showMeta(element, { seq, ts, reason }) {
    const time = element.querySelector('time');
    time.textContent = CLOCK.format(ts);
    time.dateTime = new Date(ts).toISOString();
    element.querySelector('.seq').textContent = seq ? `#${seq}` : '';
    if (!reason) return;
    const line = element.querySelector('.reason');
    line.textContent = reason;
    line.hidden = false;
  }

  showTicks() {
    for (const bubble of this.bubbles.values()) this.tick(bubble);
  }

  tick({ element, item }) {
    if (!item.isMine) return;
    const { ticks, count = '' } = this.conversation.ticksOf(item);
    const counter = element.querySelector('.count');
    if (counter.textContent !== count) counter.textContent = count;
    if (element.dataset.ticks === ticks) return;
    element.dataset.ticks = ticks;
    const drawing = element.querySelector('.ticks');
    drawing.setAttribute('aria-label', TICKS[ticks]);
    drawing.querySelector('title').textContent = TICKS[ticks];
    drawing.querySelector('use').setAttribute('href', `#ticks-${ticks}`);
  }

  /** While the newest are in sight the oldest are let go. */
  trim() {
    if (!this.isPinned) return;
    for (const key of this.conversation.trim()) {
      this.bubbles.get(key)?.element.remove();
      this.bubbles.delete(key);
    }
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.list;
    const isNear = scrollHeight - scrollTop - clientHeight < PINNED_PX;
    // Messages that came since our own scrolling leave the end behind, without anybody's wish.
    const isWished = !this.isScrolling || performance.now() - this.touchedAt < TOUCH_MS;
    if (isNear || isWished) this.isPinned = isNear;
    if (this.isPinned) this.unseen = 0;
    this.showNewer();
    if (scrollTop < OLDER_PX && !this.isPinned) this.events.older();
    this.events.seen();
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
