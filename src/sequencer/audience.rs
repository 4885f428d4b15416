//! Who hears a channel now: live pushes to connected subscribers, best effort.
//!
//! Nothing waits for them: the fan-out position passes a message of a channel at once, since every
//! subscriber reads the same log. A listener is one session of one device; where it stands is kept
//! here, not with its user, who may be at rest: so a push loads nobody. While a session catches up
//! its listener is held, and nothing overtakes; once it turns live, everything that was offered
//! before has been read. Pushes go out in pieces, so that a large channel holds up nobody, under a
//! rate, and only while little else is on its way to the edges. What the rate leaves out is a gap,
//! which the client closes by `sync`; the last message of all is pushed as soon as the rate lets
//! it, so that the gap is seen.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use hashbrown::HashMap;

use super::core::Sequencer;
use super::stream::Session;
use crate::link::message::{Address, PushTarget, SessionNumber, ToEdge};
use crate::link::record::{ConversationName, Id, Message};
use crate::link::{Outlet, PeerId};

/// Listeners looked at in one turn, and targets of one push to an edge: an entry has its bound.
const LOOK_COUNT_MAX: usize = 16_384;
/// Messages of one channel that are on their way to its listeners. More are left out.
const PASSING_COUNT_MAX: usize = 256;
/// How long a turn waits at most while a message waits for the rate, or for room on a link.
const LATE_US: u64 = 10_000;
const CROWDED_US: u64 = 1_000;

/// A device of a user.
type Place = (Id, Id);

/// One session that hears a channel.
struct Listener {
    peer: PeerId,
    address: Address,
    number: SessionNumber,
    /// The session's catching-up, as it counts them.
    stream: Rc<Cell<u64>>,
    pushed_upto: u64,
    /// The session's catching-up when it last began to catch up with this channel.
    caught: u64,
    /// It catches up, or is behind, or has not asked for anything yet.
    is_held: bool,
}

/// A message on its way to the listeners.
struct Passing {
    message: Rc<Message>,
    /// Its sender heard `sent` in this life.
    was_told: bool,
    /// The last listener that was looked at.
    after: Option<Place>,
}

/// The listeners of one channel.
#[derive(Default)]
struct Audience {
    listeners: BTreeMap<Place, Listener>,
    /// The last message that was offered to it, left out or not.
    fanned: u64,
    passing: VecDeque<Passing>,
    /// The last one, if the rate did not let it pass yet.
    late: Option<Passing>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Channels {
    audiences: HashMap<ConversationName, Audience>,
    /// Those with messages on their way, each once.
    busy: VecDeque<ConversationName>,
    /// Those with a late one, each once.
    late: VecDeque<ConversationName>,
    /// What was pushed before is still on its way to some edge.
    is_crowded: bool,
    listener_count: usize,
}

impl Channels {
    /// Sessions that hear a channel, once for each channel.
    pub fn listener_count(&self) -> usize {
        self.listener_count
    }

    /// The microseconds until there is something to do; `None`: nothing is.
    pub fn wait_us(&self) -> Option<u64> {
        let late = (!self.late.is_empty()).then_some(LATE_US);
        let busy = if self.is_crowded { CROWDED_US } else { 1 };
        if self.busy.is_empty() { late } else { Some(busy) }
    }

    /// The last message of a channel that was offered to its listeners; 0: none in this life.
    pub fn fanned(&self, convo: &str) -> u64 {
        self.audiences.get(convo).map_or(0, |audience| audience.fanned)
    }

    /// An edge shard is gone, with all its sessions.
    pub fn drop_peer(&mut self, peer: PeerId) {
        for audience in self.audiences.values_mut() {
            let before = audience.listeners.len();
            audience.listeners.retain(|_, listener| listener.peer != peer);
            self.listener_count -= before - audience.listeners.len();
        }
        self.audiences.retain(|_, audience| !audience.listeners.is_empty());
    }

    fn get(&mut self, place: &Place, convo: &str) -> Option<&mut Listener> {
        self.audiences.get_mut(convo)?.listeners.get_mut(place)
    }

    fn insert(&mut self, convo: &ConversationName, place: Place, listener: Listener) {
        let audience = self.audiences.entry(convo.clone()).or_default();
        let older = audience.listeners.insert(place, listener);
        self.listener_count += usize::from(older.is_none());
    }

    fn remove(&mut self, convo: &str, place: &Place) {
        let Some(audience) = self.audiences.get_mut(convo) else { return };
        self.listener_count -= usize::from(audience.listeners.remove(place).is_some());
        if audience.listeners.is_empty() {
            self.audiences.remove(convo);
        }
    }
}

impl Listener {
    fn of(session: &Session, pushed_upto: u64, is_held: bool) -> Listener {
        let (peer, address, number) = (session.peer, session.address, session.number);
        let stream = session.shared_stream();
        Listener { peer, address, number, stream, pushed_upto, caught: 0, is_held }
    }

    /// Whether the message is to be pushed; it is counted as pushed then.
    fn takes(&mut self, place: &Place, passing: &Passing) -> bool {
        let Message { seq, from, device, .. } = &*passing.message;
        if self.is_held || *seq <= self.pushed_upto {
            return false;
        }
        self.pushed_upto = *seq;
        // The device that sent it hears `sent`.
        !passing.was_told || place.0 != *from || place.1 != *device
    }

    fn target(&self) -> PushTarget {
        PushTarget { address: self.address, session: self.number, stream: self.stream.get() }
    }
}

impl Sequencer {
    /// A message of a channel is durable, and comes out of the log in order.
    pub(super) fn fan_to_channel(&mut self, message: Rc<Message>, was_told: bool) {
        let convo = message.convo.clone();
        let Some(audience) = self.channels.audiences.get_mut(&convo) else { return };
        audience.fanned = audience.fanned.max(message.seq);
        let earlier = audience.late.take();
        let is_listed = earlier.is_some();
        if let Some(earlier) = earlier
            && !self.let_pass(&convo, earlier, is_listed)
        {
            self.leave_out(&convo);
        }
        let passing = Passing { message, was_told, after: None };
        self.let_pass(&convo, passing, is_listed);
    }

    /// What has waited for the rate, and then a piece of what is on its way.
    pub(super) fn push_channels(&mut self, out: &mut dyn Outlet) {
        for _ in 0..self.channels.late.len() {
            let Some(convo) = self.channels.late.pop_front() else { break };
            let audience = self.channels.audiences.get_mut(&convo);
            if let Some(late) = audience.and_then(|audience| audience.late.take()) {
                self.let_pass(&convo, late, false);
            }
        }
        let mut left = LOOK_COUNT_MAX;
        let is_full = |peer: &PeerId| !out.has_room(*peer);
        self.channels.is_crowded = self.edges.keys().any(is_full);
        while left > 0
            && !self.channels.is_crowded
            && let Some(convo) = self.channels.busy.pop_front()
        {
            left = left.saturating_sub(self.push_piece(&convo, left, out).max(1));
        }
    }

    /// Sends it on its way if the rate lets it; else it is the late one. `is_listed`: the channel
    /// is among those that have one.
    fn let_pass(&mut self, convo: &ConversationName, passing: Passing, is_listed: bool) -> bool {
        let now_us = self.now.monotonic_us;
        let Some(audience) = self.channels.audiences.get_mut(convo) else { return true };
        let count = audience.listeners.len() as u64;
        let is_crowded = audience.passing.len() >= PASSING_COUNT_MAX;
        if is_crowded || self.limits.channel_pushes.wait_us(convo, count, now_us) > 0 {
            audience.late = Some(passing);
            if !is_listed {
                self.channels.late.push_back(convo.clone());
            }
            return false;
        }
        self.limits.channel_pushes.take(convo, count, now_us);
        if audience.passing.is_empty() {
            self.channels.busy.push_back(convo.clone());
        }
        audience.passing.push_back(passing);
        true
    }

    /// The late one has a successor, and is pushed to nobody.
    fn leave_out(&mut self, convo: &ConversationName) {
        let Some(audience) = self.channels.audiences.get_mut(convo) else { return };
        audience.late = None;
        self.counters.channel_pushes_left_out_total += audience.listeners.len() as u64;
    }

    /// Pushes to at most `count` listeners; how many were looked at.
    fn push_piece(
        &mut self,
        convo: &ConversationName,
        count: usize,
        out: &mut dyn Outlet,
    ) -> usize {
        let Some(audience) = self.channels.audiences.get_mut(convo) else { return 0 };
        let Some(mut passing) = audience.passing.pop_front() else { return 0 };
        let start = passing.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut pushes: BTreeMap<PeerId, Vec<PushTarget>> = BTreeMap::new();
        let (mut looked, mut last) = (0, None);
        for (place, listener) in
            audience.listeners.range_mut::<Place, _>((start, Bound::Unbounded)).take(count)
        {
            if listener.takes(place, &passing) {
                pushes.entry(listener.peer).or_default().push(listener.target());
            }
            looked += 1;
            last = Some(place);
        }
        let last = last.cloned().filter(|_| looked == count);
        let message = passing.message.clone();
        if last.is_some() {
            passing.after = last;
            audience.passing.push_front(passing);
        }
        if !audience.passing.is_empty() {
            self.channels.busy.push_back(convo.clone());
        }
        for (peer, targets) in pushes {
            self.counters.delivered_total += targets.len() as u64;
            self.say(peer, ToEdge::Deliver { message: Message::clone(&message), targets }, out);
        }
        looked
    }

    /// A subscription began: the user's sessions hear what comes after `upto`.
    pub(super) fn listen(&mut self, user: &Id, convo: &ConversationName, upto: u64) {
        let Some(entry) = self.users.get_mut(user) else { return };
        for (device, owner) in &mut entry.devices {
            let Some(session) = &mut owner.session else { continue };
            let place = (user.clone(), device.clone());
            // It was subscribed already, without being counted.
            if self.channels.get(&place, convo).is_some() {
                continue;
            }
            // Who is behind gets this with the rest.
            let is_held = session.note_behind(convo, upto) || session.manual;
            self.channels.insert(convo, place, Listener::of(session, upto, is_held));
        }
    }

    /// A subscription ended.
    pub(super) fn stop_listening(&mut self, user: &Id, convo: &ConversationName) {
        let Some(entry) = self.users.get(user) else { return };
        for device in entry.devices.keys() {
            self.channels.remove(convo, &(user.clone(), device.clone()));
        }
    }

    /// A session began: it hears every channel of its user, once it has caught up.
    pub(super) fn listen_all(&mut self, user: &Id, device: &Id) {
        for convo in self.channels_of(user) {
            let owner = self.users.get(user).and_then(|entry| entry.devices.get(device));
            let Some(session) = owner.and_then(|owner| owner.session.as_ref()) else { return };
            let listener = Listener::of(session, 0, true);
            self.channels.insert(&convo, (user.clone(), device.clone()), listener);
        }
    }

    /// A session ended.
    pub(super) fn stop_listening_all(&mut self, user: &Id, device: &Id) {
        for convo in self.channels_of(user) {
            self.channels.remove(&convo, &(user.clone(), device.clone()));
        }
    }

    /// The user's sessions stand in his devices again: they count their catchings-up anew.
    pub(super) fn wake_listeners(&mut self, user: &Id) {
        for convo in self.channels_of(user) {
            let Some(entry) = self.users.get(user) else { return };
            for (device, owner) in &entry.devices {
                let Some(session) = &owner.session else { continue };
                if let Some(listener) = self.channels.get(&(user.clone(), device.clone()), &convo) {
                    listener.stream = session.shared_stream();
                    listener.is_held |= session.manual;
                }
            }
        }
    }

    /// The session begins to catch up: with the channels that it does, nothing is pushed meanwhile.
    pub(super) fn hold_catching(&mut self, user: &Id, device: &Id) {
        for convo in self.channels_of(user) {
            let Some(session) = self.session(user, device) else { return };
            let Some(caught) = session.catches_up(&convo).then(|| session.shared_stream().get())
            else {
                continue;
            };
            if let Some(listener) = self.channels.get(&(user.clone(), device.clone()), &convo) {
                (listener.is_held, listener.caught) = (true, caught);
            }
        }
    }

    /// The connection is behind: nothing live is pushed to it. What it was given of each channel.
    pub(super) fn hold_behind(&mut self, user: &Id, device: &Id) -> Vec<(ConversationName, u64)> {
        let mut held = Vec::new();
        for convo in self.channels_of(user) {
            if let Some(listener) = self.channels.get(&(user.clone(), device.clone()), &convo)
                && !std::mem::replace(&mut listener.is_held, true)
            {
                held.push((convo, listener.pushed_upto));
            }
        }
        held
    }

    /// Whether a push that was dropped is void: the listener has caught up, or does so, since.
    pub(super) fn is_caught_since(
        &mut self,
        (user, device): (&Id, &Id),
        convo: &ConversationName,
        stream: u64,
    ) -> bool {
        let listener = self.channels.get(&(user.clone(), device.clone()), convo);
        listener.is_some_and(|listener| listener.caught > stream)
    }

    /// The session has everything of the channel that was offered up to now: it is live.
    pub(super) fn turn_live(
        &mut self,
        user: &Id,
        device: &Id,
        convo: &ConversationName,
        upto: u64,
    ) {
        if let Some(listener) = self.channels.get(&(user.clone(), device.clone()), convo) {
            listener.pushed_upto = listener.pushed_upto.max(upto);
            listener.is_held = false;
        }
    }

    /// The first catching up has begun: the channels that it leaves alone are not behind.
    pub(super) fn turn_idle_live(&mut self, user: &Id, device: &Id) {
        for convo in self.channels_of(user) {
            let begun = self.begins_after(user, device, &convo);
            let session = self.session(user, device);
            if session.is_some_and(|session| !session.catches_up(&convo)) {
                self.turn_live(user, device, &convo, begun);
            }
        }
    }

    /// The channels in which the device has not acknowledged everything, with what it has; those of
    /// which that is not known are among them.
    pub(super) fn channels_behind(&self, user: &Id, device: &Id) -> Vec<(ConversationName, u64)> {
        let begun = self.channels_of(user).into_iter().map(|convo| {
            let begun = self.begins_after(user, device, &convo);
            (convo, begun)
        });
        let is_behind = |(convo, begun): &(ConversationName, u64)| {
            let entry = self.conversations.get(convo).filter(|entry| entry.loaded);
            entry.is_none_or(|entry| entry.durable_head > *begun)
        };
        begun.filter(is_behind).collect()
    }

    /// What of a channel a device has, or need not have: it acknowledged it, or it was there before
    /// the subscription.
    fn begins_after(&self, user: &Id, device: &Id, convo: &ConversationName) -> u64 {
        let Some(entry) = self.users.get(user) else { return 0 };
        let since = entry.channels.get(convo).map_or(1, |row| row.since);
        let cursor = entry.devices.get(device).and_then(|device| device.cursors.get(convo));
        cursor.map_or(0, |cursor| cursor.delivered).max(since - 1)
    }

    /// Whether it is a channel of which the user hears nothing any more.
    pub(super) fn has_unsubscribed(&self, user: &Id, convo: &ConversationName) -> bool {
        let row = self.users.get(user).and_then(|entry| entry.channels.get(convo));
        let runs = |entry: &super::conversation::Conversation| {
            entry.channel.as_ref().is_some_and(|channel| channel.is_run_by(user))
        };
        row.is_some_and(|row| !row.is_active) && !self.conversations.get(convo).is_some_and(runs)
    }

    /// Whether the user's row says that the conversation is a channel.
    pub(super) fn is_channel_of(&self, user: &Id, convo: &ConversationName) -> bool {
        self.users.get(user).is_some_and(|entry| entry.channels.contains_key(convo))
    }

    fn channels_of(&self, user: &Id) -> Vec<ConversationName> {
        let rows = self.users.get(user).into_iter().flat_map(|entry| &entry.channels);
        rows.filter(|(_, row)| row.is_active).map(|(convo, _)| convo.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
