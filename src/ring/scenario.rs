//! What every ring must do, as scenarios that run on the kernel and on its simulated twin alike.

use std::net::SocketAddr;

use super::{Completion, Kind, Ring, Socket, Token};

/// A ring with a world around it: somewhere to listen, and clients that are no rings.
pub(crate) trait Stage {
    type Ring: Ring;
    type Client: Client;

    fn ring(&mut self) -> &mut Self::Ring;

    /// A listener, and the address it has.
    fn listen(&mut self) -> (Socket, SocketAddr);

    /// An address where nobody listens.
    fn vacant(&mut self) -> SocketAddr;

    fn dial(&mut self, address: SocketAddr) -> Self::Client;

    /// The same, and the address that the client has.
    fn dial_named(&mut self, address: SocketAddr) -> (Self::Client, SocketAddr);

    /// Lets a little time pass and takes a turn.
    fn pump(&mut self, completions: &mut Vec<Completion>);
}

/// A peer that is no ring. Nothing here blocks.
pub(crate) trait Client {
    /// Returns how many bytes were taken.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// What has arrived, at most `size_max` bytes.
    fn read(&mut self, size_max: usize) -> Vec<u8>;

    /// The peer said that nothing more comes, or reset the connection.
    fn is_closed(&self) -> bool;

    fn was_reset(&self) -> bool;

    fn close(self);
}

const PUMPS_MAX: usize = 20_000;

/// Pumps until a completion of `token` comes; every other one is a mistake.
fn next<S: Stage>(stage: &mut S, token: Token) -> Completion {
    let mut completions = Vec::new();
    for _ in 0..PUMPS_MAX {
        stage.pump(&mut completions);
        if !completions.is_empty() {
            assert_eq!(completions.len(), 1, "{completions:?} instead of {token:?}");
            assert_eq!(completions[0].token, token);
            return completions[0];
        }
    }
    panic!("no completion of {token:?}");
}

/// Pumps until completions of all these tokens have come, in any order.
fn all<S: Stage>(stage: &mut S, tokens: &[Token]) -> Vec<Completion> {
    let mut completions = Vec::new();
    for _ in 0..PUMPS_MAX {
        stage.pump(&mut completions);
        if completions.len() >= tokens.len() {
            let find = |token| completions.iter().find(|c| c.token == token).copied();
            let found = tokens.iter().map(|token| find(*token));
            return found.map(|c| c.expect("one completion each")).collect();
        }
    }
    panic!("only {completions:?} of {tokens:?}");
}

fn quiet<S: Stage>(stage: &mut S) {
    let mut completions = Vec::new();
    for _ in 0..20 {
        stage.pump(&mut completions);
    }
    assert_eq!(completions, [], "nothing was asked for");
}

fn read_until<S: Stage>(
    stage: &mut S,
    client: &mut S::Client,
    mut enough: impl FnMut(&S::Client, &[u8]) -> bool,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut completions = Vec::new();
    for _ in 0..PUMPS_MAX {
        bytes.extend(client.read(1 << 16));
        if enough(client, &bytes) {
            assert_eq!(completions, [], "nothing was asked for");
            return bytes;
        }
        stage.pump(&mut completions);
    }
    panic!("the client saw only {} bytes", bytes.len());
}

/// Takes the bytes of a completion out of its buffer.
fn taken<R: Ring>(ring: &mut R, completion: Completion) -> Vec<u8> {
    let size = usize::try_from(completion.result).expect("bytes were received");
    let Some(buffer) = completion.buffer else {
        assert_eq!(size, 0, "bytes come in a buffer");
        return Vec::new();
    };
    let bytes = ring.bytes(buffer, size).to_vec();
    ring.release(buffer);
    bytes
}

fn receive_exactly<S: Stage>(stage: &mut S, token: Token, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < size {
        let completion = next(stage, token);
        assert!(completion.more, "still armed, or the end came early");
        bytes.extend(taken(stage.ring(), completion));
    }
    bytes
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

fn token(kind: Kind, slot: u32) -> Token {
    Token::new(kind, slot, 7)
}

/// A listener with an armed accept, one client, and the socket of the server's side.
fn connected<S: Stage>(stage: &mut S) -> (S::Client, Socket, SocketAddr) {
    let (listener, address) = stage.listen();
    let accept = token(Kind::Accept, 0);
    stage.ring().accept(listener, accept);
    let client = stage.dial(address);
    let accepted = next(stage, accept);
    assert!(accepted.more && accepted.result >= 0, "{accepted:?}");
    (client, stage.ring().accepted(accepted.result as u32), address)
}

pub(crate) fn echo(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let (receive, send) = (token(Kind::Receive, 1), token(Kind::Send, 1));
    stage.ring().receive(socket, receive);
    for round in 1..50 {
        let message = pattern(round * 7);
        assert_eq!(client.write(&message), message.len());
        let bytes = receive_exactly(stage, receive, message.len());
        assert_eq!(bytes, message);
        stage.ring().send(socket, bytes, send);
        let sent = next(stage, send);
        assert_eq!((sent.result as usize, sent.more), (message.len(), false));
        let emptied = stage.ring().take_sent(send).expect("it has just completed");
        assert!(emptied.is_empty() && emptied.capacity() >= message.len());
        let echoed = read_until(stage, &mut client, |_, bytes| bytes.len() == message.len());
        assert_eq!(echoed, message);
    }
    client.close();
    let end = next(stage, receive);
    assert_eq!((end.result, end.more, end.buffer), (0, false, None));
    stage.ring().close(socket, false);
    quiet(stage);
}

/// A send much larger than all socket buffers completes only when the peer has read on.
pub(crate) fn large_send_to_a_slow_reader(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let message = pattern(24 << 20);
    let send = token(Kind::Send, 1);
    stage.ring().send(socket, message.clone(), send);
    quiet(stage);
    let mut completions = Vec::new();
    let mut bytes = Vec::new();
    let mut emptied = None;
    for _ in 0..PUMPS_MAX {
        stage.pump(&mut completions);
        emptied = emptied.or_else(|| stage.ring().take_sent(send));
        bytes.extend(client.read(1 << 16));
        if bytes.len() == message.len() && !completions.is_empty() {
            break;
        }
    }
    assert!(bytes == message, "{} bytes came", bytes.len());
    assert_eq!(completions.len(), 1);
    assert_eq!((completions[0].token, completions[0].result), (send, 24 << 20));
    assert!(emptied.is_some_and(|vector| vector.is_empty()));
    assert_eq!(stage.ring().take_sent(token(Kind::Send, 2)), None);
}

/// Holds every buffer back until the receive starves, then goes on without a byte lost.
pub(crate) fn starved_of_buffers(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let receive = token(Kind::Receive, 1);
    let total = stage.ring().buffers_free();
    let message = pattern(64 * 1024);
    let mut written = client.write(&message);
    stage.ring().receive(socket, receive);
    let mut held = Vec::new();
    let mut completions = Vec::new();
    let starved = loop {
        stage.pump(&mut completions);
        written += client.write(&message[written..]);
        let ended = completions.iter().position(|completion| !completion.more);
        held.extend(completions.drain(..ended.unwrap_or(completions.len())));
        if ended.is_some() {
            break completions.remove(0);
        }
    };
    assert_eq!((starved.result, starved.buffer), (-libc::ENOBUFS, None));
    assert_eq!((held.len(), stage.ring().buffers_free()), (total, 0));
    let mut bytes = Vec::new();
    for completion in held {
        bytes.extend(taken(stage.ring(), completion));
    }
    assert_eq!(stage.ring().buffers_free(), total);
    stage.ring().receive(socket, receive);
    for _ in 0..PUMPS_MAX {
        stage.pump(&mut completions);
        written += client.write(&message[written..]);
        let mut ended = false;
        for completion in completions.drain(..) {
            ended |= !completion.more;
            if completion.result != -libc::ENOBUFS {
                bytes.extend(taken(stage.ring(), completion));
            }
        }
        if bytes.len() == message.len() {
            break;
        }
        if ended {
            stage.ring().receive(socket, receive);
        }
    }
    assert!(bytes == message, "{} bytes came", bytes.len());
}

pub(crate) fn connect_refused(stage: &mut impl Stage) {
    let address = stage.vacant();
    let connect = token(Kind::LinkConnect, 1);
    let socket = stage.ring().connect(address, connect).expect("a new socket");
    let refused = next(stage, connect);
    assert_eq!((refused.result, refused.more), (-libc::ECONNREFUSED, false));
    stage.ring().close(socket, false);
    quiet(stage);
}

/// The ring talks to itself over a link, as two processes do.
pub(crate) fn link_to_itself(stage: &mut impl Stage) {
    let (listener, address) = stage.listen();
    let accept = token(Kind::LinkAccept, 0);
    let connect = token(Kind::LinkConnect, 1);
    stage.ring().accept(listener, accept);
    let near = stage.ring().connect(address, connect).expect("a new socket");
    let both = all(stage, &[accept, connect]);
    assert_eq!(both[1].result, 0);
    let far = stage.ring().accepted(both[0].result as u32);
    let (receive, send) = (token(Kind::LinkReceive, 1), token(Kind::LinkSend, 1));
    stage.ring().receive(near, receive);
    stage.ring().send(far, b"over the link".to_vec(), send);
    let both = all(stage, &[send, receive]);
    assert_eq!((both[0].result, both[1].result), (13, 13));
    assert_eq!(taken(stage.ring(), both[1]), b"over the link");
    stage.ring().close(far, false);
    let end = next(stage, receive);
    assert_eq!((end.result, end.more), (0, false));
    stage.ring().close(near, false);
    quiet(stage);
}

/// A cancelled receive ends, and takes no bytes with it that come later.
/// A poll says that something is there, a receive takes it, again and again; then the end.
pub(crate) fn polled_and_received(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let wait = token(Kind::Receive, 1);
    for round in 0..3 {
        stage.ring().poll(socket, wait);
        quiet(stage);
        let message = pattern(100 + round);
        assert_eq!(client.write(&message), message.len());
        let readable = next(stage, wait);
        assert!(readable.result > 0 && !readable.more && readable.buffer.is_none());
        stage.ring().receive_once(socket, wait);
        let received = next(stage, wait);
        assert!(!received.more);
        assert_eq!(taken(stage.ring(), received), message);
    }
    // A poll for what is there already, and a receive before there is anything.
    client.write(b"one");
    for expected in [&b"one"[..], b"two"] {
        stage.ring().receive_once(socket, wait);
        if expected == b"two" {
            quiet(stage);
            client.write(expected);
        }
        let received = next(stage, wait);
        assert_eq!(taken(stage.ring(), received), expected);
    }
    client.close();
    stage.ring().poll(socket, wait);
    assert!(next(stage, wait).result >= 0);
    stage.ring().receive_once(socket, wait);
    let end = next(stage, wait);
    assert!(end.result == 0 || end.result == -libc::ECONNRESET, "{end:?}");
}

pub(crate) fn cancelled_poll(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let wait = token(Kind::Receive, 1);
    stage.ring().poll(socket, wait);
    quiet(stage);
    stage.ring().cancel(wait);
    assert_eq!(next(stage, wait).result, -libc::ECANCELED);
    // The stream is as it was.
    client.write(b"still");
    stage.ring().receive_once(socket, wait);
    let received = next(stage, wait);
    assert_eq!(taken(stage.ring(), received), b"still");
    stage.ring().poll(socket, wait);
    stage.ring().cancel(wait);
    stage.ring().close(socket, false);
    assert_eq!(next(stage, wait).result, -libc::ECANCELED);
    read_until(stage, &mut client, |client, _| client.is_closed());
}

pub(crate) fn cancelled_receive(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let first = token(Kind::Receive, 1);
    stage.ring().receive(socket, first);
    quiet(stage);
    stage.ring().cancel(first);
    let ended = next(stage, first);
    assert_eq!((ended.result, ended.more), (-libc::ECANCELED, false));
    stage.ring().cancel(first);
    assert_eq!(client.write(b"later"), 5);
    quiet(stage);
    let second = token(Kind::Receive, 2);
    stage.ring().receive(socket, second);
    assert_eq!(receive_exactly(stage, second, 5), b"later");
}

/// A send stuck behind a reader that never reads is cancelled; the close then resets.
pub(crate) fn cancelled_send_and_reset(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let send = token(Kind::Send, 1);
    stage.ring().send(socket, pattern(24 << 20), send);
    quiet(stage);
    stage.ring().cancel(send);
    let ended = next(stage, send);
    assert_eq!((ended.result, ended.more), (-libc::ECANCELED, false));
    assert!(stage.ring().take_sent(send).is_some(), "the vector comes back");
    stage.ring().close(socket, true);
    read_until(stage, &mut client, |client, _| client.is_closed());
    assert!(client.was_reset());
}

/// Closing with a send under way needs no cancel by the caller: it completes, failed.
pub(crate) fn close_ends_a_send(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let send = token(Kind::Send, 1);
    stage.ring().send(socket, pattern(24 << 20), send);
    quiet(stage);
    stage.ring().close(socket, true);
    assert!(next(stage, send).result < 0);
    read_until(stage, &mut client, |client, _| client.is_closed());
}

/// A client that gives the connection up ends the receive with an error or the end of the stream.
pub(crate) fn orderly_close_reaches_the_client(stage: &mut impl Stage) {
    let (mut client, socket, _) = connected(stage);
    let send = token(Kind::Send, 1);
    stage.ring().send(socket, b"goodbye".to_vec(), send);
    assert_eq!(next(stage, send).result, 7);
    stage.ring().close(socket, false);
    let bytes = read_until(stage, &mut client, |client, _| client.is_closed());
    assert_eq!(bytes, b"goodbye");
    assert!(!client.was_reset());
}

/// After a close with a cancel, the old token's last completion comes, though its slot may already
/// be that of a new connection; the generation tells them apart.
pub(crate) fn stale_token_after_close(stage: &mut impl Stage) {
    let (client, socket, address) = connected(stage);
    let old = Token::new(Kind::Receive, 1, 1);
    let new = Token::new(Kind::Receive, 1, 2);
    stage.ring().receive(socket, old);
    quiet(stage);
    stage.ring().cancel(old);
    stage.ring().close(socket, false);
    let ended = next(stage, old);
    assert_eq!((ended.result, ended.more), (-libc::ECANCELED, false));
    drop(client);
    let mut second = stage.dial(address);
    let accepted = next(stage, token(Kind::Accept, 0));
    assert_eq!(Socket::Direct(accepted.result as u32), socket, "the slot is reused");
    stage.ring().receive(socket, new);
    assert_eq!(second.write(b"second life"), 11);
    assert_eq!(receive_exactly(stage, new, 11), b"second life");
}

/// Several single accepts on one listener: each takes one client and knows who it is; the others
/// wait on, and end when they are cancelled.
pub(crate) fn accepted_one_by_one<S: Stage>(stage: &mut S) {
    let (listener, address) = stage.listen();
    let lanes: Vec<Token> = (0..4).map(|lane| Token::new(Kind::Accept, 0, lane)).collect();
    lanes.iter().for_each(|lane| stage.ring().accept_one(listener, *lane));
    let (mut clients, mut sockets, mut waiting) = (Vec::new(), Vec::new(), lanes);
    for _ in 0..3 {
        let (client, name) = stage.dial_named(address);
        clients.push(client);
        let mut completions = Vec::new();
        for _ in 0..PUMPS_MAX {
            stage.pump(&mut completions);
            if !completions.is_empty() {
                break;
            }
        }
        let [accepted] = completions[..] else {
            panic!("{completions:?} for one client");
        };
        assert!(accepted.result >= 0 && !accepted.more, "{accepted:?}");
        let peer = stage.ring().take_peer(accepted.token).expect("it has just completed");
        assert_eq!(peer, name);
        assert_eq!(stage.ring().take_peer(accepted.token), None, "it was taken");
        waiting.retain(|lane| *lane != accepted.token);
        sockets.push(Socket::Direct(accepted.result as u32));
    }
    assert_eq!(waiting.len(), 1, "each completed once");
    // An address that nobody fetched is forgotten, and a lane can be armed again.
    stage.ring().accept_one(listener, Token::new(Kind::Accept, 0, 9));
    waiting.push(Token::new(Kind::Accept, 0, 9));
    waiting.iter().for_each(|lane| stage.ring().cancel(*lane));
    for ended in all(stage, &waiting) {
        assert_eq!((ended.result, ended.more), (-libc::ECANCELED, false));
        assert_eq!(stage.ring().take_peer(ended.token), None);
    }
    sockets.into_iter().for_each(|socket| stage.ring().close(socket, false));
    quiet(stage);
}
