//! What became of every message. A run that cannot account for one has failed.

use std::collections::BTreeSet;

use serde::Serialize;

/// Counts of messages; those of threads and connections add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accounts {
    /// Given to the server.
    pub sent: u64,
    /// Confirmed by the server: `sent` in chat, the echo itself in echo.
    pub acknowledged: u64,
    /// Heard by whom they were for.
    pub delivered: u64,
    /// Answered by an error: the server did not take them, or could not say.
    pub refused: u64,
    /// Neither confirmed nor refused when the run gave up waiting.
    pub unanswered: u64,
    /// Acknowledged, and not heard when the run gave up waiting.
    pub lost: u64,
    /// Heard more than once, or given a second answer.
    pub duplicated: u64,
    /// Heard or answered after a later one.
    pub reordered: u64,
    /// Places that were skipped in the order of a conversation, when they were.
    pub gaps: u64,
    /// Heard with other content than was sent, or never sent at all.
    pub corrupted: u64,
    /// Acknowledged by the receiver, and the sender was not told in time.
    pub receipts_missing: u64,
}

impl Accounts {
    pub fn add(&mut self, other: &Accounts) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.gaps += other.gaps;
        self.corrupted += other.corrupted;
        self.receipts_missing += other.receipts_missing;
    }

    /// Why this run has failed, in words; empty when it has not.
    pub fn failures(&self) -> Vec<String> {
        let counts = [
            (self.lost, "acknowledged but lost"),
            (self.duplicated, "duplicated"),
            (self.reordered, "reordered"),
            (self.gaps, "skipped in the order"),
            (self.corrupted, "with foreign content"),
            (self.unanswered, "not answered in time"),
            (self.receipts_missing, "acknowledged by the receiver without a receipt"),
        ];
        let bad = counts.into_iter().filter(|(count, _)| *count > 0);
        let mut failures: Vec<String> =
            bad.map(|(count, what)| format!("{count} {what}")).collect();
        if self.acknowledged == 0 {
            failures.push("not one message was acknowledged".to_owned());
        }
        failures
    }
}

/// Numbers 0, 1, 2 ... as they come in, which should be in this order.
#[derive(Clone, Debug, Default)]
pub struct Order {
    next: u64,
    missing: BTreeSet<u64>,
}

impl Order {
    /// Notes the arrival of `number`. Returns whether it came for the first time.
    pub fn arrived(&mut self, number: u64, accounts: &mut Accounts) -> bool {
        if number >= self.next {
            accounts.gaps += number - self.next;
            self.missing.extend(self.next..number);
            self.next = number + 1;
            return true;
        }
        let is_first = self.missing.remove(&number);
        match is_first {
            true => accounts.reordered += 1,
            false => accounts.duplicated += 1,
        }
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_without_faults_counts_nothing() {
        let (mut order, mut accounts) = (Order::default(), Accounts::default());
        assert!((0..100).all(|number| order.arrived(number, &mut accounts)));
        assert_eq!(accounts, Accounts::default());
    }

    #[test]
    fn gaps_reorderings_and_duplicates_are_told_apart() {
        let (mut order, mut accounts) = (Order::default(), Accounts::default());
        let firsts = [0, 3, 1, 1, 3, 4].map(|number| order.arrived(number, &mut accounts));
        assert_eq!(firsts, [true, true, true, false, false, true]);
        let expected = Accounts { gaps: 2, reordered: 1, duplicated: 2, ..Accounts::default() };
        assert_eq!(accounts, expected);
    }

    #[test]
    fn every_fault_fails_a_run() {
        let good = Accounts { sent: 2, acknowledged: 2, delivered: 2, ..Accounts::default() };
        assert!(good.failures().is_empty());
        let faults = [
            Accounts { lost: 1, ..good },
            Accounts { duplicated: 1, ..good },
            Accounts { reordered: 1, ..good },
            Accounts { gaps: 1, ..good },
            Accounts { corrupted: 1, ..good },
            Accounts { unanswered: 1, ..good },
            Accounts { receipts_missing: 1, ..good },
            Accounts { acknowledged: 0, ..good },
        ];
        for accounts in faults {
            assert_eq!(accounts.failures().len(), 1, "{accounts:?}");
        }
    }
}
