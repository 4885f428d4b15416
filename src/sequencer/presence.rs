//! Presence: whether those are there at whom somebody looks. Soft state, and never stored but for
//! the user's wish to be hidden.
//!
//! Edges look, each once for all of its clients: so what is kept here is a row for each user that
//! is looked at, and nothing for anybody else. A user is offline once all of his sessions are gone,
//! after a while in which he may come back: a short one if he said farewell, else until 45 s after
//! his last sign of life. After a start nobody is told that somebody is gone before those 45 s are
//! over, or that he is there before he was told of.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use super::appender::Waiter;
use super::core::Sequencer;
use super::user::Task;
use crate::limits::SILENT_MS;
use crate::link::message::{Presence, ToEdge};
use crate::link::record::{Id, Record};
use crate::link::{Outlet, PeerId};

/// A client that said farewell has this long to come back.
pub(super) const FAREWELL_US: u64 = 3_000_000;
/// One that did not has this long since its last sign of life.
pub(super) const SILENT_US: u64 = SILENT_MS * 1_000;
/// Rows in one entry to an edge.
const ROW_COUNT_MAX: usize = 4_096;

/// A user at whom somebody looks.
#[derive(Default)]
struct Watched {
    edges: Vec<PeerId>,
    /// He was loaded: the rest holds.
    is_known: bool,
    /// As the edges are told.
    online: bool,
    /// The edges were told by an earlier life, who knows what.
    is_unsure: bool,
    last_seen: u64,
    hidden: bool,
    /// He is not taken for gone before.
    held_until_us: u64,
    due_us: Option<u64>,
}

/// A question of an edge that waits for users to be loaded.
struct Look {
    waiter: Waiter,
    users: Vec<Id>,
    missing: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Presences {
    watched: HashMap<Id, Watched>,
    due: BTreeSet<(u64, Id)>,
    /// Whose rows are news to an edge.
    news: BTreeMap<PeerId, BTreeSet<Id>>,
    looks: BTreeMap<u64, Look>,
    look_last: u64,
}

impl Presences {
    /// How many users are looked at.
    pub fn count(&self) -> usize {
        self.watched.len()
    }

    /// When somebody is to be taken for gone.
    pub fn first_us(&self) -> Option<u64> {
        self.due.first().map(|(due_us, _)| *due_us)
    }

    /// An edge is gone, and with it everybody who looked there.
    pub fn forget_edge(&mut self, edge: PeerId) {
        self.news.remove(&edge);
        let due = &mut self.due;
        self.watched.retain(|user, watched| {
            watched.edges.retain(|other| *other != edge);
            let stays = !watched.edges.is_empty();
            if !stays && let Some(due_us) = watched.due_us {
                due.remove(&(due_us, user.clone()));
            }
            stays
        });
    }

    fn unwatch(&mut self, edge: PeerId, user: &Id) {
        let Some(watched) = self.watched.get_mut(user) else { return };
        watched.edges.retain(|other| *other != edge);
        if watched.edges.is_empty() {
            self.set_due(user, None);
            self.watched.remove(user);
        }
    }

    fn set_due(&mut self, user: &Id, due_us: Option<u64>) {
        let Some(watched) = self.watched.get_mut(user) else { return };
        if let Some(old_us) = std::mem::replace(&mut watched.due_us, due_us) {
            self.due.remove(&(old_us, user.clone()));
        }
        if let Some(due_us) = due_us {
            self.due.insert((due_us, user.clone()));
        }
    }

    fn tell_all(&mut self, user: &Id) {
        for edge in self.watched.get(user).into_iter().flat_map(|watched| &watched.edges) {
            self.news.entry(*edge).or_default().insert(user.clone());
        }
    }

    fn pop_due(&mut self, now_us: u64) -> Option<Id> {
        if self.first_us()? > now_us {
            return None;
        }
        let (_, user) = self.due.pop_first()?;
        if let Some(watched) = self.watched.get_mut(&user) {
            watched.due_us = None;
        }
        Some(user)
    }
}

impl Sequencer {
    /// An edge looks at users, and is answered with what is known of them.
    pub(super) fn watch(&mut self, waiter: Waiter, users: Vec<Id>, out: &mut dyn Outlet) {
        if self.life_of(waiter.peer) != waiter.life {
            return;
        }
        let mut unknown = Vec::new();
        for user in &users {
            let watched = self.presences.watched.entry(user.clone()).or_default();
            if !watched.edges.contains(&waiter.peer) {
                watched.edges.push(waiter.peer);
            }
            if !watched.is_known {
                unknown.push(user.clone());
            }
        }
        self.presences.look_last += 1;
        let number = self.presences.look_last;
        let look = Look { waiter, users, missing: unknown.len() };
        self.presences.looks.insert(number, look);
        for user in unknown {
            self.with_user(user, Task::Watch(Some(number)), out);
        }
    }

    /// An edge has looked at users since before this session.
    pub(super) fn rewatch(&mut self, edge: PeerId, users: Vec<Id>, out: &mut dyn Outlet) {
        for user in users {
            let watched = self.presences.watched.entry(user.clone()).or_default();
            if !watched.edges.contains(&edge) {
                watched.edges.push(edge);
            }
            if watched.is_known {
                self.presences.news.entry(edge).or_default().insert(user);
            } else {
                self.with_user(user, Task::Watch(None), out);
            }
        }
    }

    pub(super) fn unwatch(&mut self, edge: PeerId, users: &[Id]) {
        users.iter().for_each(|user| self.presences.unwatch(edge, user));
    }

    /// A user who is looked at is loaded.
    pub(super) fn watch_loaded(&mut self, user: &Id, look: Option<u64>) {
        let online = self.is_online(user);
        let entry = self.users.get(user).expect("loaded by the caller");
        let (hidden, last_seen) = (entry.hidden, entry.seen_ms());
        if let Some(look) = look.and_then(|number| self.presences.looks.get_mut(&number)) {
            look.missing -= 1;
        }
        let Some(watched) = self.presences.watched.get_mut(user) else { return };
        if watched.is_known {
            if look.is_none() {
                self.presences.tell_all(user);
            }
            return;
        }
        (watched.is_known, watched.hidden, watched.last_seen) = (true, hidden, last_seen);
        watched.online = online;
        if look.is_some() {
            return;
        }
        if online {
            return self.presences.tell_all(user);
        }
        // He may be on his way back.
        (watched.online, watched.is_unsure) = (true, true);
        let due_us = self.now.monotonic_us + SILENT_US;
        self.presences.set_due(user, Some(due_us));
    }

    /// A user has a session more, or one of them shows signs of life again.
    pub(super) fn presence_came(&mut self, user: &Id) {
        let Some(watched) = self.presences.watched.get_mut(user) else { return };
        watched.held_until_us = 0;
        let is_news = !watched.online || watched.is_unsure;
        (watched.online, watched.is_unsure) = (true, false);
        let is_known = watched.is_known;
        self.presences.set_due(user, None);
        if is_news && is_known {
            self.presences.tell_all(user);
        }
    }

    /// A user has a session less, or one of them may be dead. He was there at `seen_ms`, and is
    /// not taken for gone within `grace_us`.
    pub(super) fn presence_left(&mut self, user: &Id, seen_ms: u64, grace_us: u64) {
        let until_us = self.now.monotonic_us + grace_us;
        let Some(watched) = self.presences.watched.get_mut(user) else { return };
        watched.last_seen = watched.last_seen.max(seen_ms);
        watched.held_until_us = watched.held_until_us.max(until_us);
        let (held_until_us, told_online) = (watched.held_until_us, watched.online);
        if told_online && !self.is_online(user) {
            self.presences.set_due(user, Some(held_until_us));
        }
    }

    /// Whether he has a session that shows signs of life.
    fn is_online(&self, user: &Id) -> bool {
        let devices = self.users.get(user).into_iter().flat_map(|user| user.devices.values());
        let mut sessions = devices.filter_map(|device| device.session.as_ref());
        sessions.any(|session| !session.is_silent) || self.registry.is_online(user)
    }

    /// Tells what is due and what is news, the newest state of each user once. What was asked is
    /// answered once all edges have told who is there.
    pub(super) fn tell_presence(&mut self, out: &mut dyn Outlet) {
        let now_us = self.now.monotonic_us;
        while let Some(user) = self.presences.pop_due(now_us) {
            if !self.is_online(&user)
                && let Some(watched) = self.presences.watched.get_mut(&user)
            {
                (watched.online, watched.is_unsure) = (false, false);
                self.presences.tell_all(&user);
            }
        }
        if !self.presences.looks.is_empty() && !self.fanout.is_paused(now_us) {
            let ready = self.presences.looks.iter().filter(|(_, look)| look.missing == 0);
            let ready: Vec<u64> = ready.map(|(number, _)| *number).collect();
            for number in ready {
                let Some(look) = self.presences.looks.remove(&number) else { continue };
                let rows = look.users.iter().filter_map(|user| self.presence_row(user, true));
                let rows: Vec<Presence> = rows.collect();
                self.answer(look.waiter, ToEdge::Watched { to: look.waiter.number, rows }, out);
            }
        }
        for (edge, users) in std::mem::take(&mut self.presences.news) {
            let rows = users.iter().filter_map(|user| self.presence_row(user, false));
            let rows: Vec<Presence> = rows.collect();
            self.counters.presence_total += rows.len() as u64;
            for rows in rows.chunks(ROW_COUNT_MAX) {
                self.say(edge, ToEdge::Presence { rows: rows.to_vec() }, out);
            }
        }
    }

    fn presence_row(&self, user: &Id, is_first: bool) -> Option<Presence> {
        let watched = self.presences.watched.get(user)?;
        // Who looks for the first time was told nothing that might be true still.
        let online = match is_first && (watched.is_unsure || watched.due_us.is_none()) {
            true => self.is_online(user),
            false => watched.online,
        };
        let last_seen = if online { self.now.unix_ms } else { watched.last_seen };
        Some(Presence { user: user.clone(), online, last_seen, hidden: watched.hidden })
    }

    /// A client says whether others are to see its user.
    pub(super) fn set_privacy(&mut self, user: &Id, waiter: Waiter, hidden: bool) {
        let entry = self.users.get_mut(user).expect("loaded by the caller");
        entry.privacy_under_way += 1;
        let record = Record::Privacy { user: user.clone(), hidden };
        self.appender().append(record, vec![waiter]);
    }

    /// The wish is durable.
    pub(super) fn privacy_durable(
        &mut self,
        user: &Id,
        hidden: bool,
        waiters: &[Waiter],
        out: &mut dyn Outlet,
    ) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.privacy_under_way -= 1;
            entry.hidden = hidden;
        }
        if let Some(watched) = self.presences.watched.get_mut(user)
            && std::mem::replace(&mut watched.hidden, hidden) != hidden
        {
            self.presences.tell_all(user);
        }
        for waiter in waiters {
            self.answer(*waiter, ToEdge::Privacy { to: waiter.number, hidden }, out);
        }
    }
}
