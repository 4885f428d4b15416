//! The store's counters on the metrics page.

use std::cell::Cell;

use super::metrics::Metrics;
use crate::admin::{Counter, Gauge, Registry, Summary};

/// Handles of everything that is published.
pub struct Published {
    commits: Counter,
    records: Counter,
    bytes: Counter,
    fenced: Counter,
    unavailable: Counter,
    malformed: Counter,
    no_space: Counter,
    unaccounted: Gauge,
    durable: Gauge,
    index_lag: Gauge,
    recovery: Gauge,
    replayed: Gauge,
    commit_seconds: Summary,
    /// Commits at the last copy of the histogram: it is copied only when it changed by enough.
    summarised: Cell<u64>,
}

impl Published {
    pub fn new(registry: &Registry) -> Published {
        let counter = |name, help| registry.counter(name, help);
        let gauge = |name, help| registry.gauge(name, help);
        Published {
            commits: counter("aldis_log_commits_total", "Commits made durable"),
            records: counter("aldis_log_records_total", "Records in those commits"),
            bytes: counter("aldis_log_bytes_total", "Bytes of those records"),
            fenced: counter("aldis_log_fenced_total", "Requests of a superseded epoch, refused"),
            unavailable: counter(
                "aldis_store_unavailable_total",
                "Requests answered unavailable: no space, or a read that failed",
            ),
            malformed: counter(
                "aldis_link_malformed_total",
                "Entries that could not be decoded; must stay 0",
            ),
            no_space: counter("aldis_log_no_space_total", "Segments that found no space"),
            unaccounted: gauge(
                "aldis_messages_unaccounted",
                "Accepted messages that a read should have found and did not; must stay 0",
            ),
            durable: gauge("aldis_log_durable_lsn", "Highest durable log position"),
            index_lag: gauge(
                "aldis_index_lag",
                "Durable log positions that the index has not applied yet",
            ),
            recovery: gauge("aldis_recovery_microseconds", "How long opening the store took"),
            replayed: gauge("aldis_recovery_records", "Records applied while opening"),
            commit_seconds: registry.summary(
                "aldis_log_commit_seconds",
                "From handing a commit to the disk until it was durable",
            ),
            summarised: Cell::new(0),
        }
    }

    /// Copies the present values. Once a turn; the histogram at most every 256 commits.
    pub fn publish(&self, metrics: &Metrics, durable: u64) {
        self.commits.set(metrics.commits);
        self.records.set(metrics.records);
        self.bytes.set(metrics.bytes);
        self.fenced.set(metrics.fenced);
        self.unavailable.set(metrics.unavailable);
        self.malformed.set(metrics.malformed);
        self.no_space.set(metrics.no_space);
        self.unaccounted.set(metrics.unaccounted as _);
        self.durable.set(durable as _);
        self.index_lag.set(metrics.index_lag as _);
        self.recovery.set(metrics.recovery_us as _);
        self.replayed.set(metrics.records_replayed as _);
        if metrics.commits >= self.summarised.get() + 256 {
            self.summarised.set(metrics.commits);
            self.commit_seconds.publish(&metrics.commit_latency_us);
        }
    }
}
