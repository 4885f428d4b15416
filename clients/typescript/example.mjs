import { Client } from './dist/index.js';

const url = process.argv[2] ?? 'ws://127.0.0.1:8080/v1/connect';
const alice = await Client.create({ url, user: 'alice', device: 'example' });
const bob = await Client.create({ url, user: 'bob', device: 'example' });

bob.on('message', ({ convo, from, body }) => {
  console.log(`${from}: ${body}`);
  bob.markRead(convo);
});
alice.on('state', ({ state }) => console.log(state));
alice.on('receipt', ({ by, kind, seq }) => {
  console.log(`${by}: ${kind} up to ${seq}`);
  if (kind === 'read') [alice, bob].forEach((client) => client.disconnect());
});

alice.connect();
bob.connect();
const { seq } = await alice.send({ to: 'bob', body: 'hello bob' }).sent;
console.log(`accepted as number ${seq}`);
