//! Fan-out: a consumer of the commit log with a durable position, off the sender's path.
//!
//! The position never durably passes a message for which a target device lacks a durable
//! acknowledgement or a durable marker. So after any crash the log above the position regenerates
//! every push and every receipt that may have been lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use super::core::Sequencer;
use super::order::{is_direct, members};
use super::receipts::Risen;
use super::requests::Purpose;
use super::stream::Live;
use super::user::Task;
use crate::limits::CHUNK_SIZE_MAX;
use crate::link::message::{PushTarget, Tally, ToEdge, ToStore, Watermark};
use crate::link::record::{ConversationName, Id, Message, Record};
use crate::link::wire::{Reader, Wire};
use crate::link::{Outlet, PeerId};

/// After a start fan-out waits at most this long for the edges to tell their sessions again, so
/// that not every device that is connected gets a marker ...
const RETELL_US: u64 = 10_000_000;
/// ... but only this long for one that is not linked. A living edge is within milliseconds.
const APPEAR_US: u64 = 2_000_000;
/// A live device has this long to acknowledge before a marker is written for it.
const GRACE_US: u64 = 1_000_000;
/// The position enters the log at most this often.
const POSITION_US: u64 = 1_000_000;
/// Targets of one push to an edge: an entry has its bound.
const TARGET_COUNT_MAX: usize = 16_384;
/// Records consumed and users reached in one turn, about: neither a long recovery nor a large group
/// holds up sends.
const WORK_MAX: usize = 4_096;

/// Where a message goes to: it is settled when the device's cursor says so.
struct Target {
    user: Id,
    device: Id,
}

/// A watermark of somebody, told to somebody.
pub struct Told {
    pub convo: ConversationName,
    pub seq: u64,
    pub watermark: Watermark,
    pub by: Id,
    pub tally: Option<Tally>,
}

/// A consumed record that is not settled at every target.
struct Flight {
    lsn: u64,
    since_us: u64,
    /// Users that are not loaded yet.
    users_due: usize,
    /// For a message: its conversation and seq.
    message: Option<(ConversationName, u64)>,
    targets: Vec<Target>,
    /// Markers were asked for where they were missing.
    marked: bool,
}

/// See the module.
#[derive(Default)]
pub struct Fanout {
    /// Durable records that are not consumed yet: first those read from the log after a start.
    recovered: VecDeque<(u64, Record)>,
    fresh: VecDeque<(u64, Record)>,
    /// The next position to read from the log, and the last one that is there from before.
    read_next: u64,
    read_upto: u64,
    /// Edges that have not told their sessions since the start, how long they have to begin with
    /// it, and how long to finish.
    expected: BTreeSet<Id>,
    told: BTreeSet<Id>,
    awaited_until_us: u64,
    paused_until_us: u64,
    /// Edges present, by the log.
    edges: BTreeSet<Id>,
    flights: VecDeque<Flight>,
    consumed: u64,
    /// The last consumed record that is worth logging a position for.
    meaningful: u64,
    logged: u64,
    logged_at_us: u64,
    /// Whom the message that is being fanned out is pushed to, by edge; while `gathers`, for all
    /// of its users together.
    pushes: BTreeMap<PeerId, Vec<PushTarget>>,
    gathers: bool,
    /// Records consumed and users reached in this turn.
    work: usize,
}

impl Fanout {
    /// Starts above the durable position `fanned_out`; the log from before ends at `upto`.
    pub fn recover(&mut self, fanned_out: u64, upto: u64, edges: Vec<Id>, now_us: u64) {
        self.read_next = fanned_out + 1;
        self.read_upto = upto;
        self.consumed = fanned_out;
        self.logged = fanned_out;
        self.expected = edges.iter().filter(|name| !self.told.contains(*name)).cloned().collect();
        self.edges = edges.into_iter().collect();
        self.awaited_until_us = now_us + APPEAR_US;
        self.paused_until_us = now_us + RETELL_US;
    }

    /// A record became durable.
    pub fn push(&mut self, lsn: u64, record: Record) {
        self.fresh.push_back((lsn, record));
    }

    /// An edge has told all its sessions.
    pub fn told(&mut self, name: &Id) {
        self.expected.remove(name);
        self.told.insert(name.clone());
    }

    /// A new session with this edge begins: it has told nothing yet.
    pub fn untold(&mut self, name: &Id) {
        self.told.remove(name);
    }

    /// Whether an edge's coming or going is news to the log.
    pub fn note_edge(&mut self, name: &Id, present: bool) -> bool {
        if present {
            self.edges.insert(name.clone())
        } else {
            self.expected.remove(name);
            self.edges.remove(name)
        }
    }

    /// Everything up to here is settled at every target.
    pub fn position(&self) -> u64 {
        self.flights.front().map_or(self.consumed, |flight| flight.lsn - 1)
    }

    /// Edges that should have come by now.
    fn overdue(&self, now_us: u64) -> Vec<Id> {
        let is_over = now_us >= self.awaited_until_us;
        self.expected.iter().filter(|_| is_over).cloned().collect()
    }

    pub fn is_paused(&self, now_us: u64) -> bool {
        !self.expected.is_empty() && now_us < self.paused_until_us
    }

    fn next(&mut self) -> Option<(u64, Record)> {
        if let Some(record) = self.recovered.pop_front() {
            return Some(record);
        }
        if self.read_next <= self.read_upto { None } else { self.fresh.pop_front() }
    }

    /// There is something to consume in the next turn.
    pub fn has_more(&self, now_us: u64) -> bool {
        let is_read = self.read_next > self.read_upto;
        let waits = !self.recovered.is_empty() || (is_read && !self.fresh.is_empty());
        waits && !self.is_paused(now_us)
    }

    /// The record became durable in this life: whoever sent the message was told so.
    pub fn is_fresh(&self, lsn: u64) -> bool {
        lsn > self.read_upto
    }

    /// The last position that is logged, or on its way into the log.
    pub fn logged(&self) -> u64 {
        self.logged
    }

    /// A message of a group is for this many users.
    pub fn resolve(&mut self, lsn: u64, users_due: usize) {
        if let Some(flight) = self.flight(lsn) {
            flight.users_due = users_due;
        }
    }

    /// One of those whom a record of acknowledgements is about needs no more telling.
    pub fn told_one(&mut self, lsn: u64) {
        if let Some(flight) = self.flight(lsn) {
            flight.users_due -= 1;
        }
    }

    fn flight(&mut self, lsn: u64) -> Option<&mut Flight> {
        let index = self.flights.binary_search_by_key(&lsn, |flight| flight.lsn).ok()?;
        self.flights.get_mut(index)
    }
}

impl Sequencer {
    /// Consumes what is due, writes missing markers, moves the position, and logs it.
    pub(super) fn advance_fanout(&mut self, out: &mut dyn Outlet) {
        self.give_up_absent();
        if !self.fanout.is_paused(self.now.monotonic_us) {
            self.fanout.work = 0;
            while self.fanout.work < WORK_MAX
                && let Some((lsn, record)) = self.fanout.next()
            {
                self.fanout.work += 1;
                self.consume(lsn, record, out);
            }
        }
        self.settle();
        self.log_position();
    }

    /// An edge that is gone, or has another name or fewer shards by now, is not waited for, and not
    /// by the next life either.
    fn give_up_absent(&mut self) {
        for name in self.fanout.overdue(self.now.monotonic_us) {
            if !self.edges.values().any(|edge| edge.name == name) {
                self.note_edge(name, false);
            }
        }
    }

    /// Asks for the next piece of the log from before the start.
    pub(super) fn read_log(&mut self, out: &mut dyn Outlet) {
        if self.fanout.read_next <= self.fanout.read_upto {
            let first_lsn = self.fanout.read_next;
            let ask = ToStore::ReadLog { first_lsn, size_max: CHUNK_SIZE_MAX as u32 };
            self.ask(ask, Purpose::Log, out);
        }
    }

    pub(super) fn log_read(&mut self, records: Bytes, count: u32, out: &mut dyn Outlet) {
        let mut reader = Reader::new(records);
        for _ in 0..count {
            let Ok(record) = Record::read(&mut reader) else {
                break;
            };
            let lsn = self.fanout.read_next;
            // What was appended since the start comes as `fresh`, not from here.
            if lsn <= self.fanout.read_upto {
                self.fanout.recovered.push_back((lsn, record));
                self.fanout.read_next += 1;
            }
        }
        if count == 0 || !reader.is_empty() {
            // The store has a record at every position below its end, and only whole ones. Go on
            // without the rest, and let the counter say what is missing.
            self.counters.unaccounted += self.fanout.read_upto + 1 - self.fanout.read_next;
            self.fanout.read_next = self.fanout.read_upto + 1;
        }
        self.read_log(out);
    }

    /// One message reaches its users. It is handed to each edge once, for all of them that are in
    /// memory.
    pub(super) fn fan_to_users(
        &mut self,
        users: &[Id],
        lsn: u64,
        message: &Rc<Message>,
        out: &mut dyn Outlet,
    ) {
        self.fanout.work += users.len();
        self.fanout.gathers = true;
        for user in users {
            self.with_user(user.clone(), Task::Fan(lsn, message.clone()), out);
        }
        self.fanout.gathers = false;
        self.push_gathered(message, out);
    }

    fn push_gathered(&mut self, message: &Rc<Message>, out: &mut dyn Outlet) {
        for (peer, mut targets) in std::mem::take(&mut self.fanout.pushes) {
            self.counters.delivered_total += targets.len() as u64;
            while !targets.is_empty() {
                let rest = targets.split_off(targets.len().min(TARGET_COUNT_MAX));
                let targets = std::mem::replace(&mut targets, rest);
                self.say(peer, ToEdge::Deliver { message: Message::clone(message), targets }, out);
            }
        }
    }

    /// One message reaches one user: every device is pushed to, caught up, or marked.
    pub(super) fn fan_to_user(
        &mut self,
        user: &Id,
        lsn: u64,
        message: &Rc<Message>,
        out: &mut dyn Outlet,
    ) {
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let devices = entry.targets();
        let dead = entry.dead.get(&message.convo).copied().unwrap_or(0);
        let joined = entry.stay(&message.convo).map_or(0, |stay| stay.joined);
        // He has left and joined again since: who is connected hears it, nobody is behind of it.
        let is_past = message.seq < joined;
        let mut unsettled = 0;
        for device in devices {
            let entry = self.users.get_mut(user).expect("loaded by the caller");
            let owner = entry.devices.get_mut(&device).expect("one of the targets");
            let cursor = owner.cursors.entry(message.convo.clone()).or_default();
            cursor.dead = dead;
            if !is_past {
                cursor.fanned = cursor.fanned.max(message.seq);
            }
            if joined > 0 && !is_past {
                cursor.begin_at(joined);
                owner.session.iter_mut().for_each(|it| it.begin_at(&message.convo, joined));
            }
            let settled = is_past || cursor.settles(message.seq);
            let floor = cursor.floor();
            let live = owner.session.as_mut().map(|session| {
                let live = session.live(&message.convo, message.seq, floor);
                (live, session.peer, session.target())
            });
            if !settled && let Some(flight) = self.fanout.flight(lsn) {
                flight.targets.push(Target { user: user.clone(), device: device.clone() });
                unsettled += 1;
            }
            // A message from before this life may have been answered to nobody: it is pushed again.
            let heard = lsn > self.fanout.read_upto;
            let sent_it = heard && message.from == *user && message.device == device;
            match live {
                None => self.mark(user, &device, &message.convo),
                // The device that sent it hears `sent`.
                Some((Live::Push, ..)) if sent_it => {}
                Some((Live::Push, peer, target)) => {
                    self.fanout.pushes.entry(peer).or_default().push(target);
                }
                Some((Live::Gap { .. }, ..)) if is_past => {}
                Some((Live::Skip, ..)) => {}
                Some((Live::Gap { pushed_upto }, ..)) => {
                    self.catch_up_from(user, &device, message.convo.clone(), pushed_upto, out);
                }
            }
        }
        if let Some(entry) = self.users.get_mut(user) {
            entry.flights += unsettled;
        }
        if let Some(flight) = self.fanout.flight(lsn) {
            flight.users_due -= 1;
        }
        if !self.fanout.gathers {
            self.push_gathered(message, out);
        }
    }

    /// A cursor of this user entered the log: tells the other side what of it is news. Only what
    /// is durable is told, and only as it stands now: a position that lags can repeat a receipt,
    /// never move one back.
    pub(super) fn risen(
        &mut self,
        user: &Id,
        lsn: u64,
        convo: &ConversationName,
        out: &mut dyn Outlet,
    ) {
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let (delivered, read) = entry.durable_watermarks(convo);
        let told = entry.told.entry(convo.clone()).or_default();
        let (old_delivered, old_read) = std::mem::replace(told, (delivered, read));
        if !is_direct(convo) {
            let (user, watermarks) = (user.clone(), [delivered, read]);
            let risen = Risen { lsn, user, watermarks, has_read: read > old_read };
            return self.group_risen(convo, risen, out);
        }
        if let Some(flight) = self.fanout.flight(lsn) {
            flight.users_due -= 1;
        }
        let mut news = Vec::new();
        if delivered > old_delivered {
            news.push((Watermark::Delivered, delivered));
        }
        if read > old_read {
            news.push((Watermark::Read, read));
        }
        for (watermark, seq) in news {
            for member in members(convo) {
                let own = member == *user;
                if own && watermark == Watermark::Delivered {
                    continue;
                }
                let (convo, by) = (convo.clone(), user.clone());
                let task = Task::Tell { convo, seq, watermark, by, tally: None };
                // Who is not loaded has no session, and nobody to tell.
                if self.users.contains_key(&member) || self.registry.contains(&member) {
                    self.with_user(member, task, out);
                }
            }
        }
    }

    /// Every session of this user hears of the watermark.
    pub(super) fn tell(&mut self, user: &Id, news: &Told, out: &mut dyn Outlet) {
        let Told { convo, seq, watermark, by, tally } = news;
        let entry = self.users.get(user).expect("loaded by the caller");
        let reads = |cursor: &super::user::DeviceCursor| cursor.durable_read >= *seq;
        let hears = |device: &super::user::Device| {
            user != by || !device.cursors.get(convo).is_some_and(reads)
        };
        let sessions = entry.devices.values().filter(|device| hears(device));
        let sessions = sessions.filter_map(|device| device.session.as_ref());
        let sessions: Vec<_> = sessions.map(|session| (session.peer, session.target())).collect();
        self.counters.receipts_total += sessions.len() as u64;
        for (peer, target) in sessions {
            let (convo, by, seq) = (convo.clone(), by.clone(), *seq);
            let (watermark, tally) = (*watermark, *tally);
            self.say(peer, ToEdge::Receipt { target, convo, seq, watermark, by, tally }, out);
        }
    }

    fn consume(&mut self, lsn: u64, record: Record, out: &mut dyn Outlet) {
        self.fanout.consumed = lsn;
        match record {
            Record::Message { message }
            | Record::Group { message, .. }
            | Record::Channel { message, .. } => {
                self.fanout.meaningful = lsn;
                let place = Some((message.convo.clone(), message.seq));
                let message = Rc::new(message);
                if !is_direct(&message.convo) {
                    self.depart(lsn, 1, place);
                    return self.fan_to_group(lsn, message, out);
                }
                let members = members(&message.convo);
                self.depart(lsn, members.len(), place);
                self.fan_to_users(&members, lsn, &message, out);
            }
            Record::Cursors { cursors } => {
                self.fanout.meaningful = lsn;
                self.depart(lsn, cursors.len(), None);
                for cursor in cursors {
                    self.with_user(cursor.user, Task::Risen(lsn, cursor.convo), out);
                }
            }
            Record::Device { .. } | Record::FannedOut { .. } | Record::Subscription { .. } => {}
            Record::Revoked { .. } | Record::Seen { .. } | Record::Privacy { .. } => {}
            Record::Dead { user, convo, letters, .. } => {
                self.fanout.meaningful = lsn;
                self.consume_dead(lsn, &user, &convo, letters, out);
            }
            Record::Replayed { .. } | Record::Told { .. } | Record::Forgotten { .. } => {}
            Record::ServiceTime { .. } => {}
            Record::Edge { .. } | Record::Epoch { .. } | Record::Lost { .. } => {}
        }
    }

    pub(super) fn depart(
        &mut self,
        lsn: u64,
        users_due: usize,
        message: Option<(ConversationName, u64)>,
    ) {
        let since_us = self.now.monotonic_us;
        let targets = Vec::new();
        let flight = Flight { lsn, since_us, users_due, message, targets, marked: false };
        self.fanout.flights.push_back(flight);
    }

    /// Drops settled flights off the front, and marks what was not acknowledged within the grace.
    fn settle(&mut self) {
        while let Some(mut flight) = self.fanout.flights.pop_front() {
            self.settle_targets(&mut flight);
            if flight.users_due > 0 || !flight.targets.is_empty() {
                self.fanout.flights.push_front(flight);
                break;
            }
        }
        let late = self.now.monotonic_us.saturating_sub(GRACE_US);
        let mut marks = Vec::new();
        // Marked ones are a prefix: flights stand in order of time.
        let unmarked = self.fanout.flights.partition_point(|flight| flight.marked);
        for flight in self.fanout.flights.range_mut(unmarked..) {
            if flight.since_us > late || flight.users_due > 0 {
                break;
            }
            flight.marked = true;
            if let Some((convo, _)) = &flight.message {
                let targets = flight.targets.iter();
                marks.extend(targets.map(|t| (t.user.clone(), t.device.clone(), convo.clone())));
            }
        }
        marks.iter().for_each(|(user, device, convo)| self.mark(user, device, convo));
    }

    /// Drops the settled targets off the end. What is settled stays so: a marker is removed only
    /// by an acknowledgement that covers it, in the same record. So each is looked at until then,
    /// and not again, however large the group.
    fn settle_targets(&mut self, flight: &mut Flight) {
        while let Some(target) = flight.targets.last()
            && self.is_settled(flight, target)
        {
            let settled = flight.targets.pop().expect("looked at it");
            if let Some(user) = self.users.get_mut(&settled.user) {
                user.flights -= 1;
            }
        }
    }

    fn is_settled(&self, flight: &Flight, target: &Target) -> bool {
        let Some((convo, seq)) = &flight.message else {
            return true;
        };
        #[cfg(test)]
        if crate::simulation::planted::Planted::PassUnacknowledged.is_planted() {
            return true;
        }
        let device = self.users.get(&target.user).and_then(|u| u.devices.get(&target.device));
        let Some(device) = device else { return true };
        // The pseudo-device's marker was inherited by the first real device.
        device.cursors.get(convo).is_some_and(|cursor| cursor.settles(*seq))
    }

    fn log_position(&mut self) {
        let position = self.fanout.position().min(self.fanout.meaningful);
        let due = self.now.monotonic_us >= self.fanout.logged_at_us + POSITION_US;
        if position > self.fanout.logged && due {
            self.fanout.logged = position;
            self.fanout.logged_at_us = self.now.monotonic_us;
            self.appender().append(Record::FannedOut { lsn: position }, Vec::new());
        }
    }
}
