//! The sequencer's counters on the metrics page.

use super::core::Sequencer;
use crate::admin::{Counter, Gauge, PublishedLatency, Registry};
use crate::link::host::LinkCounters;

/// Handles of everything that is published.
pub struct Metrics {
    accepted: Counter,
    duplicates: Counter,
    refused: Counter,
    delivered: Counter,
    backlog: Counter,
    receipts: Counter,
    markers: Counter,
    acknowledgements: Counter,
    replaced: Counter,
    group_changes: Counter,
    expiry: Expiry,
    evicted: Counter,
    malformed: Counter,
    above_head: Counter,
    unaccounted: Gauge,
    sessions: Gauge,
    durable: Gauge,
    lag: Gauge,
    link_sessions: Counter,
    link_violations: Counter,
    send: PublishedLatency,
    append: PublishedLatency,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Metrics {
        let counter = |name, help| registry.counter(name, help);
        Metrics {
            accepted: counter(
                "aldis_messages_accepted_total",
                "Messages made durable and answered sent, since this process started",
            ),
            duplicates: counter(
                "aldis_messages_duplicate_total",
                "Sends that repeated an accepted one and got its first answer",
            ),
            refused: counter("aldis_operations_refused_total", "Operations answered by an error"),
            delivered: counter("aldis_messages_pushed_total", "Live pushes, one per device"),
            backlog: counter("aldis_backlog_messages_total", "Messages handed to edges late"),
            receipts: counter("aldis_receipts_total", "Receipts handed to edges"),
            markers: counter("aldis_markers_total", "Inbox markers written"),
            acknowledgements: counter(
                "aldis_acknowledgements_total",
                "Client acknowledgements that raised a cursor",
            ),
            replaced: counter(
                "aldis_sessions_replaced_total",
                "Sessions ended by a newer one of the same device",
            ),
            group_changes: counter(
                "aldis_group_changes_total",
                "Groups made and changes of their membership, durable",
            ),
            expiry: Expiry::new(registry),
            evicted: counter(
                "aldis_evicted_total",
                "Conversations and users dropped from memory to stay within the budget",
            ),
            malformed: counter(
                "aldis_link_malformed_total",
                "Entries that could not be decoded; must stay 0",
            ),
            above_head: counter(
                "aldis_seq_above_head_total",
                "Client claims of a seq that was never accepted",
            ),
            unaccounted: registry.gauge(
                "aldis_messages_unaccounted",
                "Accepted messages that a read should have found and did not; must stay 0",
            ),
            sessions: registry.gauge("aldis_sessions", "Sessions that stand"),
            durable: registry.gauge("aldis_log_durable_lsn", "Highest durable log position known"),
            lag: registry.gauge(
                "aldis_fanout_lag",
                "Log positions that are not acknowledged or marked at every target yet",
            ),
            link_sessions: counter("aldis_link_sessions_total", "Link sessions begun"),
            link_violations: counter(
                "aldis_link_violations_total",
                "Link connections cut for breaking the protocol; must stay 0",
            ),
            send: PublishedLatency::new(
                registry,
                "aldis_sequencer_send_seconds",
                "From the arrival of a send at the sequencer until its answer",
            ),
            append: PublishedLatency::new(
                registry,
                "aldis_sequencer_append_seconds",
                "From the cut of a batch until the store's answer",
            ),
        }
    }

    /// Copies the present values. Once a turn.
    pub fn publish(&mut self, logic: &Sequencer, links: &LinkCounters, now_us: u64) {
        let counters = &logic.counters;
        self.accepted.set(counters.accepted_total);
        self.duplicates.set(counters.duplicates_total);
        self.refused.set(counters.refused_total);
        self.delivered.set(counters.delivered_total);
        self.backlog.set(counters.backlog_messages_total);
        self.receipts.set(counters.receipts_total);
        self.markers.set(counters.markers_total);
        self.acknowledgements.set(counters.acknowledgements_total);
        self.replaced.set(counters.replaced_total);
        self.group_changes.set(counters.group_changes_total);
        self.expiry.publish(logic);
        self.evicted.set(counters.evicted_total);
        self.malformed.set(counters.malformed_total);
        self.above_head.set(counters.seq_above_head_total);
        self.unaccounted.set(counters.unaccounted as _);
        self.sessions.set(logic.session_count() as _);
        self.durable.set(logic.durable_lsn() as _);
        self.lag.set(logic.fanout_lag() as _);
        self.link_sessions.set(links.sessions_total);
        self.link_violations.set(links.violations_total);
        self.send.publish(&logic.latencies.send, now_us);
        self.append.publish(&logic.latencies.append, now_us);
    }
}

/// What is published of time and of what did not come in time.
struct Expiry {
    dead_letters: Counter,
    replayed: Counter,
    failed_told: Counter,
    service: Gauge,
}

impl Expiry {
    fn new(registry: &Registry) -> Expiry {
        let counter = |name, help| registry.counter(name, help);
        Expiry {
            dead_letters: counter(
                "aldis_dead_letters_total",
                "Messages that left a recipient's inbox undelivered, one per recipient",
            ),
            replayed: counter("aldis_dead_letters_replayed_total", "Dead letters put back"),
            failed_told: counter("aldis_failed_told_total", "Told failed, one per device"),
            service: registry.gauge(
                "aldis_service_seconds",
                "How long this system has served, over all lives: the time by which things expire",
            ),
        }
    }

    fn publish(&mut self, logic: &Sequencer) {
        let counters = &logic.counters;
        self.dead_letters.set(counters.dead_letters_total);
        self.replayed.set(counters.replayed_total);
        self.failed_told.set(counters.failed_told_total);
        self.service.set((logic.service_ms() / 1_000) as _);
    }
}
