//! Two tiers of connections, by how often they are heard.
//!
//! An idle one waits with a poll: 256 bytes of kernel memory, and a receive each time it is
//! readable. A busy one has a multishot receive armed: 864 bytes, and nothing to ask for per
//! message. Who is heard often and evenly joins the busy tier, and leaves it when he is quiet.

use super::application::ConnectionId;
use super::connection::Armed;
use super::connections::Connections;

/// When a connection changes its tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiers {
    /// Receives in a row after which a connection is busy; 0: all are, always.
    pub promote_after: u8,
    /// Silence in milliseconds that ends such a row, and with it the busy time.
    pub quiet_ms: u64,
}

impl Default for Tiers {
    fn default() -> Tiers {
        Tiers { promote_after: 4, quiet_ms: 2_000 }
    }
}

impl Tiers {
    /// How long a busy connection may be silent; `u64::MAX`: for ever.
    pub(super) fn quiet_ms(self) -> u64 {
        if self.promote_after == 0 { u64::MAX } else { self.quiet_ms }
    }
}

impl Connections {
    /// A new connection enters its first tier.
    pub(super) fn place(&mut self, id: ConnectionId) {
        let is_busy = self.options.tiers.promote_after == 0;
        if let Some(connection) = self.get_mut(id) {
            connection.flags.is_busy = is_busy;
            self.busy_count += usize::from(is_busy);
        }
    }

    /// Bytes were received by `armed`; to be told before they are looked at.
    pub(super) fn received(&mut self, id: ConnectionId, armed: Armed) {
        let (now_ms, tiers) = (self.now.monotonic_ms(), self.options.tiers);
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        let flags = &mut connection.flags;
        if armed != Armed::Once || flags.is_busy {
            return;
        }
        let is_soon = now_ms.saturating_sub(connection.since.ms(now_ms)) <= tiers.quiet_ms;
        flags.run = if is_soon { flags.run.saturating_add(1) } else { 1 };
        if flags.run >= tiers.promote_after {
            flags.is_busy = true;
            self.busy_count += 1;
            self.counters.promoted += 1;
            self.arm(id);
        }
    }

    /// A connection leaves the busy tier; its receive is ended at the end of the turn.
    pub(super) fn calm(&mut self, id: ConnectionId) {
        let Some(connection) = self.get_mut(id) else {
            return;
        };
        connection.flags.is_busy = false;
        connection.flags.run = 0;
        self.busy_count -= 1;
        self.counters.calmed += 1;
        self.calmed.push(id);
    }
}
