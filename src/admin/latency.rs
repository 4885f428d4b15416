//! Times on the metrics page: one thread measures them into memory of its own, and copies them to
//! the page now and then.

use hdrhistogram::Histogram;

use super::registry::{Registry, Summary};

/// One minute is beyond any wait that ends at all; three digits of it cost 130 KiB.
const US_MAX: u64 = 60_000_000;
/// Between two copies: each is as large as the histogram.
const COPY_US: u64 = 1_000_000;

/// How long something took, each time it was done.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Latency {
        let histogram = Histogram::new_with_max(US_MAX, 3);
        Latency { histogram: histogram.expect("the bounds are constants in range") }
    }
}

impl Latency {
    /// Allocates nothing.
    pub fn record(&mut self, took_us: u64) {
        self.histogram.saturating_record(took_us);
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }
}

/// A [`Latency`] as the page shows it.
pub struct PublishedLatency {
    summary: Summary,
    count: u64,
    due_us: u64,
}

impl PublishedLatency {
    /// A part of the summary `name`, which ends in `_seconds`.
    pub fn new(registry: &Registry, name: &str, help: &str) -> PublishedLatency {
        PublishedLatency { summary: registry.summary(name, help), count: 0, due_us: 0 }
    }

    /// Once a turn: copies it if something was recorded, and once a second at the most.
    pub fn publish(&mut self, latency: &Latency, now_us: u64) {
        if latency.count() > self.count && now_us >= self.due_us {
            self.count = latency.count();
            self.due_us = now_us + COPY_US;
            self.summary.publish(&latency.histogram);
        }
    }
}
