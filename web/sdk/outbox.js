// What was written and not answered yet, in the order in which it was written. It is sent again
// with the same id until it is answered; the server takes each id once.
export class Outbox {
    entries = new Map();
    underWay = 0;
    get size() {
        return this.entries.size;
    }
    has(id) {
        return this.entries.has(id);
    }
    add(outgoing) {
        this.entries.set(outgoing.id, { outgoing, connection: 0 });
    }
    list() {
        return [...this.entries.values()].map(({ outgoing }) => outgoing);
    }
    /** What to send now on this connection, at most `window` of it under way at once. */
    due(connection, window) {
        const due = [];
        if (this.underWay >= window)
            return due;
        for (const entry of this.entries.values()) {
            if (entry.connection === connection)
                continue;
            entry.connection = connection;
            this.underWay += 1;
            due.push(entry.outgoing);
            if (this.underWay >= window)
                break;
        }
        return due;
    }
    /** It was answered for good. */
    take(id) {
        const entry = this.entries.get(id);
        if (entry === undefined)
            return undefined;
        this.putBack(id);
        this.entries.delete(id);
        return entry.outgoing;
    }
    /** It was not confirmed: it is due again. */
    putBack(id) {
        const entry = this.entries.get(id);
        if (entry === undefined || entry.connection === 0)
            return;
        entry.connection = 0;
        this.underWay -= 1;
    }
    /** The connection is gone, and with it all that was under way. */
    putAllBack() {
        for (const entry of this.entries.values())
            entry.connection = 0;
        this.underWay = 0;
    }
}
