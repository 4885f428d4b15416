//! One run on a seed: chance drives the world, then everything heals and must come to rest.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::kernel::{FaultRates, SimOptions};
use super::random::Random;
use super::world::device::{Device, Leaving};
use super::world::ledger::Verdict;
use super::world::trace::Trace;
use super::world::{Role, World, WorldOptions};
use crate::link::message::Watermark;
use crate::sequencer::budget::Budget;
use crate::sequencer::dead_letters::AGE_MS_DEFAULT;
use crate::store::audit::audit;
use crate::store::device::LogDevice;

/// Messages of one device that are unanswered at a time.
const UNANSWERED_COUNT_MAX: usize = 4;
/// Virtual microseconds in which everything must have come to rest after the last fault.
const REST_US: u64 = 120_000_000;
/// A process that died is started again within this.
const RESTART_US_MAX: u64 = 1_000_000;
const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const GROUPS: [&str; 2] = ["crew", "team"];
const CHANNEL: &str = "news";
const DEVICES: [&str; 2] = ["phone", "laptop"];

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Steps under faults, before the world heals.
    pub steps: u64,
    /// Events that a failure shows, the last ones.
    pub event_count_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { steps: 6_000, event_count_max: 120 }
    }
}

/// What a good run was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Equal for two runs that went the same way.
    pub trace_hash: u64,
    pub steps: u64,
    pub virtual_us: u64,
    pub crashes: u64,
    pub epochs: u64,
    /// Durable records in the log at the end.
    pub records: u64,
    pub promises: usize,
    pub dead_letters: u64,
    pub messages_heard: u64,
    pub receipts_heard: u64,
}

impl Report {
    /// Both runs together.
    pub fn plus(&self, other: &Report) -> Report {
        Report {
            trace_hash: self.trace_hash ^ other.trace_hash,
            steps: self.steps + other.steps,
            virtual_us: self.virtual_us + other.virtual_us,
            crashes: self.crashes + other.crashes,
            epochs: self.epochs + other.epochs,
            records: self.records + other.records,
            promises: self.promises + other.promises,
            dead_letters: self.dead_letters + other.dead_letters,
            messages_heard: self.messages_heard + other.messages_heard,
            receipts_heard: self.receipts_heard + other.receipts_heard,
        }
    }
}

/// A broken promise, and how it came to it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub step: u64,
    pub what: String,
    /// The last events, oldest first.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trace.iter().try_for_each(|event| writeln!(formatter, "{event}"))?;
        write!(
            formatter,
            "seed {} fails at step {}: {}\n(replay: ALDIS_SEED={} cargo test --lib simulation)",
            self.seed, self.step, self.what, self.seed
        )
    }
}

/// Runs the whole system on a seed. A panic of the product is a failure like any other.
pub fn run(seed: u64, options: &Options) -> Result<Report, Failure> {
    let trace = Trace::new(options.event_count_max);
    let ran = catch_unwind(AssertUnwindSafe(|| Chaos::new(seed, trace.clone()).run(options)));
    let what = match ran {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            format!("panic: {}", text.unwrap_or_default())
        }
    };
    Err(Failure { seed, step: trace.steps(), what, trace: trace.last() })
}

struct Chaos {
    world: World,
    random: Random,
    /// Of faults per step.
    fault_rate: f64,
    body_size_max: usize,
    /// When a role without a process is to have one again.
    restarts_us: [Option<u64>; 3],
    space_until_us: u64,
    crashes: u64,
}

const ROLES: [Role; 3] = [Role::Edge, Role::Sequencer, Role::Store];

impl Chaos {
    fn new(seed: u64, trace: Trace) -> Chaos {
        let mut random = Random::new(seed);
        let large = random.chance(0.1);
        let options = WorldOptions {
            network: SimOptions {
                socket_buffer_size: if large { 16 * 1024 } else { 64 * 1024 },
                faults: network_faults(&mut random),
                ..SimOptions::default()
            },
            segment_size: if large { 4 * 1024 * 1024 } else { 128 * 1024 },
            // A user has at most seven conversations, and one `sync` may name them all.
            budget: match random.chance(0.3) {
                true => Budget { conversations_max: 8, users_max: 1, ..Budget::default() },
                false => Budget::default(),
            },
            dead_after_ms: [AGE_MS_DEFAULT, 1_500, 5_000][random.index(3)],
        };
        let mut world = World::new(random.next_u64(), options, trace);
        for user in &USERS[..2 + random.index(3)] {
            for device in &DEVICES[..1 + random.index(2)] {
                world.add_device(user, device);
            }
        }
        Chaos {
            world,
            fault_rate: [0.0, 0.002, 0.005, 0.015][random.index(4)],
            body_size_max: if large { 60_000 } else { 300 },
            random,
            restarts_us: [None; 3],
            space_until_us: 0,
            crashes: 0,
        }
    }

    fn run(mut self, options: &Options) -> Result<Report, String> {
        self.world.start_all()?;
        for _ in 0..options.steps {
            self.world.trace.step();
            self.step()?;
        }
        // In the middle of everything; once more when all is quiet.
        self.audit_store()?;
        self.heal()?;
        self.come_to_rest()?;
        self.last_words()?;
        let promises = self.audit()?;
        Ok(Report {
            trace_hash: self.world.trace.hash(),
            steps: self.world.trace.steps(),
            virtual_us: self.world.network.now_us(),
            crashes: self.crashes,
            epochs: self.world.ledger.epoch(),
            records: self.world.ledger.end(),
            promises,
            dead_letters: self.world.ledger.deaths.letter_count,
            messages_heard: self.world.witness.message_count,
            receipts_heard: self.world.witness.receipt_count,
        })
    }

    fn step(&mut self) -> Verdict {
        self.restart_due()?;
        match self.random.below(100) {
            0..40 => self.turn_process()?,
            40..60 => self.world.step_disk()?,
            60..80 => self.device_acts()?,
            _ => self.time_passes(),
        }
        if self.random.chance(self.fault_rate) {
            self.strike();
        }
        Ok(())
    }

    fn turn_process(&mut self) -> Verdict {
        let count = self.world.sequencers.len();
        let mut due = Vec::new();
        let rings = [self.world.edge.as_ref().map(|life| life.ring)];
        let rings = rings.into_iter().chain([self.world.store.as_ref().map(|life| life.ring)]);
        let all = rings.chain(self.world.sequencers.iter().map(|life| Some(life.ring)));
        for (place, ring) in all.enumerate() {
            if ring.is_some_and(|ring| self.world.network.is_due(ring)) {
                due.push(place);
            }
        }
        let place = match due.len() {
            0 => self.random.index(2 + count),
            _ if self.random.chance(0.2) => self.random.index(2 + count),
            found => due[self.random.index(found)],
        };
        match place {
            0 => self.world.turn_edge(),
            1 => self.world.turn_store(),
            _ => self.world.turn_sequencer(place - 2),
        }
    }

    fn time_passes(&mut self) {
        let now_us = self.world.network.now_us();
        let next_us = self.world.network.next_event_us().filter(|_| self.random.chance(0.7));
        let jump_us = match self.random.below(100) {
            0..60 => 1 + self.random.below(200),
            60..97 => 1 + self.random.below(10_000),
            _ => 1 + self.random.below(800_000),
        };
        let to_us = next_us.map_or(now_us + jump_us, |next_us| next_us.min(now_us + jump_us));
        self.world.advance_to(to_us);
        if now_us > self.space_until_us {
            self.world.disk.set_space(u64::MAX);
        }
    }

    fn device_acts(&mut self) -> Verdict {
        let index = self.random.index(self.world.devices.len());
        let random = &mut self.random;
        let body_size_max = self.body_size_max;
        let partners: Vec<String> =
            self.world.devices.iter().map(|device| device.user.clone()).collect();
        self.world.with_device(index, |device, around| {
            device.turn(around)?;
            let Some(connection) = &device.connection else {
                if random.chance(0.3) {
                    device.connect(random.chance(0.15), around);
                }
                return Ok(());
            };
            let asks = connection.manual && !connection.is_synced && random.chance(0.1);
            device.say_due(around);
            match random.below(100) {
                _ if asks => device.sync(random.chance(0.5).then_some(0), around),
                0..30 if device.unanswered_count() < UNANSWERED_COUNT_MAX => {
                    let to = partners[random.index(partners.len())].clone();
                    device.send(&to, random.index(body_size_max), around);
                }
                30..55 => {
                    let read = random.chance(0.3);
                    let kind = if read { Watermark::Read } else { Watermark::Delivered };
                    device.acknowledge(kind, around);
                }
                55..60 => device.ping(),
                60 => device.sync(None, around),
                61 => device.sync(Some(random.below(4)), around),
                62 | 63 => device.leave(any_leaving(random), around),
                64 => device.stop_reading(around.network.now_us() + random.below(3_000_000)),
                65 => device.forget_abandoned(),
                66..69 => ask_group(device, &partners, random),
                79 if random.chance(0.5) => device.revoke(DEVICES[random.index(2)]),
                69..79 if device.unanswered_count() < UNANSWERED_COUNT_MAX => {
                    device.post(any_group(random), random.index(body_size_max), around);
                }
                79..83 => ask_channel(device, &partners, random),
                83..88 if device.unanswered_count() < UNANSWERED_COUNT_MAX => {
                    device.post(CHANNEL, random.index(body_size_max), around);
                }
                _ => {}
            }
            device.turn(around)
        })
    }

    fn strike(&mut self) {
        let role = ROLES[self.random.index(3)];
        let other = ROLES[self.random.index(3)];
        match self.random.below(20) {
            0..7 => self.kill(&[role]),
            7..9 => self.kill(&[role, other]),
            9 => self.kill(&ROLES),
            10..12 => {
                self.world.cut_power();
                self.kill(&ROLES);
            }
            12..14 => {
                let pause_us = 1_000 << self.random.below(15);
                self.world.pause(role, self.random.below(pause_us));
            }
            14..16 => self.take_over(),
            16 => self.cut_link(),
            17 => self.world.clock_skew_ms = self.random.below(20_000_000) as i64 - 10_000_000,
            18 => {
                let faults = network_faults(&mut self.random);
                self.world.network.set_faults(faults);
            }
            _ if self.random.chance(0.3) => self.world.fail_disk(),
            _ => {
                let space = self.world.disk.used() + self.random.below(200_000);
                self.world.disk.set_space(space);
                self.space_until_us = self.world.network.now_us() + 3_000_000;
            }
        }
    }

    fn kill(&mut self, roles: &[Role]) {
        for role in roles {
            self.crashes += 1;
            self.world.crash(*role);
        }
    }

    /// The sequencer is taken for dead, wakes up, and finds a successor.
    fn take_over(&mut self) {
        if self.world.sequencers.len() == 1 {
            let pause_us = 1_000 << self.random.below(15);
            self.world.pause(Role::Sequencer, pause_us);
            self.world.start_sequencer();
        }
    }

    fn cut_link(&mut self) {
        let Some(sequencer) = self.world.sequencers.last() else { return };
        let edge = self.world.edge.as_ref().map(|life| life.ring);
        let store = self.world.store.as_ref().map(|life| life.ring);
        let other = if self.random.chance(0.5) { edge } else { store };
        if let Some(other) = other {
            self.world.network.cut(sequencer.ring, other);
            self.world.network.cut(other, sequencer.ring);
        }
    }

    /// What died is started again, after a while.
    fn restart_due(&mut self) -> Verdict {
        let now_us = self.world.network.now_us();
        for (index, role) in ROLES.into_iter().enumerate() {
            let is_gone = match role {
                Role::Edge => self.world.edge.is_none(),
                Role::Sequencer => self.world.sequencers.is_empty(),
                Role::Store => self.world.store.is_none(),
            };
            match self.restarts_us[index] {
                _ if !is_gone => self.restarts_us[index] = None,
                Some(due_us) if now_us >= due_us => match role {
                    Role::Edge => self.world.start_edge(),
                    Role::Sequencer => self.world.start_sequencer(),
                    Role::Store => self.world.start_store()?,
                },
                Some(_) => {}
                None => {
                    let later_us = self.random.below(RESTART_US_MAX);
                    self.restarts_us[index] = Some(now_us + later_us);
                }
            }
        }
        Ok(())
    }

    /// No more faults; whoever sleeps wakes up.
    fn heal(&mut self) -> Verdict {
        self.world.note(format_args!("everything heals"));
        self.world.network.set_faults(FaultRates::default());
        self.world.disk.set_space(u64::MAX);
        let world = &mut self.world;
        world.edge.iter_mut().for_each(|life| life.paused_until_us = 0);
        world.store.iter_mut().for_each(|life| life.paused_until_us = 0);
        world.sequencers.iter_mut().for_each(|life| life.paused_until_us = 0);
        for device in &mut world.devices {
            device.forget_abandoned();
            device.stop_reading(0);
        }
        Ok(())
    }

    /// Every device is connected and has everything, nobody waits for an answer, and the fan-out
    /// position is at the last message.
    fn come_to_rest(&mut self) -> Verdict {
        let end_us = self.world.network.now_us() + REST_US;
        while let Some(restless) = self.restless() {
            if self.world.network.now_us() > end_us {
                return Err(format!("it does not come to rest: {restless}"));
            }
            self.world.start_all()?;
            self.world.pass(20_000)?;
            for index in 0..self.world.devices.len() {
                self.world.with_device(index, calm_down)?;
            }
        }
        Ok(())
    }

    fn restless(&self) -> Option<String> {
        let ledger = &self.world.ledger;
        for device in &self.world.devices {
            let name = device.name();
            if device.unanswered_count() > 0 {
                return Some(format!("{name} waits for {} answers", device.unanswered_count()));
            }
            if !device.is_synced() {
                return Some(format!("{name} is not synced"));
            }
            if device.is_revoked(ledger) {
                return Some(format!("{name} was revoked and is not cut"));
            }
            if let Some((convo, seq)) = device.untold(ledger) {
                return Some(format!("{name} was not told that {seq} of {convo} failed"));
            }
            if let Some((convo, watermark, head)) = device.missing(ledger) {
                return Some(format!("{name} has {watermark} of {head} in {convo}"));
            }
        }
        let (position, last) = (ledger.fanned_out(), ledger.last_message_lsn());
        (position < last).then(|| format!("the fan-out is at {position}, the last is {last}"))
    }

    /// One more message in every conversation: all hear of it, and of each other's receipts.
    fn last_words(&mut self) -> Verdict {
        let users: Vec<String> = self.world.devices.iter().map(|it| it.user.clone()).collect();
        for index in 0..users.len() {
            self.world.with_device(index, |device, around| {
                users.iter().for_each(|to| device.send(to, 10, around));
                let ledger = around.ledger;
                let member = |convo: &&&str| ledger.is_member(&device.user, convo);
                let groups: Vec<&&str> = GROUPS.iter().filter(member).collect();
                groups.into_iter().for_each(|convo| device.post(convo, 10, around));
                if ledger.channels.writers(CHANNEL).contains(&&*device.user) {
                    device.post(CHANNEL, 10, around);
                }
                Ok(())
            })?;
        }
        self.come_to_rest()?;
        let heard = |world: &mut World| world.devices.iter().all(|it| heard_receipts(it, world));
        self.world.pass_until("all have heard all receipts", 10_000_000, |world| heard(world))
    }

    /// A new device reads everything from the beginning, and finds what was promised.
    fn audit(&mut self) -> Result<usize, String> {
        let mut users: Vec<String> = self.world.devices.iter().map(|it| it.user.clone()).collect();
        users.dedup();
        for user in users {
            let index = self.world.add_device(&user, "auditor");
            let convos = self.world.ledger.conversations_of(&user);
            let convos: Vec<String> = convos.iter().map(ToString::to_string).collect();
            self.world.with_device(index, |device, around| {
                device.connect(true, around);
                Ok(())
            })?;
            self.world.pass_until("the auditor is welcome", 20_000_000, |world| {
                world.devices[index].connection.as_ref().is_some_and(|it| it.is_welcome)
            })?;
            self.world.devices[index].sync_whole(&convos);
            self.world.pass_until("the auditor is synced", 20_000_000, |world| {
                world.devices[index].is_synced()
            })?;
            for convo in &convos {
                let (seen, head) =
                    (self.world.devices[index].seen(convo), self.world.ledger.head(convo));
                let ledger = &self.world.ledger;
                // Who may read a channel may read all of it.
                let is_channel = ledger.channels.is_one(convo);
                let first = if is_channel { 1 } else { ledger.range(&user, convo).0 };
                if seen != (first..=head).collect::<Vec<u64>>() {
                    return Err(format!("the auditor reads {seen:?} of {convo}, head {head}"));
                }
            }
        }
        self.audit_store()?;
        self.world.witness.audit(&self.world.ledger)
    }

    /// What `aldis audit` would say of the store, as it runs.
    fn audit_store(&mut self) -> Verdict {
        let (mut disk, index) = (self.world.disk.clone(), self.world.index.clone());
        let segments = disk.segments().map_err(|fault| fault.to_string())?;
        let report = audit(&mut disk, &segments, &index, true, &mut |_| {})
            .map_err(|fault| fault.to_string())?;
        if report.is_balanced() { Ok(()) } else { Err(format!("the audit finds {report:#?}")) }
    }
}

/// Whether everybody in a conversation is known to have what everybody else has.
fn heard_receipts(device: &Device, world: &World) -> bool {
    let ledger = &world.ledger;
    ledger.conversations_of(&device.user).iter().all(|convo| {
        if ledger.channels.is_one(convo) {
            return true;
        }
        if !convo.starts_with("dm:") {
            let last = ledger.last_of(convo, &device.user);
            let of = ledger.members(convo).len() as u64 - 1;
            return last == 0 || device.tally(convo, Watermark::Delivered, last) == of;
        }
        let others = ledger.members(convo).into_iter().filter(|member| *member != device.user);
        others.into_iter().all(|other| {
            let durable = ledger.watermark(other, convo, Watermark::Delivered);
            device.receipt(convo, Watermark::Delivered, other) == durable
        })
    })
}

fn calm_down(device: &mut Device, around: &mut super::world::device::Around) -> Verdict {
    match &device.connection {
        None => device.connect(false, around),
        Some(connection) if connection.is_welcome && !connection.is_synced => {
            if connection.manual && !connection.has_asked() {
                device.sync(None, around);
            }
        }
        Some(_) => device.acknowledge(Watermark::Delivered, around),
    }
    Ok(())
}

fn any_group(random: &mut Random) -> &'static str {
    GROUPS[random.index(GROUPS.len())]
}

/// Something is asked of a channel, be it allowed or not; now and then of a group.
fn ask_channel(device: &mut Device, partners: &[String], random: &mut Random) {
    let convo = if random.chance(0.05) { any_group(random) } else { CHANNEL };
    match random.below(100) {
        0..20 => device.ask_channel("create", convo),
        20..60 => device.ask_channel("subscribe", convo),
        60..80 => device.ask_channel("unsubscribe", convo),
        80..95 => {
            let other = &*partners[random.index(partners.len())];
            device.ask_group("role", convo, &[other], random.chance(0.7));
        }
        _ => device.ask_group("info", convo, &[], false),
    }
}

/// Something is asked of a group, be it allowed or not.
fn ask_group(device: &mut Device, partners: &[String], random: &mut Random) {
    let convo = any_group(random);
    let mut members: Vec<&str> = partners.iter().map(String::as_str).collect();
    members.retain(|_| random.chance(0.5));
    let op = match random.below(100) {
        0..25 => "create",
        25..60 => "add",
        60..80 => "remove",
        80..85 => "role",
        85..90 => "leave",
        _ => "info",
    };
    device.ask_group(op, convo, &members, random.chance(0.7));
}

fn any_leaving(random: &mut Random) -> Leaving {
    [Leaving::Orderly, Leaving::Reset, Leaving::Silent][random.index(3)]
}

fn network_faults(random: &mut Random) -> FaultRates {
    match random.below(3) {
        0 => FaultRates::default(),
        1 => FaultRates { reset: 0.0, silent_crash: 0.0, refuse: 0.0, ..FaultRates::rough() },
        _ => FaultRates::rough(),
    }
}
