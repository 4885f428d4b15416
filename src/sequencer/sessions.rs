//! The session registry: numbered sessions, one per device, the greater number wins.
//!
//! A session lives in its user's device. It is numbered before `welcome` and counts only once the
//! edge confirmed that the connection still stood; an older one is told `replaced` then, not
//! before.

use std::collections::btree_map::Entry;

use bytes::Bytes;

use super::appender::Waiter;
use super::core::Sequencer;
use super::fanout::Told;
use super::presence::{FAREWELL_US, SILENT_US};
use super::requests::Purpose;
use super::stream::Session;
use super::user::Task;
use crate::limits::{SHARD_SLOT_COUNT_MAX, SILENT_MS};
use crate::link::message::{
    Address, Code, FromStore, PushTarget, SessionNumber, ToEdge, ToSequencer, ToStore,
};
use crate::link::record::{ConversationName, Cursor, Id, Record};
use crate::link::{Outlet, PeerId};

/// A session that its edge says stands.
pub struct Confirmed {
    pub waiter: Waiter,
    pub address: Address,
    pub number: SessionNumber,
    pub device: Id,
    pub manual: bool,
}

/// Names a session in a notice about it.
#[derive(Clone)]
pub struct Retired {
    pub peer: PeerId,
    pub address: Address,
    pub number: SessionNumber,
    pub device: Id,
}

impl Sequencer {
    /// `Open`, `Confirm`, `Retell`, `Close`, `Room`, `Dropped`.
    pub(super) fn session_said(&mut self, waiter: Waiter, said: ToSequencer, out: &mut dyn Outlet) {
        if let ToSequencer::Open { user, device, ticket, .. } = said {
            return self.with_user(user, Task::Open(waiter, device, ticket), out);
        }
        out.answered(waiter.peer, waiter.number);
        let retired =
            |address, number, device| Retired { peer: waiter.peer, address, number, device };
        match said {
            ToSequencer::Confirm { address, session: number, user, device, manual }
            | ToSequencer::Retell { address, session: number, user, device, manual } => {
                if address.slot >= SHARD_SLOT_COUNT_MAX {
                    return self.break_with(waiter.peer);
                }
                let confirmed = Confirmed { waiter, address, number, device, manual };
                self.with_user(user, Task::Confirm(confirmed), out);
            }
            ToSequencer::Close { address, session, user, device } => {
                self.part(user, retired(address, session, device), None, out);
            }
            ToSequencer::Lost { address, session, user, device, silent_ms } => {
                self.part(user, retired(address, session, device), Some(silent_ms), out);
            }
            ToSequencer::Silent { address, session, user, device, is_silent } => {
                let retired = retired(address, session, device);
                if self.users.contains_key(&user) {
                    self.with_user(user, Task::Silent(retired, is_silent), out);
                } else {
                    self.silent_resting(&user, &retired, is_silent);
                }
            }
            ToSequencer::Room { address, session, user, device, stream } => {
                let task = Task::Room(retired(address, session, device), stream);
                self.with_user(user, task, out);
            }
            ToSequencer::Dropped { address, session, user, device, convo, seq, stream } => {
                let task = Task::Dropped(retired(address, session, device), convo, seq, stream);
                self.with_user(user, task, out);
            }
            _ => unreachable!("the caller hands on nothing else"),
        }
    }

    /// A session is over. One at rest needs nobody to be loaded.
    fn part(&mut self, user: Id, retired: Retired, silent_ms: Option<u64>, out: &mut dyn Outlet) {
        if self.users.contains_key(&user) || self.registry.listens(&user) {
            return self.with_user(user, Task::Close(retired, silent_ms), out);
        }
        let seen_ms = self.now.unix_ms.saturating_sub(silent_ms.unwrap_or(0));
        if self.close_resting(&user, retired.address, retired.number, seen_ms) {
            self.presence_left(&user, seen_ms, grace_us(silent_ms));
        }
        self.release(retired.peer, retired.address, &user);
    }

    /// Runs the task now if the user is at hand, else behind what waits already.
    pub(super) fn with_user(&mut self, user: Id, task: Task, out: &mut dyn Outlet) {
        let known = self.users.contains_key(&user);
        self.users.entry(user.clone()).or_default().tasks.push_back(task);
        if !known {
            self.residents.users.push_back(user.clone());
            let ask = ToStore::LoadUser { user: user.clone(), after: Bytes::new() };
            self.ask(ask, Purpose::User(user), out);
        } else {
            self.run_user(&user, out);
        }
    }

    /// A piece of what the store has; after the last one the user is at hand. Nothing of this user
    /// is under way into the log meanwhile, so the pieces are of one state.
    pub(super) fn user_loaded(&mut self, user: Id, answer: FromStore, out: &mut dyn Outlet) {
        let FromStore::User {
            devices,
            cursors,
            groups,
            channels,
            revoked,
            hidden,
            dead,
            failures,
            next,
            ..
        } = answer
        else {
            return;
        };
        let complete = next.is_empty();
        let entry = self.users.entry(user.clone()).or_default();
        groups.into_iter().for_each(|(convo, member)| entry.note_group(convo, member));
        entry.channels.extend(channels);
        let revoked = revoked.into_iter().map(|gone| (gone.device.clone(), gone));
        entry.revoked.extend(revoked);
        entry.hidden = hidden;
        entry.load(devices, &cursors, complete);
        entry.load_dead(dead, failures);
        if complete {
            self.recall_seen(&user);
            self.wake_sessions(&user);
            self.wake_listeners(&user);
            self.run_user(&user, out);
        } else {
            let ask = ToStore::LoadUser { user: user.clone(), after: next };
            self.ask(ask, Purpose::User(user), out);
        }
    }

    fn run_user(&mut self, user: &Id, out: &mut dyn Outlet) {
        while let Some(entry) = self.users.get_mut(user)
            && entry.loaded
            && let Some(task) = entry.tasks.pop_front()
        {
            match task {
                Task::Open(waiter, device, ticket) => self.open(user, waiter, device, ticket, out),
                Task::Confirm(confirmed) => self.confirm(user, confirmed, out),
                Task::Close(retired, silent_ms) => self.close(user, &retired, silent_ms, out),
                Task::Silent(retired, is_silent) => self.silent(user, &retired, is_silent),
                Task::Watch(look) => self.watch_loaded(user, look),
                Task::Privacy(waiter, hidden) => self.set_privacy(user, waiter, hidden),
                Task::Devices(waiter) => self.tell_devices(user, waiter, out),
                Task::Revoke(waiter, device) => self.revoke(user, waiter, device, out),
                Task::Raise(raise) => self.raise(user, raise, out),
                Task::Sync(asked, due) => self.sync_loaded(user, asked, due, out),
                Task::List { waiter, after, limit } => self.list(user, waiter, after, limit, out),
                Task::SyncNamed(asked, named) => {
                    self.sync(user.clone(), asked, Some(named), out);
                }
                Task::Again(convo, task) => self.with_conversation(convo, *task, out),
                Task::Speak(waiter, convo) => {
                    self.refuse_loaded_speaker(&convo, user, waiter, out);
                }
                Task::Room(retired, stream) => self.room(user, &retired, stream, out),
                Task::Dropped(retired, convo, seq, stream) => {
                    self.dropped(user, &retired, convo, seq, stream, out);
                }
                Task::Bury(overdue) => self.bury(user, overdue, out),
                Task::Replay(replay) => self.replay(user, replay),
                Task::Failed(lsn, failure) => self.failed(user, lsn, failure, out),
                Task::Fan(lsn, message) => self.fan_to_user(user, lsn, &message, out),
                Task::Risen(lsn, convo) => self.risen(user, lsn, &convo, out),
                Task::Tell { convo, seq, watermark, by, tally } => {
                    let news = Told { convo, seq, watermark, by, tally };
                    self.tell(user, &news, out);
                }
            }
        }
    }

    /// Numbers a session. A device that was not known is logged first, with where it starts.
    fn open(
        &mut self,
        user: &Id,
        waiter: Waiter,
        device: Id,
        ticket: Option<SessionNumber>,
        out: &mut dyn Outlet,
    ) {
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        if ticket.is_some_and(|session| entry.is_revoked(&device, session)) {
            return match entry.revoking.contains_key(&device) {
                true => self.refuse(waiter, Code::Unavailable, "it is being revoked", out),
                false => self.refuse(waiter, Code::Forbidden, "the device was revoked", out),
            };
        }
        if entry.devices.get(&device).is_some_and(|device| device.known) {
            return self.number(waiter, out);
        }
        if let Some(lsn) = entry.devices.get(&device).and_then(|device| device.logged_at)
            && self.appender().wait_for(lsn, waiter)
        {
            return;
        }
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let starting = entry.starting_cursors();
        let owner = entry.devices.entry(device.clone()).or_default();
        (owner.seen_ms, owner.logged_seen_ms) = (self.now.unix_ms, self.now.unix_ms);
        let mut rows = Vec::new();
        for (convo, cursor) in starting {
            // A crash may have left a part of its rows: only the others are news.
            if let Entry::Vacant(place) = owner.cursors.entry(convo) {
                rows.push(cursor.row(user, &device, place.key()));
                place.insert(cursor);
            }
        }
        let lsn = self.log_device(user.clone(), device.clone(), rows, waiter);
        let owner = self.users.get_mut(user).and_then(|user| user.devices.get_mut(&device));
        owner.expect("entered above").logged_at = Some(lsn);
    }

    fn log_device(&mut self, user: Id, device: Id, rows: Vec<Cursor>, waiter: Waiter) -> u64 {
        let ts = self.now.unix_ms;
        if !rows.is_empty() {
            for row in rows.iter().filter(|row| row.marker == 0) {
                self.count_removal(row);
            }
            self.append_cursors(rows, Vec::new());
        }
        self.appender().append(Record::Device { user, device, ts }, vec![waiter])
    }

    fn count_removal(&mut self, row: &Cursor) {
        let owner =
            self.users.get_mut(&row.user).and_then(|user| user.devices.get_mut(&row.device));
        if let Some(cursor) = owner.and_then(|device| device.cursors.get_mut(&row.convo)) {
            cursor.removals += 1;
        }
    }

    /// The device's record is durable: whoever opened its first sessions may go on.
    pub(super) fn device_durable(
        &mut self,
        lsn: u64,
        (user, device): (&Id, &Id),
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        let entry = self.users.get_mut(user).and_then(|user| user.devices.get_mut(device));
        // One that was revoked meanwhile, and is new again, waits for a later record.
        if let Some(device) = entry.filter(|device| device.logged_at.is_none_or(|at| at <= lsn)) {
            device.known = true;
        }
        waiters.iter().for_each(|waiter| self.number(*waiter, out));
    }

    fn number(&mut self, waiter: Waiter, out: &mut dyn Outlet) {
        self.sessions_counter += 1;
        let epoch = self.appender().epoch;
        let session = SessionNumber { epoch, counter: self.sessions_counter };
        self.answer(waiter, ToEdge::Opened { to: waiter.number, session }, out);
    }

    fn confirm(&mut self, user: &Id, confirmed: Confirmed, out: &mut dyn Outlet) {
        let Confirmed { waiter, address, number, device, manual } = confirmed;
        if self.life_of(waiter.peer) != waiter.life {
            return;
        }
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        let target = PushTarget { address, session: number, stream: 0 };
        // Nobody has a session whose device is not in the log, unless it was revoked since.
        let is_known = entry.devices.contains_key(&device);
        if !is_known || entry.is_revoked(&device, number) {
            return match entry.revoking.get(&device).copied() {
                Some(lsn) => self.leaves(lsn, waiter.peer, target),
                None => self.say(waiter.peer, ToEdge::Cut { target }, out),
            };
        }
        let owner = entry.devices.entry(device.clone()).or_default();
        let older = match &owner.session {
            Some(session) if session.number > number => (waiter.peer, target),
            Some(session) if session.number == number && session.address == address => return,
            Some(session) => (session.peer, session.target()),
            None => (waiter.peer, target),
        };
        let wins = owner.session.as_ref().is_none_or(|session| session.number < number);
        let replaces = owner.session.is_some();
        if replaces {
            self.counters.replaced_total += 1;
            self.say(older.0, ToEdge::Replaced { target: older.1 }, out);
        }
        if !wins {
            return;
        }
        if replaces {
            self.release(older.0, older.1.address, user);
        }
        if let Some(edge) = self.edges.get_mut(&waiter.peer) {
            edge.held.insert(address.slot, user.clone());
        }
        self.devices.seen.forget(user, &device);
        let stream = self.next_stream();
        self.abandon(user, &device, out);
        let owner = self.users.get_mut(user).and_then(|user| user.devices.get_mut(&device));
        let owner = owner.expect("entered above");
        let session = Session::new(waiter.peer, address, number, manual, stream);
        owner.session = Some(Box::new(session));
        self.listen_all(user, &device);
        self.presence_came(user);
        self.tell_failures(user, &device, out);
        if !manual {
            self.catch_up(user, &device, None, out);
            self.turn_idle_live(user, &device);
        }
    }

    fn close(
        &mut self,
        user: &Id,
        retired: &Retired,
        silent_ms: Option<u64>,
        out: &mut dyn Outlet,
    ) {
        if self.has_session(user, retired) {
            let seen_ms = self.now.unix_ms.saturating_sub(silent_ms.unwrap_or(0));
            self.abandon(user, &retired.device, out);
            self.forget_session(user, &retired.device, retired.peer, seen_ms);
            self.release(retired.peer, retired.address, user);
            self.presence_left(user, seen_ms, grace_us(silent_ms));
        }
    }

    /// Nothing was heard of the client for a while, or it was heard again.
    fn silent(&mut self, user: &Id, retired: &Retired, is_silent: bool) {
        if self.has_session(user, retired)
            && let Some(session) = self.session(user, &retired.device)
        {
            session.is_silent = is_silent;
            self.presence_silent(user, is_silent);
        }
    }

    /// What the edge says of a client's silence, once it is noted.
    pub(super) fn presence_silent(&mut self, user: &Id, is_silent: bool) {
        match is_silent {
            true => {
                let seen_ms = self.now.unix_ms.saturating_sub(SILENT_MS);
                self.presence_left(user, seen_ms, 0);
            }
            false => self.presence_came(user),
        }
    }

    /// The slot of that edge holds no session of this user any more.
    pub(super) fn release(&mut self, peer: PeerId, address: Address, user: &Id) {
        if let Some(edge) = self.edges.get_mut(&peer) {
            edge.held.remove(address.slot, user);
        }
    }

    /// Whether the notice is about the session that the device has now.
    pub(super) fn has_session(&self, user: &Id, retired: &Retired) -> bool {
        let device = self.users.get(user).and_then(|user| user.devices.get(&retired.device));
        device.and_then(|device| device.session.as_ref()).is_some_and(|session| {
            session.number == retired.number && session.address == retired.address
        })
    }

    /// The connection is gone: what was pushed and not acknowledged stays with the device, and is
    /// marked now, since nobody is there to acknowledge it.
    pub(super) fn forget_session(&mut self, user: &Id, device: &Id, peer: PeerId, seen_ms: u64) {
        let Some(entry) = self.users.get_mut(user) else {
            return;
        };
        let Some(owner) = entry.devices.get_mut(device) else {
            return;
        };
        if owner.session.as_ref().is_some_and(|session| session.peer != peer) {
            return;
        }
        if owner.session.take().is_none() {
            return;
        }
        self.stop_listening_all(user, device);
        let Some(owner) = self.users.get(user).and_then(|user| user.devices.get(device)) else {
            return;
        };
        let behind = owner.cursors.iter().filter(|(_, c)| c.marker == 0 && c.is_behind());
        let behind: Vec<ConversationName> = behind.map(|(convo, _)| convo.clone()).collect();
        behind.iter().for_each(|convo| self.mark(user, device, convo));
        self.note_left(user, device, seen_ms);
    }
}

/// How long a user whose session is over is not taken for gone.
fn grace_us(silent_ms: Option<u64>) -> u64 {
    silent_ms.map_or(FAREWELL_US, |silent_ms| SILENT_US.saturating_sub(silent_ms * 1_000))
}
