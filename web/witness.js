// Compares what each client was told with what the other one received, and counts broken promises.

/** What the other side, online and synced, has not received after this counts as lost. */
const LOST_MS = 10_000;
const LATENCIES_MAX = 500;
/** Of so many messages a repetition is noticed; older ones are forgotten. */
const REMEMBERED_MAX = 20_000;
/** A kill is on its way for a moment: what is written before that is over says nothing of it. */
const KILL_MS = 25;
const KILLS_MAX = 4;

/**
 * Whatever was told `sent` must arrive at the other side exactly once and in order; it counts what
 * did not. `accepted` is how many were told, `arrivedCount` how many of those arrived.
 */
export class Witness {
  constructor() {
    this.clients = [];
    this.placeOf = new Map();
    this.midAt = new Map();
    this.owed = new Map();
    this.duplicated = 0;
    this.disordered = 0;
    this.accepted = 0;
    this.arrivedCount = 0;
    this.latencies = [];
    this.kills = [];
  }

  peerOf(client) {
    return this.clients.find((other) => other !== client);
  }

  /** `client` was told that its message `id` has this place. */
  told(client, id, seq, mid) {
    const known = this.placeOf.get(id);
    if (known) {
      if (known.seq !== seq || known.mid !== mid) this.duplicated += 1;
      return;
    }
    remember(this.placeOf, id, { seq, mid });
    this.note(seq, mid);
    this.accepted += 1;
    const peer = this.peerOf(client);
    if (peer.seen?.get(seq) === mid) {
      this.arrivedCount += 1;
    } else {
      // A device that never connected starts at what its user's other devices have acknowledged.
      this.owed.set(seq, { peer, since: performance.now(), isDue: peer.wasWelcomed });
    }
  }

  /** `client` received a message, perhaps again. */
  arrived(client, { seq, mid, from, id }) {
    this.note(seq, mid);
    client.seen ??= new Map();
    if (client.seen.has(seq)) return;
    remember(client.seen, seq, mid);
    client.idsSeen ??= new Map();
    if (client.idsSeen.has(`${from} ${id}`)) this.duplicated += 1;
    remember(client.idsSeen, `${from} ${id}`, seq);
    if (from === client.user) return;
    if (seq < (client.pushedHighest ?? 0)) this.disordered += 1;
    client.pushedHighest = Math.max(client.pushedHighest ?? 0, seq);
    this.compareNumbers(client, id);
    if (this.owed.delete(seq)) this.arrivedCount += 1;
  }

  /** Messages of this page are numbered as they were written, and must be placed in that order. */
  compareNumbers(client, id) {
    const peer = this.peerOf(client);
    if (!id.startsWith(peer.idPrefix) || peer.excused.has(id)) return;
    const number = Number(id.slice(peer.idPrefix.length));
    if (number < (client.numberHighest ?? 0)) this.disordered += 1;
    client.numberHighest = Math.max(client.numberHighest ?? 0, number);
  }

  note(seq, mid) {
    const known = this.midAt.get(seq);
    if (known !== undefined && known !== mid) this.duplicated += 1;
    if (known === undefined) remember(this.midAt, seq, mid);
  }

  /** Told `sent`, and not there although the other side had every chance. */
  lost(now) {
    let count = 0;
    for (const { peer, since, isDue } of this.owed.values()) {
      const chance = peer.syncedAt === null ? Infinity : Math.max(since, peer.syncedAt);
      if (isDue && now - chance > LOST_MS) count += 1;
    }
    return count;
  }

  /** A message was told `sent`, `elapsed` ms after it was first transmitted. */
  latency(elapsed, writtenAt) {
    this.latencies.push(elapsed);
    if (this.latencies.length > LATENCIES_MAX) this.latencies.shift();
    const now = performance.now();
    for (const kill of this.kills) {
      if (kill.afterMs === null && writtenAt > kill.countsFrom) kill.afterMs = now - kill.at;
    }
  }

  latencyAt(share) {
    if (this.latencies.length === 0) return null;
    const sorted = [...this.latencies].sort((a, b) => a - b);
    return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  }

  /** A kill was asked for. The last few are kept, newest first. */
  killing(child) {
    const kill = {
      child, at: performance.now(), time: new Date(), countsFrom: Infinity, afterMs: null,
    };
    this.kills.unshift(kill);
    this.kills.length = Math.min(this.kills.length, KILLS_MAX);
    return kill;
  }

  /** It was handed over: the next message that is written shows when all is well again. */
  killed(kill) {
    kill.countsFrom = performance.now() + KILL_MS;
  }
}

function remember(map, key, value) {
  map.set(key, value);
  if (map.size > REMEMBERED_MAX) map.delete(map.keys().next().value);
}
