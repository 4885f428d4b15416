//! The whole system in one test process: an edge shard, sequencers, a store, clients; over the
//! simulated network and disk.
//!
//! The world does nothing by itself: whoever drives it (`chaos` by chance, `interleavings` by
//! script) lets a process turn, the disk step, a client act or the time pass, and each of these
//! checks what it can see. What is durable is learnt from the disk alone, before anybody hears.

pub mod channels;
pub mod connection;
pub mod deaths;
pub mod device;
pub mod ledger;
pub mod processes;
pub mod trace;
pub mod websocket;
pub mod witness;

use std::net::{Ipv4Addr, SocketAddr};

use crate::clock::Now;
use crate::sequencer::budget::Budget;
use crate::simulation::disk::SimDisk;
use crate::simulation::kernel::{SimNetwork, SimOptions};
use crate::simulation::random::Random;
use crate::store::index::MemoryIndex;
use device::{Around, Device};
use ledger::{Ledger, Verdict};
use processes::{Edge, Life, SequencerProcess, StoreProcess};
use trace::Trace;
use witness::Witness;

/// 2025-01-01 UTC, when every world begins, in milliseconds since 1970.
const BEGINNING_UNIX_MS: u64 = 1_735_689_600_000;

/// Of every edge.
const HEARTBEAT_MS: u32 = 5_000;

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct WorldOptions {
    pub network: SimOptions,
    /// Bytes of a log segment.
    pub segment_size: u64,
    /// What a sequencer keeps in memory.
    pub budget: Budget,
    /// Milliseconds of service after which a letter is dead.
    pub dead_after_ms: u64,
}

/// A process of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Edge,
    Sequencer,
    Store,
}

/// See the module.
pub struct World {
    pub network: SimNetwork,
    pub disk: SimDisk,
    pub index: MemoryIndex,
    pub edge: Option<Life<Edge>>,
    /// Oldest first; more than one only while a paused one has not noticed its successor.
    pub sequencers: Vec<Life<SequencerProcess>>,
    pub store: Option<Life<StoreProcess>>,
    pub devices: Vec<Device>,
    pub ledger: Ledger,
    pub witness: Witness,
    pub trace: Trace,
    /// [`World::pass`] lets the disk do nothing.
    pub disk_is_held: bool,
    /// Added to the host's clock: it may jump.
    pub clock_skew_ms: i64,
    options: WorldOptions,
    random: Random,
    /// The disk was told to fail, and the store may end of it.
    disk_fails: bool,
}

impl World {
    /// An empty disk, nothing running, nobody connected.
    pub fn new(seed: u64, options: WorldOptions, trace: Trace) -> World {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(random.next_u64());
        disk.watch();
        let mut ledger = Ledger::default();
        ledger.deaths.age_ms = options.dead_after_ms;
        World {
            network: SimNetwork::new(random.next_u64(), options.network),
            disk,
            index: MemoryIndex::default(),
            edge: None,
            sequencers: Vec::new(),
            store: None,
            devices: Vec::new(),
            ledger,
            witness: Witness::default(),
            trace,
            disk_is_held: false,
            clock_skew_ms: 0,
            options,
            random,
            disk_fails: false,
        }
    }

    /// Starts everything that does not run.
    pub fn start_all(&mut self) -> Verdict {
        self.start_store()?;
        if self.sequencers.is_empty() {
            self.start_sequencer();
        }
        self.start_edge();
        Ok(())
    }

    pub fn add_device(&mut self, user: &str, device: &str) -> usize {
        self.devices.push(Device::new(user, device));
        self.devices.len() - 1
    }

    pub fn now(&self) -> Now {
        let monotonic_us = self.network.now_us() + 1;
        let unix_ms = BEGINNING_UNIX_MS + monotonic_us / 1_000;
        Now { monotonic_us, unix_ms: unix_ms.saturating_add_signed(self.clock_skew_ms) }
    }

    /// Lets the time pass.
    pub fn advance_to(&mut self, us: u64) {
        self.network.advance_to(us);
    }

    /// The disk does one of the things that it was asked for, if there is one.
    pub fn step_disk(&mut self) -> Verdict {
        if !self.disk.step() {
            return Ok(());
        }
        self.ledger.pass(self.network.now_us());
        for write in self.disk.take_durable() {
            self.ledger.take_write(write)?;
            let end = self.ledger.end();
            self.note(format_args!("the log is durable up to {end}"));
        }
        Ok(())
    }

    /// Lets one device act.
    pub fn with_device(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Device, &mut Around) -> Verdict,
    ) -> Verdict {
        let mut around = Around {
            network: &self.network,
            edge: edge_address(),
            ledger: &self.ledger,
            witness: &mut self.witness,
            trace: &self.trace,
        };
        act(&mut self.devices[index], &mut around)
    }

    /// One turn of everything that runs and is not paused, a step of the disk, and a turn of every
    /// device; then the time moves on to the next event, but at most by `us_max`.
    pub fn pass(&mut self, us_max: u64) -> Verdict {
        self.trace.step();
        self.turn_store()?;
        for index in (0..self.sequencers.len()).rev() {
            self.turn_sequencer(index)?;
        }
        self.turn_edge()?;
        if !self.disk_is_held {
            self.step_disk()?;
        }
        for index in 0..self.devices.len() {
            self.with_device(index, |device, around| {
                device.say_due(around);
                device.turn(around)
            })?;
        }
        let now_us = self.network.now_us();
        let busy = self.disk.is_busy() && !self.disk_is_held;
        let latest_us = now_us + if busy { us_max.min(50) } else { us_max };
        let next_us = self.network.next_event_us().unwrap_or(latest_us);
        self.network.advance_to(next_us.clamp(now_us + 1, latest_us.max(now_us + 1)));
        Ok(())
    }

    /// Passes until `done` holds; an error after `us` of virtual time.
    pub fn pass_until(
        &mut self,
        what: &str,
        us: u64,
        mut done: impl FnMut(&mut World) -> bool,
    ) -> Verdict {
        let end_us = self.network.now_us() + us;
        while !done(self) {
            if self.network.now_us() > end_us {
                return Err(format!("after {us} us it is still not so that {what}"));
            }
            self.pass(1_000)?;
        }
        Ok(())
    }

    /// Passes for `us` of virtual time.
    pub fn pass_for(&mut self, us: u64) -> Verdict {
        let end_us = self.network.now_us() + us;
        while self.network.now_us() < end_us {
            self.pass(1_000)?;
        }
        Ok(())
    }

    pub fn note(&self, event: std::fmt::Arguments) {
        self.trace.note(self.network.now_us(), event);
    }
}

/// Where clients connect.
pub fn edge_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))
}
