// One client on the page: its conversations, the one that is open, what a person does with them.

import { announce } from './announcer.js';
import { paint } from './avatar.js';
import { deviceOf } from './device.js';
import { askForMembers, askForNew } from './dialogs.js';
import { Messages } from './messages.js';
import { Session } from './session.js';
import { wordsOf } from './conversation.js';

const READ_SHARE = 0.4;
const READ_MS = 450;
/** How often what only time changes is looked at: typing that is over. */
const STALE_MS = 1_000;

const STATES = {
  offline: 'offline',
  connecting: 'connecting',
  waiting: 'reconnecting',
  online: 'online',
  replaced: 'opened elsewhere',
  revoked: 'this device was signed out',
  token: 'needs a token',
};
const SEEN = new Intl.DateTimeFormat([], {
  day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit',
});
const CLOCK = new Intl.DateTimeFormat([], { hour: '2-digit', minute: '2-digit' });

export class Pane {
  static async open({ user, peer, witness, needsToken, token }) {
    const pane = new Pane(user);
    const events = pane.events();
    const device = await deviceOf(user);
    pane.session = await Session.open({
      user, peer, device, witness, needsToken, token, events,
    });
    pane.dress();
    pane.listen();
    if (pane.session.direct) pane.openConversation(pane.session.direct);
    else pane.root.dataset.view = 'list';
    pane.showState();
    pane.showList();
    return pane;
  }

  constructor(user) {
    this.user = user;
    this.root = document.getElementById('pane').content.firstElementChild.cloneNode(true);
    this.toggle = this.root.querySelector('.switch input');
    this.rows = new Map();
    this.isQuiet = false;
    this.isOnScreen = true;
    this.messages = new Messages(this.root, {
      older: () => this.loadOlder(),
      seen: () => this.readSoon(),
    });
  }

  events() {
    return {
      state: () => this.showState(),
      listed: () => this.showSoon(),
      arrived: (conversation, item) => this.arrived(conversation, item),
      changed: (conversation, item) => {
        if (conversation === this.current) this.messages.changed(item);
        this.showState();
        this.showSoon();
      },
      moved: (conversation) => {
        if (conversation === this.current) this.messages.showTicks();
        this.showSoon();
      },
    };
  }

  dress() {
    const { root, user } = this;
    const find = (selector) => root.querySelector(selector);
    find('h2').textContent = user;
    paint(find('header .avatar'), user);
    root.setAttribute('aria-label', `${user}'s side`);
    find('.list').setAttribute('aria-label', `${user}'s conversations`);
    this.list = find('.rows');
    this.composer = find('.composer:not(.token)');
    this.tokenForm = find('.token');
    this.tokenField = this.tokenForm.querySelector('input');
    this.tokenField.placeholder = `Token of ${user}`;
    this.tokenField.setAttribute('aria-label', this.tokenField.placeholder);
    this.tokenForm.title = `aldis token --jwt-key FILE --user ${user}`;
    this.field = this.composer.querySelector('textarea');
    this.toggle.setAttribute('aria-label', `${user} is online`);
  }

  listen() {
    const find = (selector) => this.root.querySelector(selector);
    this.composer.addEventListener('submit', (event) => {
      event.preventDefault();
      this.submit();
    });
    this.tokenForm.addEventListener('submit', (event) => {
      event.preventDefault();
      const token = this.tokenField.value.trim();
      this.tokenField.value = '';
      if (token !== '') this.session.useToken(token);
    });
    this.field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.field.addEventListener('input', () => {
      if (this.field.value !== '' && this.current) this.session.client.typing(this.current.name);
    });
    this.toggle.addEventListener('change', () => {
      if (this.toggle.checked) this.session.goOnline();
      else this.session.goOffline();
    });
    find('.back').addEventListener('click', () => {
      this.root.dataset.view = 'list';
      (this.rows.get(this.current?.name)?.button ?? find('.begin')).focus();
    });
    find('.begin').addEventListener('click', () => askForNew(this));
    find('.about').addEventListener('click', () => askForMembers(this, this.current));
    new IntersectionObserver(([entry]) => {
      this.isOnScreen = entry.isIntersecting;
      this.readSoon();
    }, { threshold: READ_SHARE }).observe(this.root);
    setInterval(() => this.showSoon(), STALE_MS);
  }

  // What a person does.

  openConversation(conversation) {
    this.current = conversation;
    this.root.dataset.view = 'chat';
    this.messages.open(conversation);
    this.showHead();
    this.showList();
    if (!conversation.isOpened) this.loadOlder();
    if (conversation.isGroup && !conversation.group) this.session.loadGroup(conversation);
    this.readSoon();
  }

  submit() {
    if (this.field.value.trim() !== '') this.write(this.field.value);
    this.field.value = '';
  }

  /** Into the conversation that is open, unless another one is named. */
  write(text, conversation = this.current) {
    const item = this.session.write(conversation, text);
    if (conversation === this.current) {
      this.messages.changed(item);
      this.messages.pin();
    }
    this.showState();
    this.showSoon();
  }

  async loadOlder() {
    const conversation = this.current;
    if (this.session.state !== 'online' || !conversation?.hasMore) return;
    const items = await this.session.loadOlder(conversation);
    if (conversation !== this.current) return;
    this.messages.prepend(items);
    this.readSoon();
    this.showSoon();
  }

  /** Something became readable, or the page came to the front. */
  readSoon() {
    if (this.reading) return;
    this.reading = setTimeout(() => {
      this.reading = undefined;
      const isSeen = document.visibilityState === 'visible' && this.isOnScreen;
      if (isSeen && this.isChatShown && this.messages.isPinned) {
        this.session.markRead(this.current);
      }
    }, READ_MS);
  }

  get isChatShown() {
    return this.current !== undefined && this.composer.offsetParent !== null;
  }

  // What is shown.

  arrived(conversation, item) {
    this.showSoon();
    if (conversation === this.current) {
      this.messages.arrived(item);
      this.readSoon();
    } else {
      conversation.trim();
    }
    if (item.isMine || item.change || this.isQuiet) return;
    announce(`${item.from} to ${this.user}: ${item.text}`);
  }

  showState() {
    const { session } = this;
    if (!session?.client) return;
    const queued = session.client.outbox.length;
    const asks = session.state === 'token';
    const word = (asks && session.problem) || STATES[session.state];
    const isNews = session.state !== 'online' && queued > 0;
    const status = isNews ? `${word}, ${queued} waiting` : word;
    if (this.root.dataset.state !== session.state) {
      this.root.dataset.state = session.state;
      announce(`${this.user} is ${word}`);
      if (session.state === 'online' && this.current && !this.current.isOpened) this.loadOlder();
      this.readSoon();
    }
    this.tokenForm.hidden = !asks;
    this.composer.hidden = asks;
    write(this.root.querySelector('.status'), status);
    this.toggle.checked = session.wanted && !asks;
  }

  /** Once for all that changed since the last picture. */
  showSoon() {
    if (this.isShowing) return;
    this.isShowing = true;
    requestAnimationFrame(() => {
      this.isShowing = false;
      this.showList();
      this.showHead();
    });
  }

  showHead() {
    const { current, root, session } = this;
    root.querySelector('.chat').classList.toggle('empty', current === undefined);
    this.showBadge(root.querySelector('.back .badge'), session.unread - (current?.unread ?? 0));
    if (current === undefined) return;
    write(root.querySelector('h3'), current.title);
    paint(root.querySelector('.head .avatar'), current.title);
    this.showPresence(root.querySelector('.head .avatar'), current);
    write(root.querySelector('.subtitle'), this.subtitleOf(current));
    root.querySelector('.about').hidden = !current.isGroup;
    const placeholder = current.hasLeft ? 'You are not in this group' : `Write to ${current.title}`;
    this.field.placeholder = placeholder;
    this.field.disabled = current.hasLeft;
    const whom = current.isGroup ? current.name : current.peer;
    this.field.setAttribute('aria-label', `Message from ${this.user} to ${whom}`);
    this.messages.list.setAttribute('aria-label', `Messages of ${this.user} and ${whom}`);
  }

  subtitleOf(conversation) {
    const typists = conversation.typing(performance.now());
    if (typists.length > 0 && !conversation.isGroup) return 'typing...';
    if (typists.length === 1) return `${typists[0]} is typing...`;
    if (typists.length > 1) return `${typists.length} are typing...`;
    if (conversation.hasLeft) return 'not a member';
    if (conversation.isGroup) {
      const { members } = conversation.group ?? { members: [] };
      const online = members.filter((user) => this.session.presence.get(user)?.state === 'online');
      const count = members.length === 1 ? '1 member' : `${members.length} members`;
      return online.length > 0 ? `${count}, ${online.length} online` : count;
    }
    const { state, last_seen: lastSeen } = this.session.presence.get(conversation.peer) ?? {};
    if (state === 'offline' && lastSeen) return `last seen ${SEEN.format(lastSeen)}`;
    return state ?? '';
  }

  showPresence(avatar, { peer }) {
    const state = peer === undefined ? undefined : this.session.presence.get(peer)?.state;
    avatar.dataset.presence = state ?? '';
  }

  showBadge(badge, count) {
    badge.hidden = count <= 0;
    write(badge.querySelector('b'), count > 99 ? '99+' : String(count));
  }

  showList() {
    let before = this.list.firstElementChild;
    for (const conversation of this.session.sorted) {
      const row = this.rows.get(conversation.name) ?? this.newRow(conversation);
      this.showRow(row, conversation);
      if (row.element === before) before = before.nextElementSibling;
      else this.list.insertBefore(row.element, before);
    }
  }

  newRow(conversation) {
    const element = document.getElementById('row').content.firstElementChild.cloneNode(true);
    const row = { element, button: element.querySelector('button') };
    row.button.addEventListener('click', () => {
      this.openConversation(conversation);
      if (this.field.offsetParent) this.field.focus({ preventScroll: true });
    });
    this.rows.set(conversation.name, row);
    return row;
  }

  showRow({ element, button }, conversation) {
    const find = (selector) => element.querySelector(selector);
    const { last, unread, title } = conversation;
    if (conversation === this.current) button.setAttribute('aria-current', 'true');
    else button.removeAttribute('aria-current');
    paint(find('.avatar'), title);
    this.showPresence(find('.avatar'), conversation);
    write(find('.title'), title);
    write(find('time'), last ? CLOCK.format(last.ts) : '');
    const isTyped = conversation.typing(performance.now()).length > 0;
    write(find('.preview'), isTyped ? 'typing...' : previewOf(conversation));
    this.showBadge(find('.badge'), unread);
  }
}

function previewOf({ last, isGroup }) {
  if (last === undefined) return '';
  if (last.change) return wordsOf(last);
  const line = last.text.slice(0, 120);
  if (last.isMine) return `You: ${line}`;
  return isGroup ? `${last.from}: ${line}` : line;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
