//! The store as a process: its logic between a ring, its links, its disk and its index.

use std::os::fd::RawFd;

use anyhow::Context;

use super::core::{Problem, Store};
use super::device::LogDevice;
use super::options::StoreOptions;
use super::published::Published;
use super::reader::IndexWorker;
use crate::admin::{Health, Registry};
use crate::clock::Now;
use crate::link::greeting::{Role, Secret};
use crate::link::host::{LinkOptions, Links};
use crate::ring::kernel::{KernelRing, RingOptions, listen};
use crate::ring::{Completion, Kind, Ring, Socket, Token};
use crate::sys::{Waker, random_u64};

/// The longest a turn waits when nothing is due.
const WAIT_US_MAX: u64 = 100_000;
/// Bytes of a log segment: a second or so of the heaviest traffic, and quick to zero.
const SEGMENT_SIZE: u64 = 64 * 1024 * 1024;

/// A store over any ring, disk and index.
pub struct Process<R: Ring, D: LogDevice, W: IndexWorker> {
    pub ring: R,
    pub links: Links,
    pub logic: Store<D, W>,
    completions: Vec<Completion>,
    watched: Vec<RawFd>,
}

impl<R: Ring, D: LogDevice, W: IndexWorker> Process<R, D, W> {
    /// `listener` is where sequencers link to; `watched` are the event descriptors of the threads
    /// that the store's disk and index run on.
    pub fn new(
        mut ring: R,
        name: &str,
        secret: Secret,
        listener: Socket,
        logic: Store<D, W>,
        watched: Vec<RawFd>,
    ) -> Process<R, D, W> {
        let incarnation = logic.incarnation();
        let options = LinkOptions { role: Role::Store, name: name.into(), incarnation, secret };
        let mut links = Links::new(options);
        links.listen(listener, &mut ring);
        let mut process = Process { ring, links, logic, completions: Vec::new(), watched };
        (0..process.watched.len()).for_each(|index| process.watch(index));
        process
    }

    /// Submits and waits until something happens or is due.
    pub fn wait(&mut self, now: Now) {
        let due_us = self.logic.deadline_us().unwrap_or(u64::MAX);
        let wait_us = due_us.saturating_sub(now.monotonic_us).min(WAIT_US_MAX);
        self.ring.turn(wait_us, &mut self.completions);
    }

    /// Runs everything that was collected, then what is due at `now`. A fault ends the process.
    pub fn run(&mut self, now: Now) -> Result<(), super::StoreFault> {
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            match completion.token.kind() {
                Kind::Wake if completion.more => {}
                Kind::Wake => self.watch(completion.token.slot() as usize),
                _ => self.links.complete(now, completion, &mut self.ring),
            }
        }
        self.completions = completions;
        while let Some(event) = self.links.next_event() {
            match self.logic.handle(now, event, &mut self.links) {
                Ok(()) => {}
                Err(Problem::Fault(fault)) => return Err(fault),
                Err(Problem::Violation { peer, what }) => {
                    tracing::error!(?peer, what, "a peer broke the protocol and is cut");
                    self.links.end(peer, &mut self.ring);
                }
            }
        }
        self.logic.poll(now, &mut self.links)?;
        self.links.set_durable_seen(self.logic.known_durable());
        self.links.flush(now, &mut self.ring);
        Ok(())
    }

    fn watch(&mut self, index: usize) {
        let slot = u32::try_from(index).expect("a handful of threads");
        self.ring.watch(self.watched[index], Token::new(Kind::Wake, slot, 0));
    }
}

/// Runs a store until SIGTERM, or until its disk fails: then the page cache is not to be trusted
/// any more, and the next process recovers from what is on the disk.
pub fn run(options: StoreOptions) -> anyhow::Result<()> {
    let registry = Registry::new("store");
    let health = Health::starting();
    let mut published = Published::new(&registry);
    crate::sys::ignore_file_size_signal();
    let stop = crate::sys::stop_flag().context("installing signal handlers")?;
    let listener = crate::sys::patiently(|| listen(options.listen, 16, false))
        .with_context(|| format!("listening for sequencers on {}", options.listen))?;
    options.admin.open(&registry, &health).context("opening the admin page")?;
    health.set_failing("recovering");
    let waker = Waker::new().context("making an event descriptor")?;
    let (store, views) = super::open_with_views(&opening(&options), &waker)?;
    super::audit::online::offer(&registry, views, &options.data.join("log"));
    let metrics = store.metrics();
    tracing::info!(
        data = %options.data.display(),
        durable = store.known_durable(),
        records_replayed = metrics.records_replayed,
        recovery_ms = metrics.recovery_us / 1_000,
        "store serves"
    );
    let sizes =
        RingOptions { sockets: 64, buffer_size: 65_536, buffer_count: 128, ..<_>::default() };
    let ring = KernelRing::new(sizes)?;
    let secret = Secret::new(&options.secret);
    let socket = listener.socket();
    let watched = vec![waker.raw()];
    let mut process = Process::new(ring, &options.name, secret, socket, store, watched);
    health.set_ok();
    while !stop.is_raised() {
        process.wait(Now::read());
        let now = Now::read();
        process.run(now)?;
        let durable = process.logic.known_durable();
        published.publish(process.logic.metrics(), durable, now.monotonic_us);
    }
    tracing::info!("store ends");
    Ok(())
}

fn opening(options: &StoreOptions) -> super::Options {
    let mut new_log_id = [0; 16];
    new_log_id[..8].copy_from_slice(&random_u64().to_le_bytes());
    new_log_id[8..].copy_from_slice(&random_u64().to_le_bytes());
    super::Options {
        directory: options.data.clone(),
        segment_size: SEGMENT_SIZE,
        incarnation: random_u64(),
        new_log_id,
    }
}
