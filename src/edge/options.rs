//! What an edge is told when it starts. Plain data; the command line converts into it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::admission::AdmissionOptions;
use super::identity::jwks::Place;
use super::identity::keys::KeySet;
use super::ledger::MemoryBudget;
use super::tiers::Tiers;
use crate::admin::AdminOptions;
use crate::ring::kernel::Descriptors;

/// Everything that `edge::run` needs. Not `Debug`: it holds the link's secret.
#[derive(Clone)]
pub struct EdgeOptions {
    /// Unique among the edges of a sequencer; shard `i` is `<name>/<i>` on the link.
    pub name: String,
    /// Where clients connect; every shard binds it with SO_REUSEPORT.
    pub listen: SocketAddr,
    /// The sequencer's link address.
    pub sequencer: SocketAddr,
    /// The shared secret of the link's hello, at least 32 bytes.
    pub secret: Vec<u8>,
    /// Threads, each with a ring of its own; 1 to `SHARD_COUNT_MAX`.
    pub shards: usize,
    pub auth: Auth,
    /// Values of `Host` (without port) that are served besides loopback literals and `localhost`.
    pub hosts: Vec<String>,
    /// Values of `Origin` that may connect besides the same host and none, as browsers spell them
    /// (`https://chat.example.org`).
    pub origins: Vec<String>,
    /// The datagram socket of `up`. With it, the edge offers the page's kill buttons: one datagram
    /// `kill store`, `kill sequencer` or `kill edge` each.
    pub control: Option<PathBuf>,
    /// The Unix socket at which a successor takes over, and a command asks for one.
    pub handover: Option<PathBuf>,
    /// Takes over from the edge that answers there, instead of starting anew.
    pub is_successor: bool,
    /// Silence after which a client is pinged; twice that without a frame closes with 4002.
    pub heartbeat_ms: u32,
    /// Where the sockets of clients live.
    pub descriptors: Descriptors,
    /// What idle and busy connections wait with.
    pub tiers: Tiers,
    /// Agrees to permessage-deflate with clients that offer it.
    pub deflate: bool,
    /// Each shard runs on one processor alone, round robin.
    pub pin: bool,
    /// A connection goes to the shard whose number is that of the processor on which it arrived,
    /// instead of by a hash of its addresses.
    pub steer: bool,
    /// Connections of all shards together; 0: as many as the host allows.
    pub connections: usize,
    pub admission: AdmissionOptions,
    /// Handshakes per second that the process bears. Nobody knows before it has tried: 0.
    pub capacity: u64,
    /// Memory of the process and of the kernel for it.
    pub memory_budget: MemoryBudget,
    pub admin: AdminOptions,
}

/// More shards than this are a mistake in writing.
pub const SHARD_COUNT_MAX: usize = 1_024;

/// How a client proves who it is.
#[derive(Clone)]
pub enum Auth {
    /// It says so (`?user=alice`). Refused on a listener that is not loopback.
    Dev,
    /// By a token that one of the keys signed.
    Jwt {
        keys: Keys,
        /// What `iss` has to be; `None`: anything.
        issuer: Option<String>,
        /// What `aud` has to contain; `None`: it must not be there.
        audience: Option<String>,
    },
}

/// What verifies tokens.
#[derive(Clone)]
pub enum Keys {
    /// These, for as long as the process lives.
    Fixed(Arc<KeySet>),
    /// Those that are published there, as they change.
    Published(Place),
}
