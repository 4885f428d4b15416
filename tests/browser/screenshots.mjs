// Makes the README's pictures: node tests/browser/screenshots.mjs, after tests/browser/install.sh
// and a release build (or with ALDIS and PAGE, see stage.mjs). It writes docs/images/*.png.

import { mkdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { Aldis, ROOT, Side, openBrowser, openContext, until } from './stage.mjs';

const FOLDER = path.join(ROOT, 'docs/images');
const BYTES_MAX = 200_000;

const DESKTOP = {
  name: 'desktop',
  options: {
    viewport: { width: 1120, height: 680 },
    deviceScaleFactor: 1.35,
    colorScheme: 'light',
  },
  people: ['alice', 'bob'],
  lines: [
    [0, 'Is the new server up?'],
    [1, 'Since this morning. One binary, three processes, nothing else to install.'],
    [0, 'And if I kill the store in the middle of a sentence?'],
    [1, 'Try it. The buttons up there are real.'],
  ],
  kills: ['store', 'edge'],
  group: { name: 'Harbour', people: 'bob, carol, dave', text: 'Who has the keys?' },
  end: [
    [0, 'Both died, both are back, and everything is here.'],
    [1, 'In order, and once.'],
  ],
};

const PHONE = {
  name: 'phone',
  options: {
    viewport: { width: 390, height: 844 },
    deviceScaleFactor: 2,
    colorScheme: 'dark',
    hasTouch: true,
    isMobile: true,
  },
  people: ['alice', 'bob'],
  lines: [
    [0, 'On the train now. Coverage comes and goes.'],
    [1, 'Just write. It is sent when you are back, with the same id, so it comes once.'],
    [0, 'See you at eight?'],
    [1, 'At eight!'],
  ],
  kills: ['sequencer'],
  end: [],
};

await mkdir(FOLDER, { recursive: true });
const browser = await openBrowser();
for (const picture of [DESKTOP, PHONE]) {
  const aldis = await Aldis.start();
  try {
    await take(aldis, picture);
  } finally {
    await aldis.end();
  }
}
await browser.close();

async function take(aldis, { name, options, people, lines, kills, end, group }) {
  const { context } = await openContext(browser, aldis, options);
  const page = await context.newPage();
  await page.goto(`/?left=${people[0]}&right=${people[1]}`);
  const sides = people.map((user) => new Side(page, user));
  await talk(sides, lines);
  for (const child of kills) {
    await page.getByRole('button', { name: `kill -9 ${child}` }).click();
    await until(`${child} is back`, async () => (
      /accepted after/.test(await page.locator('#kills li').first().textContent())
    ));
    await page.waitForTimeout(1_000);
  }
  await talk(sides, end);
  if (group) await beginGroup(page, sides[0], group, people[1]);
  await page.waitForTimeout(1_500);
  await page.evaluate(() => document.activeElement?.blur());
  await page.mouse.move(1, 1);
  const file = path.join(FOLDER, `${name}.png`);
  await page.screenshot({ path: file });
  const { size } = await stat(file);
  console.log(`${path.relative(ROOT, file)}: ${size} bytes`);
  if (size > BYTES_MAX) throw new Error(`${file} is larger than ${BYTES_MAX} bytes`);
  await context.close();
}

/** One side makes a group and writes to it; the other one has not looked at it yet. */
async function beginGroup(page, side, { name, people, text }, peer) {
  await side.root.getByRole('button', { name: 'New conversation' }).click();
  await page.getByLabel(/With whom/).fill(people);
  await page.getByLabel(/Name of the group/).fill(name);
  await page.getByRole('button', { name: 'Begin' }).click();
  await until('the group', async () => await side.root.locator('h3').textContent() === name);
  await side.write(text);
  const row = side.root.locator('.row').filter({ has: page.locator('.title', { hasText: peer }) });
  await row.click();
}

async function talk(sides, lines) {
  for (const [index, text] of lines) {
    await sides[index].write(text);
    const other = sides[1 - index];
    await until(`"${text}" arrives`, async () => await other.message(text).count() === 1);
    await other.page.waitForTimeout(400);
  }
}
