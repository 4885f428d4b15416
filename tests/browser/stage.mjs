// The stage for everything that looks at the page: `aldis up` on a free port and in a folder of its
// own, a headless Chromium, and what both are asked all the time.
//
// Environment: ALDIS is the binary (else target/release/aldis). PAGE=web takes the page's files
// from that folder instead of from the binary, so that a change can be looked at without a build.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const require = createRequire(path.join(ROOT, 'target/browser/package.json'));
const { chromium } = require('playwright-core');
const AXE = require.resolve('axe-core/axe.min.js');

export const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true };
export const DESKTOP = { viewport: { width: 1280, height: 800 } };

const CHROMIUM = '/usr/bin/chromium';
const CHROMIUM_FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];
const READY_MS_MAX = 60_000;
const MIME = { html: 'text/html', css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml' };

const BINARY = process.env.ALDIS ?? path.join(ROOT, 'target/release/aldis');

/** `aldis up` with `more` flags, until `end()`. */
export class Aldis {
  static async start(more = []) {
    const aldis = new Aldis();
    aldis.folder = await mkdtemp(path.join(tmpdir(), 'aldis-browser-'));
    aldis.address = `127.0.0.1:${await freePort()}`;
    aldis.origin = `http://${aldis.address}`;
    const flags = ['up', '--shards', '1', '--log', 'warn', '--listen', aldis.address];
    const data = path.join(aldis.folder, 'data');
    aldis.process = spawn(BINARY, [...flags, '--data', data, ...more]);
    aldis.output = '';
    await aldis.ready();
    return aldis;
  }

  ready() {
    const { process } = this;
    return new Promise((resolve, reject) => {
      const give = (why) => reject(new Error(`aldis up: ${why}\n${this.output}`));
      const patience = setTimeout(() => give('not ready in time'), READY_MS_MAX);
      const hear = (chunk) => {
        this.output += chunk;
        if (/^\W*ready\b/m.test(this.output)) {
          clearTimeout(patience);
          resolve();
        }
      };
      process.stdout.on('data', hear);
      process.stderr.on('data', hear);
      process.on('error', (error) => give(error.message));
      process.on('exit', (status) => give(`ended with ${status}`));
    });
  }

  async end() {
    if (this.process.exitCode === null) {
      const ended = new Promise((resolve) => this.process.once('exit', resolve));
      this.process.kill('SIGTERM');
      await ended;
    }
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** What `aldis token` prints. */
export function tokenOf(user, key, ...more) {
  const flags = ['token', '--jwt-key', key, '--user', user, ...more];
  return execFileSync(BINARY, flags, { encoding: 'utf8' }).trim();
}

export function openBrowser() {
  return chromium.launch({ executablePath: CHROMIUM, args: CHROMIUM_FLAGS });
}

/**
 * A browser's window of its own, as of another person. What a page complains of (its console, its
 * errors, its Content-Security-Policy) is gathered in `complaints`.
 */
export async function openContext(browser, aldis, options = {}) {
  const context = await browser.newContext({ baseURL: aldis.origin, locale: 'en-GB', ...options });
  const complaints = [];
  context.on('page', (page) => {
    page.on('pageerror', (error) => complaints.push(`error: ${error.message}`));
    page.on('console', (message) => {
      const isExpected = isOfDeadEdge(message);
      if (['error', 'warning'].includes(message.type()) && !isExpected) {
        complaints.push(`console: ${message.text()}`);
      }
    });
  });
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  if (process.env.PAGE) await serveFrom(path.resolve(process.env.PAGE), context, aldis);
  return { context, complaints };
}

/** While an edge is dead the browser itself writes that it cannot reach it. */
function isOfDeadEdge(message) {
  const text = message.text();
  const isUnreached = /WebSocket connection to .* failed|ERR_(CONNECTION|EMPTY|SOCKET)/.test(text);
  return isUnreached && !/policy|Content Security/i.test(text);
}

/** Serves the page from a folder, with the headers of the binary. */
async function serveFrom(folder, context, aldis) {
  // The browser does not know where such a page comes from, and would keep it off the loopback.
  await context.grantPermissions(['local-network-access']);
  const { headers } = await fetch(`${aldis.origin}/`);
  const policy = headers.get('content-security-policy');
  await context.route(`${aldis.origin}/**`, async (route) => {
    const { pathname } = new URL(route.request().url());
    const name = pathname === '/' ? 'index.html' : pathname.slice(1);
    const contentType = MIME[path.extname(name).slice(1)];
    if (!contentType || route.request().method() !== 'GET') return route.continue();
    const body = await readFile(path.join(folder, name));
    return route.fulfill({ body, contentType, headers: { 'content-security-policy': policy } });
  });
}

/** One side of the page, as a person uses it. */
export class Side {
  constructor(page, user) {
    this.page = page;
    this.root = page.getByRole('region', { name: `${user}'s side` });
    this.field = this.root.getByRole('textbox');
    this.toggle = this.root.getByRole('switch');
    this.messages = this.root.locator('.message');
    this.status = this.root.locator('.status');
  }

  async write(text) {
    await this.field.fill(text);
    await this.field.press('Enter');
  }

  message(text) {
    return this.messages.filter({ has: this.page.getByText(text, { exact: true }) });
  }
}

/** The counters as numbers, by their ids. */
export function counters(page) {
  return page.evaluate(() => {
    const cells = [...document.querySelectorAll('.counters dd')];
    const number = (cell) => Number.parseFloat(cell.textContent.replaceAll(',', ''));
    return Object.fromEntries(cells.map((cell) => [cell.id, number(cell)]));
  });
}

/** Waits until `condition()` holds; `what` says in the error what did not. */
export async function until(what, condition, patience_ms = 20_000) {
  const end = Date.now() + patience_ms;
  for (;;) {
    const answer = await condition();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`waited ${patience_ms} ms in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** What the accessibility rules of WCAG 2.1 AA, contrast among them, find wrong. */
export async function inaccessible(page) {
  await page.evaluate(await readFile(AXE, 'utf8'));
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, {
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],
  }));
  return violations.flatMap(({ id, nodes }) => nodes.map(({ target, any }) => {
    const why = any[0]?.message ?? '';
    return `${id}: ${target.join(' ')} ${why}`;
  }));
}

export function isOnline(side) {
  return until('online', async () => await side.status.textContent() === 'online');
}

export function shows(side, text, ticks) {
  const message = side.message(text);
  return until(`"${text.slice(0, 40)}" as ${ticks ?? 'received'}`, async () => {
    if (await message.count() !== 1) return false;
    return ticks === undefined || await message.getAttribute('data-ticks') === ticks;
  });
}

/** Nothing scrolls sideways, and no control covers another one or reaches out of its pane. */
export async function fits(page) {
  const wrong = await page.evaluate(() => {
    const wrong = [];
    const { scrollWidth, clientWidth } = document.documentElement;
    if (scrollWidth > clientWidth) wrong.push(`the page is ${scrollWidth} wide of ${clientWidth}`);
    for (const list of document.querySelectorAll('.messages, .pane, .counters, .rows, dialog')) {
      if (list.scrollWidth > list.clientWidth) wrong.push(`${list.className} scrolls sideways`);
    }
    const isSeen = (element) => element.getClientRects().length > 0;
    const controls = document.querySelectorAll('button, textarea, input, h1, h2, dd, dt, .status');
    const boxes = [...controls].filter(isSeen).map((element) => ({
      name: element.getAttribute('aria-label') ?? element.textContent,
      box: element.getBoundingClientRect(),
    }));
    for (const [index, { name, box }] of boxes.entries()) {
      if (box.left < 0 || box.right > clientWidth) wrong.push(`${name} reaches out of the page`);
      for (const other of boxes.slice(index + 1)) {
        const wide = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
        const high = Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top);
        // The buttons of a group share a border.
        if (wide > 1.5 && high > 1.5) wrong.push(`${name} covers ${other.name}`);
      }
    }
    return wrong;
  });
  assert.deepEqual(wrong, []);
}

/** A port below those that the kernel gives to outgoing connections. */
async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const isFree = await new Promise((resolve) => {
      const probe = createServer();
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}
