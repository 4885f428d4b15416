// The client as a pure state machine. It owns no socket, clock, timer or randomness: what happens
// comes in with the time (`opened`, `heard`, `closed`, `tick`, and the wishes of the application),
// and what is to be done is taken out (`next`). `client.ts` drives it with a real WebSocket.
//
// Invariants: a message is handed on once, in the order of its conversation, and acknowledged only
// after that; a send stays in the outbox until it is answered; after `replaced` nothing reconnects.
import { BACKOFF_MS_MAX, BACKOFF_MS_MIN, backoffMs } from './backoff.js';
import { Cursors } from './cursors.js';
import { readFrame } from './frames.js';
import { Questions, mayWait } from './operations.js';
import { Outbox } from './outbox.js';
import { Places } from './places.js';
const SUBPROTOCOL = 'aldis.v1.json';
const SEND_WINDOW = 64;
const WELCOME_MS_MAX = 15_000;
const ANSWER_MS_MAX = 30_000;
/** `sent` and `msg` may cross for a moment: a place missing for longer is asked for. */
const GAP_MS = 1_500;
const ACKNOWLEDGE_MS = 40;
const BARRIER_MS = 5_000;
/** A connection that held so long was a good one: the backoff begins anew. */
const STEADY_MS = 1_000;
const RETRY_MS = 1_000;
const TYPING_MS = 3_000;
export const PRESENCE_MAX = 500;
/** Refs of what has no answer, so that an error finds its operation. Others count from 1. */
const REF_OF = { acknowledge: -1, typing: -2, presence: -3, barrier: -4 };
const TOKEN = /^[\w.~+/=-]+$/;
const DISCONNECTED = { code: 'disconnected', message: 'there is no connection' };
const CUT = { code: 'disconnected', message: 'the connection ended: outcome unknown' };
const LATE = { code: 'timeout', message: 'no answer in time: outcome unknown' };
export class Core {
    state = 'DISCONNECTED';
    outbox = new Outbox();
    options;
    random;
    places = new Map();
    cursors = new Cursors();
    questions = new Questions();
    /** Conversations in which something is missing, and the syncs that ask for it. */
    gapped = new Set();
    gapRefs = new Map();
    presence = new Set();
    unsupported = new Set();
    typedAt = new Map();
    timers = new Map();
    effects = [];
    ticket;
    isWelcomed = false;
    isByToken = false;
    /** The backlog of this connection is through. */
    isCaughtUp = false;
    /** The number of the socket that counts; what comes from any other is stale. 0: there is none. */
    connection = 0;
    connectionCount = 0;
    attempt = 0;
    goaway;
    heartbeatMs = 30_000;
    heardAt = 0;
    welcomedAt = 0;
    refCount = 0;
    /** `random` gives numbers from 0 to below 1. `snapshot`: of an earlier life of this device. */
    constructor(options, random, snapshot) {
        this.options = options;
        this.random = random;
        this.restore(snapshot);
    }
    /** Storages may be broken: what is no watermark and no message is left out. */
    restore(snapshot) {
        for (const [convo, seq] of Object.entries(snapshot?.watermarks ?? {})) {
            if (!Number.isSafeInteger(seq) || seq < 1)
                continue;
            this.places.set(convo, new Places(seq));
            this.cursors.restore(convo, seq);
        }
        const outbox = snapshot?.outbox;
        for (const outgoing of Array.isArray(outbox) ? outbox : []) {
            if (typeof outgoing?.id === 'string')
                this.outbox.add(outgoing);
        }
    }
    /** What is to be done next; undefined: nothing for now. */
    next() {
        return this.effects.shift();
    }
    /** When `tick` is to be called at the latest. */
    get deadline() {
        return this.timers.size === 0 ? undefined : Math.min(...this.timers.values());
    }
    get snapshot() {
        const watermarks = Object.fromEntries(this.cursors.list().filter(([, seq]) => seq > 0));
        return { watermarks, outbox: this.outbox.list() };
    }
    /** Up to where everything of a conversation was handed on. */
    watermark(convo) {
        return this.places.get(convo)?.watermark ?? 0;
    }
    // What the application wishes.
    connect(now) {
        if (this.connection !== 0)
            return;
        if (this.state === 'DISCONNECTED') {
            this.attempt = 0;
            this.become('CONNECTING');
        }
        this.open(now);
    }
    disconnect(reason = 'asked') {
        if (this.connection !== 0)
            this.effects.push({ do: 'close', code: 1000 });
        this.drop();
        this.timers.delete('answers');
        this.give(this.questions.clear(), DISCONNECTED);
        if (this.state !== 'DISCONNECTED')
            this.become('DISCONNECTED', reason);
    }
    /** The answer to `get_token`. */
    useToken(now, connection, token) {
        if (connection !== this.connection || this.isWelcomed)
            return;
        if (token === undefined || !TOKEN.test(token)) {
            this.disconnect('no_token');
            return;
        }
        this.openSocket(now, {}, [SUBPROTOCOL, `bearer.${token}`]);
    }
    send(outgoing) {
        this.outbox.add(outgoing);
        this.effects.push({ do: 'save' });
        this.transmit();
    }
    /** Asks; the answer comes with the same ref. */
    ask(now, t, fields) {
        this.refCount += 1;
        const ref = this.refCount;
        if (!this.isWelcomed && !mayWait(t)) {
            this.give([ref], DISCONNECTED);
            return ref;
        }
        const expiresAt = now + (this.options.answerMsMax ?? ANSWER_MS_MAX);
        this.questions.add(ref, t, t === 'sync' ? this.cautious(fields) : fields, expiresAt);
        this.arm('answers', this.questions.nextExpiry);
        this.askDue();
        return ref;
    }
    /**
     * Never beyond what was handed on. Where nothing was yet, since this device was not behind, what
     * the application read in the history counts.
     */
    acknowledge(now, convo, kind, seq) {
        const known = this.places.get(convo)?.watermark ?? (this.isCaughtUp ? seq ?? 0 : 0);
        const upTo = Math.min(seq ?? Infinity, known);
        if (!this.cursors.acknowledge(convo, kind, upTo))
            return;
        this.effects.push({ do: 'save' });
        this.armSooner('acknowledge', now + ACKNOWLEDGE_MS);
    }
    /** Kept over reconnects. */
    watchPresence(users) {
        const more = users.filter((user) => !this.presence.has(user));
        const taken = more.slice(0, PRESENCE_MAX - this.presence.size);
        for (const user of taken)
            this.presence.add(user);
        if (taken.length < more.length)
            this.warn(`presence: at most ${PRESENCE_MAX} users`);
        this.subscribe(taken);
    }
    unwatchPresence(users) {
        const known = users.filter((user) => this.presence.delete(user));
        if (known.length === 0 || !this.isWelcomed || this.unsupported.has('presence'))
            return;
        this.say({ t: 'presence.unsub', ref: REF_OF.presence, users: known });
    }
    /** At most one in 3 s goes out for each conversation. */
    typing(now, convo) {
        if (!this.isWelcomed || this.unsupported.has('typing'))
            return;
        if (now - (this.typedAt.get(convo) ?? -Infinity) < TYPING_MS)
            return;
        this.typedAt.set(convo, now);
        this.say({ t: 'typing', ref: REF_OF.typing, convo });
    }
    // What the socket does.
    heard(now, connection, data) {
        if (connection !== this.connection)
            return;
        this.heardAt = now;
        const read = readFrame(data);
        if ('problem' in read) {
            this.warn(`a malformed frame: ${read.problem}`);
        }
        else if ('frame' in read) {
            this.tell({ is: 'frame', frame: read.frame });
            this.handle(now, read.frame);
        }
    }
    closed(now, connection, code) {
        if (connection === this.connection && connection !== 0)
            this.lost(now, code);
    }
    tick(now) {
        for (const [name, at] of [...this.timers]) {
            if (at > now || this.timers.get(name) !== at)
                continue;
            this.timers.delete(name);
            this.ring(name, now);
        }
    }
    ring(name, now) {
        switch (name) {
            case 'reconnect': return this.open(now);
            case 'welcome': return this.isDead(now);
            case 'silence': return this.listen(now);
            case 'acknowledge': return this.sayAcknowledgements(now);
            case 'barrier': return this.sayBarrier();
            case 'hold': return this.transmit();
            case 'gap': return this.closeGaps();
            case 'answers': return this.expireAnswers(now);
        }
    }
    // The connection's life.
    open(now) {
        this.timers.delete('reconnect');
        this.connectionCount += 1;
        this.connection = this.connectionCount;
        this.goaway = undefined;
        this.isByToken = this.options.usesTokens === true && this.ticket === undefined;
        this.arm('welcome', now + (this.options.welcomeMsMax ?? WELCOME_MS_MAX));
        if (this.isByToken) {
            this.effects.push({ do: 'get_token', connection: this.connection });
            return;
        }
        const { user, device } = this.options;
        const identity = this.ticket === undefined ? { user, device } : { ticket: this.ticket };
        this.openSocket(now, identity, [SUBPROTOCOL]);
    }
    openSocket(now, identity, protocols) {
        this.heardAt = now;
        const query = Object.entries({ ...identity, sync: this.options.sync })
            .filter(([, value]) => value !== undefined)
            // Not URLSearchParams: it writes a space as `+`, which is a plus here.
            .map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join('&');
        const url = query === '' ? this.options.url : `${this.options.url}?${query}`;
        this.effects.push({ do: 'open', connection: this.connection, url, protocols });
    }
    welcomed(now, welcome) {
        const { user } = this.options;
        if (this.isWelcomed)
            return;
        if (user !== undefined && welcome.user !== user) {
            this.warn(`this is ${welcome.user}, not ${user}`);
            this.ticket = undefined;
            this.disconnect('not_me');
            return;
        }
        this.isWelcomed = true;
        this.welcomedAt = now;
        this.ticket = welcome.ticket;
        this.heartbeatMs = welcome.heartbeat_ms;
        this.timers.delete('welcome');
        this.arm('silence', now + this.heartbeatMs / 2);
        this.tell({ is: 'welcome', welcome });
        this.become('CONNECTED');
        this.transmit();
        this.sayAcknowledgements(now);
        this.askDue();
        this.subscribe([...this.presence]);
        this.lookForGaps(now);
    }
    lost(now, code) {
        const { isWelcomed, isByToken, goaway } = this;
        // A ticket that led to no welcome may have expired: user or token are tried next.
        if (!isWelcomed)
            this.ticket = undefined;
        if (isWelcomed && now - this.welcomedAt >= STEADY_MS)
            this.attempt = 0;
        this.drop();
        this.give(this.questions.cut(), CUT);
        if (code === 4001 || goaway?.reason === 'replaced')
            return this.disconnect('replaced');
        if (code === 4004) {
            this.ticket = undefined;
            if (!this.options.usesTokens)
                return this.disconnect('revoked');
        }
        const backoffMsMin = this.options.backoffMsMin ?? BACKOFF_MS_MIN;
        const backoffMsMax = this.options.backoffMsMax ?? BACKOFF_MS_MAX;
        const jitter = backoffMs(this.attempt, this.random(), { backoffMsMin, backoffMsMax });
        const retry_ms = goaway?.reconnect_ms ?? jitter;
        this.attempt += 1;
        this.arm('reconnect', now + retry_ms);
        this.become('RECONNECTING', 'lost', retry_ms);
        if (!isWelcomed)
            this.tell({ is: 'attempt_failed', attempt: this.attempt, byToken: isByToken });
    }
    /** Forgets the socket, and what belongs to it. */
    drop() {
        this.connection = 0;
        this.isWelcomed = false;
        this.isCaughtUp = false;
        this.outbox.putAllBack();
        this.cursors.forgetTold();
        this.gapRefs.clear();
        for (const name of [...this.timers.keys()])
            if (name !== 'answers')
                this.timers.delete(name);
    }
    /** Browsers neither send nor see pings, so in silence it asks; 2 heartbeats of it are death. */
    listen(now) {
        const silence = now - this.heardAt;
        if (silence >= 2 * this.heartbeatMs)
            return this.isDead(now);
        const asksAt = this.heardAt + this.heartbeatMs / 2;
        if (now < asksAt)
            return this.arm('silence', asksAt);
        this.say({ t: 'ping' });
        this.arm('silence', this.heardAt + 2 * this.heartbeatMs);
        return undefined;
    }
    isDead(now) {
        this.effects.push({ do: 'close', code: 4002 });
        this.lost(now, 4002);
    }
    // What the server says.
    handle(now, frame) {
        if (frame.t === 'welcome')
            return this.welcomed(now, frame);
        if (!this.isWelcomed && frame.t !== 'goaway' && frame.t !== 'error') {
            return this.warn(`${frame.t} before welcome`);
        }
        switch (frame.t) {
            case 'msg': return this.received(now, frame);
            case 'sent': return this.accepted(now, frame);
            case 'synced': return this.synced(now, frame);
            case 'error': return this.refused(now, frame);
            case 'goaway':
                this.goaway = frame;
                return this.tell({ is: 'goaway', goaway: frame });
            case 'receipt': return this.tell({ is: 'receipt', receipt: frame });
            case 'typing': return this.tell({ is: 'typing', convo: frame.convo, from: frame.from });
            case 'failed': return this.tell({ is: 'failed', failed: frame });
            case 'behind': return this.tell({ is: 'behind' });
            case 'presence':
                this.tell({ is: 'presence', presence: frame });
                return this.answered(frame);
            case 'pong':
                if (frame.ref === REF_OF.barrier)
                    this.barrierPassed(now);
                return this.answered(frame);
            default: return this.answered(frame);
        }
    }
    received(now, message) {
        const { convo, seq } = message;
        const due = [];
        const verdict = this.placesOf(convo).receive(message, due);
        this.handOn(now, convo, due);
        if (verdict === 'repeat' && this.cursors.isBehind(convo, seq)) {
            this.armSooner('acknowledge', now + ACKNOWLEDGE_MS);
        }
    }
    accepted(now, sent) {
        const outgoing = this.outbox.take(sent.id);
        const due = [];
        if (outgoing !== undefined) {
            this.effects.push({ do: 'save' });
            this.tell({ is: 'sent', sent, outgoing });
        }
        this.placesOf(sent.convo).fill(sent.seq, due);
        this.handOn(now, sent.convo, due);
        this.transmit();
    }
    /** Without ref: the backlog is through. With ours: a gap is closed. */
    synced(now, frame) {
        for (const [convo, head] of Object.entries(frame.convos)) {
            const due = [];
            this.placesOf(convo).skipTo(head, due);
            this.handOn(now, convo, due);
        }
        if (frame.ref !== undefined && this.gapRefs.delete(frame.ref))
            return this.lookForGaps(now);
        if (frame.ref === undefined) {
            this.isCaughtUp = true;
            this.tell({ is: 'synced', convos: frame.convos });
        }
        return this.answered(frame);
    }
    handOn(now, convo, due) {
        for (const message of due)
            this.tell({ is: 'message', message });
        if (this.placesOf(convo).hasGap)
            this.gapped.add(convo);
        else
            this.gapped.delete(convo);
        if (this.options.acknowledge !== 'manual' && this.watermark(convo) > 0) {
            this.acknowledge(now, convo, 'delivered');
        }
        this.lookForGaps(now);
    }
    refused(now, error) {
        const { code, message, id, ref } = error;
        const isForLater = code === 'unavailable' || code === 'rate_limited';
        const retry_ms = error.retry_ms ?? RETRY_MS;
        if (id !== undefined && this.outbox.has(id))
            return this.sendRefused(now, id, error);
        if (ref === undefined)
            return this.warn(`${code}: ${message}`);
        if (ref === REF_OF.acknowledge) {
            if (!isForLater)
                return this.warn(`ack: ${code}: ${message}`);
            this.cursors.forgetTold();
            return this.arm('acknowledge', now + retry_ms);
        }
        if (ref === REF_OF.typing || ref === REF_OF.presence) {
            const operation = ref === REF_OF.typing ? 'typing' : 'presence';
            if (code !== 'unknown_op' || this.unsupported.has(operation))
                return undefined;
            this.unsupported.add(operation);
            return this.tell({ is: 'unsupported', operation });
        }
        const convo = this.gapRefs.get(ref);
        if (convo !== undefined)
            return this.gapRefused(now, ref, convo, isForLater ? retry_ms : null);
        return this.answered({ t: 'error', ...error });
    }
    sendRefused(now, id, error) {
        const { code } = error;
        if (code === 'unavailable' || code === 'rate_limited') {
            const retry_ms = error.retry_ms ?? RETRY_MS;
            this.outbox.putBack(id);
            if (!this.timers.has('hold'))
                this.arm('hold', now + retry_ms);
            return this.tell({ is: 'postponed', id, retry_ms, problem: error });
        }
        const outgoing = this.outbox.take(id);
        this.effects.push({ do: 'save' });
        this.tell({ is: 'rejected', outgoing, problem: error });
        return this.transmit();
    }
    answered(frame) {
        if (frame.ref === undefined || !this.questions.answer(frame.ref, frame.t))
            return;
        if (frame.t === 'error')
            this.give([frame.ref], frame);
        else
            this.tell({ is: 'answer', ref: frame.ref, frame });
    }
    // Gaps.
    lookForGaps(now) {
        if (!this.isWelcomed || this.gapped.size === 0)
            return;
        if (!this.timers.has('gap') && this.gapRefs.size === 0)
            this.arm('gap', now + GAP_MS);
    }
    closeGaps() {
        if (!this.isWelcomed)
            return;
        for (const convo of this.gapped) {
            this.refCount += 1;
            this.gapRefs.set(this.refCount, convo);
            this.say({ t: 'sync', ref: this.refCount, convos: { [convo]: this.watermark(convo) } });
        }
    }
    /** Null: it is not to be had, for example since we are no member any more. */
    gapRefused(now, ref, convo, retry_ms) {
        this.gapRefs.delete(ref);
        if (retry_ms !== null)
            return this.arm('gap', now + retry_ms);
        const due = [];
        this.placesOf(convo).skipHeld(due);
        return this.handOn(now, convo, due);
    }
    // What is said.
    transmit() {
        if (!this.isWelcomed || this.timers.has('hold'))
            return;
        const window = this.options.sendWindow ?? SEND_WINDOW;
        for (const { ts: _, ...fields } of this.outbox.due(this.connection, window)) {
            this.say({ t: 'send', ...fields });
        }
    }
    sayAcknowledgements(now) {
        if (!this.isWelcomed)
            return;
        this.timers.delete('acknowledge');
        for (const { convo, seq, kind } of this.cursors.due()) {
            this.say({ t: 'ack', ref: REF_OF.acknowledge, convo, seq, kind });
        }
        this.armBarrier(now);
    }
    armBarrier(now) {
        if (!this.cursors.hasUnconfirmed || this.cursors.isBarrierSet)
            return;
        this.armSooner('barrier', now + BARRIER_MS);
    }
    sayBarrier() {
        this.cursors.setBarrier();
        this.say({ t: 'ping', ref: REF_OF.barrier });
    }
    barrierPassed(now) {
        this.cursors.passBarrier();
        this.armBarrier(now);
    }
    askDue() {
        if (!this.isWelcomed)
            return;
        for (const question of this.questions.due())
            this.say(question);
    }
    subscribe(users) {
        if (users.length === 0 || !this.isWelcomed || this.unsupported.has('presence'))
            return;
        this.say({ t: 'presence.sub', ref: REF_OF.presence, users });
    }
    /** What `synced` covers counts as seen, so a sync never begins above what was. */
    cautious({ convos }) {
        if (convos === undefined)
            return {};
        const known = Object.entries(convos).map(([convo, seq]) => ([convo, Math.min(seq, this.places.get(convo)?.watermark ?? seq)]));
        return { convos: Object.fromEntries(known) };
    }
    expireAnswers(now) {
        this.give(this.questions.expire(now), LATE);
        const next = this.questions.nextExpiry;
        if (next !== undefined)
            this.arm('answers', next);
    }
    give(refs, problem) {
        for (const ref of refs)
            this.tell({ is: 'no_answer', ref, problem });
    }
    placesOf(convo) {
        let places = this.places.get(convo);
        if (places === undefined) {
            places = new Places();
            this.places.set(convo, places);
        }
        return places;
    }
    become(state, reason, retry_ms) {
        this.state = state;
        const more = { ...(reason && { reason }), ...(retry_ms !== undefined && { retry_ms }) };
        this.tell({ is: 'state', state, ...more });
    }
    say(operation) {
        this.effects.push({ do: 'say', text: JSON.stringify(operation) });
    }
    tell(happening) {
        this.effects.push({ do: 'tell', happening });
    }
    warn(text) {
        this.tell({ is: 'warning', text });
    }
    arm(name, at) {
        this.timers.set(name, at);
    }
    armSooner(name, at) {
        this.timers.set(name, Math.min(at, this.timers.get(name) ?? Infinity));
    }
}
