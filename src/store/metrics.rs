//! The store's counters: plain numbers, read by the host for its metrics page.

use crate::admin::Latency;

/// Counts since the start of the process.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Commits made durable.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of records in them, without headers and padding.
    pub bytes: u64,
    /// From the arrival of a batch until it was answered.
    pub append: Latency,
    /// From handing a commit to the disk's thread until that said it is durable.
    pub commit: Latency,
    /// What of it the disk took.
    pub write: Latency,
    /// How long opening took.
    pub recovery_us: u64,
    /// Records that were applied to the index while opening.
    pub records_replayed: u64,
    /// Durable position minus the position that the index has applied.
    pub index_lag: u64,
    /// Messages that a range read should have found and did not. Must stay 0.
    pub unaccounted: u64,
    /// Requests answered `Fenced`.
    pub fenced: u64,
    /// Requests answered `Unavailable`.
    pub unavailable: u64,
    /// Entries that could not be decoded; their peers were cut.
    pub malformed: u64,
    /// Times that a segment found no space.
    pub no_space: u64,
}
