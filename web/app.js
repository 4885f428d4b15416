// The page of Aldis: two real clients of /v1/connect, and a witness that compares what one was told
// with what the other received. No framework, no build step.
//
// `sdk/` speaks the protocol (compiled from clients/typescript), `session.js` and `conversation.js`
// are what one client knows, `pane.js`, `messages.js` and `dialogs.js` draw it, `witness.js` counts
// broken promises; this file puts them together with the kill buttons, the load and the counters.
// `/?user=NAME` is one client alone, `/?left=NAME&right=NAME` are these two.

import { announce } from './announcer.js';
import { Pane } from './pane.js';
import { Witness } from './witness.js';

const COUNTERS_MS = 250;
const LOAD_MS = 50;
/** Without load somebody has to write, or nobody would see how long it took. */
const PROBE_MS = 40;

async function start() {
  const parameters = new URLSearchParams(location.search);
  const needsToken = await asksForTokens();
  const tokens = needsToken ? takeTokens() : [];
  const alone = parameters.get('user');
  if (alone) return startAlone(alone, needsToken, tokens[0]);
  const named = [
    parameters.get('left') || userOf(tokens[0]) || 'alice',
    parameters.get('right') || userOf(tokens[1]) || 'bob',
  ];
  const [left, right] = named[0] === named[1] ? ['alice', 'bob'] : named;
  const witness = new Witness();
  const sides = [
    [left, right, tokens[0]],
    [right, left, tokens[1]],
  ];
  const panes = [];
  for (const [user, peer, token] of sides) {
    panes.push(await Pane.open({ user, peer, witness, needsToken, token }));
  }
  witness.clients = panes.map((pane) => pane.session);
  document.getElementById('panes').append(...panes.map((pane) => pane.root));
  const query = `user=${encodeURIComponent(right)}`;
  for (const [id, user] of [['left-alone', left], ['right-alone', right]]) {
    const link = document.getElementById(id);
    link.textContent = user;
    link.href = `/?user=${encodeURIComponent(user)}`;
  }
  document.getElementById('here').textContent =
    `websocat 'ws://${location.host}/v1/connect?${needsToken ? 'token=...' : query}'`;
  if (needsToken) withoutKills();
  wireLines(panes);
  const load = wireLoad(panes);
  wireKills(witness, panes, load);
  setInterval(() => showWitnessed(witness, panes), COUNTERS_MS);
}

/** One client as large as the window, for its own user. */
async function startAlone(user, needsToken, token) {
  document.body.classList.add('alone');
  document.title = `${user} - Aldis`;
  const pane = await Pane.open({ user, needsToken, token });
  const heading = document.createElement('h1');
  heading.className = 'unseen';
  heading.textContent = document.title;
  document.getElementById('panes').append(heading, pane.root);
  wireLines([pane]);
}

/** All go online, and again as soon as the browser has a network. */
function wireLines(panes) {
  for (const pane of panes) pane.session.goOnline();
  document.addEventListener('visibilitychange', () => {
    for (const pane of panes) pane.readSoon();
  });
  window.addEventListener('online', () => {
    for (const { session } of panes) if (session.wanted) session.goOnline();
  });
}

/** The edge says on each of its files how clients prove who they are. */
async function asksForTokens() {
  const head = await fetch('/', { method: 'HEAD' }).catch(() => undefined);
  return head?.headers.get('Aldis-Auth') === 'jwt';
}

/** `#token=LEFT&token=RIGHT`, which then leaves the address: that is shown, kept and shared. */
function takeTokens() {
  const tokens = new URLSearchParams(location.hash.slice(1)).getAll('token');
  if (tokens.length > 0) history.replaceState(null, '', location.pathname + location.search);
  return tokens;
}

/** Whom a token names, if that can be read. Only the edge verifies it. */
function userOf(token) {
  try {
    const claims = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(claims), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)).sub;
  } catch {
    return undefined;
  }
}

function withoutKills() {
  document.querySelector('.kills').hidden = true;
  const line = document.getElementById('no-kills');
  line.textContent = line.dataset.tokenText;
}

/** Both sides write in turn. */
function wireLoad(panes) {
  const button = document.getElementById('load');
  const load = { timer: null, round: 0 };
  button.addEventListener('click', () => {
    clearInterval(load.timer);
    load.timer = load.timer ? null : setInterval(() => {
      const [writer, word] = load.round % 2 === 0 ? [panes[0], 'ping'] : [panes[1], 'pong'];
      writer.write(`${word} ${Math.floor(load.round / 2) + 1}`, writer.session.direct);
      load.round += 1;
    }, LOAD_MS);
    for (const pane of panes) pane.isQuiet = load.timer !== null;
    button.setAttribute('aria-pressed', String(load.timer !== null));
  });
  return load;
}

function wireKills(witness, panes, load) {
  for (const button of document.querySelectorAll('.kill')) {
    button.addEventListener('click', async () => {
      button.disabled = true;
      const kill = witness.killing(button.dataset.child);
      kill.refusal = await refusalOf(kill, witness);
      button.disabled = false;
      button.focus({ preventScroll: true });
      if (kill.refusal !== null) return;
      witness.killed(kill);
      setTimeout(() => {
        const writer = panes.find((pane) => pane.session.wanted);
        if (load.timer !== null) return;
        writer?.write(`Still there after kill -9 ${kill.child}?`, writer.session.direct);
      }, PROBE_MS);
    });
  }
}

/** Asks for the kill. Null when it was handed over. */
async function refusalOf({ child }, witness) {
  const wasOnline = witness.clients.some((client) => client.state === 'online');
  try {
    const headers = { 'X-Aldis-Dev': '1' };
    const response = await fetch(`/dev/kill/${child}`, { method: 'POST', headers });
    if (response.ok) return null;
    const { message } = await response.json();
    return message ?? `refused with ${response.status}`;
  } catch {
    // The edge may die of it before it answers.
    return child === 'edge' && wasOnline ? null : 'the edge did not answer';
  }
}

function showWitnessed(witness, panes) {
  showCounters(witness, panes);
  showKills(witness);
  for (const pane of panes) pane.showState();
}

function showCounters(witness, panes) {
  const numbers = {
    lost: witness.lost(performance.now()),
    duplicated: witness.duplicated,
    disordered: witness.disordered,
    accepted: witness.accepted,
    arrived: witness.arrivedCount,
    waiting: panes.reduce((sum, pane) => sum + pane.session.client.outbox.length, 0),
    median: milliseconds(witness.latencyAt(0.5)),
    slowest: milliseconds(witness.latencyAt(1)),
  };
  for (const [name, value] of Object.entries(numbers)) {
    const element = document.getElementById(name);
    write(element, typeof value === 'number' ? value.toLocaleString('en') : value);
    element.parentElement.classList.toggle('broken', value > 0);
  }
}

function showKills(witness) {
  const list = document.getElementById('kills');
  list.hidden = witness.kills.length === 0;
  document.getElementById('no-kills').hidden = !list.hidden;
  for (const [index, kill] of witness.kills.entries()) {
    const line = list.children[index] ?? list.appendChild(newLine());
    const result = resultOf(kill);
    line.dataset.state = result.state;
    write(line.querySelector('b'), kill.child);
    write(line.querySelector('span'), result.words);
    if (result.state !== 'pending' && !kill.isAnnounced) {
      kill.isAnnounced = true;
      announce(`${kill.child} ${result.words}`);
    }
  }
}

function newLine() {
  return document.getElementById('kill').content.firstElementChild.cloneNode(true);
}

function resultOf({ at, afterMs, refusal }) {
  if (refusal) return { state: 'refused', words: `not killed: ${refusal}` };
  if (afterMs !== null) {
    return { state: 'over', words: `killed, next message accepted after ${milliseconds(afterMs)}` };
  }
  const elapsed = milliseconds(performance.now() - at);
  return { state: 'pending', words: `killed ${elapsed} ago, waiting for the next message` };
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function milliseconds(value) {
  if (value === null) return '-';
  if (value >= 1_000) return `${(value / 1_000).toFixed(1)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

start();
