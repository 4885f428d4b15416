// How far this device has come, as it tells the server: cumulative, and told again when the server
// may not have heard it. An `ack` has no answer; a `pong` says that all before its `ping` is done.
export class Cursors {
    cursors = new Map();
    changed = new Set();
    unconfirmed = new Set();
    barrier = [];
    /** What an earlier life of this device acknowledged. */
    restore(convo, seq) {
        const known = () => ({ delivered: seq, read: 0 });
        this.cursors.set(convo, { wanted: known(), told: known(), confirmed: known() });
    }
    /** Returns whether that is news. `read` includes `delivered`. */
    acknowledge(convo, kind, seq) {
        const { wanted } = this.cursor(convo);
        if (seq <= wanted[kind])
            return false;
        wanted[kind] = seq;
        if (kind === 'read')
            wanted.delivered = Math.max(wanted.delivered, seq);
        this.changed.add(convo);
        return true;
    }
    delivered(convo) {
        return this.cursors.get(convo)?.wanted.delivered ?? 0;
    }
    read(convo) {
        return this.cursors.get(convo)?.wanted.read ?? 0;
    }
    /** The server sent what was acknowledged: it has not heard so. Returns whether to tell it. */
    isBehind(convo, seq) {
        const cursor = this.cursors.get(convo);
        if (cursor === undefined || seq > cursor.wanted.delivered)
            return false;
        for (const known of [cursor.told, cursor.confirmed]) {
            known.delivered = Math.min(known.delivered, seq - 1);
            known.read = Math.min(known.read, known.delivered);
        }
        this.changed.add(convo);
        return true;
    }
    /** What to say now. */
    due() {
        const due = [];
        for (const convo of this.changed) {
            const { wanted, told } = this.cursor(convo);
            if (wanted.read > told.read)
                due.push({ convo, seq: wanted.read, kind: 'read' });
            told.delivered = Math.max(told.delivered, wanted.read);
            if (wanted.delivered > told.delivered) {
                due.push({ convo, seq: wanted.delivered, kind: 'delivered' });
            }
            Object.assign(told, wanted);
            this.unconfirmed.add(convo);
        }
        this.changed.clear();
        return due;
    }
    get hasUnconfirmed() {
        return this.unconfirmed.size > 0;
    }
    get isBarrierSet() {
        return this.barrier.length > 0;
    }
    /** A `ping` follows. */
    setBarrier() {
        for (const convo of this.unconfirmed) {
            const { told } = this.cursor(convo);
            this.barrier.push({ convo, seq: told.delivered, kind: 'delivered' });
            this.barrier.push({ convo, seq: told.read, kind: 'read' });
        }
        this.unconfirmed.clear();
    }
    /** Its `pong` is there. */
    passBarrier() {
        for (const { convo, seq, kind } of this.barrier) {
            const { confirmed } = this.cursor(convo);
            confirmed[kind] = Math.max(confirmed[kind], seq);
        }
        this.barrier = [];
    }
    /** What is not confirmed is to be said again: a new connection, or an `unavailable`. */
    forgetTold() {
        for (const { convo } of this.barrier)
            this.unconfirmed.add(convo);
        this.barrier = [];
        for (const convo of this.unconfirmed) {
            const cursor = this.cursor(convo);
            cursor.told = { ...cursor.confirmed };
            this.changed.add(convo);
        }
        this.unconfirmed.clear();
    }
    list() {
        return [...this.cursors].map(([convo, { wanted }]) => [convo, wanted.delivered]);
    }
    cursor(convo) {
        let cursor = this.cursors.get(convo);
        if (cursor === undefined) {
            const none = () => ({ delivered: 0, read: 0 });
            cursor = { wanted: none(), told: none(), confirmed: none() };
            this.cursors.set(convo, cursor);
        }
        return cursor;
    }
}
