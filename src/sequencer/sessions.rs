//! The session registry: numbered sessions, one per device, the greater number wins.
//!
//! A session lives in its user's device. It is numbered before `welcome` and counts only once the
//! edge confirmed that the connection still stood; an older one is told `replaced` then, not
//! before.

use bytes::Bytes;

use super::appender::Waiter;
use super::core::Sequencer;
use super::fanout::Told;
use super::requests::Purpose;
use super::stream::Session;
use super::user::{DeviceCursor, Task};
use crate::limits::SHARD_SLOT_COUNT_MAX;
use crate::link::message::{
    Address, FromStore, PushTarget, SessionNumber, ToEdge, ToSequencer, ToStore,
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
        if let ToSequencer::Open { user, device, .. } = said {
            return self.with_user(user, Task::Open(waiter, device), out);
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
            ToSequencer::Close { address, session, user, .. }
                if !self.users.contains_key(&user) =>
            {
                self.close_resting(&user, address, session);
                self.release(waiter.peer, address, &user);
            }
            ToSequencer::Close { address, session, user, device } => {
                self.with_user(user, Task::Close(retired(address, session, device)), out);
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
        let FromStore::User { devices, cursors, groups, dead, failures, next, .. } = answer else {
            return;
        };
        let complete = next.is_empty();
        let entry = self.users.entry(user.clone()).or_default();
        groups.into_iter().for_each(|(convo, member)| entry.note_group(convo, member));
        entry.load(devices, &cursors, complete);
        entry.load_dead(dead, failures);
        if complete {
            self.wake_sessions(&user);
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
                Task::Open(waiter, device) => self.open(user, waiter, device, out),
                Task::Confirm(confirmed) => self.confirm(user, confirmed, out),
                Task::Close(retired) => self.close(user, &retired, out),
                Task::Raise(raise) => self.raise(user, raise, out),
                Task::Sync(asked, due) => self.sync_loaded(user, asked, due, out),
                Task::List { waiter, after, limit } => self.list(user, waiter, after, limit, out),
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
    fn open(&mut self, user: &Id, waiter: Waiter, device: Id, out: &mut dyn Outlet) {
        let entry = self.users.get_mut(user).expect("loaded by the caller");
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
        let mut rows = Vec::new();
        for (convo, cursor) in starting {
            // A crash may have left a part of its rows: only the others are news.
            if !owner.cursors.contains_key(&convo) {
                let DeviceCursor { delivered, read, marker, .. } = cursor;
                owner.cursors.insert(convo.clone(), cursor);
                let (user, device) = (user.clone(), device.clone());
                rows.push(Cursor { user, device, convo, delivered, read, marker });
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
        user: &Id,
        device: &Id,
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        let entry = self.users.get_mut(user).and_then(|user| user.devices.get_mut(device));
        if let Some(device) = entry {
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
        let owner = entry.devices.entry(device.clone()).or_default();
        let target = PushTarget { address, session: number, stream: 0 };
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
        let stream = self.next_stream();
        self.abandon(user, &device, out);
        let owner = self.users.get_mut(user).and_then(|user| user.devices.get_mut(&device));
        let owner = owner.expect("entered above");
        let session = Session::new(waiter.peer, address, number, manual, stream);
        owner.session = Some(Box::new(session));
        self.tell_failures(user, &device, out);
        if !manual {
            self.catch_up(user, &device, None, out);
        }
    }

    fn close(&mut self, user: &Id, retired: &Retired, out: &mut dyn Outlet) {
        if self.has_session(user, retired) {
            self.abandon(user, &retired.device, out);
            self.forget_session(user, &retired.device, retired.peer);
            self.release(retired.peer, retired.address, user);
        }
    }

    /// The slot of that edge holds no session of this user any more.
    fn release(&mut self, peer: PeerId, address: Address, user: &Id) {
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
    pub(super) fn forget_session(&mut self, user: &Id, device: &Id, peer: PeerId) {
        let Some(entry) = self.users.get_mut(user) else {
            return;
        };
        let Some(owner) = entry.devices.get_mut(device) else {
            return;
        };
        if owner.session.as_ref().is_some_and(|session| session.peer != peer) {
            return;
        }
        owner.session = None;
        let behind = owner.cursors.iter().filter(|(_, c)| c.marker == 0 && c.is_behind());
        let behind: Vec<ConversationName> = behind.map(|(convo, _)| convo.clone()).collect();
        behind.iter().for_each(|convo| self.mark(user, device, convo));
    }
}
