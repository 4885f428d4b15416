//! `aldis up`: a store, a sequencer and an edge on this machine, as child processes that are
//! restarted when they die and end when this process ends, however it ends.
//!
//! This process carries no message and keeps no state but its directory: killing it at any moment
//! loses nothing.

mod child;
mod control;
mod directory;
mod ports;
mod readiness;
mod restart;
mod supervisor;
mod upgrade;
mod welcome;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;

use super::identity::IdentitySettings;
use crate::admin::{AdminOptions, Health, Registry};
use child::Plan;
use directory::DataDirectory;
pub use directory::{admin_path, upgrade_path};
use supervisor::Supervisor;

/// What `up` was told.
pub struct UpOptions {
    pub listen: SocketAddr,
    pub data: PathBuf,
    /// `None`: the edge decides.
    pub shards: Option<usize>,
    pub identity: IdentitySettings,
    pub hosts: Vec<String>,
    pub origins: Vec<String>,
    /// `None`: the edge decides.
    pub deflate: Option<bool>,
    /// Of `up` itself; also told in the directory, like those of the children.
    pub admin: SocketAddr,
    /// Handed on to the children.
    pub config: Option<PathBuf>,
    /// Handed on to the children.
    pub log: Option<String>,
}

/// Runs until SIGTERM or SIGINT, then ends the children in the order edge, sequencer, store.
pub fn run(options: UpOptions) -> anyhow::Result<()> {
    let directory = DataDirectory::open(&options.data)?;
    let listen = ports::probe(options.listen, directory.existed())?;
    let [store_link, sequencer_link] = ports::choose_link_ports(listen)?;
    let (health, registry) = (Health::starting(), Registry::new("up"));
    let file = Some(directory::admin_path(&options.data, "up"));
    let admin = AdminOptions { address: options.admin, file };
    admin.open(&registry, &health).context("opening the admin page")?;
    let (events, inbox) = supervisor::channel()?;
    let control = control::open(&directory.control_path(), events.clone());
    upgrade::open(&upgrade_path(&options.data), events.clone());
    let plan = Plan {
        executable: std::env::current_exe()?,
        directory: options.data.clone(),
        listen,
        store_link,
        sequencer_link,
        control,
        handover: control::short_path(&directory::handover_path(&options.data)),
        shards: options.shards,
        identity: options.identity,
        hosts: options.hosts,
        origins: options.origins,
        deflate: options.deflate,
        config: options.config,
        log: options.log,
    };
    tracing::info!(data = %options.data.display(), %listen, "starting store, sequencer and edge");
    Supervisor::new(plan, events, inbox, health, &registry).run()
    // `directory` is dropped here and with it the lock: no child outlives it.
}
