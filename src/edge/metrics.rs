//! A shard's counters on the metrics page, where all shards add up.

use super::admission::Reason;
use super::chat::Chat;
use super::identity::Doubt;
use super::ledger::Class;
use super::ledger::watch::{CLASS_HELP, CLASS_METRIC};
use super::shard::Shard;
use crate::admin::{Counter, Gauge, PublishedLatency, Registry};
use crate::ring::Ring;

/// What one shard adds to the page: each value as it was when last published.
pub struct Metrics {
    counters: Vec<(Counter, u64)>,
    /// Clients refused because of their identity, in the order of [`Doubt::ALL`].
    doubts: Vec<(Counter, u64)>,
    /// Clients not let in, in the order of [`Reason::ALL`].
    refused: Vec<(Counter, u64)>,
    connections: (Gauge, u64),
    capacity: (Gauge, u64),
    /// In the order of [`Class::ALL`].
    memory: Vec<Gauge>,
    send: PublishedLatency,
}

/// Names and meanings, in the order of [`values`].
const COUNTERS: [(&str, &str); 27] = [
    ("aldis_handshakes_total", "Connections that were upgraded"),
    ("aldis_sessions_welcomed_total", "Sessions that were welcomed"),
    ("aldis_handshake_timeouts_total", "Connections closed without a whole request in 10 s"),
    ("aldis_client_messages_total", "WebSocket messages from clients"),
    ("aldis_frames_out_total", "Frames queued to clients"),
    ("aldis_socket_sends_total", "Sends submitted to the kernel"),
    ("aldis_sent_total", "Sends answered sent"),
    ("aldis_pushed_total", "Messages queued to clients, live and from backlogs"),
    ("aldis_rejected_frames_total", "Frames that were no known operation"),
    ("aldis_overloaded_total", "Operations answered unavailable because a bound was reached"),
    ("aldis_expired_total", "Operations answered unavailable after waiting for the sequencer"),
    ("aldis_behind_total", "Connections that fell behind and caught up from their inbox"),
    ("aldis_dropped_pushes_total", "Live pushes left to the inbox of a connection behind"),
    ("aldis_stale_pushes_total", "Pushes for a connection that is no more"),
    ("aldis_stale_completions_total", "Completions of a slot's earlier life, dropped"),
    ("aldis_receive_starved_total", "Receives that waited for a free buffer"),
    ("aldis_promoted_total", "Connections that became busy: their multishot receive was armed"),
    ("aldis_calmed_total", "Connections that became idle again: they wait with a poll"),
    ("aldis_violations_total", "Connections closed for breaking the WebSocket protocol"),
    ("aldis_silent_total", "Connections closed with 4002: no sign of life"),
    ("aldis_slow_total", "Connections cut with 4003: no progress"),
    ("aldis_memory_cut_total", "Connections closed because the memory budget was used up"),
    ("aldis_tokens_total", "Connect requests with a valid token"),
    ("aldis_tickets_total", "Connect requests with a valid ticket"),
    ("aldis_identity_cut_total", "Connections closed with 4004: token or ticket expired"),
    ("aldis_stale_sequencers_total", "Sequencers refused because their epoch was superseded"),
    ("aldis_unknown_answers_total", "Answers to nothing that was asked; must stay 0"),
];

impl Metrics {
    pub fn new(registry: &Registry) -> Metrics {
        let counters = COUNTERS.map(|(name, help)| (registry.counter(name, help), 0));
        let connections = registry.gauge("aldis_connections", "Chat connections open now");
        let help = "Handshakes per second that the edge bears, by trial and as seen since";
        let capacity = registry.gauge("aldis_handshake_capacity", help);
        let help = "Connect requests refused because of who the client is, or is not";
        let doubt = |doubt: Doubt| {
            let labels = [("reason", doubt.name())];
            (registry.counter_with("aldis_identity_refused_total", help, &labels), 0)
        };
        let doubts = Doubt::ALL.map(doubt).into();
        let help = "Connections that were not let in";
        let refused = |reason: Reason| {
            let labels = [("reason", reason.name())];
            (registry.counter_with("aldis_refused_connections_total", help, &labels), 0)
        };
        let refused = Reason::ALL.map(refused).into();
        let help = "From a client's send at the edge until its sent is queued";
        let send = PublishedLatency::new(registry, "aldis_edge_send_seconds", help);
        let class = |class: Class| {
            registry.gauge_with(CLASS_METRIC, CLASS_HELP, &[("class", class.name())])
        };
        Metrics {
            counters: counters.into(),
            doubts,
            refused,
            connections: (connections, 0),
            capacity: (capacity, 0),
            memory: Class::ALL.map(class).into(),
            send,
        }
    }

    /// Adds what happened since the last time. Once a turn.
    pub fn publish<R: Ring>(&mut self, shard: &mut Shard<R, Chat>) {
        let doubts = shard.application().site().door.counters.doubts;
        publish(&mut self.counters, values(shard));
        publish(&mut self.doubts, doubts);
        publish(&mut self.refused, shard.counters().refused);
        let connections = shard.application().router().counters().connections;
        publish_share(&mut self.connections, connections);
        publish_share(&mut self.capacity, shard.capacity());
        for (gauge, class) in self.memory.iter().zip(Class::ALL) {
            gauge.set(shard.ledger().size(class) as u64);
        }
        let chat = shard.application();
        self.send.publish(chat.router().send_latency(), chat.now_us());
    }
}

/// A gauge that is the sum of all shards.
fn publish_share((gauge, published): &mut (Gauge, u64), value: u64) {
    gauge.add(value.saturating_sub(*published) as _);
    gauge.sub(published.saturating_sub(value) as _);
    *published = value;
}

fn publish(counters: &mut [(Counter, u64)], values: impl IntoIterator<Item = u64>) {
    for ((counter, published), value) in counters.iter_mut().zip(values) {
        if value > *published {
            counter.add(value - *published);
            *published = value;
        }
    }
}

fn values<R: Ring>(shard: &Shard<R, Chat>) -> [u64; 27] {
    let sockets = shard.counters();
    let chat = shard.application().router().counters();
    let door = &shard.application().site().door.counters;
    [
        chat.accepted,
        chat.welcomed,
        sockets.timed_out,
        sockets.messages,
        chat.frames_out,
        sockets.sends,
        chat.sent,
        chat.pushed,
        chat.rejected,
        chat.overloaded,
        chat.expired,
        chat.behind,
        chat.dropped_pushes,
        chat.stale_pushes,
        sockets.stale,
        sockets.starved,
        sockets.promoted,
        sockets.calmed,
        sockets.violations,
        sockets.silent,
        sockets.slow + chat.cut_slow,
        sockets.cut_for_memory,
        door.tokens,
        door.tickets,
        chat.cut_expired,
        chat.stale_sequencers,
        chat.unknown_answers,
    ]
}
