//! Sessions at rest, and which edge holds which: what a live session costs when nothing happens.
//!
//! A user whose devices are all settled is dropped from memory, connected or not; of the sessions
//! only this remains. Whatever is for such a user loads him first, and his sessions stand again.
//! Invariant: a session is in one place, in its device (`users`) or here.

use hashbrown::HashMap;

use super::core::Sequencer;
use super::presence::SILENT_US;
use super::sessions::Retired;
use super::stream::Session;
use super::user::User;
use crate::link::PeerId;
use crate::link::message::{Address, PushTarget, SessionNumber};
use crate::link::record::Id;

/// A session at rest.
struct Resting {
    device: Box<str>,
    address: Address,
    number: SessionNumber,
    peer: PeerId,
    /// When the log says that its device was last there, in hours since 1970, the lower bits.
    seen_hour: u16,
    /// What else there is to know, in one byte: [`MANUAL`] and those below it.
    marks: u8,
}

/// Nothing is pushed before the first `sync`.
const MANUAL: u8 = 1;
/// It hears a channel: whoever ends it loads its user.
const LISTENS: u8 = 2;
/// Its client may be gone.
const SILENT: u8 = 4;

impl Resting {
    fn is(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }
}

// There is one for each of a million sessions.
const _: () = assert!(size_of::<Resting>() <= 56);

const HOUR_MS: u64 = 3_600_000;

fn hour(ms: u64) -> u16 {
    (ms / HOUR_MS) as u16
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
            let Session { peer, address, number, manual, is_silent, .. } = *session;
            let (device, seen_hour) = ((*device).into(), hour(kept.logged_seen_ms));
            let mark = |holds, mark| if holds { mark } else { 0 };
            let marks = mark(manual, MANUAL) | mark(listens, LISTENS) | mark(is_silent, SILENT);
            Some(Resting { device, address, number, peer, seen_hour, marks })
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
        sessions.into_iter().any(|session| session.is(LISTENS))
    }

    /// Whether one of the user's sessions shows signs of life.
    pub fn is_online(&self, user: &Id) -> bool {
        self.users.get(user).into_iter().flatten().any(|session| !session.is(SILENT))
    }

    /// The user's sessions that are pushed to, with their devices.
    pub fn live_sessions(&self, user: &Id) -> impl Iterator<Item = (Id, PeerId, PushTarget)> {
        let sessions = self.users.get(user).into_iter().flatten();
        sessions.filter(|session| !session.is(MANUAL)).map(|session| {
            let Resting { device, address, number, peer, .. } = session;
            // A session that wakes up begins a stream above all.
            let target = PushTarget { address: *address, session: *number, stream: 0 };
            (Id::from(&**device), *peer, target)
        })
    }

    /// Takes those of the user's sessions that `gone` names.
    fn take_where(&mut self, user: &Id, gone: impl Fn(&Resting) -> bool) -> Vec<Resting> {
        let Some(sessions) = self.users.get_mut(user) else { return Vec::new() };
        let all = std::mem::take(sessions).into_iter();
        let (taken, kept): (Vec<_>, Vec<_>) = all.partition(gone);
        *sessions = kept.into();
        if sessions.is_empty() {
            self.users.remove(user);
        }
        taken
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
            let (manual, is_silent) = (resting.is(MANUAL), resting.is(SILENT));
            let Resting { device, address, number, peer, .. } = resting;
            let stream = self.next_stream();
            let mut session = Session::new(peer, address, number, manual, stream);
            session.is_silent = is_silent;
            let owner = self.users.get_mut(user).expect("loaded by the caller");
            let owner = owner.devices.entry((*device).into()).or_default();
            owner.session = Some(Box::new(session));
        }
    }

    /// A session at rest is over: there is nothing to load its user for. Whether there was one.
    pub(super) fn close_resting(
        &mut self,
        user: &Id,
        address: Address,
        number: SessionNumber,
        seen_ms: u64,
    ) -> bool {
        let taken = self
            .registry
            .take_where(user, |resting| resting.address == address && resting.number == number);
        let found = !taken.is_empty();
        self.left_resting(user, taken, seen_ms);
        found
    }

    /// Nothing was heard of the client of a session at rest, or it was heard again.
    pub(super) fn silent_resting(&mut self, user: &Id, retired: &Retired, is_silent: bool) {
        let sessions = self.registry.users.get_mut(user).into_iter().flatten();
        let found =
            sessions.filter(|it| it.address == retired.address && it.number == retired.number);
        let mut count = 0;
        found.for_each(|session| {
            session.marks =
                if is_silent { session.marks | SILENT } else { session.marks & !SILENT };
            count += 1;
        });
        if count > 0 {
            self.presence_silent(user, is_silent);
        }
    }

    /// Sessions at rest are over: when their devices were last there is remembered, and logged if
    /// what the log says is not of this hour or the one before.
    fn left_resting(&mut self, user: &Id, taken: Vec<Resting>, seen_ms: u64) {
        for resting in taken {
            let device = Id::from(&*resting.device);
            if hour(seen_ms).wrapping_sub(resting.seen_hour) > 1 {
                self.devices.seen.note(user, &device, seen_ms, self.now.monotonic_us);
            }
            self.devices.seen.remember(user, &device, seen_ms);
        }
    }

    /// Every session that a user has at this edge shard is over.
    pub(super) fn forget_sessions_at(&mut self, user: &Id, peer: PeerId) {
        let seen_ms = self.now.unix_ms;
        let taken = self.registry.take_where(user, |resting| resting.peer == peer);
        self.left_resting(user, taken, seen_ms);
        let devices = self.users.get(user).into_iter().flat_map(|user| &user.devices);
        let here = devices.filter(|(_, device)| {
            device.session.as_ref().is_some_and(|session| session.peer == peer)
        });
        let here: Vec<Id> = here.map(|(id, _)| id.clone()).collect();
        here.iter().for_each(|device| self.forget_session(user, device, peer, seen_ms));
        self.presence_left(user, seen_ms, SILENT_US);
    }
}
