//! A link session: numbered entries both ways, acknowledged when answered, over any number of TCP
//! connections between the same two incarnations.
//!
//! Invariants: an entry is handed on exactly once and in order; what is not acknowledged is kept
//! and sent again on the next connection; `acknowledged <= received` on both sides. Pure state: the
//! host (`host.rs`) moves the bytes.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::LinkFull;
use super::frame::{FrameKind, Header, LinkViolation, write_frame};
use super::wire::wire_struct;

/// The numbers of one session, as one side keeps them.
pub struct Session {
    /// Chosen by the responder; the initiator names it to continue the session.
    pub id: u64,
    window_size: usize,
    /// Entries not yet acknowledged, oldest first; the first has number `acknowledged_by_peer + 1`.
    unacknowledged: VecDeque<Vec<u8>>,
    unacknowledged_size: usize,
    acknowledged_by_peer: u64,
    /// How many of `unacknowledged` have gone out on the present connection.
    transmitted: usize,
    received: u64,
    /// Every entry of the peer up to here is answered ...
    answered: u64,
    /// ... and these beyond it, out of order.
    answered_ahead: BTreeSet<u64>,
    /// The value of `answered` in the last frame sent.
    answered_told: u64,
}

wire_struct! {
    /// A session without a connection, for another process to go on with.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct SessionState {
        pub id: u64,
        pub unacknowledged: Vec<Bytes>,
        pub acknowledged_by_peer: u64,
        pub received: u64,
        pub answered: u64,
        pub answered_ahead: Vec<u64>,
    }
}

impl Session {
    /// `window_size`: bytes of unacknowledged entries at most, the credit that this side has.
    pub fn new(id: u64, window_size: usize) -> Session {
        Session {
            id,
            window_size,
            unacknowledged: VecDeque::new(),
            unacknowledged_size: 0,
            acknowledged_by_peer: 0,
            transmitted: 0,
            received: 0,
            answered: 0,
            answered_ahead: BTreeSet::new(),
            answered_told: 0,
        }
    }

    /// What another process needs to go on with the session, on a connection of its own.
    pub fn state(&self) -> SessionState {
        let entries = self.unacknowledged.iter();
        SessionState {
            id: self.id,
            unacknowledged: entries.map(|entry| Bytes::copy_from_slice(entry)).collect(),
            acknowledged_by_peer: self.acknowledged_by_peer,
            received: self.received,
            answered: self.answered,
            answered_ahead: self.answered_ahead.iter().copied().collect(),
        }
    }

    /// The session of a state.
    pub fn from_state(state: SessionState, window_size: usize) -> Session {
        let entries: VecDeque<Vec<u8>> = state.unacknowledged.into_iter().map(Vec::from).collect();
        Session {
            unacknowledged_size: entries.iter().map(Vec::len).sum(),
            unacknowledged: entries,
            acknowledged_by_peer: state.acknowledged_by_peer,
            received: state.received,
            answered: state.answered,
            answered_ahead: state.answered_ahead.into_iter().collect(),
            ..Session::new(state.id, window_size)
        }
    }

    /// Whether little is unacknowledged: what is said now waits behind not much.
    pub fn has_room(&self) -> bool {
        self.unacknowledged_size <= self.window_size / 16
    }

    /// Queues an entry and returns its number.
    pub fn submit(&mut self, entry: Vec<u8>) -> Result<u64, LinkFull> {
        if self.unacknowledged_size + entry.len() > self.window_size {
            return Err(LinkFull);
        }
        self.unacknowledged_size += entry.len();
        self.unacknowledged.push_back(entry);
        Ok(self.acknowledged_by_peer + self.unacknowledged.len() as u64)
    }

    /// The peer's entry `number` is answered. Numbers that never came, or again, change nothing.
    pub fn answer(&mut self, number: u64) {
        if number <= self.answered || number > self.received {
            return;
        }
        if number != self.answered + 1 {
            self.answered_ahead.insert(number);
            return;
        }
        self.answered = number;
        while self.answered_ahead.remove(&(self.answered + 1)) {
            self.answered += 1;
        }
    }

    /// Takes an `Entry` or `Beat` header. `true`: the payload is a new entry to hand on; `false`:
    /// it is one that was already received, on an earlier connection.
    pub fn receive(&mut self, header: &Header) -> Result<bool, LinkViolation> {
        self.acknowledge(header.acknowledged)?;
        match header.kind {
            FrameKind::Beat => Ok(false),
            FrameKind::Entry if header.number <= self.received => Ok(false),
            FrameKind::Entry if header.number == self.received + 1 => {
                self.received += 1;
                Ok(true)
            }
            FrameKind::Entry => {
                Err(LinkViolation::Number { expected: self.received + 1, got: header.number })
            }
            _ => Err(LinkViolation::Unexpected),
        }
    }

    /// The highest entry of the peer that was received, told when a connection is made again.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// A new connection carries this session on; the peer has received entries up to `received`.
    pub fn reconnect(&mut self, received: u64) -> Result<(), LinkViolation> {
        let known = received.checked_sub(self.acknowledged_by_peer);
        match known {
            Some(count) if count <= self.unacknowledged.len() as u64 => {
                self.transmitted = count as usize;
                Ok(())
            }
            _ => Err(LinkViolation::Acknowledged(received)),
        }
    }

    /// Appends frames not yet transmitted, until `out` holds `size_max` bytes or more.
    pub fn transmit(&mut self, size_max: usize, out: &mut Vec<u8>) {
        while self.transmitted < self.unacknowledged.len() && out.len() < size_max {
            let entry = &self.unacknowledged[self.transmitted];
            self.transmitted += 1;
            let number = self.acknowledged_by_peer + self.transmitted as u64;
            write_frame(FrameKind::Entry, number, self.answered, entry, out);
            self.answered_told = self.answered;
        }
    }

    /// Appends a frame that only acknowledges.
    pub fn beat(&mut self, out: &mut Vec<u8>) {
        write_frame(FrameKind::Beat, 0, self.answered, &[], out);
        self.answered_told = self.answered;
    }

    /// Answered entries that the peer has not been told of.
    pub fn untold(&self) -> u64 {
        self.answered - self.answered_told
    }

    fn acknowledge(&mut self, number: u64) -> Result<(), LinkViolation> {
        if number > self.acknowledged_by_peer + self.transmitted as u64 {
            return Err(LinkViolation::Acknowledged(number));
        }
        while self.acknowledged_by_peer < number {
            let entry = self.unacknowledged.pop_front().expect("transmitted counts entries kept");
            self.unacknowledged_size -= entry.len();
            self.transmitted -= 1;
            self.acknowledged_by_peer += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameReader;
    use super::*;

    /// Moves what `from` has to say to `to`, and returns the new entries.
    fn carry(from: &mut Session, to: &mut Session) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        from.transmit(usize::MAX, &mut out);
        from.beat(&mut out);
        let mut reader = FrameReader::default();
        reader.push(&out);
        let mut entries = Vec::new();
        while let Some((header, payload)) = reader.take_frame().expect("well formed") {
            if to.receive(&header).expect("in order") {
                entries.push(payload.to_vec());
            }
        }
        entries
    }

    #[test]
    fn entries_are_kept_until_answered_not_until_received() {
        let (mut left, mut right) = (Session::new(1, 10), Session::new(1, 10));
        assert_eq!(left.submit(vec![1; 6]), Ok(1));
        assert_eq!(left.submit(vec![2; 6]), Err(LinkFull));
        assert_eq!(carry(&mut left, &mut right), vec![vec![1; 6]]);
        carry(&mut right, &mut left);
        assert_eq!(left.submit(vec![2; 6]), Err(LinkFull), "received is not answered");
        right.answer(1);
        carry(&mut right, &mut left);
        assert_eq!(left.submit(vec![2; 6]), Ok(2));
    }

    #[test]
    fn a_new_connection_repeats_only_what_was_lost() {
        let (mut left, mut right) = (Session::new(1, 100), Session::new(1, 100));
        left.submit(vec![1]).expect("room");
        assert_eq!(carry(&mut left, &mut right).len(), 1);
        left.submit(vec![2]).expect("room");
        left.transmit(usize::MAX, &mut Vec::new());
        left.submit(vec![3]).expect("room");
        left.reconnect(right.received()).expect("known");
        assert_eq!(carry(&mut left, &mut right), vec![vec![2], vec![3]]);
    }

    #[test]
    fn another_process_goes_on_with_a_session() {
        let (mut left, mut right) = (Session::new(7, 100), Session::new(7, 100));
        for entry in 1..=3 {
            left.submit(vec![entry]).expect("room");
        }
        assert_eq!(carry(&mut left, &mut right).len(), 3);
        right.answer(1);
        right.answer(3);
        right.submit(vec![9]).expect("room");
        left.submit(vec![4]).expect("room");
        let mut left = Session::from_state(left.state(), 100);
        left.reconnect(right.received()).expect("known");
        right.reconnect(left.received()).expect("known");
        assert_eq!(carry(&mut left, &mut right), vec![vec![4]]);
        assert_eq!(carry(&mut right, &mut left), vec![vec![9]]);
        right.answer(2);
        carry(&mut right, &mut left);
        assert_eq!((left.acknowledged_by_peer, left.unacknowledged_size), (3, 1));
        assert_eq!(left.submit(vec![5]), Ok(5));
    }

    #[test]
    fn answers_out_of_order_acknowledge_the_contiguous_part() {
        let (mut left, mut right) = (Session::new(1, 100), Session::new(1, 100));
        for entry in 1..=3 {
            left.submit(vec![entry]).expect("room");
        }
        carry(&mut left, &mut right);
        right.answer(3);
        right.answer(2);
        assert_eq!(right.untold(), 0);
        right.answer(1);
        assert_eq!(right.untold(), 3);
        right.answer(99);
        carry(&mut right, &mut left);
        assert_eq!(left.acknowledged_by_peer, 3);
    }

    #[test]
    fn lies_about_numbers_are_violations() {
        let mut session = Session::new(1, 100);
        let entry = |number, acknowledged| Header {
            size: 0,
            checksum: 0,
            kind: FrameKind::Entry,
            number,
            acknowledged,
        };
        assert_eq!(session.receive(&entry(1, 1)), Err(LinkViolation::Acknowledged(1)));
        let skipped = Err(LinkViolation::Number { expected: 1, got: 2 });
        assert_eq!(session.receive(&entry(2, 0)), skipped);
        assert!(session.reconnect(1).is_err());
    }
}
