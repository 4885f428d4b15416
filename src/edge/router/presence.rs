//! Who of a shard's clients looks at whose presence, and what they were told.
//!
//! The sequencer is asked once for each user, however many clients look at him; its news go to all
//! of them. Changes wait in a queue, each subscription in it once: a client is told the newest
//! state when its turn comes, and nothing if that is what it knows. No more frames than
//! [`PRESENCE_FRAMES_PER_S_MAX`] leave in a second, and none while memory is scarce. A connection
//! without subscriptions costs nothing here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;

use super::operations::Limited;
use super::{ConnectionId, Pressure, ROOM_SIZE, Router, Surroundings};
use crate::limits::{
    CONNECTION_SUBSCRIPTION_COUNT_MAX, PRESENCE_FRAMES_PER_S_MAX, SHARD_SUBSCRIPTION_COUNT_MAX,
};
use crate::link::message::{Presence as Row, PushTarget, ToSequencer};
use crate::link::record::{ConversationName, Id};
use crate::link::wire::wire_struct;
use crate::protocol::Subprotocol;
use crate::protocol::operation::Event;

/// Users told of again in one entry.
const REWATCH_COUNT_MAX: usize = 4_096;
/// A shard that stood still, or had nothing to tell, sends at most this much of a second at once.
const BURST_US: u64 = 200_000;
/// Subscriptions looked at in one turn.
const LOOK_COUNT_MAX: usize = 16_384;
/// What a subscription costs: its place in two tables and in the queue, and a name.
const SUBSCRIPTION_SIZE: usize = 256;

wire_struct! {
    /// What a client is told of a user.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct View {
        pub online: bool,
        /// 0: never.
        pub last_seen: u64,
    }
}

wire_struct! {
    /// One subscription, for the next process.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct SubscriptionState {
        pub user: Id,
        pub told: Option<View>,
        pub row: Option<Row>,
    }
}

/// A user at whom somebody looks.
#[derive(Default)]
struct Watched {
    /// The newest that the sequencer has said.
    row: Option<Row>,
    watchers: BTreeSet<ConnectionId>,
}

/// One subscription.
#[derive(Default)]
struct Subscription {
    told: Option<View>,
    is_queued: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Presence {
    watched: HashMap<Id, Watched>,
    subscriptions: HashMap<ConnectionId, BTreeMap<Id, Subscription>>,
    count: usize,
    queue: VecDeque<(ConnectionId, Id)>,
    allowance: Allowance,
}

/// Frames that may leave now, in millionths.
#[derive(Default)]
struct Allowance {
    left: u64,
    refilled_us: u64,
}

impl Allowance {
    fn refill(&mut self, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.refilled_us).min(BURST_US);
        self.refilled_us = now_us;
        let full = BURST_US * PRESENCE_FRAMES_PER_S_MAX;
        self.left = (self.left + elapsed_us * PRESENCE_FRAMES_PER_S_MAX).min(full);
    }

    fn take(&mut self) -> bool {
        let taken = self.left.checked_sub(1_000_000);
        self.left = taken.unwrap_or(self.left);
        taken.is_some()
    }
}

impl View {
    /// What `viewer` is told: who hides is nobody, but to himself.
    fn of(row: &Row, viewer: &str) -> View {
        match row.hidden && *row.user != *viewer {
            true => View { online: false, last_seen: 0 },
            false => View { online: row.online, last_seen: row.last_seen },
        }
    }

    /// Whether it says more than what was told: since when somebody is there is no news, nor is an
    /// earlier time at which he left.
    fn is_news_after(self, told: Option<View>) -> bool {
        let Some(told) = told else { return true };
        let was_seen = self.last_seen > told.last_seen || self.last_seen == 0;
        self.online != told.online || (!self.online && was_seen && self != told)
    }
}

impl Presence {
    /// How much memory it takes, about.
    pub fn held_size(&self) -> usize {
        self.count * SUBSCRIPTION_SIZE
    }

    /// Users in the queue: something is to be told.
    pub fn has_news(&self) -> bool {
        !self.queue.is_empty()
    }

    /// All users at whom somebody looks.
    pub fn rewatches(&self) -> Vec<ToSequencer> {
        let users: Vec<Id> = self.watched.keys().cloned().collect();
        let pieces = users.chunks(REWATCH_COUNT_MAX);
        pieces.map(|users| ToSequencer::Rewatch { users: users.to_vec() }).collect()
    }

    /// Adds subscriptions, all or, past a bound, none.
    fn subscribe(&mut self, id: ConnectionId, users: &[Id]) -> Result<(), Limited> {
        let known = self.subscriptions.get(&id);
        let is_known = |user: &&Id| known.is_some_and(|known| known.contains_key(*user));
        let new = users.iter().filter(|user| !is_known(user)).count();
        if known.map_or(0, BTreeMap::len) + new > CONNECTION_SUBSCRIPTION_COUNT_MAX {
            return Err(Limited::Connection);
        }
        if self.count + new > SHARD_SUBSCRIPTION_COUNT_MAX {
            return Err(Limited::Shard);
        }
        for user in users {
            self.add(id, user, Subscription::default());
        }
        Ok(())
    }

    fn add(&mut self, id: ConnectionId, user: &Id, subscription: Subscription) {
        let subscriptions = self.subscriptions.entry(id).or_default();
        if !subscriptions.contains_key(user) {
            subscriptions.insert(user.clone(), subscription);
            self.count += 1;
            self.watched.entry(user.clone()).or_default().watchers.insert(id);
        }
    }

    /// Ends subscriptions; those at whom nobody looks any more.
    fn unsubscribe(&mut self, id: ConnectionId, users: &[Id]) -> Vec<Id> {
        let mut unwatched = Vec::new();
        let Some(subscriptions) = self.subscriptions.get_mut(&id) else { return unwatched };
        for user in users {
            if subscriptions.remove(user).is_none() {
                continue;
            }
            self.count -= 1;
            let Some(watched) = self.watched.get_mut(user) else { continue };
            watched.watchers.remove(&id);
            if watched.watchers.is_empty() {
                self.watched.remove(user);
                unwatched.push(user.clone());
            }
        }
        if subscriptions.is_empty() {
            self.subscriptions.remove(&id);
        }
        unwatched
    }

    /// News of a user. Counts those that found an older one still waiting.
    fn note(&mut self, row: Row, viewers: impl Fn(ConnectionId) -> Option<Id>) -> u64 {
        let Presence { watched, subscriptions, queue, .. } = self;
        let Some(watched) = watched.get_mut(&row.user) else { return 0 };
        let mut coalesced = 0;
        for id in &watched.watchers {
            let subscription = subscriptions.get_mut(id).and_then(|users| users.get_mut(&row.user));
            let (Some(subscription), Some(viewer)) = (subscription, viewers(*id)) else {
                continue;
            };
            if subscription.is_queued {
                coalesced += 1;
            } else if subscription.told.is_some()
                && View::of(&row, &viewer).is_news_after(subscription.told)
            {
                subscription.is_queued = true;
                queue.push_back((*id, row.user.clone()));
            }
        }
        watched.row = Some(row);
        coalesced
    }

    /// What the next subscription in the queue is told, if anything still is.
    fn pop(&mut self, viewers: impl Fn(ConnectionId) -> Option<Id>) -> Popped {
        let Some((id, user)) = self.queue.pop_front() else { return Popped::Nothing };
        let row = self.watched.get(&user).and_then(|watched| watched.row.as_ref());
        let users = self.subscriptions.get_mut(&id);
        let subscription = users.and_then(|users| users.get_mut(&user));
        let (Some(row), Some(subscription), Some(viewer)) = (row, subscription, viewers(id)) else {
            return Popped::Void;
        };
        subscription.is_queued = false;
        let view = View::of(row, &viewer);
        if !view.is_news_after(subscription.told) {
            return Popped::Coalesced;
        }
        subscription.told = Some(view);
        Popped::News(id, user, view)
    }

    /// The subscriptions of a connection, for the next process.
    pub fn states(&self, id: ConnectionId) -> Vec<SubscriptionState> {
        let users = self.subscriptions.get(&id).into_iter().flatten();
        let state = |(user, subscription): (&Id, &Subscription)| SubscriptionState {
            user: user.clone(),
            told: subscription.told,
            row: self.watched.get(user).and_then(|watched| watched.row.clone()),
        };
        users.map(state).collect()
    }

    /// Goes on with them. What was not told yet is told now.
    pub fn continue_with(&mut self, id: ConnectionId, states: Vec<SubscriptionState>) {
        for SubscriptionState { user, told, row } in states {
            let is_queued = told.is_some() && row.is_some();
            self.add(id, &user, Subscription { told, is_queued });
            if is_queued {
                self.queue.push_back((id, user.clone()));
            }
            if let Some(watched) = self.watched.get_mut(&user) {
                watched.row = row.or(watched.row.take());
            }
        }
    }
}

/// See [`Presence::pop`].
enum Popped {
    News(ConnectionId, Id, View),
    /// The client knows.
    Coalesced,
    /// Nobody looks any more.
    Void,
    Nothing,
}

impl Router {
    /// A client wants to be told of users.
    pub(super) fn subscribe(
        &mut self,
        id: ConnectionId,
        users: &[Id],
        around: &Surroundings,
    ) -> Result<(), Limited> {
        if around.clients.pressure() >= Pressure::Quiet {
            return Err(Limited::Memory);
        }
        self.presence.subscribe(id, users)
    }

    /// A client looks at these users no more.
    pub(super) fn unsubscribe(
        &mut self,
        id: ConnectionId,
        users: &[Id],
        around: &mut Surroundings,
    ) {
        let users = self.presence.unsubscribe(id, users);
        if !users.is_empty() {
            self.requests.tell(ToSequencer::Unwatch { users }, around.outlet);
        }
    }

    /// A connection is gone, and its subscriptions with it.
    pub(super) fn unsubscribe_all(&mut self, id: ConnectionId, around: &mut Surroundings) {
        let users = self.presence.subscriptions.get(&id);
        let users: Option<Vec<Id>> = users.map(|users| users.keys().cloned().collect());
        if let Some(users) = users {
            self.unsubscribe(id, &users, around);
        }
    }

    /// The answer to a subscription: everybody asked for, in that order; the last one answers.
    pub(super) fn watched(
        &mut self,
        id: ConnectionId,
        reference: Option<i64>,
        (users, rows): (&[Id], Vec<Row>),
        around: &mut Surroundings,
    ) {
        let Some(viewer) = self.user_of(id) else { return };
        let rows: HashMap<Id, Row> = rows.into_iter().map(|row| (row.user.clone(), row)).collect();
        let count = users.len();
        for (place, user) in users.iter().enumerate() {
            let row = rows.get(user);
            if let Some(row) = row {
                self.take_row(row.clone());
            }
            let view = row.map(|row| View::of(row, &viewer));
            let subscriptions = self.presence.subscriptions.get_mut(&id);
            if let Some(subscription) = subscriptions.and_then(|it| it.get_mut(user)) {
                subscription.told = view.or(subscription.told);
            }
            let view = view.unwrap_or(View { online: false, last_seen: 0 });
            let reference = reference.filter(|_| place + 1 == count);
            self.say_presence(id, reference, user, view, around);
        }
    }

    /// News of users.
    pub(super) fn presence_news(&mut self, rows: Vec<Row>) {
        rows.into_iter().for_each(|row| self.take_row(row));
    }

    fn take_row(&mut self, row: Row) {
        let connections = &self.connections;
        let coalesced = self.presence.note(row, |id| user_of(connections, id));
        self.counters.presence_coalesced += coalesced;
    }

    /// Tells as much as may leave now.
    pub(super) fn tell_presence(&mut self, around: &mut Surroundings) {
        self.presence.allowance.refill(around.now.monotonic_us);
        if around.clients.pressure() >= Pressure::Quiet {
            return;
        }
        for _ in 0..self.presence.queue.len().min(LOOK_COUNT_MAX) {
            // Who takes nothing is told the newest once he does.
            let next = self.presence.queue.front().cloned();
            if let Some((id, user)) = next
                && around.clients.queued(id) > ROOM_SIZE
            {
                self.presence.queue.pop_front();
                self.presence.queue.push_back((id, user));
                continue;
            }
            if !self.presence.allowance.take() {
                return;
            }
            let connections = &self.connections;
            match self.presence.pop(|id| user_of(connections, id)) {
                Popped::News(id, user, view) => self.say_presence(id, None, &user, view, around),
                Popped::Coalesced => self.counters.presence_coalesced += 1,
                Popped::Void => {}
                Popped::Nothing => return,
            }
        }
    }

    fn say_presence(
        &mut self,
        id: ConnectionId,
        reference: Option<i64>,
        user: &str,
        view: View,
        around: &mut Surroundings,
    ) {
        self.counters.presence_frames += 1;
        let View { online, last_seen } = view;
        let last_seen = Some(last_seen).filter(|last_seen| *last_seen > 0);
        self.say(id, &Event::Presence { reference, user, online, last_seen }, around);
    }

    /// Somebody is typing: told to those who take what they are told, while there is room for it.
    pub(super) fn typing(
        &mut self,
        convo: &ConversationName,
        from: &Id,
        targets: &[PushTarget],
        around: &mut Surroundings,
    ) {
        let mut encoded: [Option<Vec<u8>>; Subprotocol::ALL.len()] =
            [const { None }; Subprotocol::ALL.len()];
        for target in targets {
            let Some(id) = self.addressee(target) else { continue };
            let is_behind = self.connection(id).is_some_and(|found| found.behind().is_some());
            let is_quiet = around.clients.pressure() >= Pressure::Quiet;
            if is_behind || is_quiet || !self.presence.allowance.take() {
                self.counters.typing_dropped += 1;
            } else if let Some(subprotocol) = self.subprotocol(id) {
                self.counters.typing_frames += 1;
                let frame = encoded[subprotocol.index()].get_or_insert_with(|| {
                    let mut frame = Vec::new();
                    subprotocol.encode(&Event::Typing { convo, from }, &mut frame);
                    frame
                });
                self.queue(id, frame, around);
            }
        }
    }

    fn user_of(&self, id: ConnectionId) -> Option<Id> {
        user_of(&self.connections, id)
    }
}

fn user_of(connections: &[Option<super::Connection>], id: ConnectionId) -> Option<Id> {
    let connection = connections.get(id.slot as usize)?.as_ref()?;
    (connection.generation == id.generation).then(|| connection.user())
}
