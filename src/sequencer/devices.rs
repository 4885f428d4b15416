//! A user's devices: which there are, when each was last there, and how one is revoked.
//!
//! A revocation is a record. From its decision on nothing more of the device enters the log; from
//! its durability on its session is cut and its tickets are void. How far the device had come stays
//! with the user, as cursors of his pseudo-device that stand before the record: a watermark of a
//! user never falls. A later device of the same name is a new one, and a session of the old one is
//! told apart by its number.
//!
//! When a device was last there is exact as long as this process knows it, and durable to the hour:
//! a device that leaves is noted, unless it was within the last hour. One that comes is not.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use hashbrown::HashMap;

use super::appender::Waiter;
use super::core::{Sequencer, WAITING_SIZE_MAX};
use super::requests::Purpose;
use super::user::{Device, User};
use crate::limits::{REVOCATION_COUNT_MAX, TICKET_LIFETIME_MS};
use crate::link::message::{Code, PushTarget, SessionNumber, ToEdge, ToStore};
use crate::link::record::{Id, NO_DEVICE, Record, Revocation, Sighting};
use crate::link::{Outlet, PeerId};

/// A device that leaves is noted if what the log says is older than this.
const SEEN_MS: u64 = 3_600_000;
/// Notes gather for so long: who has come back meanwhile is not noted.
const SEEN_GATHER_US: u64 = 5_000_000;
/// Between two records of them.
const SEEN_PAUSE_US: u64 = 50_000;
/// Notes in one record.
const SEEN_COUNT_MAX: usize = 1_024;
/// Of devices that are in memory no more, so many are remembered exactly.
const EXACT_COUNT_MAX: usize = 65_536;
/// Devices told in one answer, those that were there last: a frame holds them with the longest
/// names.
const DEVICES_TOLD_MAX: usize = 2_048;
/// Revocations in one entry to an edge.
const TOLD_COUNT_MAX: usize = 8_192;

/// What is kept of devices beside their users.
#[derive(Default)]
pub(super) struct Devices {
    /// Sessions to be cut once the record at this position is durable.
    leaving: BTreeMap<u64, Vec<(PeerId, PushTarget)>>,
    /// Revoked while a ticket may live, oldest first, the latest ones.
    revoked: VecDeque<Revocation>,
    pub seen: Seen,
}

/// When devices were last there that are in memory no more, or that the log does not know of yet.
#[derive(Default)]
pub(super) struct Seen {
    /// To be logged.
    due: BTreeMap<(Id, Id), u64>,
    due_us: u64,
    exact: HashMap<(Id, Id), u64>,
    order: VecDeque<(Id, Id)>,
}

impl Seen {
    /// Remembers it until the device is in memory again, or until many others have followed.
    pub fn remember(&mut self, user: &Id, device: &Id, seen_ms: u64) {
        let key = (user.clone(), device.clone());
        if self.exact.insert(key.clone(), seen_ms).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > EXACT_COUNT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.exact.remove(&oldest);
        }
    }

    /// What is remembered.
    fn recall(&self, user: &Id, device: &Id) -> u64 {
        self.exact.get(&(user.clone(), device.clone())).copied().unwrap_or(0)
    }

    /// It is to be logged.
    pub fn note(&mut self, user: &Id, device: &Id, seen_ms: u64, now_us: u64) {
        if self.due.is_empty() {
            self.due_us = now_us + SEEN_GATHER_US;
        }
        self.due.insert((user.clone(), device.clone()), seen_ms);
    }

    /// It is back, or gone for good. Whether it was about to be logged.
    pub fn forget(&mut self, user: &Id, device: &Id) -> bool {
        !self.due.is_empty() && self.due.remove(&(user.clone(), device.clone())).is_some()
    }

    /// When something is to be logged.
    pub fn first_us(&self) -> Option<u64> {
        (!self.due.is_empty()).then_some(self.due_us)
    }
}

impl Device {
    /// It has left: whether the log is to say so.
    pub fn left(&mut self, seen_ms: u64) -> bool {
        self.seen_ms = self.seen_ms.max(seen_ms);
        let is_due = self.seen_ms >= self.logged_seen_ms + SEEN_MS;
        if is_due {
            self.logged_seen_ms = self.seen_ms;
        }
        is_due
    }
}

impl User {
    /// The last session's number of the devices that were revoked under this name; those up to it
    /// are over.
    fn revoked_upto(&self, device: &Id) -> Option<SessionNumber> {
        let Revocation { epoch, counter, .. } = *self.revoked.get(device)?;
        Some(SessionNumber { epoch, counter })
    }

    /// Whether a session of this number belongs to a device that was revoked.
    pub fn is_revoked(&self, device: &Id, number: SessionNumber) -> bool {
        self.revoked_upto(device).is_some_and(|upto| number <= upto)
    }

    /// When the user was last there; 0: never.
    pub fn seen_ms(&self) -> u64 {
        let devices = self.devices.values().map(|device| device.seen_ms);
        devices.chain(self.revoked.values().map(|gone| gone.last_seen)).max().unwrap_or(0)
    }
}

impl Sequencer {
    /// A client asks for the devices of its user.
    pub(super) fn tell_devices(&mut self, user: &Id, waiter: Waiter, out: &mut dyn Outlet) {
        let now_ms = self.now.unix_ms;
        let entry = self.users.get(user).expect("loaded by the caller");
        let real = entry.devices.iter().filter(|(id, _)| !id.is_empty());
        let mut devices: Vec<(Id, u64)> = real
            .map(|(id, device)| {
                let there = device.session.as_ref().is_some_and(|session| !session.is_silent);
                (id.clone(), if there { now_ms } else { device.seen_ms })
            })
            .collect();
        if devices.len() > DEVICES_TOLD_MAX {
            devices.sort_by_key(|(_, seen_ms)| std::cmp::Reverse(*seen_ms));
            devices.truncate(DEVICES_TOLD_MAX);
            devices.sort();
        }
        self.answer(waiter, ToEdge::Devices { to: waiter.number, devices }, out);
    }

    /// A client revokes a device of its user.
    pub(super) fn revoke(&mut self, user: &Id, waiter: Waiter, device: Id, out: &mut dyn Outlet) {
        let behind =
            self.appender.as_ref().is_some_and(|log| log.waiting_size() > WAITING_SIZE_MAX);
        if behind || self.refuses_sends {
            return self.refuse(waiter, Code::Unavailable, "the store has no room", out);
        }
        let entry = self.users.get(user).expect("loaded by the caller");
        let known = entry.devices.get(&device);
        if !known.is_some_and(|device| device.known || device.logged_at.is_some()) {
            return self.refuse(waiter, Code::BadRequest, "there is no such device", out);
        }
        self.abandon(user, &device, out);
        self.stop_listening_all(user, &device);
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let gone = entry.devices.remove(&device).expect("looked at it");
        let left = entry.inherit(&gone);
        let rows = left.into_iter().map(|(convo, cursor)| cursor.row(user, NO_DEVICE, &convo));
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            self.append_cursors(rows, Vec::new());
        }
        self.devices.seen.forget(user, &device);
        let (epoch, counter) = (self.appender().epoch, self.sessions_counter);
        let ts = self.now.unix_ms;
        let last_seen = if gone.session.is_some() { ts } else { gone.seen_ms };
        let revocation = Revocation { user: user.clone(), device, epoch, counter, ts, last_seen };
        let record = Record::Revoked { revocation: revocation.clone() };
        let lsn = self.appender().append(record, vec![waiter]);
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        entry.revoking.insert(revocation.device.clone(), lsn);
        entry.revoked.insert(revocation.device.clone(), revocation);
        if let Some(session) = gone.session {
            self.release(session.peer, session.address, user);
            self.leaves(lsn, session.peer, session.target());
        }
    }

    /// A session is to be cut once the record at `lsn` is durable.
    pub(super) fn leaves(&mut self, lsn: u64, peer: PeerId, target: PushTarget) {
        self.devices.leaving.entry(lsn).or_default().push((peer, target));
    }

    /// A revocation is durable. Whoever asked for it hears so before the device is cut: it may be
    /// his own.
    pub(super) fn revoked_durable(
        &mut self,
        lsn: u64,
        revocation: &Revocation,
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        self.counters.devices_revoked_total += 1;
        if let Some(user) = self.users.get_mut(&revocation.user) {
            user.revoking.retain(|_, pending| *pending != lsn);
        }
        self.remember_revoked(vec![revocation.clone()], out);
        let user = &revocation.user;
        if self.users.contains_key(user) {
            waiters.iter().for_each(|waiter| self.tell_devices(user, *waiter, out));
        }
        let leaving = self.devices.leaving.remove(&lsn).unwrap_or_default();
        if !leaving.is_empty() {
            self.presence_left(user, revocation.ts, 0);
        }
        for (peer, target) in leaving {
            self.say(peer, ToEdge::Cut { target }, out);
        }
    }

    /// Edges are to know: tickets of these devices are void.
    pub(super) fn remember_revoked(&mut self, news: Vec<Revocation>, out: &mut dyn Outlet) {
        let edges: Vec<PeerId> = self.edges.keys().copied().collect();
        for edge in edges {
            self.tell_revoked(edge, news.iter(), out);
        }
        self.devices.revoked.extend(news);
        let since_ms = self.now.unix_ms.saturating_sub(TICKET_LIFETIME_MS);
        while self.devices.revoked.len() > REVOCATION_COUNT_MAX
            || self.devices.revoked.front().is_some_and(|oldest| oldest.ts < since_ms)
        {
            self.devices.revoked.pop_front();
        }
    }

    /// A session with an edge begins: it is told of everything.
    pub(super) fn tell_all_revoked(&mut self, edge: PeerId, out: &mut dyn Outlet) {
        let revoked = std::mem::take(&mut self.devices.revoked);
        self.tell_revoked(edge, revoked.iter(), out);
        self.devices.revoked = revoked;
    }

    fn tell_revoked<'a>(
        &mut self,
        edge: PeerId,
        revoked: impl Iterator<Item = &'a Revocation>,
        out: &mut dyn Outlet,
    ) {
        let mut revocations = Vec::new();
        for revocation in revoked {
            revocations.push(revocation.clone());
            if revocations.len() == TOLD_COUNT_MAX {
                let revocations = std::mem::take(&mut revocations);
                self.say(edge, ToEdge::Revoked { revocations }, out);
            }
        }
        if !revocations.is_empty() {
            self.say(edge, ToEdge::Revoked { revocations }, out);
        }
    }

    /// After an epoch was granted: which tickets are void?
    pub(super) fn ask_revoked(&mut self, after: Bytes, out: &mut dyn Outlet) {
        let since_ms = self.now.unix_ms.saturating_sub(TICKET_LIFETIME_MS);
        self.ask(ToStore::LoadRevoked { since_ms, after }, Purpose::Revoked, out);
    }

    pub(super) fn revoked_loaded(
        &mut self,
        rows: Vec<Revocation>,
        next: Bytes,
        out: &mut dyn Outlet,
    ) {
        self.remember_revoked(rows, out);
        if !next.is_empty() {
            self.ask_revoked(next, out);
        }
    }

    /// A user has come into memory: what is known of his devices beyond the log.
    pub(super) fn recall_seen(&mut self, user: &Id) {
        let Some(entry) = self.users.get_mut(user) else { return };
        for (id, device) in &mut entry.devices {
            device.seen_ms = device.seen_ms.max(self.devices.seen.recall(user, id));
        }
    }

    /// A device has left, whose user is in memory.
    pub(super) fn note_left(&mut self, user: &Id, device: &Id, seen_ms: u64) {
        let entry = self.users.get_mut(user).and_then(|user| user.devices.get_mut(device));
        if entry.is_some_and(|entry| entry.left(seen_ms)) {
            self.devices.seen.note(user, device, seen_ms, self.now.monotonic_us);
        }
    }

    /// Logs who has left.
    pub(super) fn flush_seen(&mut self) {
        let now_us = self.now.monotonic_us;
        if self.devices.seen.first_us().is_none_or(|due_us| due_us > now_us) {
            return;
        }
        self.devices.seen.due_us = now_us + SEEN_PAUSE_US;
        if self.refuses_sends {
            return;
        }
        let mut devices = Vec::new();
        while devices.len() < SEEN_COUNT_MAX
            && let Some(((user, device), ts)) = self.devices.seen.due.pop_first()
        {
            devices.push(Sighting { user, device, ts });
        }
        self.counters.devices_seen_total += devices.len() as u64;
        self.appender().append(Record::Seen { devices }, Vec::new());
    }
}
