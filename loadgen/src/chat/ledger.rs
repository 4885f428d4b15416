//! The account of one conversation with one sender and one receiver: what was sent, what the sender
//! was told, what the receiver heard.
//!
//! Messages are numbered from 0 by the sender; the server gives each a place (`seq`) from 1. The
//! receiver must hear places without a gap, and numbers in their order; the place that the sender
//! was told and the one that the receiver heard must be the same.

use std::collections::{BTreeSet, VecDeque};

use crate::accounting::Accounts;

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Number of the first entry.
    first: u64,
    /// Messages of which something is still to come, and those behind them.
    entries: VecDeque<Entry>,
    refused: BTreeSet<u64>,
    confirmed_seq: u64,
    heard_seq: u64,
    /// Places below `heard_seq` that were skipped.
    skipped: BTreeSet<u64>,
    acknowledged_seq: u64,
    receipt_seq: u64,
}

#[derive(Debug)]
struct Entry {
    intended_ns: u64,
    /// 0: not yet.
    confirmed_seq: u64,
    heard_seq: u64,
    is_refused: bool,
}

impl Entry {
    fn is_complete(&self) -> bool {
        self.is_refused || (self.confirmed_seq > 0 && self.heard_seq > 0)
    }
}

impl Ledger {
    /// The number of the message that is sent now.
    pub fn submit(&mut self, intended_ns: u64, accounts: &mut Accounts) -> u64 {
        accounts.sent += 1;
        let entry = Entry { intended_ns, confirmed_seq: 0, heard_seq: 0, is_refused: false };
        self.entries.push_back(entry);
        self.first + self.entries.len() as u64 - 1
    }

    /// The sender was told `sent`. Returns when the message was to be sent, the first time.
    pub fn confirm(&mut self, number: u64, seq: u64, accounts: &mut Accounts) -> Option<u64> {
        let in_order = seq > self.confirmed_seq;
        let Some(entry) = self.entry(number).filter(|entry| !entry.is_refused) else {
            self.count_stray(number, accounts);
            return None;
        };
        if entry.confirmed_seq > 0 {
            accounts.duplicated += 1;
            return None;
        }
        entry.confirmed_seq = seq;
        let intended_ns = entry.intended_ns;
        let disagrees = entry.heard_seq > 0 && entry.heard_seq != seq;
        accounts.acknowledged += 1;
        accounts.corrupted += u64::from(disagrees);
        accounts.reordered += u64::from(!in_order);
        self.confirmed_seq = self.confirmed_seq.max(seq);
        self.retire();
        Some(intended_ns)
    }

    /// The sender was told an error.
    pub fn refuse(&mut self, number: u64, accounts: &mut Accounts) {
        match self.entry(number) {
            Some(entry) if entry.confirmed_seq == 0 && !entry.is_refused => {
                entry.is_refused = true;
                accounts.refused += 1;
                self.refused.insert(number);
                self.retire();
            }
            Some(_) => accounts.duplicated += 1,
            None => self.count_stray(number, accounts),
        }
    }

    /// The receiver heard `msg`. Returns when the message was to be sent, the first time.
    pub fn hear(&mut self, number: u64, seq: u64, accounts: &mut Accounts) -> Option<u64> {
        let place = self.note_place(seq, accounts);
        // Refused may mean stored all the same: the server could not say.
        if self.refused.remove(&number) {
            return None;
        }
        let is_known = self.is_past(number);
        let is_open = |entry: &&mut Entry| entry.heard_seq == 0 && !entry.is_refused;
        let Some(entry) = self.entry(number).filter(is_open) else {
            // What came to a place a second time is counted as such by its place already.
            accounts.corrupted += u64::from(!is_known);
            accounts.duplicated += u64::from(is_known && place != Place::Repeated);
            return None;
        };
        entry.heard_seq = seq;
        let intended_ns = entry.intended_ns;
        let disagrees = entry.confirmed_seq > 0 && entry.confirmed_seq != seq;
        accounts.corrupted += u64::from(disagrees);
        accounts.delivered += 1;
        self.retire();
        Some(intended_ns)
    }

    /// The highest place that the receiver heard and has not acknowledged; it does so now.
    pub fn acknowledge(&mut self) -> Option<u64> {
        let is_new = self.heard_seq > self.acknowledged_seq;
        self.acknowledged_seq = self.heard_seq;
        is_new.then_some(self.heard_seq)
    }

    /// The sender was told how far the receiver has acknowledged.
    pub fn receipt(&mut self, seq: u64) {
        self.receipt_seq = self.receipt_seq.max(seq);
    }

    /// Nothing is still to come.
    pub fn is_settled(&self) -> bool {
        self.entries.is_empty() && self.receipt_seq >= self.acknowledged_seq
    }

    /// Counts what did not come.
    pub fn close(self, accounts: &mut Accounts) {
        for entry in self.entries.iter().filter(|entry| !entry.is_refused) {
            match (entry.confirmed_seq > 0, entry.heard_seq > 0) {
                (true, false) => accounts.lost += 1,
                (false, _) => accounts.unanswered += 1,
                (true, true) => {}
            }
        }
        accounts.receipts_missing += self.acknowledged_seq.saturating_sub(self.receipt_seq);
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let index = number.checked_sub(self.first)?;
        self.entries.get_mut(index as usize)
    }

    fn is_past(&self, number: u64) -> bool {
        number < self.first + self.entries.len() as u64
    }

    /// An answer to what was answered before, or to what was never sent.
    fn count_stray(&self, number: u64, accounts: &mut Accounts) {
        match self.is_past(number) {
            true => accounts.duplicated += 1,
            false => accounts.corrupted += 1,
        }
    }

    fn note_place(&mut self, seq: u64, accounts: &mut Accounts) -> Place {
        if seq > self.heard_seq {
            accounts.gaps += seq - self.heard_seq - 1;
            self.skipped.extend(self.heard_seq + 1..seq);
            self.heard_seq = seq;
            return Place::Next;
        }
        if self.skipped.remove(&seq) {
            accounts.reordered += 1;
            return Place::Late;
        }
        accounts.duplicated += 1;
        Place::Repeated
    }

    fn retire(&mut self) {
        while self.entries.front().is_some_and(Entry::is_complete) {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Next,
    Late,
    Repeated,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Book {
        ledger: Ledger,
        accounts: Accounts,
    }

    impl Book {
        fn with_sent(count: u64) -> Book {
            let mut book = Book { ledger: Ledger::default(), accounts: Accounts::default() };
            for number in 0..count {
                assert_eq!(book.ledger.submit(number * 10, &mut book.accounts), number);
            }
            book
        }

        fn confirm(&mut self, number: u64, seq: u64) -> Option<u64> {
            self.ledger.confirm(number, seq, &mut self.accounts)
        }

        fn hear(&mut self, number: u64, seq: u64) -> Option<u64> {
            self.ledger.hear(number, seq, &mut self.accounts)
        }

        fn close(mut self) -> Accounts {
            self.ledger.close(&mut self.accounts);
            self.accounts
        }
    }

    #[test]
    fn a_good_conversation_is_settled_in_either_order_of_answers() {
        let mut book = Book::with_sent(2);
        assert_eq!(book.confirm(0, 1), Some(0));
        assert_eq!(book.hear(0, 1), Some(0));
        assert_eq!(book.hear(1, 2), Some(10));
        assert_eq!(book.ledger.acknowledge(), Some(2));
        assert_eq!(book.ledger.acknowledge(), None);
        assert_eq!(book.confirm(1, 2), Some(10));
        assert!(!book.ledger.is_settled());
        book.ledger.receipt(2);
        assert!(book.ledger.is_settled());
        let expected = Accounts { sent: 2, acknowledged: 2, delivered: 2, ..Accounts::default() };
        assert_eq!(book.close(), expected);
    }

    #[test]
    fn acknowledged_and_not_heard_is_lost_and_neither_is_unanswered() {
        let mut book = Book::with_sent(3);
        book.confirm(0, 1);
        book.hear(1, 2);
        let accounts = book.close();
        assert_eq!((accounts.lost, accounts.unanswered, accounts.gaps), (1, 2, 1));
    }

    #[test]
    fn a_receiver_that_hears_twice_or_late_is_noticed() {
        let mut book = Book::with_sent(3);
        book.hear(0, 1);
        book.hear(2, 3);
        assert_eq!(book.hear(1, 2), Some(10));
        assert_eq!(book.hear(2, 3), None);
        assert_eq!(book.hear(2, 4), None);
        let accounts = book.accounts;
        assert_eq!((accounts.gaps, accounts.reordered, accounts.duplicated), (1, 1, 2));
    }

    #[test]
    fn places_that_disagree_are_noticed() {
        let mut book = Book::with_sent(2);
        book.confirm(0, 1);
        book.hear(0, 1);
        book.confirm(1, 3);
        book.hear(1, 2);
        assert_eq!(book.accounts.corrupted, 1);
    }

    #[test]
    fn answers_out_of_order_twice_or_to_nothing_are_noticed() {
        let mut book = Book::with_sent(2);
        book.confirm(1, 2);
        book.confirm(0, 1);
        assert_eq!(book.accounts.reordered, 1);
        assert_eq!(book.confirm(0, 1), None);
        assert_eq!(book.confirm(7, 9), None);
        assert_eq!((book.accounts.duplicated, book.accounts.corrupted), (1, 1));
    }

    #[test]
    fn a_refused_message_may_be_heard_once() {
        let mut book = Book::with_sent(2);
        book.ledger.refuse(0, &mut book.accounts);
        assert_eq!(book.hear(0, 1), None);
        assert_eq!(book.accounts.failures(), ["not one message was acknowledged"]);
        book.hear(0, 2);
        assert_eq!((book.accounts.refused, book.accounts.duplicated), (1, 1));
    }

    #[test]
    fn an_acknowledgement_without_a_receipt_is_noticed() {
        let mut book = Book::with_sent(1);
        book.confirm(0, 1);
        book.hear(0, 1);
        book.ledger.acknowledge();
        assert_eq!(book.close().receipts_missing, 1);
    }
}
