//! The processes of the world in their lives: started, turned, paused, killed.

use std::net::{Ipv4Addr, SocketAddr};

use super::ledger::Verdict;
use super::{HEARTBEAT_MS, Role, World, edge_address};
use crate::edge::chat::{Chat, ChatOptions};
use crate::edge::identity::{Door, Identities};
use crate::edge::site::Site;
use crate::edge::ticket::Tickets;
use crate::edge::{Shard, ShardOptions};
use crate::link::greeting::Secret;
use crate::ring::kernel::RingOptions;
use crate::sequencer::core::Outcome;
use crate::sequencer::process::Process as Sequencer;
use crate::simulation::disk::SimDisk;
use crate::simulation::kernel::{RingId, SimRing};
use crate::store::index::MemoryIndex;
use crate::store::log::LogOptions;
use crate::store::log_format::LogId;
use crate::store::open_on;
use crate::store::process::Process as Store;
use crate::store::reader::InlineIndex;

const SECRET: &[u8] = b"a secret of the simulation, no more";
const CONNECTION_COUNT_MAX: usize = 32;
const SEQUENCER_PORT: u16 = 9001;
const STORE_PORT: u16 = 9002;
/// Tasks that the store's index takes at a time.
const INDEX_QUEUE_SIZE: usize = 16;

pub type Edge = Shard<SimRing, Chat>;
pub type SequencerProcess = Sequencer<SimRing>;
pub type StoreProcess = Store<SimRing, SimDisk, InlineIndex<MemoryIndex, SimDisk>>;

/// One process from its start to its end.
pub struct Life<P> {
    pub process: P,
    pub ring: RingId,
    /// It gets no processor before.
    pub paused_until_us: u64,
    /// Another process of its kind was there at the same time.
    pub had_rival: bool,
}

impl World {
    /// Starts a store, unless one runs. Whatever happened to the disk, it recovers.
    pub fn start_store(&mut self) -> Verdict {
        if self.store.is_some() {
            return Ok(());
        }
        self.note(format_args!("the store starts"));
        let incarnation = self.next_incarnation();
        let options = LogOptions {
            segment_size: self.options.segment_size,
            incarnation,
            new_log_id: LogId { high: 7, low: incarnation },
        };
        let (disk, index) = (self.disk.clone(), self.index.clone());
        let worker = |reader| Ok(InlineIndex::new(reader, INDEX_QUEUE_SIZE));
        let opened = open_on(disk, index, options, || 0, worker);
        let logic = opened.map_err(|fault| format!("the store does not start: {fault}"))?;
        self.repair_disk();
        self.ledger.pass(self.network.now_us());
        self.ledger.take_recovered(&self.disk)?;
        if logic.known_durable() != self.ledger.end() {
            let (store, end) = (logic.known_durable(), self.ledger.end());
            return Err(format!("the store recovers {store} positions, the disk holds {end}"));
        }
        let mut ring = self.new_ring();
        let id = ring.id();
        let listener = ring.listen(address(STORE_PORT));
        let secret = Secret::new(SECRET);
        let process = Store::new(ring, "store", secret, listener, logic, Vec::new());
        self.store = Some(Life::new(process, id));
        Ok(())
    }

    /// Starts a sequencer, beside those that are there: they may be paused and not know of it.
    pub fn start_sequencer(&mut self) {
        self.note(format_args!("a sequencer starts"));
        let incarnation = self.next_incarnation();
        let mut ring = self.new_ring();
        let id = ring.id();
        let listener = ring.listen(address(SEQUENCER_PORT));
        let (secret, store) = (Secret::new(SECRET), address(STORE_PORT));
        let budget = self.options.budget;
        let mut process =
            Sequencer::new(ring, "sequencer", incarnation, secret, listener, store, budget);
        process.logic.set_dead_after(self.options.dead_after_ms);
        let mut life = Life::new(process, id);
        life.had_rival = !self.sequencers.is_empty();
        self.sequencers.iter_mut().for_each(|old| old.had_rival = true);
        self.sequencers.push(life);
    }

    /// Starts an edge, unless one runs.
    pub fn start_edge(&mut self) {
        if self.edge.is_some() {
            return;
        }
        self.note(format_args!("the edge starts"));
        let incarnation = self.next_incarnation();
        let mut ring = self.new_ring();
        let id = ring.id();
        let listener = ring.listen(edge_address());
        let tickets = Tickets::new(SECRET);
        let door = Door::new(Vec::new(), Vec::new(), tickets, Identities::Development);
        let chat = Chat::new(ChatOptions {
            name: "edge/0".into(),
            server: "edge".into(),
            incarnation,
            secret: SECRET.into(),
            sequencer: address(SEQUENCER_PORT),
            heartbeat_ms: HEARTBEAT_MS,
            site: Site { door, has_kill_buttons: false, control: None },
        });
        let options = ShardOptions {
            connection_count_max: CONNECTION_COUNT_MAX,
            queue_size_max: 16 * 1024 * 1024,
            heartbeat_ms: u64::from(HEARTBEAT_MS),
            ..ShardOptions::default()
        };
        let mut shard = Shard::new(ring, chat, options, self.now());
        shard.add_listener(listener);
        self.edge = Some(Life::new(shard, id));
    }

    pub fn turn_edge(&mut self) -> Verdict {
        let (now, now_us) = (self.now(), self.network.now_us());
        let Some(life) = self.edge.as_mut().filter(|life| life.runs(now_us)) else {
            return Ok(());
        };
        life.process.turn(&mut || now);
        let violations = life.process.application().links().counters.violations_total;
        stays_zero("link violations of the edge", violations)
    }

    pub fn turn_sequencer(&mut self, index: usize) -> Verdict {
        let (now, now_us) = (self.now(), self.network.now_us());
        let Some(life) = self.sequencers.get_mut(index).filter(|life| life.runs(now_us)) else {
            return Ok(());
        };
        life.process.wait();
        let outcome = life.process.run(now);
        let counters = life.process.logic.counters;
        stays_zero("messages unaccounted by the sequencer", counters.unaccounted)?;
        stays_zero("malformed entries at the sequencer", counters.malformed_total)?;
        stays_zero("claims above the head", counters.seq_above_head_total)?;
        let violations = life.process.links.counters.violations_total;
        stays_zero("link violations of the sequencer", violations)?;
        if outcome == Outcome::Continue {
            return Ok(());
        }
        let had_rival = life.had_rival;
        self.note(format_args!("sequencer {index} is fenced and ends"));
        self.crash_sequencer(index);
        if had_rival { Ok(()) } else { Err("a sequencer is fenced that had no rival".to_owned()) }
    }

    pub fn turn_store(&mut self) -> Verdict {
        let (now, now_us) = (self.now(), self.network.now_us());
        let Some(life) = self.store.as_mut().filter(|life| life.runs(now_us)) else {
            return Ok(());
        };
        life.process.wait(now);
        if let Err(fault) = life.process.run(now) {
            self.note(format_args!("the store ends: {fault}"));
            self.crash_store();
            return if self.disk_fails { Ok(()) } else { Err(format!("the store ends: {fault}")) };
        }
        let metrics = life.process.logic.metrics();
        stays_zero("messages unaccounted by the store", metrics.unaccounted)?;
        stays_zero("malformed entries at the store", metrics.malformed)?;
        let violations = life.process.links.counters.violations_total;
        stays_zero("link violations of the store", violations)
    }

    pub fn crash_edge(&mut self) {
        if let Some(life) = self.edge.take() {
            self.note(format_args!("the edge dies"));
            self.network.crash(life.ring);
        }
    }

    pub fn crash_sequencer(&mut self, index: usize) {
        if index < self.sequencers.len() {
            self.note(format_args!("sequencer {index} dies"));
            let life = self.sequencers.remove(index);
            self.network.crash(life.ring);
        }
    }

    /// The failing disk was exchanged for one that works.
    fn repair_disk(&mut self) {
        self.disk_fails = false;
        self.disk.repair();
    }

    /// The store dies; what its disk was doing is torn, what its index had not settled is lost.
    pub fn crash_store(&mut self) {
        if let Some(life) = self.store.take() {
            self.note(format_args!("the store dies"));
            self.network.crash(life.ring);
        }
        self.disk.kill();
        self.crash_index();
    }

    /// Everything dies at once, and what was not synced may be gone.
    pub fn cut_power(&mut self) {
        self.note(format_args!("the power is cut"));
        self.crash_edge();
        while !self.sequencers.is_empty() {
            self.crash_sequencer(0);
        }
        self.crash_store();
        self.disk.cut_power();
    }

    pub fn crash(&mut self, role: Role) {
        match role {
            Role::Edge => self.crash_edge(),
            Role::Sequencer => self.crash_sequencer(self.sequencers.len().wrapping_sub(1)),
            Role::Store => self.crash_store(),
        }
    }

    /// Every write fails from now on, until the store has ended of it and starts again.
    pub fn fail_disk(&mut self) {
        self.note(format_args!("the disk fails writes"));
        self.disk_fails = true;
        self.disk.fail_writes();
    }

    pub fn pause(&mut self, role: Role, us: u64) {
        let until_us = self.network.now_us() + us;
        self.note(format_args!("{role:?} is paused until {until_us}"));
        let paused = match role {
            Role::Edge => self.edge.as_mut().map(|life| &mut life.paused_until_us),
            Role::Sequencer => self.sequencers.last_mut().map(|life| &mut life.paused_until_us),
            Role::Store => self.store.as_mut().map(|life| &mut life.paused_until_us),
        };
        paused.into_iter().for_each(|paused| *paused = until_us);
    }

    fn crash_index(&mut self) {
        let at_risk = self.index.unpersisted_count();
        let kept = self.random.index(at_risk + 1);
        self.index.crash(if self.random.chance(0.5) { at_risk } else { kept });
    }

    fn next_incarnation(&mut self) -> u64 {
        self.random.next_u64() | 1
    }

    fn new_ring(&self) -> SimRing {
        let sizes = RingOptions {
            sockets: (CONNECTION_COUNT_MAX + crate::edge::connections::SPARE_COUNT) as u32,
            buffer_count: 32,
            buffer_size: 4096,
            ..RingOptions::default()
        };
        SimRing::new(&self.network, sizes)
    }
}

impl<P> Life<P> {
    fn new(process: P, ring: RingId) -> Life<P> {
        Life { process, ring, paused_until_us: 0, had_rival: false }
    }

    /// Whether it gets the processor.
    pub fn runs(&self, now_us: u64) -> bool {
        now_us >= self.paused_until_us
    }
}

fn stays_zero(what: &str, count: u64) -> Verdict {
    if count == 0 { Ok(()) } else { Err(format!("{what}: {count}")) }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
