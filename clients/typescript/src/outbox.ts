// What was written and not answered yet, in the order in which it was written. It is sent again
// with the same id until it is answered; the server takes each id once.

/** One of `to` (a user) and `convo`; one of `body` and `body64`. */
export interface Outgoing {
  id: string;
  to?: string;
  convo?: string;
  body?: string;
  body64?: string;
  /** When it was written. */
  ts: number;
}

interface Entry {
  outgoing: Outgoing;
  /** The number of the connection on which it is under way; 0: on none. */
  connection: number;
}

export class Outbox {
  private readonly entries = new Map<string, Entry>();
  private underWay = 0;

  get size(): number {
    return this.entries.size;
  }

  has(id: string): boolean {
    return this.entries.has(id);
  }

  add(outgoing: Outgoing): void {
    this.entries.set(outgoing.id, { outgoing, connection: 0 });
  }

  list(): Outgoing[] {
    return [...this.entries.values()].map(({ outgoing }) => outgoing);
  }

  /** What to send now on this connection, at most `window` of it under way at once. */
  due(connection: number, window: number): Outgoing[] {
    const due: Outgoing[] = [];
    if (this.underWay >= window) return due;
    for (const entry of this.entries.values()) {
      if (entry.connection === connection) continue;
      entry.connection = connection;
      this.underWay += 1;
      due.push(entry.outgoing);
      if (this.underWay >= window) break;
    }
    return due;
  }

  /** It was answered for good. */
  take(id: string): Outgoing | undefined {
    const entry = this.entries.get(id);
    if (entry === undefined) return undefined;
    this.putBack(id);
    this.entries.delete(id);
    return entry.outgoing;
  }

  /** It was not confirmed: it is due again. */
  putBack(id: string): void {
    const entry = this.entries.get(id);
    if (entry === undefined || entry.connection === 0) return;
    entry.connection = 0;
    this.underWay -= 1;
  }

  /** The connection is gone, and with it all that was under way. */
  putAllBack(): void {
    for (const entry of this.entries.values()) entry.connection = 0;
    this.underWay = 0;
  }
}
