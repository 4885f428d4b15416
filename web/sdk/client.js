// The core with a real WebSocket, real time and promises.
import { Core } from './core.js';
/** What the server refused, or what it could not be asked. */
export class AldisError extends Error {
    code;
    limit;
    retry_ms;
    constructor({ code, message, limit, retry_ms }) {
        super(`${code}: ${message}`);
        this.name = 'AldisError';
        this.code = code;
        this.limit = limit;
        this.retry_ms = retry_ms;
    }
}
const SAVE_MS = 100;
/** A timer that is set to more rings at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** What a WebSocket may be closed with from our side. */
const isOurs = (code) => code === 1000 || (code >= 3000 && code <= 4999);
export class Client {
    core;
    options;
    now;
    listeners = new Map();
    answers = new Map();
    sends = new Map();
    idPrefix;
    idCount = 0;
    socket;
    timer;
    saving;
    isRunning = false;
    constructor(options, snapshot) {
        this.options = options;
        this.now = options.now ?? (() => performance.now());
        const { token, storage: _s, random, ...rest } = options;
        const core = { ...rest, usesTokens: token !== undefined };
        this.core = new Core(core, random ?? Math.random, snapshot);
        this.idPrefix = randomHex(8);
    }
    /** Reads the storage; it does not connect. */
    static async create(options) {
        return new Client(options, await options.storage?.load());
    }
    get state() {
        return this.core.state;
    }
    /** Written and not answered yet, in order. */
    get outbox() {
        return this.core.outbox.list();
    }
    /** Up to where everything of a conversation was handed on; 0: nothing is known. */
    watermark(convo) {
        return this.core.watermark(convo);
    }
    /** Returns how to stop listening. */
    on(name, listener) {
        const listeners = this.listeners.get(name) ?? new Set();
        this.listeners.set(name, listeners);
        listeners.add(listener);
        return () => listeners.delete(listener);
    }
    /** Goes online, and stays so. While it waits to reconnect: now. */
    connect() {
        this.core.connect(this.now());
        this.run();
    }
    disconnect() {
        this.core.disconnect();
        this.run();
    }
    /**
     * Writes a message. It is kept, and sent again with the same id, until it is answered: also
     * offline, and with a storage also by the next program. The promise fails only when the server
     * refuses the message; `id` is made here unless given.
     */
    send(what) {
        checkSend(what);
        const id = what.id ?? this.newId();
        if (this.core.outbox.has(id))
            throw new TypeError(`${id} is under way already`);
        const sent = new Promise((resolve, reject) => this.sends.set(id, { resolve, reject }));
        // Whoever does not look at the promise hears `rejected`.
        sent.catch(() => { });
        this.core.send({ ...what, id, ts: Date.now() });
        this.run();
        return { id, sent };
    }
    /** Says that this device has come so far (absent: as far as messages were handed on). */
    acknowledge(convo, kind, seq) {
        this.core.acknowledge(this.now(), convo, kind, seq);
        this.run();
    }
    markRead(convo, seq) {
        this.acknowledge(convo, 'read', seq);
    }
    /** What is behind the device's cursors, or beyond these seqs, comes as messages. */
    sync(convos) {
        return this.ask('sync', convos === undefined ? {} : { convos });
    }
    history(convo, more = {}) {
        return this.ask('history', { convo, ...more });
    }
    async convos(more = {}) {
        return (await this.ask('convos', more)).convos;
    }
    /** All of them, page by page. */
    async allConvos() {
        const all = [];
        for (;;) {
            const page = await this.convos(all.length === 0 ? {} : { after: all.at(-1).convo });
            all.push(...page);
            if (page.length < 200)
                return all;
        }
    }
    createGroup(convo, members) {
        return this.ask('group.create', { convo, members });
    }
    addMembers(convo, members) {
        return this.ask('group.add', { convo, members });
    }
    removeMembers(convo, members) {
        return this.ask('group.remove', { convo, members });
    }
    setRole(convo, members, role) {
        return this.ask('group.role', { convo, members, role });
    }
    leaveGroup(convo) {
        return this.ask('group.leave', { convo });
    }
    groupInfo(convo) {
        return this.ask('group.info', { convo });
    }
    createChannel(convo) {
        return this.ask('channel.create', { convo });
    }
    subscribeChannel(convo) {
        return this.ask('channel.subscribe', { convo });
    }
    unsubscribeChannel(convo) {
        return this.ask('channel.unsubscribe', { convo });
    }
    /** Messages disappear after so many seconds; 0: never. */
    setExpiry(convo, expire_s) {
        return this.ask('convo.set', { convo, expire_s });
    }
    async devices() {
        return (await this.ask('devices', {})).devices;
    }
    async revokeDevice(device) {
        return (await this.ask('device.revoke', { device })).devices;
    }
    /** Who may see whether this user is online. */
    setPrivacy(presence) {
        return this.ask('privacy', { presence });
    }
    /** `presence` events for these users, also after reconnects. */
    watchPresence(users) {
        this.core.watchPresence(users);
        this.run();
    }
    unwatchPresence(users) {
        this.core.unwatchPresence(users);
        this.run();
    }
    /** May be called at every key: what is too much is left out. */
    typing(convo) {
        this.core.typing(this.now(), convo);
        this.run();
    }
    /** Resolves once everything said before it is done. */
    ping() {
        return this.ask('ping', {});
    }
    /** Saves at once, for example when the page goes. */
    flush() {
        clearTimeout(this.saving);
        this.saving = undefined;
        void this.options.storage?.save(this.core.snapshot);
    }
    ask(name, fields) {
        return new Promise((resolve, reject) => {
            const ref = this.core.ask(this.now(), name, fields);
            this.answers.set(ref, { resolve: resolve, reject });
            this.run();
        });
    }
    newId() {
        this.idCount += 1;
        return `${this.idPrefix}-${this.idCount}`;
    }
    /** Does what the core wants done, and sets the timer. A listener may call back into here. */
    run() {
        if (this.isRunning)
            return;
        this.isRunning = true;
        for (let effect = this.core.next(); effect !== undefined; effect = this.core.next()) {
            this.perform(effect);
        }
        this.isRunning = false;
        clearTimeout(this.timer);
        const { deadline } = this.core;
        if (deadline === undefined)
            return;
        this.timer = setTimeout(() => {
            this.core.tick(this.now());
            this.run();
        }, Math.min(TIMER_MS_MAX, Math.max(0, Math.ceil(deadline - this.now()))));
    }
    perform(effect) {
        switch (effect.do) {
            case 'open': return this.open(effect.connection, effect.url, effect.protocols);
            case 'get_token': return void this.getToken(effect.connection);
            case 'say': return this.say(effect.text);
            case 'close': return this.close(effect.code);
            case 'save': return this.saveSoon();
            case 'tell': return this.tell(effect.happening);
        }
    }
    open(connection, url, protocols) {
        const WebSocket = this.options.WebSocket ?? globalThis.WebSocket;
        let socket;
        try {
            socket = new WebSocket(url, protocols);
        }
        catch (error) {
            // Not supported, or a URL that is none. It is like a connection that failed.
            this.emit('warning', String(error));
            setTimeout(() => this.hearClose(connection, 1006), 0);
            return;
        }
        this.socket = socket;
        socket.onmessage = ({ data }) => {
            this.core.heard(this.now(), connection, data);
            this.run();
        };
        socket.onclose = ({ code }) => this.hearClose(connection, code);
        // A close follows; without a listener some implementations throw.
        socket.onerror = () => { };
    }
    hearClose(connection, code) {
        this.core.closed(this.now(), connection, code);
        this.run();
    }
    async getToken(connection) {
        let token;
        try {
            token = await this.options.token?.();
        }
        catch (error) {
            this.emit('warning', `token: ${String(error)}`);
            return this.hearClose(connection, 1006);
        }
        this.core.useToken(this.now(), connection, token);
        this.run();
    }
    say(text) {
        try {
            this.socket?.send(text);
        }
        catch {
            // It is closing: what was not sent is sent on the next connection.
        }
    }
    close(code) {
        this.socket?.close(isOurs(code) ? code : 1000);
        this.socket = undefined;
    }
    saveSoon() {
        if (this.options.storage === undefined || this.saving !== undefined)
            return;
        this.saving = setTimeout(() => this.flush(), this.options.saveMs ?? SAVE_MS);
    }
    tell(happening) {
        switch (happening.is) {
            case 'message': return this.emit('message', happening.message);
            case 'sent':
                this.sends.get(happening.sent.id)?.resolve(happening.sent);
                this.sends.delete(happening.sent.id);
                return this.emit('sent', happening.sent);
            case 'rejected':
                this.sends.get(happening.outgoing.id)?.reject(new AldisError(happening.problem));
                this.sends.delete(happening.outgoing.id);
                return this.emit('rejected', happening);
            case 'answer': return this.settle(happening.ref, (answer) => answer.resolve(happening.frame));
            case 'no_answer':
                return this.settle(happening.ref, ({ reject }) => (reject(new AldisError(happening.problem))));
            case 'state': return this.emit('state', happening);
            case 'welcome': return this.emit('welcome', happening.welcome);
            case 'postponed': return this.emit('postponed', happening);
            case 'receipt': return this.emit('receipt', happening.receipt);
            case 'presence': return this.emit('presence', happening.presence);
            case 'typing': return this.emit('typing', happening);
            case 'failed': return this.emit('failed', happening.failed);
            case 'synced': return this.emit('synced', happening.convos);
            case 'goaway': return this.emit('goaway', happening.goaway);
            case 'behind': return this.emit('behind', undefined);
            case 'unsupported': return this.emit('unsupported', happening.operation);
            case 'attempt_failed': return this.emit('attempt_failed', happening);
            case 'warning': return this.emit('warning', happening.text);
            case 'frame': return this.emit('frame', happening.frame);
        }
    }
    settle(ref, how) {
        const answer = this.answers.get(ref);
        this.answers.delete(ref);
        if (answer !== undefined)
            how(answer);
    }
    /** A listener that throws harms nobody else: what it threw is reported, the rest goes on. */
    emit(name, event) {
        for (const listener of this.listeners.get(name) ?? []) {
            try {
                listener(event);
            }
            catch (error) {
                queueMicrotask(() => { throw error; });
            }
        }
    }
}
function checkSend({ to, convo, body, body64 }) {
    if ((to === undefined) === (convo === undefined))
        throw new TypeError('to or convo');
    if ((body === undefined) === (body64 === undefined))
        throw new TypeError('body or body64');
}
function randomHex(size) {
    const bytes = crypto.getRandomValues(new Uint8Array(size));
    return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
