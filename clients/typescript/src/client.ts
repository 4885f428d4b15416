// The core with a real WebSocket, real time and promises.

import { Core } from './core.js';
import type {
  Channel, Convo, Device, Failed, Frame, Goaway, Group, Kind, Message, Page, Presence, Receipt,
  Sent, Welcome,
} from './frames.js';
import type { Effect, Happening, Options, Problem, Reason, Snapshot, State } from './happenings.js';
import type { OperationName, Operations } from './operations.js';
import type { Outgoing } from './outbox.js';

/** What is used of a WebSocket: that of browsers, of Node 22 and later, and of the package `ws`. */
export interface Socket {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/**
 * Where a device keeps what is to outlive the program. `save` is called after changes, at most once
 * in `saveMs`, and by `flush`.
 */
export interface Storage {
  load(): Snapshot | undefined | Promise<Snapshot | undefined>;
  save(snapshot: Snapshot): void | Promise<void>;
}

export interface ClientOptions extends Omit<Options, 'usesTokens'> {
  /** Called for each connection that has no ticket. Undefined: the client disconnects. */
  token?: () => string | undefined | Promise<string | undefined>;
  storage?: Storage;
  saveMs?: number;
  WebSocket?: new (url: string, protocols: string[]) => Socket;
  random?: () => number;
  /** Milliseconds that never go back. */
  now?: () => number;
}

export interface Events {
  state: { state: State; reason?: Reason; retry_ms?: number };
  welcome: Welcome;
  /** Each once, in the order of its conversation; also what this user's other devices sent. */
  message: Message;
  sent: Sent;
  /** A send was refused for good. */
  rejected: { outgoing: Outgoing; problem: Problem };
  /** A send was not confirmed, and is sent again after `retry_ms`. */
  postponed: { id: string; retry_ms: number; problem: Problem };
  receipt: Receipt;
  presence: Presence;
  typing: { convo: string; from: string };
  failed: Failed;
  /** The backlog is through. */
  synced: Record<string, number>;
  goaway: Goaway;
  behind: undefined;
  /** The server does not know it; it is not asked again. */
  unsupported: 'typing' | 'presence';
  attempt_failed: { attempt: number; byToken: boolean };
  warning: string;
  /** Every well-formed frame, before anything else is made of it. */
  frame: Frame;
}

/** What the server refused, or what it could not be asked. */
export class AldisError extends Error {
  readonly code: string;
  readonly limit: number | undefined;
  readonly retry_ms: number | undefined;

  constructor({ code, message, limit, retry_ms }: Problem) {
    super(`${code}: ${message}`);
    this.name = 'AldisError';
    this.code = code;
    this.limit = limit;
    this.retry_ms = retry_ms;
  }
}

interface Answer<T> {
  resolve(value: T): void;
  reject(error: AldisError): void;
}

type Listener = (event: never) => void;

const SAVE_MS = 100;
/** A timer that is set to more rings at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** What a WebSocket may be closed with from our side. */
const isOurs = (code: number): boolean => code === 1000 || (code >= 3000 && code <= 4999);

export class Client {
  private readonly core: Core;
  private readonly options: ClientOptions;
  private readonly now: () => number;
  private readonly listeners = new Map<keyof Events, Set<Listener>>();
  private readonly answers = new Map<number, Answer<Frame>>();
  private readonly sends = new Map<string, Answer<Sent>>();
  private readonly idPrefix: string;
  private idCount = 0;
  private socket: Socket | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private saving: ReturnType<typeof setTimeout> | undefined;
  private isRunning = false;

  private constructor(options: ClientOptions, snapshot: Snapshot | undefined) {
    this.options = options;
    this.now = options.now ?? (() => performance.now());
    const { token, storage: _s, random, ...rest } = options;
    const core: Options = { ...rest, usesTokens: token !== undefined };
    this.core = new Core(core, random ?? Math.random, snapshot);
    this.idPrefix = randomHex(8);
  }

  /** Reads the storage; it does not connect. */
  static async create(options: ClientOptions): Promise<Client> {
    return new Client(options, await options.storage?.load());
  }

  get state(): State {
    return this.core.state;
  }

  /** Written and not answered yet, in order. */
  get outbox(): Outgoing[] {
    return this.core.outbox.list();
  }

  /** Up to where everything of a conversation was handed on; 0: nothing is known. */
  watermark(convo: string): number {
    return this.core.watermark(convo);
  }

  /** Returns how to stop listening. */
  on<Name extends keyof Events>(name: Name, listener: (event: Events[Name]) => void): () => void {
    const listeners = this.listeners.get(name) ?? new Set();
    this.listeners.set(name, listeners);
    listeners.add(listener as Listener);
    return () => listeners.delete(listener as Listener);
  }

  /** Goes online, and stays so. While it waits to reconnect: now. */
  connect(): void {
    this.core.connect(this.now());
    this.run();
  }

  disconnect(): void {
    this.core.disconnect();
    this.run();
  }

  /**
   * Writes a message. It is kept, and sent again with the same id, until it is answered: also
   * offline, and with a storage also by the next program. The promise fails only when the server
   * refuses the message; `id` is made here unless given.
   */
  send(what: Omit<Outgoing, 'id' | 'ts'> & { id?: string }): { id: string; sent: Promise<Sent> } {
    checkSend(what);
    const id = what.id ?? this.newId();
    if (this.core.outbox.has(id)) throw new TypeError(`${id} is under way already`);
    const sent = new Promise<Sent>((resolve, reject) => this.sends.set(id, { resolve, reject }));
    // Whoever does not look at the promise hears `rejected`.
    sent.catch(() => {});
    this.core.send({ ...what, id, ts: Date.now() });
    this.run();
    return { id, sent };
  }

  /** Says that this device has come so far (absent: as far as messages were handed on). */
  acknowledge(convo: string, kind: Kind, seq?: number): void {
    this.core.acknowledge(this.now(), convo, kind, seq);
    this.run();
  }

  markRead(convo: string, seq?: number): void {
    this.acknowledge(convo, 'read', seq);
  }

  /** What is behind the device's cursors, or beyond these seqs, comes as messages. */
  sync(convos?: Record<string, number>): Promise<{ convos: Record<string, number> }> {
    return this.ask('sync', convos === undefined ? {} : { convos });
  }

  history(convo: string, more: { before?: number; limit?: number } = {}): Promise<Page> {
    return this.ask('history', { convo, ...more });
  }

  async convos(more: { after?: string; limit?: number } = {}): Promise<Convo[]> {
    return (await this.ask('convos', more)).convos;
  }

  /** All of them, page by page. */
  async allConvos(): Promise<Convo[]> {
    const all: Convo[] = [];
    for (;;) {
      const page = await this.convos(all.length === 0 ? {} : { after: all.at(-1)!.convo });
      all.push(...page);
      if (page.length < 200) return all;
    }
  }

  createGroup(convo: string, members: string[]): Promise<Group> {
    return this.ask('group.create', { convo, members });
  }

  addMembers(convo: string, members: string[]): Promise<Group> {
    return this.ask('group.add', { convo, members });
  }

  removeMembers(convo: string, members: string[]): Promise<Group> {
    return this.ask('group.remove', { convo, members });
  }

  setRole(convo: string, members: string[], role: 'admin' | 'member'): Promise<Group> {
    return this.ask('group.role', { convo, members, role });
  }

  leaveGroup(convo: string): Promise<Group> {
    return this.ask('group.leave', { convo });
  }

  groupInfo(convo: string): Promise<Group> {
    return this.ask('group.info', { convo });
  }

  createChannel(convo: string): Promise<Channel> {
    return this.ask('channel.create', { convo });
  }

  subscribeChannel(convo: string): Promise<Channel> {
    return this.ask('channel.subscribe', { convo });
  }

  unsubscribeChannel(convo: string): Promise<Channel> {
    return this.ask('channel.unsubscribe', { convo });
  }

  /** Messages disappear after so many seconds; 0: never. */
  setExpiry(convo: string, expire_s: number): Promise<{ convo: string; expire_s: number }> {
    return this.ask('convo.set', { convo, expire_s });
  }

  async devices(): Promise<Device[]> {
    return (await this.ask('devices', {})).devices;
  }

  async revokeDevice(device: string): Promise<Device[]> {
    return (await this.ask('device.revoke', { device })).devices;
  }

  /** Who may see whether this user is online. */
  setPrivacy(presence: 'everyone' | 'nobody'): Promise<{ presence: 'everyone' | 'nobody' }> {
    return this.ask('privacy', { presence });
  }

  /** `presence` events for these users, also after reconnects. */
  watchPresence(users: string[]): void {
    this.core.watchPresence(users);
    this.run();
  }

  unwatchPresence(users: string[]): void {
    this.core.unwatchPresence(users);
    this.run();
  }

  /** May be called at every key: what is too much is left out. */
  typing(convo: string): void {
    this.core.typing(this.now(), convo);
    this.run();
  }

  /** Resolves once everything said before it is done. */
  ping(): Promise<{ ts: number }> {
    return this.ask('ping', {});
  }

  /** Saves at once, for example when the page goes. */
  flush(): void {
    clearTimeout(this.saving);
    this.saving = undefined;
    void this.options.storage?.save(this.core.snapshot);
  }

  private ask<Name extends OperationName>(
    name: Name,
    fields: Operations[Name]['fields'],
  ): Promise<Operations[Name]['answer']> {
    return new Promise((resolve, reject) => {
      const ref = this.core.ask(this.now(), name, fields);
      this.answers.set(ref, { resolve: resolve as (frame: unknown) => void, reject });
      this.run();
    });
  }

  private newId(): string {
    this.idCount += 1;
    return `${this.idPrefix}-${this.idCount}`;
  }

  /** Does what the core wants done, and sets the timer. A listener may call back into here. */
  private run(): void {
    if (this.isRunning) return;
    this.isRunning = true;
    for (let effect = this.core.next(); effect !== undefined; effect = this.core.next()) {
      this.perform(effect);
    }
    this.isRunning = false;
    clearTimeout(this.timer);
    const { deadline } = this.core;
    if (deadline === undefined) return;
    this.timer = setTimeout(() => {
      this.core.tick(this.now());
      this.run();
    }, Math.min(TIMER_MS_MAX, Math.max(0, Math.ceil(deadline - this.now()))));
  }

  private perform(effect: Effect): void {
    switch (effect.do) {
      case 'open': return this.open(effect.connection, effect.url, effect.protocols);
      case 'get_token': return void this.getToken(effect.connection);
      case 'say': return this.say(effect.text);
      case 'close': return this.close(effect.code);
      case 'save': return this.saveSoon();
      case 'tell': return this.tell(effect.happening);
    }
  }

  private open(connection: number, url: string, protocols: string[]): void {
    const WebSocket = this.options.WebSocket ?? globalThis.WebSocket;
    let socket: Socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch (error) {
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
    socket.onerror = () => {};
  }

  private hearClose(connection: number, code: number): void {
    this.core.closed(this.now(), connection, code);
    this.run();
  }

  private async getToken(connection: number): Promise<void> {
    let token: string | undefined;
    try {
      token = await this.options.token?.();
    } catch (error) {
      this.emit('warning', `token: ${String(error)}`);
      return this.hearClose(connection, 1006);
    }
    this.core.useToken(this.now(), connection, token);
    this.run();
  }

  private say(text: string): void {
    try {
      this.socket?.send(text);
    } catch {
      // It is closing: what was not sent is sent on the next connection.
    }
  }

  private close(code: number): void {
    this.socket?.close(isOurs(code) ? code : 1000);
    this.socket = undefined;
  }

  private saveSoon(): void {
    if (this.options.storage === undefined || this.saving !== undefined) return;
    this.saving = setTimeout(() => this.flush(), this.options.saveMs ?? SAVE_MS);
  }

  private tell(happening: Happening): void {
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
        return this.settle(happening.ref, ({ reject }) => (
          reject(new AldisError(happening.problem))
        ));
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

  private settle(ref: number, how: (answer: Answer<Frame>) => void): void {
    const answer = this.answers.get(ref);
    this.answers.delete(ref);
    if (answer !== undefined) how(answer);
  }

  /** A listener that throws harms nobody else: what it threw is reported, the rest goes on. */
  private emit<Name extends keyof Events>(name: Name, event: Events[Name]): void {
    for (const listener of this.listeners.get(name) ?? []) {
      try {
        (listener as (event: Events[Name]) => void)(event);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }
}

function checkSend({ to, convo, body, body64 }: Omit<Outgoing, 'id' | 'ts'>): void {
  if ((to === undefined) === (convo === undefined)) throw new TypeError('to or convo');
  if ((body === undefined) === (body64 === undefined)) throw new TypeError('body or body64');
}

function randomHex(size: number): string {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
