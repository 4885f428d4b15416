// The page in a real browser: what a person sees and does, with the promises counted by the page's
// own witness, and what other sites cannot do.

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, request } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  Aldis, DESKTOP, PHONE, Side, counters, fits, inaccessible, isOnline, openBrowser, openContext,
  shows, tokenOf, until,
} from './stage.mjs';

const CHILDREN = ['store', 'sequencer', 'edge'];
/** Between two kills: some messages pass. */
const PAUSE_MS = 500;
const RECOVERY_MS_MAX = 45_000;

let aldis;
let browser;

before(async () => {
  [aldis, browser] = await Promise.all([Aldis.start(), openBrowser()]);
});

after(async () => {
  await browser?.close();
  await aldis?.end();
});

/** The page of two people nobody wrote to before, so that tests do not meet. */
async function visit(left, right, options = DESKTOP) {
  const { context, complaints } = await openContext(browser, aldis, options);
  const page = await context.newPage();
  await page.goto(`/?left=${left}&right=${right}`);
  const sides = [new Side(page, left), new Side(page, right)];
  for (const side of sides) await isOnline(side);
  return { context, complaints, page, sides };
}

function kill(page, child) {
  return page.getByRole('button', { name: `kill -9 ${child}` }).click();
}

/** All that was written was accepted and has arrived, and no promise was broken. */
async function isAllWell(page, accepted_min) {
  await until('all accepted and arrived', async () => {
    const { accepted, arrived, waiting } = await counters(page);
    return waiting === 0 && accepted === arrived && accepted >= accepted_min;
  }, RECOVERY_MS_MAX);
  const { lost, duplicated, disordered } = await counters(page);
  assert.deepEqual({ lost, duplicated, disordered }, { lost: 0, duplicated: 0, disordered: 0 });
}

describe('two people', () => {
  test('chat; ticks reach read; text stays text', async () => {
    const { context, complaints, page, sides: [ann, ben] } = await visit('ann', 'ben');
    const markup = '<img src=x onerror="document.title=1"><b>bold</b> &amp; <script>1</script>';
    const long = 'longer'.repeat(400);
    await ann.write('hello ben');
    await shows(ben, 'hello ben');
    await shows(ann, 'hello ben', 'read');
    await ben.write(markup);
    await shows(ann, markup);
    await ben.write(long);
    await shows(ann, long);
    assert.equal(await page.locator('.message img, .message b, .message script').count(), 0);
    assert.equal(await page.title(), 'Aldis');
    await ann.field.fill('two');
    await ann.field.press('Shift+Enter');
    await ann.field.pressSequentially('lines');
    await ann.field.press('Enter');
    await until('both lines', async () => (
      await ben.messages.last().locator('.text').innerText() === 'two\nlines'
    ));
    await fits(page);
    await isAllWell(page, 4);
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('go offline and come back; what was written meanwhile arrives', async () => {
    const { context, complaints, page, sides: [ann, ben] } = await visit('away', 'home');
    await ben.toggle.press('Space');
    await until('offline', async () => await ben.status.textContent() === 'offline');
    await ann.write('are you there?');
    await shows(ann, 'are you there?', 'sent');
    await ben.write('written without a line');
    await shows(ben, 'written without a line', 'waiting');
    await until('it says that one waits', async () => (
      /1 waiting/.test(await ben.status.textContent())
    ));
    assert.equal(await ben.message('are you there?').count(), 0);
    await ben.toggle.press('Space');
    await isOnline(ben);
    await shows(ann, 'are you there?', 'read');
    await shows(ben, 'written without a line', 'read');
    await isAllWell(page, 2);
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('reload; what was written and not accepted is sent, and is there once', async () => {
    const { context, complaints, page, sides: [ann, ben] } = await visit('old', 'new');
    const deviceBefore = await page.evaluate(() => sessionStorage.getItem('aldis-device-old'));
    await ann.write('before');
    await shows(ann, 'before', 'read');
    await ann.toggle.press('Space');
    await ann.write('kept over the reload');
    await shows(ann, 'kept over the reload', 'waiting');
    await page.reload();
    await isOnline(ann);
    await shows(ann, 'kept over the reload', 'read');
    await shows(ben, 'kept over the reload');
    const deviceAfter = await page.evaluate(() => sessionStorage.getItem('aldis-device-old'));
    assert.equal(deviceAfter, deviceBefore);
    if (await knowsHistory(page)) {
      await shows(ann, 'before', 'read');
      await shows(ben, 'before');
    }
    await isAllWell(page, 1);
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('a second tab is another device, also a duplicated one', async () => {
    const { context, complaints, page, sides: [ann] } = await visit('twin', 'solo');
    await ann.write('from the first tab');
    await shows(ann, 'from the first tab', 'read');
    const opening = context.waitForEvent('page');
    await page.evaluate(() => { window.open(location.href); });
    const copy = await opening;
    const annAgain = new Side(copy, 'twin');
    await isOnline(annAgain);
    await annAgain.write('from the second tab');
    await shows(ann, 'from the second tab');
    const own = ann.message('from the second tab');
    assert.ok(await own.evaluate((element) => element.matches('.mine')));
    await ann.write('and back');
    await shows(annAgain, 'and back');
    for (const tab of [page, copy]) {
      assert.deepEqual(await tab.locator('.pane[data-state="online"]').count(), 2);
    }
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('a thousand messages: the page keeps a few, the counters keep all', async () => {
    const { context, complaints, page, sides: [ann, ben] } = await visit('many', 'more');
    const count = 1_000;
    await page.evaluate((count) => {
      const form = document.querySelector('.composer');
      const field = form.querySelector('textarea');
      let written = 0;
      const timer = setInterval(() => {
        for (let index = 0; index < 50 && written < count; index += 1) {
          written += 1;
          field.value = `number ${written}`;
          form.requestSubmit();
        }
        if (written === count) clearInterval(timer);
      }, 20);
    }, count);
    await isAllWell(page, count);
    await shows(ben, `number ${count}`);
    for (const side of [ann, ben]) assert.ok(await side.messages.count() <= 200);
    await shows(ann, `number ${count}`, 'read');
    await ben.root.locator('.messages').hover();
    await page.mouse.wheel(0, -3_000);
    await until('a way down', () => ben.root.locator('.newer').isVisible());
    await ann.write('unseen');
    await until('it is counted', async () => (
      await ben.root.locator('.newer').textContent() === '1 new message'
    ));
    await shows(ann, 'unseen', 'delivered');
    await page.waitForTimeout(800);
    await shows(ann, 'unseen', 'delivered');
    await ben.root.locator('.newer').click();
    await shows(ann, 'unseen', 'read');
    assert.deepEqual(complaints, []);
    await context.close();
  });
});

describe('kills', () => {
  test('of each process, again and again under load, lose and repeat nothing', async () => {
    const { context, complaints, page, sides } = await visit('alice', 'bob');
    const load = page.getByRole('button', { name: 'Write 20 messages/s' });
    await load.click();
    for (let round = 0; round < 2; round += 1) {
      for (const child of CHILDREN) {
        await kill(page, child);
        const newest = page.locator('#kills li').first();
        await until(`the ${child} is killed`, async () => (
          await newest.locator('b').textContent() === child
        ));
        await until(`${child}: the next message is accepted`, async () => (
          /accepted after [\d.]+ m?s$/.test(await newest.textContent())
        ), RECOVERY_MS_MAX);
        console.log(`# ${await newest.textContent()}`);
        await page.waitForTimeout(PAUSE_MS);
      }
    }
    await load.click();
    for (const side of sides) await isOnline(side);
    await isAllWell(page, 60);
    console.log('#', JSON.stringify(await counters(page)));
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('without load: a message is written to see how long it takes', async () => {
    const { context, complaints, page, sides: [, ben] } = await visit('calm', 'quiet');
    await kill(page, 'sequencer');
    await shows(ben, 'Still there after kill -9 sequencer?');
    await isAllWell(page, 1);
    assert.match(await page.locator('#kills').textContent(), /sequencer killed, next .* after/);
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('are not for other sites, nor for other names of this host', async () => {
    const { context, complaints, page } = await visit('own', 'other');
    const foreign = await foreignSite();
    const visitor = await context.newPage();
    await visitor.goto(foreign.origin);
    const outcomes = await visitor.evaluate(async (target) => {
      const attempts = [
        { method: 'POST', headers: { 'X-Aldis-Dev': '1' } },
        { method: 'POST' },
        { method: 'POST', mode: 'no-cors', headers: { 'X-Aldis-Dev': '1' } },
        { method: 'GET', mode: 'no-cors' },
      ];
      const outcomes = [];
      for (const attempt of attempts) {
        const outcome = fetch(`${target}/dev/kill/store`, attempt);
        outcomes.push(await outcome.then((answer) => answer.type, () => 'refused'));
      }
      return outcomes;
    }, aldis.origin);
    assert.ok(outcomes.every((outcome) => outcome !== 'basic' && outcome !== 'cors'), outcomes);
    const socket = await visitor.evaluate((target) => new Promise((resolve) => {
      const socket = new WebSocket(`${target.replace('http', 'ws')}/v1/connect?user=mallory`);
      socket.onopen = () => resolve('open');
      socket.onerror = () => resolve('refused');
    }), aldis.origin);
    assert.equal(socket, 'refused');
    foreign.close();

    const development = { 'X-Aldis-Dev': '1' };
    const ours = aldis.origin;
    assert.equal(await post({ ...development, Origin: foreign.origin }), 403);
    assert.equal(await post({ ...development, Origin: 'null' }), 403);
    assert.equal(await post(development), 403);
    assert.equal(await post({ Origin: ours }), 403);
    for (const host of ['evil.example', `evil.example:${aldis.address.split(':')[1]}`]) {
      const status = await post({ ...development, Host: host, Origin: `http://${host}` });
      assert.ok(status === 403 || status === 421, `Host ${host}: ${status}`);
    }
    assert.equal(await page.locator('.pane[data-state="online"]').count(), 2);
    // No message of ours had to wait, so nothing was killed.
    const side = new Side(page, 'own');
    await side.write('still here');
    await shows(side, 'still here', 'read');
    // The other site hears that it was refused; our page has nothing to complain of.
    const ofOurs = complaints.filter((complaint) => !/CORS|Failed to load/.test(complaint));
    assert.deepEqual(ofOurs, []);
    await context.close();
  });
});

describe('surroundings', () => {
  for (const colorScheme of ['light', 'dark']) {
    for (const [name, options] of [['desktop', DESKTOP], ['phone', PHONE]]) {
      test(`${name}, ${colorScheme}: fits, overlaps nothing, and is accessible`, async () => {
        const people = [`${name}-${colorScheme}`, `a-rather-long-name-${colorScheme}`];
        const visited = await visit(...people, { ...options, colorScheme });
        const { context, complaints, page, sides: [ann, ben] } = visited;
        await fits(page);
        await ann.write(`wide ${'W'.repeat(300)}`);
        await ben.write('short');
        await shows(ann, 'short');
        await kill(page, 'sequencer');
        await isAllWell(page, 3);
        await fits(page);
        assert.deepEqual(await inaccessible(page), []);
        const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        const brightness = Number(ground.match(/\d+/)[0]);
        assert.equal(brightness < 128, colorScheme === 'dark', ground);
        assert.deepEqual(complaints, []);
        await context.close();
      });
    }
  }

  test('a pane that is not on the screen reads nothing', async () => {
    const { context, complaints, page, sides: [ann, ben] } = await visit('top', 'bottom', PHONE);
    await page.evaluate(() => window.scrollTo(0, 0));
    await page.setViewportSize({ width: 390, height: 500 });
    await page.waitForTimeout(300);
    await ann.field.evaluate((field) => {
      field.value = 'look down';
      field.form.requestSubmit();
    });
    await shows(ann, 'look down', 'delivered');
    await page.waitForTimeout(800);
    await shows(ann, 'look down', 'delivered');
    await ben.root.scrollIntoViewIfNeeded();
    await ben.root.evaluate((root) => root.scrollIntoView());
    await shows(ann, 'look down', 'read');
    assert.deepEqual(complaints, []);
    await context.close();
  });

  test('everything is reached by keyboard, in the order in which it is seen', async () => {
    const { context, page } = await visit('tab', 'key');
    const names = [];
    for (let index = 0; index < 16; index += 1) {
      await page.keyboard.press('Tab');
      names.push(await page.evaluate(() => {
        const { activeElement: element } = document;
        const { outlineStyle } = getComputedStyle(element);
        const title = element.querySelector('.title') ?? element;
        const name = element.getAttribute('aria-label') ?? title.textContent;
        return outlineStyle === 'none' ? `${name} without an outline` : name;
      }));
    }
    const side = (one, other) => [
      `${one} is online`, 'New conversation', other, `Messages of ${one} and ${other}`,
      `Message from ${one} to ${other}`, 'Send',
    ];
    const kills = CHILDREN.map((child) => `kill -9 ${child}`);
    const head = ['Write 20 messages/s', ...kills];
    assert.deepEqual(names, [...head, ...side('tab', 'key'), ...side('key', 'tab')]);
    await context.close();
  });
});

describe('tokens', () => {
  let guarded;
  let folder;
  let key;

  before(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'aldis-tokens-'));
    key = path.join(folder, 'key');
    await writeFile(key, 'only for this test, thirty-two bytes at the least');
    guarded = await Aldis.start(['--auth', 'jwt', '--jwt-key', key]);
  });

  after(async () => {
    await guarded?.end();
    await rm(folder, { recursive: true, force: true });
  });

  async function open(address, options = DESKTOP) {
    const { context, complaints } = await openContext(browser, guarded, options);
    const page = await context.newPage();
    const requests = [];
    page.on('request', (request) => requests.push(request.url()));
    page.on('websocket', (socket) => requests.push(socket.url()));
    await page.goto(address);
    return { context, complaints, page, requests };
  }

  /** No token stands in an address, in storage, on the page or in its console. */
  async function isKept(page, tokens, requests, complaints) {
    const seen = await page.evaluate(() => JSON.stringify([
      location.href, document.documentElement.outerHTML, { ...localStorage }, { ...sessionStorage },
      document.cookie,
    ]));
    const all = [seen, ...requests, ...complaints].join('\n');
    for (const token of tokens) assert.ok(!all.includes(token), 'a token is where it should not be');
  }

  test('are asked for, refused with a reason, and taken, for each side its own', async () => {
    const { context, complaints, page, requests } = await open('/?left=ann&right=ben', PHONE);
    const [ann, ben] = [new Side(page, 'ann'), new Side(page, 'ben')];
    const token = (side) => side.root.locator('input[type=password]');
    const give = async (side, text) => {
      await token(side).fill(text);
      await token(side).press('Enter');
    };
    const says = (side, text) => until(text, async () => await side.status.textContent() === text);
    for (const side of [ann, ben]) {
      await until('it asks', async () => await side.status.textContent() === 'needs a token');
    }
    await fits(page);
    assert.deepEqual(await inaccessible(page), []);
    assert.equal(await page.locator('.kills').isVisible(), false);
    await give(ann, 'not a token');
    await says(ann, 'that is no token');
    await give(ann, 'x.y.z');
    await says(ann, 'token not accepted');
    await give(ann, tokenOf('carol', key));
    await says(ann, "that is carol's token");
    const tokens = [tokenOf('ann', key), tokenOf('ben', key)];
    await give(ann, tokens[0]);
    await give(ben, tokens[1]);
    for (const side of [ann, ben]) await isOnline(side);
    await ann.root.locator('textarea').fill('by token');
    await ann.root.locator('textarea').press('Enter');
    await shows(ann, 'by token', 'delivered');
    await isKept(page, tokens, requests, complaints);
    // The browser itself writes that a WebSocket failed; there is one that was refused.
    const ofOurs = complaints.filter((complaint) => !/WebSocket connection to/.test(complaint));
    assert.deepEqual(ofOurs, []);
    await context.close();
  });

  test('come with the address, name both sides, and leave it at once', async () => {
    const tokens = [tokenOf('left side', key), tokenOf('right', key)];
    const hash = tokens.map((token) => `token=${token}`).join('&');
    const { context, complaints, page, requests } = await open(`/#${hash}`);
    const sides = [new Side(page, 'left side'), new Side(page, 'right')];
    for (const side of sides) await isOnline(side);
    assert.equal(new URL(page.url()).hash, '');
    await isKept(page, tokens, requests.filter((url) => !url.includes('#')), complaints);
    await sides[0].toggle.press('Space');
    await sides[0].toggle.press('Space');
    await isOnline(sides[0]);
    assert.deepEqual(complaints, []);
    await context.close();
  });
});

/** Whether the server has `history` already; the page does without it. */
function knowsHistory(page) {
  return page.evaluate(() => new Promise((resolve) => {
    const socket = new WebSocket(`ws://${location.host}/v1/connect?user=asks&device=once`);
    socket.onopen = () => socket.send('{"t":"history","ref":7,"convo":"dm:asks:asks"}');
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.ref !== 7) return;
      resolve(frame.code !== 'unknown_op');
      socket.close();
    };
  }));
}

/** A site of another origin, that means no good. */
function foreignSite() {
  const server = createServer((_, response) => {
    response.setHeader('Content-Type', 'text/html');
    response.end('<!doctype html><title>elsewhere</title><link rel="icon" href="data:,">');
  });
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve({
      origin: `http://127.0.0.1:${server.address().port}`,
      close: () => server.close().closeAllConnections(),
    }));
  });
}

/** The status of a kill, pressed with these header fields by something that is no browser. */
function post(headers) {
  const [host, port] = aldis.address.split(':');
  return new Promise((resolve, reject) => {
    const path = '/dev/kill/store';
    const asked = request({ host, port, path, method: 'POST', headers }, (answer) => {
      answer.resume();
      resolve(answer.statusCode);
    });
    asked.on('error', reject);
    asked.end();
  });
}
