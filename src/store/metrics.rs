//! The store's counters: plain numbers, read by the host for its metrics page.

use hdrhistogram::Histogram;

/// Counts since the start of the process.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Commits made durable.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of records in them, without headers and padding.
    pub bytes: u64,
    /// Microseconds from handing a commit to the disk until it was durable.
    pub commit_latency_us: Histogram<u64>,
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

impl Default for Metrics {
    fn default() -> Metrics {
        // One minute is beyond any commit that ends at all; three digits cost 100 KiB.
        let commit_latency_us =
            Histogram::new_with_max(60_000_000, 3).expect("the bounds are constants in range");
        Metrics {
            commits: 0,
            records: 0,
            bytes: 0,
            commit_latency_us,
            recovery_us: 0,
            records_replayed: 0,
            index_lag: 0,
            unaccounted: 0,
            fenced: 0,
            unavailable: 0,
            malformed: 0,
            no_space: 0,
        }
    }
}
