//! The sequencer's counters on the metrics page.

use super::core::Sequencer;
use super::limits::CODES;
use crate::admin::{Counter, Gauge, PublishedLatency, Registry};
use crate::link::host::LinkCounters;

/// Handles of everything that is published.
pub struct Metrics {
    accepted: Counter,
    duplicates: Counter,
    refused: [Counter; CODES.len()],
    limited_keys: Gauge,
    delivered: Counter,
    backlog: Counter,
    receipts: Counter,
    markers: Counter,
    acknowledgements: Counter,
    replaced: Counter,
    group_changes: Counter,
    channels: ChannelMetrics,
    users: UserMetrics,
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

/// What is told of users: their devices, and whether they are there.
struct UserMetrics {
    devices_revoked: Counter,
    devices_seen: Counter,
    presence: Counter,
    typing: Counter,
    watched: Gauge,
}

impl UserMetrics {
    fn new(registry: &Registry) -> UserMetrics {
        let counter = |name, help| registry.counter(name, help);
        UserMetrics {
            devices_revoked: counter("aldis_devices_revoked_total", "Devices revoked, durably"),
            devices_seen: counter(
                "aldis_devices_seen_total",
                "Devices whose leaving was logged, once an hour each at most",
            ),
            presence: counter(
                "aldis_presence_told_total",
                "Changes of presence handed to edges, of users that somebody looks at",
            ),
            typing: counter("aldis_typing_told_total", "Sessions told that somebody is typing"),
            watched: registry.gauge("aldis_presence_watched", "Users that somebody looks at"),
        }
    }

    fn publish(&mut self, logic: &Sequencer) {
        let counters = &logic.counters;
        self.devices_revoked.set(counters.devices_revoked_total);
        self.devices_seen.set(counters.devices_seen_total);
        self.presence.set(counters.presence_total);
        self.typing.set(counters.typing_total);
        self.watched.set(logic.watched_count() as _);
    }
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
            refused: refusals(registry),
            limited_keys: registry.gauge(
                "aldis_limited_keys",
                "Users and conversations whose rate limits are not full",
            ),
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
            channels: ChannelMetrics::new(registry),
            users: UserMetrics::new(registry),
            expiry: Expiry::new(registry),
            evicted: counter("aldis_evicted_total", "Conversations and users left to the store"),
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
            send: send_latency(registry),
            append: append_latency(registry),
        }
    }

    /// Copies the present values. Once a turn.
    pub fn publish(&mut self, logic: &Sequencer, links: &LinkCounters, now_us: u64) {
        let counters = &logic.counters;
        self.accepted.set(counters.accepted_total);
        self.duplicates.set(counters.duplicates_total);
        for (refused, total) in self.refused.iter().zip(counters.refused_by_code) {
            refused.set(total);
        }
        self.limited_keys.set(logic.limits.key_count() as _);
        self.delivered.set(counters.delivered_total);
        self.backlog.set(counters.backlog_messages_total);
        self.receipts.set(counters.receipts_total);
        self.markers.set(counters.markers_total);
        self.acknowledgements.set(counters.acknowledgements_total);
        self.replaced.set(counters.replaced_total);
        self.group_changes.set(counters.group_changes_total);
        self.channels.publish(logic);
        self.users.publish(logic);
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

fn refusals(registry: &Registry) -> [Counter; CODES.len()] {
    CODES.map(|(_, code)| {
        let help = "Operations answered by an error, by its code";
        registry.counter_with("aldis_operations_refused_total", help, &[("code", code)])
    })
}

fn send_latency(registry: &Registry) -> PublishedLatency {
    let help = "From the arrival of a send at the sequencer until its answer";
    PublishedLatency::new(registry, "aldis_sequencer_send_seconds", help)
}

fn append_latency(registry: &Registry) -> PublishedLatency {
    let help = "From the cut of a batch until the store's answer";
    PublishedLatency::new(registry, "aldis_sequencer_append_seconds", help)
}

/// What concerns channels alone.
struct ChannelMetrics {
    changes: Counter,
    left_out: Counter,
    listeners: Gauge,
}

impl ChannelMetrics {
    fn new(registry: &Registry) -> ChannelMetrics {
        ChannelMetrics {
            changes: registry.counter(
                "aldis_channel_changes_total",
                "Channels made, changes of who writes, subscriptions begun and ended, durable",
            ),
            left_out: registry.counter(
                "aldis_channel_pushes_left_out_total",
                "Live pushes to subscribers of channels that the rate did not let pass",
            ),
            listeners: registry.gauge(
                "aldis_channel_listeners",
                "Sessions that hear a channel, once for each channel",
            ),
        }
    }

    fn publish(&mut self, logic: &Sequencer) {
        self.changes.set(logic.counters.channel_changes_total);
        self.left_out.set(logic.counters.channel_pushes_left_out_total);
        self.listeners.set(logic.channels.listener_count() as _);
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
