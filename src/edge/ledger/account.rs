//! What the shards of a process hold together: each writes its own line, all read the sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use super::{Class, Grades, Ledger, Pressure};

/// A shard looks at what the others hold at most so often.
const LOOK_US: u64 = 1_000;

/// One for the process.
pub struct Account {
    grades: Grades,
    shares: Vec<CachePadded<Share>>,
    /// Memory of the process that no shard counts.
    unseen: AtomicU64,
    socket_buffers: AtomicU64,
    pressure: AtomicU8,
    /// How often the process was measured.
    found_count: AtomicU64,
}

#[derive(Default)]
struct Share {
    counted: AtomicU64,
    sockets: AtomicU64,
    connections: AtomicU64,
}

/// What all shards hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// In the process.
    pub counted: u64,
    /// In the kernel, for their sockets.
    pub sockets: u64,
    pub connections: u64,
}

impl Account {
    pub fn new(grades: Grades, shards: usize) -> Account {
        Account {
            grades,
            shares: (0..shards).map(|_| CachePadded::default()).collect(),
            unseen: AtomicU64::new(0),
            socket_buffers: AtomicU64::new(0),
            pressure: AtomicU8::new(0),
            found_count: AtomicU64::new(0),
        }
    }

    pub fn grades(&self) -> Grades {
        self.grades
    }

    pub fn pressure(&self) -> Pressure {
        Pressure::ALL[usize::from(self.pressure.load(Ordering::Relaxed))]
    }

    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for share in &self.shares {
            sums.counted += share.counted.load(Ordering::Relaxed);
            sums.sockets += share.sockets.load(Ordering::Relaxed);
            sums.connections += share.connections.load(Ordering::Relaxed);
        }
        sums
    }

    /// All that counts against the budget.
    pub fn used(&self) -> u64 {
        let Sums { counted, sockets, .. } = self.sums();
        let unseen = self.unseen.load(Ordering::Relaxed);
        let socket_buffers = self.socket_buffers.load(Ordering::Relaxed);
        counted.saturating_add(sockets).saturating_add(unseen).saturating_add(socket_buffers)
    }

    /// What was found beside the shards' counts. Returns the use and the grades before and after.
    pub fn found(&self, unseen: u64, socket_buffers: u64) -> (u64, Pressure, Pressure) {
        self.unseen.store(unseen, Ordering::Relaxed);
        self.socket_buffers.store(socket_buffers, Ordering::Relaxed);
        let (used, before) = (self.used(), self.pressure());
        let after = self.grades.next(before, used);
        self.pressure.store(after as u8, Ordering::Relaxed);
        self.found_count.fetch_add(1, Ordering::Relaxed);
        (used, before, after)
    }
}

/// A shard's line of the account.
pub struct Holder {
    account: Arc<Account>,
    index: usize,
    looked_at_us: u64,
    found_count: u64,
}

impl Holder {
    pub fn new(account: Arc<Account>, index: usize) -> Holder {
        Holder { account, index, looked_at_us: 0, found_count: 0 }
    }

    pub fn grades(&self) -> Grades {
        self.account.grades
    }

    /// Writes what the shard holds, and tells it what the others do. Once a turn.
    pub fn exchange(&mut self, now_us: u64, connections: usize, ledger: &mut Ledger) {
        let (counted, sockets) = (ledger.counted() as u64, ledger.size(Class::Sockets) as u64);
        let share = &self.account.shares[self.index];
        share.counted.store(counted, Ordering::Relaxed);
        share.sockets.store(sockets, Ordering::Relaxed);
        share.connections.store(connections as u64, Ordering::Relaxed);
        if now_us.saturating_sub(self.looked_at_us) >= LOOK_US {
            self.looked_at_us = now_us;
            let others = self.account.used().saturating_sub(counted + sockets);
            let found_count = self.account.found_count.load(Ordering::Relaxed);
            if found_count == self.found_count {
                return ledger.hear_others(others);
            }
            self.found_count = found_count;
            ledger.hear(others, self.account.pressure());
        }
    }
}
