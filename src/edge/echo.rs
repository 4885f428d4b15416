//! `aldis echo`: every message comes back. What conformance suites and load generators talk to.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context as _;

use crate::clock::Now;
use crate::framer::Request;
use crate::limits::ECHO_MESSAGE_SIZE_MAX;
use crate::ring::Ring;
use crate::ring::kernel::{Descriptors, KernelRing, Listener, RingOptions, listen, probe_bind};

use super::application::{Application, ConnectionId, Decision, End, Message};
use super::capacity::Capacity;
use super::connections::{Connections, SPARE_COUNT, SendError, ShardOptions};
use super::shard::Shard;

/// Bytes that may wait for a client that does not read: it is cut beyond.
const QUEUE_SIZE_MAX: usize = 64 * 1024 * 1024;
const LISTEN_BACKLOG: u32 = 4096;

const _: () = assert!(ECHO_MESSAGE_SIZE_MAX < QUEUE_SIZE_MAX);

/// Upgrades on any path and sends every message back.
#[derive(Debug, Default)]
pub struct EchoApplication;

impl<R: Ring> Application<R> for EchoApplication {
    fn request(&mut self, _: Now, _: ConnectionId, _: &Request, _: &[u8]) -> Decision {
        Decision::Upgrade { subprotocol: None }
    }

    fn opened(&mut self, _: Now, _: ConnectionId, _: &mut Connections) {}

    fn message(
        &mut self,
        _: Now,
        id: ConnectionId,
        message: Message,
        connections: &mut Connections,
    ) {
        let queued = match message {
            Message::Text(text) => connections.send_text(id, text),
            Message::Binary(bytes) => connections.send_binary(id, bytes),
        };
        if queued == Err(SendError::Full) {
            connections.cut(id, 4003, "slow", End::Slow);
        }
    }

    fn closed(&mut self, _: Now, _: ConnectionId, _: End, _: &mut Connections) {}
}

/// What `aldis echo` is told.
#[derive(Clone, Copy, Debug)]
pub struct EchoOptions {
    pub listen: SocketAddr,
    /// Threads, each with a ring of its own.
    pub shards: usize,
    /// Agrees to permessage-deflate with clients that offer it.
    pub deflate: bool,
    pub descriptors: Descriptors,
}

/// Serves echoes until SIGTERM or SIGINT.
pub fn run(options: EchoOptions) -> anyhow::Result<()> {
    let EchoOptions { listen: address, shards, .. } = options;
    probe_bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let listeners = open_listeners(address, shards.max(1))?;
    let bound = listeners[0].address();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let threads = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| spawn(index, listener, options, Arc::clone(&stop)))
        .collect::<Result<Vec<_>, _>>()?;
    // For whoever started it: port 0 asks the kernel to choose.
    writeln!(std::io::stdout(), "listening on {bound}")?;
    for thread in threads {
        match thread.join() {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(())
}

/// One listener per shard; all on the port that the first one got.
fn open_listeners(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Listener>> {
    let open = |address: SocketAddr| {
        listen(address, LISTEN_BACKLOG, true).with_context(|| format!("cannot listen on {address}"))
    };
    let first = open(address)?;
    let bound = first.address();
    let others = (1..count).map(|_| open(bound));
    std::iter::once(Ok(first)).chain(others).collect()
}

fn spawn(
    index: usize,
    listener: Listener,
    options: EchoOptions,
    stop: Arc<AtomicBool>,
) -> std::io::Result<thread::JoinHandle<anyhow::Result<()>>> {
    thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
        let stop = StopAll(stop);
        run_shard(&listener, options, &stop.0)
    })
}

/// Stops every shard when one ends, however it does: without it, the others would go on answering
/// only some of the clients.
struct StopAll(Arc<AtomicBool>);

impl Drop for StopAll {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run_shard(listener: &Listener, options: EchoOptions, stop: &AtomicBool) -> anyhow::Result<()> {
    let EchoOptions { shards, deflate, descriptors, .. } = options;
    let sockets = Capacity::of_this_process(descriptors, shards).sockets_per_shard;
    let ring = KernelRing::new(RingOptions { sockets, descriptors, ..RingOptions::default() })?;
    let options = ShardOptions {
        connection_count_max: (ring.sockets_max() as usize).saturating_sub(SPARE_COUNT),
        message_size_max: ECHO_MESSAGE_SIZE_MAX as u32,
        queue_size_max: QUEUE_SIZE_MAX,
        deflate,
        ..ShardOptions::default()
    };
    let mut shard = Shard::new(ring, EchoApplication, options, Now::read());
    shard.add_listener(listener.socket());
    shard.run(stop);
    Ok(())
}

#[cfg(test)]
mod tests;
