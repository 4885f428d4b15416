//! What a sequencer is told when it starts. Plain data; the command line converts into it.

use std::net::SocketAddr;

use super::limits::LimitOptions;
use crate::admin::AdminOptions;

/// Everything that `sequencer::run` needs. Not `Debug`: it holds the link's secret.
#[derive(Clone)]
pub struct SequencerOptions {
    /// Its name in the link's hello.
    pub name: String,
    /// Where edges link to.
    pub listen: SocketAddr,
    /// The store's link address.
    pub store: SocketAddr,
    /// The shared secret of the link's hello, at least 32 bytes.
    pub secret: Vec<u8>,
    pub limits: LimitOptions,
    pub admin: AdminOptions,
    /// What is not delivered within so many milliseconds of service is a dead letter.
    pub dead_after_ms: u64,
}
