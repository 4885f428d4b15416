// The state machine by hand: one thing happens after the other, in virtual time.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Bench } from './fake.mjs';

const CONVO = 'dm:alice:bob';

describe('states', () => {
  test('from the first attempt to the end', () => {
    const bench = new Bench();
    assert.equal(bench.core.state, 'DISCONNECTED');
    bench.online();
    bench.close(1006);
    bench.pass(10_000);
    bench.welcome();
    bench.core.disconnect();
    bench.run();
    assert.deepEqual(bench.states(), [
      'CONNECTING', 'CONNECTED', 'RECONNECTING lost', 'CONNECTED', 'DISCONNECTED asked',
    ]);
    assert.deepEqual(bench.closings, [1000]);
    assert.equal(bench.pass(1e6).opened.length, 2);
  });

  test('the query says who it is, a reconnect brings the ticket, a plus stays a plus', () => {
    const bench = new Bench({ user: 'a b+c', device: 'é' }).connect();
    assert.equal(bench.opened[0].url, 'ws://x/v1/connect?user=a%20b%2Bc&device=%C3%A9');
    assert.deepEqual(bench.opened[0].protocols, ['aldis.v1.json']);
    bench.welcome({ user: 'a b+c' }).close().pass(10_000);
    assert.equal(bench.opened[1].url, 'ws://x/v1/connect?ticket=ticket');
    // It led to no welcome: perhaps it has expired.
    bench.close().pass(10_000);
    assert.equal(bench.opened[2].url, bench.opened[0].url);
  });

  test('a token goes by the subprotocol, never by the address', () => {
    const bench = new Bench({ usesTokens: true, sync: 'manual' }).connect();
    assert.ok(bench.isAsked);
    assert.equal(bench.opened.length, 0);
    bench.core.useToken(bench.now, bench.connection, 'a.b.c');
    bench.run();
    assert.deepEqual(bench.opened[0].protocols, ['aldis.v1.json', 'bearer.a.b.c']);
    assert.equal(bench.opened[0].url, 'ws://x/v1/connect?sync=manual');
    bench.close();
    assert.deepEqual(bench.all('attempt_failed'), [
      { is: 'attempt_failed', attempt: 1, byToken: true },
    ]);
  });

  test('without a token, or with one that cannot be one, it ends', () => {
    for (const token of [undefined, 'two words', '']) {
      const bench = new Bench({ usesTokens: true }).connect();
      bench.core.useToken(bench.now, bench.connection, token);
      bench.run();
      assert.deepEqual(bench.states(), ['CONNECTING', 'DISCONNECTED no_token']);
    }
  });

  test("another user's token sends nothing", () => {
    const bench = new Bench().send('x').connect().welcome({ user: 'carol' });
    assert.deepEqual(bench.states(), ['CONNECTING', 'DISCONNECTED not_me']);
    assert.deepEqual(bench.said, []);
    assert.deepEqual(bench.closings, [1000]);
  });

  for (const [name, end] of [
    ['by its close code', (bench) => bench.close(4001)],
    ['by its goaway', (bench) => bench.hear({ t: 'goaway', reason: 'replaced' }).close(1006)],
    ['also with a slot', (bench) => (
      bench.hear({ t: 'goaway', reason: 'replaced', reconnect_ms: 5 }).close(4001)
    )],
  ]) {
    test(`replaced ${name}: never by itself again, but when asked`, () => {
      const bench = end(new Bench().online());
      assert.equal(bench.states().at(-1), 'DISCONNECTED replaced');
      bench.pass(1e9);
      assert.equal(bench.opened.length, 1);
      bench.connect().welcome();
      assert.equal(bench.core.state, 'CONNECTED');
    });
  }

  test('revoked: it ends, unless there are tokens', () => {
    assert.equal(new Bench().online().close(4004).states().at(-1), 'DISCONNECTED revoked');
    const bench = new Bench({ usesTokens: true }).connect();
    bench.core.useToken(bench.now, bench.connection, 'a.b.c');
    bench.run().welcome();
    bench.isAsked = false;
    bench.close(4004).pass(20_000);
    assert.ok(bench.isAsked, 'a new token is asked for, the ticket is not used');
  });

  test('what a stale socket says and does changes nothing', () => {
    const bench = new Bench().online();
    const stale = bench.connection;
    bench.close().pass(10_000).welcome();
    bench.hear({ t: 'goaway', reason: 'replaced' }, stale);
    bench.core.closed(bench.now, stale, 4001);
    bench.run();
    assert.equal(bench.core.state, 'CONNECTED');
  });
});

describe('backoff', () => {
  test('full jitter: between nothing and a ceiling that doubles to its end', () => {
    for (const random of [0, 0.25, 0.999]) {
      const bench = new Bench({}, { random: () => random }).connect();
      for (let attempt = 0; attempt < 12; attempt += 1) {
        const before = bench.now;
        bench.close();
        const ceiling = Math.min(10_000, 250 * 2 ** attempt);
        const { retry_ms } = bench.all('state').at(-1);
        assert.equal(retry_ms, random * ceiling);
        assert.equal(bench.core.deadline, before + retry_ms);
        bench.pass(retry_ms);
        assert.equal(bench.opened.length, attempt + 2);
      }
    }
  });

  test('begins anew only after a connection that held', () => {
    const bench = new Bench({}, { random: () => 1 }).online().close();
    assert.equal(bench.all('state').at(-1).retry_ms, 250);
    bench.pass(250).welcome().pass(10).close();
    assert.equal(bench.all('state').at(-1).retry_ms, 500);
    bench.pass(500).welcome().pass(1_000).close();
    assert.equal(bench.all('state').at(-1).retry_ms, 250);
  });

  test('goaway: at its own slot, once', () => {
    const bench = new Bench({}, { random: () => 1 }).online();
    bench.hear({ t: 'goaway', reason: 'drain', reconnect_ms: 7_777 }).close(1001);
    assert.equal(bench.all('state').at(-1).retry_ms, 7_777);
    bench.pass(7_776);
    assert.equal(bench.opened.length, 1);
    bench.pass(1);
    assert.equal(bench.opened.length, 2);
    bench.close();
    assert.ok(bench.all('state').at(-1).retry_ms < 7_777);
  });

  test('connect while it waits: at once, and one socket only', () => {
    const bench = new Bench({}, { random: () => 1 }).online().close();
    bench.connect().connect();
    assert.equal(bench.opened.length, 2);
    bench.pass(10_000);
    assert.equal(bench.opened.length, 2);
  });
});

describe('silence', () => {
  test('is asked about, and is death after two heartbeats', () => {
    const bench = new Bench().online().pass(14_999);
    assert.deepEqual(bench.take('ping'), []);
    bench.pass(1);
    assert.equal(bench.take('ping').length, 1);
    bench.pass(44_999);
    assert.equal(bench.core.state, 'CONNECTED');
    bench.pass(1);
    assert.equal(bench.core.state, 'RECONNECTING');
    assert.deepEqual(bench.closings, [4002]);
  });

  test('any frame is a sign of life', () => {
    const bench = new Bench().online();
    for (let round = 0; round < 20; round += 1) bench.pass(40_000).hear({ t: 'news', by: 'now' });
    assert.equal(bench.core.state, 'CONNECTED');
    bench.pass(60_000);
    assert.equal(bench.core.state, 'RECONNECTING');
  });

  test('no welcome in time is a failed attempt', () => {
    const bench = new Bench().connect().pass(14_999);
    assert.equal(bench.core.state, 'CONNECTING');
    bench.pass(1);
    assert.equal(bench.core.state, 'RECONNECTING');
  });
});

describe('sends', () => {
  test('written offline, sent in order, again with the same ids, until answered', () => {
    const bench = new Bench().send('1').send('2');
    assert.deepEqual(bench.said, []);
    bench.online();
    assert.deepEqual(bench.take('send').map(({ id }) => id), ['1', '2']);
    bench.sent('1', 1).send('3').close();
    bench.send('4').pass(10_000).welcome();
    assert.deepEqual(bench.take('send').map(({ id }) => id), ['3', '2', '3', '4']);
    bench.sent('2', 2).sent('3', 3).sent('4', 4);
    bench.close().pass(10_000).welcome();
    assert.deepEqual(bench.take('send'), []);
    assert.deepEqual(bench.all('sent').map(({ sent }) => sent.id), ['1', '2', '3', '4']);
  });

  test('a window bounds what is under way', () => {
    const bench = new Bench({ sendWindow: 2 });
    for (const id of ['1', '2', '3', '4']) bench.send(id);
    bench.online();
    assert.deepEqual(bench.take('send').map(({ id }) => id), ['1', '2']);
    bench.sent('1', 1);
    assert.deepEqual(bench.take('send').map(({ id }) => id), ['3']);
    bench.sent('2', 2).sent('3', 3);
    assert.deepEqual(bench.take('send').map(({ id }) => id), ['4']);
  });

  test('unavailable: a pause, then again; what was under way is not sent twice', () => {
    const bench = new Bench().online().send('1').send('2');
    bench.take('send');
    bench.hear({ t: 'error', id: '1', code: 'unavailable', message: 'm', retry_ms: 400 });
    bench.send('3').pass(399);
    assert.deepEqual(bench.take('send'), []);
    bench.pass(1);
    assert.deepEqual(bench.take('send').map(({ id }) => id), ['1', '3']);
    assert.equal(bench.core.outbox.size, 3);
  });

  test('refused for good: told, and gone', () => {
    const bench = new Bench().online().send('1');
    bench.hear({ t: 'error', id: '1', code: 'too_large', message: 'm', limit: 65_536 });
    assert.deepEqual(bench.all('rejected').map(({ problem }) => problem.code), ['too_large']);
    assert.equal(bench.core.outbox.size, 0);
  });

  test('outlive the program', () => {
    const bench = new Bench().send('1').send('2');
    const { snapshot } = bench.core;
    const next = new Bench({}, { snapshot: JSON.parse(JSON.stringify(snapshot)) }).online();
    assert.deepEqual(next.take('send').map(({ id }) => id), ['1', '2']);
  });
});

test('a broken storage is like none', () => {
  for (const snapshot of [
    {}, [], 'text', 7, { watermarks: 'x', outbox: 'y' }, { watermarks: null, outbox: { a: 1 } },
    { watermarks: { [CONVO]: 'x', b: -1, c: 1.5 }, outbox: [null, 1, {}, { id: 7 }] },
  ]) {
    const bench = new Bench({}, { snapshot }).online().msg(1);
    assert.deepEqual(bench.seqs(), [1]);
    assert.deepEqual(bench.take('send'), []);
  }
});

describe('messages', () => {
  test('each once, over connections, and in order', () => {
    const bench = new Bench().online().msg(1).msg(2).msg(2).msg(1);
    bench.close().pass(10_000).welcome().msg(1).msg(2).msg(3);
    assert.deepEqual(bench.seqs(), [1, 2, 3]);
  });

  test('the run begins where the server begins to push', () => {
    const bench = new Bench().online().sent('x', 9).msg(7).msg(8).msg(10);
    assert.deepEqual(bench.seqs(), [7, 8, 10]);
    assert.equal(bench.core.watermark(CONVO), 10);
  });

  test('a gap is asked for; what waits behind it comes after it', () => {
    const bench = new Bench().online().msg(1).msg(3).msg(4);
    assert.deepEqual(bench.seqs(), [1]);
    bench.pass(1_499);
    assert.deepEqual(bench.take('sync'), []);
    bench.pass(1);
    const [{ ref, convos }] = bench.take('sync');
    assert.deepEqual(convos, { [CONVO]: 1 });
    bench.msg(2).msg(3).msg(4).hear({ t: 'synced', ref, convos: { [CONVO]: 4 } });
    assert.deepEqual(bench.seqs(), [1, 2, 3, 4]);
    assert.deepEqual(bench.pass(10_000).take('sync'), []);
  });

  test('our own place may come late: no gap, no sync', () => {
    const bench = new Bench().online().msg(1).send('x').msg(3).pass(1_000).sent('x', 2);
    assert.deepEqual(bench.seqs(), [1, 3]);
    assert.deepEqual(bench.pass(10_000).take('sync'), []);
  });

  test('after synced, what did not come is not there', () => {
    const bench = new Bench().online().msg(1).msg(5);
    bench.pass(1_500);
    const [{ ref }] = bench.take('sync');
    bench.msg(5).hear({ t: 'synced', ref, convos: { [CONVO]: 5 } });
    assert.deepEqual(bench.seqs(), [1, 5]);
    assert.equal(bench.core.watermark(CONVO), 5);
  });

  test('a sync that is refused is repeated later, or given up when it never can be', () => {
    const bench = new Bench().online().msg(1).msg(3).pass(1_500);
    let [{ ref }] = bench.take('sync');
    bench.hear({ t: 'error', ref, code: 'unavailable', message: 'm', retry_ms: 300 }).pass(300);
    [{ ref }] = bench.take('sync');
    assert.deepEqual(bench.seqs(), [1]);
    bench.hear({ t: 'error', ref, code: 'not_member', message: 'm' });
    assert.deepEqual(bench.seqs(), [1, 3]);
  });

  test('far behind a gap nothing is held, and nothing is lost', () => {
    const bench = new Bench().online().msg(1);
    for (let seq = 3; seq < 5_000; seq += 1) bench.msg(seq);
    bench.pass(1_500);
    const [{ ref, convos }] = bench.take('sync');
    assert.deepEqual(convos, { [CONVO]: 1 });
    for (let seq = 2; seq < 5_000; seq += 1) bench.msg(seq);
    bench.hear({ t: 'synced', ref, convos: { [CONVO]: 4_999 } });
    assert.deepEqual(bench.seqs(), Array.from({ length: 4_999 }, (_, index) => index + 1));
  });
});

describe('acknowledgements', () => {
  const acks = (bench) => bench.take('ack').map(({ seq, kind }) => `${kind} ${seq}`);

  test('gather, and are cumulative', () => {
    const bench = new Bench().online();
    for (let seq = 1; seq <= 50; seq += 1) bench.msg(seq);
    assert.deepEqual(acks(bench.pass(39)), []);
    assert.deepEqual(acks(bench.pass(1)), ['delivered 50']);
    bench.core.acknowledge(bench.now, CONVO, 'read');
    assert.deepEqual(acks(bench.run().pass(40)), ['read 50']);
    bench.core.acknowledge(bench.now, CONVO, 'delivered', 49);
    assert.deepEqual(acks(bench.run().pass(40)), []);
  });

  test('never reach beyond a gap', () => {
    const bench = new Bench().online().msg(1).msg(3);
    bench.core.acknowledge(bench.now, CONVO, 'read', 3);
    assert.deepEqual(acks(bench.run().pass(40)), ['read 1']);
  });

  test('what was read in the history counts once the backlog is through', () => {
    const bench = new Bench().online();
    bench.core.acknowledge(bench.now, CONVO, 'read', 7);
    assert.deepEqual(acks(bench.run().pass(40)), []);
    bench.hear({ t: 'synced', convos: {} });
    bench.core.acknowledge(bench.now, CONVO, 'read', 7);
    assert.deepEqual(acks(bench.run().pass(40)), ['read 7']);
    assert.deepEqual(bench.msg(8).seqs(), [8]);
  });

  test('are said again when the connection ended before the barrier', () => {
    const bench = new Bench().online().msg(1).pass(40);
    assert.deepEqual(acks(bench), ['delivered 1']);
    bench.close().pass(10_000).welcome();
    assert.deepEqual(acks(bench), ['delivered 1']);
    bench.pass(5_000);
    const [{ ref }] = bench.take('ping');
    bench.hear({ t: 'pong', ref, ts: 1 }).close().pass(10_000).welcome();
    assert.deepEqual(acks(bench), []);
  });

  test('are said again when the server sends what was acknowledged', () => {
    const bench = new Bench({}, { snapshot: { watermarks: { [CONVO]: 5 }, outbox: [] } }).online();
    assert.deepEqual(acks(bench), []);
    bench.msg(4).msg(5).pass(40);
    assert.deepEqual(bench.seqs(), []);
    assert.deepEqual(acks(bench), ['delivered 5']);
  });

  test('unavailable: again later', () => {
    const bench = new Bench().online().msg(1).pass(40);
    const [{ ref }] = bench.take('ack');
    bench.hear({ t: 'error', ref, code: 'unavailable', message: 'm', retry_ms: 100 }).pass(100);
    assert.deepEqual(acks(bench), ['delivered 1']);
  });

  test('manual: only what the application says counts, also after a restart', () => {
    const bench = new Bench({ acknowledge: 'manual' }).online().msg(1).msg(2).pass(1_000);
    assert.deepEqual(acks(bench), []);
    assert.deepEqual(bench.core.snapshot.watermarks, {});
    bench.core.acknowledge(bench.now, CONVO, 'delivered', 1);
    assert.deepEqual(acks(bench.run().pass(40)), ['delivered 1']);
    const next = new Bench({}, { snapshot: bench.core.snapshot }).online().msg(1).msg(2);
    assert.deepEqual(next.seqs(), [2]);
  });
});

describe('questions', () => {
  const ask = (bench, t, fields = {}) => {
    const ref = bench.core.ask(bench.now, t, fields);
    bench.run();
    return ref;
  };

  test('are answered by ref, also by an error', () => {
    const bench = new Bench().online();
    const [one, two] = [ask(bench, 'convos'), ask(bench, 'group.info', { convo: 'g' })];
    bench.hear({ t: 'error', ref: two, code: 'not_member', message: 'm' });
    bench.hear({ t: 'convos', ref: one, convos: [] });
    assert.deepEqual(bench.all('answer').map(({ ref }) => ref), [one]);
    assert.deepEqual(bench.all('no_answer').map(({ ref, problem }) => [ref, problem.code]), [
      [two, 'not_member'],
    ]);
  });

  test('that change something fail with the connection; the others are asked again', () => {
    const bench = new Bench().online();
    const change = ask(bench, 'group.add', { convo: 'g', members: ['x'] });
    const read = ask(bench, 'history', { convo: CONVO });
    bench.take('history');
    bench.close();
    assert.deepEqual(bench.all('no_answer').map(({ ref, problem }) => [ref, problem.code]), [
      [change, 'disconnected'],
    ]);
    assert.equal(ask(bench, 'group.leave', { convo: 'g' }) > read, true);
    assert.equal(bench.all('no_answer').length, 2);
    bench.pass(10_000).welcome();
    assert.deepEqual(bench.take('history').map(({ ref }) => ref), [read]);
    assert.deepEqual(bench.take('group.leave'), []);
  });

  test('do not wait for ever', () => {
    const bench = new Bench().online();
    ask(bench, 'devices');
    for (let round = 0; round < 3; round += 1) bench.pass(10_000).hear({ t: 'pong', ts: 1 });
    assert.deepEqual(bench.all('no_answer').map(({ problem }) => problem.code), ['timeout']);
  });

  test('a sync never begins above what was seen', () => {
    const bench = new Bench().online().msg(1);
    ask(bench, 'sync', { convos: { [CONVO]: 50, other: 3 } });
    assert.deepEqual(bench.take('sync')[0].convos, { [CONVO]: 1, other: 3 });
  });
});

describe('presence and typing', () => {
  test('are subscribed again on each connection, and bounded', () => {
    const bench = new Bench();
    bench.core.watchPresence(['bob', 'carol']);
    bench.run().online();
    assert.deepEqual(bench.take('presence.sub').map(({ users }) => users), [['bob', 'carol']]);
    bench.core.unwatchPresence(['carol', 'nobody']);
    assert.deepEqual(bench.run().take('presence.unsub').map(({ users }) => users), [['carol']]);
    bench.core.watchPresence(Array.from({ length: 600 }, (_, index) => `u${index}`));
    assert.equal(bench.run().take('presence.sub')[0].users.length, 499);
    bench.close().pass(10_000).welcome();
    assert.equal(bench.take('presence.sub')[0].users.length, 500);
  });

  test('one typing in 3 s for each conversation', () => {
    const bench = new Bench().online();
    for (let index = 0; index < 61; index += 1) {
      bench.core.typing(bench.now, CONVO);
      bench.run().pass(100);
    }
    assert.equal(bench.take('typing').length, 3);
  });

  test('a server that does not know them is not asked again', () => {
    const bench = new Bench().online();
    bench.core.watchPresence(['bob']);
    bench.core.typing(bench.now, CONVO);
    const { ref } = bench.run().take('presence.sub')[0];
    const typed = bench.take('typing')[0];
    for (const of of [ref, typed.ref]) {
      bench.hear({ t: 'error', ref: of, code: 'unknown_op', message: 'm' });
    }
    assert.deepEqual(bench.all('unsupported').map(({ operation }) => operation), [
      'presence', 'typing',
    ]);
    bench.pass(5_000).close().pass(10_000).welcome();
    bench.core.typing(bench.now, CONVO);
    bench.run();
    assert.deepEqual(bench.take('presence.sub').concat(bench.take('typing')), []);
  });
});

describe('malformed frames', () => {
  const good = [
    { t: 'msg', convo: CONVO, seq: 2, mid: '2', from: 'bob', id: 'b', ts: 2, body: 'x' },
    { t: 'sent', convo: CONVO, id: 'x', seq: 2, mid: '2', ts: 2, dup: false },
    { t: 'receipt', convo: CONVO, seq: 1, kind: 'read', by: 'bob', count: 1, of: 2 },
    { t: 'synced', convos: { [CONVO]: 3 } },
    { t: 'page', ref: 1, convo: CONVO, msgs: [], more: false },
    { t: 'group', ref: 1, convo: 'g', owner: 'a', admins: [], members: ['a'], version: 1 },
    { t: 'goaway', reason: 'drain', reconnect_ms: 5 },
    { t: 'presence', user: 'bob', state: 'online' },
    { t: 'typing', convo: CONVO, from: 'bob' },
    { t: 'failed', convo: CONVO, seq: 1, id: 'x' },
    { t: 'error', code: 'internal', message: 'm' },
  ];
  const wrong = [null, true, 1, -1, 1.5, 2 ** 60, 'text', [], [1], {}];

  test('of every kind and field change nothing, and the next good one is heard', () => {
    let count = 0;
    for (const frame of good) {
      for (const field of Object.keys(frame)) {
        for (const value of [...wrong, undefined]) {
          const bench = new Bench().online().msg(1).send('x');
          const before = JSON.stringify(bench.core.snapshot);
          const broken = { ...frame, [field]: value };
          if (JSON.stringify(broken) === JSON.stringify(frame)) continue;
          bench.hear(broken);
          const isBroken = bench.all('warning').some(({ text }) => text.startsWith('a malformed'));
          if (isBroken) assert.equal(JSON.stringify(bench.core.snapshot), before);
          count += isBroken ? 1 : 0;
          assert.equal(bench.core.state, 'CONNECTED');
          bench.msg(2).msg(3).msg(4);
          assert.ok(bench.core.watermark(CONVO) >= 1, JSON.stringify(broken));
        }
      }
    }
    assert.ok(count > 300, `${count} were found malformed`);
  });

  test('every prefix of a good frame, and what is no text', () => {
    const bench = new Bench().online();
    const text = JSON.stringify(good[0]);
    for (let end = 0; end < text.length; end += 1) bench.hear(text.slice(0, end));
    for (const data of [new ArrayBuffer(4), 7, undefined]) {
      bench.core.heard(bench.now, bench.connection, data);
      bench.run();
    }
    assert.equal(bench.all('warning').length, text.length + 3);
    assert.deepEqual(bench.msg(1).seqs(), [1]);
  });

  test('unknown ones, and those before welcome', () => {
    const bench = new Bench().connect().msg(1).sent('x', 1);
    assert.deepEqual(bench.seqs(), []);
    bench.welcome().hear({ t: 'constructor' }).hear({ t: '__proto__' });
    bench.msg(1, { convo: '__proto__' }).msg(1).msg(1, { body: null, body64: 'AA==' });
    assert.deepEqual(bench.seqs(), [1, 1]);
    assert.deepEqual(bench.pass(40).take('ack').map(({ convo }) => convo), ['__proto__', CONVO]);
  });
});
