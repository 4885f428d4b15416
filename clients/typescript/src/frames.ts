// What travels: the server's frames as types, and their check. Nothing else in this package looks
// at a frame that `readFrame` has not passed.

export type Kind = 'delivered' | 'read';

export interface Message {
  convo: string;
  seq: number;
  /** 64 bits as decimal digits. */
  mid: string;
  from: string;
  /** The sender's own id; a system message has none. */
  id?: string;
  ts: number;
  /** Text, or `body64`: bytes in base64. */
  body?: string;
  body64?: string;
  /** Absent: a user's message. `system`: a group changed, see `groupChange`. */
  kind?: string;
}

export interface Welcome {
  user: string;
  device: string;
  session: string;
  heartbeat_ms: number;
  ticket?: string;
  server: string;
}

export interface Sent {
  convo: string;
  id: string;
  seq: number;
  mid: string;
  ts: number;
  /** It was accepted before, and this is the first answer again. */
  dup: boolean;
}

export interface Receipt {
  convo: string;
  seq: number;
  kind: Kind;
  by: string;
  /** In groups: of the `of` other members, `count` have come to `seq`. */
  count?: number;
  of?: number;
}

export interface Page {
  convo: string;
  msgs: Message[];
  more: boolean;
}

export interface Convo {
  convo: string;
  head: number;
  delivered: number;
  read: number;
  unread: number;
  others_delivered: number;
  others_read: number;
}

export interface Group {
  convo: string;
  owner: string;
  admins: string[];
  members: string[];
  version: number;
}

export interface Channel {
  convo: string;
  owner: string;
  /** How many, or who: as the server has it. */
  subscribers: number | string[];
}

export interface Device {
  device: string;
  last_seen?: number;
}

export interface Presence {
  user: string;
  state: 'online' | 'offline';
  last_seen?: number;
}

export interface Failed {
  convo: string;
  seq: number;
  id: string;
}

export interface ServerError {
  code: string;
  message: string;
  id?: string;
  limit?: number;
  retry_ms?: number;
}

export interface Goaway {
  reason: string;
  reconnect_ms?: number;
}

export type Frame = { ref?: number } & (
  | ({ t: 'welcome' } & Welcome)
  | ({ t: 'sent' } & Sent)
  | ({ t: 'msg' } & Message)
  | ({ t: 'receipt' } & Receipt)
  | { t: 'synced'; convos: Record<string, number> }
  | ({ t: 'page' } & Page)
  | { t: 'convos'; convos: Convo[] }
  | ({ t: 'group' } & Group)
  | ({ t: 'channel' } & Channel)
  | { t: 'convo'; convo: string; expire_s: number }
  | { t: 'devices'; devices: Device[] }
  | { t: 'privacy'; presence: 'everyone' | 'nobody' }
  | ({ t: 'presence' } & Presence)
  | { t: 'typing'; convo: string; from: string }
  | ({ t: 'failed' } & Failed)
  | { t: 'pong'; ts: number }
  | { t: 'behind' }
  | ({ t: 'goaway' } & Goaway)
  | ({ t: 'error' } & ServerError)
);

/** A frame, the name of one that this version does not know, or what is wrong with it. */
export type Read = { frame: Frame } | { unknown: string } | { problem: string };

type Check = (value: unknown) => boolean;

const isText: Check = (value) => typeof value === 'string';
const isFlag: Check = (value) => typeof value === 'boolean';
const isInteger: Check = (value) => Number.isSafeInteger(value);
const isCount: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const isPlace: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 1;
const isDigits: Check = (value) => typeof value === 'string' && /^\d{1,20}$/.test(value);
const oneOf = (...words: string[]): Check => (value) => words.includes(value as string);
const perhaps = (check: Check): Check => (value) => value === undefined || check(value);
const listOf = (check: Check): Check => (value) => Array.isArray(value) && value.every(check);
const isKind = oneOf('delivered', 'read');

type Shape = Record<string, Check>;

function hasShape(shape: Shape): Check {
  return (value) => wrongField(value, shape) === undefined;
}

/** The name of the first field that is not as it should be. */
function wrongField(value: unknown, shape: Shape): string | undefined {
  if (!isObject(value)) return 'the whole';
  return Object.keys(shape).find((name) => !shape[name]!(value[name]));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const MESSAGE: Shape = {
  convo: isText, seq: isPlace, mid: isDigits, from: isText, id: perhaps(isText), ts: isInteger,
  body: perhaps(isText), body64: perhaps(isText), kind: perhaps(isText),
};
const CONVO: Shape = {
  convo: isText, head: isCount, delivered: isCount, read: isCount, unread: isCount,
  others_delivered: isCount, others_read: isCount,
};

const SHAPES = new Map<string, Shape>(Object.entries({
  welcome: {
    user: isText, device: isText, session: isText, heartbeat_ms: isPlace,
    ticket: perhaps(isText), server: isText,
  },
  sent: { convo: isText, id: isText, seq: isPlace, mid: isDigits, ts: isInteger, dup: isFlag },
  msg: MESSAGE,
  receipt: {
    convo: isText, seq: isPlace, kind: isKind, by: isText,
    count: perhaps(isCount), of: perhaps(isCount),
  },
  synced: { convos: (value) => isObject(value) && Object.values(value).every(isCount) },
  page: { convo: isText, msgs: listOf(hasShape(MESSAGE)), more: isFlag },
  convos: { convos: listOf(hasShape(CONVO)) },
  group: {
    convo: isText, owner: isText, admins: listOf(isText), members: listOf(isText),
    version: isCount,
  },
  channel: {
    convo: isText, owner: isText,
    subscribers: (value) => isCount(value) || listOf(isText)(value),
  },
  convo: { convo: isText, expire_s: isCount },
  devices: { devices: listOf(hasShape({ device: isText, last_seen: perhaps(isInteger) })) },
  privacy: { presence: oneOf('everyone', 'nobody') },
  presence: { user: isText, state: oneOf('online', 'offline'), last_seen: perhaps(isInteger) },
  typing: { convo: isText, from: isText },
  failed: { convo: isText, seq: isPlace, id: isText },
  pong: { ts: isInteger },
  behind: {},
  goaway: { reason: isText, reconnect_ms: perhaps(isCount) },
  error: {
    code: isText, message: isText, id: perhaps(isText), limit: perhaps(isInteger),
    retry_ms: perhaps(isCount),
  },
}));

/** Reads what came in one WebSocket message. It throws at nothing. */
export function readFrame(data: unknown): Read {
  if (typeof data !== 'string') return { problem: 'a binary message' };
  let value: unknown;
  try {
    // `null` counts as absent.
    value = JSON.parse(data, (_, field) => (field === null ? undefined : field));
  } catch {
    return { problem: 'not JSON' };
  }
  if (!isObject(value) || typeof value['t'] !== 'string') return { problem: 'no object with t' };
  const name = value['t'];
  const shape = SHAPES.get(name);
  if (shape === undefined) return { unknown: name };
  const wrong = perhaps(isInteger)(value['ref']) ? wrongField(value, shape) : 'ref';
  if (wrong !== undefined) return { problem: `${name}: ${wrong}` };
  if (name === 'msg' && value['body'] === undefined && value['body64'] === undefined) {
    return { problem: 'msg: body' };
  }
  return { frame: value as Frame };
}

export interface GroupChange {
  op: 'create' | 'add' | 'remove' | 'role' | 'leave';
  users: string[];
  role?: string;
  /** Who follows an owner that left. */
  owner?: string;
}

/** What a system message says happened to a group; undefined for every other message. */
export function groupChange(message: Message): GroupChange | undefined {
  if (message.kind !== 'system' || message.body === undefined) return undefined;
  try {
    const change: unknown = JSON.parse(message.body);
    const isChange = isObject(change) && isText(change['op']) && listOf(isText)(change['users']);
    return isChange ? change as unknown as GroupChange : undefined;
  } catch {
    return undefined;
  }
}
