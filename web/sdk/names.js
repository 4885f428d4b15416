// How conversations are named.
const encoder = new TextEncoder();
/** `dm:<a>:<b>`: the ids in the order of their bytes, `:` and `%` percent-encoded. */
export function directName(one, other) {
    const [first, second] = isBefore(one, other) ? [one, other] : [other, one];
    return `dm:${encode(first)}:${encode(second)}`;
}
/** The two users of a direct conversation; undefined for a group or a channel. */
export function usersOf(convo) {
    const parts = convo.split(':');
    if (parts.length !== 3 || parts[0] !== 'dm')
        return undefined;
    return [decode(parts[1]), decode(parts[2])];
}
/** Whom `user` talks to in a direct conversation (himself, in that with himself). */
export function peerIn(convo, user) {
    const users = usersOf(convo);
    if (users === undefined)
        return undefined;
    return users[0] === user ? users[1] : users[0];
}
function encode(id) {
    return id.replaceAll('%', '%25').replaceAll(':', '%3A');
}
function decode(part) {
    return part.replaceAll('%3A', ':').replaceAll('%25', '%');
}
/** Strings compare by their UTF-16 units, which is another order beyond U+FFFF. */
function isBefore(one, other) {
    const [a, b] = [encoder.encode(one), encoder.encode(other)];
    const length = Math.min(a.length, b.length);
    for (let at = 0; at < length; at += 1) {
        if (a[at] !== b[at])
            return a[at] < b[at];
    }
    return a.length <= b.length;
}
