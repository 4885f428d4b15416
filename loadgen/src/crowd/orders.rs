//! What the threads of a crowd are told, and what they tell while they work.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// What the crowd is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Connect, stay, come back after a loss, answer pings.
    Stay = 0,
    /// The same, and at a rate one after the other leaves and comes back.
    Churn = 1,
    /// Everybody is cut once, at the same time, and comes back.
    Cut = 2,
    /// Nobody reads any more.
    Deaf = 3,
    /// It is over.
    Leave = 4,
}

/// Shared by the threads and the one who watches them.
#[derive(Debug)]
pub struct Orders {
    stage: AtomicU8,
    may_open: AtomicBool,
}

/// Counts since the start, over all threads.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that are open now: upgraded, and welcomed where that is waited for.
    pub open: AtomicU64,
    /// Those that became so, each time.
    pub opened: AtomicU64,
    /// Attempts that failed and were made again.
    pub retried: AtomicU64,
    /// Open ones that ended although nobody here ended them.
    pub lost: AtomicU64,
    /// Open ones that were ended here.
    pub cut: AtomicU64,
    pub pings: AtomicU64,
    pub messages: AtomicU64,
    /// Why attempts failed and connections were lost, with counts.
    troubles: Mutex<BTreeMap<String, u64>>,
}

/// Different reasons that are told apart; further ones are counted together.
const TROUBLES_MAX: usize = 32;

impl Orders {
    pub fn new() -> Orders {
        Orders { stage: AtomicU8::new(Stage::Stay as u8), may_open: AtomicBool::new(true) }
    }

    pub fn give(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Stay,
            1 => Stage::Churn,
            2 => Stage::Cut,
            3 => Stage::Deaf,
            _ => Stage::Leave,
        }
    }

    /// Whether connections may be begun.
    pub fn may_open(&self) -> bool {
        self.may_open.load(Ordering::Relaxed)
    }

    /// Nothing is begun from now on: the machine has no room.
    pub fn stop_opening(&self) {
        self.may_open.store(false, Ordering::Relaxed);
    }
}

impl Tally {
    pub fn trouble(&self, reason: &str) {
        let mut troubles = self.troubles.lock().expect("nobody panics while holding it");
        let is_new = !troubles.contains_key(reason);
        let reason = match is_new && troubles.len() >= TROUBLES_MAX {
            true => "other reasons",
            false => reason,
        };
        *troubles.entry(reason.to_owned()).or_default() += 1;
    }

    /// The most frequent reasons first.
    pub fn troubles(&self) -> Vec<(String, u64)> {
        let troubles = self.troubles.lock().expect("nobody panics while holding it");
        let mut troubles: Vec<(String, u64)> =
            troubles.iter().map(|(reason, count)| (reason.clone(), *count)).collect();
        troubles.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        troubles
    }
}

/// The value of one of the counts.
pub fn count(of: &AtomicU64) -> u64 {
    of.load(Ordering::Relaxed)
}

/// Adds to one of the counts.
pub fn add(to: &AtomicU64, more: u64) {
    to.fetch_add(more, Ordering::Relaxed);
}

/// Takes from one of the counts.
pub fn subtract(from: &AtomicU64, less: u64) {
    from.fetch_sub(less, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_heard_and_troubles_are_bounded() {
        let orders = Orders::new();
        for stage in [Stage::Churn, Stage::Cut, Stage::Deaf, Stage::Leave, Stage::Stay] {
            orders.give(stage);
            assert_eq!(orders.stage(), stage);
        }
        let tally = Tally::default();
        for number in 0..100 {
            tally.trouble(&format!("reason {number}"));
        }
        tally.trouble("reason 1");
        let troubles = tally.troubles();
        assert_eq!(troubles[0], ("other reasons".to_owned(), 100 - TROUBLES_MAX as u64));
        assert_eq!(troubles[1], ("reason 1".to_owned(), 2));
    }
}
