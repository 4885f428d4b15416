//! The binary link between processes: byte layout, messages, sessions, and the host that drives
//! sessions over a ring.

pub mod frame;
pub mod greeting;
pub mod host;
pub mod message;
pub mod record;
pub mod session;
pub mod wire;

use bytes::Bytes;

use record::Id;

/// A peer as this process numbers it; kept over reconnections and new lives of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// The window of unacknowledged bytes towards this peer is used up, or there is no session with it
/// that the logic knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link takes no more entries now")]
pub struct LinkFull;

/// Where the logic of a process puts what it has to say. `Links` is the real one; tests record.
pub trait Outlet {
    /// Queues one entry for `peer`. Returns its number in the session (1, 2, 3, ...), which an
    /// answer names in `to`. Entries arrive in the order they were submitted, each once, as long as
    /// the session lasts; a session that ends takes what was not acknowledged with it. Until the
    /// logic has been told that a session began, nothing enters it: what is said is meant for the
    /// session before, whose numbers mean other entries.
    fn submit(&mut self, peer: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull>;

    /// Whether so little is unacknowledged that what need not be said now may be said all the same.
    fn has_room(&self, _peer: PeerId) -> bool {
        true
    }

    /// The effect of the peer's entry `number` is durable, or it was refused: the peer may forget
    /// it. Every entry received is to be answered once, notices when they were handled.
    fn answered(&mut self, peer: PeerId, number: u64);
}

/// What a link tells the logic of its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A session with `peer` begins with empty hands on both sides: after this process or the peer
    /// started anew, or one of them gave up the lease. What was unanswered in the session before
    /// will not be answered. Entry numbers start again at 1 in both directions. A TCP connection
    /// that merely broke is mended without any event.
    Began {
        peer: PeerId,
        name: Id,
        incarnation: u64,
        /// The highest durable log position that the peer has seen.
        durable_seen: u64,
    },
    /// The peer's entry `number`.
    Entry { peer: PeerId, number: u64, entry: Bytes },
    /// The session is over (the lease ran out, or the peer is there with a new incarnation).
    Ended { peer: PeerId },
}

/// Identifies a dedup key within its conversation in memory. FNV-1a over `user`, 0, `id`: stable
/// across processes and versions. A collision costs a lookup, never a wrong answer.
pub fn fingerprint(user: &str, id: &str) -> u64 {
    let bytes = user.bytes().chain([0]).chain(id.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Records what a process's logic says, for tests.
#[cfg(test)]
#[derive(Default)]
pub struct Recorder {
    /// Entries in the order they were submitted, with the peer.
    pub said: Vec<(PeerId, Bytes)>,
    pub answered: Vec<(PeerId, u64)>,
    counts: std::collections::BTreeMap<PeerId, u64>,
}

#[cfg(test)]
impl Outlet for Recorder {
    fn submit(&mut self, peer: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        self.said.push((peer, entry.into()));
        let count = self.counts.entry(peer).or_default();
        *count += 1;
        Ok(*count)
    }

    fn answered(&mut self, peer: PeerId, number: u64) {
        self.answered.push((peer, number));
    }
}
