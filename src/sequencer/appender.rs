//! Decided records on their way into the log: one batch under way, everything later gathers behind
//! it (group commit: DeWitt et al., "Implementation Techniques for Main Memory Database Systems",
//! 1984).
//!
//! Invariant: `durable < flight < waiting` in log positions, without gap. What was assigned a
//! position keeps it: the batch under way is repeated byte for byte until it is answered.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits::BATCH_SIZE_MAX;
use crate::link::PeerId;
use crate::link::message::ToStore;
use crate::link::record::Record;
use crate::link::wire::Wire;

/// An entry of an edge that is answered once a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub peer: PeerId,
    /// Which session with that peer: answers do not outlive it.
    pub life: u64,
    /// The entry's number in that session.
    pub number: u64,
    /// It repeats a send that was accepted before.
    pub dup: bool,
    /// When it arrived.
    pub asked_us: u64,
}

/// A record with its place in the log.
#[derive(Clone, Debug)]
pub struct Decided {
    pub lsn: u64,
    pub record: Record,
    pub waiters: Vec<Waiter>,
}

/// The tail of the log that is not durable yet.
pub struct Appender {
    pub epoch: u64,
    next_lsn: u64,
    durable: u64,
    waiting: VecDeque<(Decided, Vec<u8>)>,
    waiting_size: usize,
    flight: Vec<Decided>,
    flight_bytes: Bytes,
}

impl Appender {
    /// Starts at the position that the store granted.
    pub fn new(epoch: u64, next_lsn: u64) -> Appender {
        Appender {
            epoch,
            next_lsn,
            durable: next_lsn - 1,
            waiting: VecDeque::new(),
            waiting_size: 0,
            flight: Vec::new(),
            flight_bytes: Bytes::new(),
        }
    }

    /// Gives the record its place. It is decided now, and visible to nobody before it is durable.
    pub fn append(&mut self, record: Record, waiters: Vec<Waiter>) -> u64 {
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        let bytes = record.to_bytes();
        self.waiting_size += bytes.len();
        self.waiting.push_back((Decided { lsn, record, waiters }, bytes));
        lsn
    }

    /// The place that the next record gets.
    pub fn next_lsn(&self) -> u64 {
        self.next_lsn
    }

    /// Adds a waiter to a record that is not durable yet. `false`: it is not here.
    pub fn wait_for(&mut self, lsn: u64, waiter: Waiter) -> bool {
        // Positions have no gap: where a record stands follows from where the first one stands.
        let after_durable = lsn.checked_sub(self.durable + 1).map(|index| index as usize);
        let Some(index) = after_durable else { return false };
        let decided = match index.checked_sub(self.flight.len()) {
            None => self.flight.get_mut(index),
            Some(index) => self.waiting.get_mut(index).map(|(decided, _)| decided),
        };
        decided.map(|decided| decided.waiters.push(waiter)).is_some()
    }

    /// The next batch, if none is under way and there is something to write.
    pub fn cut(&mut self) -> Option<ToStore> {
        if !self.flight.is_empty() || self.waiting.is_empty() {
            return None;
        }
        let mut records = Vec::new();
        while let Some((_, bytes)) = self.waiting.front()
            && (records.is_empty() || records.len() + bytes.len() <= BATCH_SIZE_MAX)
        {
            let (decided, bytes) = self.waiting.pop_front().expect("looked at it");
            self.waiting_size -= bytes.len();
            records.extend_from_slice(&bytes);
            self.flight.push(decided);
        }
        self.flight_bytes = records.into();
        self.under_way()
    }

    /// The batch under way, to be repeated to a store that restarted.
    pub fn under_way(&self) -> Option<ToStore> {
        let first = self.flight.first()?;
        Some(ToStore::Append {
            epoch: self.epoch,
            first_lsn: first.lsn,
            count: self.flight.len() as u32,
            records: self.flight_bytes.clone(),
        })
    }

    /// Everything below `next_lsn` is durable: gives out what became so.
    pub fn durable(&mut self, next_lsn: u64) -> Vec<Decided> {
        let complete = self.flight.last().is_some_and(|last| last.lsn < next_lsn);
        if !complete {
            return Vec::new();
        }
        self.flight_bytes = Bytes::new();
        let flight = std::mem::take(&mut self.flight);
        self.durable = flight.last().expect("checked above").lsn;
        flight
    }

    /// The highest position known durable.
    pub fn durable_lsn(&self) -> u64 {
        self.durable
    }

    /// The position that a repeated batch must meet: the store's log ends here, or after the batch.
    pub fn expects(&self, next_lsn: u64) -> bool {
        let after = self.flight.last().map_or(self.durable, |last| last.lsn) + 1;
        next_lsn == self.durable + 1 || next_lsn == after
    }

    /// Bytes of records that wait behind the batch under way.
    pub fn waiting_size(&self) -> usize {
        self.waiting_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lsn: u64) -> Record {
        Record::FannedOut { lsn }
    }

    #[test]
    fn one_batch_is_under_way_and_the_rest_gathers() {
        let mut appender = Appender::new(3, 10);
        assert!(appender.cut().is_none());
        assert_eq!(appender.append(record(1), Vec::new()), 10);
        let first = appender.cut().expect("a record waits");
        appender.append(record(2), Vec::new());
        appender.append(record(3), Vec::new());
        assert!(appender.cut().is_none(), "a batch is under way");
        assert_eq!(appender.under_way(), Some(first));
        assert!(appender.durable(10).is_empty(), "not all of it");
        assert_eq!(appender.durable(11).len(), 1);
        let Some(ToStore::Append { first_lsn, count, .. }) = appender.cut() else { panic!() };
        assert_eq!((first_lsn, count), (11, 2));
    }

    #[test]
    fn a_store_that_lost_what_it_said_is_durable_is_noticed() {
        let mut appender = Appender::new(1, 5);
        appender.append(record(1), Vec::new());
        appender.cut();
        assert!(appender.expects(5) && appender.expects(6));
        assert!(!appender.expects(4) && !appender.expects(7));
    }

    #[test]
    fn a_waiter_joins_until_the_record_is_durable() {
        let waiter = Waiter { peer: PeerId(1), life: 1, number: 9, dup: true, asked_us: 0 };
        let mut appender = Appender::new(1, 1);
        let lsn = appender.append(record(1), Vec::new());
        assert!(appender.wait_for(lsn, waiter));
        appender.cut();
        assert!(appender.wait_for(lsn, waiter));
        assert_eq!(appender.durable(2)[0].waiters, vec![waiter, waiter]);
        assert!(!appender.wait_for(lsn, waiter));
    }
}
