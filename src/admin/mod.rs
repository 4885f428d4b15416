//! The admin page of a process: `/healthz`, `/readyz` and `/metrics`, on a thread of its own, never
//! on a message's way. Knows no process; whoever runs one hands in its [`Registry`] and [`Health`].
//!
//! A process opens it in one line: `AdminOptions::open(&options.admin, &registry, &health)?`.

mod desk;
mod health;
mod latency;
mod registry;
mod server;

pub use desk::{Answer, Desk, Question};
pub use health::{Health, Part};
pub use latency::{Latency, PublishedLatency};
pub use registry::{Ask, Counter, Gauge, Page, Registry, Summary};
pub use server::{serve, start};

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::sys::patiently;

/// Where a process serves its admin page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminOptions {
    /// Port 0 lets the kernel choose one.
    pub address: SocketAddr,
    /// The bound address is written here, one line, so that others find an ephemeral port.
    pub file: Option<PathBuf>,
}

impl AdminOptions {
    /// Serves `registry` and `health`, writes the address file, and returns the bound address. An
    /// address in use may be that of an earlier life, which the kernel lets go soon. Errors are
    /// those of the bind or of the file, and name what was tried.
    pub fn open(&self, registry: &Registry, health: &Health) -> io::Result<SocketAddr> {
        let listener = self.bind()?;
        let address = listener.local_addr()?;
        self.open_on(listener, registry, health)?;
        Ok(address)
    }

    /// As [`AdminOptions::open`], with a desk at which the process is asked.
    pub fn open_with_desk(
        &self,
        registry: &Registry,
        health: &Health,
        desk: Desk,
    ) -> io::Result<SocketAddr> {
        let listener = self.bind()?;
        let address = listener.local_addr()?;
        server::serve_all(listener, registry.clone(), health.clone(), Some(desk))?;
        self.write(address)?;
        Ok(address)
    }

    /// The first half of [`AdminOptions::open`].
    pub fn bind(&self) -> io::Result<TcpListener> {
        patiently(|| server::bind(self.address))
    }

    /// The other half.
    pub fn open_on(
        &self,
        listener: TcpListener,
        registry: &Registry,
        health: &Health,
    ) -> io::Result<()> {
        let address = listener.local_addr()?;
        serve(listener, registry.clone(), health.clone())?;
        self.write(address)
    }

    fn write(&self, address: SocketAddr) -> io::Result<()> {
        if let Some(file) = &self.file {
            write_address(file, address).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", file.display()))
            })?;
        }
        Ok(())
    }
}

/// A reader sees the whole line or no file: the name appears only when the content is complete.
/// Not synced, since the address is worthless after a crash.
fn write_address(file: &Path, address: SocketAddr) -> io::Result<()> {
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".new");
    fs::write(&unfinished, format!("{address}\n"))?;
    fs::rename(&unfinished, file)
}

#[cfg(test)]
mod tests;
