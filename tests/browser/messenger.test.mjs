// The page as a messenger: groups, unread counts, history, devices, presence and typing; on a desk
// and on a phone; and names and texts of others as nothing but text.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import {
  Aldis, DESKTOP, PHONE, Side, fits, inaccessible, isOnline, openBrowser, openContext, shows, until,
} from './stage.mjs';

let aldis;
let browser;

before(async () => {
  [aldis, browser] = await Promise.all([Aldis.start(), openBrowser()]);
});

after(async () => {
  await browser?.close();
  await aldis?.end();
});

/** One person alone with the page, in a browser of its own. */
class Person {
  static async visit(user, options = DESKTOP) {
    const person = new Person();
    Object.assign(person, await openContext(browser, aldis, options));
    person.user = user;
    await person.openTab();
    return person;
  }

  async openTab() {
    this.page = await this.context.newPage();
    await this.page.goto(`/?user=${encodeURIComponent(this.user)}`);
    this.side = new Side(this.page, this.user);
    await isOnline(this.side);
    return this;
  }

  get dialog() {
    return this.page.locator('dialog');
  }

  row(title) {
    const named = this.page.locator('.title', { hasText: new RegExp(`^${escape(title)}$`) });
    return this.side.root.locator('.row').filter({ has: named });
  }

  badge(title) {
    return this.row(title).locator('.badge b');
  }

  /** On a phone the list is another view. */
  async toList() {
    const back = this.side.root.locator('.back');
    if (await back.isVisible()) await back.click();
  }

  async begin(people, group = '') {
    await this.toList();
    await this.page.getByRole('button', { name: 'New conversation' }).click();
    await this.dialog.getByLabel(/With whom/).fill(people);
    await this.dialog.getByLabel(/Name of the group/).fill(group);
    await this.dialog.getByRole('button', { name: 'Begin' }).click();
  }

  async open(title) {
    await this.toList();
    await this.row(title).click();
    await until(`${title} is open`, async () => (
      await this.side.root.locator('h3').textContent() === title
    ));
  }

  sees(text, ticks) {
    return shows(this.side, text, ticks);
  }

  event(text) {
    const event = this.side.root.locator('.event').getByText(text, { exact: true });
    return until(`"${text}"`, () => event.isVisible());
  }

  async leave() {
    assert.deepEqual(this.complaints, [], this.user);
    await this.context.close();
  }
}

function escape(text) {
  return text.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

/** `count` messages from one to another, by the client that the page uses. */
function seed(page, from, to, count) {
  return page.evaluate(async ([from, to, count]) => {
    const { Client } = await import('/sdk/index.js');
    const url = `ws://${location.host}/v1/connect`;
    const client = await Client.create({ url, user: from, device: 'seed' });
    client.connect();
    const sends = [];
    for (let index = 1; index <= count; index += 1) {
      sends.push(client.send({ to, body: `number ${index}` }).sent);
    }
    await Promise.all(sends);
    client.disconnect();
  }, [from, to, count]);
}

/** The code with which the server answers an operation, if it refuses it. */
function codeOf(page, operation) {
  return page.evaluate((operation) => new Promise((resolve) => {
    const socket = new WebSocket(`ws://${location.host}/v1/connect?user=asks&device=once`);
    socket.onopen = () => {
      socket.send(JSON.stringify({ ...operation, ref: 7 }));
      socket.send('{"t":"ping","ref":8}');
    };
    socket.onmessage = ({ data }) => {
      const { ref, code } = JSON.parse(data);
      if (ref !== 7 && ref !== 8) return;
      resolve(code);
      socket.close();
    };
  }), operation);
}

describe('groups', () => {
  test('made, written to, changed, left; everybody sees who is in it', async () => {
    const [ann, ben, cat] = await Promise.all(['ann', 'ben', 'cat'].map((user) => (
      Person.visit(user)
    )));
    await ann.begin('ben, cat', 'harbour crew');
    await ann.event('ann made the group with ben, cat');
    await ann.side.write('who has the keys?');
    await ben.open('harbour crew');
    await ben.sees('who has the keys?');
    assert.equal(await ben.side.message('who has the keys?').locator('.from').innerText(), 'ann');
    const count = ann.side.message('who has the keys?').locator('.count');
    await until('one of two read it', async () => await count.textContent() === 'read 1/2');
    await ann.sees('who has the keys?', 'delivered');
    await cat.open('harbour crew');
    await ann.sees('who has the keys?', 'read');
    assert.equal(await count.textContent(), '');
    await until('three', async () => (
      await ben.side.root.locator('.subtitle').textContent()).startsWith('3 members'));

    await ann.side.root.getByRole('button', { name: 'Members' }).click();
    const members = ann.dialog.locator('.members li');
    assert.equal(await members.count(), 3);
    assert.equal(await members.first().locator('.role').innerText(), 'owner');
    assert.deepEqual(await inaccessible(ann.page), []);
    await ann.dialog.getByRole('button', { name: 'Make admin: ben' }).click();
    await ann.event('ben can now change the group');
    await ann.dialog.getByLabel(/Add/).fill('dan');
    await ann.dialog.getByLabel(/Add/).press('Enter');
    await until('four', async () => await members.count() === 4);
    await ann.dialog.getByRole('button', { name: 'Remove cat' }).click();
    await until('three again', async () => await members.count() === 3);
    await ann.dialog.getByRole('button', { name: 'Leave the group' }).click();
    await until('the dialog is gone', async () => await ann.dialog.count() === 0);
    await ben.event('ann left; ben owns it');
    await cat.event('ann removed cat');
    for (const { side } of [ann, cat]) {
      await until('no writing', async () => await side.field.isDisabled());
      assert.equal(await side.root.locator('.subtitle').textContent(), 'not a member');
    }
    await ben.side.write('only us now');
    await ben.sees('only us now', 'sent');
    assert.equal(await cat.side.message('only us now').count(), 0);
    for (const person of [ann, ben, cat]) await person.leave();
  });

  test('a refusal is said where it was asked for, and changes nothing', async () => {
    const eve = await Person.visit('eve');
    await eve.begin('fay', 'dm:mine');
    const alert = eve.dialog.getByRole('alert');
    await until('why', async () => /forbidden/.test(await alert.innerText()));
    await eve.dialog.getByLabel(/Name of the group/).fill('');
    await eve.dialog.getByLabel(/With whom/).fill('fay, gus');
    await eve.dialog.getByRole('button', { name: 'Begin' }).click();
    await until('a name', async () => /needs a name/.test(await alert.innerText()));
    await eve.dialog.getByRole('button', { name: 'Cancel' }).click();
    assert.equal(await eve.side.root.locator('.row').count(), 0);
    await eve.leave();
  });
});

describe('unread', () => {
  test('counts what was not looked at, and is cleared on all devices', async () => {
    const [hal, ida] = await Promise.all([Person.visit('hal'), Person.visit('ida')]);
    await hal.begin('ida');
    for (const text of ['one', 'two', 'three']) await hal.side.write(text);
    await until('three', async () => await ida.badge('hal').innerText() === '3');
    assert.equal(await ida.row('hal').locator('.preview').innerText(), 'three');
    await hal.sees('three', 'delivered');
    const first = ida.page;
    await ida.openTab();
    await until('three there too', async () => await ida.badge('hal').innerText() === '3');
    await ida.open('hal');
    await hal.sees('three', 'read');
    assert.equal(await ida.badge('hal').isVisible(), false);
    const firstBadge = first.locator('.row .badge');
    await until('read on the first one', async () => !await firstBadge.isVisible());

    // What one device writes, the other one shows as its own.
    await ida.side.write('from my second device');
    const side = new Side(first, 'ida');
    await side.root.locator('.row').click();
    await shows(side, 'from my second device', 'delivered');
    await hal.leave();
    await ida.leave();
  });

  test('survives a reload, and shows on the way back from another conversation', async () => {
    const [jon, kim] = await Promise.all([Person.visit('jon'), Person.visit('kim', PHONE)]);
    await kim.begin('lea');
    await jon.begin('kim');
    await jon.side.write('hello');
    const behind = kim.side.root.locator('.back .badge b');
    await until('one', async () => await behind.isVisible() && await behind.innerText() === '1');
    await kim.page.reload();
    await until('still one', async () => await kim.badge('jon').innerText() === '1');
    await kim.open('jon');
    await jon.sees('hello', 'read');
    await jon.leave();
    await kim.leave();
  });
});

test('history: older pages come as one scrolls up, and nothing jumps', async () => {
  const count = 230;
  const mia = await Person.visit('mia');
  await seed(mia.page, 'ned', 'mia', count);
  await mia.page.reload();
  await mia.open('ned');
  await mia.sees(`number ${count}`);
  const list = mia.side.root.locator('.messages');
  await list.hover();
  let shown = await mia.side.messages.count();
  assert.ok(shown < count, `${shown} at first`);
  for (let round = 0; round < 100 && shown < count; round += 1) {
    await mia.page.mouse.wheel(0, -400);
    await mia.page.waitForTimeout(60);
    shown = await mia.side.messages.count();
  }
  assert.equal(shown, count);
  const seqs = await list.evaluate((list) => (
    [...list.children].map(({ dataset }) => Number(dataset.seq))
  ));
  assert.deepEqual(seqs, Array.from({ length: count }, (_, index) => index + 1));

  // Again, and this time it is watched whether what one reads stays where it is.
  await mia.page.reload();
  await mia.open('ned');
  await mia.sees(`number ${count}`);
  await list.hover();
  await list.evaluate((list) => { list.scrollTop = 0; });
  const before = await mia.side.messages.count();
  const anchor = await list.evaluate((list) => {
    const first = list.firstElementChild;
    window.anchored = first;
    return first.getBoundingClientRect().top;
  });
  await until('older ones', async () => await mia.side.messages.count() > before);
  await mia.page.waitForTimeout(100);
  const now = await list.evaluate(() => window.anchored.getBoundingClientRect().top);
  assert.ok(Math.abs(now - anchor) < 3, `what was at ${anchor} is at ${now}`);
  await mia.leave();
});

test('presence and typing: shown where the server has them, else left out', async () => {
  const [oli, pam] = await Promise.all([Person.visit('oli'), Person.visit('pam')]);
  await oli.begin('pam');
  await oli.side.write('there?');
  await pam.open('oli');
  await pam.sees('there?');
  const hasPresence = await codeOf(oli.page, { t: 'presence.sub', users: ['x'] }) !== 'unknown_op';
  const typing = { t: 'typing', convo: 'dm:asks:asks' };
  const hasTyping = await codeOf(oli.page, typing) !== 'unknown_op';
  console.log(`# presence: ${hasPresence}, typing: ${hasTyping}`);
  await pam.side.field.pressSequentially('I am ');
  const subtitle = oli.side.root.locator('.subtitle');
  const dot = oli.side.root.locator('.head .avatar');
  if (hasTyping) {
    await until('typing', async () => await subtitle.textContent() === 'typing...');
    await pam.side.write('I am');
    await oli.sees('I am');
    await until('not any more', async () => await subtitle.textContent() !== 'typing...');
  }
  if (hasPresence) {
    await until('online', async () => await dot.getAttribute('data-presence') === 'online');
    await pam.side.toggle.press('Space');
    await until('offline', async () => await dot.getAttribute('data-presence') === 'offline');
    await until('since when', async () => /^last seen/.test(await subtitle.textContent()));
  } else {
    await oli.page.waitForTimeout(500);
    assert.equal(await dot.getAttribute('data-presence'), '');
    assert.equal(await subtitle.textContent(), '');
  }
  await oli.leave();
  await pam.leave();
});

test('names and texts of others are text, wherever they are shown', async () => {
  const name = '<img src=x onerror=document.title=1>';
  const text = '<b>bold</b><script>document.title=2</script>';
  const [odd, rex] = await Promise.all([Person.visit(name), Person.visit('rex')]);
  await odd.begin('rex', '<i>group</i>');
  await odd.side.write(text);
  await rex.open('<i>group</i>');
  await rex.sees(text);
  await rex.side.root.getByRole('button', { name: 'Members' }).click();
  await until('the members', async () => await rex.dialog.locator('.members li').count() === 2);
  await rex.dialog.getByRole('button', { name: 'Close' }).click();
  await odd.begin('rex');
  await odd.side.write(text);
  const preview = rex.row(name).locator('.preview');
  await until('the preview', async () => await preview.innerText() === text);
  for (const { page } of [odd, rex]) {
    const parsed = 'main img, main i, main .text b, main script, dialog img, dialog i';
    assert.equal(await page.locator(parsed).count(), 0);
    assert.match(await page.title(), / - Aldis$/);
  }
  await odd.leave();
  await rex.leave();
});

describe('surroundings', () => {
  for (const colorScheme of ['light', 'dark']) {
    for (const [name, options] of [['desktop', DESKTOP], ['phone', PHONE]]) {
      test(`${name}, ${colorScheme}: list, group and dialogs fit and are accessible`, async () => {
        const user = `${name}-${colorScheme}-a-name-that-is-rather-long`;
        const sam = await Person.visit(user, { ...options, colorScheme });
        const isWell = async (what) => {
          await fits(sam.page);
          assert.deepEqual(await inaccessible(sam.page), [], what);
        };
        await isWell('nothing yet');
        await sam.toList();
        await sam.page.getByRole('button', { name: 'New conversation' }).click();
        await isWell('new');
        await sam.dialog.getByRole('button', { name: 'Cancel' }).click();
        const group = `${'wide'.repeat(14)} ${name[0]}${colorScheme[0]}`;
        await sam.begin('tom, a-second-name-that-is-long, uli', group);
        await sam.side.write('W'.repeat(300));
        await sam.sees('W'.repeat(300), 'sent');
        await isWell('the group');
        await sam.side.root.getByRole('button', { name: 'Members' }).click();
        await isWell('its members');
        await sam.dialog.getByRole('button', { name: 'Close' }).click();
        await sam.toList();
        await isWell('the list');
        await sam.leave();
      });
    }
  }
});
