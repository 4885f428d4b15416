//! When connections are cut because what their client proved ends: a heap beside the connections,
//! with an entry for each that has such an end, and nothing to do for any message.
//!
//! An entry may outlive its connection; whoever takes it out looks. What is left of many short
//! connections with long terms is swept away before it outnumbers the living.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::ConnectionId;

/// Entries, besides twice as many as there are connections, up to which no sweep is worth it.
const SWEPT_COUNT_MIN: usize = 1_024;

/// Connections by the end of their term, on the monotonic clock.
#[derive(Default)]
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<(u64, ConnectionId)>>,
}

impl Deadlines {
    pub fn insert(&mut self, at_ms: u64, id: ConnectionId) {
        self.heap.push(Reverse((at_ms, id)));
    }

    /// Every entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, ConnectionId)> {
        self.heap.iter().map(|Reverse(entry)| *entry)
    }

    /// Takes out the next one whose end has come.
    pub fn next_due(&mut self, now_ms: u64) -> Option<ConnectionId> {
        let Reverse((at_ms, _)) = *self.heap.peek()?;
        if at_ms > now_ms {
            return None;
        }
        self.heap.pop().map(|Reverse((_, id))| id)
    }

    /// Drops the entries of connections that are gone, when there may be more of them than of the
    /// `living`.
    pub fn sweep(&mut self, living: u64, stands: impl Fn(ConnectionId) -> bool) {
        let living = usize::try_from(living).unwrap_or(usize::MAX);
        if self.heap.len() > SWEPT_COUNT_MIN.saturating_add(living.saturating_mul(2)) {
            self.heap.retain(|Reverse((_, id))| stands(*id));
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.heap.len()
    }
}
