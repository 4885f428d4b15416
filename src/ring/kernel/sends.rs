//! The sends under way, whose bytes the ring owns until the kernel is done with them.
//!
//! Invariant: an entry in state `Flying` or `Cancelled` has exactly one request with the kernel (or
//! is about to be continued in the same turn), and its vector is not touched. Two indices lead to
//! an entry without a map: by the token's slot, and by the socket.

use slab::Slab;

use crate::ring::{Kind, Socket, Token};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Flying,
    /// A cancel was asked for: what is left is not sent any more.
    Cancelled,
    /// Completed in this turn; the vector waits for `take`.
    Done,
}

struct Sending {
    data: Vec<u8>,
    token: Token,
    socket: Socket,
    sent: u32,
    state: State,
}

/// What the kernel's result means for a send.
pub(super) enum Progress {
    /// Part of it went; the rest is to be sent.
    Partial,
    Done {
        token: Token,
        result: i32,
    },
}

#[derive(Default)]
pub(super) struct Sends {
    entries: Slab<Sending>,
    /// By kind and slot of the token: the entry that was begun last.
    by_token: [Vec<u32>; Kind::Internal as usize],
    by_direct: Vec<u32>,
    by_ordinary: Vec<u32>,
    /// Entries that completed since the last [`Sends::forget_done`].
    done: Vec<u32>,
}

impl Sends {
    /// Takes `data` over; the key names the entry until its completion.
    pub(super) fn begin(&mut self, socket: Socket, data: Vec<u8>, token: Token) -> u32 {
        assert!(data.len() <= i32::MAX as usize, "a send of over 2 GiB");
        let key =
            self.entries.insert(Sending { data, token, socket, sent: 0, state: State::Flying })
                as u32;
        *place(&mut self.by_token[token.kind() as usize - 1], token.slot()) = key;
        *self.socket_place(socket) = key;
        key
    }

    /// What remains to be sent of an entry. The memory stays where it is until the completion.
    pub(super) fn rest(&self, key: u32) -> (Socket, &[u8]) {
        let sending = &self.entries[key as usize];
        (sending.socket, &sending.data[sending.sent as usize..])
    }

    pub(super) fn complete(&mut self, key: u32, result: i32) -> Progress {
        let sending = &mut self.entries[key as usize];
        sending.sent += result.max(0) as u32;
        let missing = sending.data.len() - sending.sent as usize;
        let result = match (missing, sending.state) {
            (0, _) if result >= 0 => sending.sent as i32,
            (_, State::Flying) if result > 0 => return Progress::Partial,
            (_, State::Cancelled) if result > 0 => -libc::ECANCELED,
            (_, _) if result < 0 => result,
            _ => -libc::EPIPE,
        };
        let token = sending.token;
        sending.state = State::Done;
        self.done.push(key);
        Progress::Done { token, result }
    }

    /// The key of the unfinished send with exactly this token; it will not be continued.
    pub(super) fn cancel(&mut self, token: Token) -> Option<u32> {
        let places = self.by_token.get(token.kind() as usize - 1)?;
        let key = *places.get(token.slot() as usize)?;
        let sending = self.entries.get(key as usize)?;
        (sending.token == token).then(|| self.cancel_key(key))?
    }

    /// The key of the unfinished send of a socket that is being closed.
    pub(super) fn cancel_of(&mut self, socket: Socket) -> Option<u32> {
        let key = std::mem::replace(self.socket_place(socket), NONE);
        let sending = self.entries.get(key as usize)?;
        (sending.socket == socket).then(|| self.cancel_key(key))?
    }

    /// The emptied vector of the send with this token that completed in this turn.
    pub(super) fn take(&mut self, token: Token) -> Option<Vec<u8>> {
        let (mut data, _) = self.take_done(token)?;
        data.clear();
        Some(data)
    }

    /// What the send with this token that completed in this turn did not send.
    pub(super) fn take_unsent(&mut self, token: Token) -> Option<Vec<u8>> {
        let (mut data, sent) = self.take_done(token)?;
        data.drain(..sent);
        Some(data)
    }

    fn take_done(&mut self, token: Token) -> Option<(Vec<u8>, usize)> {
        let places = self.by_token.get(token.kind() as usize - 1)?;
        let key = *places.get(token.slot() as usize)?;
        let sending = self.entries.get_mut(key as usize)?;
        let is_done = sending.token == token && sending.state == State::Done;
        is_done.then(|| (std::mem::take(&mut sending.data), sending.sent as usize))
    }

    /// Frees the entries that completed in the turn before, with their vectors if nobody came.
    pub(super) fn forget_done(&mut self) {
        while let Some(key) = self.done.pop() {
            let sending = self.entries.remove(key as usize);
            let by_token = &mut self.by_token[sending.token.kind() as usize - 1];
            clear(by_token, sending.token.slot(), key);
            let (by_socket, index) = match sending.socket {
                Socket::Direct(slot) => (&mut self.by_direct, slot),
                Socket::Ordinary(descriptor) => (&mut self.by_ordinary, descriptor as u32),
            };
            clear(by_socket, index, key);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.entries.len() - self.done.len()
    }

    fn cancel_key(&mut self, key: u32) -> Option<u32> {
        let sending = &mut self.entries[key as usize];
        let unfinished = sending.state == State::Flying;
        if unfinished {
            sending.state = State::Cancelled;
        }
        unfinished.then_some(key)
    }

    fn socket_place(&mut self, socket: Socket) -> &mut u32 {
        match socket {
            Socket::Direct(slot) => place(&mut self.by_direct, slot),
            Socket::Ordinary(descriptor) => place(&mut self.by_ordinary, descriptor as u32),
        }
    }
}

fn place(places: &mut Vec<u32>, index: u32) -> &mut u32 {
    let index = index as usize;
    if places.len() <= index {
        places.resize(index + 1, NONE);
    }
    &mut places[index]
}

fn clear(places: &mut [u32], index: u32, key: u32) {
    let place = &mut places[index as usize];
    if *place == key {
        *place = NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(slot: u32) -> Token {
        Token::new(Kind::Send, slot, 1)
    }

    #[test]
    fn a_partial_send_goes_on_with_its_rest() {
        let mut sends = Sends::default();
        let key = sends.begin(Socket::Direct(3), b"abcdef".to_vec(), token(5));
        assert!(matches!(sends.complete(key, 2), Progress::Partial));
        assert_eq!(sends.rest(key).1, b"cdef");
        let done = sends.complete(key, 4);
        assert!(matches!(done, Progress::Done { result: 6, token: t } if t == token(5)));
        let emptied = sends.take(token(5)).expect("it completed in this turn");
        assert!(emptied.is_empty() && emptied.capacity() >= 6);
        sends.forget_done();
        assert_eq!((sends.in_flight(), sends.take(token(5))), (0, None));
    }

    #[test]
    fn a_cancelled_send_is_not_continued() {
        let mut sends = Sends::default();
        let key = sends.begin(Socket::Direct(3), b"abcdef".to_vec(), token(5));
        assert_eq!(sends.cancel(token(6)), None);
        assert_eq!(sends.cancel(token(5)), Some(key));
        assert_eq!(sends.cancel_of(Socket::Direct(3)), None);
        let done = sends.complete(key, 2);
        assert!(matches!(done, Progress::Done { result, .. } if result == -libc::ECANCELED));
        assert_eq!(sends.take_unsent(token(5)), Some(b"cdef".to_vec()));
    }

    #[test]
    fn a_reused_socket_is_not_confused_with_its_former_life() {
        let mut sends = Sends::default();
        let old = sends.begin(Socket::Direct(3), b"old".to_vec(), token(5));
        assert_eq!(sends.cancel_of(Socket::Direct(3)), Some(old));
        let newer = Token::new(Kind::Send, 5, 2);
        let new = sends.begin(Socket::Direct(3), b"new".to_vec(), newer);
        sends.complete(old, -libc::ECANCELED);
        sends.forget_done();
        assert_eq!(sends.cancel_of(Socket::Direct(3)), Some(new));
    }

    #[test]
    fn a_failed_send_says_why() {
        let mut sends = Sends::default();
        let key = sends.begin(Socket::Ordinary(9), b"abc".to_vec(), token(0));
        let done = sends.complete(key, -libc::EPIPE);
        assert!(matches!(done, Progress::Done { result, .. } if result == -libc::EPIPE));
    }
}
