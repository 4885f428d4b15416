//! The store's counters on the metrics page.

use super::metrics::Metrics;
use crate::admin::{Counter, Gauge, PublishedLatency, Registry};

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
    append: PublishedLatency,
    commit: PublishedLatency,
    write: PublishedLatency,
}

impl Published {
    pub fn new(registry: &Registry) -> Published {
        let counter = |name, help| registry.counter(name, help);
        let gauge = |name, help| registry.gauge(name, help);
        let latency = |name, help| PublishedLatency::new(registry, name, help);
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
            append: latency(
                "aldis_store_append_seconds",
                "From the arrival of a batch at the store until its answer",
            ),
            commit: latency(
                "aldis_log_commit_seconds",
                "From handing a commit to the disk's thread until it was known durable",
            ),
            write: latency("aldis_log_write_seconds", "The write and sync of a commit alone"),
        }
    }

    /// Copies the present values. Once a turn.
    pub fn publish(&mut self, metrics: &Metrics, durable: u64, now_us: u64) {
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
        self.append.publish(&metrics.append, now_us);
        self.commit.publish(&metrics.commit, now_us);
        self.write.publish(&metrics.write, now_us);
    }
}
