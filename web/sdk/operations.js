// What a client asks, apart from `send` and `ack`, and which answer belongs to it.
const ANSWERS = {
    sync: 'synced',
    history: 'page',
    convos: 'convos',
    'group.create': 'group',
    'group.add': 'group',
    'group.remove': 'group',
    'group.role': 'group',
    'group.leave': 'group',
    'group.info': 'group',
    'channel.create': 'channel',
    'channel.subscribe': 'channel',
    'channel.unsubscribe': 'channel',
    'convo.set': 'convo',
    devices: 'devices',
    'device.revoke': 'devices',
    privacy: 'privacy',
    ping: 'pong',
};
/** These change nothing, so they are asked again on the next connection. */
const REPEATABLE = new Set(['history', 'convos', 'group.info', 'devices']);
/** The questions that are not answered yet. */
export class Questions {
    questions = new Map();
    add(ref, t, fields, expiresAt) {
        this.questions.set(ref, { ref, t, fields, expiresAt, isAsked: false });
    }
    /** What is to be asked on a connection that just came to be, or now. */
    due() {
        const due = [];
        for (const question of this.questions.values()) {
            if (question.isAsked)
                continue;
            question.isAsked = true;
            due.push({ t: question.t, ref: question.ref, ...question.fields });
        }
        return due;
    }
    /** Whether a frame with this `ref` is its answer; an answered question is forgotten. */
    answer(ref, t) {
        const question = this.questions.get(ref);
        if (question === undefined || (t !== 'error' && t !== ANSWERS[question.t]))
            return false;
        return this.questions.delete(ref);
    }
    /** The connection is gone. Returns those of which nobody knows whether they were done. */
    cut() {
        const unknown = [];
        for (const question of this.questions.values()) {
            if (REPEATABLE.has(question.t))
                question.isAsked = false;
            else
                unknown.push(question.ref);
        }
        for (const ref of unknown)
            this.questions.delete(ref);
        return unknown;
    }
    clear() {
        const refs = [...this.questions.keys()];
        this.questions.clear();
        return refs;
    }
    expire(now) {
        const late = [...this.questions.values()].filter(({ expiresAt }) => expiresAt <= now);
        for (const { ref } of late)
            this.questions.delete(ref);
        return late.map(({ ref }) => ref);
    }
    get nextExpiry() {
        // They all have the same patience, so the first one expires first.
        return this.questions.values().next().value?.expiresAt;
    }
}
export function mayWait(t) {
    return REPEATABLE.has(t);
}
