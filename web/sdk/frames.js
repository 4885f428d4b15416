// What travels: the server's frames as types, and their check. Nothing else in this package looks
// at a frame that `readFrame` has not passed.
const isText = (value) => typeof value === 'string';
const isFlag = (value) => typeof value === 'boolean';
const isInteger = (value) => Number.isSafeInteger(value);
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const isPlace = (value) => Number.isSafeInteger(value) && value >= 1;
const isDigits = (value) => typeof value === 'string' && /^\d{1,20}$/.test(value);
const oneOf = (...words) => (value) => words.includes(value);
const perhaps = (check) => (value) => value === undefined || check(value);
const listOf = (check) => (value) => Array.isArray(value) && value.every(check);
const isKind = oneOf('delivered', 'read');
function hasShape(shape) {
    return (value) => wrongField(value, shape) === undefined;
}
/** The name of the first field that is not as it should be. */
function wrongField(value, shape) {
    if (!isObject(value))
        return 'the whole';
    return Object.keys(shape).find((name) => !shape[name](value[name]));
}
function isObject(value) {
    return typeof value === 'object' && value !== null && !Array.isArray(value);
}
const MESSAGE = {
    convo: isText, seq: isPlace, mid: isDigits, from: isText, id: perhaps(isText), ts: isInteger,
    body: perhaps(isText), body64: perhaps(isText), kind: perhaps(isText),
};
const CONVO = {
    convo: isText, head: isCount, delivered: isCount, read: isCount, unread: isCount,
    others_delivered: isCount, others_read: isCount,
};
const SHAPES = new Map(Object.entries({
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
export function readFrame(data) {
    if (typeof data !== 'string')
        return { problem: 'a binary message' };
    let value;
    try {
        // `null` counts as absent.
        value = JSON.parse(data, (_, field) => (field === null ? undefined : field));
    }
    catch {
        return { problem: 'not JSON' };
    }
    if (!isObject(value) || typeof value['t'] !== 'string')
        return { problem: 'no object with t' };
    const name = value['t'];
    const shape = SHAPES.get(name);
    if (shape === undefined)
        return { unknown: name };
    const wrong = perhaps(isInteger)(value['ref']) ? wrongField(value, shape) : 'ref';
    if (wrong !== undefined)
        return { problem: `${name}: ${wrong}` };
    if (name === 'msg' && value['body'] === undefined && value['body64'] === undefined) {
        return { problem: 'msg: body' };
    }
    return { frame: value };
}
/** What a system message says happened to a group; undefined for every other message. */
export function groupChange(message) {
    if (message.kind !== 'system' || message.body === undefined)
        return undefined;
    try {
        const change = JSON.parse(message.body);
        const isChange = isObject(change) && isText(change['op']) && listOf(isText)(change['users']);
        return isChange ? change : undefined;
    }
    catch {
        return undefined;
    }
}
