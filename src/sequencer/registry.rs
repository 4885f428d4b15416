//! Sessions at rest, and which edge holds which: what a live session costs when nothing happens.
//!
//! A user whose devices are all settled is dropped from memory, connected or not; of the sessions
//! only this remains. Whatever is for such a user loads him first, and his sessions stand again.
//! Invariant: a session is in one place, in its device (`users`) or here.

use hashbrown::HashMap;

use super::core::Sequencer;
use super::stream::Session;
use super::user::User;
use crate::link::PeerId;
use crate::link::message::{Address, SessionNumber};
use crate::link::record::Id;

/// A session at rest.
struct Resting {
    device: Box<str>,
    address: Address,
    number: SessionNumber,
    peer: PeerId,
    manual: bool,
    /// It hears a channel: whoever ends it loads its user.
    listens: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Registry {
    users: HashMap<Id, Box<[Resting]>>,
}

impl Registry {
    /// Takes the sessions of a user who leaves memory.
    pub fn rest(&mut self, user: Id, left: User) {
        let listens = left.listens();
        let sessions = left.devices.into_iter().filter_map(|(device, kept)| {
            let session = kept.session?;
            let Session { peer, address, number, manual, .. } = *session;
            Some(Resting { device: (*device).into(), address, number, peer, manual, listens })
        });
        let sessions: Box<[Resting]> = sessions.collect();
        if !sessions.is_empty() {
            self.users.insert(user, sessions);
        }
    }

    pub fn contains(&self, user: &Id) -> bool {
        self.users.contains_key(user)
    }

    pub fn listens(&self, user: &Id) -> bool {
        let sessions = self.users.get(user).into_iter().flatten();
        sessions.into_iter().any(|session| session.listens)
    }

    /// Drops those of the user's sessions that `gone` names.
    fn drop_where(&mut self, user: &Id, gone: impl Fn(&Resting) -> bool) {
        let Some(sessions) = self.users.get_mut(user) else { return };
        let kept = std::mem::take(sessions).into_iter().filter(|session| !gone(session));
        *sessions = kept.collect();
        if sessions.is_empty() {
            self.users.remove(user);
        }
    }
}

/// The sessions of one edge shard, by the slot of their connection: whose each is.
#[derive(Default)]
pub(super) struct Held {
    users: Vec<Option<Id>>,
    count: usize,
}

impl Held {
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn insert(&mut self, slot: u32, user: Id) {
        let index = slot as usize;
        if index >= self.users.len() {
            // By an eighth and not by doubling: this is a table of all connections.
            let more = index + 1 - self.users.len();
            self.users.reserve_exact(more.max(self.users.len() / 8));
            self.users.resize(index + 1, None);
        }
        self.count += usize::from(self.users[index].is_none());
        self.users[index] = Some(user);
    }

    /// Forgets the slot, unless it is somebody else's by now.
    pub fn remove(&mut self, slot: u32, user: &Id) {
        if let Some(held) = self.users.get_mut(slot as usize)
            && held.as_ref() == Some(user)
        {
            *held = None;
            self.count -= 1;
        }
    }

    pub fn into_users(self) -> impl Iterator<Item = Id> {
        self.users.into_iter().flatten()
    }
}

impl Sequencer {
    /// The user has come into memory: his sessions stand in their devices again.
    pub(super) fn wake_sessions(&mut self, user: &Id) {
        for resting in self.registry.users.remove(user).into_iter().flatten() {
            let Resting { device, address, number, peer, manual, .. } = resting;
            let stream = self.next_stream();
            let session = Session::new(peer, address, number, manual, stream);
            let owner = self.users.get_mut(user).expect("loaded by the caller");
            let owner = owner.devices.entry((*device).into()).or_default();
            owner.session = Some(Box::new(session));
        }
    }

    /// A session at rest is over: there is nothing to load its user for.
    pub(super) fn close_resting(&mut self, user: &Id, address: Address, number: SessionNumber) {
        self.registry
            .drop_where(user, |resting| resting.address == address && resting.number == number);
    }

    /// Every session that a user has at this edge shard is over.
    pub(super) fn forget_sessions_at(&mut self, user: &Id, peer: PeerId) {
        self.registry.drop_where(user, |resting| resting.peer == peer);
        let devices = self.users.get(user).into_iter().flat_map(|user| &user.devices);
        let here = devices.filter(|(_, device)| {
            device.session.as_ref().is_some_and(|session| session.peer == peer)
        });
        let here: Vec<Id> = here.map(|(id, _)| id.clone()).collect();
        here.iter().for_each(|device| self.forget_session(user, device, peer));
    }
}
