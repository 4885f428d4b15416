//! What a store is told when it starts. Plain data; the command line converts into it.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::admin::AdminOptions;

/// Everything that `store::run` needs. Not `Debug`: it holds the link's secret.
#[derive(Clone)]
pub struct StoreOptions {
    /// Its name in the link's hello.
    pub name: String,
    /// The directory of the log and its index; the store makes it and syncs its parent.
    pub data: PathBuf,
    /// Where sequencers link to.
    pub listen: SocketAddr,
    /// The shared secret of the link's hello, at least 32 bytes.
    pub secret: Vec<u8>,
    pub admin: AdminOptions,
}
